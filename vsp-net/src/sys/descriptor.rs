//! Descriptors that this process was started with.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use libc::c_int;

use super::retry;

/// Owns a descriptor that this process was started with, and makes it close-on-exec.
///
/// Each number may be adopted once: nobody else in this process may own it.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "descriptors 0 to 2 are not for adoption"));
    }
    // SAFETY: F_GETFD and F_SETFD touch no memory; a number that is not open is refused before it is owned.
    unsafe {
        let flags = retry(|| libc::fcntl(number, libc::F_GETFD) as isize)? as c_int;
        retry(|| libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) as isize)?;
        Ok(OwnedFd::from_raw_fd(number))
    }
}
