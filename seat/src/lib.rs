//! What flows between the devices at which a person sits (screen, keyboard, mouse) and the console that shows them to people.
//!
//! One socket pair for each device (`SOCK_SEQPACKET`), one message a datagram, fixed-size little-endian fields. The supervisor
//! keeps both ends of a pair, so the death of one side is no end of file for the other, what was said survives, and whoever comes
//! next goes on with the same socket. Both ends are hostile to each other: a message is parsed from private bytes, and one that
//! makes no sense is skipped. Data and a socket wrapper: this crate must never wait, queue, or hold a policy.
//!
//! * [`Seat`]: one end of a pair.
//! * [`video`], [`keyboard`], [`mouse`]: what is said in either direction, each with the types of its two ends.
//! * [`Message`]: how a message becomes bytes, and how bytes become one.
//! * `cli` (a feature): how a process is given its end.
//! * [`shape`]: a pointer's shape, which takes several messages.

#![forbid(unsafe_code)]

mod build;
#[cfg(feature = "cli")]
pub mod cli;
pub mod keyboard;
mod message;
pub mod mouse;
pub mod shape;
mod socket;
pub mod video;

pub use build::Build;
pub use message::{MAX_MESSAGE, Message, MessageError, VERSION};
pub use socket::{Pair, Received, Seat, SeatError, Sent};
