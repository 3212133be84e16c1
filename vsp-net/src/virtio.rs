//! The other face of the NIC: what a guest's `virtio_net` driver talks to, behind a front end of vhost-user's.
//!
//! Frames go and come by the same [backends](crate::backend) and under the same rules as at the end of netvsc channels; only what is
//! around them differs, and that is here. It must never believe a length, a header or a bit that a driver or a front end has said.
//!
//! * [`features`]: what may be left to whom; [`config`]: what a driver reads of the NIC; [`header`]: what is said of each frame. Pure.
//! * [`pieces`]: where a frame lies; `buffers`: where there is room for one.
//! * `net`: the device; `send`: from the driver to the backend; `receive`: the reverse; `stats`: what it has done.

mod buffers;
pub mod config;
pub mod features;
pub mod header;
mod net;
pub mod pieces;
mod receive;
mod send;
mod stats;
#[cfg(test)]
mod tests;

pub use net::Net;
