//! Memory of the device's own that the guest sees.

use std::os::fd::{AsFd, OwnedFd};

use ipc::message::ToVsp;
use ipc::shm::SharedMemory;

use super::FakeCore;

/// What a device has mapped.
#[derive(Debug)]
pub(super) struct Mapped {
    gpa: u64,
    bytes: u64,
    memory: SharedMemory,
}

impl FakeCore {
    /// What the guest sees of the device's memory: addresses and lengths, in the order in which they came.
    pub fn mapped(&self) -> Vec<(u64, u64)> {
        self.mappings.borrow().iter().map(|mapped| (mapped.gpa, mapped.bytes)).collect()
    }

    /// The memory behind one of them.
    pub fn mapped_memory(&self, gpa: u64) -> Option<SharedMemory> {
        let mappings = self.mappings.borrow();
        let mapped = mappings.iter().find(|mapped| mapped.gpa == gpa)?;
        Some(mapped.memory.try_clone().expect("duplicated"))
    }

    /// From now on nothing is mapped, for this reason; `None`: it is again.
    pub fn refuse_mappings(&self, why: Option<&str>) {
        *self.refusal.borrow_mut() = why.map(str::to_owned);
    }

    /// The device asks. Where the guest may have it, the real core knows.
    pub(super) fn map(&self, gpa: u64, bytes: u64, mut fds: Vec<OwnedFd>) {
        let memory = fds.pop().ok_or_else(|| "no descriptor came".to_owned());
        let memory = memory.and_then(|fd| SharedMemory::from_fd(fd, bytes).map_err(|e| e.to_string()));
        let is_open = self.channels.borrow().iter().any(|held| held.subchannel == 0);
        let closed = (!is_open).then(|| "the channel is not open".to_owned());
        let result = match (self.refusal.borrow().clone().or(closed), memory) {
            (Some(why), _) | (None, Err(why)) => Err(why),
            (None, Ok(memory)) => {
                self.unmap(gpa);
                self.mappings.borrow_mut().push(Mapped { gpa, bytes, memory });
                Ok(())
            }
        };
        // A process that has gone need not know.
        let _ = self.peer.send(&ToVsp::MemoryMapped { gpa, result }, &[]);
    }

    pub(super) fn unmap(&self, gpa: u64) {
        self.mappings.borrow_mut().retain(|mapped| mapped.gpa != gpa);
    }

    /// The process that has begun to serve is told what there is.
    pub(super) fn give_mappings(&self) {
        for Mapped { gpa, bytes, memory } in &*self.mappings.borrow() {
            let there = ToVsp::Memory { gpa: *gpa, bytes: *bytes };
            self.peer.send(&there, &[memory.as_fd()]).expect("sent");
        }
    }
}
