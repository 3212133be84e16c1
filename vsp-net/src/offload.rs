//! From what guests say about their frames to what TAP interfaces understand, and back.
//!
//! A TAP with `IFF_VNET_HDR` has ten bytes in front of each frame, [`VnetHeader`]: a checksum to be filled in, segments to be made.
//! [`transmit`] makes them out of a frame's per-packet information and repairs what Linux's netvsc leaves undone; [`receive`] goes
//! the other way; [`Sum`] fills in the checksums that nobody else does. All pure: headers are private copies, and nothing a guest
//! says about them is taken for true that the headers do not say themselves.

pub mod receive;
pub mod sum;
pub mod transmit;

pub use crate::backend::VnetHeader;
pub use receive::{Complete, Receive, receive};
pub use sum::Sum;
pub use transmit::{HEADERS_LEN, Headers, TransmitError, transmit};
