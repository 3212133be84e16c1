//! One process, one SCSI controller: what a stock guest's storvsc driver talks to, over raw files and block
//! devices.
//!
//! The process holds its channels, the RAM that requests name, the disks it was started with, and an io_uring that can
//! do nothing but read, write, flush and punch holes. It must never open anything once it serves,
//! move data through memory of its own, or believe a length that a guest has given.
//!
//! * [`wire`]: the storvsc protocol's packets.
//! * [`scsi`]: commands, sense data and the answers that need no disk; pure.
//! * [`disk`]: what is opened before the compartment closes.
//! * [`fence`]: whose a disk is, and that nothing of a dead predecessor's is in flight.
//! * [`uring`]: the way to the disks; the one unsafe module.
//! * [`transfer`]: from a packet's page list to a buffer.
//! * [`controller`]: the device that ties them together.

#![deny(unsafe_code)]

pub mod cli;
pub mod controller;
pub mod disk;
pub mod fence;
mod job;
mod lun;
mod prepare;
pub mod scsi;
mod state;
pub mod transfer;
#[allow(unsafe_code)]
pub mod uring;
pub mod wire;
