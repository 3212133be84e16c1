//! `cargo xtask chaos`: device processes are killed and replaced under a load that notices everything.
//!
//! Native: the real supervisor and device processes on the software partition. The campaign itself is a program of the
//! `tests` crate; this builds what it needs, in release, and starts it.

mod old;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Result, ensure};

use crate::{build, sh};

/// Packages with the programs that a campaign runs.
const PACKAGES: [&str; 3] = ["bulkhead", "vsp-storage", "bulkhead-tests"];

/// Options.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Kills vsp-storage at random moments under a mixed load and checks every block and every completion.
    Storage(Storage),
    /// Swaps vsp-storage for the build of another revision, and back, under the same load.
    Swap(Swap),
}

#[derive(clap::Args)]
struct Storage {
    /// How many processes are killed.
    #[arg(long, default_value_t = 1000)]
    kills: u64,
    /// Where chance begins; printed if it is left out.
    #[arg(long)]
    seed: Option<u64>,
    /// With a warm spare.
    #[arg(long)]
    spare: bool,
    /// Ways to end a process: SIGKILL, SIGSTOP (for the watchdog), SIGSEGV, SIGSYS; the others are rare.
    #[arg(long, default_value = "kill,stop,segv,sys", value_name = "LIST")]
    kinds: String,
    /// Channels of the controller.
    #[arg(long, default_value_t = 4)]
    queues: u32,
    /// Take the programs as they are.
    #[arg(long)]
    no_build: bool,
}

#[derive(clap::Args)]
struct Swap {
    /// The revision of the other build: by default HEAD if something has changed since, else the one before.
    #[arg(long, value_name = "REV")]
    old: Option<String>,
    /// How many swaps.
    #[arg(long, default_value_t = 200)]
    swaps: u64,
    /// Where chance begins.
    #[arg(long)]
    seed: Option<u64>,
    /// Take our own programs as they are.
    #[arg(long)]
    no_build: bool,
}

/// Runs a campaign.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let status = match &arguments.what {
        What::Storage(storage) => {
            let mut command = campaign(!storage.no_build)?;
            command.args(["storage", "--kinds", &storage.kinds]);
            command.args(["--kills", &storage.kills.to_string(), "--queues", &storage.queues.to_string()]);
            command.args(storage.seed.map(|seed| format!("--seed={seed}")));
            command.args(storage.spare.then_some("--spare"));
            command.status()?
        }
        What::Swap(swap) => {
            let Some(other) = old::build(swap.old.as_deref())? else { return Ok(ExitCode::SUCCESS) };
            let mut command = campaign(!swap.no_build)?;
            command.args(["swap", "--swaps", &swap.swaps.to_string(), "--other"]).arg(other);
            command.args(swap.seed.map(|seed| format!("--seed={seed}")));
            command.status()?
        }
    };
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `chaos storage` as a check: an error if anything went wrong, with the result line shown either way.
pub fn check_kills(kills: u64) -> Result<()> {
    let mut command = campaign(true)?;
    check(command.args(["storage", "--kills", &kills.to_string()]))
}

/// `chaos swap` as a check; false if there is nothing to swap with.
pub fn check_swaps(swaps: u64) -> Result<bool> {
    let Some(other) = old::build(None)? else { return Ok(false) };
    let mut command = campaign(true)?;
    check(command.args(["swap", "--swaps", &swaps.to_string(), "--other"]).arg(other)).map(|()| true)
}

fn check(command: &mut Command) -> Result<()> {
    let output = sh::output(command)?;
    output.lines().for_each(sh::say);
    Ok(())
}

/// The campaign's program, built with all that it starts.
pub fn campaign(build: bool) -> Result<Command> {
    if build {
        build::programs(&PACKAGES)?;
    }
    let program = programs().join("campaign");
    ensure!(program.is_file(), "{} is not built", program.display());
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    Ok(command)
}

fn programs() -> PathBuf {
    build::target_directory().join("release")
}
