//! The program; everything is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    vsp_pci::cli::run(&vsp_pci::cli::Args::parse())
}
