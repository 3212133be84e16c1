//! What is fuzzed: every parser of bytes that come from the other side of a trust boundary.
//!
//! Each function takes any bytes, drives one parser with them, and panics if something that must always hold does
//! not; `targets/` has a libFuzzer binary for each. `examples/seeds.rs` makes the seed corpus.

#![forbid(unsafe_code)]

mod bus;
mod console;
mod device;
mod hid;
mod hid_device;
mod hypercall;
mod ipc_peer;
mod ledger;
mod net;
mod script;
mod storage;
mod vhost;
mod vhost_net;
mod video;
mod vpci;
mod web;
mod wire;

pub use bus::bus;
pub use console::rfb;
pub use device::device;
pub use hid::{keyboard, mouse};
pub use hypercall::hypercall;
pub use ipc_peer::ipc_message;
pub use ledger::ledger;
pub use net::{net_offload, nvsp, rndis};
pub use script::Script;
pub use storage::{scsi_command, storvsc_packet, unmap_list};
pub use vhost::{vhost_blk, vhost_message};
pub use vhost_net::vhost_net;
pub use video::{seat, synthvid};
pub use vpci::vpci;
pub use web::web;
pub use wire::{channel_message, gpadl, packet, ring_reader, ring_writer};
