//! A virtio-blk driver that reads as it is told to: the other side of `cargo xtask bench storage`.
//!
//! It connects to somebody else's vhost-user-blk server, `qemu-storage-daemon` say. The driver is the crate
//! `virtio-driver`, on which libblkio is built too; only the loop around it is ours, and that is the same for both sides
//! (see [`bulkhead_tests::bench`]). Nothing of the product may depend on it.

#![deny(unsafe_code)]

mod disk;
mod memory;

use std::path::PathBuf;

use bulkhead_tests::bench::{serve, wait::Wait};
use clap::Parser;

#[derive(Parser)]
struct Args {
    /// The server's socket
    #[arg(long)]
    socket: PathBuf,
    /// How it waits for the end of a read
    #[arg(long, value_enum, default_value_t)]
    wait: Wait,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut disk = disk::Disk::connect(&args.socket, args.wait)?;
    let size = disk.size();
    serve(&mut disk, size, std::io::stdin().lock(), std::io::stdout().lock())
}
