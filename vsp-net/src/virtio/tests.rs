//! The NIC at the end of rings that a test holds, with a socket for a backend.

mod continuity;
mod guest;
mod hostile;

use std::time::{Duration, Instant};

use guest::{HEADER, MAC, PEER, PLAIN, World, features, setting};
use vhost_face::{Face, feature};

use super::features::Features;
use crate::backend::VnetHeader;
use crate::backend::wire::frame;
use crate::cli::Setting;

#[test]
fn frames_go_both_ways() {
    for missing in [0, feature::EVENT_IDX, Features::MRG_RXBUF.bits()] {
        let mut world = World::with(setting(), features() & !missing, 2048);
        for number in 0..40 {
            let out = frame(PEER, MAC, 60 + 36 * usize::from(number), number);
            world.send(&PLAIN, &out);
            assert_eq!(world.wire.next(), Some(out));
            let into = frame(MAC, PEER, 60 + 36 * usize::from(number), number);
            world.wire.send(&into);
            let received = world.next(0);
            assert_eq!((&received.frame, received.buffers), (&into, 1));
            assert_eq!(received.header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        }
        let stats = world.net().stats.frames;
        assert_eq!((stats.transmit.frames(), stats.receive.frames()), (40, 40));
    }
}

#[test]
fn many_frames_go_out_in_their_order_and_end_in_it() {
    let mut world = World::new();
    let heads: Vec<_> = (0..8).map(|n| world.push(0, &PLAIN, &frame(PEER, MAC, 60, n))).collect();
    world.bench.kick(1);
    let ended: Vec<_> = world.bench.wait(&mut world.pairs[0][1], 8).iter().map(|(head, _)| *head).collect();
    assert_eq!(ended, heads);
    (0..8).for_each(|n| assert_eq!(world.wire.next(), Some(frame(PEER, MAC, 60, n))));
}

#[test]
fn a_frame_lies_in_as_many_buffers_as_it_needs() {
    let mut world = World::with(Setting { mtu: 3000, ..setting() }, features(), 256);
    for len in [60, 244, 245, 1000, 3014] {
        let into = frame(MAC, PEER, len, 7);
        world.wire.send(&into);
        let received = world.next(0);
        assert_eq!((&received.frame, received.buffers), (&into, (len + HEADER).div_ceil(256)), "{len}");
        assert_eq!(usize::from(received.header[10]), received.buffers);
    }
}

#[test]
fn a_driver_reads_what_the_nic_is() {
    let world = World::with(Setting { mtu: 9000, link_up: false, ..setting() }, features(), 2048);
    let mut bytes = [7; 26];
    bytes[24..].fill(0);
    world.net().config(0, &mut bytes);
    assert_eq!(bytes[..12], [2, 0, 0x5e, 0x10, 0, 1, 0, 0, 1, 0, 0x28, 0x23]);
    let mut bytes = [0; 4];
    world.net().config(10, &mut bytes);
    assert_eq!(bytes, [0x28, 0x23, 0x10, 0x27]);
    world.net().config(24, &mut bytes);
    world.net().config(usize::MAX, &mut bytes);
    assert_eq!(world.net().queues(), 2);
}

#[test]
fn what_must_not_go_out_ends_and_does_not() {
    let mut world = World::with(Setting { antispoof: true, ..setting() }, features(), 2048);
    let mut unfinished = PLAIN;
    (unfinished[0], unfinished[6], unfinished[8]) = (VnetHeader::NEEDS_CSUM, 34, 16);
    world.send(&PLAIN, &frame(PEER, PEER, 60, 1));
    assert_eq!(world.net().stats.spoofed, 1);
    world.send(&unfinished, &frame(PEER, MAC, 60, 1));
    world.send(&PLAIN, &frame(PEER, MAC, 1523, 1));
    world.send(&PLAIN, &frame(PEER, MAC, 13, 1));
    world.send(&PLAIN, &[]);
    assert_eq!(world.net().stats.frames.transmit.discards, 4);
    let largest = frame(PEER, MAC, 1522, 2);
    world.send(&PLAIN, &largest);
    assert_eq!(world.wire.next(), Some(largest));
    assert_eq!(world.wire.next(), None);
}

#[test]
fn without_a_link_nothing_passes() {
    let mut world = World::with(Setting { link_up: false, ..setting() }, features(), 2048);
    world.wire.send(&frame(MAC, PEER, 60, 1));
    world.send(&PLAIN, &frame(PEER, MAC, 60, 1));
    world.settle();
    assert_eq!((world.wire.next(), world.poll(0)), (None, None));
}

#[test]
fn without_buffers_frames_wait() {
    let mut world = World::bare(setting(), features(), 2048);
    let sent: Vec<_> = (0..30).map(|number| frame(MAC, PEER, 600, number)).collect();
    sent.iter().for_each(|frame| world.wire.send(frame));
    (0..5).for_each(|_| world.settle());
    assert_eq!((world.poll(0), world.net().stats.rx_waits), (None, 1));
    for expected in &sent {
        world.give(0);
        world.bench.kick(0);
        world.settle();
        assert_eq!(world.look(0).map(|received| received.frame).as_ref(), Some(expected));
    }
}

/// An idle NIC costs nothing, and one whose driver has no room for what has come neither.
#[test]
fn who_waits_sleeps() {
    let sleeps = |world: &mut World| {
        let begin = Instant::now();
        world.turn(20);
        begin.elapsed() >= Duration::from_millis(15)
    };
    let mut world = World::new();
    world.send(&PLAIN, &frame(PEER, MAC, 60, 1));
    assert!((0..8).any(|_| sleeps(&mut world)), "it always finds something to do");
    let mut world = World::bare(setting(), features(), 2048);
    world.wire.send(&frame(MAC, PEER, 60, 1));
    assert!((0..8).any(|_| sleeps(&mut world)), "it always finds something to do");
}

#[test]
fn a_frame_for_which_there_is_not_enough_room_waits_for_a_while() {
    let mut world = World::bare(setting(), features(), 100);
    (0..5).for_each(|_| world.give(0));
    let (large, small) = (frame(MAC, PEER, 1000, 1), frame(MAC, PEER, 60, 2));
    world.wire.send(&large);
    world.wire.send(&small);
    world.settle();
    assert_eq!(world.poll_nothing(), None);
    (0..6).for_each(|_| world.give(0));
    world.bench.kick(0);
    assert_eq!(world.next_kept(), large, "in eleven buffers");
    assert_eq!(world.net().stats.rx_staged, 1);
    world.give(0);
    world.bench.kick(0);
    assert_eq!(world.next_kept(), small);
    // It does not wait for ever.
    world.give(0);
    world.bench.kick(0);
    world.wire.send(&large);
    world.wire.send(&small);
    assert_eq!(world.next_kept(), small);
    assert_eq!(world.net().stats.frames.receive.errors, 1);
}

#[test]
fn a_driver_that_does_not_merge_gets_what_fits() {
    let mut world = World::with(setting(), features() & !Features::MRG_RXBUF.bits(), 600);
    let (large, small) = (frame(MAC, PEER, 1000, 1), frame(MAC, PEER, 588, 2));
    world.wire.send(&large);
    world.wire.send(&small);
    let received = world.next(0);
    assert_eq!((received.frame, received.buffers), (small, 1));
    assert_eq!(world.net().stats.frames.receive.errors, 1);
}

#[test]
fn a_backend_that_takes_nothing_makes_frames_wait() {
    let mut world = World::new();
    let (mut pushed, mut ended) = (0u32, 0);
    while world.net().waiting() == 0 {
        while world.pairs[0][1].room() >= 2 {
            world.push(0, &PLAIN, &frame(PEER, MAC, 1500, pushed as u8));
            pushed += 1;
        }
        world.bench.kick(1);
        world.settle();
        ended += world.pairs[0][1].used().len();
        assert!(pushed < 100_000);
    }
    assert!(world.net().stats.tx_waits > 0);
    let (mut came, begin) = (0u32, Instant::now());
    while came < pushed {
        while let Some(sent) = world.wire.next() {
            assert_eq!(sent, frame(PEER, MAC, 1500, came as u8), "in their order");
            came += 1;
        }
        world.turn(2);
        ended += world.pairs[0][1].used().len();
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
    world.settle();
    ended += world.pairs[0][1].used().len();
    assert_eq!((ended as u32, world.net().waiting(), world.pairs[0][1].in_flight()), (pushed, 0, 0));
}

#[test]
fn several_pairs_send_and_the_first_one_receives_for_those_that_are_off() {
    let wanted = features() | Features::MQ.bits();
    let mut world = World::with(Setting { queues: 2, ..setting() }, wanted, 2048);
    for pair in [1, 0] {
        let out = frame(PEER, MAC, 60, pair as u8);
        world.push(pair, &PLAIN, &out);
        world.bench.kick(pair as u16 * 2 + 1);
        world.bench.wait(&mut world.pairs[pair][1], 1);
        assert_eq!(world.wire.next(), Some(out));
    }
    let into = frame(MAC, PEER, 60, 9);
    world.wire.send(&into);
    assert_eq!(world.next(0).frame, into);
    // A stream has one queue: it is the first pair's.
    assert_eq!(world.poll(1), None);
}

#[test]
fn an_old_driver_has_shorter_headers() {
    let mut world = World::with(setting(), feature::EVENT_IDX | feature::PROTOCOL_FEATURES, 2048);
    // Ten bytes, and no count of buffers.
    let out = frame(PEER, MAC, 60, 1);
    world.send(&PLAIN, &out[2..]);
    assert_eq!(
        world.wire.next().map(|frame| frame.len()),
        Some(60),
        "two bytes of the header are the frame's"
    );
    let into = frame(MAC, PEER, 62, 2);
    world.wire.send(&into);
    let received = world.next(0);
    assert_eq!((&received.header[..10], &received.header[10..]), (&[0; 10][..], &into[..2]));
    assert_eq!(received.frame, into[2..]);
}

impl World {
    /// The next frame; nothing is given for its buffers.
    fn next_kept(&mut self) -> Vec<u8> {
        let begin = Instant::now();
        loop {
            if let Some(received) = self.look(0) {
                return received.frame;
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "no frame comes");
            self.turn(1);
        }
    }

    /// No frame has come.
    fn poll_nothing(&mut self) -> Option<Vec<u8>> {
        self.look(0).map(|received| received.frame)
    }
}
