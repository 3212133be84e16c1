//! Shared memory: the one place of this crate that touches mapped pages.
//!
//! The other side of every mapping is hostile and may write at any moment, so no reference (`&[u8]`)
//! into shared memory ever leaves this module: callers copy out, then look. A file is mapped only
//! if it is sealed against shrinking, so that no peer can turn a mapping into `SIGBUS`.

mod event_flags;
mod foreign;
mod mapping;
mod pages;
mod ram;
mod ring;
mod view;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use thiserror::Error;

pub use event_flags::{EventFlags, VMBUS_SINT};
pub use foreign::{Foreign, ForeignError};
pub use mapping::Mapping;
pub use pages::{HeldSpan, OutOfPages, PagesMapping};
pub use ram::{GuestBuffer, GuestRam, RamError, Span};
pub use ring::RingMapping;
pub use view::View;

/// Bytes of a page of the guest and of a ring.
pub const PAGE: usize = 4096;

/// Why memory cannot be shared.
#[derive(Debug, Error)]
pub enum ShmError {
    /// The system refused; `what` says which step.
    #[error("cannot {what}: {source}")]
    Os {
        /// The step that failed.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The file can still shrink or grow, or is no memfd.
    #[error("the shared memory is not a memfd sealed against shrinking and growing")]
    NotSealed,
    /// The file is shorter than it must be.
    #[error("the shared memory has {found} bytes, {needed} are needed")]
    TooShort {
        /// Bytes that the caller needs.
        needed: u64,
        /// Bytes that the file has.
        found: u64,
    },
    /// A range that is empty, not page-aligned or outside the file.
    #[error("offset {offset} and length {len} are not a range of whole pages in the shared memory")]
    BadRange {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl ShmError {
    fn os(what: &'static str) -> impl FnOnce(nix::Error) -> ShmError {
        move |error| ShmError::Os { what, source: error.into() }
    }
}

/// A memfd whose size can never change again.
#[derive(Debug)]
pub struct SharedMemory {
    file: File,
    len: u64,
}

impl SharedMemory {
    /// Makes `len` bytes of zeroes, sealed. `name` shows up in `/proc/*/maps`.
    pub fn create(name: &str, len: u64) -> Result<SharedMemory, ShmError> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        // Since Linux 6.3 a memfd can be barred from ever being executed; older kernels answer EINVAL.
        let noexec = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
        let fd = match memfd_create(name, flags | noexec) {
            Err(Errno::EINVAL) => memfd_create(name, flags),
            other => other,
        };
        let file = File::from(fd.map_err(ShmError::os("make shared memory"))?);
        file.set_len(len).map_err(|source| ShmError::Os { what: "size shared memory", source })?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(required_seals())).map_err(ShmError::os("seal shared memory"))?;
        Ok(SharedMemory { file, len })
    }

    /// Takes a descriptor from a peer. It must be sealed, and hold at least `needed` bytes.
    pub fn from_fd(fd: OwnedFd, needed: u64) -> Result<SharedMemory, ShmError> {
        let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).map_err(|_| ShmError::NotSealed)?;
        if !SealFlag::from_bits_retain(seals).contains(required_seals()) {
            return Err(ShmError::NotSealed);
        }
        let file = File::from(fd);
        // The seals came first, so this length is the last one.
        let found =
            file.metadata().map_err(|source| ShmError::Os { what: "look at shared memory", source })?.len();
        if found < needed {
            return Err(ShmError::TooShort { needed, found });
        }
        Ok(SharedMemory { file, len: found })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A second handle to the same memory.
    pub fn try_clone(&self) -> Result<SharedMemory, ShmError> {
        let file = self
            .file
            .try_clone()
            .map_err(|source| ShmError::Os { what: "duplicate shared memory", source })?;
        Ok(SharedMemory { file, len: self.len })
    }

    /// Whether both are handles to the same memory.
    pub fn is_same(&self, other: &SharedMemory) -> Result<bool, ShmError> {
        let look = |memory: &SharedMemory| memory.file.metadata().map(|found| (found.dev(), found.ino()));
        let both = look(self).and_then(|own| Ok(own == look(other)?));
        both.map_err(|source| ShmError::Os { what: "look at shared memory", source })
    }

    /// The bytes of `offset..offset + len`, if they are whole pages inside.
    fn check(&self, offset: u64, len: u64) -> Result<(), ShmError> {
        let page = PAGE as u64;
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if len == 0 || !inside || !offset.is_multiple_of(page) || !len.is_multiple_of(page) {
            return Err(ShmError::BadRange { offset, len });
        }
        Ok(())
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<SharedMemory> for OwnedFd {
    fn from(memory: SharedMemory) -> OwnedFd {
        memory.file.into()
    }
}

fn required_seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_make_we_accept() {
        let memory = SharedMemory::create("test", 8192).unwrap();
        let twin = SharedMemory::from_fd(memory.try_clone().unwrap().into(), 8192).unwrap();
        assert_eq!(twin.len(), 8192);
        assert!(twin.is_same(&memory).unwrap());
        assert!(!twin.is_same(&SharedMemory::create("test", 8192).unwrap()).unwrap());
        assert!(twin.file.set_len(4096).is_err(), "sealed against shrinking");
        assert!(twin.file.set_len(16384).is_err(), "sealed against growing");
        let fd = memory.into();
        assert!(matches!(SharedMemory::from_fd(fd, 8193), Err(ShmError::TooShort { .. })));
    }

    #[test]
    fn an_unsealed_memfd_is_refused() {
        let fd = memfd_create("open", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        assert!(matches!(SharedMemory::from_fd(fd, 0), Err(ShmError::NotSealed)));
        let fd = memfd_create("shrink", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL)).unwrap();
        assert!(matches!(SharedMemory::from_fd(fd, 0), Err(ShmError::NotSealed)));
        let file = File::open("/proc/self/exe").unwrap();
        assert!(matches!(SharedMemory::from_fd(file.into(), 0), Err(ShmError::NotSealed)));
    }

    #[test]
    fn ranges_are_whole_pages_inside() {
        let memory = SharedMemory::create("test", 8192).unwrap();
        assert!(memory.check(4096, 4096).is_ok());
        for (offset, len) in [(0, 0), (1, 4096), (0, 4095), (4096, 8192), (u64::MAX - 4095, 4096)] {
            assert!(memory.check(offset, len).is_err(), "{offset} {len}");
        }
    }
}
