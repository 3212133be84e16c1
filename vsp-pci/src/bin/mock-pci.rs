//! `vsp-pci` with a function that is none, for tests.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    vsp_pci::cli::run_mock(&vsp_pci::cli::MockArgs::parse())
}
