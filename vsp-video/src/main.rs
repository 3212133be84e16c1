//! The program; everything is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use vsp::Program;
use vsp_video::cli::Args;
use vsp_video::device::Video;

const PROGRAM: Program = Program { name: "vsp-video", policy: vsp::policies::VSP_VIDEO };

fn main() -> ExitCode {
    let args = Args::parse();
    vsp::serve(PROGRAM, &args.common, || {
        let seat = args.seat.open().map_err(|error| error.to_string())?;
        Video::open(args.setting(), seat).map_err(|error| error.to_string())
    })
}
