//! How often the log hears of something that a guest can cause as often as it likes.

use std::sync::atomic::{AtomicU64, Ordering};

/// Complaints that are logged one by one. Enough to see what a broken driver does.
const ONE_BY_ONE: u64 = 32;

/// Counts complaints, and lets fewer and fewer of them through: a hostile guest must not fill the host's disk.
#[derive(Debug, Default)]
pub struct Ration(AtomicU64);

impl Ration {
    /// None so far.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more. How many there have been, if this one is to be logged: after the first 32 that is each
    /// time that the number has doubled.
    pub fn another(&self) -> Option<u64> {
        let times = self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        (times <= ONE_BY_ONE || times.is_power_of_two()).then_some(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_leaves_few_lines() {
        let ration = Ration::new();
        let lines = (0..1_000_000).filter_map(|_| ration.another()).count();
        assert!((32..64).contains(&lines), "{lines}");
    }
}
