//! Every named kill point of a vhost-user daemon, at the level of processes: one that ends exactly there, first or later in a batch, in
//! its own life or while it takes over, loses and repeats nothing.

#![cfg(debug_assertions)]

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bulkhead_tests::disk::Disk;
use bulkhead_tests::steps::LIMIT;
use bulkhead_tests::vhost::blk::{Blk, OK, Op};
use bulkhead_tests::vhost::front::{Manner, Options};
use bulkhead_tests::vhost::{Daemon, Front, Memory};
use vhost_face::kill::KillPoint;

const SIZE: u64 = 1 << 20;
const MEMORY: u64 = 8 << 20;
/// Requests of a batch, which the daemon finds all at once.
const BATCH: u16 = 5;
/// Exit code of a process that has met its point.
const MET: i32 = 137;
/// Where a first process dies so that its successor has something to settle: a batch is published, and nobody has noted it.
const UNSETTLED: &str = "published:2";
/// How long to wait before looking whether the daemon lives.
const SLICE: Duration = Duration::from_millis(20);

/// A guest, and daemons that die as they are told, one after the other.
struct Lives {
    daemon: Daemon,
    front: Front,
    blk: Blk,
    /// Points of the lives to come; afterwards they are without.
    orders: VecDeque<String>,
    met: u32,
    _disk: Disk,
}

impl Lives {
    fn new(orders: &[&str], manner: Manner) -> anyhow::Result<Self> {
        let mut orders: VecDeque<String> = orders.iter().copied().map(str::to_owned).collect();
        let disk = Disk::new(SIZE)?;
        let builder = Daemon::builder("vsp-storage").args(["--disk", &disk.argument("")]);
        let mut daemon = builder.held().quiet().start()?;
        let (memory, mut met) = (Memory::new(MEMORY)?, 0);
        let wants = Options { manner, ..Options::default() };
        let (front, ring) = loop {
            daemon.kill()?;
            start(&mut daemon, orders.pop_front())?;
            match Front::connect(&daemon.socket(), &memory, wants) {
                Ok((front, mut rings)) => break (front, rings.pop().context("no ring")?),
                // It has died before the guest had begun.
                Err(error) => {
                    let code = daemon.ended().with_context(|| format!("{error:#}"))?.code();
                    ensure!(code == Some(MET), "{code:?}: {error:#}");
                    met += 1;
                }
            }
        };
        let blk = Blk::new(&Arc::clone(&memory), ring, BATCH, true)?;
        Ok(Self { daemon, front, blk, orders, met, _disk: disk })
    }

    /// If the daemon is dead its successor takes over, which may die of it.
    fn look(&mut self) -> anyhow::Result<()> {
        while let Some(status) = self.daemon.child().try_wait()? {
            ensure!(status.code() == Some(MET), "the daemon ended with {status}");
            self.met += 1;
            start(&mut self.daemon, self.orders.pop_front())?;
            if let Err(error) = self.front.reconnect(&self.daemon.socket()) {
                self.daemon.ended().with_context(|| format!("{error:#}"))?;
            }
        }
        Ok(())
    }

    fn done(&mut self) -> anyhow::Result<(u16, u8)> {
        let begin = Instant::now();
        loop {
            if let Some(done) = self.blk.wait(SLICE)? {
                return Ok(done);
            }
            self.look()?;
            ensure!(
                begin.elapsed() < LIMIT,
                "a request is lost: {} are under way",
                self.blk.ring.under_way()
            );
        }
    }

    /// Requests at once, each completed once, and in effect.
    fn batch(&mut self, round: u8) -> anyhow::Result<()> {
        for op in [Op::Out, Op::In] {
            for slot in 0..BATCH {
                let wanted = [round * 16 + slot as u8; 4096];
                self.blk.fill(slot, if op == Op::Out { &wanted } else { &[0xff; 4096] })?;
                self.blk.start(slot, op, u64::from(slot) * 8, 4096)?;
            }
            self.blk.ring.submit()?;
            for _ in 0..BATCH {
                let (slot, status) = self.done()?;
                ensure!(status == OK, "round {round}: {op:?} in slot {slot} ends with {status}");
                let mut seen = [0; 4096];
                self.blk.look(slot, &mut seen)?;
                ensure!(seen == [round * 16 + slot as u8; 4096], "round {round}, slot {slot}: {}", seen[0]);
            }
        }
        ensure!(self.blk.take()?.is_none(), "something was completed twice");
        Ok(())
    }

    /// The ring stops and starts again, as in a guest that is reset.
    fn pause(&mut self) -> anyhow::Result<()> {
        let (place, wires) = self.front.ring(0);
        let stopped = self.front.stop(0).and_then(|_| self.front.start(&place, &wires));
        if let Err(error) = stopped {
            // It has died over it: the successor has started the ring.
            self.daemon.ended().with_context(|| format!("{error:#}"))?;
            self.look()?;
        }
        Ok(())
    }

    fn live(mut self) -> anyhow::Result<u32> {
        for round in 1..=3 {
            self.batch(round)?;
        }
        self.pause()?;
        self.batch(4)?;
        // The guest sees a completion before the daemon comes by the point behind it: the last one may be met only now.
        self.look()?;
        Ok(self.met)
    }
}

fn start(daemon: &mut Daemon, order: Option<String>) -> anyhow::Result<()> {
    match order {
        Some(order) => daemon.start_with(&["--kill-point", &order]),
        None => daemon.start(),
    }
}

/// Lives and deaths at each point, the `count`th time that a process comes by; the points that were met.
fn die_everywhere(count: u32, manner: Manner) -> anyhow::Result<BTreeSet<&'static str>> {
    let mut reached = BTreeSet::new();
    for point in KillPoint::ALL {
        let order = format!("{}:{count}", point.name());
        let alone = Lives::new(&[&order], manner).and_then(Lives::live);
        let alone = alone.with_context(|| format!("{order}, then an honest life"))?;
        let orders = [UNSETTLED, &order];
        let after = Lives::new(&orders, manner).and_then(Lives::live);
        let after = after.with_context(|| format!("{orders:?}, then an honest life"))?;
        ensure!(alone <= 1 && (1..=2).contains(&after), "{order}: {alone} and {after} deaths");
        if alone == 1 || after == 2 {
            reached.insert(point.name());
        }
    }
    Ok(reached)
}

#[test]
fn a_death_at_any_point_is_not_noticed() -> anyhow::Result<()> {
    let reached = die_everywhere(1, Manner::Qemu)?;
    let missing: Vec<_> = KillPoint::ALL.iter().map(|p| p.name()).filter(|p| !reached.contains(p)).collect();
    ensure!(missing.is_empty(), "nobody came by {missing:?}");
    Ok(())
}

#[test]
fn nor_is_one_in_the_middle_of_a_batch() -> anyhow::Result<()> {
    die_everywhere(4, Manner::CloudHypervisor).map(drop)
}

#[test]
fn nor_is_one_later_on() -> anyhow::Result<()> {
    die_everywhere(9, Manner::Qemu).map(drop)
}
