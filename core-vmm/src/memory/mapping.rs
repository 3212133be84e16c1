//! The unsafe corner of guest memory: changes to the address space under the RAM mapping.

use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

/// Bytes of a large page.
pub const LARGE: usize = 2 << 20;

/// A shared mapping of a file that starts at a multiple of [`LARGE`], as large pages in KVM need.
#[derive(Debug)]
pub struct Area {
    start: *mut u8,
    len: usize,
}

// SAFETY: an address range that stays mapped while the value lives; nothing in it belongs to one thread.
unsafe impl Send for Area {}
// SAFETY: as above; it has no operation that needs exclusive access.
unsafe impl Sync for Area {}

impl Area {
    /// Maps `len` bytes of `file` from byte `offset` on.
    pub fn new(file: BorrowedFd<'_>, offset: u64, len: usize) -> std::io::Result<Self> {
        let room = len.checked_add(LARGE).ok_or(std::io::ErrorKind::InvalidInput)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh reservation at an address of the kernel's choice touches nobody's memory.
        let room_at = unsafe { libc::mmap(std::ptr::null_mut(), room, libc::PROT_NONE, flags, -1, 0) };
        if room_at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let lead = (room_at as usize).next_multiple_of(LARGE) - room_at as usize;
        let start = room_at.cast::<u8>().wrapping_add(lead);
        // SAFETY: [start, start + len) lies inside the reservation, which is ours and unused.
        let at = unsafe {
            libc::mmap(
                start.cast(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        let result = if at == libc::MAP_FAILED {
            Err(std::io::Error::last_os_error())
        } else {
            Ok(Self { start, len })
        };
        // SAFETY: what is left of the reservation on both sides is still ours and unused; on failure that is
        // all of it.
        unsafe {
            if result.is_err() {
                libc::munmap(room_at, room);
            } else {
                if lead > 0 {
                    libc::munmap(room_at, lead);
                }
                libc::munmap(start.wrapping_add(len).cast(), LARGE - lead);
            }
        }
        result
    }

    /// First address.
    pub fn address(&self) -> usize {
        self.start as usize
    }

    /// The area as a region of guest memory. It must not outlive the area.
    pub fn region(&self) -> Result<MmapRegion, String> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: pointer and length are exactly this mapping; `Ram` keeps areas and regions together, areas
        // last to be dropped.
        unsafe { MmapRegion::build_raw(self.start, self.len, prot, flags) }.map_err(|e| e.to_string())
    }

    /// Makes one large page of the `LARGE` bytes at `within`, whatever the host's policy for shared memory
    /// says. The contents stay.
    pub fn collapse(&self, within: usize) -> std::io::Result<()> {
        if within.checked_add(LARGE).is_none_or(|end| end > self.len) || !within.is_multiple_of(LARGE) {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the range was just checked to lie inside the mapping; the advice changes how the memory is
        // backed and not what it holds.
        check(unsafe { libc::madvise(self.start.wrapping_add(within).cast(), LARGE, MADV_COLLAPSE) })
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, and regions over it are gone (see `region`).
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// `MADV_COLLAPSE`, Linux 6.1 and later.
const MADV_COLLAPSE: libc::c_int = 25;

fn check(result: libc::c_int) -> std::io::Result<()> {
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn advise(map: &GuestMemoryMmap<()>, advice: libc::c_int) -> std::io::Result<()> {
    for region in map.iter() {
        // SAFETY: pointer and length are exactly one mapping that `region` owns and keeps mapped; neither
        // advice used here changes what the memory holds.
        check(unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, advice) })?;
    }
    Ok(())
}

/// Makes every page present now; the error is the kernel's when memory runs out.
pub fn prefault(map: &GuestMemoryMmap<()>) -> std::io::Result<()> {
    advise(map, libc::MADV_POPULATE_WRITE)
}

/// Whether a file can be mapped from its second page of 4 KiB on: one of larger pages cannot (`hugetlbfs_file_mmap` in fs/hugetlbfs/inode.c).
pub fn can_map_second_page(file: BorrowedFd<'_>) -> bool {
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
    // SAFETY: a fresh mapping at an address of the kernel's choice touches nobody's memory; nobody can access it, and what was mapped
    // is unmapped again at once.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_NONE, flags, file.as_raw_fd(), 4096);
        at != libc::MAP_FAILED && libc::munmap(at, 4096) == 0
    }
}

/// Replaces `len` bytes of `region`'s mapping, from byte `within`, by `fd` from byte `offset`.
pub fn lay_over(
    region: &GuestRegionMmap<()>,
    within: u64,
    len: u64,
    fd: BorrowedFd<'_>,
    offset: u64,
) -> std::io::Result<()> {
    let end = within.checked_add(len).ok_or(std::io::ErrorKind::InvalidInput)?;
    if end > region.len() || !within.is_multiple_of(4096) || !len.is_multiple_of(4096) || len == 0 {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: [within, end) was just checked to lie inside `region`, a mapping that is ours while the
    // borrow lasts, so MAP_FIXED replaces our own pages and nobody else's. They stay
    // readable and writable shared memory, accessed by volatile copies only; the file behind is a memfd sealed
    // against shrinking, so that no access can fault.
    let at = unsafe {
        libc::mmap(
            region.as_ptr().add(within as usize).cast(),
            len as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
            fd.as_raw_fd(),
            offset as libc::off_t,
        )
    };
    if at == libc::MAP_FAILED { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
