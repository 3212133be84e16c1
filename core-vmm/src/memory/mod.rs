//! Guest RAM: one sealed memfd mapped around the hole below 4 GiB.
//!
//! Nothing outside this module and [`donation`] may assume that a guest-physical address and an
//! offset into the memfd are the same thing.

pub mod device;
pub mod donation;
pub mod large;
#[allow(unsafe_code)]
mod mapping;

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use mapping::Area;
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
    unistd::ftruncate,
};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::layout::{HIGH_RAM_START, LOW_RAM_END, PAGE};

/// One stretch of RAM: guest-physical address, length and offset in the RAM memfd, all in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length.
    pub len: u64,
    /// Offset in the RAM memfd.
    pub offset: u64,
}

/// Why RAM could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The memfd could not be made or sealed.
    #[error(
        "cannot make {bytes} bytes of guest memory: {source}; lower [machine] memory or free some on the host"
    )]
    Create {
        /// Bytes asked for.
        bytes: u64,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel is too old.
    #[error(
        "this kernel cannot fill memory in advance (Linux 5.14 and later can); switch [machine] prefault off"
    )]
    NoPrefault,
    /// The memfd could not be mapped.
    #[error("cannot map guest memory: {0}")]
    Map(String),
    /// The guest named a range that is not RAM.
    #[error("guest range {gpa:#x}+{len:#x} is not RAM")]
    NotRam {
        /// First address.
        gpa: u64,
        /// Bytes.
        len: u64,
    },
    /// A change to the mapping was refused by the kernel.
    #[error("cannot remap guest page {gpa:#x}: {source}")]
    Remap {
        /// The page.
        gpa: u64,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The guest's RAM. Cheap to clone; all clones share the one mapping.
#[derive(Debug, Clone)]
pub struct Ram {
    memfd: Arc<File>,
    map: GuestMemoryMmap<()>,
    stretches: Arc<[Stretch]>,
    /// The mapping under `map`, one area a stretch; dropped after it.
    areas: Arc<[Area]>,
}

impl Ram {
    /// Makes `bytes` of RAM (a multiple of 4 KiB). Not of hugetlbfs: donated pages must be single 4 KiB pages. Large
    /// pages come by [`large`].
    pub fn new(bytes: u64, prefault: bool) -> Result<Self, MemoryError> {
        let create = |source: nix::Error| MemoryError::Create { bytes, source: source.into() };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd: OwnedFd = memfd_create(c"bulkhead-ram", flags).map_err(create)?;
        let signed = i64::try_from(bytes).map_err(|_| create(nix::Error::EFBIG))?;
        ftruncate(&fd, signed).map_err(create)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(create)?;

        let low = bytes.min(LOW_RAM_END);
        let mut stretches = vec![Stretch { gpa: 0, len: low, offset: 0 }];
        if bytes > low {
            stretches.push(Stretch { gpa: HIGH_RAM_START, len: bytes - low, offset: low });
        }
        let ram = Self::adopt(fd, stretches)?;
        if prefault {
            ram.prefault()?;
        }
        Ok(ram)
    }

    /// Maps RAM that exists already: the software partition's guest does.
    pub fn adopt(memfd: OwnedFd, stretches: Vec<Stretch>) -> Result<Self, MemoryError> {
        let failed = |e: &dyn std::fmt::Display| MemoryError::Map(e.to_string());
        let mut areas = Vec::with_capacity(stretches.len());
        let mut regions = Vec::with_capacity(stretches.len());
        for s in &stretches {
            let len = usize::try_from(s.len).map_err(|e| failed(&e))?;
            let area = Area::new(memfd.as_fd(), s.offset, len).map_err(|e| failed(&e))?;
            let region = GuestRegionMmap::new(area.region().map_err(|e| failed(&e))?, GuestAddress(s.gpa))
                .ok_or_else(|| MemoryError::Map("guest address overflow".into()))?;
            areas.push(area);
            regions.push(region);
        }
        let map = GuestMemoryMmap::from_regions(regions).map_err(|e| failed(&e))?;
        Ok(Self { memfd: Arc::new(memfd.into()), map, stretches: stretches.into(), areas: areas.into() })
    }

    /// The memfd, for device processes that may map RAM.
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    /// The stretches, in guest-physical order.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// The mapping, for loaders.
    pub fn map_ref(&self) -> &GuestMemoryMmap<()> {
        &self.map
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.stretches.iter().map(|s| s.len).sum()
    }

    /// RAM is never empty; clippy wants the question answered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// First address after the last RAM byte.
    pub fn end(&self) -> u64 {
        self.stretches.iter().map(|s| s.gpa + s.len).max().unwrap_or(0)
    }

    /// Last RAM address + 1 below 4 GiB.
    pub fn low_end(&self) -> u64 {
        self.stretches[0].len
    }

    /// Whether the page-aligned page at `gpa` is RAM.
    pub fn is_page(&self, gpa: u64) -> bool {
        gpa.is_multiple_of(PAGE) && self.map.check_range(GuestAddress(gpa), PAGE as usize)
    }

    /// Copies guest memory into private memory.
    pub fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        self.map
            .read_slice(into, GuestAddress(gpa))
            .map_err(|_| MemoryError::NotRam { gpa, len: into.len() as u64 })
    }

    /// Copies private memory into guest memory.
    pub fn write(&self, gpa: u64, from: &[u8]) -> Result<(), MemoryError> {
        self.map
            .write_slice(from, GuestAddress(gpa))
            .map_err(|_| MemoryError::NotRam { gpa, len: from.len() as u64 })
    }

    /// One aligned word, acquire order.
    pub fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        self.map
            .load(GuestAddress(gpa), std::sync::atomic::Ordering::Acquire)
            .map_err(|_| MemoryError::NotRam { gpa, len: 4 })
    }

    /// One aligned word, sequentially consistent order.
    pub fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError> {
        self.map
            .store(value, GuestAddress(gpa), std::sync::atomic::Ordering::SeqCst)
            .map_err(|_| MemoryError::NotRam { gpa, len: 4 })
    }

    /// Makes every page present now (Linux 5.14 and later).
    pub fn prefault(&self) -> Result<(), MemoryError> {
        mapping::prefault(&self.map).map_err(|source| match source.raw_os_error() {
            Some(libc::EINVAL) => MemoryError::NoPrefault,
            _ => MemoryError::Create { bytes: self.len(), source },
        })
    }

    /// Gives every page back to the host, so that it reads as zero again: what a power cycle does.
    /// Donated pages must have been taken back before.
    pub fn discard(&self) -> Result<(), MemoryError> {
        let len = self.len() as i64;
        let flags = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
            | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        nix::fcntl::fallocate(&*self.memfd, flags, 0, len)
            .map_err(|e| MemoryError::Create { bytes: self.len(), source: e.into() })
    }

    /// Lays `pages` pages of a file, from a byte offset on, over the guest page at `gpa`. `None` lays
    /// RAM itself back. The range must lie in one stretch, and the file must be a memfd sealed against shrinking.
    pub fn lay_over(
        &self,
        gpa: u64,
        pages: u64,
        source: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<(), MemoryError> {
        let not_ram = MemoryError::NotRam { gpa, len: pages.saturating_mul(PAGE) };
        let region = self.map.find_region(GuestAddress(gpa)).ok_or(not_ram)?;
        let within = gpa - region.start_addr().raw_value();
        let (fd, offset) = match source {
            Some(source) => source,
            None => {
                let s = self.stretches.iter().find(|s| s.gpa == region.start_addr().raw_value());
                let base = s.map_or(0, |s| s.offset);
                (self.memfd.as_fd(), base + within)
            }
        };
        mapping::lay_over(region, within, pages * PAGE, fd, offset)
            .map_err(|source| MemoryError::Remap { gpa, source })
    }

    /// Writes to the RAM page *under* whatever is laid over `gpa`.
    fn write_under(&self, gpa: u64, from: &[u8]) -> Result<(), MemoryError> {
        let s = self
            .stretches
            .iter()
            .find(|s| gpa >= s.gpa && gpa - s.gpa + from.len() as u64 <= s.len)
            .ok_or(MemoryError::NotRam { gpa, len: from.len() as u64 })?;
        let at = (s.offset + gpa - s.gpa) as i64;
        match nix::sys::uio::pwrite(&*self.memfd, from, at) {
            Ok(n) if n == from.len() => Ok(()),
            Ok(_) => Err(MemoryError::Remap { gpa, source: std::io::ErrorKind::WriteZero.into() }),
            Err(e) => Err(MemoryError::Remap { gpa, source: e.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        let ram = Ram::new(LOW_RAM_END + (1 << 20), false).unwrap();
        assert_eq!(ram.low_end(), LOW_RAM_END);
        assert_eq!(ram.end(), HIGH_RAM_START + (1 << 20));
        assert!(!ram.is_page(LOW_RAM_END));
        assert!(ram.is_page(HIGH_RAM_START));
        assert!(!ram.is_page(HIGH_RAM_START + 8));
        assert!(!ram.is_page(u64::MAX - 4095));
    }

    #[test]
    fn discard_zeroes() {
        let ram = Ram::new(1 << 20, true).unwrap();
        ram.write(0x5000, b"left over").unwrap();
        ram.discard().unwrap();
        let mut b = [1; 9];
        ram.read(0x5000, &mut b).unwrap();
        assert_eq!(b, [0; 9]);
        assert!(ram.write((1 << 20) - 4, b"too long").is_err());
    }
}
