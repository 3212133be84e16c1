//! The memory that a front end has given: what is where in the guest, and what is where for the front end, which names rings by its own
//! addresses.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ipc::shm::{Foreign, ForeignError, GuestRam, Mapping, RamError};
use thiserror::Error;

use crate::chain::Chain;
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
    /// What was taken away while a queue ran, and has not all come back: address and length.
    holes: Vec<(u64, u64)>,
}

impl Memory {
    /// None.
    pub fn new() -> Result<Memory, MemoryError> {
        Ok(Memory { slots: Vec::new(), ram: Arc::new(GuestRam::of_foreign([])?), holes: Vec::new() })
    }

    /// These regions, in the place of all that there were. On an error nothing has changed. `runs`: a queue runs, whose requests may be
    /// about what there is no more.
    pub fn replace(&mut self, table: Vec<(Region, OwnedFd)>, runs: bool) -> Result<(), MemoryError> {
        let mut slots = Vec::with_capacity(table.len());
        for (region, fd) in table {
            slots.push(open(&slots, region, fd)?);
        }
        self.become_slots(slots, runs)
    }

    /// One more.
    pub fn add(&mut self, region: Region, fd: OwnedFd, runs: bool) -> Result<(), MemoryError> {
        if self.slots.len() >= MAX_SLOTS {
            return Err(MemoryError::TooMany);
        }
        let slot = open(&self.slots, region, fd)?;
        let mut slots = self.slots.clone();
        slots.push(slot);
        self.become_slots(slots, runs)
    }

    /// One less. What uses it still keeps it mapped.
    pub fn remove(&mut self, region: Region, runs: bool) -> Result<(), MemoryError> {
        // The place in the file is not said again by everybody.
        let same = |slot: &Slot| Region { offset: region.offset, ..slot.region } == region;
        let place = self.slots.iter().position(same).ok_or(MemoryError::Missing(region))?;
        let mut slots = self.slots.clone();
        slots.remove(place);
        self.become_slots(slots, runs)
    }

    fn become_slots(&mut self, slots: Vec<Slot>, runs: bool) -> Result<(), MemoryError> {
        let ram = GuestRam::of_foreign(slots.iter().map(|slot| (slot.region.gpa, &slot.memory)))?;
        if runs {
            self.holes.extend(self.slots.iter().map(|slot| (slot.region.gpa, slot.region.len)));
        } else {
            self.holes.clear();
        }
        self.holes.retain(|(gpa, len)| ram.check(*gpa, *len).is_err());
        self.holes.sort_unstable();
        self.holes.dedup();
        if self.holes.len() > MAX_SLOTS {
            // Nobody who means well goes on like that. Where it is not exact, what lies there as RAM is RAM all the same.
            let end = self.holes.iter().map(|(gpa, len)| gpa + len).max().unwrap_or(0);
            let begin = self.holes.first().map_or(0, |(gpa, _)| *gpa);
            self.holes = vec![(begin, end - begin)];
        }
        (self.ram, self.slots) = (Arc::new(ram), slots);
        Ok(())
    }

    /// Whether some of these bytes were RAM while a queue ran, and are not for now. A front end that changes its memory takes it away before it
    /// gives it back, and the guest runs meanwhile.
    pub fn awaits(&self, gpa: u64, len: u64) -> bool {
        self.holes.iter().any(|(hole, size)| {
            let (from, to) = (gpa.max(*hole), gpa.saturating_add(len).min(hole + size));
            from < to && self.ram.check(from, to - from).is_err()
        })
    }

    /// The same of anything that a request is about.
    pub fn awaits_any(&self, chain: &Chain) -> bool {
        let mut pieces = chain.readable().iter().chain(chain.writable());
        !self.holes.is_empty() && pieces.any(|piece| self.awaits(piece.gpa, piece.len.into()))
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
        memory.replace(vec![(region(0, 0x8000, 0x10_0000), fd())], false).unwrap();
        memory.add(region(0x10000, 0x10000, 0x20_0000), fd(), false).unwrap();
        memory.ram().write(0x1FFFF, b"x").unwrap();
        let area = memory.area(0x20_FFFF, 1).unwrap();
        let mut byte = [0];
        area.mapping.read(area.at, &mut byte);
        assert_eq!(&byte, b"x");
        assert!(memory.area(0x20_FFFF, 2).is_none() && memory.area(0, 1).is_none());
        let old = Arc::clone(memory.ram());
        memory.remove(region(0x10000, 0x10000, 0x20_0000), false).unwrap();
        assert!(memory.ram().check(0x10000, 1).is_err());
        assert!(old.check(0x10000, 1).is_ok(), "what is under way has it still");
        assert!(matches!(memory.remove(region(0, 1, 0), false), Err(MemoryError::Missing(_))));
        assert!(!memory.awaits(0x10000, 1), "no queue ran");
    }

    #[test]
    fn what_was_taken_away_from_under_a_queue_is_waited_for() {
        let mut memory = Memory::new().unwrap();
        let (low, high) = (region(0, 0x8000, 0x10_0000), region(0x10000, 0x10000, 0x20_0000));
        memory.replace(vec![(low, fd()), (high, fd())], true).unwrap();
        assert!(!memory.awaits(0, u64::MAX), "nothing was taken away");
        memory.remove(high, true).unwrap();
        let asked = [(0x10000, 1), (0x1FFFF, 1), (0xFFFF, 2), (0, 0x8000), (0x20000, 1), (0xF000, 0x1000)];
        assert_eq!(asked.map(|(gpa, len)| memory.awaits(gpa, len)), [true, true, true, false, false, false]);
        memory.add(Region { len: 0x8000, ..high }, fd(), true).unwrap();
        assert!(!memory.awaits(0x10000, 0x8000) && memory.awaits(0x10000, 0x8001));
        memory.replace(vec![(low, fd()), (high, fd())], true).unwrap();
        assert!(!memory.awaits(0x1FFFF, 2), "it was never RAM behind that");
        memory.replace(vec![(low, fd())], true).unwrap();
        assert!(memory.awaits(0x10000, 1));
        memory.replace(vec![(low, fd())], false).unwrap();
        assert!(!memory.awaits(0x10000, 1), "what runs from now on knows it so");
    }

    #[test]
    fn who_takes_away_without_end_fills_no_memory() {
        let mut memory = Memory::new().unwrap();
        for place in 0..1000 {
            let region = region(place * 0x3000, 0x1000, 0);
            memory.add(region, fd(), true).unwrap();
            memory.remove(region, true).unwrap();
        }
        assert!(memory.holes.len() <= MAX_SLOTS);
        assert!(memory.awaits(0, 1) && memory.awaits(999 * 0x3000, 1));
    }

    #[test]
    fn tables_that_lie_change_nothing() {
        let mut memory = Memory::new().unwrap();
        memory.replace(vec![(region(0, 0x1000, 0x10_0000), fd())], false).unwrap();
        let overlap = vec![(region(0, 0x2000, 0), fd()), (region(0x1000, 0x1000, 0x8000), fd())];
        assert!(matches!(memory.replace(overlap, false), Err(MemoryError::Overlap(_))));
        let overlap = vec![(region(0, 0x2000, 0), fd()), (region(0x8000, 0x1000, 0x1FFF), fd())];
        assert!(matches!(memory.replace(overlap, false), Err(MemoryError::Overlap(_))));
        let short = vec![(region(0, 0x10001, 0), fd())];
        assert!(matches!(memory.replace(short, false), Err(MemoryError::File { .. })));
        assert!(memory.ram().check(0, 0x1000).is_ok());
        assert!(matches!(memory.add(region(0x800, 0x1000, 0), fd(), false), Err(MemoryError::Overlap(_))));
    }
}
