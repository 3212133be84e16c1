//! A stream socket: whole messages out, looking in without taking.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, iovec, msghdr, socklen_t};
use vsp::ipc::shm::HeldSpan;

use super::retry;
use super::vectors::with_list;

fn message(list: &mut [iovec]) -> msghdr {
    // SAFETY: msghdr is plain data, all zeroes is its empty value: no name, no control messages.
    let mut header: msghdr = unsafe { zeroed() };
    header.msg_iov = list.as_mut_ptr();
    header.msg_iovlen = list.len() as _;
    header
}

/// Sends the private pieces and then the shared ones with one call that does not wait; how many bytes were taken.
pub(crate) fn send_message<'a>(
    socket: BorrowedFd<'_>,
    first: &[&[u8]],
    rest: impl IntoIterator<Item = HeldSpan<'a>>,
) -> io::Result<usize> {
    with_list(first, rest, |list| {
        // SAFETY: as in `message`.
        let mut header: msghdr = unsafe { zeroed() };
        header.msg_iov = list.as_ptr().cast_mut();
        header.msg_iovlen = list.len() as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the pieces are borrowed slices and mapped spans; sendmsg only reads them and the list, and only now.
        retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &header, flags) })
    })
}

/// Copies what waits, from the socket's peek offset on, without taking it; 0: the other end is gone.
pub(crate) fn peek(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
    receive(socket, into, libc::MSG_PEEK)
}

/// Takes at most `scratch.len()` bytes; 0: the other end is gone. What they were does not matter.
pub(crate) fn discard(socket: BorrowedFd<'_>, scratch: &mut [u8]) -> io::Result<usize> {
    receive(socket, scratch, 0)
}

/// By `recvmsg`, which the control socket needs anyway: one syscall less to allow. Descriptors that the peer may send
/// are closed by the kernel, as there is no room for them.
fn receive(socket: BorrowedFd<'_>, into: &mut [u8], flags: c_int) -> io::Result<usize> {
    let mut list = [iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() }];
    let mut header = message(&mut list);
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: the only buffer is a private slice, with its true length, and outlives the call.
    retry(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, flags) })
}

/// Where the next peek begins, in bytes from the first that waits; negative: the socket has never had a peek offset.
pub(crate) fn peek_offset(socket: BorrowedFd<'_>) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as socklen_t;
    // SAFETY: the value has the size that `len` says.
    retry(|| unsafe {
        let (level, name) = (libc::SOL_SOCKET, libc::SO_PEEK_OFF);
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &mut len) as isize
    })?;
    Ok(value)
}

/// Makes the next peek begin `offset` bytes after the first that waits.
pub(crate) fn set_peek_offset(socket: BorrowedFd<'_>, offset: c_int) -> io::Result<()> {
    // SAFETY: the value has the size that is given, and is only read.
    retry(|| unsafe {
        let (level, name) = (libc::SOL_SOCKET, libc::SO_PEEK_OFF);
        let len = size_of::<c_int>() as socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const offset).cast(), len) as isize
    })?;
    Ok(())
}
