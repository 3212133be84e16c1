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

mod bounce;
mod scratch;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::register::Restriction;
use io_uring::squeue::Entry;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode};
use thiserror::Error;
use vsp::{GuestBuffer, Span};

use self::bounce::Bouncer;
pub use self::scratch::Scratch;
use crate::direct::Direct;

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
    /// Memory of ours.
    Scratch(Scratch),
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

    /// Fills `into` with the first bytes of those meant.
    fn copy_to(&self, into: &mut [u8]) {
        let (mut from, mut done) = (self.phase, 0);
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let part = &self.bytes[from..];
            let len = part.len().min(rest.len());
            rest[..len].copy_from_slice(&part[..len]);
            (from, done) = (0, done + len);
        }
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

impl Operation {
    /// Bytes that it moves; 0 if it moves none.
    pub fn bytes(&self) -> u64 {
        self.memory.len() as u64
    }
}

impl Memory {
    fn len(&self) -> usize {
        match self {
            Memory::None => 0,
            Memory::Guest(buffer) => buffer.len(),
            Memory::Pattern(pattern) => pattern.len,
            Memory::Scratch(scratch) => scratch.len(),
        }
    }
}

/// An operation that the kernel has.
struct InFlight<T> {
    context: T,
    operation: Operation,
    /// What the kernel works on instead of the operation's memory.
    bounce: Option<Scratch>,
    /// What the submission points at, if it is not the buffer's own list of spans.
    _iovecs: Vec<libc::iovec>,
}

/// The ring. `T` is what the caller wants back with the result.
pub struct Uring<T> {
    ring: IoUring,
    /// Each in its place; the place of one that was given back may be taken by another.
    files: Vec<Option<File>>,
    bouncer: Bouncer,
    /// Operations that wait for memory of the bouncer's, oldest first.
    starved: VecDeque<(Operation, T)>,
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
        let ring = build().map_err(UringError::Unavailable)?;
        let submitter = ring.submitter();
        submitter.register_restrictions(&mut restrictions()).map_err(setup("restrict"))?;
        submitter.register_enable_rings().map_err(setup("enable"))?;
        let files = files.into_iter().map(Some).collect();
        let (bouncer, starved) = (Bouncer::default(), VecDeque::new());
        Ok(Uring { ring, files, bouncer, starved, operations: Vec::new(), free: Vec::new() })
    }

    /// A file by its number: in the order of [`Uring::new`], or as [`Uring::add_file`] says.
    pub fn file(&self, number: usize) -> Option<&File> {
        self.files.get(number)?.as_ref()
    }

    /// One more file; its number.
    pub fn add_file(&mut self, file: File) -> usize {
        let free = self.files.iter().position(Option::is_none).unwrap_or(self.files.len());
        if free == self.files.len() {
            self.files.push(None);
        }
        self.files[free] = Some(file);
        free
    }

    /// Gives a file back, and its number up. Nothing of it may be in flight or queued: what comes after is refused.
    pub fn remove_file(&mut self, number: usize) -> Option<File> {
        self.files.get_mut(number)?.take()
    }

    /// What a file asks of memory, if it is read and written past the page cache.
    pub fn align(&mut self, number: usize, direct: Option<Direct>) {
        self.bouncer.align(number, direct);
    }

    /// All descriptors that are needed from now on.
    pub fn descriptors(&self) -> Vec<RawFd> {
        self.files.iter().flatten().map(AsRawFd::as_raw_fd).chain([self.source()]).collect()
    }

    /// The ring's descriptor: readable while there is something to take.
    ///
    /// (Not an eventfd: that one would also wake us for what completed inline and is long taken.)
    pub fn source(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Operations that have been started and not been given back.
    pub fn in_flight(&self) -> usize {
        self.operations.len() - self.free.len() + self.starved.len()
    }

    /// What the callers want back with those.
    pub fn contexts(&self) -> impl Iterator<Item = &T> {
        let waiting = self.starved.iter().map(|(_, context)| context);
        self.operations.iter().flatten().map(|operation| &operation.context).chain(waiting)
    }

    /// Queues an operation. The kernel sees it at the next [`Uring::submit`]. True: its memory is not as the file wants it,
    /// so the data takes a detour through memory of ours, and fewer bytes may be moved than were asked for.
    pub fn start(&mut self, operation: Operation, context: T) -> io::Result<bool> {
        if !self.bouncer.is_needed(&operation) {
            return self.push(operation, None, context).map(|()| false);
        }
        // Whoever came before is first; what is taken here has to be used.
        let bounce = if self.starved.is_empty() { self.bouncer.take(&operation) } else { None };
        match bounce {
            Some(bounce) => self.push(operation, Some(bounce), context)?,
            None => self.starved.push_back((operation, context)),
        }
        Ok(true)
    }

    /// Starts what waits for memory, as far as there is some.
    fn feed(&mut self) -> io::Result<()> {
        while let Some((operation, _)) = self.starved.front()
            && let Some(bounce) = self.bouncer.take(operation)
            && let Some((operation, context)) = self.starved.pop_front()
        {
            self.push(operation, Some(bounce), context)?;
        }
        Ok(())
    }

    fn push(&mut self, mut operation: Operation, mut bounce: Option<Scratch>, context: T) -> io::Result<()> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.operations.push(None);
            (self.operations.len() - 1) as u32
        });
        let iovecs = match &operation.memory {
            Memory::Pattern(pattern) if bounce.is_none() => pattern.iovecs(),
            _ => Vec::new(),
        };
        // A file that there is not is the kernel's to refuse.
        let file = self.file(operation.file as usize).map_or(-1, AsRawFd::as_raw_fd);
        let entry = entry(Fd(file), &mut operation, bounce.as_mut(), &iovecs).user_data(slot.into());
        self.operations[slot as usize] = Some(InFlight { context, operation, bounce, _iovecs: iovecs });
        if self.ring.submission().is_full() {
            self.hand_over()?;
        }
        // SAFETY: the memory that the entry points at (spans of a guest buffer, which keeps RAM mapped, a
        // pattern, or scratch memory) and the lists of it are owned by `self.operations`, on the heap, and stay there until the
        // completion has been seen or, in `drop`, until the kernel has none left.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("the submission queue is full after a submission"))
    }

    /// Hands everything queued to the kernel. An error is final: the ring does not work.
    pub fn submit(&mut self) -> io::Result<()> {
        if !self.starved.is_empty() {
            self.feed()?;
        }
        self.hand_over()
    }

    /// Whether something waits for the next [`Uring::submit`]: for nothing but that, or for memory that there may be by then.
    pub fn has_queued(&mut self) -> bool {
        !self.starved.is_empty() || !self.ring.submission().is_empty()
    }

    fn hand_over(&mut self) -> io::Result<()> {
        let mut patience = PATIENCE;
        loop {
            let (queued, asked) = {
                let submission = self.ring.submission();
                (submission.len(), submission.cq_overflow() || submission.taskrun())
            };
            if queued == 0 && !asked {
                return Ok(());
            }
            match self.ring.submit() {
                // What the kernel has to hand over is handed over with any call, and it may have more of it.
                Ok(_) if asked && queued == 0 => return Ok(()),
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

    /// Whether something has ended: a few loads, no system call. It is the next [`Uring::submit`] that collects what the
    /// kernel has not put into the ring yet.
    #[inline]
    pub fn has_ended(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.ring.submission().taskrun()
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
            if let Some(bounce) = ended.bounce {
                self.bouncer.give_back(bounce, &ended.operation, result.as_ref().ok().copied());
            }
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
        // What waits for memory has not begun, and never will.
        self.starved.clear();
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

/// Makes the ring, not enabled yet.
///
/// A completion does not interrupt what this process is doing at the moment (Linux 5.19): the ring says that there is one
/// to be collected, and if the process sleeps it is woken. An older kernel gives a ring that works the same with more
/// interruptions. (`DEFER_TASKRUN` would do more of that kind, but a ring with it was seen not to wake a process that
/// sleeps in epoll.)
fn build() -> io::Result<IoUring> {
    let builder = || {
        let mut builder = IoUring::builder();
        builder.setup_r_disabled().setup_cqsize(COMPLETIONS);
        builder
    };
    match builder().setup_coop_taskrun().setup_taskrun_flag().build(SUBMISSIONS) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder().build(SUBMISSIONS),
        other => other,
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

fn entry(file: Fd, operation: &mut Operation, bounce: Option<&mut Scratch>, iovecs: &[libc::iovec]) -> Entry {
    let (list, count): (*const libc::iovec, u32) = match &operation.memory {
        Memory::Guest(buffer) => (buffer.spans().as_ptr().cast(), buffer.spans().len() as u32),
        Memory::Pattern(_) => (iovecs.as_ptr(), iovecs.len() as u32),
        Memory::Scratch(_) | Memory::None => (std::ptr::null(), 0),
    };
    // One piece is the common case, and cheaper without a list.
    let whole = |scratch: &mut Scratch| {
        let bytes = scratch.bytes_mut();
        Some((bytes.as_mut_ptr(), bytes.len() as u32))
    };
    let single = match &mut operation.memory {
        _ if bounce.is_some() => bounce.and_then(whole),
        Memory::Guest(buffer) => match buffer.spans() {
            [span] => Some((span.address().as_ptr(), span.len() as u32)),
            _ => None,
        },
        Memory::Scratch(scratch) => whole(scratch),
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
