//! (being written)
use anyhow::{Result, bail};
/// Options.
#[derive(clap::Args)]
pub struct Arguments {}
/// Runs it.
pub fn run(_: &Arguments) -> Result<std::process::ExitCode> {
    bail!("not written yet")
}
