//! What a guest's driver may do, and what stops its queue.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::{Holder, RAM, Seen, bench, place, send};
use vhost_face::feature;
use vhost_face::testing::{Bench, FrontEnd};

/// Nothing is taken any more, the other queue works, and the front end is still there.
fn stands_still(bench: &mut Bench<Holder>, seen: &Seen) {
    bench.turn(4);
    assert!(bench.runtime.is_connected());
    assert!(seen.borrow().is_empty(), "{seen:?}");
    let mut other = bench.start(1);
    send(&mut other, &bench.front_end, 50);
    bench.kick(1);
    bench.turn(3);
    assert_eq!(*seen.borrow(), [50]);
    bench.runtime.with_face(|face, queues| face.held.pop().unwrap().complete(queues, 8));
}

#[test]
fn descriptors_that_loop_stop_the_queue() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::patient(&seen));
    ring.write_descriptor(0, place(0), 8, 1, 1);
    ring.write_descriptor(1, place(1), 8, 1, 0);
    ring.offer(0);
    bench.kick(0);
    stands_still(&mut bench, &seen);
}

#[test]
fn heads_and_links_that_there_are_not_stop_the_queue() {
    for (head, next) in [(16, 0), (0xFFFF, 0), (0, 16)] {
        let seen = Seen::default();
        let (mut bench, mut ring) = bench(Holder::patient(&seen));
        ring.write_descriptor(0, place(0), 8, 1, next);
        ring.offer(head);
        bench.kick(0);
        stands_still(&mut bench, &seen);
    }
}

#[test]
fn indirect_tables_that_make_no_sense_stop_the_queue() {
    // Not whole descriptors, none, too many, outside of memory, with a next one.
    for (at, len, flags) in
        [(0x2000, 15, 4), (0x2000, 0, 4), (0x2000, 16 * 1025, 4), (RAM - 8, 16, 4), (0x2000, 16, 5)]
    {
        let seen = Seen::default();
        let (mut bench, mut ring) = bench(Holder::patient(&seen));
        ring.write_descriptor(0, at, len, flags, 1);
        ring.offer(0);
        bench.kick(0);
        stands_still(&mut bench, &seen);
    }
}

#[test]
fn more_than_there_is_room_for_stops_the_queue() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::patient(&seen));
    ring.set_available(17);
    bench.kick(0);
    stands_still(&mut bench, &seen);
}

#[test]
fn a_request_that_is_sent_twice_stops_the_queue() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::patient(&seen));
    let head = send(&mut ring, &bench.front_end, 1);
    ring.offer(head);
    bench.kick(0);
    bench.turn(4);
    assert_eq!(*seen.borrow(), [1]);
    bench.runtime.with_face(|face, queues| face.held.pop().unwrap().complete(queues, 8));
    assert_eq!(bench.wait(&mut ring, 1).len(), 1);
}

#[test]
fn what_is_written_comes_last() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::patient(&seen));
    ring.write_descriptor(0, 0x3000, 8, 1 | 2, 1);
    ring.write_descriptor(1, place(0), 8, 0, 0);
    ring.offer(0);
    bench.kick(0);
    stands_still(&mut bench, &seen);
}

#[test]
fn tables_are_followed_wherever_they_lead() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::eager(&seen));
    bench.front_end.memory.write(place(7) as usize, &7u64.to_le_bytes());
    let head = ring.send_indirect(0x2000, &[(place(7), 8)], &[(0x3000, 4), (0x4000, 4)]);
    bench.kick(0);
    assert_eq!(bench.wait(&mut ring, 1), [(head, 8)]);
    assert_eq!(*seen.borrow(), [7]);
}

#[test]
fn a_driver_is_told_once_for_a_batch_and_only_if_it_wants_to_be() {
    for features in [feature::RING, feature::RING & !feature::EVENT_IDX] {
        let seen = Seen::default();
        let mut bench = Bench::new(Holder::eager(&seen), FrontEnd::new(RAM).with_features(features));
        let mut ring = bench.start(0);
        assert!(bench.was_called(0), "a predecessor may have died before it could");
        for round in 0..200u64 {
            let count = round % 5 + 1;
            (0..count).for_each(|n| _ = send(&mut ring, &bench.front_end, round * 8 + n));
            bench.kick(0);
            assert_eq!(bench.wait(&mut ring, count as usize).len() as u64, count);
            assert!(bench.was_called(0));
            bench.turn(1);
            assert!(!bench.was_called(0), "nothing is new");
        }
    }
}

#[test]
fn the_indices_wrap() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::eager(&seen));
    for round in 0..(70_000u64 / 5) {
        (0..5).for_each(|n| _ = send(&mut ring, &bench.front_end, round + n));
        bench.turn(1);
        bench.turn(1);
        while ring.in_flight() > 0 {
            ring.used();
            bench.turn(1);
        }
        seen.borrow_mut().clear();
    }
}
