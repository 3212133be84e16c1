//! A process that dies at any named point, and the one that comes after it: each request ends once, in the order in which it was sent.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![cfg(debug_assertions)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use common::{Holder, RAM, Seen, bench, send};
use vhost_face::kill::{KillPoint, armed};
use vhost_face::testing::{Bench, FrontEnd};

/// Does something with a device that may die of it; its successor, if it has.
fn survive(
    mut bench: Bench<Holder>,
    seen: &Seen,
    act: impl FnOnce(&mut Bench<Holder>),
) -> (Bench<Holder>, bool) {
    if catch_unwind(AssertUnwindSafe(|| act(&mut bench))).is_ok() {
        return (bench, false);
    }
    // A successor is left in peace here: `twice` is about those who are not.
    armed::disarm();
    (Bench::take_over(Holder::eager(seen), bench.kill()), true)
}

fn rounds(point: KillPoint, count: u32) -> bool {
    let seen = Seen::default();
    let front_end = FrontEnd::new(RAM);
    armed::arm(point, count, |point| panic!("{}", point.name()));
    let mut died = false;
    // The start itself has points.
    let shared = front_end.share();
    let begin = |front_end| {
        let mut bench = Bench::new(Holder::eager(&seen), front_end);
        let ring = bench.start(0);
        (bench, ring)
    };
    let started = catch_unwind(AssertUnwindSafe(|| begin(shared)));
    let (mut bench, mut ring) = started.unwrap_or_else(|_| {
        armed::disarm();
        died = true;
        begin(front_end)
    });
    let mut id = 0;
    for _ in 0..6 {
        let sent: Vec<u64> = (0..5).map(|n| id + n).collect();
        for id in &sent {
            send(&mut ring, &bench.front_end, *id);
        }
        id += 5;
        bench.kick(0);
        let (next, dead) = survive(bench, &seen, |bench| bench.turn(3));
        bench = next;
        died |= dead;
        let used = bench.wait(&mut ring, 5);
        assert_eq!(used.len(), 5);
        let seen = std::mem::take(&mut *seen.borrow_mut());
        assert!(sent.iter().all(|id| seen.contains(id)), "{seen:?} of {sent:?}");
        // Those that were seen again after a death were seen in their order, too.
        let sorted = |ids: &[u64]| ids.windows(2).all(|pair| pair[0] < pair[1]);
        let again = seen.iter().skip(1).position(|id| *id == seen[0]).map(|at| at + 1);
        match again {
            Some(at) => assert!(sorted(&seen[..at]) && sorted(&seen[at..]), "{seen:?}"),
            None => assert!(dead || sorted(&seen), "{seen:?}"),
        }
        assert_eq!(ring.in_flight(), 0);
    }
    // A stop has points, too.
    let (mut bench, dead) = survive(bench, &seen, |bench| _ = bench.stop(0));
    died |= dead;
    armed::disarm();
    if !dead {
        bench.restart(0);
        bench.turn(2);
    }
    send(&mut ring, &bench.front_end, 77);
    bench.kick(0);
    assert_eq!(bench.wait(&mut ring, 1).len(), 1);
    assert_eq!(seen.borrow().last(), Some(&77));
    died
}

#[test]
fn each_request_ends_once_wherever_the_process_dies() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for point in KillPoint::ALL {
        let deaths = [1, 2, 5, 7, 11].into_iter().filter(|count| rounds(point, *count)).count();
        if deaths == 0 {
            missed.push(point.name());
        }
    }
    let _ = std::panic::take_hook();
    // Those of a successor that has something to settle.
    assert_eq!(missed, ["settled", "recovered"]);
}

/// Two processes die in a row, the second while it takes over.
#[test]
fn a_death_while_taking_over_changes_nothing() {
    std::panic::set_hook(Box::new(|_| {}));
    for first in [KillPoint::Published, KillPoint::Cleared, KillPoint::Headed, KillPoint::Taken] {
        for second in [KillPoint::Settled, KillPoint::Recovered, KillPoint::Signalled] {
            for count in [1, 2] {
                let seen = Seen::default();
                let (mut bench, mut ring) = bench(Holder::eager(&seen));
                (0..5).for_each(|id| _ = send(&mut ring, &bench.front_end, id));
                bench.kick(0);
                armed::arm(first, 2, |point| panic!("{}", point.name()));
                assert!(
                    catch_unwind(AssertUnwindSafe(|| bench.turn(3))).is_err()
                        || first == KillPoint::Published
                );
                armed::arm(second, count, |point| panic!("{}", point.name()));
                let mut bench = bench;
                let mut front_end = bench.kill();
                loop {
                    // What is in the front end outlives whoever dies of it.
                    let file = std::mem::replace(&mut front_end, FrontEnd::new(RAM));
                    let shared = file.share();
                    let next =
                        catch_unwind(AssertUnwindSafe(|| Bench::take_over(Holder::eager(&seen), file)));
                    match next {
                        Ok(next) => {
                            bench = next;
                            break;
                        }
                        Err(_) => front_end = shared,
                    }
                }
                armed::disarm();
                assert_eq!(bench.wait(&mut ring, 5).len(), 5, "{first:?} then {second:?}");
                assert_eq!(ring.in_flight(), 0);
            }
        }
    }
    let _ = std::panic::take_hook();
}

/// Others begin with `used_idx = 0` and take a ring that does not begin there for one whose requests have been completed.
#[test]
fn the_very_first_completion_is_not_lost_in_a_ring_that_has_been_used_before() {
    for begin in [0u16, 1, 3, 300, 0xFFFF] {
        let seen = Seen::default();
        let (mut bench, mut ring) = bench(Holder::patient(&seen));
        bench.stop(0);
        ring.begin_at(begin);
        bench.front_end.forget_inflight();
        let front_end = bench.kill();
        let mut bench = Bench::take_over(Holder::patient(&seen), front_end);
        (0..3).for_each(|id| _ = send(&mut ring, &bench.front_end, id));
        bench.kick(0);
        bench.turn(3);
        assert_eq!(*seen.borrow(), [0, 1, 2]);
        let mut bench = Bench::take_over(Holder::eager(&seen), bench.kill());
        assert_eq!(bench.wait(&mut ring, 3).len(), 3, "at {begin}");
        assert_eq!(*seen.borrow(), [0, 1, 2, 0, 1, 2], "in their order");
    }
}

#[test]
fn what_has_killed_three_processes_is_failed() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::patient(&seen));
    let heads: Vec<u16> = (0..3).map(|id| send(&mut ring, &bench.front_end, id)).collect();
    bench.kick(0);
    bench.turn(3);
    // What the handler of a fatal signal does when it finds this one suspect.
    let region = bench.front_end.inflight().unwrap();
    let tries = region.byte(16 + 16 * usize::from(heads[1]) + 1);
    for attempt in 1..=3 {
        assert_eq!(bench.runtime.face().rejected, 0);
        tries.store(attempt, Ordering::SeqCst);
        bench = Bench::take_over(Holder::patient(&seen), bench.kill());
        bench.turn(2);
    }
    assert_eq!(bench.wait(&mut ring, 1), [(heads[1], 0)]);
    assert_eq!(bench.runtime.face().rejected, 1);
    assert_eq!(tries.load(Ordering::SeqCst), 0, "the next request with this descriptor is another one");
    bench.runtime.with_face(|face, _| face.eager = true);
    // The others are fine.
    send(&mut ring, &bench.front_end, 9);
    bench.kick(0);
    assert_eq!(bench.wait(&mut ring, 3).len(), 3);
}

/// A front end asks for room for the rings that it knows of, and a driver makes longer ones.
#[test]
fn a_ring_that_is_longer_than_the_front_end_knows_loses_nothing() {
    let seen = Seen::default();
    let front_end = FrontEnd::new(RAM).with_entries(4);
    let mut bench = Bench::new(Holder::patient(&seen), front_end);
    let mut rings = [bench.start(0), bench.start(1)];
    for (ring, ids) in rings.iter_mut().zip([0..4, 10..14]) {
        ids.for_each(|id| _ = send(ring, &bench.front_end, id));
    }
    (0..2).for_each(|queue| bench.kick(queue));
    bench.turn(3);
    // Some have ended, not those that came first.
    bench.runtime.with_face(|face, queues| face.held.remove(2).complete(queues, 8));
    bench.turn(1);
    assert_eq!(rings[0].used().len(), 1);
    seen.borrow_mut().clear();
    let mut bench = Bench::take_over(Holder::eager(&seen), bench.kill());
    assert_eq!(bench.wait(&mut rings[0], 3).len(), 3);
    assert_eq!(bench.wait(&mut rings[1], 4).len(), 4);
    assert_eq!(*seen.borrow(), [0, 1, 3, 10, 11, 12, 13]);
    // A stopped queue says nothing, wherever it was noted.
    let region = bench.front_end.inflight().unwrap();
    // Behind two regions of 4 descriptors (128 bytes with all that belongs to them) come two of 1,024.
    let versions = || [0, 128, 256, 256 + 16448].map(|at| region.half(at + 8).load(Ordering::SeqCst));
    assert_eq!(versions(), [0, 0, 1, 1]);
    (0..2).for_each(|queue| _ = bench.stop(queue));
    assert_eq!(versions(), [0; 4]);
}

#[test]
fn after_a_crash_without_a_cause_requests_run_one_by_one() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::patient(&seen));
    (0..3).for_each(|id| _ = send(&mut ring, &bench.front_end, id));
    bench.kick(0);
    bench.turn(3);
    bench.front_end.inflight().unwrap().byte(16 + 2).store(1, Ordering::SeqCst);
    let mut bench = Bench::take_over(Holder::patient(&seen), bench.kill());
    for expected in 1..=3 {
        bench.turn(3);
        assert_eq!(bench.runtime.face().held.len(), 1);
        assert_eq!(seen.borrow().len(), 3 + expected);
        bench.runtime.with_face(|face, queues| face.held.pop().unwrap().complete(queues, 8));
    }
    assert_eq!(bench.wait(&mut ring, 3).len(), 3);
    assert_eq!(bench.front_end.inflight().unwrap().byte(16 + 2).load(Ordering::SeqCst), 0, "forgiven");
}

#[test]
fn marks_go_to_the_successor_and_not_beyond_a_reset() {
    let seen = Seen::default();
    let (mut bench, _ring) = bench(Holder::patient(&seen));
    bench.runtime.with_face(|_, queues| queues.set_marks(5));
    let mut bench = Bench::take_over(Holder::patient(&seen), bench.kill());
    assert_eq!(bench.runtime.with_face(|_, queues| queues.marks()), 5);
    let mut front_end = bench.kill();
    front_end.forget_inflight();
    let mut bench = Bench::take_over(Holder::patient(&seen), front_end);
    assert_eq!(bench.runtime.with_face(|_, queues| queues.marks()), 0);
}

#[test]
fn a_queue_that_is_to_end_first_runs_what_a_predecessor_has_left() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::patient(&seen));
    (0..3).for_each(|id| _ = send(&mut ring, &bench.front_end, id));
    bench.kick(0);
    bench.turn(3);
    let mut bench = Bench::new(Holder::patient(&seen), bench.kill());
    bench.restart(0);
    bench.tell(vhost_face::wire::request::GET_VRING_BASE, &[0; 8], &[]);
    // One more, which is not taken any more.
    send(&mut ring, &bench.front_end, 3);
    bench.turn(5);
    assert_eq!(*seen.borrow(), [0, 1, 2, 0, 1, 2]);
    assert!(bench.try_hear().is_none(), "they are in flight");
    bench.runtime.with_face(|face, _| face.eager = true);
    bench.runtime.with_face(|face, queues| face.held.drain(..).for_each(|one| one.complete(queues, 8)));
    assert_eq!(bench.hear().payload, [0, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(ring.used().len(), 3);
    bench.restart(0);
    assert_eq!(bench.wait(&mut ring, 1).len(), 1);
}
