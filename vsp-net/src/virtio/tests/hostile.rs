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
    is_well(&mut world);
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
