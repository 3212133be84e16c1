//! The requests of TAP devices (`linux/if_tun.h`).

use std::ffi::CString;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_char, c_int, c_short, c_uint, ifreq};

use super::retry;

/// For [`set_queue`]: frames may go to this queue.
pub(crate) const ATTACH: c_int = libc::IFF_ATTACH_QUEUE;
/// For [`set_queue`]: the interface has one queue less.
pub(crate) const DETACH: c_int = libc::IFF_DETACH_QUEUE;

/// An `ifreq` that says `name` and `flags`.
fn request(name: &str, flags: c_int) -> io::Result<ifreq> {
    // SAFETY: ifreq is plain data, for which all zeroes are a value.
    let mut request: ifreq = unsafe { zeroed() };
    let bytes = name.as_bytes();
    if bytes.len() >= request.ifr_name.len() || bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of an interface"));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(bytes) {
        *place = *byte as c_char;
    }
    // The flags are 16 bits that C has as a signed number.
    request.ifr_ifru.ifru_flags = flags as c_short;
    Ok(request)
}

/// Whether there is an interface called `name`: its number.
pub(crate) fn interface_index(name: &str) -> io::Result<c_uint> {
    let name = CString::new(name)?;
    // SAFETY: a C string, only read.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Makes a freshly opened `/dev/net/tun` a queue of the interface `name`.
pub(crate) fn join_interface(tun: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<()> {
    let mut request = request(name, flags)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    retry(|| unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) as isize })?;
    Ok(())
}

/// The name of the interface whose queue this is, and its flags.
pub(crate) fn interface(tun: BorrowedFd<'_>) -> io::Result<(String, c_int)> {
    let mut request = request("", 0)?;
    // SAFETY: TUNGETIFF writes one ifreq.
    retry(|| unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &mut request) as isize })?;
    let name = request.ifr_name.iter().map(|c| *c as u8).take_while(|byte| *byte != 0).collect();
    // SAFETY: the kernel has filled in the flags, and any bits are a number.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((String::from_utf8(name).unwrap_or_default(), c_int::from(flags as u16)))
}

/// How long the header in front of each frame is.
pub(crate) fn set_header_size(tun: BorrowedFd<'_>, size: c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    retry(|| unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size) as isize })?;
    Ok(())
}

/// What this side can take: `TUN_F_*`.
pub(crate) fn set_offload(tun: BorrowedFd<'_>, features: c_uint) -> io::Result<()> {
    let features = libc::c_ulong::from(features);
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory.
    retry(|| unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, features) as isize })?;
    Ok(())
}

/// Switches a queue on ([`ATTACH`]) or off ([`DETACH`]).
pub(crate) fn set_queue(tun: BorrowedFd<'_>, how: c_int) -> io::Result<()> {
    let request = request("", how)?;
    // SAFETY: TUNSETQUEUE reads one ifreq.
    retry(|| unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETQUEUE, &request) as isize })?;
    Ok(())
}
