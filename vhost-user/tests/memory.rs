//! Memory that comes and goes while queues run: what is about a piece that is away waits for it, and ends with its status.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::os::fd::{AsFd, OwnedFd};

use common::{Holder, RAM, Seen, bench, place, send};
use ipc::shm::SharedMemory;
use vhost_face::testing::{Bench, GuestRing, USER};
use vhost_face::wire::request;

/// Where the piece that comes and goes is, and how long it is.
const PIECE: u64 = 1 << 20;
const LEN: u64 = 1 << 16;

struct Piece(OwnedFd);

impl Piece {
    fn new() -> Piece {
        Piece(SharedMemory::create("piece", LEN).unwrap().into())
    }

    fn region() -> Vec<u8> {
        let longs = [0, PIECE, LEN, USER + PIECE, 0];
        longs.iter().flat_map(|long: &u64| long.to_ne_bytes()).collect()
    }

    fn comes(&self, bench: &mut Bench<Holder>) {
        bench.tell(request::ADD_MEM_REG, &Piece::region(), &[self.0.as_fd()]);
        bench.turn(3);
    }

    fn goes(bench: &mut Bench<Holder>) {
        bench.tell(request::REM_MEM_REG, &Piece::region(), &[]);
        bench.turn(3);
    }
}

/// One with an id, whose answer goes there.
fn send_to(ring: &mut GuestRing, bench: &Bench<Holder>, id: u64, answer: u64) {
    bench.front_end.memory.write(place(id) as usize, &id.to_le_bytes());
    ring.send(&[(place(id), 8)], &[(answer, 8)]);
    bench.kick(0);
}

#[test]
fn what_lies_in_a_piece_that_is_away_waits_for_it() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::eager(&seen));
    let piece = Piece::new();
    piece.comes(&mut bench);
    for id in [1, 3, 5] {
        Piece::goes(&mut bench);
        // One that has nothing to do with it, before and behind.
        send(&mut ring, &bench.front_end, id);
        send_to(&mut ring, &bench, id + 1, PIECE + 8);
        send(&mut ring, &bench.front_end, id + 10);
        bench.kick(0);
        assert_eq!(bench.wait(&mut ring, 1).len(), 1);
        bench.turn(5);
        assert_eq!((ring.used().len(), seen.borrow().last()), (0, Some(&id)), "nothing ends unsaid");
        assert!(bench.runtime.is_connected());
        piece.comes(&mut bench);
        assert_eq!(bench.wait(&mut ring, 2).len(), 2);
        assert_eq!(seen.borrow()[seen.borrow().len() - 3..], [id, id + 1, id + 10]);
    }
    send_to(&mut ring, &bench, 7, PIECE);
    assert_eq!(bench.wait(&mut ring, 1).len(), 1);
}

#[test]
fn an_indirect_table_in_a_piece_that_is_away_is_waited_for() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::eager(&seen));
    let piece = Piece::new();
    piece.comes(&mut bench);
    let mapped =
        ipc::shm::Mapping::new(&SharedMemory::from_fd(piece.0.try_clone().unwrap(), LEN).unwrap(), 0, LEN)
            .unwrap();
    // The table is made where the ring can write, and moved.
    bench.front_end.memory.write(place(7) as usize, &7u64.to_le_bytes());
    Piece::goes(&mut bench);
    let head = ring.send_indirect(0x2000, &[(place(7), 8)], &[(0x3000, 8)]);
    let mut table = [0; 32];
    bench.front_end.memory.read(0x2000, &mut table);
    mapped.write(0x100, &table);
    ring.write_descriptor(head, PIECE + 0x100, 32, 4, 0);
    bench.kick(0);
    bench.turn(5);
    assert!(seen.borrow().is_empty());
    piece.comes(&mut bench);
    assert_eq!(bench.wait(&mut ring, 1), [(head, 8)]);
    assert_eq!(*seen.borrow(), [7]);
}

#[test]
fn a_table_that_leaves_something_out_is_waited_for_too() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::eager(&seen));
    let (piece, all) = (Piece::new(), bench.front_end.share());
    let file = all.file();
    let table = |pieces: &[[u64; 4]]| {
        let longs = [&[pieces.len() as u64][..], pieces.as_flattened()].concat();
        longs.iter().flat_map(|long| long.to_ne_bytes()).collect::<Vec<u8>>()
    };
    let (low, high) = ([0, RAM, USER, 0], [PIECE, LEN, USER + PIECE, 0]);
    let whole = |bench: &mut Bench<Holder>| {
        bench.tell(request::SET_MEM_TABLE, &table(&[low, high]), &[file, piece.0.as_fd()]);
        bench.turn(3);
    };
    whole(&mut bench);
    bench.tell(request::SET_MEM_TABLE, &table(&[low]), &[file]);
    bench.turn(3);
    send_to(&mut ring, &bench, 1, PIECE);
    bench.turn(5);
    assert!(seen.borrow().is_empty() && ring.used().is_empty());
    whole(&mut bench);
    assert_eq!(bench.wait(&mut ring, 1).len(), 1);
}

#[test]
fn a_queue_whose_request_waits_for_memory_can_be_stopped() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::patient(&seen));
    let piece = Piece::new();
    piece.comes(&mut bench);
    send_to(&mut ring, &bench, 1, PIECE);
    bench.turn(3);
    // It was taken, its process dies, and its successor is not given the piece while the queue runs.
    let mut bench = Bench::new(Holder::eager(&seen), bench.kill());
    piece.comes(&mut bench);
    bench.restart(0);
    bench.tell(request::REM_MEM_REG, &Piece::region(), &[]);
    bench.turn(5);
    assert_eq!(*seen.borrow(), [1]);
    // The front end is not heard while it waits for a queue's end, so memory cannot come.
    assert_eq!(bench.stop(0), 1);
    assert!(ring.used().is_empty(), "it is in flight, and is known to be");
    piece.comes(&mut bench);
    bench.restart(0);
    assert_eq!(bench.wait(&mut ring, 1).len(), 1);
    assert_eq!(*seen.borrow(), [1, 1]);
}
