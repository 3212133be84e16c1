//! A guest that reads as it is told to: what `cargo xtask bench storage` starts. See [`bulkhead_tests::bench`].

#![forbid(unsafe_code)]

use std::path::PathBuf;

use bulkhead_tests::bench::{
    guest::{SoftGuest, Wait},
    serve,
};
use clap::Parser;

#[derive(Parser)]
struct Args {
    /// The disk
    #[arg(long)]
    path: PathBuf,
    /// More of `vsp-storage --disk`, with a comma first
    #[arg(long, default_value = "")]
    options: String,
    /// Look at the ring all the time instead of waiting for interrupts
    #[arg(long)]
    poll: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let wait = if args.poll { Wait::Poll } else { Wait::Interrupt };
    let mut guest = SoftGuest::start(&args.path, &args.options, wait)?;
    let size = guest.size();
    serve(&mut guest, size, std::io::stdin().lock(), std::io::stdout().lock())
}
