//! What is under way when a front end leaves. The disk is a pipe for a while: full, it holds a write up as long as a test likes, and
//! fails it when its reader goes.

use std::fs::{self, File};
use std::io::{PipeReader, Write, pipe};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use vhost_face::testing::{Bench, FrontEnd, GuestRing};
use vhost_face::wire::request;

use super::wire::{self, kind, status};
use super::*;

const HEADERS: u64 = 0x1000;
const STATUSES: u64 = 0x2000;
const DATA: u64 = 0x4000;
const RAM: u64 = 1 << 20;
const SIZE: u64 = 1 << 20;

struct Guest {
    bench: Bench<Blk>,
    ring: GuestRing,
    path: PathBuf,
    sent: u64,
    heads: Vec<u16>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Guest {
    fn new(options: &str) -> Guest {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bulkhead-blk-unit-{}-{number}", std::process::id()));
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let spec = format!("path={}{options}", path.display()).parse().unwrap();
        let blk = Blk::open("disk0", &[spec]).unwrap();
        let features = vhost_face::feature::RING | blk.features();
        let mut bench = Bench::new(blk, FrontEnd::new(RAM).with_features(features));
        let ring = bench.start(0);
        Guest { bench, ring, path, sent: 0, heads: Vec::new() }
    }

    /// Sends a request of one sector; where its status will be.
    fn send(&mut self, what: u32, sector: u64) -> u64 {
        let (header, status) = (HEADERS + self.sent * 16, STATUSES + self.sent);
        self.sent += 1;
        let bytes = [&what.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.bench.front_end.memory.write(header as usize, &bytes);
        self.bench.front_end.memory.write(status as usize, &[0xFF]);
        let head = match what {
            kind::OUT => self.ring.send(&[(header, 16), (DATA, 512)], &[(status, 1)]),
            kind::IN => self.ring.send(&[(header, 16)], &[(DATA, 512), (status, 1)]),
            _ => self.ring.send(&[(header, 16)], &[(status, 1)]),
        };
        self.heads.push(head);
        self.bench.kick(0);
        status
    }

    fn status(&self, at: u64) -> u8 {
        let mut byte = [0];
        self.bench.front_end.memory.read(at as usize, &mut byte);
        byte[0]
    }

    /// Puts another file into the disk's place; the one that was there.
    fn swap(&mut self, file: File) -> File {
        self.bench.runtime.with_face(|face, _| {
            let old = face.engine.uring.remove_file(0).unwrap();
            assert_eq!(face.engine.uring.add_file(file), 0);
            old
        })
    }

    /// Puts a pipe into the disk's place that takes nothing; the disk, and who does not read.
    fn clog(&mut self) -> (File, PipeReader) {
        let (reader, mut writer) = pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer.try_clone().unwrap()));
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
        while writer.write(&[0; 4096]).is_ok() {}
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
        (self.swap(file), reader)
    }
}

/// What waits is run by whoever it is given back to, once, and not behind the back of a front end that has left.
#[test]
fn what_a_front_end_has_left_behind_is_not_begun() {
    // One sector is nine minutes' worth: no machine is so busy that a second one's time comes.
    let mut guest = Guest::new(",bandwidth=1");
    let path = guest.path.clone();
    let on_disk = |sector: usize| fs::read(&path).unwrap()[sector * 512];
    guest.bench.front_end.memory.write(DATA as usize, &[1; 512]);
    let sent: Vec<u64> = (0..4).map(|sector| guest.send(kind::OUT, sector)).collect();
    let Guest { bench, ring, .. } = &mut guest;
    assert_eq!(bench.wait(ring, 1).len(), 1);
    guest.bench.turn(5);
    assert_eq!(guest.bench.runtime.face().engine.under_way, 1, "the others wait in the ring");
    for _ in 0..2 {
        guest.bench.hang_up();
        while !guest.bench.runtime.is_vacant() {
            guest.bench.turn(1);
        }
        assert_eq!([0, 1, 2, 3].map(on_disk), [1, 0, 0, 0]);
        guest.bench.reconnect();
    }
    // The end of a queue waits for no limit, so what was given back ends with it. Nothing else is begun.
    assert_eq!(guest.bench.stop(0), 2);
    assert_eq!((guest.ring.used().len(), guest.ring.in_flight()), (1, 2));
    assert_eq!([0, 1, 2, 3].map(on_disk), [1, 1, 0, 0]);
    assert_eq!([sent[1], sent[2]].map(|at| guest.status(at)), [status::OK, 0xFF]);
}

/// What a predecessor has left is run before a queue ends, however much it is, and waits for no limit.
#[test]
fn the_end_of_a_queue_waits_for_no_limit() {
    let mut guest = Guest::new(",bandwidth=1");
    let sent: Vec<u64> = (0..4).map(|sector| guest.send(kind::OUT, sector)).collect();
    let Guest { bench, ring, .. } = &mut guest;
    assert_eq!(bench.wait(ring, 1).len(), 1);
    guest.bench.hang_up();
    // As if the process had taken them all. What is in flight has its first byte set, the order in the last eight.
    let region = guest.bench.front_end.inflight().unwrap();
    for (order, head) in [6, 9].into_iter().zip([guest.heads[2], guest.heads[3]]) {
        region.long(16 + 16 * usize::from(head) + 8).store(order, Ordering::Relaxed);
        region.byte(16 + 16 * usize::from(head)).store(1, Ordering::Relaxed);
    }
    guest.bench.reconnect();
    assert_eq!(guest.bench.stop(0), 4);
    assert_eq!((guest.ring.used().len(), guest.ring.in_flight()), (3, 0));
    assert!(sent.iter().all(|at| guest.status(*at) == status::OK));
}

#[test]
fn writes_that_were_lost_are_not_forgotten_with_their_front_end() {
    for loses in [false, true] {
        let mut guest = Guest::new("");
        let through =
            [&(wire::WRITEBACK as u32).to_ne_bytes()[..], &1u32.to_ne_bytes(), &[0; 4], &[0]].concat();
        guest.bench.tell(request::SET_CONFIG, &through, &[]);
        guest.bench.turn(2);
        let (disk, reader) = guest.clog();
        let write = guest.send(kind::OUT, 0);
        guest.bench.turn(3);
        assert_eq!((guest.bench.runtime.face().engine.under_way, guest.status(write)), (1, 0xFF));
        guest.bench.hang_up();
        assert!(!guest.bench.runtime.is_vacant(), "it is under way");
        if loses {
            // It fails when nobody is there to be told.
            drop(reader);
        } else {
            std::io::copy(&mut std::io::Read::take(&reader, 64 << 10), &mut std::io::sink()).unwrap();
        }
        while !guest.bench.runtime.is_vacant() {
            guest.bench.turn(1);
        }
        // The disk itself is well, and has nothing to say of what was lost.
        drop(guest.swap(disk));
        guest.bench.reconnect();
        let flush = guest.send(kind::FLUSH, 0);
        let Guest { bench, ring, .. } = &mut guest;
        assert_eq!(bench.wait(ring, 2).len(), 2);
        let expected = if loses { status::IOERR } else { status::OK };
        assert_eq!([write, flush].map(|at| guest.status(at)), [expected; 2], "{loses}");
        // A guest that begins anew is told nothing of it.
        guest.bench.hang_up();
        guest.bench.front_end.forget_inflight();
        guest.bench.reconnect();
        let flush = guest.send(kind::FLUSH, 0);
        let Guest { bench, ring, .. } = &mut guest;
        assert_eq!(bench.wait(ring, 1).len(), 1);
        assert_eq!(guest.status(flush), status::OK);
    }
}
