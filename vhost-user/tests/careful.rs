//! After a crash of which nobody knows the cause: what was left runs one by one, and nothing else for longer than that.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::sync::atomic::Ordering;

use common::{Holder, RAM, Seen, place, send};
use vhost_face::testing::{Bench, FrontEnd, GuestRing};
use vhost_face::wire::request;

/// Bytes of a queue's part of the region, and where in it a crash is noted.
const PART: usize = 320;
const CRASHED: usize = 16 + 2;

/// A process that has crashed with so many requests of two queues in flight; what it has left, and the rings.
fn crashed(seen: &Seen, left: [u64; 2]) -> (FrontEnd, [GuestRing; 2]) {
    let mut bench = Bench::new(Holder::patient(seen), FrontEnd::new(RAM));
    let mut rings = [bench.start(0), bench.start(1)];
    for (queue, count) in (0..).zip(left) {
        for n in 0..count {
            send(&mut rings[usize::from(queue)], &bench.front_end, u64::from(queue) * 10 + n);
        }
        bench.kick(queue);
    }
    bench.turn(3);
    assert_eq!(seen.borrow().len() as u64, left[0] + left[1]);
    seen.borrow_mut().clear();
    for queue in 0..2 {
        note(&bench.front_end, queue).store(1, Ordering::SeqCst);
    }
    (bench.kill(), rings)
}

/// Where a crash is noted. What was mapped for it stays mapped as long as the test.
fn note(front_end: &FrontEnd, queue: usize) -> &'static std::sync::atomic::AtomicU8 {
    let region: &'static _ = Box::leak(Box::new(front_end.inflight().unwrap()));
    region.byte(queue * PART + CRASHED)
}

/// Ends what is held until nothing comes any more; how many were held at a time, at most.
fn run(bench: &mut Bench<Holder>) -> usize {
    let mut most = 0;
    loop {
        bench.turn(3);
        let held = bench.runtime.face().held.len();
        most = most.max(held);
        if held == 0 {
            return most;
        }
        bench.runtime.with_face(|face, queues| face.held.remove(0).complete(queues, 8));
    }
}

/// New requests of the second queue run side by side: nobody is careful any more.
fn is_free(bench: &mut Bench<Holder>, ring: &mut GuestRing) {
    ring.used();
    (0..4).for_each(|n| _ = send(ring, &bench.front_end, 30 + n));
    bench.kick(1);
    assert_eq!(run(bench), 4);
}

#[test]
fn a_queue_that_starts_first_does_not_end_it_for_the_next() {
    let seen = Seen::default();
    let (front_end, mut rings) = crashed(&seen, [0, 3]);
    let mut bench = Bench::new(Holder::patient(&seen), front_end);
    bench.restart(0);
    bench.turn(3);
    assert_eq!([0, 1].map(|queue| note(&bench.front_end, queue).load(Ordering::SeqCst)), [0, 1]);
    bench.restart(1);
    assert_eq!((run(&mut bench), seen.borrow().len()), (1, 3));
    assert_eq!(note(&bench.front_end, 1).load(Ordering::SeqCst), 0);
    is_free(&mut bench, &mut rings[1]);
}

#[test]
fn a_ring_that_makes_no_sense_does_not_keep_it_up() {
    let seen = Seen::default();
    let (front_end, mut rings) = crashed(&seen, [2, 3]);
    // The guest has written over what is in flight: loops.
    (0..16).for_each(|index| rings[0].write_descriptor(index, place(0), 8, 1, index));
    let mut bench = Bench::take_over(Holder::patient(&seen), front_end);
    assert_eq!(run(&mut bench), 1);
    assert_eq!(*seen.borrow(), [10, 11, 12]);
    is_free(&mut bench, &mut rings[1]);
}

#[test]
fn a_queue_that_is_switched_off_does_not_keep_it_up() {
    let seen = Seen::default();
    let (front_end, mut rings) = crashed(&seen, [2, 3]);
    let mut bench = Bench::new(Holder::patient(&seen), front_end);
    let off = |on: u32| [0u32.to_ne_bytes(), on.to_ne_bytes()].concat();
    bench.restart(0);
    bench.tell(request::SET_VRING_ENABLE, &off(0), &[]);
    bench.turn(3);
    bench.restart(1);
    run(&mut bench);
    is_free(&mut bench, &mut rings[1]);
    seen.borrow_mut().clear();
    // What it has left is still run one by one when it is switched on.
    bench.tell(request::SET_VRING_ENABLE, &off(1), &[]);
    assert_eq!((run(&mut bench), seen.borrow().len()), (1, 2));
    is_free(&mut bench, &mut rings[1]);
}
