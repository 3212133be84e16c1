//! The guest's memory: one file, of which a part at a time is handed out.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::protocol::Region;

/// Where the guest has it. Not at zero, and not where the front end has it, so that who confuses them is found out.
pub const GUEST: u64 = 0x4000_0000;
/// Where the front end says that it has it. Nobody but the front end may care.
pub const USER: u64 = 0x5a5a_0000_0000;
/// Where in the file it begins.
pub const OFFSET: u64 = 0x10_000;
const PAGE: u64 = 4096;

/// The memory.
#[derive(Debug)]
pub struct Memory {
    file: File,
    map: MmapRegion,
    size: u64,
    taken: AtomicU64,
}

impl Memory {
    /// So many bytes, in a file that nobody can make smaller: what a VMM does.
    pub fn new(size: u64) -> anyhow::Result<Arc<Self>> {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(OFFSET + size)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let map = MmapRegion::from_file(FileOffset::new(file.try_clone()?, OFFSET), size as usize)?;
        Ok(Arc::new(Self { file, map, size, taken: AtomicU64::new(0) }))
    }

    /// The file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// All of it as one region.
    pub fn region(&self) -> Region {
        Region { guest: GUEST, size: self.size, user: USER, offset: OFFSET }
    }

    /// Takes a piece for good; where it begins, counted from the beginning of the memory.
    pub fn take(&self, bytes: u64) -> anyhow::Result<u64> {
        let at = self.taken.fetch_add(bytes.next_multiple_of(PAGE), Ordering::SeqCst);
        ensure!(at + bytes <= self.size, "the guest's memory is too small");
        Ok(at)
    }

    /// As the guest counts.
    pub fn guest(at: u64) -> u64 {
        GUEST + at
    }

    /// As the front end counts.
    pub fn user(at: u64) -> u64 {
        USER + at
    }

    /// Copies bytes in.
    pub fn write(&self, at: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.map.as_volatile_slice().write_slice(bytes, at as usize).context("writing to the guest's memory")
    }

    /// Copies bytes out.
    pub fn read(&self, at: u64, bytes: &mut [u8]) -> anyhow::Result<()> {
        self.map.as_volatile_slice().read_slice(bytes, at as usize).context("reading the guest's memory")
    }

    /// Publishes a number: all that was written before is seen by whoever sees it.
    pub fn publish(&self, at: u64, value: u16) -> anyhow::Result<()> {
        Ok(self.map.as_volatile_slice().store(value, at as usize, Ordering::Release)?)
    }

    /// Reads a number that somebody else publishes.
    pub fn published(&self, at: u64) -> anyhow::Result<u16> {
        Ok(self.map.as_volatile_slice().load(at as usize, Ordering::Acquire)?)
    }
}
