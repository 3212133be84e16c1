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
    let (mut work, operation) = Work::unmap(0, ranges.clone(), 512, 40, false).unwrap();
    assert_eq!(operation.kind, Kind::Punch { offset: 512, len: 1024 });
    let Next::Again(operation) = work.step(operation, Ok(0)) else { panic!() };
    assert_eq!(operation.kind, Kind::Punch { offset: 4096, len: 4096 });
    assert!(matches!(work.step(operation, Ok(0)), Next::Done(40)));
    let (mut work, operation) = Work::unmap(0, ranges, 512, 40, false).unwrap();
    assert!(matches!(work.step(operation, os(libc::EOPNOTSUPP)), Next::Done(40)));
    assert!(Work::unmap(0, Vec::new(), 512, 8, false).is_none());
}

#[test]
fn zeroes_are_written_where_the_file_system_knows_no_better() {
    let (mut work, operation) = Work::same(0, 512, 600 * 1024, true, Box::from([0; 512]), 512, false);
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

/// Where writes are on stable storage when they end, so is this.
#[test]
fn what_is_no_write_is_made_stable_where_writes_are() {
    let ranges = vec![Blocks { lba: 1, count: 2 }, Blocks { lba: 8, count: 8 }];
    let flushed = |mut work: Work, operation, result: io::Result<u32>, moved| {
        let Next::Again(flush) = work.step(operation, result) else { panic!() };
        assert_eq!((flush.kind, flush.file), (Kind::Flush, 3));
        assert!(matches!(work.step(flush, Ok(0)), Next::Done(done) if done == moved));
    };
    for result in [Ok(0), os(libc::EOPNOTSUPP)] {
        let (mut work, operation) = Work::unmap(3, ranges.clone(), 512, 40, true).unwrap();
        let Next::Again(operation) = work.step(operation, Ok(0)) else { panic!() };
        assert!(matches!(operation.kind, Kind::Punch { offset: 4096, .. }));
        flushed(work, operation, result, 40);
    }
    for unmap in [true, false] {
        let (work, operation) = Work::same(3, 512, 4096, unmap, Box::from([0; 512]), 512, true);
        flushed(work, operation, Ok(0), 512);
    }
    let (mut work, operation) = Work::same(3, 512, 4096, false, Box::from([1; 512]), 512, true);
    assert!(matches!(work.step(operation, Ok(4096)), Next::Done(512)), "these are writes");
    let (mut work, operation) = Work::unmap(3, ranges, 512, 40, true).unwrap();
    let Next::Again(operation) = work.step(operation, Ok(0)) else { panic!() };
    let Next::Again(flush) = work.step(operation, Ok(0)) else { panic!() };
    assert!(matches!(work.step(flush, os(libc::EIO)), Next::Failed(Sense::WRITE_ERROR, _)));
}

fn filled(bytes: &[u8]) -> GuestBuffer {
    let buffer = buffer(bytes.len() as u64);
    assert_eq!(buffer.write(bytes), bytes.len());
    buffer
}

/// Carries out a read on a disk that has these bytes, `most` at a time.
fn read(operation: &mut Operation, disk: &[u8], most: usize) -> u32 {
    let (Kind::Read { offset }, Memory::Scratch(scratch)) = (operation.kind, &mut operation.memory) else {
        panic!("{operation:?}")
    };
    let into = scratch.bytes_mut();
    let len = into.len().min(most);
    into[..len].copy_from_slice(&disk[offset as usize..][..len]);
    len as u32
}

#[test]
fn what_is_on_the_disk_is_compared_piece_by_piece() {
    let disk: Vec<u8> = (0..60_000u32).map(|n| (n % 251) as u8).collect();
    let run = |data: Option<&[u8]>, most| {
        let (mut work, mut operation) = Work::verify(2, 1024, 50_000, data.map(filled));
        loop {
            let count = read(&mut operation, &disk, most);
            match work.step(operation, Ok(count)) {
                Next::Again(next) => operation = next,
                other => return other,
            }
        }
    };
    for most in [PIECE as usize, 1000, 7] {
        assert!(matches!(run(None, most), Next::Done(0)));
        assert!(matches!(run(Some(&disk[1024..51_024]), most), Next::Done(50_000)));
        for at in [0, 6, 7, 511, 512, 49_999] {
            let mut other = disk[1024..51_024].to_vec();
            other[at] ^= 1;
            let Next::Refused(sense) = run(Some(&other), most) else { panic!() };
            assert_eq!(sense, Sense::miscompare(at as u32));
        }
    }
    let (mut work, operation) = Work::verify(2, 1024, 512, None);
    assert!(matches!(work.step(operation, Ok(0)), Next::Failed(Sense::READ_ERROR, _)));
}

#[test]
fn what_was_written_is_read_again() {
    let (mut work, operation) = Work::write_verify(0, 4096, true, filled(&[7; 1024]));
    assert_eq!(operation.kind, Kind::Write { offset: 4096, stable: true });
    let Next::Again(operation) = work.step(operation, Ok(1000)) else { panic!() };
    assert_eq!(operation.kind, Kind::Write { offset: 5096, stable: true });
    let Next::Again(mut operation) = work.step(operation, Ok(24)) else { panic!() };
    let mut disk = vec![7; 8192];
    disk[5000] = 8;
    let count = read(&mut operation, &disk, 8192);
    let Next::Refused(sense) = work.step(operation, Ok(count)) else { panic!() };
    assert_eq!(sense, Sense::miscompare(904));
}

#[test]
fn only_what_is_as_expected_is_written_and_only_once_compared() {
    let data = [[1; 512], [2; 512]].concat();
    let (mut work, mut operation) = Work::compare_and_write(0, 512, false, filled(&data), false);
    let count = read(&mut operation, &[1; 2048], 512);
    let Next::Begin(operation) = work.step(operation, Ok(count)) else { panic!() };
    assert_eq!(operation.kind, Kind::Write { offset: 512, stable: false });
    let Memory::Guest(written) = &operation.memory else { panic!() };
    let mut bytes = [0; 512];
    assert_eq!((written.len(), written.read(&mut bytes), bytes), (512, 512, [2; 512]));
    let Next::Again(operation) = work.step(operation, Ok(500)) else { panic!() };
    assert!(matches!(work.step(operation, Ok(12)), Next::Done(1024)));

    let (mut work, mut operation) = Work::compare_and_write(0, 512, false, filled(&data), false);
    let count = read(&mut operation, &[2; 2048], 512);
    let Next::Refused(sense) = work.step(operation, Ok(count)) else { panic!() };
    assert_eq!(sense, Sense::miscompare(0));

    let (mut work, operation) = Work::compare_and_write(0, 512, true, filled(&data), true);
    assert_eq!(operation.kind, Kind::Write { offset: 512, stable: true }, "a predecessor has compared");
    assert!(matches!(work.step(operation, Ok(512)), Next::Done(1024)));
}
