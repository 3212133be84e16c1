//! Scattered memory: `writev`, `readv`, and the lists that they take.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_void, iovec};
use vsp::ipc::shm::HeldSpan;

use super::retry;

/// Pieces that need no memory from the heap: the headers, and a frame of 64 KiB in scattered pages.
const FEW: usize = 48;
/// Most pieces: `UIO_MAXIOV` of the kernel.
const MOST: usize = 1024;

fn private(slice: &[u8]) -> iovec {
    iovec { iov_base: slice.as_ptr() as *mut c_void, iov_len: slice.len() }
}

fn shared(span: HeldSpan<'_>) -> iovec {
    iovec { iov_base: span.address().as_ptr().cast(), iov_len: span.len() }
}

/// Calls `call` with the list of all pieces, private ones first. Empty ones are left out.
pub(super) fn with_list<'a, R>(
    first: &[&[u8]],
    rest: impl IntoIterator<Item = HeldSpan<'a>>,
    call: impl FnOnce(&[iovec]) -> io::Result<R>,
) -> io::Result<R> {
    let pieces = first.iter().map(|slice| private(slice)).chain(rest.into_iter().map(shared));
    with_pieces(pieces, call)
}

/// The same for pieces of any sort.
fn with_pieces<R>(
    pieces: impl Iterator<Item = iovec>,
    call: impl FnOnce(&[iovec]) -> io::Result<R>,
) -> io::Result<R> {
    let mut pieces = pieces.filter(|piece| piece.iov_len > 0);
    let mut list = [const { MaybeUninit::<iovec>::uninit() }; FEW];
    let mut len = 0;
    for (place, piece) in list.iter_mut().zip(pieces.by_ref()) {
        place.write(piece);
        len += 1;
    }
    // SAFETY: the first `len` places have just been written.
    let few: &[iovec] = unsafe { std::slice::from_raw_parts(list.as_ptr().cast(), len) };
    let Some(next) = pieces.next() else { return call(few) };
    // One more than the kernel takes is enough to know that there are too many.
    let list: Vec<iovec> = few.iter().copied().chain([next]).chain(pieces).take(MOST + 1).collect();
    if list.len() > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many pieces"));
    }
    call(&list)
}

/// Writes the private pieces and then the shared ones, as one write; how many bytes were taken.
pub(crate) fn gather<'a>(
    fd: BorrowedFd<'_>,
    first: &[&[u8]],
    rest: impl IntoIterator<Item = HeldSpan<'a>>,
) -> io::Result<usize> {
    with_list(first, rest, |list| {
        // SAFETY: the pieces are borrowed slices and mapped spans; the kernel only reads them, and only now.
        retry(|| unsafe { libc::writev(fd.as_raw_fd(), list.as_ptr(), list.len() as c_int) })
    })
}

/// Reads once: into `head`, then the shared memory, then `tail`; how many bytes came.
pub(crate) fn scatter<'a>(
    fd: BorrowedFd<'_>,
    head: &mut [u8],
    into: impl IntoIterator<Item = HeldSpan<'a>>,
    tail: &mut [u8],
) -> io::Result<usize> {
    let ours = |slice: &mut [u8]| iovec { iov_base: slice.as_mut_ptr().cast(), iov_len: slice.len() };
    let pieces = [ours(head)].into_iter().chain(into.into_iter().map(shared)).chain([ours(tail)]);
    with_pieces(pieces, |list| {
        // SAFETY: the first and the last piece are ours alone, those between are mapped and nobody refers to them; their
        // true lengths are given.
        retry(|| unsafe { libc::readv(fd.as_raw_fd(), list.as_ptr(), list.len() as c_int) })
    })
}
