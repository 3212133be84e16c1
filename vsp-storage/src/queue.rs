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
}

/// Why the first one waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// Until something ends.
    Depth,
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
    gate: Gate,
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
            gate: Gate::Depth,
            throttled: 0,
            queued: 0,
        }
    }

    /// A command has come. Given back if it may run at once, which it then does.
    pub fn come(&mut self, entry: Entry<T>, now: Instant) -> Option<T> {
        let gate =
            if self.waiting.is_empty() { self.gate(entry.cost, entry.alone, now) } else { Some(self.gate) };
        let Some(gate) = gate else {
            self.run(entry.alone);
            return Some(entry.item);
        };
        match gate {
            Gate::Depth => self.queued += 1,
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
        let (cost, alone) = (first.cost, first.alone);
        if let Some(gate) = self.gate(cost, alone, now) {
            self.gate = gate;
            return None;
        }
        self.run(alone);
        self.waiting.pop_front().map(|entry| entry.item)
    }

    /// A command that ran has ended.
    pub fn ended(&mut self) {
        debug_assert!(self.running > 0, "something ended that did not run");
        self.running = self.running.saturating_sub(1);
        self.alone &= self.running > 0;
    }

    /// One that runs moves more than it had said.
    pub fn moved(&mut self, now: Instant, bytes: u64) {
        self.limit.moved(now, Cost { bytes });
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
    fn gate(&mut self, cost: Cost, alone: bool, now: Instant) -> Option<Gate> {
        if self.alone || self.running >= self.depth || (alone && self.running > 0) {
            return Some(Gate::Depth);
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
        Entry { item, cost: Cost { bytes: 0 }, alone: false }
    }

    #[test]
    fn beyond_the_depth_commands_wait_in_order() {
        let (mut queue, now) = (queue(2, 0), Instant::now());
        let begun: Vec<_> = (0..5).map(|n| queue.come(entry(n), now)).collect();
        assert_eq!(begun, [Some(0), Some(1), None, None, None]);
        assert_eq!((queue.len(), queue.wake_at(), queue.waits()), (5, None, (0, 3)));
        assert_eq!(queue.next(now), None);
        for n in 2..5 {
            queue.ended();
            assert_eq!((queue.next(now), queue.next(now)), (Some(n), None));
        }
        queue.ended();
        queue.ended();
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn nobody_overtakes() {
        let (mut queue, now) = (queue(2, 0), Instant::now());
        (0..3).for_each(|n| _ = queue.come(entry(n), now));
        queue.ended();
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
        queue.ended();
        assert_eq!((queue.next(now), queue.next(now)), (Some(1), None));
        queue.ended();
        assert_eq!(queue.next(now), Some(2));
        assert_eq!(queue.come(entry(3), now), Some(3), "and others are not");
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
