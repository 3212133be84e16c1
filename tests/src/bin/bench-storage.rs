//! A guest that reads as it is told to: what `cargo xtask bench storage` starts. See [`bulkhead_tests::bench`].

#![forbid(unsafe_code)]

use std::path::PathBuf;

use bulkhead_tests::bench::{guest::SoftGuest, serve, wait::Wait};
use clap::Parser;

#[derive(Parser)]
struct Args {
    /// The disk
    #[arg(long)]
    path: PathBuf,
    /// More of `vsp-storage --disk`, with a comma first
    #[arg(long, default_value = "")]
    options: String,
    /// How it waits for the end of a read
    #[arg(long, value_enum, default_value_t)]
    wait: Wait,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut guest = SoftGuest::start(&args.path, &args.options, args.wait)?;
    let size = guest.size();
    serve(&mut guest, size, std::io::stdin().lock(), std::io::stdout().lock())
}
