//! One process, one NIC: what a stock guest's `hv_netvsc` driver talks to, over a TAP, a macvtap or `passt`.
//!
//! The process holds its channels, the two buffers that the guest has shared, and the descriptors of its backend. It must
//! never open anything once it serves, read a guest's byte twice, or believe a length or an offset that a guest has given.
//!
//! * [`nvsp`]: the messages of the network's VMBus protocol.
//! * [`rndis`]: what is inside them: control messages, frames, per-packet information.
//! * [`oid`]: what a guest may ask and set, and the state behind it; pure.
//! * [`backend`]: where frames go and come from; `sys`: its system calls, the one unsafe module.
//! * [`device`]: the device that ties them together.
//! * [`virtio`]: the device again, for `virtio_net` drivers and vhost-user's front ends.
//! * [`offload`]: per-packet information to and from a TAP's `virtio_net_hdr`, and the repair of headers; pure.

#![deny(unsafe_code)]

pub mod backend;
pub mod cli;
pub mod device;
pub mod hash;
pub mod headers;
pub mod nvsp;
pub mod offload;
pub mod oid;
pub mod rndis;
#[allow(unsafe_code)]
mod sys;
pub mod virtio;
