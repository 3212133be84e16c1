//! A guest that does what it must not. The process lives, and a driver that means well is served.

use super::*;
use guest::RAM;

/// A driver that means well, afterwards.
fn is_well(world: &mut World) {
    let out = frame(PEER, MAC, 64, 3);
    world.send(&PLAIN, &out);
    assert_eq!(world.wire.next(), Some(out));
}

#[test]
fn frames_that_are_not_there_are_not_sent() {
    let mut world = World::new();
    for (at, len) in
        [(RAM - 4, 100), (u64::MAX - 4, 100), (0x1000, u32::MAX), (1 << 40, 12), (0x1000, 0), (0x1000, 11)]
    {
        let head = world.pairs[0][1].send(&[(at, len)], &[]);
        world.bench.kick(1);
        assert_eq!(world.bench.wait(&mut world.pairs[0][1], 1), [(head, 0)], "{at:#x} {len}");
    }
    // A frame that is written to rather than read.
    let head = world.pairs[0][1].send(&[], &[(0x1000, 100)]);
    world.bench.kick(1);
    assert_eq!(world.bench.wait(&mut world.pairs[0][1], 1), [(head, 0)]);
    is_well(&mut world);
}

#[test]
fn a_frame_in_many_crumbs_is_whole() {
    let mut world = World::new();
    let out = frame(PEER, MAC, 900, 3);
    let bytes = [&PLAIN[..], &out].concat();
    world.bench.front_end.memory.write(0x1000, &bytes);
    let crumbs: Vec<_> = (0..bytes.len() as u64).map(|at| (0x1000 + at, 1)).collect();
    world.pairs[0][1].send_indirect(0x8000, &crumbs, &[]);
    world.bench.kick(1);
    world.bench.wait(&mut world.pairs[0][1], 1);
    assert_eq!(world.wire.next(), Some(out));
}

#[test]
fn buffers_that_are_not_there_take_no_frame() {
    let mut world = World::bare(setting(), features(), 2048);
    for (at, len) in [(RAM - 4, 100), (1 << 40, 2048), (u64::MAX, 1), (0x1000, 0)] {
        world.pairs[0][0].send(&[], &[(at, len)]);
    }
    // One that is for reading.
    world.pairs[0][0].send(&[(0x1000, 2048)], &[]);
    world.give(0);
    world.bench.kick(0);
    let into = frame(MAC, PEER, 64, 1);
    world.wire.send(&into);
    let used = world.bench.wait(&mut world.pairs[0][0], 6);
    let written: Vec<_> = used.iter().map(|(_, len)| *len).collect();
    assert_eq!(written, [0, 0, 0, 0, 0, 76], "they end in their turn, empty");
    assert_eq!(world.received(0, &used[5..]), (1, into), "and are no part of it");
    assert_eq!(world.net().stats.rx_bad, 5);
    is_well(&mut world);
}

/// Without any frame, too, and at once: a driver may have no others.
#[test]
fn buffers_that_are_not_there_come_back_though_no_frame_comes() {
    let mut world = World::bare(setting(), features(), 2048);
    for _ in 0..16 {
        world.pairs[0][0].send(&[], &[(RAM, 100)]);
    }
    world.bench.kick(0);
    assert_eq!(world.bench.wait(&mut world.pairs[0][0], 16).len(), 16);
    // Nor does anybody sleep on them.
    world.pairs[0][0].send(&[], &[(RAM, 100)]);
    assert!(world.bench.runtime.with_face(|net, queues| net.poll(queues)), "something has ended");
}

#[test]
fn no_frame_lies_across_a_buffer_that_is_not_there() {
    let mut world = World::bare(setting(), features(), 100);
    let frames = [frame(MAC, PEER, 60, 1), frame(MAC, PEER, 500, 2), frame(MAC, PEER, 64, 3)];
    // The first frame has room before the buffer that is not there; the second begins behind the one after that.
    (0..2).for_each(|_| world.give(0));
    world.pairs[0][0].send(&[], &[(RAM - 4, 100)]);
    (0..7).for_each(|_| world.give(0));
    world.bench.kick(0);
    frames.iter().for_each(|frame| world.wire.send(frame));
    let used = world.bench.wait(&mut world.pairs[0][0], 10);
    let written: Vec<_> = used.iter().map(|(_, len)| *len).collect();
    assert_eq!(written, [72, 0, 0, 100, 100, 100, 100, 100, 12, 76]);
    let parts = [&used[..1], &used[3..9], &used[9..]];
    let came: Vec<_> = parts.iter().map(|part| world.received(0, part)).collect();
    assert_eq!(came, [(1, frames[0].clone()), (6, frames[1].clone()), (1, frames[2].clone())]);
    assert_eq!(world.net().stats.rx_bad, 2);
    is_well(&mut world);
}

/// A front end that keeps no list of what is in flight takes whatever ends for the next in the ring.
#[test]
fn sends_that_are_none_end_behind_those_that_wait() {
    let mut world = World::new();
    let mut heads = Vec::new();
    while world.net().waiting() == 0 {
        heads.clear();
        while world.pairs[0][1].room() >= 5 {
            heads.push(world.push(0, &PLAIN, &frame(PEER, MAC, 1500, 1)));
        }
        heads.push(world.pairs[0][1].send(&[(RAM - 4, 100)], &[]));
        heads.push(world.push(0, &PLAIN, &frame(PEER, MAC, 60, 2)));
        world.bench.kick(1);
        world.settle();
        let ended: Vec<_> = world.pairs[0][1].used().iter().map(|(head, _)| *head).collect();
        assert_eq!(ended, heads[..ended.len()]);
        heads.drain(..ended.len());
    }
    // Another one is not to be tried again: it has killed too many.
    let region = world.bench.front_end.inflight().unwrap();
    region.byte(320 + 16 + 16 * usize::from(heads[1]) + 1).store(3, std::sync::atomic::Ordering::SeqCst);
    let mut world = world.succeed();
    world.settle();
    let mut ended: Vec<u16> = Vec::new();
    let begin = Instant::now();
    while ended.len() < heads.len() {
        ended.extend(world.pairs[0][1].used().iter().map(|(head, _)| *head));
        world.wire.next();
        world.turn(2);
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(ended, heads);
    assert_eq!(world.net().stats.frames.transmit.errors, 2);
}

#[test]
fn buffers_in_crumbs_take_frames() {
    let mut world = World::bare(Setting { mtu: 9000, ..setting() }, features(), 2048);
    let crumbs: Vec<_> = (0..1000).map(|at| (0x2_0000 + at * 2, 1)).collect();
    for place in 0..10u64 {
        world.pairs[0][0].send_indirect(0x10_0000 + place * 0x4000, &[], &crumbs);
    }
    world.bench.kick(0);
    let into = frame(MAC, PEER, 2000, 1);
    world.wire.send(&into);
    let used = world.bench.wait(&mut world.pairs[0][0], 3);
    assert_eq!(used.iter().map(|(_, len)| *len).collect::<Vec<_>>(), [1000, 1000, 12]);
    assert!(world.net().stats.rx_staged > 0, "too many pieces for the kernel");
    is_well(&mut world);
}

#[test]
fn rings_that_make_no_sense_end_alone() {
    for queue in [0, 1] {
        let mut world = World::new();
        world.settle();
        let ring = &mut world.pairs[0][queue];
        ring.set_available(30_000);
        world.bench.kick(queue as u16);
        world.settle();
        if queue == 0 {
            world.wire.send(&frame(MAC, PEER, 64, 1));
            world.settle();
            is_well(&mut world);
        } else {
            world.wire.send(&frame(MAC, PEER, 64, 2));
            assert_eq!(world.next(0).frame, frame(MAC, PEER, 64, 2));
        }
    }
}
