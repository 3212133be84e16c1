//! One datagram with descriptors, each way. Unsafe because descriptors arrive as bare numbers.
//!
//! The received numbers are owned before anything else is looked at, so no path can leak them, a
//! truncated datagram from a hostile peer included.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libc::{CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, CMSG_SPACE, c_int, c_void};

/// Most descriptors with one datagram.
pub(crate) const MAX_FDS: usize = 16;

/// Room for the control message; `u64` for its alignment. `CMSG_SPACE(16 * 4)` is 80 bytes.
const CONTROL: usize = 10;
type ControlBuffer = [u64; CONTROL];

/// What one `recvmsg` brought.
pub(crate) struct Datagram {
    /// Bytes stored, or with `peek` the full length of the datagram.
    pub len: usize,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
    /// Bytes or descriptors did not fit and are lost.
    pub truncated: bool,
}

/// Sends `bytes` and `fds` as one datagram. At most [`MAX_FDS`] descriptors (the caller checks).
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    assert!(fds.len() <= MAX_FDS, "the caller bounds the descriptors");
    let mut control: ControlBuffer = [0; CONTROL];
    let payload = fds.len() * size_of::<RawFd>();
    let mut iov = libc::iovec { iov_base: bytes.as_ptr() as *mut c_void, iov_len: bytes.len() };
    // SAFETY: msghdr is plain data, all zeroes is its empty value; the pointers set below outlive the call,
    // the control buffer is large enough for CMSG_SPACE(payload) and aligned for a cmsghdr, and sendmsg only
    // reads them.
    let sent = unsafe {
        let mut header: libc::msghdr = zeroed();
        header.msg_iov = &mut iov;
        header.msg_iovlen = 1;
        if !fds.is_empty() {
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = CMSG_SPACE(payload as u32) as usize;
            let cmsg = CMSG_FIRSTHDR(&header);
            (*cmsg).cmsg_level = libc::SOL_SOCKET;
            (*cmsg).cmsg_type = libc::SCM_RIGHTS;
            (*cmsg).cmsg_len = CMSG_LEN(payload as u32) as usize;
            let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
            ptr::copy_nonoverlapping(numbers.as_ptr().cast::<u8>(), CMSG_DATA(cmsg), payload);
        }
        retry(|| libc::sendmsg(socket.as_raw_fd(), &header, libc::MSG_NOSIGNAL))?
    };
    if sent != bytes.len() {
        return Err(io::Error::new(io::ErrorKind::WriteZero, "a datagram was cut short"));
    }
    Ok(())
}

/// Length of the datagram that waits, without taking it; 0 if the peer is gone.
///
/// By `recvmsg`, like the real thing: one syscall less to allow.
pub(crate) fn peek_len(socket: BorrowedFd<'_>, wait: bool) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC | if wait { 0 } else { libc::MSG_DONTWAIT };
    // SAFETY: an all-zero msghdr has no buffers that could be written to.
    retry(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &mut zeroed::<libc::msghdr>(), flags) })
}

/// Takes one datagram. Descriptors are close-on-exec. With `wait` off an empty queue is an error at once.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], wait: bool) -> io::Result<Datagram> {
    receive_with(socket, buffer, if wait { 0 } else { libc::MSG_DONTWAIT })
}

/// Looks at the datagram that waits, without taking it or waiting for it. Its descriptors are duplicates.
pub(crate) fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Datagram> {
    receive_with(socket, buffer, libc::MSG_PEEK | libc::MSG_DONTWAIT)
}

fn receive_with(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: c_int) -> io::Result<Datagram> {
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    let mut control: ControlBuffer = [0; CONTROL];
    let mut fds = Vec::new();
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the buffers outlive the call and their true lengths are given. The kernel leaves a well-formed
    // list of control messages, which the CMSG macros walk; every number in an SCM_RIGHTS message is a
    // descriptor that the kernel has just made for us, so owning it is right, and each is owned once.
    unsafe {
        let mut header: libc::msghdr = zeroed();
        header.msg_iov = &mut iov;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = CMSG_SPACE((MAX_FDS * size_of::<RawFd>()) as u32) as usize;
        let len = retry(|| libc::recvmsg(socket.as_raw_fd(), &mut header, flags))?;
        let mut cmsg = CMSG_FIRSTHDR(&header);
        while !cmsg.is_null() {
            if (*cmsg).cmsg_level == libc::SOL_SOCKET && (*cmsg).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*cmsg).cmsg_len.saturating_sub(CMSG_LEN(0) as usize);
                let numbers = CMSG_DATA(cmsg).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(numbers.add(index).read_unaligned()));
                }
            }
            cmsg = CMSG_NXTHDR(&header, cmsg);
        }
        let truncated = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
        Ok(Datagram { len, fds, truncated })
    }
}

/// Accepts a connection, non-blocking and close-on-exec.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no address is asked for, so accept4 writes to no memory of ours.
    let number = retry(|| unsafe {
        libc::accept4(listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags) as isize
    })?;
    // SAFETY: the number is a descriptor that accept4 has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number as c_int) })
}

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

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(result) = usize::try_from(call()) {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
