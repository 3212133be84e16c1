//! The load of one channel: reads, writes of many sizes, flushes and trims, as many at a time as it is deep.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vmbus::ring::PushError;
use vsc::{
    Error, Platform,
    storage::{
        Buffer, Completion, RequestId, Storage,
        scsi::{opcode, read_16, unmap_list, write_16},
        wire::Direction,
    },
};

use super::block::{self, BLOCK};
use super::pulse::Pulse;
use super::run::Shape;
use super::shadow::{Claim, Shadow};
use crate::guest::SoftPlatform;
use crate::steps::Dice;

/// A request that has not completed after so long never will. No bound on speed: a hang has to end somewhere.
const GIVES_UP_AFTER: Duration = Duration::from_secs(60);
/// Longest uninterrupted wait.
const SLICE: Duration = Duration::from_millis(100);
/// Complaints that are kept; one is as good as a thousand.
const COMPLAINTS: usize = 20;

/// What came of a load.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests that completed as they should.
    pub completed: u64,
    /// Requests that never completed.
    pub lost: u64,
    /// Completions for requests that were not under way.
    pub duplicated: u64,
    /// Blocks with wrong contents, and requests that ended with an error.
    pub corrupt: u64,
    /// What was wrong, the first few.
    pub complaints: Vec<String>,
}

impl Tally {
    /// Adds another one up.
    pub fn add(&mut self, other: Self) {
        self.completed += other.completed;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.corrupt += other.corrupt;
        self.complaints.extend(other.complaints);
        self.complaints.truncate(COMPLAINTS);
    }

    /// Something is wrong.
    pub fn complain(&mut self, what: String) {
        if self.complaints.len() < COMPLAINTS {
            self.complaints.push(what);
        }
    }

    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        (self.lost, self.duplicated, self.corrupt) == (0, 0, 0)
    }
}

#[derive(Debug)]
enum Kind {
    /// What each block had for certain before.
    Read(Vec<u32>),
    Write(Claim),
    Trim(Claim),
    Flush,
}

#[derive(Debug)]
struct Job {
    id: RequestId,
    lba: u64,
    blocks: u32,
    kind: Kind,
    /// All of it; the request uses the beginning.
    buffer: Buffer,
}

/// One channel under load. It runs on a thread of its own.
pub struct Queue {
    storage: Storage<SoftPlatform>,
    shadow: Arc<Shadow>,
    pulse: Arc<Pulse>,
    dice: Dice,
    longest: u32,
    buffers: Vec<Buffer>,
    jobs: Vec<Job>,
    bytes: Vec<u8>,
    tally: Tally,
    /// The last death after which the ring has been found empty, and the last one that was reported as survived.
    seen: u64,
    reported: u64,
}

impl Queue {
    /// A load; `storage` has room for its depth.
    pub fn new(
        storage: Storage<SoftPlatform>,
        shape: Shape,
        shadow: &Arc<Shadow>,
        pulse: &Arc<Pulse>,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let longest = shape.longest.min(Shape::LONGEST);
        // Buffers begin anywhere in a page, as a guest's do.
        let buffer = |n: usize| -> Result<Buffer, Error> {
            let longest = longest * BLOCK as u32;
            let whole = storage.allocate(longest + 4096)?;
            Ok(whole.part(n as u32 * BLOCK as u32 % 4096, longest))
        };
        let buffers = (0..shape.depth).map(buffer).collect::<Result<_, _>>()?;
        Ok(Self {
            storage,
            shadow: Arc::clone(shadow),
            pulse: Arc::clone(pulse),
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            longest,
            buffers,
            jobs: Vec::new(),
            bytes: vec![0; longest as usize * BLOCK],
            tally: Tally::default(),
            seen: 0,
            reported: 0,
        })
    }

    /// Loads until the pulse is stopped, then waits for what is under way. Returns the idle channel too if it may still be used.
    pub fn run(mut self) -> (Tally, Option<Storage<SoftPlatform>>) {
        if let Err(error) = self.turns() {
            self.tally.complain(format!("the queue cannot go on: {error}"));
            // Nobody waits for these any more.
            self.tally.lost += self.jobs.len().max(1) as u64;
            self.pulse.stop();
            return (self.tally, None);
        }
        (self.tally, Some(self.storage))
    }

    fn turns(&mut self) -> Result<(), Error> {
        let mut alive = Instant::now();
        loop {
            if !self.pulse.is_stopped() {
                self.start()?;
            } else if self.jobs.is_empty() {
                return Ok(());
            }
            let (deaths, before) = (self.pulse.deaths(), self.tally.completed);
            while self.take(Duration::ZERO)? {}
            // The ring is empty: whatever comes now was completed after the death.
            self.seen = self.seen.max(deaths);
            if self.tally.completed > before || self.jobs.is_empty() || self.take(SLICE)? {
                alive = Instant::now();
            } else if alive.elapsed() > GIVES_UP_AFTER {
                let jobs: Vec<_> = self.jobs.iter().map(|job| (job.id.0, job.lba, job.blocks)).collect();
                return Err(Error::Protocol(format!("never completed (id, block, blocks): {jobs:?}")));
            }
        }
    }

    /// Starts requests while there is room and chance will have it.
    fn start(&mut self) -> Result<(), Error> {
        while let Some(buffer) = self.buffers.pop() {
            let blocks = match self.dice.roll(8) {
                0..4 => 8,
                4 => 1 + self.dice.roll(8),
                5 | 6 => 8 * (1 + self.dice.roll(4)),
                _ => 1 + self.dice.roll(self.longest),
            }
            .min(self.longest);
            let lba = u64::from(self.dice.roll((self.shadow.blocks() - u64::from(blocks) + 1) as u32));
            let kind = match self.dice.roll(100) {
                0 => Kind::Flush,
                1..4 => match self.shadow.claim(lba, blocks, true) {
                    Some(claim) => Kind::Trim(claim),
                    None => Kind::Read(self.shadow.done(lba, blocks)),
                },
                4..50 => match self.shadow.claim(lba, blocks, false) {
                    Some(claim) => Kind::Write(claim),
                    None => Kind::Read(self.shadow.done(lba, blocks)),
                },
                _ => Kind::Read(self.shadow.done(lba, blocks)),
            };
            match self.push(lba, blocks, &kind, buffer) {
                Ok(id) => self.jobs.push(Job { id, lba, blocks, kind, buffer }),
                Err(Error::Push(PushError::Full { .. })) => {
                    self.buffers.push(buffer);
                    match kind {
                        Kind::Write(claim) => self.shadow.abandon(&claim),
                        Kind::Trim(claim) => self.retry_trim(claim)?,
                        Kind::Read(_) | Kind::Flush => {}
                    }
                    break;
                }
                Err(error) => return Err(error),
            }
            // Not always to the brim, so that batches have all sizes.
            if self.dice.roll(16) == 0 {
                break;
            }
        }
        self.storage.flush_requests()
    }

    /// A trim cannot be taken back, for others may have counted on it: it waits for room.
    fn retry_trim(&mut self, claim: Claim) -> Result<(), Error> {
        self.storage.flush_requests()?;
        let until = Instant::now() + GIVES_UP_AFTER;
        let (lba, blocks) = (claim.lba, claim.generations.len() as u32);
        let kind = Kind::Trim(claim);
        loop {
            self.take(SLICE)?;
            let Some(buffer) = self.buffers.pop() else { continue };
            match self.push(lba, blocks, &kind, buffer) {
                Ok(id) => {
                    self.jobs.push(Job { id, lba, blocks, kind, buffer });
                    return Ok(());
                }
                Err(Error::Push(PushError::Full { .. })) if Instant::now() < until => {
                    self.buffers.push(buffer)
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn push(&mut self, lba: u64, blocks: u32, kind: &Kind, buffer: Buffer) -> Result<RequestId, Error> {
        let len = blocks as usize * BLOCK;
        let data = buffer.part(0, len as u32);
        match kind {
            Kind::Read(_) => {
                // What is not overwritten belongs to no block.
                self.storage.platform().write(data.address, &POISON[..len]);
                self.storage.push(0, &read_16(lba, blocks), Direction::Read, data)
            }
            Kind::Write(claim) => {
                let bytes = self.bytes[..len].chunks_exact_mut(BLOCK);
                for ((lba, generation), bytes) in (lba..).zip(&claim.generations).zip(bytes) {
                    block::fill(bytes, lba, *generation);
                }
                self.storage.platform().write(data.address, &self.bytes[..len]);
                self.storage.push(0, &write_16(lba, blocks), Direction::Write, data)
            }
            Kind::Trim(_) => {
                let list = unmap_list(&[(lba, blocks)]);
                self.storage.platform().write(buffer.address, &list);
                let mut cdb = [0; 10];
                cdb[0] = opcode::UNMAP;
                cdb[7..9].copy_from_slice(&(list.len() as u16).to_be_bytes());
                self.storage.push(0, &cdb, Direction::Write, buffer.part(0, list.len() as u32))
            }
            Kind::Flush => {
                let mut cdb = [0; 10];
                cdb[0] = opcode::SYNCHRONIZE_CACHE_10;
                self.storage.push(0, &cdb, Direction::None, Buffer::NONE)
            }
        }
    }

    /// Takes a completion; false if there is none in time.
    fn take(&mut self, timeout: Duration) -> Result<bool, Error> {
        let done = match self.storage.completion(timeout) {
            Ok(None) => return Ok(false),
            Ok(Some(done)) => done,
            Err(Error::UnknownCompletion(id)) => {
                self.tally.duplicated += 1;
                self.tally.complain(format!("request {id} was completed but is not under way"));
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        self.pulse.beat();
        if !timeout.is_zero() {
            // The ring was empty when this queue went to sleep.
            self.seen = self.seen.max(self.pulse.deaths_past());
        }
        if self.seen > self.reported {
            self.reported = self.seen;
            self.pulse.revived(self.seen);
        }
        self.finish(&done);
        Ok(true)
    }

    fn finish(&mut self, done: &Completion) {
        let Some(at) = self.jobs.iter().position(|job| job.id == done.id) else {
            self.tally.duplicated += 1;
            return self.tally.complain(format!("request {} has no job", done.id.0));
        };
        let job = self.jobs.swap_remove(at);
        self.buffers.push(job.buffer);
        self.tally.completed += 1;
        let len = job.blocks * BLOCK as u32;
        let due = match job.kind {
            Kind::Read(_) | Kind::Write(_) => Some(len),
            Kind::Trim(_) | Kind::Flush => None,
        };
        match done.moved() {
            Ok(moved) if due.is_none_or(|due| due == moved) => {}
            Ok(moved) => self.wrong(format!("{moved} bytes were moved for {job:?}")),
            Err(error) => self.wrong(format!("{error} for {job:?}")),
        }
        let bytes = &mut self.bytes[..len as usize];
        match &job.kind {
            Kind::Read(before) => {
                self.storage.platform().read(job.buffer.address, bytes);
                let blocks = before.iter().zip(bytes.chunks_exact(BLOCK));
                let judged = (job.lba..)
                    .zip(blocks)
                    .map(|(lba, (done, bytes))| self.shadow.judge(lba, *done, block::read(bytes)));
                let wrong: Vec<String> = judged.filter_map(Result::err).collect();
                wrong.into_iter().for_each(|what| self.wrong(what));
            }
            Kind::Write(claim) => {
                // Had a dead process's read landed here meanwhile, the disk would have got that.
                self.storage.platform().read(job.buffer.address, bytes);
                let blocks = claim.generations.iter().zip(bytes.chunks_exact(BLOCK));
                let changed = (claim.lba..).zip(blocks).any(|(lba, (generation, bytes))| {
                    block::read(bytes) != block::Contents::Written { lba, generation: *generation }
                });
                self.shadow.settle(claim);
                if changed {
                    self.wrong(format!("somebody wrote into the buffer of a write: {:?}", job.id));
                }
            }
            Kind::Trim(claim) => self.shadow.settle(claim),
            Kind::Flush => {}
        }
    }

    fn wrong(&mut self, what: String) {
        self.tally.corrupt += 1;
        self.tally.complain(what);
    }
}

static POISON: [u8; Shape::LONGEST as usize * BLOCK] = [0xa5; Shape::LONGEST as usize * BLOCK];
