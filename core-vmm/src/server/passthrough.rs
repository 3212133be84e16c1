//! What a process says that passes a device of the host's through: only one whose slot allows that may say it.

use std::os::fd::OwnedFd;

use ipc::message::{PASSTHROUGH_VERSION, ToCore};

use super::{Server, mappings::Kind, memory::Ask, slot::Leave};
use crate::partition::Partition;

/// Whether a message is one of those.
pub(super) fn is_of(message: &ToCore) -> bool {
    matches!(
        message,
        ToCore::Keep { .. }
            | ToCore::MapRegion { .. }
            | ToCore::Trap { .. }
            | ToCore::Untrap { .. }
            | ToCore::AccessDone { .. }
            | ToCore::Interrupt { .. }
            | ToCore::InterruptDelete { .. }
    )
}

impl Server {
    /// The process that has device `i` says one of them. `None`: it may not. `Err`: it must not go on.
    pub(super) fn obey_passthrough<P: Partition>(
        &mut self,
        partition: &P,
        i: usize,
        message: ToCore,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<()>, Leave> {
        let speaks = self.devices[i].slot.holder().is_some_and(|(_, p)| p.version >= PASSTHROUGH_VERSION);
        if !speaks || !self.devices[i].passthrough {
            return Ok(None);
        }
        match message {
            ToCore::Keep { key, note } => return Ok(self.keep(i, key, note, fds)),
            ToCore::MapRegion { gpa, bytes, offset } => {
                return self.map_asked(partition, i, (gpa, bytes, Kind::Region(offset)), fds);
            }
            ToCore::Trap { gpa, bytes } => {
                let result = self.trap(i, gpa, bytes);
                return self.asked(partition, i, Ask::Trapped { gpa, result });
            }
            ToCore::Untrap { gpa } => self.untrap(partition, i, gpa),
            ToCore::AccessDone { id, value } => self.answer_access(partition, i, id, value),
            ToCore::Interrupt { id, vector, vp } => {
                let result = self.interrupt(partition, i, (id, vector, vp), fds);
                return self.asked(partition, i, Ask::Ready { id, result });
            }
            ToCore::InterruptDelete { id } => self.delete_interrupt(partition, i, id),
            _ => return Ok(None),
        }
        Ok(Some(()))
    }

    /// The guest has closed the primary channel of device `i`, and sees nothing of it any more.
    pub(super) fn take_away<P: Partition>(&mut self, partition: &P, i: usize) {
        self.unmap_all(partition, i);
        self.untrap_all(partition, i);
        self.delete_interrupts(partition, i);
    }
}
