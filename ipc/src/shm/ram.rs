//! Guest RAM as a device process sees it: the only translation from guest-physical addresses.
//!
//! Nothing else may assume that an address and an offset in the RAM memfd are related. A range that
//! a guest names is translated whole or refused; the result goes to the kernel as iovecs or is copied through here.

use std::ptr::NonNull;

use thiserror::Error;

use super::{Mapping, SharedMemory, ShmError};
use crate::message::RamRegion;

/// Most stretches of RAM that a core may announce; a VM has two or three.
const MAX_REGIONS: usize = 64;

/// Why RAM cannot be mapped or a range is refused.
#[derive(Debug, Error)]
pub enum RamError {
    /// The announced regions are empty, overlap, or are too many.
    #[error("the announced RAM regions are empty, overlap or are more than {MAX_REGIONS}")]
    BadRegions,
    /// The memory cannot be mapped.
    #[error(transparent)]
    Memory(#[from] ShmError),
    /// The guest named bytes that are not RAM.
    #[error("{len} bytes at guest address {gpa:#x} are not all RAM")]
    NotRam {
        /// First guest-physical address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// Contiguous bytes of guest RAM in our address space: an iovec for the kernel, never a slice for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub address: NonNull<u8>,
    /// Length in bytes.
    pub len: usize,
}

// SAFETY: a span is a number for the kernel; safe code cannot dereference it.
unsafe impl Send for Span {}

#[derive(Debug)]
struct Region {
    gpa: u64,
    len: u64,
    mapping: Mapping,
}

/// All of guest RAM.
#[derive(Debug)]
pub struct GuestRam {
    /// Sorted by address, not overlapping.
    regions: Vec<Region>,
}

impl GuestRam {
    /// Maps the announced regions of the RAM memfd.
    pub fn new(memory: &SharedMemory, regions: &[RamRegion]) -> Result<GuestRam, RamError> {
        if regions.is_empty() || regions.len() > MAX_REGIONS {
            return Err(RamError::BadRegions);
        }
        let mut mapped = Vec::with_capacity(regions.len());
        for region in regions {
            region.gpa.checked_add(region.len).ok_or(RamError::BadRegions)?;
            let mapping = Mapping::new(memory, region.offset, region.len)?;
            mapped.push(Region { gpa: region.gpa, len: region.len, mapping });
        }
        mapped.sort_by_key(|region| region.gpa);
        if mapped.windows(2).any(|pair| pair[0].gpa + pair[0].len > pair[1].gpa) {
            return Err(RamError::BadRegions);
        }
        Ok(GuestRam { regions: mapped })
    }

    /// Appends the spans of `gpa..gpa + len` to `out`, joined where they touch. On an error `out` is as it was.
    pub fn translate(&self, gpa: u64, len: u64, out: &mut Vec<Span>) -> Result<(), RamError> {
        let before = (out.len(), out.last().copied());
        let result = self.walk(gpa, len, |region, offset, len| {
            let address = region.mapping.address(offset, len);
            match out.last_mut() {
                Some(last) if last.address.as_ptr().wrapping_add(last.len) == address.as_ptr() => {
                    last.len += len
                }
                _ => out.push(Span { address, len }),
            }
        });
        if result.is_err() {
            out.truncate(before.0);
            if let (Some(last), Some(was)) = (out.last_mut(), before.1) {
                *last = was;
            }
        }
        result
    }

    /// Copies out of guest RAM, all or nothing.
    pub fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), RamError> {
        self.check(gpa, into.len() as u64)?;
        let mut done = 0;
        self.walk(gpa, into.len() as u64, |region, offset, len| {
            region.mapping.read(offset, &mut into[done..done + len]);
            done += len;
        })
    }

    /// Copies into guest RAM, all or nothing.
    pub fn write(&self, gpa: u64, from: &[u8]) -> Result<(), RamError> {
        self.check(gpa, from.len() as u64)?;
        let mut done = 0;
        self.walk(gpa, from.len() as u64, |region, offset, len| {
            region.mapping.write(offset, &from[done..done + len]);
            done += len;
        })
    }

    /// Whether `gpa..gpa + len` is all RAM.
    pub fn check(&self, gpa: u64, len: u64) -> Result<(), RamError> {
        self.walk(gpa, len, |_, _, _| {})
    }

    /// Calls `each` for the stretches of a range in order; fails at the first byte that is not RAM.
    fn walk(&self, gpa: u64, len: u64, mut each: impl FnMut(&Region, usize, usize)) -> Result<(), RamError> {
        let refused = || RamError::NotRam { gpa, len };
        let end = gpa.checked_add(len).ok_or_else(refused)?;
        let mut at = gpa;
        while at < end {
            let index = self.regions.partition_point(|region| region.gpa <= at).checked_sub(1);
            let region = index.map(|index| &self.regions[index]).ok_or_else(refused)?;
            let offset = at - region.gpa;
            if offset >= region.len {
                return Err(refused());
            }
            let stretch = (region.len - offset).min(end - at);
            each(region, offset as usize, stretch as usize);
            at += stretch;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8 KiB at 0 (second half of the file), 4 KiB at 8 KiB, a hole, 4 KiB at 1 MiB.
    fn ram() -> GuestRam {
        let memory = SharedMemory::create("ram", 16384).unwrap();
        let region = |gpa, len, offset| RamRegion { gpa, len, offset };
        let regions = [region(1 << 20, 4096, 4096), region(0, 8192, 8192), region(8192, 4096, 0)];
        GuestRam::new(&memory, &regions).unwrap()
    }

    #[test]
    fn bytes_go_where_the_regions_say() {
        let ram = ram();
        ram.write(8190, b"abcd").unwrap();
        let mut back = [0; 4];
        ram.read(8190, &mut back).unwrap();
        assert_eq!(&back, b"abcd");
        let mut spans = Vec::new();
        ram.translate(8190, 4, &mut spans).unwrap();
        assert_eq!(spans.iter().map(|span| span.len).sum::<usize>(), 4);
    }

    #[test]
    fn neighbours_are_joined() {
        let ram = ram();
        let mut spans = Vec::new();
        ram.translate(0, 4096, &mut spans).unwrap();
        ram.translate(4096, 100, &mut spans).unwrap();
        assert_eq!(spans.len(), 1);
        assert_eq!(spans[0].len, 4196);
    }

    #[test]
    fn what_is_not_ram_is_refused_whole() {
        let ram = ram();
        let mut spans = Vec::new();
        ram.translate(0, 4096, &mut spans).unwrap();
        let before = spans.clone();
        for (gpa, len) in [(12288, 1), (12287, 2), (4096, 9000), (1 << 30, 1), (u64::MAX, 2), (0, u64::MAX)] {
            assert!(ram.translate(gpa, len, &mut spans).is_err(), "{gpa} {len}");
            assert_eq!(spans, before);
        }
        assert!(ram.write(12287, b"ab").is_err());
        let mut byte = [9];
        ram.read(12287, &mut byte).unwrap();
        assert_eq!(byte, [0], "nothing was written by the refused write");
    }

    #[test]
    fn regions_that_lie_are_refused() {
        let memory = SharedMemory::create("ram", 16384).unwrap();
        let region = |gpa, len, offset| RamRegion { gpa, len, offset };
        assert!(GuestRam::new(&memory, &[]).is_err());
        assert!(GuestRam::new(&memory, &[region(0, 8192, 0), region(4096, 4096, 8192)]).is_err());
        assert!(GuestRam::new(&memory, &[region(0, 32768, 0)]).is_err());
        assert!(GuestRam::new(&memory, &[region(u64::MAX - 4095, 8192, 0)]).is_err());
        assert!(GuestRam::new(&memory, &vec![region(0, 4096, 0); 65]).is_err());
    }
}
