//! Memory of a device's own that the guest is to see: a file that a device process has sent, in our address space, where KVM finds it.
//!
//! It is never read or written here.

use std::os::fd::BorrowedFd;

use super::mapping::{self, Area};

/// A part of a file, mapped as long as this lives.
#[derive(Debug)]
pub struct DeviceMemory {
    area: Area,
    bytes: u64,
}

impl DeviceMemory {
    /// Maps `bytes` bytes of a file from byte `offset` on, whole pages. A memfd [is fit for it](has_small_pages).
    pub fn new(file: BorrowedFd<'_>, offset: u64, bytes: u64) -> std::io::Result<Self> {
        let len = usize::try_from(bytes).map_err(|_| std::io::ErrorKind::InvalidInput)?;
        Ok(Self { area: Area::new(file, offset, len)?, bytes })
    }

    /// Where it lies in our address space.
    pub fn address(&self) -> u64 {
        self.area.address() as u64
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Whether a memfd has pages of the usual size. Large ones (`MFD_HUGETLB`) come from a pool: whoever holds such a file can give a page of it back, and if
/// the pool has none then the next access ends whoever makes it, which would be the VM.
pub fn has_small_pages(memfd: BorrowedFd<'_>) -> bool {
    mapping::can_map_second_page(memfd)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use ipc::shm::SharedMemory;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn a_usual_memfd_is_mapped() {
        for bytes in [4096, 8192, 4 << 20] {
            let memory = SharedMemory::create("test", bytes).unwrap();
            assert!(has_small_pages(memory.as_fd()));
            let mapped = DeviceMemory::new(memory.as_fd(), 0, bytes).unwrap();
            assert_eq!(mapped.bytes(), bytes);
            assert_ne!(mapped.address(), 0);
        }
    }

    #[test]
    fn large_pages_are_found_out() {
        match memfd_create(c"large", MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_HUGETLB) {
            Ok(memfd) => {
                nix::unistd::ftruncate(&memfd, 8 << 20).unwrap();
                assert!(!has_small_pages(memfd.as_fd()));
            }
            Err(error) => eprintln!("SKIPPED: this kernel has no large pages in files: {error}"),
        }
    }
}
