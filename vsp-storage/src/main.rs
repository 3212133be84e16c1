//! The program; everything is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use vsp::Program;
use vsp_storage::blk::Blk;
use vsp_storage::cli::Args;
use vsp_storage::controller::{Controller, OpenError};
use vsp_storage::opener;

const PROGRAM: Program = Program { name: "vsp-storage", policy: vsp::policies::VSP_STORAGE };

const VHOST: Program = Program { name: "vsp-storage", policy: vsp::policies::VSP_STORAGE_VHOST };

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(socket) = args.open_for {
        return match opener::run(&args.common.device, &args.disk, socket) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    if args.listen.is_wanted() {
        return vhost_face::serve(VHOST, &args.common, &args.listen, || {
            Ok::<_, OpenError>(Blk::open(&args.common.device, &args.disk)?.crashing_on(args.crash_on_opcode))
        });
    }
    vsp::serve(PROGRAM, &args.common, || {
        Ok::<_, OpenError>(
            Controller::open(&args.common.device, &args.disk)?.crashing_on(args.crash_on_opcode),
        )
    })
}
