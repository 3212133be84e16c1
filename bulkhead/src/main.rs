//! `bulkhead`: see the library of this crate.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use bulkhead::{cli::Cli, commands};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match commands::execute(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bulkhead: {error:#}");
            ExitCode::from(commands::CANNOT_RUN)
        }
    }
}
