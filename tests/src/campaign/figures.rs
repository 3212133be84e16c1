//! How long the guest waits: after a kill without and with a spare, and around a planned swap.
//!
//! Under the load of the campaigns, with the disk in memory: a process whose flush is under way on a real one dies only when that
//! has ended, which is as it has to be, and would be a figure of that disk.

use std::process::Command;
use std::time::Duration;

use super::latency::Latencies;
use super::swaps::Swaps;
use super::victim::{Kind, Victim};
use crate::disk::Disk;
use crate::load::{Load, Shape};
use crate::supervised::{RETURNS_WITHIN, Setup, Supervised, served};

/// Size of the disk.
const DISK: u64 = 64 << 20;
/// Completions between two kills.
const PROGRESS: u64 = 200;
/// What a device rests between two kills, so that the machine is not still busy with the last one.
const REST: Duration = Duration::from_millis(20);

/// From a kill to the first completion after it.
pub fn kills(rounds: u64, spare: bool, shape: Shape) -> anyhow::Result<Latencies> {
    let disk = Disk::in_memory(DISK)?;
    let vm = Supervised::start(&disk, &Setup { spare, ..Setup::default() })?;
    let (mut client, offer) = vm.guest()?;
    let load = Load::start(&mut client, &offer, shape, Load::blocks(DISK), 1)?;
    let mut backend = vm.backend()?;
    look_first();
    let mut latencies = Latencies::default();
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
        latencies.add(at.saturating_duration_since(begun));
        victim.wait(RETURNS_WITHIN)?;
    }
    let (tally, _) = load.finish(&disk)?;
    anyhow::ensure!(tally.is_clean(), "{tally:?}");
    Ok(latencies)
}

/// Whoever looks when the dead process stops must not wait for a processor behind those that he looks at: what is completed before he has
/// looked does not count. Without the privilege the figures are worse than the truth.
fn look_first() {
    let id = nix::unistd::gettid().to_string();
    let _ = Command::new("chrt").args(["--fifo", "--pid", "1", &id]).output();
}

/// The longest pause between two completions around a planned swap, and in as long a time without one.
pub fn swaps(rounds: u64, shape: Shape) -> anyhow::Result<(Latencies, Latencies)> {
    let outcome = Swaps { swaps: rounds, seed: 1, other: None, shape, in_memory: true }.run()?;
    anyhow::ensure!(outcome.is_clean(), "{:?} {:?}", outcome.failure, outcome.tally);
    Ok((outcome.latencies.into_values().next().unwrap_or_default(), outcome.calm))
}
