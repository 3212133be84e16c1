//! `cargo xtask`: everything one does with the project beyond compiling it.
//!
//! * `demo`: a stock Debian guest boots from a storage process, and shows itself;
//! * `lab`: runs a command in the lab, a whole host with KVM inside QEMU's software emulation;
//! * `test`: every check there is;
//! * `chaos`: device processes killed and replaced under load;
//! * `bench NAME`: paired measurements against a peer.
//!
//! What these need and the machine lacks is installed (as root) or named (otherwise). What is expensive is
//! made once and kept, under a key that says what it was made from. Nothing here is part of the product.

#![forbid(unsafe_code)]

mod apt;
mod bench;
mod build;
mod cache;
mod chaos;
mod cpio;
mod demo;
mod guest_kernel;
mod images;
mod job;
mod lab;
mod scenarios;
mod sh;
mod test;
mod vhost_user;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Demonstrate, test and measure Bulkhead.", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boots a stock Debian guest whose root disk a sandboxed process serves, and shows what runs where.
    Demo(demo::Arguments),
    /// Runs a command (or --script, or --shell) in the lab host, with the built binaries on its PATH.
    Lab(LabArguments),
    /// Runs every check: formatting, lints, dependencies, unit tests, fuzzing, the lab.
    Test(test::Arguments),
    /// Kills and replaces device processes under a load that notices everything.
    Chaos(chaos::Arguments),
    /// Measures against a peer; a table on the terminal and JSON beside it.
    Bench(bench::Arguments),
    /// Makes the images and the frozen lab host, and says where they are.
    Images,
}

#[derive(clap::Args)]
struct LabArguments {
    /// A shell in the lab host instead of a command.
    #[arg(long, conflicts_with = "command")]
    shell: bool,
    /// A script to run with bash, before CMD if there is one.
    #[arg(long)]
    script: Option<PathBuf>,
    /// A file to take along to /job (as NAME if given; NAME may contain slashes); may be repeated.
    #[arg(long = "file", value_name = "PATH[=NAME]")]
    files: Vec<String>,
    /// Where what the job left in /job/out goes.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Also attach the Debian 13 guest.
    #[arg(long)]
    trixie: bool,
    /// Take the binaries as they are.
    #[arg(long)]
    no_build: bool,
    /// Which build of the binaries to take.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Put a PCI device into a slot of the lab host, which has an IOMMU then; may be repeated.
    #[arg(long = "card", value_name = "CARD")]
    cards: Vec<job::Card>,
    /// The lab host's kernel.
    #[arg(long, value_enum, default_value_t)]
    host_kernel: images::HostKernel,
    /// Kill the lab after so many seconds.
    #[arg(long, default_value_t = 1800)]
    timeout: u64,
    /// Keep the directory of the run (disks, logs) and say where it is.
    #[arg(long)]
    keep: bool,
    /// Show the lab host's kernel messages and QEMU's command line.
    #[arg(long, short)]
    verbose: bool,
    /// The command, run by bash in /job.
    #[arg(last = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Lab(arguments) => run_lab(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Chaos(arguments) => chaos::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Images => {
            let images = images::Images::ready(images::With::Trixie, images::HostKernel::Debian)?;
            let frozen = lab::freeze::frozen_host(&images, false)?;
            println!("{images}\nfrozen lab host: {}", frozen.directory().display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_lab(arguments: &LabArguments) -> Result<ExitCode> {
    let mut job = job::Job::new("lab").timeout(Duration::from_secs(arguments.timeout)).live();
    job.binaries(&build::binaries(&arguments.profile, !arguments.no_build)?);
    for file in &arguments.files {
        let (path, name) = match file.split_once('=') {
            Some((path, name)) => (PathBuf::from(path), name.to_owned()),
            None => {
                let path = PathBuf::from(file);
                let name = path.file_name().context("--file names no file")?.to_string_lossy().into_owned();
                (path, name)
            }
        };
        job.file(&name, &path);
    }
    let mut script = String::new();
    if let Some(path) = &arguments.script {
        script += &std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        script.push('\n');
    }
    script += &arguments.command.join(" ");
    job.script(&script);
    if arguments.trixie {
        job.with(images::With::Trixie);
    }
    job.cards.clone_from(&arguments.cards);
    job.host = arguments.host_kernel;
    job.keep = arguments.keep;
    job.verbose = arguments.verbose;
    job.results = arguments.out.clone();
    if arguments.shell || script.trim().is_empty() {
        lab::shell(&job)?;
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = lab::run(&job)?;
    Ok(ExitCode::from(u8::try_from(outcome.status).unwrap_or(1)))
}
