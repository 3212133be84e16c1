//! The descriptors that a compartment keeps, and the end of all others.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use crate::sys::this as sys;

/// Descriptors to keep: sorted, each once, all open.
pub(crate) struct Kept(Vec<u32>);

impl Kept {
    /// Checks the caller's list, and puts `/dev/null` where one of 0, 1 and 2 is not on it: a number that is free
    /// is taken by the next descriptor to arrive, and a stray message to standard error would end up in there.
    pub(crate) fn prepare(keep: &[RawFd]) -> io::Result<Kept> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let mut numbers = Vec::with_capacity(keep.len() + 3);
        for &fd in keep {
            if !sys::is_open(fd) {
                return Err(io::Error::other(format!("descriptor {fd}, which is to be kept, is not open")));
            }
            numbers.push(fd.cast_unsigned());
        }
        for fd in 0..3 {
            if !keep.contains(&fd) {
                sys::duplicate_to(null.as_raw_fd(), fd)?;
                numbers.push(fd.cast_unsigned());
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        // `null` itself may have been opened at 0, 1 or 2 and must stay then.
        if null.as_raw_fd() < 3 {
            std::mem::forget(null);
        }
        Ok(Kept(numbers))
    }

    /// Closes all others; returns how many are left.
    pub(crate) fn close_others(&self) -> io::Result<usize> {
        let mut next = 0;
        for &fd in &self.0 {
            if fd > next {
                sys::close_range(next, fd - 1)?;
            }
            next = fd + 1;
        }
        sys::close_range(next, u32::MAX)?;
        Ok(self.0.len())
    }
}
