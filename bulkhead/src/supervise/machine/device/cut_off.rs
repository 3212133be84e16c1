//! The core has cut a process off: whoever it is has to end, whatever it thinks. The core does not know processes by number, so who it is
//! is concluded from what it was doing.
//!
//! It must never end a process that serves because one beside it misbehaves, and never believe a process that says that the other
//! one is meant.

use super::{Device, Main, Purpose, Spare};
use crate::supervise::fate::Death;
use crate::supervise::machine::Out;
use crate::supervise::machine::process::{ProcessId, Stage};

/// Who was there when the core cut off one that has served. While that lives the core says so again, and then it is known that
/// the wrong one was ended the first time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accused {
    main: ProcessId,
    spare: Option<ProcessId>,
    /// Which of them was ended, if any was.
    killed: Option<ProcessId>,
}

impl Device {
    /// The core has cut a process of this device off.
    pub(in crate::supervise::machine) fn on_cut_off(
        &mut self,
        had_channels: bool,
        reason: String,
        out: &mut Out,
    ) {
        if had_channels {
            self.end_ghost(reason, out);
        } else {
            self.end_newcomer(reason, out);
        }
    }

    /// It has served. The one that serves, then, unless that has let go in a hand-over: then it is the new one, and the core waits for
    /// its end before it gives the device back to the old one. One that has not begun to serve is the successor already, and the
    /// word comes late. But if it comes again, one of them lies.
    fn end_ghost(&mut self, reason: String, out: &mut Out) {
        let Main::Up(main) = &mut self.main else { return };
        let spare = match &self.spare {
            Spare::Up { process, .. } => Some(process.id),
            _ => None,
        };
        if let Some(earlier) = self.accused
            && earlier.main == main.id
        {
            // A spare that was started since is none of them.
            if let Spare::Up { process, .. } = &mut self.spare
                && earlier.spare == Some(process.id)
            {
                process.kill(Death::CutOff(reason.clone()), out);
            }
            main.kill(Death::CutOff(reason), out);
            return;
        }
        let id = main.id;
        let killed = match (main.stage, &mut self.spare) {
            (Stage::Quiet, Spare::Up { process, purpose: Purpose::Handover { .. } }) => Some(process),
            (Stage::Quiet | Stage::Serving { .. }, _) => Some(main),
            (Stage::Starting | Stage::StandingBy, _) => None,
        };
        let killed = killed.map(|process| {
            process.kill(Death::CutOff(reason), out);
            process.id
        });
        self.accused = Some(Accused { main: id, spare, killed });
    }

    /// It has not said to the core that it serves: it stood by, or was told to serve and waited for its resource. (Of one that was told to serve
    /// and does not end [more](Self::end_ghost) is heard.) The one that stands by, if the other one serves or hands over to it. Else it may be either of them, and
    /// as the device is not served anyway both are started anew: the one left over might be the one to which the core does not listen
    /// any more.
    fn end_newcomer(&mut self, reason: String, out: &mut Out) {
        let Main::Up(main) = &mut self.main else { return };
        let is_main_fine = match main.stage {
            Stage::Serving { .. } => true,
            Stage::Quiet => self.spare.hands_over(),
            Stage::Starting | Stage::StandingBy => false,
        };
        if let Spare::Up { process, .. } = &mut self.spare
            // The core has given it the device: that is not the one.
            && (is_main_fine || !matches!(process.stage, Stage::Serving { .. }))
        {
            process.kill(Death::CutOff(reason.clone()), out);
        }
        if !is_main_fine {
            main.kill(Death::CutOff(reason), out);
        }
    }

    /// This one has ended: if it was the one that was meant, that is settled; if it was not, the core says so again.
    pub(super) fn acquit(&mut self, id: ProcessId) {
        if self.accused.is_some_and(|accused| accused.main == id || accused.killed == Some(id)) {
            self.accused = None;
        }
    }
}
