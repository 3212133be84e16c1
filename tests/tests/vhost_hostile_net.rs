//! A hostile guest on a NIC by vhost-user: whatever it puts into its rings, the process lives on, and the next front end has a NIC that works.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_tests::net::Wire;
use bulkhead_tests::net::frame::Series;
use bulkhead_tests::net::load::PEER;
use bulkhead_tests::steps::LIMIT;
use bulkhead_tests::vhost::daemon::MAC;
use bulkhead_tests::vhost::front::Options;
use bulkhead_tests::vhost::nic::{HAND, HEADER, Pair};
use bulkhead_tests::vhost::{Daemon, Front, Memory, Ring};

const MEMORY: u64 = 16 << 20;
/// From the guest.
const OUT: Series = Series { to: PEER, from: MAC, name: 31, longest: 1514 };
/// To the guest.
const INTO: Series = Series { to: MAC, from: PEER, name: 32, longest: 1514 };
/// Nothing comes any more.
const SILENCE: Duration = Duration::from_millis(200);
/// For the daemon to do whatever harm it can come to.
const MOMENT: Duration = Duration::from_millis(5);

const NEXT: u16 = 1;
const WRITE: u16 = 2;

struct Rig {
    daemon: Daemon,
    wire: Wire,
}

impl Rig {
    fn new() -> anyhow::Result<Self> {
        let (wire, theirs) = Wire::new()?;
        Ok(Self { daemon: Daemon::net(&theirs, 1).held().quiet().start()?, wire })
    }

    /// A front end with memory whose first MiB is the guest's to do with as it likes.
    fn front(&self) -> anyhow::Result<(Front, [Ring; 2], Arc<Memory>)> {
        let memory = Memory::new(MEMORY)?;
        memory.take(1 << 20)?;
        let wants = Options { rings: 2, hand: HAND, ..Options::default() };
        let (front, rings) = Front::connect(&self.daemon.socket(), &memory, wants)?;
        let rings = <[_; 2]>::try_from(rings).map_err(|_| anyhow::anyhow!("two rings"))?;
        Ok((front, rings, memory))
    }

    /// An honest guest comes next, and frames go both ways.
    fn recovers(&mut self) -> anyhow::Result<()> {
        self.daemon.lives()?;
        let (_front, rings, memory) = self.front()?;
        let mut pair = Pair::new(&memory, rings, 2048)?;
        // What waited for somebody with buffers, and what else came out.
        while pair.wait(SILENCE)?.is_some() {}
        while self.wire.receive(SILENCE)?.is_some() {}
        for number in 100..140 {
            ensure!(pair.push(&[0; HEADER], &OUT.frame(number))?, "no room");
            pair.send.submit()?;
            let came = self.wire.receive(LIMIT)?.context("nothing comes out")?;
            ensure!(OUT.check(&came)? == Some(number), "another frame came out");
            self.wire.send(&INTO.frame(number))?;
            let came = pair.wait(LIMIT)?.context("nothing comes in")?;
            ensure!(INTO.check(&came.frame)? == Some(number), "another frame came in");
        }
        pair.drain(LIMIT)
    }
}

#[test]
fn chains_that_are_none() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let (page, end, header) = (Memory::guest(0), Memory::guest(MEMORY), HEADER as u32);
    type Chain = Vec<(u64, u32, u16, u16)>;
    let chains: [(&str, Chain); 13] = [
        ("nothing", vec![(page, 0, 0, 0)]),
        ("half a header", vec![(page, 6, 0, 0)]),
        ("a header alone", vec![(page, header, 0, 0)]),
        ("three bytes", vec![(page, header + 3, 0, 0)]),
        ("a frame that is too long", vec![(page, 1 << 20, 0, 0)]),
        ("all lengths", vec![(page, header, NEXT, 1), (page, u32::MAX, 0, 0)]),
        ("memory that is to be written", vec![(page, header + 60, WRITE, 0)]),
        ("both kinds of memory", vec![(page, header + 60, NEXT, 1), (page, 2048, WRITE, 0)]),
        ("memory that is not", vec![(page, header, NEXT, 1), (0, 60, 0, 0)]),
        ("memory that is not, to be written", vec![(0, 2048, WRITE, 0)]),
        ("memory over the end", vec![(page, header, NEXT, 1), (end - 10, 60, 0, 0)]),
        ("a loop", vec![(page, header, NEXT, 1), (page, 60, NEXT, 0)]),
        ("a next that is not", vec![(page, header, NEXT, 999)]),
    ];
    for (what, chain) in chains {
        for ring in [0, 1] {
            let (front, mut rings, _memory) = rig.front()?;
            let ring = &mut rings[ring];
            for (n, descriptor) in (0..).zip(&chain) {
                ring.descriptor(ring.place.descriptors, n, *descriptor)?;
            }
            ring.make_available(0)?;
            ring.publish(1)?;
            ring.kick()?;
            rig.wire.send(&INTO.frame(0))?;
            std::thread::sleep(MOMENT);
            drop(front);
            rig.daemon.lives().with_context(|| what.to_owned())?;
        }
    }
    rig.recovers()
}

#[test]
fn headers_that_lie() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    // Flags, segmentation, and where headers end and checksums go.
    let numbers = [0u16, 1, 13, 14, 54, 1500, 0xffff];
    for flags in [0u8, 1, 2, 0xff] {
        for kind in [0u8, 1, 3, 4, 5, 0x80, 0x81, 0xff] {
            let (front, rings, memory) = rig.front()?;
            let mut pair = Pair::new(&memory, rings, 2048)?;
            for n in numbers {
                let mut header = [0; HEADER];
                (header[0], header[1]) = (flags, kind);
                for at in [2, 4, 6, 8] {
                    header[at..at + 2].copy_from_slice(&n.to_le_bytes());
                }
                pair.push(&header, &OUT.frame(u64::from(n)))?;
            }
            pair.send.submit()?;
            // Sent or dropped, each of them ends.
            pair.drain(LIMIT).with_context(|| format!("flags {flags:#x}, kind {kind:#x}"))?;
            drop(front);
            rig.daemon.lives()?;
        }
    }
    rig.recovers()
}

#[test]
fn buffers_too_small_for_anything() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    for len in [0u32, 1, 11, 12, 13, 100] {
        let (front, mut rings, _memory) = rig.front()?;
        let ring = &mut rings[0];
        for n in 0..64 {
            ring.descriptor(ring.place.descriptors, n, (Memory::guest(0), len, WRITE, 0))?;
            ring.make_available(n)?;
        }
        ring.publish(64)?;
        ring.kick()?;
        (0..5).try_for_each(|n| rig.wire.send(&INTO.frame(n)))?;
        std::thread::sleep(MOMENT);
        drop(front);
        rig.daemon.lives().with_context(|| format!("buffers of {len} bytes"))?;
    }
    rig.recovers()
}

#[test]
fn the_same_buffer_many_times() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let (front, mut rings, _memory) = rig.front()?;
    let ring = &mut rings[0];
    ring.descriptor(ring.place.descriptors, 0, (Memory::guest(0), 2048, WRITE, 0))?;
    for _ in 0..100 {
        ring.make_available(0)?;
    }
    ring.publish(100)?;
    ring.kick()?;
    (0..20).try_for_each(|n| rig.wire.send(&INTO.frame(n)))?;
    std::thread::sleep(MOMENT);
    drop(front);
    rig.recovers()
}
