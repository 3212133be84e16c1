//! Whole-system tests: the software partition, and the harness that runs real processes on it.
//!
//! The guest is the test itself: Rust code on the `vsc` crate, in the test's own process. The
//! core is the real server in a process of its own (`soft-core`), device processes are the real
//! binaries in their compartments. What KVM does in the lab, messages on a socket do here: see [`line`].

#![forbid(unsafe_code)]

pub mod bench;
pub mod campaign;
pub mod device_memory;
pub mod disk;
pub mod guest;
pub mod line;
pub mod load;
pub mod net;
pub mod operator;
pub mod partition;
pub mod passer;
pub mod passing;
pub mod pci;
pub mod process;
pub mod screen;
pub mod scribe;
pub mod steps;
pub mod supervised;
mod trace;
pub mod vhost;
pub mod vm;

pub use guest::SoftPlatform;
pub use vm::{Vm, VmBuilder};
