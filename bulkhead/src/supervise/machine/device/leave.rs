//! Devices that come and go while the VM runs.

use std::time::Instant;

use super::{Device, Leaving, Main, Purpose, Spare};
use crate::supervise::machine::Out;
use crate::supervise::machine::policy::GRACE;

impl Device {
    /// One that the VM has run without so far.
    pub(in crate::supervise::machine) fn added(mut self) -> Self {
        self.added = true;
        self
    }

    /// Whether it is such a one.
    pub(in crate::supervise::machine) fn is_added(&self) -> bool {
        self.added
    }

    /// The core has been asked to give it up, and may tell its process to go before it answers; or will not do it.
    pub(in crate::supervise::machine) fn expect_end(&mut self, expected: bool) {
        self.end_expected = expected;
    }

    /// The core has it no more, and has told its processes to go: nobody follows them.
    pub(in crate::supervise::machine) fn leave(&mut self, out: &mut Out, now: Instant) {
        let kill_at = Some(now + GRACE);
        if let Main::Up(process) = std::mem::replace(&mut self.main, Main::Gone) {
            self.leaving.push(Leaving { id: process.id, kill_at });
        }
        match std::mem::replace(&mut self.spare, Spare::None) {
            Spare::Up { process, purpose } => {
                self.leaving.push(Leaving { id: process.id, kill_at });
                if purpose != Purpose::Spare {
                    self.end_swap(out);
                }
            }
            Spare::Clearing { .. } | Spare::Fallen { .. } => self.end_swap(out),
            Spare::None | Spare::Due { .. } => {}
        }
        self.spare_wanted = false;
    }

    /// Whether all its processes have ended, and there will be no others.
    pub(in crate::supervise::machine) fn has_left(&self) -> bool {
        matches!(self.main, Main::Gone) && self.processes() == 0
    }
}
