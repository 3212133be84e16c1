//! What can be seen of a device. It must never change anything.

use std::time::Instant;

use super::{Device, Main, Purpose, Spare};
use crate::supervise::fate::Death;
use crate::supervise::machine::Program;
use crate::supervise::machine::process::{Process, ProcessId, Stage};

/// What can be seen of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View<'a> {
    /// What it does.
    pub state: State,
    /// The process that serves, or is about to.
    pub main: Option<ProcessId>,
    /// Since when it has been serving.
    pub since: Option<Instant>,
    /// The process that stands by, or is about to.
    pub spare: Option<ProcessId>,
    /// Whether it could take over now.
    pub spare_ready: bool,
    /// Whether it is being swapped.
    pub is_swapping: bool,
    /// Processes that had to be replaced since the VM was started.
    pub restarts: u64,
    /// How the last one of them ended, and when.
    pub last_death: Option<(&'a Death, Instant)>,
}

/// What a device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A process is on its way to serving it.
    Starting,
    /// A process serves it.
    Serving,
    /// Its process hangs and is being ended.
    Hung,
    /// Its processes keep dying; the next one is started after a pause.
    BackingOff,
    /// It could not be started, and its VM ends.
    Failed,
}

impl Device {
    pub(in crate::supervise::machine) fn view(&self) -> View<'_> {
        let (main, state, since) = match &self.main {
            Main::Up(process) => {
                let (state, since) = match process.stage {
                    _ if process.hangs() => (State::Hung, None),
                    Stage::Serving { since } => (State::Serving, Some(since)),
                    Stage::Starting | Stage::StandingBy | Stage::Quiet => (State::Starting, None),
                };
                (Some(process.id), state, since)
            }
            Main::Away { .. } => (None, State::BackingOff, None),
            Main::Gone => (None, State::Failed, None),
        };
        let (spare, spare_ready) = match &self.spare {
            Spare::Up { process, .. } => (Some(process.id), process.stage != Stage::Starting),
            _ => (None, false),
        };
        let last_death = self.last_death.as_ref().map(|(death, at)| (death, *at));
        let is_swapping = match (&self.main, &self.spare) {
            (Main::Up(Process { program: Program::Candidate, .. }), _) => true,
            (_, Spare::Up { purpose, .. }) => *purpose != Purpose::Spare,
            (_, Spare::Clearing { .. } | Spare::Fallen { .. }) => true,
            (_, Spare::None | Spare::Due { .. }) => false,
        };
        let restarts = self.restarts;
        View { state, main, since, spare, spare_ready, is_swapping, restarts, last_death }
    }
}
