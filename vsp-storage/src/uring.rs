//! The way to the disks: an io_uring that can do nothing else. The one unsafe module of the crate.
//!
//! seccomp cannot see what is in a submission queue, so the ring itself is restricted before the compartment
//! closes: it is made disabled, and from the moment it is enabled it takes only reads, writes, flushes and
//! `fallocate`, and nothing can be registered any more.
//!
//! The disks are ordinary descriptors of the process, not files registered with the ring. Registered files would
//! hold a dead process's disks, and their locks, for 24 to 50 ms longer than its last request (measured on Linux 6.1:
//! they are put down by deferred work after an RCU grace period), and a successor waits for exactly that. A request in
//! flight holds an ordinary descriptor's file just as well. The price is that the ring could be pointed at the other
//! descriptors of the process, which are its own anyway: what they can be used for, `write` can do as well.
//!
//! Memory that the kernel works on is owned by the ring until the kernel is done with it, so no safe caller
//! can free it too early.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::register::Restriction;
use io_uring::squeue::Entry;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode};
use thiserror::Error;
use vsp::{GuestBuffer, Span};

/// Entries of the submission queue: two batches of the runtime.
const SUBMISSIONS: u32 = 128;
/// Entries of the completion queue: all requests of as many channels as a guest with 32 VPs has. With more in flight
/// the kernel keeps what does not fit (`IORING_FEAT_NODROP`), slower and complete; see [`Uring::submit`].
const COMPLETIONS: u32 = 4096;
/// How often a submission that the kernel is too busy for is tried again before the process gives up.
const PATIENCE: u32 = 10_000;

/// Why there is no ring.
#[derive(Debug, Error)]
pub enum UringError {
    /// The kernel does not give us one.
    #[error(
        "this host gives no io_uring ({0}): Linux 5.11 or newer is needed, with kernel.io_uring_disabled=0 \
         and no seccomp filter in the way"
    )]
    Unavailable(#[source] io::Error),
    /// It cannot be restricted.
    #[error("cannot {what} the io_uring: {source}; Linux 5.11 or newer is needed")]
    Setup {
        /// The step.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// What is done. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Fills the memory.
    Read {
        /// Where in the file.
        offset: u64,
    },
    /// Writes the memory.
    Write {
        /// Where in the file.
        offset: u64,
        /// On stable storage before it completes (`RWF_DSYNC`).
        stable: bool,
    },
    /// Puts all completed writes on stable storage.
    Flush,
    /// Deallocates a range, which then reads as zeroes.
    Punch {
        /// Where in the file.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Makes a range read as zeroes and keeps it allocated.
    Zero {
        /// Where in the file.
        offset: u64,
        /// How much.
        len: u64,
    },
}

impl Kind {
    /// Whether its success promises that data is on stable storage.
    pub fn is_promise(self) -> bool {
        matches!(self, Kind::Flush | Kind::Write { stable: true, .. })
    }
}

/// What is read into or written from.
#[derive(Debug)]
pub enum Memory {
    /// Nothing, for what moves no data.
    None,
    /// The guest's own pages.
    Guest(GuestBuffer),
    /// A pattern of ours, over and over.
    Pattern(Pattern),
}

/// Bytes that are written again and again.
#[derive(Clone, Debug)]
pub struct Pattern {
    bytes: Box<[u8]>,
    phase: usize,
    len: usize,
}

impl Pattern {
    /// `bytes` (not empty) over and over.
    pub fn new(bytes: Box<[u8]>) -> Pattern {
        assert!(!bytes.is_empty(), "a pattern has bytes");
        Pattern { bytes, phase: 0, len: 0 }
    }

    /// Sets which `len` bytes of the endless row are meant: those from `position` on.
    pub fn select(&mut self, position: u64, len: usize) {
        self.phase = (position % self.bytes.len() as u64) as usize;
        self.len = len;
    }

    fn iovecs(&self) -> Vec<libc::iovec> {
        let mut iovecs = Vec::with_capacity(self.len / self.bytes.len() + 2);
        let (mut from, mut left) = (self.phase, self.len);
        while left > 0 {
            let part = &self.bytes[from..][..left.min(self.bytes.len() - from)];
            iovecs.push(libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
            (from, left) = (0, left - part.len());
        }
        iovecs
    }
}

/// Something to do on a file.
#[derive(Debug)]
pub struct Operation {
    /// What.
    pub kind: Kind,
    /// Number of the file, in the order of [`Uring::new`].
    pub file: u32,
    /// With which memory.
    pub memory: Memory,
}

/// An operation that the kernel has.
struct InFlight<T> {
    context: T,
    operation: Operation,
    /// What the submission points at, if it is not the buffer's own list of spans.
    _iovecs: Vec<libc::iovec>,
}

/// The ring. `T` is what the caller wants back with the result.
pub struct Uring<T> {
    ring: IoUring,
    files: Vec<File>,
    /// Indexed by the user data of a submission.
    operations: Vec<Option<InFlight<T>>>,
    free: Vec<u32>,
}

// A span is laid out like an iovec, and lists of them are handed over as such.
const _: () = assert!(
    size_of::<Span>() == size_of::<libc::iovec>()
        && align_of::<Span>() == align_of::<libc::iovec>()
        && std::mem::offset_of!(libc::iovec, iov_base) == 0
);

impl<T> Uring<T> {
    /// Makes a ring for these files.
    pub fn new(files: Vec<File>) -> Result<Uring<T>, UringError> {
        let setup = |what| move |source| UringError::Setup { what, source };
        let mut builder = IoUring::builder();
        builder.setup_r_disabled().setup_cqsize(COMPLETIONS);
        let ring = builder.build(SUBMISSIONS).map_err(UringError::Unavailable)?;
        let submitter = ring.submitter();
        submitter.register_restrictions(&mut restrictions()).map_err(setup("restrict"))?;
        submitter.register_enable_rings().map_err(setup("enable"))?;
        Ok(Uring { ring, files, operations: Vec::new(), free: Vec::new() })
    }

    /// The files, in the order of [`Uring::new`].
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// All descriptors that are needed from now on.
    pub fn descriptors(&self) -> Vec<RawFd> {
        self.files.iter().map(AsRawFd::as_raw_fd).chain([self.source()]).collect()
    }

    /// The ring's descriptor: readable while there is something to take.
    ///
    /// (Not an eventfd: that one would also wake us for what completed inline and is long taken.)
    pub fn source(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Operations that have been started and not been given back.
    pub fn in_flight(&self) -> usize {
        self.operations.len() - self.free.len()
    }

    /// Queues an operation. The kernel sees it at the next [`Uring::submit`].
    pub fn start(&mut self, operation: Operation, context: T) -> io::Result<()> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.operations.push(None);
            (self.operations.len() - 1) as u32
        });
        let iovecs = match &operation.memory {
            Memory::Pattern(pattern) => pattern.iovecs(),
            _ => Vec::new(),
        };
        // A file that there is not is the kernel's to refuse.
        let file = self.files.get(operation.file as usize).map_or(-1, AsRawFd::as_raw_fd);
        let entry = entry(Fd(file), &operation, &iovecs).user_data(slot.into());
        self.operations[slot as usize] = Some(InFlight { context, operation, _iovecs: iovecs });
        if self.ring.submission().is_full() {
            self.submit()?;
        }
        // SAFETY: the memory that the entry points at (spans of a guest buffer, which keeps RAM mapped, or a
        // pattern) and the lists of it are owned by `self.operations`, on the heap, and stay there until the
        // completion has been seen or, in `drop`, until the kernel has none left.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("the submission queue is full after a submission"))
    }

    /// Hands everything queued to the kernel. An error is final: the ring does not work.
    pub fn submit(&mut self) -> io::Result<()> {
        let mut patience = PATIENCE;
        loop {
            let (queued, overflow) = {
                let submission = self.ring.submission();
                (submission.len(), submission.cq_overflow())
            };
            if queued == 0 && !overflow {
                return Ok(());
            }
            match self.ring.submit() {
                Ok(_) if overflow => return Ok(()),
                Ok(_) => {}
                // Completions have to be taken first; they are, and the caller submits again.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                Err(error) => {
                    let again =
                        matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::ENOMEM));
                    if !again || patience == 0 {
                        return Err(error);
                    }
                }
            }
            patience = patience.saturating_sub(1);
        }
    }

    /// The next operation that has ended: the caller's context, the operation, and the number of bytes moved.
    pub fn take_ended(&mut self) -> Option<(T, Operation, io::Result<u32>)> {
        loop {
            let completion = self.ring.completion().next()?;
            let slot = completion.user_data();
            let Some(ended) =
                usize::try_from(slot).ok().and_then(|slot| self.operations.get_mut(slot)?.take())
            else {
                debug_assert!(false, "a completion of nothing");
                continue;
            };
            self.free.push(slot as u32);
            let result = match completion.result() {
                code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                count => Ok(count as u32),
            };
            return Some((ended.context, ended.operation, result));
        }
    }

    /// Submits and waits until at least one operation has ended; for tests and for the end.
    pub fn wait(&mut self) -> io::Result<()> {
        self.ring.submit_and_wait(1).map(drop)
    }
}

impl<T> Drop for Uring<T> {
    /// The kernel may still write to memory that is about to be freed: waits until it does not.
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            if self.take_ended().is_none() && self.wait().is_err() {
                // Leaking is the only safe way out.
                std::mem::forget(std::mem::take(&mut self.operations));
                return;
            }
        }
    }
}

impl<T> std::fmt::Debug for Uring<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

/// All that the ring may ever do. Flags (links, registered files, buffers of the ring's) are refused by not being named.
fn restrictions() -> [Restriction; 6] {
    [
        Restriction::sqe_op(opcode::Read::CODE),
        Restriction::sqe_op(opcode::Write::CODE),
        Restriction::sqe_op(opcode::Readv::CODE),
        Restriction::sqe_op(opcode::Writev::CODE),
        Restriction::sqe_op(opcode::Fsync::CODE),
        Restriction::sqe_op(opcode::Fallocate::CODE),
    ]
}

fn entry(file: Fd, operation: &Operation, iovecs: &[libc::iovec]) -> Entry {
    let (list, count): (*const libc::iovec, u32) = match &operation.memory {
        Memory::Guest(buffer) => (buffer.spans().as_ptr().cast(), buffer.spans().len() as u32),
        Memory::Pattern(_) => (iovecs.as_ptr(), iovecs.len() as u32),
        Memory::None => (std::ptr::null(), 0),
    };
    // One piece is the common case, and cheaper without a list.
    let single = match &operation.memory {
        Memory::Guest(buffer) => match buffer.spans() {
            [span] => Some((span.address().as_ptr(), span.len() as u32)),
            _ => None,
        },
        _ => None,
    };
    match operation.kind {
        Kind::Read { offset } => match single {
            Some((address, len)) => opcode::Read::new(file, address, len).offset(offset).build(),
            None => opcode::Readv::new(file, list, count).offset(offset).build(),
        },
        Kind::Write { offset, stable } => {
            let flags = if stable { libc::RWF_DSYNC } else { 0 };
            match single {
                Some((address, len)) => {
                    opcode::Write::new(file, address, len).offset(offset).rw_flags(flags).build()
                }
                None => opcode::Writev::new(file, list, count).offset(offset).rw_flags(flags).build(),
            }
        }
        Kind::Flush => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
        Kind::Punch { offset, len } => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            opcode::Fallocate::new(file, len).offset(offset).mode(mode).build()
        }
        Kind::Zero { offset, len } => {
            let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
            opcode::Fallocate::new(file, len).offset(offset).mode(mode).build()
        }
    }
}

#[cfg(test)]
mod tests;
