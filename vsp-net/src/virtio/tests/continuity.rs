//! Processes that end, queues that stop, front ends that leave.

use super::*;

#[test]
fn a_successor_goes_on() {
    let mut world = World::new();
    for round in 0..30u8 {
        let (into, out) = (frame(MAC, PEER, 64, round), frame(PEER, MAC, 64, round));
        world.wire.send(&into);
        assert_eq!(world.next(0).frame, into);
        world.send(&PLAIN, &out);
        assert_eq!(world.wire.next(), Some(out));
        world = world.succeed();
    }
    assert_eq!(world.pairs[0][0].in_flight(), 16, "no buffer is lost");
}

#[test]
fn what_was_read_and_not_delivered_comes_again() {
    let mut world = World::bare(setting(), features(), 100);
    world.give(0);
    let large = frame(MAC, PEER, 500, 1);
    world.wire.send(&large);
    world.settle();
    assert_eq!(world.net().stats.rx_staged, 1);
    // It dies with the frame in its memory.
    let mut world = world.succeed();
    (0..8).for_each(|_| world.give(0));
    world.bench.kick(0);
    assert_eq!(world.next_kept(), large);
}

#[test]
fn sends_that_wait_go_out_once_they_can_and_end_once() {
    let mut world = World::new();
    let mut pushed = 0u32;
    let mut ended = 0;
    while world.net().waiting() == 0 {
        while world.pairs[0][1].room() >= 2 {
            world.push(0, &PLAIN, &frame(PEER, MAC, 1500, pushed as u8));
            pushed += 1;
        }
        world.bench.kick(1);
        world.settle();
        ended += world.pairs[0][1].used().len();
    }
    let mut world = world.succeed();
    let (mut last, begin) = (None, Instant::now());
    while world.pairs[0][1].in_flight() > 0 {
        while let Some(sent) = world.wire.next() {
            last = Some(sent);
        }
        world.turn(2);
        ended += world.pairs[0][1].used().len();
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
    while let Some(sent) = world.wire.next() {
        last = Some(sent);
    }
    assert_eq!(ended as u32, pushed);
    assert_eq!(last, Some(frame(PEER, MAC, 1500, (pushed - 1) as u8)));
}

#[test]
fn a_queue_that_stops_gives_back_what_it_holds() {
    let mut world = World::with(setting(), features(), 256);
    let into = frame(MAC, PEER, 500, 1);
    world.wire.send(&into);
    assert_eq!(world.next(0).buffers, 2);
    // It has taken more than the frame has needed.
    assert_eq!(world.bench.stop(0), 2);
    world.wire.send(&into);
    world.settle();
    assert_eq!(world.poll(0), None, "a queue that is stopped receives nothing");
    world.bench.restart(0);
    assert_eq!(world.next(0).frame, into);
    assert_eq!(world.pairs[0][0].in_flight(), 16);
}

#[test]
fn sends_that_wait_are_given_back_to_a_queue_that_stops() {
    let mut world = World::new();
    let (mut pushed, mut ended) = (0u32, 0);
    while world.net().waiting() == 0 {
        while world.pairs[0][1].room() >= 2 {
            world.push(0, &PLAIN, &frame(PEER, MAC, 1500, pushed as u8));
            pushed += 1;
        }
        world.bench.kick(1);
        world.settle();
        ended += world.pairs[0][1].used().len() as u32;
    }
    assert_eq!(world.bench.stop(1), ended);
    assert_eq!(world.net().waiting(), 0);
    while world.wire.next().is_some() {}
    world.bench.restart(1);
    let begin = Instant::now();
    while world.pairs[0][1].in_flight() > 0 {
        while world.wire.next().is_some() {}
        world.turn(2);
        ended += world.pairs[0][1].used().len() as u32;
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(ended, pushed);
}

#[test]
fn a_front_end_leaves_and_comes_back() {
    let mut world = World::with(setting(), features(), 256);
    for round in 0..10u8 {
        let (into, out) = (frame(MAC, PEER, 700, round), frame(PEER, MAC, 64, round));
        world.wire.send(&into);
        assert_eq!(world.next(0).frame, into);
        world.bench.reconnect();
        world.send(&PLAIN, &out);
        assert_eq!(world.wire.next(), Some(out));
    }
    assert_eq!(world.pairs[0][0].in_flight(), 16, "no buffer is lost");
}

/// What a dead process had begun cannot go back to the ring. A front end that stops it does not wait for a network that stands still.
#[test]
fn a_queue_that_stops_does_not_wait_for_the_network() {
    let mut world = World::new();
    while world.net().waiting() == 0 {
        while world.pairs[0][1].room() >= 2 {
            world.push(0, &PLAIN, &frame(PEER, MAC, 1500, 1));
        }
        world.bench.kick(1);
        world.settle();
        world.pairs[0][1].used();
    }
    let mut world = world.succeed();
    world.settle();
    assert!(world.net().waiting() > 0);
    let begin = Instant::now();
    world.bench.stop(1);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!(world.net().waiting(), 0);
}
