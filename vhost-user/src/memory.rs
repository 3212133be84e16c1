//! The memory that a front end has given: what is where in the guest, and what is where for the front end, which names rings by its own
//! addresses.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ipc::shm::{Foreign, ForeignError, GuestRam, Mapping, RamError};
use thiserror::Error;

use crate::wire::Region;

/// Most regions. Each is a file and a mapping; QEMU has one a module of memory, libblkio one that its user registers.
pub const MAX_SLOTS: usize = 256;

/// Memory that is not taken. The front end is at fault.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// There are too many.
    #[error("more than {MAX_SLOTS} regions of memory")]
    TooMany,
    /// Its file is no good.
    #[error("the region of {len} bytes at {gpa:#x}: {source}", gpa = .region.gpa, len = .region.len)]
    File {
        /// Which.
        region: Region,
        /// Why.
        source: ForeignError,
    },
    /// Two regions are at the same place.
    #[error("the region of {len} bytes at {gpa:#x} overlaps another", gpa = .0.gpa, len = .0.len)]
    Overlap(Region),
    /// There is none.
    #[error("there is no region of {len} bytes at {gpa:#x} to be removed", gpa = .0.gpa, len = .0.len)]
    Missing(Region),
    /// It makes no RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
}

/// A place in a mapping, which stays mapped as long as this is there.
#[derive(Clone, Debug)]
pub struct Area {
    pub(crate) mapping: Arc<Mapping>,
    pub(crate) at: usize,
}

#[derive(Clone, Debug)]
struct Slot {
    region: Region,
    memory: Foreign,
}

/// All memory of one front end.
#[derive(Debug)]
pub(crate) struct Memory {
    slots: Vec<Slot>,
    ram: Arc<GuestRam>,
}

impl Memory {
    /// None.
    pub fn new() -> Result<Memory, MemoryError> {
        Ok(Memory { slots: Vec::new(), ram: Arc::new(GuestRam::of_foreign([])?) })
    }

    /// These regions, in the place of all that there were. On an error nothing has changed.
    pub fn replace(&mut self, table: Vec<(Region, OwnedFd)>) -> Result<(), MemoryError> {
        let mut slots = Vec::with_capacity(table.len());
        for (region, fd) in table {
            slots.push(open(&slots, region, fd)?);
        }
        self.become_slots(slots)
    }

    /// One more.
    pub fn add(&mut self, region: Region, fd: OwnedFd) -> Result<(), MemoryError> {
        if self.slots.len() >= MAX_SLOTS {
            return Err(MemoryError::TooMany);
        }
        let slot = open(&self.slots, region, fd)?;
        let mut slots = self.slots.clone();
        slots.push(slot);
        self.become_slots(slots)
    }

    /// One less. What uses it still keeps it mapped.
    pub fn remove(&mut self, region: Region) -> Result<(), MemoryError> {
        // The place in the file is not said again by everybody.
        let same = |slot: &Slot| Region { offset: region.offset, ..slot.region } == region;
        let place = self.slots.iter().position(same).ok_or(MemoryError::Missing(region))?;
        let mut slots = self.slots.clone();
        slots.remove(place);
        self.become_slots(slots)
    }

    fn become_slots(&mut self, slots: Vec<Slot>) -> Result<(), MemoryError> {
        self.ram = Arc::new(GuestRam::of_foreign(slots.iter().map(|slot| (slot.region.gpa, &slot.memory)))?);
        self.slots = slots;
        Ok(())
    }

    /// As the guest addresses it.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// `len` bytes at an address of the front end's, all in one region.
    pub fn area(&self, user: u64, len: u64) -> Option<Area> {
        let slot = self.slots.iter().find(|slot| {
            let from = user.checked_sub(slot.region.user);
            from.and_then(|from| from.checked_add(len)).is_some_and(|end| end <= slot.region.len)
        })?;
        let (mapping, skip, _) = slot.memory.place();
        Some(Area { mapping: Arc::clone(mapping), at: skip + (user - slot.region.user) as usize })
    }
}

fn open(slots: &[Slot], region: Region, fd: OwnedFd) -> Result<Slot, MemoryError> {
    // That no end overflows the message's parser has seen to.
    let overlaps = |a: u64, b: u64, len: u64| a < b + len && b < a + region.len;
    let taken = |slot: &Slot| {
        let other = slot.region;
        overlaps(region.gpa, other.gpa, other.len) || overlaps(region.user, other.user, other.len)
    };
    if slots.iter().any(taken) {
        return Err(MemoryError::Overlap(region));
    }
    let memory = Foreign::new(fd, region.offset, region.len);
    let memory = memory.map_err(|source| MemoryError::File { region, source })?;
    Ok(Slot { region, memory })
}

#[cfg(test)]
mod tests {
    use ipc::shm::SharedMemory;

    use super::*;

    fn fd() -> OwnedFd {
        SharedMemory::create("memory", 1 << 16).unwrap().into()
    }

    fn region(gpa: u64, len: u64, user: u64) -> Region {
        Region { gpa, len, user, offset: 0 }
    }

    #[test]
    fn regions_come_and_go() {
        let mut memory = Memory::new().unwrap();
        memory.replace(vec![(region(0, 0x8000, 0x10_0000), fd())]).unwrap();
        memory.add(region(0x10000, 0x10000, 0x20_0000), fd()).unwrap();
        memory.ram().write(0x1FFFF, b"x").unwrap();
        let area = memory.area(0x20_FFFF, 1).unwrap();
        let mut byte = [0];
        area.mapping.read(area.at, &mut byte);
        assert_eq!(&byte, b"x");
        assert!(memory.area(0x20_FFFF, 2).is_none() && memory.area(0, 1).is_none());
        let old = Arc::clone(memory.ram());
        memory.remove(region(0x10000, 0x10000, 0x20_0000)).unwrap();
        assert!(memory.ram().check(0x10000, 1).is_err());
        assert!(old.check(0x10000, 1).is_ok(), "what is under way has it still");
        assert!(matches!(memory.remove(region(0, 1, 0)), Err(MemoryError::Missing(_))));
    }

    #[test]
    fn tables_that_lie_change_nothing() {
        let mut memory = Memory::new().unwrap();
        memory.replace(vec![(region(0, 0x1000, 0x10_0000), fd())]).unwrap();
        let overlap = vec![(region(0, 0x2000, 0), fd()), (region(0x1000, 0x1000, 0x8000), fd())];
        assert!(matches!(memory.replace(overlap), Err(MemoryError::Overlap(_))));
        let overlap = vec![(region(0, 0x2000, 0), fd()), (region(0x8000, 0x1000, 0x1FFF), fd())];
        assert!(matches!(memory.replace(overlap), Err(MemoryError::Overlap(_))));
        let short = vec![(region(0, 0x10001, 0), fd())];
        assert!(matches!(memory.replace(short), Err(MemoryError::File { .. })));
        assert!(memory.ram().check(0, 0x1000).is_ok());
        assert!(matches!(memory.add(region(0x800, 0x1000, 0), fd()), Err(MemoryError::Overlap(_))));
    }
}
