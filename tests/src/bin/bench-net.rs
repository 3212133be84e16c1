//! Two network stacks with a guest between them, measured as it is told to: what `cargo xtask bench net` starts. See
//! [`bulkhead_tests::net::bench`].

#![forbid(unsafe_code)]

use bulkhead_tests::net::{Memory, bench::serve};
use clap::Parser;

#[derive(Parser)]
struct Args {
    /// The NIC's process sees all of the guest's memory
    #[arg(long)]
    full: bool,
    /// Largest packet
    #[arg(long, default_value_t = 1500)]
    mtu: u32,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let memory = if args.full { Memory::Full } else { Memory::Confined };
    serve(memory, args.mtu, std::io::stdin().lock(), std::io::stdout().lock())
}
