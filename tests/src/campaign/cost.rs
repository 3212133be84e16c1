//! What the ledger costs: random reads of 4 KiB out of the page cache, 32 at a time, with and without it, in turns.

use std::time::{Duration, Instant};

use anyhow::Context;
use vsc::storage::{Buffer, Storage, StorageOptions, scsi::read_16, wire::Direction};

use crate::disk::Disk;
use crate::guest::SoftPlatform;
use crate::steps::{Dice, Guest, LIMIT};
use crate::vm::Vm;

/// Size of the disk.
const DISK: u64 = 64 << 20;
const DEPTH: usize = 32;
/// Bytes of a read, and blocks.
const READ: u32 = 4096;
const BLOCKS: u32 = 8;
/// How long each side is measured at a time.
const TURN: Duration = Duration::from_millis(250);
/// Rounds between two beginnings.
const LIFE: u32 = 4;

/// The same reads through a process with a ledger and one without.
#[derive(Debug)]
pub struct Round {
    /// Nanoseconds a read with it.
    pub with: f64,
    /// And without.
    pub without: f64,
}

struct Side {
    storage: Storage<SoftPlatform>,
    buffers: Vec<Buffer>,
    dice: Dice,
    _guest: Guest,
    _vm: Vm,
}

impl Side {
    fn start(disk: &Disk, arguments: &[&str]) -> anyhow::Result<Self> {
        let vm = Vm::builder().storage("disk0", &[disk.argument("")]).with(arguments).start()?;
        let mut guest = Guest::connect(&vm)?;
        let offer = guest.offer(0)?;
        let options = StorageOptions { depth: DEPTH, ..StorageOptions::default() };
        let storage = Storage::open(&mut guest.client, &offer, &options)?;
        let buffers = (0..DEPTH).map(|_| storage.allocate(READ)).collect::<Result<_, _>>()?;
        Ok(Self { storage, buffers, dice: Dice(7), _guest: guest, _vm: vm })
    }

    /// Nanoseconds a read.
    fn measure(&mut self) -> anyhow::Result<f64> {
        let (begin, mut done) = (Instant::now(), 0u64);
        let mut free: Vec<usize> = (0..DEPTH).collect();
        while begin.elapsed() < TURN {
            while let Some(n) = free.pop() {
                let lba = u64::from(self.dice.roll((DISK / u64::from(READ)) as u32)) * u64::from(BLOCKS);
                self.storage.push(0, &read_16(lba, BLOCKS), Direction::Read, self.buffers[n])?;
            }
            self.storage.flush_requests()?;
            done += self.take(&mut free)?;
        }
        while self.storage.in_flight() > 0 {
            done += self.take(&mut free)?;
        }
        Ok(begin.elapsed().as_nanos() as f64 / done as f64)
    }

    /// Waits for a completion and takes those that are there besides.
    fn take(&mut self, free: &mut Vec<usize>) -> anyhow::Result<u64> {
        let mut timeout = LIMIT;
        let mut done = 0;
        while let Some(completion) = self.storage.completion(timeout)? {
            anyhow::ensure!(completion.moved()? == READ);
            // Whose buffer it was is all the same, as nobody looks into it.
            free.push(free.len());
            done += 1;
            timeout = Duration::ZERO;
        }
        anyhow::ensure!(done > 0, "no completion");
        Ok(done)
    }
}

/// Measures; the order of the two sides changes from round to round.
///
/// Where the kernel puts a process's memory makes some percent of difference for as long as the process lives, so both sides begin anew every
/// few rounds, each with the other's disk.
pub fn measure(rounds: u32) -> anyhow::Result<Vec<Round>> {
    let disks = [Disk::new(DISK)?, Disk::new(DISK)?];
    for disk in &disks {
        std::os::unix::fs::FileExt::write_all_at(&disk.file, &vec![0x77; DISK as usize], 0)?;
    }
    let mut all = Vec::new();
    for (pair, first) in (0..rounds).step_by(LIFE as usize).enumerate() {
        let [one, other] = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
        let with = || Side::start(&disks[one], &[]).context("with a ledger");
        let without = || Side::start(&disks[other], &["--bench-without-ledger"]).context("without a ledger");
        let (mut with, mut without) = if pair / 2 % 2 == 0 {
            (with()?, without()?)
        } else {
            let without = without()?;
            (with()?, without)
        };
        // One that does not count, to warm up.
        for n in 0..=LIFE.min(rounds - first) {
            let round = if n % 2 == 0 {
                let with = with.measure()?;
                Round { with, without: without.measure()? }
            } else {
                let without = without.measure()?;
                Round { with: with.measure()?, without }
            };
            if n > 0 {
                all.push(round);
            }
        }
    }
    Ok(all)
}
