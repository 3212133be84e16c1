//! The unsafe corner of guest memory: changes to the address space under the RAM mapping.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

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

/// Asks for transparent huge pages.
pub fn advise_huge(map: &GuestMemoryMmap<()>) -> std::io::Result<()> {
    advise(map, libc::MADV_HUGEPAGE)
}

/// Makes every page present now; the error is the kernel's when memory runs out.
pub fn prefault(map: &GuestMemoryMmap<()>) -> std::io::Result<()> {
    advise(map, libc::MADV_POPULATE_WRITE)
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
    // SAFETY: [within, end) was just checked to lie inside the mapping that `region` owns for the
    // life of the process, so MAP_FIXED replaces our own pages and nobody else's. They stay
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

/// Takes over an inherited descriptor, close-on-exec from now on.
pub fn inherit(fd: RawFd) -> std::io::Result<OwnedFd> {
    // SAFETY: a descriptor number from our command line; F_SETFD on a closed or foreign number
    // fails or changes only its close-on-exec flag.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: it is open, as was just seen, and whoever started us passed it for us to own; no other
    // code of this process knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
