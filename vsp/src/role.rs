//! What a process is to its device at the moment, and how long it may stay so.

use std::time::{Duration, Instant};

/// How long a resource may be in use by a stranger before that is an error. Enough for a VM that was just killed to be
/// gone; waiting longer for somebody who means to stay is no use.
const STRANGER: Duration = Duration::from_secs(5);
/// After this long waiting for a predecessor's last I/O is worth a line in the log, and again each time it has doubled.
const WORTH_SAYING: Duration = Duration::from_secs(1);
/// The resource of a process that died is free within a fraction of a millisecond, unless it is slow itself: this long it
/// is asked for without a pause. Sleeping would be longer than most waits, and a system call more to be allowed...
const EAGER: Duration = Duration::from_millis(1);
/// ...then with pauses of this length, the shortest that epoll knows,
const PAUSE: Duration = Duration::from_millis(1);
/// and after a second with these.
const LONG_PAUSE: Duration = Duration::from_millis(10);

/// What the process is to its device.
#[derive(Debug)]
pub(crate) enum Role {
    /// It has said hello.
    Greeting,
    /// It waits until it is told to serve.
    Standby,
    /// It serves as soon as the resource is its own.
    Fencing(Fencing),
    /// The guest's packets are answered.
    Serving,
    /// It is to hand over: nothing is taken, what is in flight ends.
    Quiescing,
    /// It has nothing any more; it is retired, or serves again.
    Quiet,
}

/// Waiting for the resource.
#[derive(Debug)]
pub struct Fencing {
    since: Instant,
    predecessor: bool,
    say_after: Duration,
}

/// What to do about a resource that is not ours yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Wait.
    Wait,
    /// Wait, and say so: it has been this long.
    Say(Duration),
    /// It is a stranger's.
    Over,
}

impl Fencing {
    /// From now on. `predecessor`: another process has served the device.
    pub fn new(predecessor: bool) -> Fencing {
        Fencing { since: Instant::now(), predecessor, say_after: WORTH_SAYING }
    }

    /// Whether another process has served the device.
    pub fn predecessor(&self) -> bool {
        self.predecessor
    }

    /// It has been tried in vain.
    pub fn in_vain(&mut self) -> Patience {
        self.patience(self.since.elapsed())
    }

    fn patience(&mut self, waited: Duration) -> Patience {
        if !self.predecessor && waited >= STRANGER {
            return Patience::Over;
        }
        if waited < self.say_after {
            return Patience::Wait;
        }
        self.say_after = waited * 2;
        Patience::Say(waited)
    }

    /// How long to wait before the next attempt.
    pub fn pause(&self) -> Duration {
        match self.since.elapsed() {
            waited if waited < EAGER => Duration::ZERO,
            waited if waited < WORTH_SAYING => PAUSE,
            _ => LONG_PAUSE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_is_waited_for_a_while_and_a_predecessor_for_ever() {
        let mut stranger = Fencing::new(false);
        assert_eq!(stranger.patience(Duration::from_millis(10)), Patience::Wait);
        assert_eq!(stranger.patience(STRANGER), Patience::Over);
        let mut predecessor = Fencing::new(true);
        let day = Duration::from_secs(86_400);
        assert_eq!(predecessor.patience(day), Patience::Say(day));
    }

    #[test]
    fn waiting_is_said_ever_less_often() {
        let mut fencing = Fencing::new(true);
        let lines = (0..3600 * 100)
            .filter(|n| matches!(fencing.patience(Duration::from_millis(10) * *n), Patience::Say(_)))
            .count();
        assert_eq!(lines, 12, "in an hour");
    }

    #[test]
    fn the_first_attempts_come_fast() {
        assert_eq!(Fencing::new(true).pause(), Duration::ZERO);
    }
}
