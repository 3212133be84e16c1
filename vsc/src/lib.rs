//! The guest's side of VMBus, for tests, benchmarks and fuzzing: a client of the bus, and consumers of devices.
//!
//! What a guest kernel's drivers do, in a plain process: connect, take offers, share rings, open channels, talk to
//! devices. What is the machine's (posting messages, signals, memory, interrupts) is behind [`Platform`], so the
//! same client runs on anything that can play a partition.
//!
//! The crate is an honest guest that checks more than one would (a completion that is lost, repeated or invented
//! is an error), and its raw access ([`Client::post_raw`], [`Channel::writer`]) lets a test be a dishonest one. It
//! never reaches into a host: what it learns, it learns from the bus.

#![forbid(unsafe_code)]

pub mod channel;
pub mod client;
pub mod echo;
mod error;
pub mod keyboard;
pub mod memory;
pub mod mouse;
pub mod net;
pub mod pci;
pub mod platform;
pub mod storage;
#[cfg(test)]
mod testing;
pub mod video;

pub use channel::{Channel, Packet};
pub use client::{Client, Gpadl, OpenOptions, Options};
pub use error::Error;
pub use platform::{Platform, PostError};
