//! Kills a device process again and again, at random moments, under a load that notices everything.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bulkhead::device::Backend;

use super::latency::Latencies;
use super::victim::{Kind, Victim};
use crate::disk::Disk;
use crate::load::{Load, Pulse, Shape, Tally};
use crate::steps::Dice;
use crate::supervised::{RETURNS_WITHIN, Setup, Supervised, row, served};

/// Size of the disk: small enough that requests meet often, large enough that most do not.
const DISK: u64 = 64 << 20;
/// Completions after each death before the next one is due, so that each counts.
const PROGRESS: u64 = 16;
/// Longest random delay between that and the next kill.
const DELAY_US: u32 = 30_000;
/// How long a stopped process may stand still here: waiting for the supervisor's own 3 s would make the campaign one of waiting.
const WATCHDOG: Duration = Duration::from_millis(400);
/// Of a thousand endings, how many are of the kinds other than SIGKILL. A hung process takes more than a second to be
/// rid of.
const SEGV_PERMILLE: u32 = 15;
const SYS_PERMILLE: u32 = 10;
const STOP_PERMILLE: u32 = 3;
/// With a spare, one in so many kills hits that and not the process that serves.
const SPARE_SHARE: u32 = 10;
/// Something is said about the campaign's progress so often.
const REPORT: Duration = Duration::from_secs(10);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Processes to kill.
    pub kills: u64,
    /// Where chance begins.
    pub seed: u64,
    /// With a warm spare.
    pub spare: bool,
    /// Ways to kill.
    pub kinds: Vec<Kind>,
    /// Channels of the controller.
    pub shape: Shape,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Processes killed that were serving.
    pub kills: u64,
    /// What the guest noticed.
    pub tally: Tally,
    /// From the kill to the first completion after it, by kind.
    pub latencies: BTreeMap<Kind, Latencies>,
    /// The part of it until none of its code runs any more, of SIGKILLs: the kernel's.
    pub deaths: Latencies,
    /// Why it ended early.
    pub failure: Option<String>,
    /// What the supervisor and its processes said.
    pub log: String,
}

impl Outcome {
    /// The line that says it all.
    pub fn line(&self) -> String {
        let Tally { completed, lost, duplicated, corrupt, .. } = self.tally;
        let kills = self.kills;
        let latencies = self.latencies.get(&Kind::Kill).cloned().unwrap_or_default();
        format!(
            "kills={kills} completed={completed} lost={lost} duplicated={duplicated} corrupt={corrupt} {latencies}"
        )
    }

    /// Whether nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.failure.is_none() && self.tally.is_clean()
    }
}

impl Campaign {
    /// Runs it.
    pub fn run(&self) -> anyhow::Result<Outcome> {
        let disk = Disk::new(DISK)?;
        let watchdog = self.kinds.contains(&Kind::Stop).then_some(WATCHDOG);
        let setup = Setup { spare: self.spare, watchdog, ..Setup::default() };
        let vm = Supervised::start(&disk, &setup)?;
        let (mut client, offer) = vm.guest()?;
        let load = Load::start(&mut client, &offer, self.shape, Load::blocks(DISK), self.seed)?;
        let mut outcome = Outcome::default();
        let result = self.kill(&mut *vm.backend()?, &load.pulse, &mut outcome);
        let (tally, storages) = load.finish(&disk)?;
        outcome.tally = tally;
        outcome.failure = result.err().map(|error| format!("{error:#}"));
        if outcome.is_clean() {
            // An idle device is closed as always.
            for storage in storages.into_iter().rev() {
                client.close(storage.into_channel()?).context("closing after all that")?;
            }
        }
        outcome.log = vm.log();
        Ok(outcome)
    }

    fn kill(&self, backend: &mut dyn Backend, pulse: &Pulse, outcome: &mut Outcome) -> anyhow::Result<()> {
        let mut dice = Dice(self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
        let (mut reported, begin) = (Instant::now(), Instant::now());
        if !pulse.wait_beats(PROGRESS, RETURNS_WITHIN) {
            bail!("the load does not get going");
        }
        while outcome.kills < self.kills {
            std::thread::sleep(Duration::from_micros(u64::from(dice.roll(DELAY_US))));
            let kind = self.pick(&mut dice);
            if self.spare && dice.roll(SPARE_SHARE) == 0 {
                if let Some(Ok(spare)) = row(backend)?.spare.map(Victim::new) {
                    let _ = spare.end(Kind::Kill);
                }
                continue;
            }
            let row = served(backend, false)?;
            let Some(pid) = row.pid else { continue };
            let victim = Victim::new(pid)?;
            // It may have ended by itself, which is for the load to judge.
            let Ok(begun) = victim.end(kind) else { continue };
            victim.wait_silent(RETURNS_WITHIN)?;
            if kind == Kind::Kill {
                outcome.deaths.add(begun.elapsed());
            }
            outcome.kills += 1;
            let number = pulse.died();
            let Some(at) = pulse.wait(number, RETURNS_WITHIN) else {
                bail!("no completion after kill {} ({kind})", outcome.kills);
            };
            outcome.latencies.entry(kind).or_default().add(at.saturating_duration_since(begun));
            // Its successor may be at work while the kernel still takes it down, and its supervisor not know better.
            victim.wait(RETURNS_WITHIN)?;
            if !pulse.wait_beats(PROGRESS, RETURNS_WITHIN) {
                bail!("the load stands still after kill {} ({kind})", outcome.kills);
            }
            if reported.elapsed() > REPORT {
                reported = Instant::now();
                let seconds = begin.elapsed().as_secs();
                eprintln!("{} kills, {} requests in {seconds} s", outcome.kills, pulse.completed());
            }
        }
        Ok(())
    }

    fn pick(&self, dice: &mut Dice) -> Kind {
        let roll = dice.roll(1000);
        let kind = match roll {
            n if n < STOP_PERMILLE => Kind::Stop,
            n if n < STOP_PERMILLE + SYS_PERMILLE => Kind::Sys,
            n if n < STOP_PERMILLE + SYS_PERMILLE + SEGV_PERMILLE => Kind::Segv,
            _ => Kind::Kill,
        };
        if self.kinds.contains(&kind) { kind } else { self.kinds.first().copied().unwrap_or(Kind::Kill) }
    }
}
