//! The program; everything is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use vsp::Program;
use vsp_net::cli::Args;
use vsp_net::{device, virtio};

fn main() -> ExitCode {
    let args = Args::parse();
    let program = Program { name: "vsp-net", policy: args.policy() };
    let backend = || args.backend.open().map_err(|error| error.to_string());
    if args.vhost_user.is_wanted() {
        return vhost_face::serve(program, &args.common, &args.vhost_user, || {
            virtio::Net::open(args.setting(), backend()?).map_err(|error| error.to_string())
        });
    }
    vsp::serve(program, &args.common, || {
        device::Net::open(args.setting(), backend()?).map_err(|error| error.to_string())
    })
}
