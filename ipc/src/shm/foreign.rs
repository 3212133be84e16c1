//! Memory that a front end of vhost-user gives: RAM of its guest, or a region of requests in flight.
//!
//! It comes from programs that are not ours and do not all seal what they share: QEMU's `memory-backend-memfd` is sealed unless it is
//! told otherwise, files of hugetlbfs and of tmpfs cannot be. So its length is looked at once. Who cuts a file off afterwards has this
//! process die of SIGBUS at the next access, and its successor refuse the file: he harms his own device. What he cannot do is to have an
//! access wait for ever, for which a file on FUSE or on a network would do: only memory is mapped.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use thiserror::Error;

use super::{Mapping, PAGE, ShmError};

/// Why memory is not taken.
#[derive(Debug, Error)]
pub enum ForeignError {
    /// It cannot be looked at.
    #[error("cannot look at the descriptor: {0}")]
    Look(#[source] io::Error),
    /// It is something else.
    #[error("it is no memory: a memfd, or a file on tmpfs or hugetlbfs, is needed")]
    NotMemory,
    /// It is not as long as it has to be.
    #[error("{len} bytes from {offset} on are not inside its {found} bytes")]
    TooShort {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// It cannot be mapped.
    #[error(transparent)]
    Map(#[from] ShmError),
}

/// Some bytes of such memory, mapped. A clone is another handle to the same mapping.
#[derive(Clone, Debug)]
pub struct Foreign {
    mapping: Arc<Mapping>,
    /// Where they begin: mappings consist of whole pages.
    skip: usize,
    len: u64,
}

impl Foreign {
    /// Maps `len` bytes from `offset` on.
    pub fn new(fd: OwnedFd, offset: u64, len: u64) -> Result<Foreign, ForeignError> {
        let file = File::from(fd);
        let kind = fstatfs(&file).map_err(|error| ForeignError::Look(error.into()))?.filesystem_type();
        let metadata = file.metadata().map_err(ForeignError::Look)?;
        if !(kind == TMPFS_MAGIC || kind == HUGETLBFS_MAGIC) || !metadata.is_file() {
            return Err(ForeignError::NotMemory);
        }
        let found = metadata.len();
        let short = || ForeignError::TooShort { offset, len, found };
        let end = offset.checked_add(len).filter(|end| len > 0 && *end <= found).ok_or_else(short)?;
        // hugetlbfs maps pages of its own size only, and says it here.
        let page = if kind == HUGETLBFS_MAGIC { metadata.blksize().max(1) } else { PAGE as u64 };
        let from = offset / page * page;
        let size = (end - from).checked_next_multiple_of(page).and_then(|size| usize::try_from(size).ok());
        let mapping = Mapping::of_file(file.as_fd(), from, size.ok_or_else(short)?)?;
        Ok(Foreign { mapping: Arc::new(mapping), skip: (offset - from) as usize, len })
    }

    /// The mapping, where the bytes begin in it, and how many there are.
    pub fn place(&self) -> (&Arc<Mapping>, usize, u64) {
        (&self.mapping, self.skip, self.len)
    }

    /// Whether both are the same bytes of the same mapping.
    pub fn is_same(&self, other: &Foreign) -> bool {
        Arc::ptr_eq(&self.mapping, &other.mapping) && (self.skip, self.len) == (other.skip, other.len)
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::super::{GuestRam, RamError};
    use super::*;

    fn memory(len: u64) -> OwnedFd {
        let file = File::from(memfd_create("foreign", MFdFlags::empty()).unwrap());
        file.set_len(len).unwrap();
        file.into()
    }

    #[test]
    fn a_part_begins_anywhere_and_ends_inside() {
        let fd = memory(3 * 4096);
        let part = Foreign::new(fd.try_clone().unwrap(), 5000, 3000).unwrap();
        let (mapping, skip, len) = part.place();
        assert_eq!((mapping.len(), skip, len), (4096, 904, 3000));
        assert!(Foreign::new(fd.try_clone().unwrap(), 0, 3 * 4096).is_ok());
        for (offset, len) in [(0, 0), (0, 3 * 4096 + 1), (4096, 2 * 4096 + 1), (u64::MAX, 2), (1 << 40, 1)] {
            let refused = Foreign::new(fd.try_clone().unwrap(), offset, len);
            assert!(matches!(refused, Err(ForeignError::TooShort { .. })), "{offset} {len}");
        }
    }

    #[test]
    fn what_is_no_memory_is_refused() {
        let proc = File::open("/proc/self/status").unwrap();
        assert!(matches!(Foreign::new(proc.into(), 0, 1), Err(ForeignError::NotMemory)));
        let (pipe, _other) = nix::unistd::pipe().unwrap();
        assert!(matches!(Foreign::new(pipe, 0, 1), Err(ForeignError::NotMemory)));
    }

    #[test]
    fn ram_is_made_of_parts_that_do_not_overlap() {
        let fd = memory(8192);
        let part = |offset, len| Foreign::new(fd.try_clone().unwrap(), offset, len).unwrap();
        let (low, high) = (part(100, 3996), part(4096, 4096));
        let ram = GuestRam::of_foreign([(3996, &high), (0, &low)]).unwrap();
        ram.write(3994, b"abcd").unwrap();
        let mut bytes = [0; 2];
        high.place().0.read(0, &mut bytes);
        assert_eq!(&bytes, b"cd");
        assert!(ram.read(3996 + 4095, &mut bytes).is_err());
        let overlap = GuestRam::of_foreign([(3995, &high), (0, &low)]);
        assert!(matches!(overlap, Err(RamError::BadRegions)));
        assert!(GuestRam::of_foreign([(u64::MAX - 5, &low)]).is_err());
        assert!(GuestRam::of_foreign([]).unwrap().read(0, &mut bytes).is_err(), "no RAM at all");
    }
}
