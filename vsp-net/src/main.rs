//! The program; everything is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use vsp::Program;
use vsp_net::cli::Args;
use vsp_net::device::Net;

fn main() -> ExitCode {
    let args = Args::parse();
    // What it may do once it serves depends on what is behind it.
    let program = Program { name: "vsp-net", policy: args.backend.policy() };
    vsp::serve(program, &args.common, || {
        let backend = args.backend.open().map_err(|error| error.to_string())?;
        Net::open(args.setting(), backend).map_err(|error| error.to_string())
    })
}
