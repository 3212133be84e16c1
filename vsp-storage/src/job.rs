//! A command that needs the disk, from its first operation to its outcome. No I/O here: an operation ended,
//! what is next?

use std::io;
use std::vec::IntoIter;

use vsp::GuestBuffer;

use crate::scsi::unmap::Blocks;
use crate::scsi::{Repeat, Sense};
use crate::uring::{Kind, Memory, Operation, Pattern, Scratch};

/// How often an operation that the kernel had no room or time for is tried again.
const MAX_RETRIES: u8 = 16;
/// Bytes of a WRITE SAME pattern in memory. Bounds what a guest can make us hold: one a request in flight.
const PATTERN: usize = 16 * 1024;
/// Bytes of a WRITE SAME that are written at a time.
const STRIDE: u64 = 256 * 1024;

/// Bytes of the disk that are read and compared at a time. A unit has one such piece.
const PIECE: u64 = 64 * 1024;
/// Bytes of the guest's that are compared at a time, on the stack.
const COMPARED: usize = 512;

/// A command in flight.
#[derive(Debug)]
pub(crate) struct Job<C> {
    /// Whose it is, and how he is answered.
    pub context: C,
    /// Index of the unit.
    pub unit: usize,
    /// Whether its outcome has to be recorded.
    pub repeat: Repeat,
    /// Whether nothing else of its unit may run beside it.
    pub exclusive: bool,
    /// What it does.
    pub work: Work,
}

/// What a job does.
#[derive(Debug)]
pub(crate) struct Work {
    retries: u8,
    task: Task,
}

#[derive(Debug)]
enum Task {
    /// READ or WRITE: so many bytes have been moved.
    Transfer { moved: u32 },
    /// SYNCHRONIZE CACHE.
    Flush,
    /// UNMAP: the ranges still to do.
    Unmap { rest: IntoIter<Blocks>, block_size: u64, list: u32, stable: bool },
    /// VERIFY.
    Verify(Box<Check>),
    /// WRITE AND VERIFY: so many bytes have been written; what is to be checked then.
    WriteVerify { moved: u32, check: Box<Check> },
    /// COMPARE AND WRITE: what has to be on the disk, and what comes there then.
    Compare { check: Box<Check>, write: Option<GuestBuffer>, stable: bool },
    /// WRITE SAME.
    Same { start: u64, end: u64, block: Box<[u8]>, moved: u32, stable: bool },
}

/// Blocks to be read, and perhaps to be compared with data of the guest's.
#[derive(Debug)]
struct Check {
    start: u64,
    at: u64,
    end: u64,
    /// What has to be there from `at` on; `None`: whatever can be read.
    data: Option<GuestBuffer>,
    /// Bytes of data that the whole command moves.
    moved: u32,
}

impl Check {
    fn new(offset: u64, len: u64, data: Option<GuestBuffer>, moved: u32) -> Box<Check> {
        Box::new(Check { start: offset, at: offset, end: offset + len, data, moved })
    }

    fn left(&self) -> u64 {
        self.end - self.at
    }

    fn first(&self, file: u32) -> Operation {
        self.read(file, Scratch::new(self.left().min(PIECE) as usize))
    }

    fn read(&self, file: u32, mut scratch: Scratch) -> Operation {
        scratch.resize(self.left().min(PIECE) as usize);
        Operation { kind: Kind::Read { offset: self.at }, file, memory: Memory::Scratch(scratch) }
    }

    /// This is what the disk has at `at`. `Err`: where it differs from what it should have, from the beginning.
    fn compare(&mut self, found: &[u8]) -> Result<(), u32> {
        let Some(data) = &mut self.data else {
            self.at += found.len() as u64;
            return Ok(());
        };
        for found in found.chunks(COMPARED) {
            let mut wanted = [0; COMPARED];
            let wanted = &mut wanted[..found.len()];
            data.read(wanted);
            data.advance(found.len());
            if let Some(differs) = wanted.iter().zip(found).position(|(wanted, found)| wanted != found) {
                return Err((self.at - self.start) as u32 + differs as u32);
            }
            self.at += found.len() as u64;
        }
        Ok(())
    }
}

/// What comes after an operation.
#[derive(Debug)]
pub(crate) enum Next {
    /// Another one.
    Again(Operation),
    /// Another one, with which the command begins to have its effect: what it depended on must not be asked again.
    Begin(Operation),
    /// Success; so many bytes of the guest's data were moved.
    Done(u32),
    /// Failure, and nobody's fault but the guest's.
    Refused(Sense),
    /// Failure, and the host's error.
    Failed(Sense, io::Error),
}

impl Work {
    fn new(task: Task) -> Work {
        Work { retries: 0, task }
    }

    /// Reads `buffer` from the disk.
    pub fn read(file: u32, offset: u64, buffer: GuestBuffer) -> (Work, Operation) {
        let operation = Operation { kind: Kind::Read { offset }, file, memory: Memory::Guest(buffer) };
        (Work::new(Task::Transfer { moved: 0 }), operation)
    }

    /// Writes `buffer` to the disk.
    pub fn write(file: u32, offset: u64, stable: bool, buffer: GuestBuffer) -> (Work, Operation) {
        let operation =
            Operation { kind: Kind::Write { offset, stable }, file, memory: Memory::Guest(buffer) };
        (Work::new(Task::Transfer { moved: 0 }), operation)
    }

    /// Reads what is on the disk and compares it with `data`, if there is any.
    pub fn verify(file: u32, offset: u64, len: u64, data: Option<GuestBuffer>) -> (Work, Operation) {
        let moved = data.as_ref().map_or(0, |data| data.len() as u32);
        let check = Check::new(offset, len, data, moved);
        let operation = check.first(file);
        (Work::new(Task::Verify(check)), operation)
    }

    /// Writes `buffer` to the disk, on stable storage, reads what is there then, and compares it if that is wanted.
    pub fn write_verify(file: u32, offset: u64, compare: bool, buffer: GuestBuffer) -> (Work, Operation) {
        let len = buffer.len();
        let data = compare.then(|| buffer.clone());
        let check = Check::new(offset, len as u64, data, len as u32);
        let kind = Kind::Write { offset, stable: true };
        let operation = Operation { kind, file, memory: Memory::Guest(buffer) };
        (Work::new(Task::WriteVerify { moved: 0, check }), operation)
    }

    /// Compares the first half of `buffer` with the disk, and writes the second half there if it is the same. `begun`: it was
    /// the same, and a predecessor has begun to write.
    pub fn compare_and_write(
        file: u32,
        offset: u64,
        stable: bool,
        mut buffer: GuestBuffer,
        begun: bool,
    ) -> (Work, Operation) {
        let (moved, len) = (buffer.len() as u32, buffer.len() / 2);
        let mut write = buffer.clone();
        write.advance(len);
        buffer.truncate(len);
        let check = Check::new(offset, len as u64, Some(buffer), moved);
        let (operation, write) = if begun {
            let kind = Kind::Write { offset, stable };
            (Operation { kind, file, memory: Memory::Guest(write) }, None)
        } else {
            (check.first(file), Some(write))
        };
        (Work::new(Task::Compare { check, write, stable }), operation)
    }

    /// Flushes the disk.
    pub fn flush(file: u32) -> (Work, Operation) {
        (Work::new(Task::Flush), Operation { kind: Kind::Flush, file, memory: Memory::None })
    }

    /// Deallocates ranges; `None` if there are none. `list` is the length of the guest's list in bytes. `stable`: that they
    /// are deallocated is on stable storage in the end.
    pub fn unmap(
        file: u32,
        ranges: Vec<Blocks>,
        block_size: u32,
        list: u32,
        stable: bool,
    ) -> Option<(Work, Operation)> {
        let block_size = u64::from(block_size);
        let mut rest = ranges.into_iter();
        let operation = punch(file, rest.next()?, block_size);
        Some((Work::new(Task::Unmap { rest, block_size, list, stable }), operation))
    }

    /// Writes `block` over and over to `offset..offset + len`; `unmap`: zeroes may be deallocated. `moved`
    /// are the bytes of data that came from the guest. `stable`: no write to this file ends before it is on stable
    /// storage, and what is done instead of writes is not to end before either.
    pub fn same(
        file: u32,
        offset: u64,
        len: u64,
        unmap: bool,
        block: Box<[u8]>,
        moved: u32,
        stable: bool,
    ) -> (Work, Operation) {
        let zeroes = block.iter().all(|byte| *byte == 0);
        let end = offset + len;
        let operation = match (zeroes, unmap) {
            (true, true) => Operation { kind: Kind::Punch { offset, len }, file, memory: Memory::None },
            (true, false) => Operation { kind: Kind::Zero { offset, len }, file, memory: Memory::None },
            (false, _) => stride(file, offset, offset, end, repeated(&block)),
        };
        (Work::new(Task::Same { start: offset, end, block, moved, stable }), operation)
    }

    /// An operation of this work has ended.
    pub fn step(&mut self, operation: Operation, result: io::Result<u32>) -> Next {
        let writing = !matches!(operation.kind, Kind::Read { .. });
        match result {
            Ok(count) => self.went_on(operation, count),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) if self.retries < MAX_RETRIES => {
                    self.retries += 1;
                    Next::Again(operation)
                }
                // A file system that cannot punch holes.
                Some(libc::EOPNOTSUPP | libc::ENOSYS) => self.not_supported(operation, error),
                _ => Next::Failed(Sense::from_io(&error, writing), error),
            },
        }
    }

    fn went_on(&mut self, operation: Operation, count: u32) -> Next {
        let Operation { kind, file, memory } = operation;
        match (&mut self.task, kind, memory) {
            // The file has become shorter than the disk we promised, or takes no more.
            (_, Kind::Read { .. }, _) | (_, Kind::Write { .. }, Memory::Guest(_)) if count == 0 => {
                let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                Next::Failed(Sense::from_io(&error, matches!(kind, Kind::Write { .. })), error)
            }
            (Task::Transfer { moved }, Kind::Read { .. } | Kind::Write { .. }, Memory::Guest(buffer)) => {
                *moved += count;
                match rest(kind, file, buffer, count) {
                    Some(operation) => Next::Again(operation),
                    None => Next::Done(*moved),
                }
            }
            (Task::WriteVerify { moved, check }, Kind::Write { .. }, Memory::Guest(buffer)) => {
                *moved += count;
                Next::Again(rest(kind, file, buffer, count).unwrap_or_else(|| check.first(file)))
            }
            (Task::Compare { check, .. }, Kind::Write { .. }, Memory::Guest(buffer)) => {
                match rest(kind, file, buffer, count) {
                    Some(operation) => Next::Again(operation),
                    None => Next::Done(check.moved),
                }
            }
            (
                Task::Verify(check) | Task::WriteVerify { check, .. } | Task::Compare { check, .. },
                Kind::Read { .. },
                Memory::Scratch(scratch),
            ) => {
                let found = scratch.bytes().get(..count as usize).unwrap_or(scratch.bytes());
                if let Err(at) = check.compare(found) {
                    return Next::Refused(Sense::miscompare(at));
                }
                if check.left() > 0 {
                    return Next::Again(check.read(file, scratch));
                }
                let (offset, moved) = (check.start, check.moved);
                match &mut self.task {
                    Task::Compare { write, stable, .. } => match write.take() {
                        Some(buffer) => {
                            let kind = Kind::Write { offset, stable: *stable };
                            Next::Begin(Operation { kind, file, memory: Memory::Guest(buffer) })
                        }
                        None => Next::Done(moved),
                    },
                    _ => Next::Done(moved),
                }
            }
            (Task::Unmap { rest, block_size, list, stable }, Kind::Punch { .. }, _) => match rest.next() {
                Some(range) => Next::Again(punch(file, range, *block_size)),
                None => ended(file, *stable, *list),
            },
            (Task::Unmap { list, .. }, ..) => Next::Done(*list),
            (Task::Same { start, end, moved, .. }, Kind::Write { offset, .. }, Memory::Pattern(pattern)) => {
                let at = offset + u64::from(count);
                match count {
                    0 => {
                        let error = io::Error::from(io::ErrorKind::WriteZero);
                        Next::Failed(Sense::WRITE_ERROR, error)
                    }
                    _ if at < *end => Next::Again(stride(file, *start, at, *end, pattern)),
                    _ => Next::Done(*moved),
                }
            }
            (Task::Same { moved, stable, .. }, Kind::Punch { .. } | Kind::Zero { .. }, _) => {
                ended(file, *stable, *moved)
            }
            (Task::Same { moved, .. }, ..) => Next::Done(*moved),
            _ => Next::Done(0),
        }
    }

    fn not_supported(&mut self, operation: Operation, error: io::Error) -> Next {
        let Operation { kind, file, .. } = operation;
        match (&mut self.task, kind) {
            // UNMAP is a hint: what stays allocated keeps its content.
            (Task::Unmap { list, stable, .. }, Kind::Punch { .. }) => ended(file, *stable, *list),
            (Task::Same { .. }, Kind::Punch { offset, len }) => {
                Next::Again(Operation { kind: Kind::Zero { offset, len }, file, memory: Memory::None })
            }
            (Task::Same { start, end, block, .. }, Kind::Zero { .. }) => {
                Next::Again(stride(file, *start, *start, *end, repeated(block)))
            }
            _ => Next::Failed(Sense::from_io(&error, true), error),
        }
    }
}

/// What is left to be moved after `count` bytes.
fn rest(kind: Kind, file: u32, mut buffer: GuestBuffer, count: u32) -> Option<Operation> {
    buffer.advance(count as usize);
    if buffer.is_empty() {
        return None;
    }
    let kind = match kind {
        Kind::Write { offset, stable } => Kind::Write { offset: offset + u64::from(count), stable },
        Kind::Read { offset } => Kind::Read { offset: offset + u64::from(count) },
        other => other,
    };
    Some(Operation { kind, file, memory: Memory::Guest(buffer) })
}

/// All has been done by the file system. That is not on stable storage yet where writes are when they end: `O_DSYNC` is
/// about writes alone (ext4 frees blocks without looking at it).
fn ended(file: u32, stable: bool, moved: u32) -> Next {
    if stable {
        Next::Again(Operation { kind: Kind::Flush, file, memory: Memory::None })
    } else {
        Next::Done(moved)
    }
}

fn punch(file: u32, range: Blocks, block_size: u64) -> Operation {
    let kind = Kind::Punch { offset: range.lba * block_size, len: u64::from(range.count) * block_size };
    Operation { kind, file, memory: Memory::None }
}

/// One block, repeated so that a write needs few pieces.
fn repeated(block: &[u8]) -> Pattern {
    Pattern::new(block.repeat((PATTERN / block.len()).max(1)).into_boxed_slice())
}

/// The next piece of a WRITE SAME that began at `start`.
fn stride(file: u32, start: u64, at: u64, end: u64, mut pattern: Pattern) -> Operation {
    pattern.select(at - start, (end - at).min(STRIDE) as usize);
    Operation { kind: Kind::Write { offset: at, stable: false }, file, memory: Memory::Pattern(pattern) }
}

#[cfg(test)]
mod tests;
