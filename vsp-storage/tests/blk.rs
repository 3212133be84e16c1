//! The block device that a virtio guest sees, in the test's own process.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use vhost_face::testing::{Bench, FrontEnd, GuestRing};
use vhost_face::wire::request;
use vsp_storage::blk::Blk;
use vsp_storage::blk::wire::{self, kind, status};
use vsp_storage::controller::OpenError;

/// Where the guest has header, status and data.
const HEADER: u64 = 0x1000;
const STATUS: u64 = 0x2000;
const DATA: u64 = 0x4000;
const RAM: u64 = 1 << 20;
const SIZE: u64 = 1 << 20;

struct Disk(PathBuf);

impl Disk {
    fn new() -> Disk {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bulkhead-blk-{}-{number}", std::process::id()));
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        Disk(path)
    }

    fn open(&self, options: &str) -> Blk {
        Blk::open("disk0", &[format!("path={}{options}", self.0.display()).parse().unwrap()]).unwrap()
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        File::open(&self.0).unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

struct Guest {
    bench: Bench<Blk>,
    ring: GuestRing,
}

impl Guest {
    fn new(blk: Blk) -> Guest {
        let features = vhost_face::feature::RING | vhost_face::Face::features(&blk);
        let mut bench = Bench::new(blk, FrontEnd::new(RAM).with_features(features));
        let ring = bench.start(0);
        Guest { bench, ring }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.bench.front_end.memory.write(at as usize, bytes);
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.bench.front_end.memory.read(at as usize, &mut bytes);
        bytes
    }

    fn head(&self, what: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&what.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.write(HEADER, &header);
        self.write(STATUS, &[0xFF]);
    }

    /// Sends a request with these pieces of data, waits for its end: its status, and how much was written.
    fn ask(&mut self, what: u32, sector: u64, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> (u8, u32) {
        self.head(what, sector);
        let readable = [&[(HEADER, 16)], readable].concat();
        let writable = [writable, &[(STATUS, 1)]].concat();
        self.ring.send(&readable, &writable);
        self.bench.kick(0);
        let used = self.bench.wait(&mut self.ring, 1);
        (self.read(STATUS, 1)[0], used[0].1)
    }

    fn put(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.write(DATA, bytes);
        self.ask(kind::OUT, sector, &[(DATA, bytes.len() as u32)], &[]).0
    }

    fn range(&mut self, what: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        for (place, (sector, sectors, flags)) in ranges.iter().enumerate() {
            let bytes = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
            self.write(DATA + 16 * place as u64, &bytes);
        }
        self.ask(what, 0, &[(DATA, 16 * ranges.len() as u32)], &[]).0
    }
}

#[test]
fn data_goes_to_the_disk_and_comes_back() {
    let disk = Disk::new();
    let mut guest = Guest::new(disk.open(""));
    let bytes: Vec<u8> = (0..4096u32).map(|n| (n / 7) as u8).collect();
    assert_eq!(guest.put(8, &bytes), status::OK);
    assert_eq!(disk.bytes(4096, 4096), bytes);
    // In pieces of odd sizes, one of them empty.
    let pieces = [(DATA, 1), (DATA + 0x2000, 0), (DATA + 0x4000, 4000), (DATA + 0x8000, 95)];
    assert_eq!(guest.ask(kind::IN, 8, &[], &pieces), (status::OK, 4097));
    let back = [guest.read(DATA, 1), guest.read(DATA + 0x4000, 4000), guest.read(DATA + 0x8000, 95)].concat();
    assert_eq!(back, bytes);
    assert_eq!(guest.ask(kind::FLUSH, 0, &[], &[]), (status::OK, 1));
    assert_eq!(guest.ask(kind::IN, 0, &[], &[]).0, status::OK, "nothing of nothing");
}

#[test]
fn the_serial_number_is_told() {
    let disk = Disk::new();
    let mut guest = Guest::new(disk.open(",serial=ABC-1"));
    guest.write(DATA, &[7; 24]);
    assert_eq!(guest.ask(kind::GET_ID, 0, &[], &[(DATA, 20)]), (status::OK, 21));
    assert_eq!(guest.read(DATA, 24), [&b"ABC-1"[..], &[0; 15], &[7; 4]].concat());
    assert_eq!(guest.ask(kind::GET_ID, 0, &[], &[(DATA, 19)]).0, status::IOERR);
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let disk = Disk::new();
    let mut guest = Guest::new(disk.open(""));
    assert_eq!(guest.put(0, &[1; 65536]), status::OK);
    assert_eq!(guest.range(kind::DISCARD, &[(8, 8, 0), (32, 8, 0)]), status::OK);
    assert_eq!(disk.bytes(4096, 4096), [0; 4096]);
    assert_eq!(disk.bytes(16384, 4096), [0; 4096]);
    assert_eq!(disk.bytes(8192, 512), [1; 512]);
    for flags in [0, 1] {
        assert_eq!(guest.range(kind::WRITE_ZEROES, &[(50 + u64::from(flags), 1, flags)]), status::OK);
    }
    assert_eq!(disk.bytes(50 * 512, 1024), [0; 1024]);
    assert_eq!(disk.bytes(52 * 512, 512), [1; 512]);
    assert_eq!(guest.range(kind::DISCARD, &[(0, 8, 1)]), status::UNSUPP, "not to be unmapped");
    assert_eq!(guest.range(kind::WRITE_ZEROES, &[(0, 8, 2)]), status::UNSUPP, "a flag of the future");
    assert_eq!(guest.range(kind::WRITE_ZEROES, &[(0, 8, 0), (8, 8, 0)]), status::IOERR, "one at a time");
    assert_eq!(guest.range(kind::DISCARD, &[(2047, 2, 0)]), status::IOERR, "beyond the end");
    assert_eq!(guest.range(kind::DISCARD, &[]), status::OK);
}

#[test]
fn what_is_not_on_the_disk_is_refused() {
    let disk = Disk::new();
    let mut guest = Guest::new(disk.open(""));
    let last = SIZE / 512 - 1;
    assert_eq!(guest.ask(kind::IN, last, &[], &[(DATA, 512)]).0, status::OK);
    for (sector, len) in [(last, 1024), (last + 1, 512), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511)] {
        assert_eq!(guest.ask(kind::IN, sector, &[], &[(DATA, len)]), (status::IOERR, 1), "{sector} {len}");
        assert_eq!(guest.ask(kind::OUT, sector, &[(DATA, len)], &[]).0, status::IOERR);
    }
    assert_eq!(guest.ask(kind::IN, 0, &[], &[(RAM - 256, 512)]).0, status::IOERR, "not RAM");
    assert_eq!(guest.ask(kind::IN, 0, &[], &[(u64::MAX - 255, 512)]).0, status::IOERR);
    assert_eq!(guest.ask(77, 0, &[], &[]).0, status::UNSUPP);
}

#[test]
fn requests_without_a_header_or_a_status_end_all_the_same() {
    let disk = Disk::new();
    let mut guest = Guest::new(disk.open(""));
    guest.head(kind::IN, 0);
    for (readable, writable) in [
        (vec![(HEADER, 15)], vec![(STATUS, 1)]),
        (vec![], vec![(STATUS, 1)]),
        (vec![(HEADER, 16)], vec![]),
        (vec![(HEADER, 16)], vec![(STATUS, 0)]),
        (vec![(HEADER, 16)], vec![(RAM, 1)]),
        (vec![(RAM, 16)], vec![(STATUS, 1)]),
    ] {
        guest.ring.send(&readable, &writable);
        guest.bench.kick(0);
        assert_eq!(guest.bench.wait(&mut guest.ring, 1)[0].1, 0, "{readable:?} {writable:?}");
    }
    assert_eq!(guest.read(STATUS, 1), [0xFF]);
}

#[test]
fn a_disk_that_is_only_read_is_not_written() {
    let disk = Disk::new();
    let mut guest = Guest::new(disk.open(",ro"));
    assert_eq!(guest.put(0, &[1; 512]), status::IOERR);
    assert_eq!(guest.range(kind::WRITE_ZEROES, &[(0, 1, 0)]), status::IOERR);
    assert_eq!(guest.range(kind::DISCARD, &[(0, 1, 0)]), status::UNSUPP);
    assert_eq!(guest.ask(kind::IN, 0, &[], &[(DATA, 512)]).0, status::OK);
    assert_eq!(disk.bytes(0, 512), [0; 512]);
}

#[test]
fn large_blocks_are_written_whole() {
    let disk = Disk::new();
    let mut guest = Guest::new(disk.open(",block_size=4096"));
    assert_eq!(guest.put(8, &[1; 4096]), status::OK);
    assert_eq!(guest.put(8, &[1; 512]), status::IOERR);
    assert_eq!(guest.put(1, &[1; 4096]), status::IOERR);
}

#[test]
fn the_write_cache_stays_off_for_a_successor() {
    let disk = Disk::new();
    let mut guest = Guest::new(disk.open(""));
    let write_back = |bench: &mut Bench<Blk>| {
        let payload = [&32u32.to_ne_bytes()[..], &1u32.to_ne_bytes(), &[0; 4], &[0]].concat();
        bench.tell(request::GET_CONFIG, &payload, &[]);
        bench.hear().payload[12]
    };
    assert_eq!(write_back(&mut guest.bench), 1);
    let off = [&(wire::WRITEBACK as u32).to_ne_bytes()[..], &1u32.to_ne_bytes(), &[0; 4], &[0]].concat();
    guest.bench.tell(request::SET_CONFIG, &off, &[]);
    assert_eq!(write_back(&mut guest.bench), 0);
    // The next process cannot have the disk before this one has let go of it; its descriptors live as long as this test does.
    let Guest { bench, ring } = guest;
    let front_end = bench.front_end.share();
    drop(bench);
    let mut bench = Bench::take_over(disk.open(""), front_end);
    assert_eq!(write_back(&mut bench), 0);
    let mut guest = Guest { bench, ring };
    assert_eq!(guest.put(0, &[3; 512]), status::OK);
}

#[test]
fn one_process_has_one_disk() {
    assert!(matches!(Blk::open("disk0", &[]), Err(OpenError::OneDisk(0))));
}

#[test]
fn limits_hold_requests_back_and_the_end_of_a_queue_does_not_wait_for_them() {
    let disk = Disk::new();
    let mut guest = Guest::new(disk.open(",iops=10"));
    guest.head(kind::IN, 0);
    for n in 0..5 {
        guest.ring.send(&[(HEADER, 16)], &[(DATA + 512 * n, 512), (STATUS, 1)]);
    }
    guest.bench.kick(0);
    guest.bench.turn(10);
    let first = guest.ring.used().len();
    assert!((1..5).contains(&first), "{first}");
    let begin = std::time::Instant::now();
    // One waits in the process, the others in the ring, where they stay.
    let end = guest.bench.stop(0) as usize;
    assert!(begin.elapsed() < std::time::Duration::from_millis(150));
    assert_eq!(first + guest.ring.used().len(), end);
    assert!(end < 5, "{end}");
    guest.bench.restart(0);
    assert_eq!(guest.bench.wait(&mut guest.ring, 5 - end).len(), 5 - end);
}
