//! A process that inherits the memory of one that dies, so that the dead one need not clear it away itself.
//!
//! The kernel ends a process in a fixed order: its memory first, its descriptors after that. Taking down the mapping of
//! a guest's RAM costs some 60 ns a page (4 ms for 64 MiB that were touched), and only then do the locks go and do its
//! peers see that it is gone. As long as somebody else shares the memory, nothing is taken down: the heir does, holds nothing else, and
//! ends as soon as the dead one's descriptors have gone. From SIGKILL to the end of file on its socket it is then
//! 0.1 ms, whatever was mapped.
//!
//! It must never run any of the other's code nor hold any of its descriptors, and cannot: what it may still do is wait, and
//! end.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};

use crate::sys;

/// An heir that is to be.
pub(crate) struct Will {
    until: PipeReader,
    life: PipeWriter,
}

impl Will {
    /// Opens what the heir needs.
    pub(crate) fn prepare() -> io::Result<Will> {
        let (until, life) = io::pipe()?;
        Ok(Will { until, life })
    }

    /// What must not be closed before [`Will::execute`].
    pub(crate) fn descriptors(&self) -> [RawFd; 2] {
        [self.until.as_raw_fd(), self.life.as_raw_fd()]
    }

    /// Starts the heir. The process, which has one thread, goes on with one descriptor more than it had: the heir ends when that
    /// one is closed, which the end of the process does.
    pub(crate) fn execute(self) -> io::Result<()> {
        sys::heir::start(self.until.as_raw_fd())?;
        let _ = self.life.into_raw_fd();
        Ok(())
    }
}
