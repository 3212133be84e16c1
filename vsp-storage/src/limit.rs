//! How much a guest may ask of a disk: commands a second, bytes a second, and how much of either may be saved up.
//!
//! Each of the two is one instant, up to which the guest has had its due: a command moves it on by what it costs, and is
//! let through as long as it is not further ahead of the clock than the burst. Nothing is refilled and nothing drifts. A
//! command that costs more than the whole burst is let through as well, and paid for afterwards, so none waits for ever.
//!
//! Pure: the clock is the caller's.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::cli::Limits;
use crate::uring::{Kind, Operation};

/// How long unused allowance is saved up if nobody says. Long enough for the timer that lets the next command through,
/// which comes to the millisecond, and for a boot's bursts; too short to be noticed by others on the host.
const BURST: Duration = Duration::from_millis(100);

/// Most bytes that a range costs which is deallocated or zeroed without being written: it moves no data however long it is,
/// and the file system writes little for it. But some, so that a guest does not get it for nothing.
const MOST_OF_A_RANGE: u64 = 1 << 20;

/// What one command costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Bytes that it moves.
    pub bytes: u64,
}

impl Cost {
    /// What an operation costs.
    pub fn of(operation: &Operation) -> Cost {
        let bytes = match operation.kind {
            Kind::Punch { len, .. } | Kind::Zero { len, .. } => len.min(MOST_OF_A_RANGE),
            _ => operation.bytes(),
        };
        Cost { bytes }
    }
}

#[derive(Debug)]
struct Meter {
    rate: NonZeroU64,
    /// So far the allowance is used up.
    used: Option<Instant>,
}

impl Meter {
    fn new(rate: Option<NonZeroU64>) -> Option<Meter> {
        Some(Meter { rate: rate?, used: None })
    }

    /// When something may be let through next; `None`: at once.
    fn free_at(&self, now: Instant, burst: Duration) -> Option<Instant> {
        let used = self.used?;
        let ahead = used.saturating_duration_since(now);
        (ahead > burst).then(|| now + (ahead - burst))
    }

    fn charge(&mut self, now: Instant, amount: u64) {
        let nanoseconds = u128::from(amount) * 1_000_000_000 / u128::from(self.rate.get());
        let time = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let from = self.used.map_or(now, |used| used.max(now));
        // A clock that ends before the debt does: paid by never letting anything through again, were it not absurd.
        self.used = from.checked_add(time).or(self.used);
    }
}

/// The limits of one disk.
#[derive(Debug)]
pub(crate) struct Limit {
    commands: Option<Meter>,
    bytes: Option<Meter>,
    burst: Duration,
}

impl Limit {
    /// As the command line says.
    pub fn new(limits: Limits) -> Limit {
        let burst = limits.burst.map_or(BURST, |seconds| Duration::from_secs(seconds.get().into()));
        Limit { commands: Meter::new(limits.iops), bytes: Meter::new(limits.bandwidth), burst }
    }

    /// Whether there are any.
    pub fn is_any(&self) -> bool {
        self.commands.is_some() || self.bytes.is_some()
    }

    /// Lets a command through and charges for it, or says when to ask again.
    pub fn admit(&mut self, now: Instant, cost: Cost) -> Result<(), Instant> {
        let meters = [&self.commands, &self.bytes];
        let wait = meters.into_iter().flatten().filter_map(|meter| meter.free_at(now, self.burst)).max();
        if let Some(then) = wait {
            return Err(then);
        }
        self.charge(now, cost);
        Ok(())
    }

    /// Charges for a command that is let through whatever the limits say.
    pub fn charge(&mut self, now: Instant, cost: Cost) {
        if let Some(commands) = &mut self.commands {
            commands.charge(now, 1);
        }
        self.moved(now, cost);
    }

    /// A command that was let through moves more than it said.
    pub fn moved(&mut self, now: Instant, cost: Cost) {
        if let Some(bytes) = &mut self.bytes {
            bytes.charge(now, cost.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn limit(iops: u64, bandwidth: u64, burst: u32) -> Limit {
        Limit::new(Limits {
            iops: NonZeroU64::new(iops),
            bandwidth: NonZeroU64::new(bandwidth),
            burst: NonZeroU32::new(burst),
        })
    }

    /// Commands that a greedy guest gets through in this many seconds.
    fn greedy(limit: &mut Limit, begin: Instant, seconds: u64, bytes: u64) -> u64 {
        let (mut now, mut count) = (begin, 0);
        while now < begin + Duration::from_secs(seconds) {
            match limit.admit(now, Cost { bytes }) {
                Ok(()) => count += 1,
                // As late as epoll is.
                Err(then) => now = then + Duration::from_millis(1),
            }
        }
        count
    }

    #[test]
    fn commands_come_at_their_rate_and_not_slower_for_a_late_timer() {
        let mut limit = limit(1000, 0, 0);
        let count = greedy(&mut limit, Instant::now(), 10, 1 << 20);
        assert!((10_000..=10_110).contains(&count), "{count}");
    }

    #[test]
    fn bytes_come_at_their_rate_whatever_the_size_of_a_command() {
        for bytes in [512, 4096, 1 << 20, 8 << 20] {
            let mut limit = limit(0, 4 << 20, 1);
            let total = greedy(&mut limit, Instant::now(), 20, bytes) * bytes;
            assert!((80 << 20..=(84 << 20) + 2 * bytes).contains(&total), "{total} by {bytes}");
        }
    }

    #[test]
    fn what_was_saved_up_comes_at_once() {
        let mut limit = limit(100, 0, 3);
        let now = Instant::now();
        let burst = (0..1000).take_while(|_| limit.admit(now, Cost { bytes: 0 }).is_ok()).count();
        assert_eq!(burst, 301, "three seconds' worth, and the one that is paid for afterwards");
        let then = limit.admit(now, Cost { bytes: 0 }).unwrap_err();
        assert_eq!(then - now, Duration::from_millis(10));
        let later = now + Duration::from_secs(60);
        let burst = (0..1000).take_while(|_| limit.admit(later, Cost { bytes: 0 }).is_ok()).count();
        assert_eq!(burst, 301, "no more than that is ever saved");
    }

    #[test]
    fn the_stricter_of_the_two_counts_and_none_is_none() {
        let mut both = limit(1000, 4096 * 10, 1);
        let count = greedy(&mut both, Instant::now(), 10, 4096);
        assert!((100..=112).contains(&count), "{count}");
        let mut none = limit(0, 0, 0);
        assert_eq!(none.admit(Instant::now(), Cost { bytes: u64::MAX }), Ok(()));
    }

    #[test]
    fn ranges_cost_their_length_up_to_a_point() {
        use crate::uring::Memory;
        let cost = |kind| Cost::of(&Operation { kind, file: 0, memory: Memory::None }).bytes;
        assert_eq!(cost(Kind::Punch { offset: 5, len: 4096 }), 4096);
        assert_eq!(cost(Kind::Zero { offset: 5, len: u64::MAX }), MOST_OF_A_RANGE);
        assert_eq!(cost(Kind::Flush), 0);
    }

    #[test]
    fn absurd_numbers_overflow_nothing() {
        let mut limit = limit(u64::MAX, 1, 3600);
        let now = Instant::now();
        assert_eq!(limit.admit(now, Cost { bytes: u64::MAX }), Ok(()));
        limit.moved(now, Cost { bytes: u64::MAX });
        assert!(limit.admit(now, Cost { bytes: 1 }).is_err() || limit.admit(now, Cost { bytes: 1 }).is_ok());
    }
}
