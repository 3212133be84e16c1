//! The program; everything is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use vsp_hid::cli::{Args, run};

/// Memory comes from `mmap` alone: a process behind its closed door needs no `brk`, as glibc's own allocator would.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    run(&Args::parse())
}
