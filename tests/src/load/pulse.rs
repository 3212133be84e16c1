//! When what died came back to life, as the guest sees it.
//!
//! Completions that a process has written before its death are found in the rings after it, and say nothing about its
//! successor. So after each death every queue first takes what is there; the first completion after that counts, and so does one that wakes
//! a queue which found nothing before and has slept since. (Only what was written before the death and never signalled is mistaken
//! then, and a process is between those two steps for a microsecond.) A queue that was full of life may take some completions of the
//! successor's for old ones, which makes the figure worse, never better.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Completions whose time is remembered: half a second of the fastest load.
const REMEMBERED: usize = 1 << 16;

/// Whoever is woken runs within this time, or nearly always.
const WAKING: Duration = Duration::from_micros(200);

/// Shared by all queues and by whoever kills.
#[derive(Debug)]
pub struct Pulse {
    base: Instant,
    deaths: AtomicU64,
    /// When the last one was, in nanoseconds since `base`.
    died: AtomicU64,
    /// The death that was survived last, and when, in nanoseconds since `base`.
    survived: AtomicU64,
    at: AtomicU64,
    completed: AtomicU64,
    /// When the last ones were, each in the place that its number gives it.
    beats: Box<[AtomicU64]>,
    stop: AtomicBool,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            deaths: AtomicU64::new(0),
            died: AtomicU64::new(0),
            survived: AtomicU64::new(0),
            at: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            beats: (0..REMEMBERED).map(|_| AtomicU64::new(0)).collect(),
            stop: AtomicBool::new(false),
        }
    }
}

impl Pulse {
    /// A process is dead. Its number, from 1.
    pub fn died(&self) -> u64 {
        self.died.store(self.now(), Ordering::SeqCst);
        self.deaths.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Deaths so far after which whoever was woken by the dead has long been awake.
    pub fn deaths_past(&self) -> u64 {
        let deaths = self.deaths();
        let is_past = self.now().saturating_sub(self.died.load(Ordering::SeqCst)) >= WAKING.as_nanos() as u64;
        if is_past { deaths } else { deaths.saturating_sub(1) }
    }

    /// Deaths so far.
    pub fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::SeqCst)
    }

    /// A request has completed.
    pub fn beat(&self) {
        let number = self.completed.fetch_add(1, Ordering::Relaxed);
        self.beats[number as usize % REMEMBERED].store(self.now(), Ordering::Relaxed);
    }

    /// A request has completed after the death `number`, and not merely been found completed.
    pub fn revived(&self, number: u64) {
        let seen = self.survived.load(Ordering::SeqCst);
        if seen < number
            && self.survived.compare_exchange(seen, number, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        {
            self.at.store(self.now().max(1), Ordering::SeqCst);
        }
    }

    /// Waits until something has completed after the death `number`; when that was. `None`: not in time.
    pub fn wait(&self, number: u64, timeout: Duration) -> Option<Instant> {
        let until = Instant::now() + timeout;
        loop {
            let at = self.at.load(Ordering::SeqCst);
            if self.survived.load(Ordering::SeqCst) >= number && at > 0 {
                self.at.store(0, Ordering::SeqCst);
                return Some(self.base + Duration::from_nanos(at));
            }
            if Instant::now() >= until || self.is_stopped() {
                return None;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits for some more completions; false if they do not come in time.
    pub fn wait_beats(&self, beats: u64, timeout: Duration) -> bool {
        let (enough, until) = (self.completed() + beats, Instant::now() + timeout);
        while self.completed() < enough {
            if Instant::now() >= until || self.is_stopped() {
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        true
    }

    /// Requests that have completed.
    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }

    /// The longest time without a completion that has a part in common with the time between these two, neither of them long ago.
    pub fn longest_pause(&self, from: Instant, to: Instant) -> Duration {
        let [from, to] = [from, to].map(|at| at.saturating_duration_since(self.base).as_nanos() as u64);
        let mut beats: Vec<u64> = self.beats.iter().map(|beat| beat.load(Ordering::Relaxed)).collect();
        beats.push(self.now());
        beats.sort_unstable();
        let pauses = beats.windows(2).filter(|pair| pair[1] > from && pair[0] < to);
        Duration::from_nanos(pauses.map(|pair| pair[1] - pair[0]).max().unwrap_or_default())
    }

    /// Everybody finishes what is under way and ends.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Whether that was asked for.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn now(&self) -> u64 {
        self.base.elapsed().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_counts_where_it_touches_the_time() {
        let pulse = Pulse::default();
        // Far from now, which counts as a beat as well.
        let at = |hour: u64| Duration::from_secs(hour * 3600);
        for (beat, hour) in pulse.beats.iter().zip([10, 11, 19, 20, 50, 51]) {
            beat.store(at(hour).as_nanos() as u64, Ordering::Relaxed);
        }
        let hours =
            |from, to| pulse.longest_pause(pulse.base + at(from), pulse.base + at(to)).as_secs() / 3600;
        assert_eq!(
            [hours(10, 20), hours(15, 16), hours(19, 20), hours(19, 21), hours(50, 51)],
            [8, 8, 1, 30, 1]
        );
    }
}
