//! The screen of a VM, its keyboard and its mouse.
//!
//! * [`seat`]: what lies between their processes and the console, and the sockets on which people come
//! * [`holder`]: the same for a VM that systemd runs, as a process of its own
//! * [`command`]: `bulkhead console`, `screenshot`, `type` and `key`; [`client`] is how they talk to the console,
//!   [`page`] how an address gets into a browser
//!
//! No picture and no key passes through the supervisor: this module must never read what the sockets of a seat carry.

pub mod client;
pub mod command;
pub mod holder;
pub mod page;
pub mod seat;
