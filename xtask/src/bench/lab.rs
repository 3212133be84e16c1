//! A bench in the lab: our guest and QEMU's side by side in one boot, in turns.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::images::With;
use crate::job::Job;
use crate::scenarios::{GUEST_FUNCTIONS, Guest, Spec};
use crate::{cache, lab, sh};

const BENCH_FUNCTIONS: &str = include_str!("../../recipes/lab/bench.sh");

/// What runs where.
pub struct Bench<'a> {
    /// For files and messages.
    pub name: &'a str,
    /// Our guest; its job is QEMU's guest's too.
    pub spec: Spec,
    /// What drives both, after the functions.
    pub script: &'a str,
}

impl Bench<'_> {
    /// Runs it; what it has printed.
    pub fn run(&self, binaries: &[PathBuf], rounds: u32, verbose: bool) -> Result<String> {
        let name = format!("bench-{}", self.name);
        let directory = cache::root()?.join("runs").join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let mut job = Job::new(&name).timeout(Duration::from_secs(900 + 90 * u64::from(rounds)));
        job.live = verbose;
        job.verbose = verbose;
        job.cards = self.spec.cards.to_vec();
        job.host = self.spec.host;
        if self.spec.guest == Guest::Trixie {
            job.with(With::Trixie);
        }
        job.binaries(binaries);
        for (name, text) in [("bench.toml", self.spec.to_toml().as_str()), ("bench-guest", self.spec.job)] {
            let path = directory.join(name);
            fs::write(&path, text)?;
            job.file(name, &path);
        }
        let guest = if self.spec.guest == Guest::Trixie { "trixie" } else { "bookworm" };
        job.script(&format!(
            "ROUNDS={rounds} BENCH_GUEST={guest}\n{GUEST_FUNCTIONS}\n{BENCH_FUNCTIONS}\n{}",
            self.script
        ));
        let outcome = sh::step("measuring in the lab (some minutes)", || lab::run(&job));
        // What cannot be removed is only in the way.
        let _ = fs::remove_dir_all(&directory);
        let outcome = outcome?;
        ensure!(outcome.status == 0, "the benchmark failed:\n{}", sh::tail(&outcome.output, 40));
        Ok(outcome.output)
    }
}

/// The values of lines `figure NAME VALUE`.
pub fn values(output: &str, name: &str) -> Vec<f64> {
    let value =
        |line: &str| line.strip_prefix("figure ")?.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    output.lines().filter_map(value).collect()
}
