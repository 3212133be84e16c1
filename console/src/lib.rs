//! One process a VM: what its screen shows and its keyboard and mouse do, for the people who look.
//!
//! `vsp-video` and `vsp-hid` feed it over one socket each (`seat`); people come with VNC viewers (RFB), by a web page, or with
//! `bulkhead screenshot`, `type` and `key`. It maps the guest's video memory read-only and no other byte of the guest. It
//! must never believe that memory twice, wait for a viewer, or keep more of one than a bounded buffer.
//!
//! * [`screen`]: a copy of the guest's picture, and [`damage`]: what of it has changed.
//! * [`rfb`]: the protocol's messages and handshake, pure; [`encode`]: pixels as bytes of the protocol.
//! * [`viewer`]: one person who looks, over a [`stream`]; [`web`]: those who come by a browser.
//! * [`keysym`], [`input`]: from the keys of a viewer to those of the guest; [`typist`]: keys by command.
//! * [`control`]: what the `bulkhead` command asks.
//! * [`seatside`], [`listener`], [`peers`]: the sockets; [`console`]: the event loop that ties all of it together.
//! * [`given`], [`compartment`], [`cli`]: how the process begins.

#![forbid(unsafe_code)]

pub mod cli;
pub mod compartment;
pub mod console;
pub mod control;
pub mod damage;
pub mod encode;
pub mod given;
pub mod input;
pub mod keysym;
pub mod listener;
pub mod peers;
pub mod rfb;
mod run;
pub mod screen;
pub mod seatside;
pub mod stream;
pub mod typist;
pub mod viewer;
pub mod web;

pub use run::run;
