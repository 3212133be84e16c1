//! A command that needs the disk, from its first operation to its outcome. No I/O here: an operation ended,
//! what is next?

use std::io;
use std::vec::IntoIter;

use vsp::{GuestBuffer, Request};

use crate::scsi::unmap::Blocks;
use crate::scsi::{Repeat, Sense};
use crate::uring::{Kind, Memory, Operation, Pattern};
use crate::wire::Srb;

/// How often an operation that the kernel had no room or time for is tried again.
const MAX_RETRIES: u8 = 16;
/// Bytes of a WRITE SAME pattern in memory. Bounds what a guest can make us hold: one a request in flight.
const PATTERN: usize = 16 * 1024;
/// Bytes of a WRITE SAME that are written at a time.
const STRIDE: u64 = 256 * 1024;

/// A command in flight.
#[derive(Debug)]
pub(crate) struct Job {
    /// What the guest waits for.
    pub request: Request,
    /// Its command, for the answer.
    pub srb: Srb,
    /// Index of the unit.
    pub unit: usize,
    /// How many resets had been asked for when it began.
    pub epoch: u64,
    /// Whether its outcome has to be recorded.
    pub repeat: Repeat,
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
    Unmap { rest: IntoIter<Blocks>, block_size: u64, list: u32 },
    /// WRITE SAME.
    Same { start: u64, end: u64, block: Box<[u8]>, moved: u32 },
}

/// What comes after an operation.
#[derive(Debug)]
pub(crate) enum Next {
    /// Another one.
    Again(Operation),
    /// Success; so many bytes of the guest's data were moved.
    Done(u32),
    /// Failure, and the host's error if there was one.
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

    /// Flushes the disk.
    pub fn flush(file: u32) -> (Work, Operation) {
        (Work::new(Task::Flush), Operation { kind: Kind::Flush, file, memory: Memory::None })
    }

    /// Deallocates ranges; `None` if there are none. `list` is the length of the guest's list in bytes.
    pub fn unmap(file: u32, ranges: Vec<Blocks>, block_size: u32, list: u32) -> Option<(Work, Operation)> {
        let block_size = u64::from(block_size);
        let mut rest = ranges.into_iter();
        let operation = punch(file, rest.next()?, block_size);
        Some((Work::new(Task::Unmap { rest, block_size, list }), operation))
    }

    /// Writes `block` over and over to `offset..offset + len`; `unmap`: zeroes may be deallocated. `moved`
    /// are the bytes of data that came from the guest.
    pub fn same(
        file: u32,
        offset: u64,
        len: u64,
        unmap: bool,
        block: Box<[u8]>,
        moved: u32,
    ) -> (Work, Operation) {
        let zeroes = block.iter().all(|byte| *byte == 0);
        let end = offset + len;
        let operation = match (zeroes, unmap) {
            (true, true) => Operation { kind: Kind::Punch { offset, len }, file, memory: Memory::None },
            (true, false) => Operation { kind: Kind::Zero { offset, len }, file, memory: Memory::None },
            (false, _) => stride(file, offset, offset, end, repeated(&block)),
        };
        (Work::new(Task::Same { start: offset, end, block, moved }), operation)
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
            (Task::Transfer { moved }, Kind::Read { .. } | Kind::Write { .. }, Memory::Guest(mut buffer)) => {
                if count == 0 {
                    // The file has become shorter than the disk we promised, or takes no more.
                    let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                    let writing = matches!(kind, Kind::Write { .. });
                    return Next::Failed(Sense::from_io(&error, writing), error);
                }
                *moved += count;
                buffer.advance(count as usize);
                if buffer.is_empty() {
                    return Next::Done(*moved);
                }
                let kind = match kind {
                    Kind::Write { offset, stable } => {
                        Kind::Write { offset: offset + u64::from(count), stable }
                    }
                    Kind::Read { offset } => Kind::Read { offset: offset + u64::from(count) },
                    other => other,
                };
                Next::Again(Operation { kind, file, memory: Memory::Guest(buffer) })
            }
            (Task::Unmap { rest, block_size, list }, ..) => match rest.next() {
                Some(range) => Next::Again(punch(file, range, *block_size)),
                None => Next::Done(*list),
            },
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
            (Task::Same { moved, .. }, ..) => Next::Done(*moved),
            _ => Next::Done(0),
        }
    }

    fn not_supported(&mut self, operation: Operation, error: io::Error) -> Next {
        let Operation { kind, file, .. } = operation;
        match (&mut self.task, kind) {
            // UNMAP is a hint: what stays allocated keeps its content.
            (Task::Unmap { list, .. }, _) => Next::Done(*list),
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
mod tests {
    use std::sync::Arc;

    use vsp::GuestRam;
    use vsp::ipc::message::RamRegion;
    use vsp::ipc::shm::SharedMemory;

    use super::*;

    fn buffer(len: u64) -> GuestBuffer {
        let memory = SharedMemory::create("ram", 1 << 16).unwrap();
        let ram = GuestRam::new(&memory, &[RamRegion { gpa: 0, len: 1 << 16, offset: 0 }]).unwrap();
        GuestBuffer::new(&Arc::new(ram), [(0, len)]).unwrap()
    }

    fn os(code: i32) -> io::Result<u32> {
        Err(io::Error::from_raw_os_error(code))
    }

    #[test]
    fn short_transfers_go_on_where_they_stopped() {
        let (mut work, operation) = Work::read(3, 1000, buffer(4096));
        let Next::Again(operation) = work.step(operation, Ok(100)) else { panic!() };
        assert_eq!((operation.kind, operation.file), (Kind::Read { offset: 1100 }, 3));
        let Next::Again(operation) = work.step(operation, os(libc::EINTR)) else { panic!() };
        assert_eq!(operation.kind, Kind::Read { offset: 1100 });
        assert!(matches!(work.step(operation, Ok(3996)), Next::Done(4096)));
    }

    #[test]
    fn the_end_of_the_file_is_an_error_not_a_loop() {
        let (mut work, operation) = Work::read(0, 0, buffer(512));
        assert!(matches!(work.step(operation, Ok(0)), Next::Failed(Sense::READ_ERROR, _)));
        let (mut work, operation) = Work::write(0, 0, false, buffer(512));
        assert!(matches!(work.step(operation, os(libc::ENOSPC)), Next::Failed(Sense::NO_SPACE, _)));
    }

    #[test]
    fn patience_ends() {
        let (mut work, mut operation) = Work::flush(0);
        for _ in 0..MAX_RETRIES {
            let Next::Again(same) = work.step(operation, os(libc::EAGAIN)) else { panic!() };
            operation = same;
        }
        assert!(matches!(work.step(operation, os(libc::EAGAIN)), Next::Failed(Sense::TRY_AGAIN, _)));
    }

    #[test]
    fn ranges_are_punched_one_by_one() {
        let ranges = vec![Blocks { lba: 1, count: 2 }, Blocks { lba: 8, count: 8 }];
        let (mut work, operation) = Work::unmap(0, ranges.clone(), 512, 40).unwrap();
        assert_eq!(operation.kind, Kind::Punch { offset: 512, len: 1024 });
        let Next::Again(operation) = work.step(operation, Ok(0)) else { panic!() };
        assert_eq!(operation.kind, Kind::Punch { offset: 4096, len: 4096 });
        assert!(matches!(work.step(operation, Ok(0)), Next::Done(40)));
        let (mut work, operation) = Work::unmap(0, ranges, 512, 40).unwrap();
        assert!(matches!(work.step(operation, os(libc::EOPNOTSUPP)), Next::Done(40)));
        assert!(Work::unmap(0, Vec::new(), 512, 8).is_none());
    }

    #[test]
    fn zeroes_are_written_where_the_file_system_knows_no_better() {
        let (mut work, operation) = Work::same(0, 512, 600 * 1024, true, Box::from([0; 512]), 512);
        assert!(matches!(operation.kind, Kind::Punch { .. }));
        let Next::Again(operation) = work.step(operation, os(libc::EOPNOTSUPP)) else { panic!() };
        assert!(matches!(operation.kind, Kind::Zero { offset: 512, len: 614_400 }));
        let Next::Again(mut operation) = work.step(operation, os(libc::EOPNOTSUPP)) else { panic!() };
        let mut at = 512;
        for count in [STRIDE, 100, STRIDE] {
            assert_eq!(operation.kind, Kind::Write { offset: at, stable: false });
            let Next::Again(next) = work.step(operation, Ok(count as u32)) else { panic!() };
            operation = next;
            at += count;
        }
        let rest = 512 + 600 * 1024 - at;
        assert!(matches!(work.step(operation, Ok(rest as u32)), Next::Done(512)));
    }
}
