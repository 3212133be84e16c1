//! Times, from the shortest to the longest.

use std::fmt;
use std::time::Duration;

/// Times that were measured.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// One more.
    pub fn add(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    /// All of another one.
    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The time that so many of a thousand do not exceed; 0 if there are none.
    pub fn permille(&self, permille: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        sorted.get((sorted.len() * permille / 1000).min(last)).copied().unwrap_or_default()
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |permille| self.permille(permille).as_secs_f64() * 1000.0;
        write!(f, "p50={:.2}ms p99={:.2}ms max={:.2}ms", ms(500), ms(990), ms(1000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.permille(500), Duration::ZERO);
        (1..=100).rev().for_each(|ms| latencies.add(Duration::from_millis(ms)));
        assert_eq!(latencies.to_string(), "p50=51.00ms p99=100.00ms max=100.00ms");
    }
}
