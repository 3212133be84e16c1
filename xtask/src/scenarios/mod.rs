//! What is tried in the lab: each scenario is one guest on the real product, and what has to come of it.
//!
//! A scenario knows nothing of the lab but the files in `/job`; it is a specification, a script and an expectation.

mod continuity;
mod list;
mod net;
mod pci;
mod picture;
pub mod policies;
mod screen;
mod spec;
mod storage;
mod visitor;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use spec::{Guest, Kernel, Spec};
use visitor::Visitor;

use crate::images::With;
use crate::job::{Job, Outcome, TIMED_OUT};
use crate::{build, cache, lab};

/// The functions that scripts may use.
pub const GUEST_FUNCTIONS: &str = include_str!("../../recipes/lab/guest.sh");
/// Words that never belong into the lab host's kernel log.
const HOST_TROUBLE: [&str; 5] = ["BUG:", "Oops", "general protection", "KASAN", "soft lockup"];

/// How often a scenario whose lab host fell is tried: one in some forty runs has stood still since
/// the guests keep off its first processor (`lab::qemu`).
const ATTEMPTS: u32 = 3;

/// All of them, the quickest to break first.
pub fn all() -> Vec<Scenario> {
    let mut all = list::all();
    all.extend(continuity::all());
    all.extend(storage::all());
    all.extend(net::all());
    all.extend(screen::all());
    all.extend(pci::all());
    all
}

/// The same at greater length than every run has time for, each if asked for by its whole name.
pub fn at_length() -> Vec<Scenario> {
    let mut all = list::at_length();
    all.extend(net::at_length());
    all.extend(pci::at_length());
    all
}

/// One thing to try.
pub struct Scenario {
    /// Short, for the list and for choosing.
    pub name: &'static str,
    /// The machine.
    pub spec: Spec,
    /// Runs in the lab, after the functions of `guest.sh`; its exit status counts.
    pub script: &'static str,
    /// What the script has to return.
    pub status: i32,
    /// What has to be in the output, each in one line.
    pub expect: &'static [&'static str],
    /// Time limit in seconds.
    pub limit: u64,
    /// Who looks at the guest's screen, once the script says [`visitor::COME`].
    pub visit: Option<Visitor>,
}

/// What `guest.sh` prints a little before the time is up.
const NEARLY_UP: &str = "--- the time is nearly up ---";

/// Whether the lab host ran no process any more when the time was up, not even the one that waits for that moment. A guest
/// or a device that hangs leaves it half a minute to speak.
fn stood_still(outcome: &Outcome) -> bool {
    outcome.status == TIMED_OUT && !outcome.output.contains(NEARLY_UP)
}

/// The end of what was printed: with everything that was seen of a guest that hung, and what came before.
fn last_words(output: &str) -> String {
    const LINES: usize = 50;
    let lines = output.find(NEARLY_UP).map_or(0, |place| output[place..].lines().count());
    crate::sh::tail(output, LINES + lines)
}

/// The script of a scenario that only runs its guest to the end.
pub const RUN: &str = "guest_start; guest_end";

impl Scenario {
    /// Runs it; an error says what was not as it should. Nothing is returned if it cannot be tried on this machine.
    pub fn run(&self, verbose: bool) -> Result<Option<Duration>> {
        let start = Instant::now();
        if let Some(visitor) = self.visit
            && !visitor.ready()?
        {
            return Ok(None);
        }
        let mut job = Job::new(self.name).timeout(Duration::from_secs(self.limit));
        job.verbose = verbose;
        job.live = verbose;
        job.cards = self.spec.cards.to_vec();
        job.host = self.spec.host;
        let specification = cache::root()?.join("runs");
        std::fs::create_dir_all(&specification)?;
        let specification = specification.join(format!("{}-{}.toml", self.name, std::process::id()));
        std::fs::write(&specification, self.spec.to_toml())?;
        job.file("vm.toml", &specification);
        let guest_job = specification.with_extension("img");
        if let Some(script) = self.spec.long_job() {
            std::fs::write(&guest_job, script)?;
            job.file(spec::JOB_DISK, &guest_job);
        }
        job.binaries(&build::binaries("release", false)?);
        if self.spec.guest == Guest::Trixie {
            job.with(With::Trixie);
        }
        job.script(&format!("LIMIT={}\n{GUEST_FUNCTIONS}\n{}", self.limit, self.script));
        if self.spec.screen {
            job.results = Some(picture::directory(self.name)?);
        }
        job.visit = self.visit.map(Visitor::visit);
        let mut attempt = 1;
        let outcome = loop {
            let outcome = lab::run(&job);
            // No process can bring a kernel or a machine down: that was the emulation (of nested virtualization), and
            // says nothing about us. Whatever else goes wrong is judged as it is.
            let fell = outcome.as_ref().is_ok_and(|outcome| outcome.host_fell() || stood_still(outcome));
            if !fell || attempt == ATTEMPTS {
                break outcome;
            }
            eprintln!("{}: the lab host itself fell (attempt {attempt} of {ATTEMPTS})", self.name);
            attempt += 1;
        };
        std::fs::remove_file(&specification)?;
        // Most have none.
        let _ = std::fs::remove_file(&guest_job);
        self.judge(&outcome?)?;
        Ok(Some(start.elapsed()))
    }

    fn judge(&self, outcome: &Outcome) -> Result<()> {
        let missing: Vec<&&str> =
            self.expect.iter().filter(|text| !outcome.output.contains(**text)).collect();
        let trouble: Vec<&str> = outcome
            .kernel
            .lines()
            .filter(|line| HOST_TROUBLE.iter().any(|word| line.contains(word)))
            .collect();
        if outcome.status == self.status && missing.is_empty() && trouble.is_empty() {
            return Ok(());
        }
        let mut why = format!("status {} (wanted {})", outcome.status, self.status);
        if !missing.is_empty() {
            why += &format!("; missing from the output: {missing:?}");
        }
        if !trouble.is_empty() {
            why += &format!("; the lab host's kernel: {}", trouble.join("; "));
        }
        bail!("{why}\n{}", last_words(&outcome.output))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silence_to_the_end_is_the_hosts_fault() {
        assert!(GUEST_FUNCTIONS.contains(NEARLY_UP), "what is waited for is what is printed");
        let outcome = |status, output: &str| Outcome {
            status,
            output: output.to_owned(),
            kernel: String::new(),
            elapsed: Duration::ZERO,
        };
        assert!(stood_still(&outcome(TIMED_OUT, "the guest boots")));
        assert!(!stood_still(&outcome(TIMED_OUT, NEARLY_UP)), "a guest that hangs is judged");
        assert!(!stood_still(&outcome(1, "")));
    }
}
