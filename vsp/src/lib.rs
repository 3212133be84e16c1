//! The runtime that every device process (VSP) is built on: attach to the core, close the compartment, serve
//! channels until the core is gone, hand them over when told so, take up what a dead predecessor has left.
//!
//! A device implements [`Device`] and calls [`serve`]; it sees packets and answers requests. It never
//! touches a socket, an index of a ring or a signal. This crate must never know what a device does, and must
//! never trust a byte that the guest can write: packets are private copies, and a ring that makes no
//! sense ends its channel, not the process.
//!
//! * [`Device`]: what a device implements.
//! * [`Request`]: one packet to be answered, as a value that cannot be lost.
//! * [`Control`]: something that an operator wants of the device.
//! * [`Channels`]: the device's way back to the guest.
//! * [`channel`]: the order in which a packet is consumed and a completion published, and what a successor makes of it.
//! * [`notify`]: signs of life for whoever supervises the process.
//! * [`compartment`], [`kill`], [`polling`], [`role`]: what the other face of a device (vhost-user) has in common with this one.
//! * [`Common`]: the command line that all device processes share.
//!
//! `docs/writing-a-vsp.md` shows a whole device.

#![forbid(unsafe_code)]

mod attach;
pub mod channel;
mod channels;
mod cli;
pub mod compartment;
mod control;
mod device;
pub mod kill;
pub mod notify;
pub mod polling;
mod prepared;
mod request;
pub mod role;
mod runtime;
mod serve;
mod slot;
mod stamp;
#[cfg(feature = "testing")]
pub mod testing;

pub use attach::AttachError;
pub use channel::RETURN_PAYLOAD;
pub use channels::{ChannelId, Channels, Lend, Notify};
pub use cli::Common;
pub use control::Control;
pub use device::{Access, Device, OpenRequest, Packet, Refused, Vm};
pub use ipc::message::{Offer, OfferFlags};
pub use ipc::shm::{GuestBuffer, GuestRam, RamError, SharedMemory, Span};
pub use request::Request;
pub use runtime::{Flow, Runtime, RuntimeError, Setting};
pub use sandbox::policies;
pub use serve::{Program, serve};
pub use vmbus::packet::{Outgoing, TransferPages, TransferRange};
pub use {ipc, vmbus};
