//! What a unit has done, and how long it took: counters and histograms, per unit and class of command.
//!
//! Kept in this process and gone with it: nothing that a guest or a successor depends on. Counting costs some
//! nanoseconds a command and no system call; the clock is looked at once a batch.

use std::time::Duration;

/// Buckets for each doubling of the time: within 19 % of the truth.
const STEPS: u32 = 4;
/// Doublings, from 1 ns on: the last one ends after more than four minutes, and takes all that is longer.
const DOUBLINGS: u32 = 38;
const BUCKETS: usize = (STEPS * DOUBLINGS) as usize;

/// What is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Disk to guest.
    Read,
    /// Guest to disk.
    Write,
    /// To stable storage.
    Flush,
    /// UNMAP, and WRITE SAME by deallocating or zeroing.
    Discard,
}

/// How long things took.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: [u64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: [0; BUCKETS] }
    }
}

impl Histogram {
    /// One more.
    pub fn add(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanoseconds)] += 1;
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The time that `percent` of them did not take longer than, as the end of its bucket; zero if there were none.
    pub fn percentile(&self, percent: u32) -> Duration {
        let rank = (u128::from(self.count()) * u128::from(percent)).div_ceil(100).max(1) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(end(bucket));
            }
        }
        Duration::ZERO
    }
}

/// Where a time belongs: its highest bit, and the two behind it.
fn bucket(nanoseconds: u64) -> usize {
    let value = nanoseconds.max(STEPS.into());
    let doubling = value.ilog2();
    let step = (value >> (doubling - STEPS.ilog2())) as u32 & (STEPS - 1);
    ((doubling * STEPS + step) as usize).min(BUCKETS - 1)
}

/// Nanoseconds at which a bucket ends.
fn end(bucket: usize) -> u64 {
    let (doubling, step) = (bucket as u32 / STEPS, bucket as u64 % u64::from(STEPS));
    ((u64::from(STEPS) + step + 1) << doubling) / u64::from(STEPS)
}

/// What a unit has done since its process began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stats {
    latency: [Histogram; 4],
    bytes: [u64; 4],
    /// Commands that ended with an error after they had reached the disk.
    pub errors: u64,
    /// Operations that went through private memory, because the guest's was not aligned as O_DIRECT wants it.
    pub bounced: u64,
}

impl Stats {
    /// A command has ended well.
    pub fn ended(&mut self, class: Class, bytes: u64, time: Duration) {
        self.latency[class as usize].add(time);
        self.bytes[class as usize] += bytes;
    }

    /// Commands of a class that ended well.
    pub fn count(&self, class: Class) -> u64 {
        self.latency[class as usize].count()
    }

    /// Bytes that those have moved.
    pub fn bytes(&self, class: Class) -> u64 {
        self.bytes[class as usize]
    }

    /// How long they took, from being taken from the ring to being answered.
    pub fn latency(&self, class: Class) -> &Histogram {
        &self.latency[class as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_in_its_bucket() {
        let mut before = 0;
        for bucket in (2 * STEPS as usize)..BUCKETS - 1 {
            let last = end(bucket) - 1;
            assert_eq!(super::bucket(last), bucket, "{last}");
            assert!(last > before || bucket == 2 * STEPS as usize);
            before = last;
        }
        for extreme in [0, 1, 3, u64::MAX] {
            assert!(super::bucket(extreme) < BUCKETS);
        }
    }

    #[test]
    fn percentiles_are_right_to_a_fifth() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(50), Duration::ZERO, "nothing yet");
        (1..=1000).for_each(|n| histogram.add(Duration::from_micros(n)));
        for (percent, truth) in [(50, 500), (99, 990), (100, 1000)] {
            let found = histogram.percentile(percent).as_micros();
            assert!((truth..=truth * 125 / 100).contains(&found), "{percent}: {found}");
        }
    }

    #[test]
    fn classes_are_told_apart() {
        let mut stats = Stats::default();
        stats.ended(Class::Read, 4096, Duration::from_micros(80));
        stats.ended(Class::Write, 512, Duration::from_millis(2));
        let of = |class| (stats.count(class), stats.bytes(class));
        assert_eq!((of(Class::Read), of(Class::Write), of(Class::Flush)), ((1, 4096), (1, 512), (0, 0)));
        let read = stats.latency(Class::Read).percentile(99);
        assert!(read >= Duration::from_micros(80) && read < Duration::from_micros(100));
        assert!(stats.latency(Class::Write).percentile(50) >= Duration::from_millis(2));
    }
}
