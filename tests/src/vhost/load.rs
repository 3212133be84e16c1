//! A load on a disk, of all kinds and sizes, that checks everything and knows nothing of restarts: see [`crate::load`], whose model of the
//! disk it shares.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::blk::{Blk, LONGEST, OK, Op};
use super::memory::Memory;
use super::ring::Ring;
use crate::disk::Disk;
use crate::load::block::{self, BLOCK, Contents};
use crate::load::shadow::Claim;
use crate::load::{Pulse, Shadow, Tally};
use crate::steps::Dice;

/// A request that has not completed after so long never will. No bound on speed: a hang has to end somewhere.
const GIVES_UP_AFTER: Duration = Duration::from_secs(60);
/// Longest uninterrupted wait.
const SLICE: Duration = Duration::from_millis(100);
/// What a buffer holds before a read.
const POISON: u8 = 0xa5;

/// Rings at work, each on a thread of its own.
pub struct Load {
    /// How it goes.
    pub pulse: Arc<Pulse>,
    shadow: Arc<Shadow>,
    threads: Vec<JoinHandle<(Tally, Ring)>>,
}

impl Load {
    /// Starts a load of `depth` requests on each ring; the disk has so many blocks, all zero.
    pub fn start(
        memory: &Arc<Memory>,
        rings: Vec<Ring>,
        depth: u16,
        blocks: u64,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let (pulse, shadow) = (Arc::new(Pulse::default()), Arc::new(Shadow::new(blocks)));
        let start = |(n, ring): (u64, Ring)| {
            let queue = Queue {
                blk: Blk::new(memory, ring, depth, true)?,
                shadow: Arc::clone(&shadow),
                pulse: Arc::clone(&pulse),
                dice: Dice((seed ^ (n + 1) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
                jobs: (0..depth).map(|_| None).collect(),
                bytes: vec![0; LONGEST as usize],
                tally: Tally::default(),
            };
            let thread = std::thread::Builder::new().name(format!("ring {n}"));
            Ok(thread.spawn(move || queue.run())?)
        };
        let threads = (0..).zip(rings).map(start).collect::<anyhow::Result<_>>()?;
        Ok(Self { pulse, shadow, threads })
    }

    /// Ends the load: everything under way is waited for, every block looked at behind the daemon's back.
    pub fn finish(self, disk: &Disk) -> anyhow::Result<(Tally, Vec<Ring>)> {
        self.pulse.stop();
        let (mut tally, mut rings) = (Tally::default(), Vec::new());
        for thread in self.threads {
            let (part, ring) = thread.join().map_err(|_| anyhow::anyhow!("a ring's thread panicked"))?;
            tally.add(part);
            rings.push(ring);
        }
        if tally.lost == 0 {
            for wrong in self.shadow.check(&disk.file).context("reading the disk")? {
                tally.corrupt += 1;
                tally.complain(wrong);
            }
        }
        Ok((tally, rings))
    }
}

#[derive(Debug)]
enum Kind {
    /// What each block had for certain before.
    Read(Vec<u32>),
    Write(Claim),
    /// Discarded, or made zero: here that is the same.
    Trim(Claim),
    Flush,
    Name,
}

#[derive(Debug)]
struct Job {
    lba: u64,
    blocks: u32,
    kind: Kind,
}

struct Queue {
    blk: Blk,
    shadow: Arc<Shadow>,
    pulse: Arc<Pulse>,
    dice: Dice,
    /// By slot.
    jobs: Vec<Option<Job>>,
    bytes: Vec<u8>,
    tally: Tally,
}

impl Queue {
    fn run(mut self) -> (Tally, Ring) {
        if let Err(error) = self.turns() {
            self.tally.complain(format!("the ring cannot go on: {error:#}"));
            self.tally.lost += self.blk.ring.under_way().max(1) as u64;
            self.pulse.stop();
        }
        (self.tally, self.blk.ring)
    }

    fn turns(&mut self) -> anyhow::Result<()> {
        let mut alive = Instant::now();
        loop {
            if !self.pulse.is_stopped() {
                self.fill()?;
            } else if self.blk.ring.under_way() == 0 {
                return Ok(());
            }
            if self.finish(SLICE)? {
                alive = Instant::now();
                while self.finish(Duration::ZERO)? {}
            }
            if alive.elapsed() > GIVES_UP_AFTER {
                let left: Vec<_> = self.jobs.iter().flatten().collect();
                anyhow::bail!("never completed: {left:?}");
            }
        }
    }

    /// Starts requests in the free slots, not always in all of them.
    fn fill(&mut self) -> anyhow::Result<()> {
        for slot in 0..self.jobs.len() {
            if self.jobs[slot].is_some() {
                continue;
            }
            if self.dice.roll(16) == 0 {
                break;
            }
            let job = self.choose();
            self.start(slot as u16, &job)?;
            self.jobs[slot] = Some(job);
        }
        self.blk.ring.submit()
    }

    fn choose(&mut self) -> Job {
        let longest = LONGEST / BLOCK as u32;
        let blocks = match self.dice.roll(8) {
            0..4 => 8,
            4 => 1 + self.dice.roll(8),
            5 | 6 => 8 * (1 + self.dice.roll(4)),
            _ => 1 + self.dice.roll(longest),
        };
        let lba = u64::from(self.dice.roll((self.shadow.blocks() - u64::from(blocks) + 1) as u32));
        let read = || Kind::Read(self.shadow.done(lba, blocks));
        let kind = match self.dice.roll(100) {
            0 => Kind::Flush,
            1 => Kind::Name,
            2..5 => self.shadow.claim(lba, blocks, true).map_or_else(read, Kind::Trim),
            5..50 => self.shadow.claim(lba, blocks, false).map_or_else(read, Kind::Write),
            _ => read(),
        };
        Job { lba, blocks, kind }
    }

    fn start(&mut self, slot: u16, job: &Job) -> anyhow::Result<()> {
        let len = job.blocks * BLOCK as u32;
        match &job.kind {
            Kind::Read(_) => {
                self.bytes[..len as usize].fill(POISON);
                self.blk.fill(slot, &self.bytes[..len as usize])?;
                self.blk.start(slot, Op::In, job.lba, len)
            }
            Kind::Write(claim) => {
                let bytes = &mut self.bytes[..len as usize];
                let blocks = bytes.chunks_exact_mut(BLOCK).zip(&claim.generations);
                (claim.lba..)
                    .zip(blocks)
                    .for_each(|(lba, (bytes, generation))| block::fill(bytes, lba, *generation));
                self.blk.fill(slot, bytes)?;
                self.blk.start(slot, Op::Out, job.lba, len)
            }
            Kind::Trim(_) => {
                let op = if self.dice.roll(2) == 0 { Op::Discard } else { Op::WriteZeroes };
                self.blk.start(slot, op, job.lba, len)
            }
            Kind::Flush => self.blk.start(slot, Op::Flush, 0, 0),
            Kind::Name => self.blk.start(slot, Op::GetId, 0, 20),
        }
    }

    /// Takes a completion; false if there is none in time.
    fn finish(&mut self, timeout: Duration) -> anyhow::Result<bool> {
        let done = match timeout.is_zero() {
            true => self.blk.take(),
            false => self.blk.wait(timeout),
        };
        let (slot, status) = match done {
            Ok(None) => return Ok(false),
            Ok(Some(done)) => done,
            Err(error) => {
                self.tally.duplicated += 1;
                return Err(error);
            }
        };
        self.pulse.beat();
        self.tally.completed += 1;
        let job = self.jobs[usize::from(slot)].take().context("a completion without a request")?;
        if status != OK {
            self.wrong(format!("status {status} for {job:?}"));
        }
        let len = job.blocks as usize * BLOCK;
        match job.kind {
            Kind::Read(before) => {
                self.blk.look(slot, &mut self.bytes[..len])?;
                let blocks = before.iter().zip(self.bytes[..len].chunks_exact(BLOCK));
                let judge = |(lba, (done, bytes)): (u64, (&u32, &[u8]))| {
                    self.shadow.judge(lba, *done, block::read(bytes)).err()
                };
                let wrong: Vec<String> = (job.lba..).zip(blocks).filter_map(judge).collect();
                wrong.into_iter().for_each(|what| self.wrong(what));
            }
            Kind::Write(claim) => {
                // Had a dead process's read landed here meanwhile, the disk would have got that.
                self.blk.look(slot, &mut self.bytes[..len])?;
                let blocks = claim.generations.iter().zip(self.bytes[..len].chunks_exact(BLOCK));
                let changed = (claim.lba..).zip(blocks).any(|(lba, (generation, bytes))| {
                    block::read(bytes) != Contents::Written { lba, generation: *generation }
                });
                self.shadow.settle(&claim);
                if changed {
                    self.wrong(format!("somebody wrote into the buffer of a write: block {}", claim.lba));
                }
            }
            Kind::Trim(claim) => self.shadow.settle(&claim),
            Kind::Flush | Kind::Name => {}
        }
        Ok(true)
    }

    fn wrong(&mut self, what: String) {
        self.tally.corrupt += 1;
        self.tally.complain(what);
    }
}
