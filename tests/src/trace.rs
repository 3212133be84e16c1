//! A process under strace, so that a test can hold what it did against its policy.
//!
//! strace is what the supervisor starts then, in the namespace that was meant for the device process. Nothing else is
//! different for it: same descriptors, same compartment.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sandbox::spawn::Command;

/// All arguments as numbers, but for those of `seccomp`: see `policies::audit`.
const OPTIONS: [&str; 4] = ["-f", "-e", "raw=!seccomp", "-o"];

/// Where the log of a process goes.
pub(crate) fn log(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.strace"))
}

/// `program` under strace, writing to `log`; arguments and descriptors are still to be added.
pub(crate) fn command(program: &Path, log: &Path) -> anyhow::Result<Command<'static>> {
    Ok(Command::new(find()?).args(OPTIONS).arg(log).arg(program))
}

fn find() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("strace")).find(|file| file.is_file());
    found.context("strace is missing, without which no policy can be audited: apt-get install strace")
}
