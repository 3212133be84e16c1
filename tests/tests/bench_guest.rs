//! The guest of `cargo xtask bench storage` reads what is on the disk, however it waits.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use bulkhead_tests::bench::{Work, guest::SoftGuest, measure, serve, wait::Wait};
use bulkhead_tests::disk::Disk;

const SIZE: u64 = 8 << 20;

/// A disk whose blocks begin with their numbers, as the benchmark's.
fn disk() -> Disk {
    let disk = Disk::new(SIZE).expect("a temporary file");
    let blocks = (0..SIZE / 512).flat_map(|n: u64| {
        let mut block = [0; 512];
        block[..8].copy_from_slice(&n.to_le_bytes());
        block
    });
    disk.file.write_all_at(&blocks.collect::<Vec<u8>>(), 0).expect("written");
    disk
}

#[test]
fn reads_end_with_and_without_interrupts() {
    let disk = disk();
    for wait in [Wait::Halt, Wait::Sleep, Wait::Poll] {
        let mut guest = SoftGuest::start(disk.path(), "", wait).unwrap();
        assert_eq!(guest.size(), SIZE);
        for (block, depth, random) in [(4096, 32, true), (131_072, 8, false), (4096, 1, true)] {
            let work = Work { block, depth, random, time: Duration::from_millis(50) };
            let measured = measure(&mut guest, &work, SIZE, 1).unwrap();
            assert!(measured.reads > 0 && measured.p50 <= measured.p99, "{wait:?} {work:?}: {measured:?}");
        }
    }
}

#[test]
fn orders_are_answered() {
    let disk = disk();
    let mut guest = SoftGuest::start(disk.path(), "", Wait::Halt).unwrap();
    let mut answers = Vec::new();
    serve(&mut guest, SIZE, &b"4096 4 random 20\n"[..], &mut answers).unwrap();
    let answers = String::from_utf8(answers).unwrap();
    let lines: Vec<&str> = answers.lines().collect();
    assert_eq!((lines[0], lines.len()), ("ready", 2));
    assert!(lines[1].starts_with("measured "), "{answers}");
}
