//! How often the log hears of something that a guest can cause as often as it likes.

/// Complaints that are logged one by one. Enough to see what a broken driver does.
const ONE_BY_ONE: u64 = 32;

/// Counts complaints, and lets fewer and fewer of them through: a hostile guest must not fill the host's disk.
#[derive(Debug, Default)]
pub(crate) struct Ration(u64);

impl Ration {
    /// One more. How many there have been, if this one is to be logged: after the first 32 that is each
    /// time that the number has doubled.
    pub(crate) fn another(&mut self) -> Option<u64> {
        self.0 = self.0.saturating_add(1);
        (self.0 <= ONE_BY_ONE || self.0.is_power_of_two()).then_some(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_leaves_few_lines() {
        let mut ration = Ration::default();
        let lines = (0..1_000_000).filter_map(|_| ration.another()).count();
        assert!((32..64).contains(&lines), "{lines}");
    }
}
