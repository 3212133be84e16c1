//! One process, one keyboard or one mouse: what a stock guest's `hyperv-keyboard` or `hid-hyperv` driver talks to, and what carries
//! to it what people do at the console.
//!
//! The process holds its channel and one end of a socket to the console ([`seat`]). It needs no memory of the guest's but its
//! rings. It must never believe a length that the guest or the console has given, never let a release go astray (a key that stays pressed
//! is as bad as one that comes twice), and never hold an event that a death would lose: what the guest has not got lies in the socket still.
//!
//! * [`keyboard`], [`mouse`]: the two devices' messages on the wire, and what follows from one; pure.
//! * [`instrument`]: what the two have in common.
//! * [`device`]: the device of either kind: the channel, the socket, and the order of steps between them.
//! * [`state`]: what a successor has to know.
//! * [`pace`]: how fast events go to the guest.

#![forbid(unsafe_code)]

pub mod cli;
pub mod device;
pub mod instrument;
pub mod keyboard;
pub mod mouse;
pub mod pace;
pub mod state;
