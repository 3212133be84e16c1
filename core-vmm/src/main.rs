//! The core of one VM. Started by `bulkhead run` or by systemd; people do not type it.

#![forbid(unsafe_code)]

use std::{os::fd::RawFd, path::PathBuf, process::ExitCode};

use clap::Parser;
use core_vmm::{
    legacy::Outcome,
    runner::{RunError, Runner},
    setup,
};

/// The guest has switched itself off.
const POWERED_OFF: u8 = 0;
/// This host cannot run the VM, or the configuration is wrong; nothing was started.
const CANNOT_RUN: u8 = 1;
/// The guest crashed.
const CRASHED: u8 = 3;
/// We failed.
const FAILED: u8 = 4;

/// The partition of one Bulkhead VM: processors, memory, interrupts and the VMBus server.
///
/// Exit codes: 0 the guest powered off; 1 this host or configuration cannot run it; 2 wrong
/// arguments; 3 the guest crashed; 4 the machine monitor failed.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Configuration, as JSON (`ipc::config::CoreConfig`); may be /proc/self/fd/N
    #[arg(long, value_name = "PATH")]
    config: PathBuf,
    /// Inherited listening SOCK_SEQPACKET socket to which device processes connect
    #[arg(long, value_name = "N")]
    listen_fd: Option<RawFd>,
    /// There is no PID namespace, and that is intended: whoever started this cannot make one (systemd before version 257)
    #[arg(long)]
    no_pid_namespace: bool,
    /// How to log: human or json
    #[arg(long, default_value = "human")]
    log_format: logs::Format,
    /// How much to log: off, error, warn, info, debug or trace
    #[arg(long, default_value = "info")]
    log_level: logs::Level,
}

fn main() -> ExitCode {
    let args = Args::parse();
    logs::init(args.log_format, args.log_level, "core-vmm");
    sandbox::crash::speak_with(logs::last_words);
    sandbox::exit_on_panic(FAILED.into());
    ExitCode::from(run(&args))
}

fn run(args: &Args) -> u8 {
    let started = || {
        let config = setup::read_config(&args.config)?;
        let parts = setup::open(&config, args.listen_fd)?;
        if config.sandbox {
            setup::close_door(&config, &parts, !args.no_pid_namespace)?;
        } else {
            tracing::warn!("running without a compartment, as the configuration says");
        }
        Ok::<_, setup::SetupError>(parts)
    };
    let parts = match started() {
        Ok(parts) => parts,
        Err(error) => {
            tracing::error!("{error}");
            return CANNOT_RUN;
        }
    };
    let runner = match Runner::new(parts) {
        Ok(runner) => runner,
        Err(error) => {
            tracing::error!("{error}");
            return CANNOT_RUN;
        }
    };
    match runner.run() {
        Ok(Outcome::PowerOff | Outcome::Reset | Outcome::TripleFault) => POWERED_OFF,
        Ok(Outcome::Crashed(_)) => CRASHED,
        Ok(Outcome::Failed(reason)) => {
            tracing::error!("{reason}");
            FAILED
        }
        Err(error @ RunError::Missing(_)) => {
            tracing::error!("{error}");
            CANNOT_RUN
        }
        Err(error) => {
            tracing::error!("{error}");
            FAILED
        }
    }
}
