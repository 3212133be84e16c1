//! When the machine itself stood still, so that nobody takes its pauses for ours.
//!
//! A thread on each processor, in front of everything else that wants to run there, sleeps for a moment again and again. When it oversleeps, the
//! processor was with nobody of us: the host of a virtual machine had it, or its kernel did not let go. Measured beside a load that lasts
//! hundreds of milliseconds, that happens every few seconds on a shared machine, for up to some 20 ms.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};

/// Between two looks.
const SLEEP: Duration = Duration::from_micros(200);
/// Sleeping longer than it wanted by so much, a witness has seen something. Timers of an idle machine are late by a tenth of it.
const LATE: Duration = Duration::from_micros(500);
/// In front of whoever only measures ([`look_first`]).
const PRIORITY: u8 = 2;

/// Watches as long as it lives.
#[derive(Debug)]
pub struct Witness {
    seen: Arc<Mutex<Vec<(Instant, Instant)>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Witness {
    /// Begins to watch. `None` where no thread may be put in front of others: then nothing can be told apart.
    pub fn new() -> Option<Self> {
        let mut witness = Self { seen: Arc::default(), stop: Arc::default(), threads: Vec::new() };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        for processor in 0..processors {
            let (seen, stop) = (Arc::clone(&witness.seen), Arc::clone(&witness.stop));
            let (ready, is_ready) = std::sync::mpsc::channel();
            witness.threads.push(std::thread::spawn(move || {
                let is_first = stay_on(processor) && put_in_front(PRIORITY);
                let _ = ready.send(is_first);
                if is_first {
                    watch(&seen, &stop);
                }
            }));
            if is_ready.recv() != Ok(true) {
                return None;
            }
        }
        Some(witness)
    }

    /// Whether the machine stood still at any time between the two, neither of them to come.
    pub fn saw_something(&self, from: Instant, to: Instant) -> bool {
        // Whoever is late says so when it has woken up.
        std::thread::sleep(2 * SLEEP);
        let seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.iter().any(|(begin, end)| *begin < to && *end > from)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It cannot have panicked with anything to tell.
            let _ = thread.join();
        }
    }
}

fn watch(seen: &Mutex<Vec<(Instant, Instant)>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        std::thread::sleep(SLEEP);
        let end = Instant::now();
        if end - begin > SLEEP + LATE {
            seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((begin, end));
        }
    }
}

fn stay_on(processor: usize) -> bool {
    let mut set = CpuSet::new();
    set.set(processor).is_ok() && sched_setaffinity(Pid::from_raw(0), &set).is_ok()
}

/// Whoever looks when a dead process stops must not wait for a processor behind those that he looks at: what is completed before he has
/// looked does not count. Without the privilege the figures are worse than the truth.
pub fn look_first() {
    put_in_front(PRIORITY - 1);
}

fn put_in_front(priority: u8) -> bool {
    let (priority, id) = (priority.to_string(), gettid().to_string());
    let done = Command::new("chrt").args(["--fifo", "--pid", &priority, &id]).output();
    done.is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_found_where_it_touches_the_time() {
        let base = Instant::now();
        let at = |ms: u64| base + Duration::from_millis(ms);
        let seen = Arc::new(Mutex::new(vec![(at(10), at(12)), (at(30), at(31))]));
        let witness = Witness { seen, stop: Arc::default(), threads: Vec::new() };
        let asked = [(0, 9), (0, 11), (11, 40), (12, 30), (32, 40)];
        let said = asked.map(|(from, to)| witness.saw_something(at(from), at(to)));
        assert_eq!(said, [false, true, true, false, false]);
    }
}
