//! The runtime of the second face that a device process has: vhost-user, by which the device serves a virtio guest of QEMU, Cloud
//! Hypervisor or crosvm instead of a VMBus guest of ours. What `vsp` is for the one face this crate is for the other.
//!
//! A device implements [`Face`] and calls [`serve`]; it sees chains of guest memory and ends requests. It never touches a socket, an
//! index of a ring or a signal. This crate must never know what a device does, and must never trust a byte of either side: not the
//! guest, whose rings and descriptors are read once and checked, and not the front end, whose messages, memory and descriptors are.
//! A message that makes no sense ends its connection, a ring that makes none stops its queue; neither ends the process.
//!
//! * [`Face`]: what a device implements; [`Request`], a value that cannot be lost; [`Chain`], what it is about; [`Queues`], the way back.
//! * [`wire`]: the messages; `session`: what they do.
//! * [`ring`]: the split ring; [`inflight`]: what a successor has to know of it, in memory that the front end keeps.
//! * [`kill`]: named places to die at.
//! * [`Listen`]: the command line.
//!
//! Protocol facts are those of QEMU's "Vhost-user Protocol" (docs/interop/vhost-user.rst) and of OASIS virtio 1.2.

#![forbid(unsafe_code)]

mod chain;
mod cli;
mod connection;
mod crash;
mod face;
pub mod inflight;
pub mod kill;
mod memory;
mod queue;
mod queues;
mod request;
pub mod ring;
mod runtime;
mod serve;
mod session;
#[cfg(feature = "testing")]
pub mod testing;
pub mod wire;

pub use chain::{Chain, MAX_CHAIN, Piece, cut};
pub use cli::Listen;
pub use face::{Face, feature};
pub use memory::MAX_SLOTS;
pub use queues::Queues;
pub use request::Request;
pub use runtime::{Runtime, RuntimeError};
pub use serve::{Program, serve};
pub use vsp::{GuestBuffer, GuestRam, Span};
