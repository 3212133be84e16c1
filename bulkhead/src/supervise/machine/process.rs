//! One process in the eyes of the state machine: a number, how far it has come, and whether it lives.

use std::time::{Duration, Instant};

use super::policy::{ABORT_GRACE, START_PATIENCE};
use super::{Action, Out, Program};
use crate::supervise::fate::Death;

/// Names a process; each gets a new one. (Pids come again.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub u64);

/// What a process says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// That it lives, or something that does not matter here.
    Alive,
    /// It stands by.
    StandingBy,
    /// It serves.
    Serving,
    /// It has let go of the device, for another one to serve it.
    Quiet,
    /// It has got where it wanted to get, either of the two.
    Ready,
}

/// How far a process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It starts, or takes over.
    Starting,
    /// It could take over any time.
    StandingBy,
    /// The device is its own.
    Serving { since: Instant },
    /// It has let go of it, in a swap.
    Quiet,
}

/// Whether it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pulse {
    /// If it gives no sign of life until then, it hangs.
    Beating { until: Instant, limit: Duration },
    /// It was asked for its end, in vain so far.
    Aborted { kill_at: Instant, death: Death },
    /// It is dead, or will be any moment.
    Killed { death: Death },
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) id: ProcessId,
    /// What it was started from; the candidate is the current one as soon as it serves.
    pub(super) program: Program,
    pub(super) stage: Stage,
    pulse: Pulse,
}

impl Process {
    /// One that is being started.
    pub(super) fn new(program: Program, out: &mut Out, now: Instant) -> Self {
        let limit = out.watchdog.saturating_mul(START_PATIENCE);
        Self {
            id: out.next_id(),
            program,
            stage: Stage::Starting,
            pulse: Pulse::Beating { until: now + limit, limit },
        }
    }

    /// A sign of life.
    pub(super) fn lives(&mut self, out: &Out, now: Instant) {
        if let Pulse::Beating { .. } = self.pulse {
            self.pulse = Pulse::Beating { until: now + out.watchdog, limit: out.watchdog };
        }
    }

    /// Ends it; `death` is what that will be called.
    pub(super) fn kill(&mut self, death: Death, out: &mut Out) {
        if !matches!(self.pulse, Pulse::Killed { .. }) {
            self.pulse = Pulse::Killed { death };
            out.act(Action::Kill(self.id));
        }
    }

    /// Ends it if it hangs.
    pub(super) fn on_tick(&mut self, out: &mut Out, now: Instant) {
        match &self.pulse {
            Pulse::Beating { until, limit } if now >= *until => {
                self.pulse = Pulse::Aborted { kill_at: now + ABORT_GRACE, death: Death::Hung(*limit) };
                out.act(Action::Abort(self.id));
            }
            Pulse::Aborted { kill_at, death } if now >= *kill_at => {
                let death = death.clone();
                self.kill(death, out);
            }
            _ => {}
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.pulse {
            Pulse::Beating { until, .. } => Some(*until),
            Pulse::Aborted { kill_at, .. } => Some(*kill_at),
            Pulse::Killed { .. } => None,
        }
    }

    /// Whether it is being ended because it hangs.
    pub(super) fn hangs(&self) -> bool {
        matches!(self.pulse, Pulse::Aborted { .. } | Pulse::Killed { death: Death::Hung(_) })
    }

    /// What its death is called: ours if we ended it, else what the kernel says.
    pub(super) fn death(self, found: Death) -> Death {
        match self.pulse {
            Pulse::Beating { .. } => found,
            Pulse::Aborted { death, .. } | Pulse::Killed { death } => death,
        }
    }
}
