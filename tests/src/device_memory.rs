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
    pub fn map(&self, gpa: u64, offset: u64, bytes: u64, memfd: OwnedFd) -> Result<(), String> {
        let end = offset.checked_add(bytes).ok_or("it ends nowhere")?;
        let memory = SharedMemory::from_fd(memfd, end).map_err(|e| e.to_string())?;
        let mapping = Mapping::new(&memory, offset, bytes).map_err(|e| e.to_string())?;
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

    /// Reads as a processor does: false if the address is none of device memory's, whether or not something is there. Where nothing is, a processor's access
    /// leaves the guest: `ask` brings what it finds.
    pub fn load(&self, gpa: u64, into: &mut [u8], ram_end: u64, ask: impl Fn(u64, u8) -> u64) -> bool {
        let is_ours = is_in_window(gpa, ram_end);
        if is_ours && !self.read(gpa, into) {
            into.fill(NOTHING);
            for (gpa, at, len) in pieces(gpa, into.len()) {
                into[at..at + len].copy_from_slice(&ask(gpa, len as u8).to_le_bytes()[..len]);
            }
        }
        is_ours
    }

    /// Writes as a processor does.
    pub fn store(&self, gpa: u64, from: &[u8], ram_end: u64, ask: impl Fn(u64, u8, u64)) -> bool {
        let is_ours = is_in_window(gpa, ram_end);
        if is_ours && !self.write(gpa, from) {
            for (gpa, at, len) in pieces(gpa, from.len()) {
                let mut value = [0; 8];
                value[..len].copy_from_slice(&from[at..at + len]);
                ask(gpa, len as u8, u64::from_le_bytes(value));
            }
        }
        is_ours
    }
}

/// The accesses of a processor that reads or writes so much at a time; none if no instruction does.
fn pieces(gpa: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    core_vmm::kvm::mmio::pieces(gpa, if len <= 8 { len } else { 0 })
}

fn is_in_window(gpa: u64, ram_end: u64) -> bool {
    [VMBUS_LOW_MMIO, vmbus_high_mmio(ram_end)].iter().any(|(first, last)| (*first..=*last).contains(&gpa))
}
