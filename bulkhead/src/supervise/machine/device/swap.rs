//! Planned swaps: another process takes over from one that serves, and whatever goes wrong leaves that one serving.

use std::time::{Duration, Instant};

use super::{Device, Leaving, Main, Purpose, Spare};
use crate::supervise::fate::Death;
use crate::supervise::machine::policy::{CANDIDATE_PATIENCE, GRACE, SPARE_PAUSE};
use crate::supervise::machine::process::{Process, Stage};
use crate::supervise::machine::{Action, Out, Program};

impl Device {
    /// An operator wants another program to serve.
    pub(in crate::supervise::machine) fn swap(&mut self, out: &mut Out, now: Instant) -> Result<(), String> {
        if !self.of_core {
            return Err("it has nothing to hand over: restart it (bulkhead device restart)".to_owned());
        }
        match &self.main {
            Main::Up(Process { stage: Stage::Serving { .. }, .. }) => {}
            _ => {
                return Err("nobody serves it at the moment, so nobody can hand it over; \
                            see `bulkhead device ls`, and try again when it serves"
                    .to_owned());
            }
        }
        if self.is_handed_over() {
            // The end of the other one has not reached us yet.
            return Err("its spare is taking over just now; try again".to_owned());
        }
        match std::mem::replace(&mut self.spare, Spare::None) {
            Spare::Up { process, purpose: Purpose::Spare } => {
                out.act(Action::Kill(process.id));
                self.spare = Spare::Clearing { last: process.id };
                self.leaving.push(Leaving { id: process.id, kill_at: None });
            }
            Spare::None | Spare::Due { .. } => {
                let purpose = Purpose::Candidate { until: now + CANDIDATE_PATIENCE };
                self.start_spare(Program::Candidate, purpose, out, now);
            }
            other => {
                self.spare = other;
                return Err("a swap of this device is under way already; wait for its end".to_owned());
            }
        }
        Ok(())
    }

    /// The core has handed the device over to the one that stood by. (If that is not there, it has taken over before, because the
    /// old one ended.)
    pub(in crate::supervise::machine) fn on_swapped(&mut self, pause: Duration, out: &mut Out, now: Instant) {
        if let Spare::Up { purpose: Purpose::Handover { .. }, .. } = self.spare {
            let what =
                format!("a new process serves it after a pause of {:.1} ms", pause.as_secs_f64() * 1e3);
            self.adopt_heir(&what, out, now);
        }
    }

    /// Whether the one that stood by says that it serves.
    pub(super) fn is_handed_over(&self) -> bool {
        matches!(&self.spare, Spare::Up { process, .. } if matches!(process.stage, Stage::Serving { .. }))
    }

    /// The one that stood by serves, and the one that served may go.
    pub(super) fn adopt_heir(&mut self, what: &str, out: &mut Out, now: Instant) {
        let mut heir = match std::mem::replace(&mut self.spare, Spare::None) {
            Spare::Up { process, .. } => process,
            other => {
                self.spare = other;
                return;
            }
        };
        heir.stage = Stage::Serving { since: now };
        let heir_id = heir.id;
        if let Main::Up(old) = std::mem::replace(&mut self.main, Main::Up(heir)) {
            // The core has told it to go.
            self.leaving.push(Leaving { id: old.id, kill_at: Some(now + GRACE) });
        }
        self.spare = self.spare_due(now);
        self.adopt(what, out);
        self.serves(heir_id, out, now);
    }

    /// If it is the candidate that serves, its program is the device's from now on, and not sooner: one that has never served may be
    /// one that never will.
    pub(super) fn adopt(&mut self, what: &str, out: &mut Out) {
        if let Main::Up(process) = &mut self.main
            && process.program == Program::Candidate
        {
            process.program = Program::Current;
            out.act(Action::Adopt { device: self.number });
            out.act(Action::SwapDone { device: self.number, outcome: Ok(what.to_owned()) });
        }
    }

    /// The core has not handed the device over, as it was asked to.
    pub(in crate::supervise::machine) fn on_swap_failed(
        &mut self,
        reason: String,
        out: &mut Out,
        now: Instant,
    ) {
        match &self.spare {
            Spare::Up { purpose: Purpose::Handover { .. }, .. } => self.give_candidate_up(&reason, out, now),
            Spare::Fallen { .. } => {
                self.spare = self.spare_due(now);
                self.refuse(&reason, out);
            }
            _ => {}
        }
    }

    /// The candidate goes.
    pub(super) fn give_candidate_up(&mut self, reason: &str, out: &mut Out, now: Instant) {
        if let Spare::Up { process, .. } = &mut self.spare {
            process.kill(Death::Restarted, out);
            self.leaving.push(Leaving { id: process.id, kill_at: None });
            self.spare = self.spare_due(now + SPARE_PAUSE);
            self.refuse(reason, out);
        }
    }

    /// The device is gone: whoever wanted it swapped is told.
    pub(super) fn end_swap(&self, out: &mut Out) {
        out.act(Action::SwapDone { device: self.number, outcome: Err("the device was detached".to_owned()) });
    }

    fn refuse(&self, reason: &str, out: &mut Out) {
        let why = format!("{reason}; the old process serves as before");
        out.act(Action::SwapDone { device: self.number, outcome: Err(why) });
    }

    /// The new process has ended, and nobody says more about it than how.
    pub(super) fn fallen(&mut self, death: &Death, out: &mut Out, now: Instant) {
        self.spare = self.spare_due(now);
        let why = format!("the new process {death}; the old one serves as before");
        out.act(Action::SwapDone { device: self.number, outcome: Err(why) });
    }
}
