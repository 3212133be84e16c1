//! One process, one SCSI controller: what a stock guest's storvsc driver talks to, over raw files and block
//! devices.
//!
//! The process holds its channels, the RAM that requests name, the disks it was started with, and an io_uring that can
//! do nothing but read, write, flush and punch holes. It must never open anything once it serves, show a guest memory of its
//! own but for what it has put there, or believe a length that a guest has given.
//!
//! * [`wire`]: the storvsc protocol's packets.
//! * [`scsi`]: commands, sense data and the answers that need no disk; pure.
//! * [`disk`]: what is opened before the compartment closes.
//! * [`identity`]: that a disk is still the file that it was.
//! * [`fence`]: whose a disk is, and that nothing of a dead predecessor's is in flight; [`qemu_lock`]: QEMU's own marks.
//! * `engine`: the disks and what is under way, whoever has asked for it.
//! * `queue`, `limit`: what waits for a unit, and why; `stats`: what a unit has done, and how long it took.
//! * [`uring`]: the way to the disks; the one unsafe module.
//! * [`transfer`]: from a packet's page list to a buffer.
//! * [`controller`]: the device that ties them together, as a VMBus guest sees it; [`blk`]: as a virtio guest does.

#![deny(unsafe_code)]

pub mod blk;
pub mod cli;
pub mod control;
pub mod controller;
mod direct;
pub mod disk;
mod engine;
pub mod fence;
pub mod identity;
mod job;
mod limit;
mod lun;
pub mod opener;
mod prepare;
pub mod qemu_lock;
mod queue;
pub mod scsi;
mod shape;
mod state;
mod stats;
pub mod transfer;
#[allow(unsafe_code)]
pub mod uring;
pub mod wire;
