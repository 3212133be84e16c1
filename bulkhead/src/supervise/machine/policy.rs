//! The policy of restarting, as numbers, each with its reason. Nothing here acts.

use std::time::Duration;

/// A process that crashes sooner than this after it has begun to serve has not got over what killed the one before it: most
/// likely it takes the same request up again. One that worked for longer is restarted as if nothing had happened before.
pub const SETTLED: Duration = Duration::from_secs(1);

/// The second process in a row that dies early is followed after this time, and each further one after twice the time of the
/// one before. (The first one is followed at once: most deaths do not repeat themselves, and a guest waits.) Short, because the
/// ledger makes progress with each attempt: after three a poisonous request is rejected and the loop ends by itself.
pub const FIRST_DELAY: Duration = Duration::from_millis(10);

/// The longest pause between two attempts. A loop that has come this far (the twelfth death in a row) is no passing trouble; an
/// attempt every ten seconds costs the host nothing, and still no operator who has put things right waits for long. There is no
/// last attempt: a device that is given up can only come back with its VM.
pub const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// From this pause on the operator at the terminal is told, not only the log: shorter ones are over before one has read it.
pub const WORTH_TELLING: Duration = Duration::from_secs(1);

/// A process that has given no sign of life for this long hangs. It gives one at least twice as often from its event loop, which does
/// nothing that takes long; what it waits for (a disk, a lock) it waits for without blocking. So this is a thousand times what
/// an honest process needs, and still ends a hang before a guest's own patience does (Linux complains after 120 s).
pub const WATCHDOG: Duration = Duration::from_secs(3);

/// Before its first sign of life a process has this many watchdog times: loading a program and opening disks may mean
/// waiting for slow storage. A process that never says anything ends after it.
pub const START_PATIENCE: u32 = 10;

/// A process that hangs is asked for its end by SIGABRT, whose handler leaves word in the ledger that what it was doing is to blame; one
/// that is past handling signals is killed after this time. A handler takes microseconds; a second is for a host that swaps.
pub const ABORT_GRACE: Duration = Duration::from_secs(1);

/// When a spare has taken over, the next spare starts soon after it serves, or after this time if it does not: not at the very moment
/// at which every microsecond of processor time belongs to the one taking over.
pub const SPARE_PAUSE: Duration = Duration::from_millis(100);

/// And this is soon: what the guest has been waiting for comes before a process that takes some milliseconds of processor time to start and
/// that nobody waits for. Deaths that come faster than that are served by a process started for the purpose.
pub const SPARE_REST: Duration = Duration::from_millis(20);

/// How long a new process may take until it stands by, in a planned swap. Starting takes milliseconds; the rest is for slow
/// storage. The old process serves meanwhile, so only the operator waits.
pub const CANDIDATE_PATIENCE: Duration = Duration::from_secs(10);

/// How long the core may take to hand over. It has time limits of its own, after which everything is as before: 1 s for the new
/// process to stand by, 10 s for the old one to let go, 5 s for the new one to take the device and 10 s for its channels. Longer than all of
/// them together, or its answer to one swap would be taken for the answer to the next.
pub const SWAP_PATIENCE: Duration = Duration::from_secs(30);

/// A device process that ends by itself, and cleanly, has seen its socket to the core close: mostly the core's own death follows
/// within moments, and a successor would have nobody to talk to. Also how long the core's end is awaited after a device has
/// failed to start: the reason may be the core's. And how often it is tried to reach a core that listens no more: it ends, but one with devices of the host's
/// needs a second and more for that.
pub const BENEFIT_OF_DOUBT: Duration = Duration::from_millis(250);

/// The process of a device that the core has been asked to give up ends when the core tells it to; the core's own word follows when it has given
/// up all that it kept for the device. A successor before that would have nothing to serve.
pub const DETACH_DOUBT: Duration = Duration::from_secs(10);

/// After the core's end, device processes get this long to end by themselves (they do so on seeing their socket close) before
/// they are killed. So does a process that has handed over.
pub const GRACE: Duration = Duration::from_secs(1);

/// Counts processes that died early, one after the other, and says how long to wait.
#[derive(Debug, Default)]
pub struct Backoff {
    in_a_row: u32,
}

impl Backoff {
    /// Another process has died, early or not: the pause before the next one.
    pub fn after_death(&mut self, early: bool) -> Duration {
        if !early {
            self.in_a_row = 0;
            return Duration::ZERO;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        match self.in_a_row.checked_sub(2) {
            None => Duration::ZERO,
            Some(doublings) => {
                let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
                FIRST_DELAY.saturating_mul(factor).min(LONGEST_DELAY)
            }
        }
    }

    /// Early deaths in a row so far.
    pub fn in_a_row(&self) -> u32 {
        self.in_a_row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_end_with_a_success() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..14).map(|_| backoff.after_death(true).as_millis()).collect();
        assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_000, 10_000, 10_000]);
        assert_eq!(backoff.after_death(false), Duration::ZERO);
        assert_eq!(backoff.after_death(true), Duration::ZERO);
        backoff.in_a_row = u32::MAX;
        assert_eq!(backoff.after_death(true), LONGEST_DELAY);
    }
}
