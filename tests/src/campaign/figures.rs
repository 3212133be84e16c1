//! How long the guest waits: after a kill without and with a spare, and around a planned swap.
//!
//! Under the load of the campaigns, with the disk in memory: a process whose flush is under way on a real one dies only when that
//! has ended, which is as it has to be, and would be a figure of that disk.

use std::time::Duration;

use super::latency::Latencies;
use super::swaps::Swaps;
use super::victim::{Kind, Victim};
use super::witness::{Witness, look_first};
use crate::disk::Disk;
use crate::load::{Load, Shape};
use crate::supervised::{RETURNS_WITHIN, Setup, Supervised, served};

/// Size of the disk.
const DISK: u64 = 64 << 20;
/// Completions between two kills.
const PROGRESS: u64 = 200;
/// What a device rests between two kills, so that the machine is not still busy with the last one.
const REST: Duration = Duration::from_millis(20);

/// Times of a kind, those in which the machine stood still apart.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// The machine was there all the time.
    pub undisturbed: Latencies,
    /// It was not, as a [`Witness`] has seen.
    pub disturbed: Latencies,
}

impl Measured {
    /// One more.
    pub fn add(&mut self, latency: Duration, is_disturbed: bool) {
        if is_disturbed { &mut self.disturbed } else { &mut self.undisturbed }.add(latency);
    }
}

/// From a kill to the first completion after it.
pub fn kills(rounds: u64, spare: bool, shape: Shape) -> anyhow::Result<Measured> {
    let disk = Disk::in_memory(DISK)?;
    let vm = Supervised::start(&disk, &Setup { spare, ..Setup::default() })?;
    let (mut client, offer) = vm.guest()?;
    let load = Load::start(&mut client, &offer, shape, Load::blocks(DISK), 1)?;
    let mut backend = vm.backend()?;
    look_first();
    let witness = Witness::new();
    let mut measured = Measured::default();
    for n in 1..=rounds {
        anyhow::ensure!(
            load.pulse.wait_beats(PROGRESS, RETURNS_WITHIN),
            "the load stands still before kill {n}"
        );
        std::thread::sleep(REST);
        let Some(pid) = served(&mut *backend, spare)?.pid else { continue };
        let victim = Victim::new(pid)?;
        let begun = victim.end(Kind::Kill)?;
        victim.wait_silent(RETURNS_WITHIN)?;
        let at = load.pulse.wait(load.pulse.died(), RETURNS_WITHIN);
        let at = at.ok_or_else(|| anyhow::anyhow!("no completion after kill {n}"))?;
        let is_disturbed = witness.as_ref().is_some_and(|witness| witness.saw_something(begun, at));
        measured.add(at.saturating_duration_since(begun), is_disturbed);
        victim.wait(RETURNS_WITHIN)?;
    }
    let (tally, _) = load.finish(&disk)?;
    anyhow::ensure!(tally.is_clean(), "{tally:?}");
    Ok(measured)
}

/// The longest pause between two completions around a planned swap, and in as long a time without one.
pub fn swaps(rounds: u64, shape: Shape) -> anyhow::Result<(Measured, Measured)> {
    let (outcome, pauses) =
        Swaps { swaps: rounds, seed: 1, other: None, shape, in_memory: true }.run_and_measure()?;
    anyhow::ensure!(outcome.is_clean(), "{:?} {:?}", outcome.failure, outcome.tally);
    Ok((pauses.around, pauses.calm))
}
