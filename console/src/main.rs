//! The program; everything is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use bulkhead_console::cli::Args;
use clap::Parser;

fn main() -> ExitCode {
    bulkhead_console::run(&Args::parse())
}
