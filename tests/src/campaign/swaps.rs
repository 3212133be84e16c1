//! Two builds of a device process take turns under load.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead::device::Backend;

use super::figures::Measured;
use super::kills::Outcome;
use super::victim::Kind;
use super::witness::Witness;
use crate::disk::Disk;
use crate::load::{Load, Pulse, Shape};
use crate::supervised::{DEVICE, RETURNS_WITHIN, Setup, Supervised, served};
use crate::vm;

/// Size of the disk.
const DISK: u64 = 64 << 20;
/// Completions after each swap before the next.
const PROGRESS: u64 = 500;

/// What belongs to a swap before and after the time that the core needs for it.
const AROUND: Duration = Duration::from_millis(1);
/// After a swap the machine is still busy with it for a while.
const CALM: Duration = Duration::from_millis(30);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Swaps {
    /// How many.
    pub swaps: u64,
    /// Where chance begins.
    pub seed: u64,
    /// The other build of `vsp-storage`, with which it begins; `None`: the same one.
    pub other: Option<PathBuf>,
    /// Channels of the controller.
    pub shape: Shape,
    /// The disk is in memory, so that nothing is measured but ourselves.
    pub in_memory: bool,
}

/// The longest pauses between two completions that the guest had.
#[derive(Debug, Default)]
pub struct Pauses {
    /// Around each swap.
    pub around: Measured,
    /// In as long a time without one, under the same load.
    pub calm: Measured,
}

impl Pauses {
    /// Swaps.
    pub fn count(&self) -> usize {
        self.around.undisturbed.count() + self.around.disturbed.count()
    }
}

impl Swaps {
    /// Runs it. In the outcome `kills` are swaps, and the latencies (of [`Kind::Kill`]) the pauses around each.
    pub fn run(&self) -> anyhow::Result<Outcome> {
        let (mut outcome, Pauses { around, .. }) = self.run_and_measure()?;
        let mut all = around.undisturbed;
        all.append(around.disturbed);
        outcome.latencies.insert(Kind::Kill, all);
        Ok(outcome)
    }

    /// Runs it, and tells what the machine did from what the swaps did.
    pub fn run_and_measure(&self) -> anyhow::Result<(Outcome, Pauses)> {
        let disk = if self.in_memory { Disk::in_memory(DISK)? } else { Disk::new(DISK)? };
        let ours = vm::program("vsp-storage")?;
        let builds = [self.other.clone().unwrap_or_else(|| ours.clone()), ours];
        let setup = Setup { vsp_storage: Some(builds[0].clone()), ..Setup::default() };
        let vm = Supervised::start(&disk, &setup)?;
        let (mut client, offer) = vm.guest()?;
        let load = Load::start(&mut client, &offer, self.shape, Load::blocks(DISK), self.seed)?;
        let (mut outcome, mut pauses) = (Outcome::default(), Pauses::default());
        let result = self.swap(&mut *vm.backend()?, &load.pulse, &builds, &mut pauses);
        outcome.kills = pauses.count() as u64;
        let (tally, _) = load.finish(&disk)?;
        outcome.tally = tally;
        outcome.failure = result.err().map(|error| format!("{error:#}"));
        outcome.log = vm.log();
        Ok((outcome, pauses))
    }

    fn swap(
        &self,
        backend: &mut dyn Backend,
        pulse: &Pulse,
        builds: &[PathBuf; 2],
        pauses: &mut Pauses,
    ) -> anyhow::Result<()> {
        let witness = Witness::new();
        let longest = |from: Instant, to: Instant| {
            let pause = pulse.longest_pause(from, to).max(Duration::from_nanos(1));
            let is_disturbed =
                witness.as_ref().is_some_and(|witness| witness.saw_something(from - pause, to + pause));
            (pause, is_disturbed)
        };
        for n in 1..=self.swaps {
            anyhow::ensure!(
                pulse.wait_beats(PROGRESS, RETURNS_WITHIN),
                "the load stands still before swap {n}"
            );
            let before = served(backend, false)?;
            let to = &builds[(n % 2) as usize];
            let done =
                backend.swap(DEVICE, Some(to)).with_context(|| format!("swap {n}, to {}", to.display()))?;
            let end = Instant::now();
            let begin =
                end.checked_sub(pause_in(&done)?).context("a pause since before the machine's start")?;
            anyhow::ensure!(pulse.wait_beats(1, RETURNS_WITHIN), "the load stands still after swap {n}");
            let (pause, is_disturbed) = longest(begin - AROUND, end + AROUND);
            pauses.around.add(pause, is_disturbed);
            let after = served(backend, false)?;
            anyhow::ensure!(before.pid != after.pid, "swap {n} has changed nothing: {after:?}");
            std::thread::sleep(CALM);
            let now = Instant::now();
            let (pause, is_disturbed) = longest(now - (end - begin) - 2 * AROUND, now);
            pauses.calm.add(pause, is_disturbed);
        }
        Ok(())
    }
}

/// How long the core says that nobody served, in the sentence that an operator is told.
fn pause_in(done: &str) -> anyhow::Result<Duration> {
    let number = done.split("after a pause of ").nth(1).and_then(|rest| rest.split(' ').next());
    let ms: f64 =
        number.and_then(|number| number.parse().ok()).with_context(|| format!("no pause in {done:?}"))?;
    Ok(Duration::from_secs_f64(ms / 1000.0))
}
