//! The command that people type. It reads a VM's spec, says what is wrong with it, and supervises the processes that
//! the VM is made of.
//!
//! * [`spec`]: `vm.toml` into typed values, with diagnostics
//! * [`host`]: can this host run it?
//! * [`plan`]: from a spec to processes; [`programs`] finds their files
//! * [`runtime_dir`]: `/run/bulkhead/NAME`, and that a VM runs once
//! * [`supervise`]: starts the processes, watches and replaces them, ends with them; [`console`] is the terminal meanwhile
//! * [`device`]: what an operator sees of them and does about them
//! * [`disk`]: disks that come, go and grow while a VM runs
//! * [`net`]: what NICs are connected to; bridges and their ports
//! * [`pci`]: PCI devices of the host that VMs can have
//! * [`screen`]: what lies between the processes of a screen, and what people do with it
//! * [`holder`]: keeps for systemd what has to outlive processes
//! * [`units`]: the same with systemd as the supervisor
//! * [`cli`]: the command line; [`man`] makes the man pages from it, [`commands`] does what it says
//!
//! This crate must never touch the guest: it has no part of its memory, of its disks or of its messages.
// Only `net::tun` may: four `ioctl`s that no crate wraps.
#![deny(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod console;
pub mod device;
pub mod disk;
pub mod holder;
pub mod host;
pub mod man;
pub mod net;
pub mod pci;
pub mod plan;
pub mod programs;
pub mod runtime_dir;
pub mod screen;
pub mod spec;
pub mod supervise;
pub mod units;
