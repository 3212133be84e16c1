//! All unsafe code of this crate: thin, safe wrappers over system calls that no crate wraps for us.
//!
//! Nothing here decides anything. [`exec`] starts children; [`this`] changes the calling process; [`fatal`] handles the signals that end it;
//! [`heir`] is what is left for a moment then.
#![allow(unsafe_code)]

pub(crate) mod exec;
pub(crate) mod fatal;
pub(crate) mod heir;
pub(crate) mod this;

use std::io;

/// `Err(errno)` for a result below 0.
pub(crate) fn check(result: libc::c_long) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Any system call, by number. For [`crate::policy_test`], which has to try what no wrapper offers.
///
/// # Safety
/// As safe as the call it names with the arguments it is given.
pub(crate) unsafe fn raw(number: libc::c_long, a: [u64; 6]) -> io::Result<i64> {
    // SAFETY: the caller's promise.
    check(unsafe { libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) })
}
