//! How fast events go to the guest: some at once, more at a pace that no person reaches.
//!
//! A guest's driver takes all that comes, but behind it are queues that drop what is too much: a client of Linux' evdev that does not get to
//! run has room for 64 of its events (`EVDEV_MIN_BUFFER_SIZE` in `drivers/input/evdev.c`), which is 21 keys going down or up. Who types a
//! whole file (`bulkhead type`) would lose characters there. So events wait in the console's socket, and the console with them.

use std::time::{Duration, Instant};

/// Packets that go at once.
pub const BURST: u32 = 16;

/// The time from one to the next.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    each: Duration,
    /// When all of what went so far would have gone, one at a time.
    done: Option<Instant>,
}

impl Pace {
    /// One packet each so often.
    pub const fn new(each: Duration) -> Pace {
        Pace { each, done: None }
    }

    /// Whether a packet may go now, or else when.
    pub fn may(&self, now: Instant) -> Result<(), Instant> {
        let slack = self.each * (BURST - 1);
        match self.done.and_then(|done| done.checked_sub(slack)) {
            Some(then) if then > now => Err(then),
            _ => Ok(()),
        }
    }

    /// One went.
    pub fn went(&mut self, now: Instant) {
        self.done = Some(self.done.map_or(now, |done| done.max(now)) + self.each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EACH: Duration = Duration::from_millis(2);

    #[test]
    fn a_burst_goes_at_once_and_the_rest_one_by_one() {
        let (mut pace, start) = (Pace::new(EACH), Instant::now() + Duration::from_secs(60));
        for _ in 0..BURST {
            assert_eq!(pace.may(start), Ok(()));
            pace.went(start);
        }
        let mut now = start;
        for count in 1..100 {
            let then = pace.may(now).unwrap_err();
            assert_eq!(then, start + EACH * count);
            assert_eq!(pace.may(then - Duration::from_nanos(1)), Err(then));
            assert_eq!(pace.may(then), Ok(()));
            pace.went(then);
            now = then;
        }
        // After a rest there is a whole burst again, and no more than one.
        now += Duration::from_secs(10);
        for _ in 0..BURST {
            assert_eq!(pace.may(now), Ok(()));
            pace.went(now);
        }
        assert!(pace.may(now).is_err());
    }
}
