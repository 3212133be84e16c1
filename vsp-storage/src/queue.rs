//! What waits for a unit: commands beyond the unit's depth, beyond its limits, or beside one that must be alone.
//!
//! All units share one ring and the kernel's threads behind it. A disk that is slow would fill both, and the others
//! would be as slow; so each has its depth, and what is beyond waits here, in order. Pure: it neither knows what waits nor
//! looks at a clock, and it holds no more than the guest may have in flight.

use std::collections::VecDeque;
use std::time::Instant;

use crate::limit::{Cost, Limit};

/// A command and what is to be known of it here.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    /// The command.
    pub item: T,
    /// What it costs.
    pub cost: Cost,
    /// Nothing else of the unit may run beside it.
    pub alone: bool,
    /// It must not be repeated, so what comes before it must not be either: the guest has the answers to that first.
    pub once: bool,
}

/// Why the first one waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// Until something ends.
    Depth,
    /// Until the guest has the answers to what has ended.
    Answers,
    /// Until then.
    Limit(Instant),
}

/// The queue of a unit.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    waiting: VecDeque<Entry<T>>,
    running: usize,
    /// What runs must be alone.
    alone: bool,
    depth: usize,
    limit: Limit,
    /// So many of the first that wait do not wait for limits any more.
    hurried: usize,
    gate: Gate,
    /// The round in which the last one ended whose answer the guest may not have.
    unseen: Option<u64>,
    /// Commands that had to wait for limits, and for others.
    throttled: u64,
    queued: u64,
}

impl<T> Queue<T> {
    /// A queue for a unit that is given `depth` commands at a time.
    pub fn new(depth: usize, limit: Limit) -> Queue<T> {
        Queue {
            waiting: VecDeque::new(),
            running: 0,
            alone: false,
            depth: depth.max(1),
            limit,
            hurried: 0,
            gate: Gate::Depth,
            unseen: None,
            throttled: 0,
            queued: 0,
        }
    }

    /// A command has come. Given back if it may run at once, which it then does.
    pub fn come(&mut self, entry: Entry<T>, now: Instant) -> Option<T> {
        let gate = if self.waiting.is_empty() {
            self.gate(entry.cost, entry.alone, entry.once, now)
        } else {
            Some(self.gate)
        };
        let Some(gate) = gate else {
            self.run(entry.alone);
            return Some(entry.item);
        };
        match gate {
            Gate::Depth | Gate::Answers => self.queued += 1,
            Gate::Limit(_) => self.throttled += 1,
        }
        if self.waiting.is_empty() {
            self.gate = gate;
        }
        self.waiting.push_back(entry);
        None
    }

    /// The next command that may run, which it then does.
    pub fn next(&mut self, now: Instant) -> Option<T> {
        let first = self.waiting.front()?;
        let (cost, alone, once) = (first.cost, first.alone, first.once);
        if let Some(gate) = self.gate(cost, alone, once, now) {
            self.gate = gate;
            return None;
        }
        self.hurried = self.hurried.saturating_sub(1);
        self.run(alone);
        self.waiting.pop_front().map(|entry| entry.item)
    }

    /// Somebody waits for the end of these commands who must not wait for limits: they, and whatever is before them, are
    /// let through as soon as there is room, and paid for afterwards. [`Queue::next`] is then to be called at once.
    pub fn hurry(&mut self, now: Instant, which: impl Fn(&T) -> bool) {
        let last = self.waiting.iter().rposition(|entry| which(&entry.item));
        self.hurried = self.hurried.max(last.map_or(0, |last| last + 1));
        if self.hurried > 0
            && let Gate::Limit(then) = &mut self.gate
        {
            *then = now.min(*then);
        }
    }

    /// Whether any of these waits, where there are limits to wait for.
    pub fn holds_back(&self, which: impl Fn(&T) -> bool) -> bool {
        self.limit.is_any() && self.waiting.iter().any(|entry| which(&entry.item))
    }

    /// What waits is nobody's any more.
    pub fn abandon(&mut self) -> impl Iterator<Item = T> {
        self.hurried = 0;
        std::mem::take(&mut self.waiting).into_iter().map(|entry| entry.item)
    }

    /// The guest has the answers to what has ended before this round.
    pub fn answered(&mut self, round: u64) {
        self.unseen = self.unseen.filter(|ended| *ended >= round);
    }

    /// Whether the first one waits for answers, and for nothing else.
    pub fn awaits_answers(&self) -> bool {
        self.gate == Gate::Answers && !self.waiting.is_empty()
    }

    /// A command that ran has ended, in this round.
    pub fn ended(&mut self, round: u64) {
        self.unseen = Some(round);
        debug_assert!(self.running > 0, "something ended that did not run");
        self.running = self.running.saturating_sub(1);
        self.alone &= self.running > 0;
    }

    /// One that runs moves more than it had said.
    pub fn moved(&mut self, now: Instant, cost: Cost) {
        self.limit.moved(now, cost);
    }

    /// When to call [`Queue::next`] though nothing has ended.
    pub fn wake_at(&self) -> Option<Instant> {
        match self.gate {
            Gate::Limit(then) if !self.waiting.is_empty() => Some(then),
            _ => None,
        }
    }

    /// Whether any waits.
    #[inline]
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Commands that run or wait.
    pub fn len(&self) -> usize {
        self.running + self.waiting.len()
    }

    /// How many had to wait so far: for limits, and for others.
    pub fn waits(&self) -> (u64, u64) {
        (self.throttled, self.queued)
    }

    fn run(&mut self, alone: bool) {
        self.running += 1;
        self.alone = alone;
    }

    /// What keeps a command from running; if nothing does, it is charged for.
    fn gate(&mut self, cost: Cost, alone: bool, once: bool, now: Instant) -> Option<Gate> {
        if self.alone || self.running >= self.depth || (alone && self.running > 0) {
            return Some(Gate::Depth);
        }
        if once && self.unseen.is_some() {
            return Some(Gate::Answers);
        }
        if self.hurried > 0 {
            self.limit.charge(now, cost);
            return None;
        }
        self.limit.admit(now, cost).err().map(Gate::Limit)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use super::*;
    use crate::cli::Limits;

    fn queue(depth: usize, iops: u64) -> Queue<u32> {
        Queue::new(depth, Limit::new(Limits { iops: NonZeroU64::new(iops), ..Limits::default() }))
    }

    fn entry(item: u32) -> Entry<u32> {
        Entry { item, cost: Cost { bytes: 0 }, alone: false, once: false }
    }

    #[test]
    fn beyond_the_depth_commands_wait_in_order() {
        let (mut queue, now) = (queue(2, 0), Instant::now());
        let begun: Vec<_> = (0..5).map(|n| queue.come(entry(n), now)).collect();
        assert_eq!(begun, [Some(0), Some(1), None, None, None]);
        assert_eq!((queue.len(), queue.wake_at(), queue.waits()), (5, None, (0, 3)));
        assert_eq!(queue.next(now), None);
        for n in 2..5 {
            queue.ended(0);
            assert_eq!((queue.next(now), queue.next(now)), (Some(n), None));
        }
        queue.ended(0);
        queue.ended(0);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn nobody_overtakes() {
        let (mut queue, now) = (queue(2, 0), Instant::now());
        (0..3).for_each(|n| _ = queue.come(entry(n), now));
        queue.ended(0);
        assert_eq!(queue.come(entry(3), now), None, "there is room, for the one that came before");
        assert_eq!(queue.next(now), Some(2));
    }

    #[test]
    fn one_that_must_be_alone_is() {
        let (mut queue, now) = (queue(8, 0), Instant::now());
        assert_eq!(queue.come(entry(0), now), Some(0));
        assert_eq!(queue.come(Entry { alone: true, ..entry(1) }, now), None);
        assert_eq!(queue.come(entry(2), now), None);
        assert_eq!(queue.next(now), None);
        queue.ended(0);
        assert_eq!((queue.next(now), queue.next(now)), (Some(1), None));
        queue.ended(0);
        assert_eq!(queue.next(now), Some(2));
        assert_eq!(queue.come(entry(3), now), Some(3), "and others are not");
    }

    #[test]
    fn who_is_waited_for_waits_for_no_limit_and_pays_afterwards() {
        let (mut queue, now) = (queue(4, 10), Instant::now());
        (0..20).for_each(|n| _ = queue.come(entry(n), now));
        assert!(queue.next(now).is_none() && queue.wake_at().unwrap() > now);
        queue.hurry(now, |n| *n < 10);
        assert_eq!(queue.wake_at(), Some(now), "at once");
        for n in 2..10 {
            if queue.running == 4 {
                assert_eq!(queue.next(now), None, "the depth counts still");
                queue.ended(0);
            }
            assert_eq!(queue.next(now), Some(n));
        }
        queue.ended(0);
        assert_eq!(queue.next(now), None, "those behind were not meant");
        assert!(queue.wake_at().unwrap() > now + Duration::from_millis(800), "it has been charged for");
    }

    #[test]
    fn one_that_runs_once_begins_when_the_guest_has_the_answers_to_what_was_before() {
        let (mut queue, now) = (queue(8, 0), Instant::now());
        let once = |n| Entry { alone: true, once: true, ..entry(n) };
        assert_eq!(queue.come(once(0), now), Some(0), "nothing was before");
        assert_eq!(queue.come(once(1), now), None);
        assert!(!queue.awaits_answers(), "it waits for the first to end");
        queue.ended(7);
        assert_eq!(queue.next(now), None);
        assert!(queue.awaits_answers());
        queue.answered(7);
        assert_eq!(queue.next(now), None, "that one ended in this round");
        queue.answered(8);
        assert_eq!(queue.next(now), Some(1));
        queue.ended(8);
        assert_eq!(queue.come(entry(2), now), Some(2), "others need not wait");
    }

    #[test]
    fn limits_say_when_to_come_again() {
        let (mut queue, now) = (queue(1000, 1000), Instant::now());
        let begun = (0..200).filter_map(|n| queue.come(entry(n), now)).count();
        assert_eq!(begun, 101, "a tenth of a second's worth at once");
        let then = queue.wake_at().unwrap();
        assert!(then > now && then <= now + Duration::from_millis(1));
        assert_eq!(queue.next(now), None);
        assert_eq!(queue.next(then), Some(101));
        assert_eq!(queue.waits(), (99, 0));
    }
}
