//! How long to look before sleeping.
//!
//! To sleep and be woken costs more than most of what a guest waits for: some microseconds on the way down, and many more
//! until a processor that has gone idle runs again. So the loop looks at the rings and at the device's completions for a
//! while first. How long follows what was measured: the time from having nothing to do to having something, which is the
//! guest's pace if nothing is in flight and the disk's if something is. Where that is longer than a sleep is worth, it
//! sleeps at once, and an idle guest costs nothing. No constant here is tuned for one disk.
//!
//! Nothing here knows what is looked at, and nothing here sleeps.

use std::time::{Duration, Instant};

/// Paces of a guest up to this are worth looking for: a few times what a wake-up costs. A longer wait is hardly shortened by
/// it, and somebody else could have used the processor.
const WORTH_OF_GUEST: Duration = Duration::from_micros(60);
/// The same of the resource, where a guest waits for certain: what a fast disk takes, on a machine that is busy.
const WORTH_OF_RESOURCE: Duration = Duration::from_micros(120);
/// How many times the usual time is waited before giving up: a look that ends just before its event is the dearest.
const PATIENCE: u32 = 4;
/// Longest look: it bounds what a guest that stops can waste, once or twice until its pace is known.
const LONGEST: Duration = Duration::from_micros(250);
/// Shortest look that is worth having begun.
const SHORTEST: Duration = Duration::from_micros(4);
/// A wait counts for no more than this. So one pause, however long, makes the loop sleep at once from then on, and a few
/// quick events make it look again.
const LONGEST_SAMPLE: u64 = 500_000;
/// A new sample's weight is one in this many.
const WEIGHT: u64 = 8;
/// Looking takes far less than this, even where it is a system call. When the clock jumps by this much, somebody else had the processor: there are not
/// enough of them,
const JUMP: Duration = Duration::from_micros(100);
/// and nothing is looked for during this many times what was lost.
const PENANCE: u32 = 16;
/// Nothing is looked for during this many times a look that was in vain. Where there are fewer processors than want to run, whoever is waited for may be
/// waiting for this very one, which no clock shows: measured, every third request then cost a whole look.
const REST: u32 = 4;
/// While there is always something to do, the core and idle channels' doorbells are asked after this often: a system call
/// a request would be felt, and a tenth of a millisecond is not.
const LISTEN: Duration = Duration::from_micros(50);

/// The usual time until something is to be done, in nanoseconds.
#[derive(Debug)]
struct Pace {
    usual: u64,
    worth: Duration,
}

impl Pace {
    fn unknown(worth: Duration) -> Pace {
        Pace { usual: LONGEST_SAMPLE, worth }
    }

    fn sample(&mut self, waited: Duration) {
        let waited = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX).min(LONGEST_SAMPLE);
        self.usual = (self.usual * (WEIGHT - 1) + waited) / WEIGHT;
    }

    fn look(&self) -> Option<Duration> {
        let usual = Duration::from_nanos(self.usual);
        (usual <= self.worth).then(|| (usual * PATIENCE).clamp(SHORTEST, LONGEST))
    }
}

/// What is being waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// The guest: nothing is in flight.
    Guest,
    /// The resource, or the guest.
    Resource,
}

/// The paces of a device, and what to do about them.
#[derive(Debug)]
pub struct Polling {
    guest: Pace,
    resource: Pace,
    /// No looking before.
    not_before: Option<Instant>,
    heard: Option<Instant>,
    /// Off where there is one processor: whoever is waited for needs it.
    possible: bool,
}

impl Polling {
    /// For a process on this many processors. It sleeps until it has seen that looking is worth it.
    pub fn new(processors: usize) -> Polling {
        let (guest, resource) = (Pace::unknown(WORTH_OF_GUEST), Pace::unknown(WORTH_OF_RESOURCE));
        Polling { guest, resource, not_before: None, heard: None, possible: processors > 1 }
    }

    /// Until when to look; `None`: sleep at once.
    pub fn until(&mut self, what: For, now: Instant) -> Option<Instant> {
        if !self.possible || self.not_before.is_some_and(|then| now < then) {
            return None;
        }
        self.not_before = None;
        Some(now + self.pace(what).look()?)
    }

    /// Between two looks the clock went from `before` to `now`. False: the processor was taken away.
    pub fn may_go_on(&mut self, before: Instant, now: Instant) -> bool {
        let lost = now.saturating_duration_since(before);
        if lost < JUMP {
            return true;
        }
        self.not_before = Some(now + lost * PENANCE);
        false
    }

    /// A look from `begin` to `now` has found nothing, though it has taken all the time that it had.
    pub fn in_vain(&mut self, begin: Instant, now: Instant) {
        let rest = now + now.saturating_duration_since(begin) * REST;
        self.not_before = Some(self.not_before.map_or(rest, |then| then.max(rest)));
    }

    /// There was something to do after so long, found or woken for.
    pub fn waited(&mut self, what: For, time: Duration) {
        self.pace(what).sample(time);
    }

    /// Whether the core has to be asked now.
    pub fn must_listen(&self, now: Instant) -> bool {
        self.heard.is_none_or(|heard| now.saturating_duration_since(heard) >= LISTEN)
    }

    /// The core has been asked.
    pub fn listened(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    fn pace(&mut self, what: For) -> &mut Pace {
        match what {
            For::Guest => &mut self.guest,
            For::Resource => &mut self.resource,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(10);
    const SLOW: Duration = Duration::from_millis(1);

    fn look(polling: &mut Polling, what: For) -> Option<Duration> {
        let now = Instant::now();
        polling.until(what, now).map(|until| until - now)
    }

    fn used_to(time: Duration) -> Polling {
        let mut polling = Polling::new(2);
        (0..100).for_each(|_| polling.waited(For::Guest, time));
        polling
    }

    #[test]
    fn a_new_process_sleeps_until_it_knows_better() {
        let mut polling = Polling::new(2);
        assert_eq!(look(&mut polling, For::Guest), None);
        let quick = (1..).find(|_| {
            polling.waited(For::Guest, QUICK);
            look(&mut polling, For::Guest).is_some()
        });
        assert!(quick.unwrap() < 40, "some quick events are enough");
        assert_eq!(look(&mut polling, For::Resource), None, "the disk's pace is another matter");
    }

    #[test]
    fn the_look_follows_the_pace_and_is_bounded() {
        let quick = look(&mut used_to(QUICK), For::Guest).unwrap();
        assert!(quick >= QUICK * (PATIENCE - 1) && quick <= QUICK * PATIENCE, "{quick:?}");
        assert_eq!(look(&mut used_to(Duration::ZERO), For::Guest), Some(SHORTEST));
        assert!(look(&mut used_to(WORTH_OF_GUEST), For::Guest).unwrap() <= LONGEST);
        assert_eq!(look(&mut used_to(WORTH_OF_GUEST + QUICK), For::Guest), None, "sleeping is better");
    }

    /// The promise to whoever pays for the processor.
    #[test]
    fn a_guest_that_falls_silent_costs_little_and_an_idle_one_nothing() {
        let mut polling = used_to(QUICK);
        let mut wasted = Duration::ZERO;
        for _ in 0..1000 {
            wasted += look(&mut polling, For::Guest).unwrap_or_default();
            polling.waited(For::Guest, SLOW);
        }
        assert!(wasted <= LONGEST * 2, "{wasted:?} in a second");
        assert_eq!(look(&mut polling, For::Guest), None);
    }

    #[test]
    fn one_processor_is_left_to_whoever_is_waited_for() {
        let mut polling = Polling { possible: false, ..used_to(QUICK) };
        assert_eq!(look(&mut polling, For::Guest), None);
    }

    #[test]
    fn a_processor_that_is_wanted_by_others_is_given_up_for_a_while() {
        let mut polling = used_to(QUICK);
        let now = Instant::now();
        assert!(polling.may_go_on(now, now + Duration::from_micros(20)), "an interrupt, say");
        assert!(!polling.may_go_on(now, now + SLOW));
        assert!(polling.until(For::Guest, now + SLOW * PENANCE).is_none());
        assert!(polling.until(For::Guest, now + SLOW * (PENANCE + 1)).is_some());
    }

    #[test]
    fn a_look_in_vain_is_not_repeated_at_once() {
        let mut polling = used_to(QUICK);
        let begin = Instant::now();
        let end = begin + QUICK * PATIENCE;
        polling.in_vain(begin, end);
        assert!(polling.until(For::Guest, end + QUICK).is_none());
        assert!(polling.until(For::Guest, end + QUICK * PATIENCE * REST).is_some());
    }

    #[test]
    fn the_core_is_heard_however_busy_the_guest_is() {
        let mut polling = Polling::new(2);
        let now = Instant::now();
        assert!(polling.must_listen(now));
        polling.listened(now);
        assert!(!polling.must_listen(now + LISTEN / 2));
        assert!(polling.must_listen(now + LISTEN));
    }
}
