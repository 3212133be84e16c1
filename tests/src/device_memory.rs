//! Memory of devices' own, as the guest of the software partition sees it.

use std::{
    os::fd::OwnedFd,
    sync::{PoisonError, RwLock},
};

use core_vmm::layout::{VMBUS_LOW_MMIO, vmbus_high_mmio};
use ipc::shm::{Mapping, SharedMemory};

/// What a processor finds where nothing is: an empty bus floats high.
const NOTHING: u8 = 0xff;

/// Everything that is mapped now.
#[derive(Debug, Default)]
pub struct DeviceMemory {
    pieces: RwLock<Vec<(u64, Mapping)>>,
}

impl DeviceMemory {
    /// From now on this is seen from `gpa` on.
    pub fn map(&self, gpa: u64, bytes: u64, memfd: OwnedFd) -> Result<(), String> {
        let memory = SharedMemory::from_fd(memfd, bytes).map_err(|e| e.to_string())?;
        let mapping = Mapping::new(&memory, 0, bytes).map_err(|e| e.to_string())?;
        self.pieces.write().unwrap_or_else(PoisonError::into_inner).push((gpa, mapping));
        Ok(())
    }

    /// Nothing is seen there any more.
    pub fn unmap(&self, gpa: u64) {
        self.pieces.write().unwrap_or_else(PoisonError::into_inner).retain(|(at, _)| *at != gpa);
    }

    /// What is mapped: addresses and lengths.
    pub fn list(&self) -> Vec<(u64, u64)> {
        let pieces = self.pieces.read().unwrap_or_else(PoisonError::into_inner);
        pieces.iter().map(|(gpa, mapping)| (*gpa, mapping.len() as u64)).collect()
    }

    /// Copies out; false if these bytes are not all in one piece.
    pub fn read(&self, gpa: u64, into: &mut [u8]) -> bool {
        self.reach(gpa, into.len(), |mapping, at| mapping.read(at, into))
    }

    /// Copies in; false if these bytes are not all in one piece.
    pub fn write(&self, gpa: u64, from: &[u8]) -> bool {
        self.reach(gpa, from.len(), |mapping, at| mapping.write(at, from))
    }

    fn reach(&self, gpa: u64, len: usize, act: impl FnOnce(&Mapping, usize)) -> bool {
        let pieces = self.pieces.read().unwrap_or_else(PoisonError::into_inner);
        for (start, mapping) in pieces.iter() {
            let Some(at) = gpa.checked_sub(*start).map(|at| at as usize) else { continue };
            if at.checked_add(len).is_some_and(|end| end <= mapping.len()) {
                act(mapping, at);
                return true;
            }
        }
        false
    }

    /// Reads as a processor does: true if the address is one of device memory's, whether or not something is there.
    pub fn load(&self, gpa: u64, into: &mut [u8], ram_end: u64) -> bool {
        let is_ours = is_in_window(gpa, ram_end);
        if is_ours && !self.read(gpa, into) {
            into.fill(NOTHING);
        }
        is_ours
    }

    /// Writes as a processor does; what is written where nothing is is lost.
    pub fn store(&self, gpa: u64, from: &[u8], ram_end: u64) -> bool {
        let is_ours = is_in_window(gpa, ram_end);
        if is_ours {
            self.write(gpa, from);
        }
        is_ours
    }
}

fn is_in_window(gpa: u64, ram_end: u64) -> bool {
    [VMBUS_LOW_MMIO, vmbus_high_mmio(ram_end)].iter().any(|(first, last)| (*first..=*last).contains(&gpa))
}
