//! One process, one screen: what a stock guest's `hyperv_fb` or `hyperv_drm` driver talks to.
//!
//! The process holds the rings of its channel, the video memory (a memfd that it never maps), and a socket to the console. The
//! guest draws into the video memory, which the core maps where the guest wants it, and says where it has drawn; this process
//! checks that and passes it on. It must never look at a pixel, open anything once it serves, or believe a length, an address or a
//! mode that a guest has given.
//!
//! * [`wire`]: the messages of synthvid.
//! * [`modes`]: the resolutions that a guest is offered.
//! * [`state`]: what a successor has to know.
//! * [`pointer`]: the shape of the mouse pointer, put together from its parts.
//! * [`console`]: what the console has still to be told.
//! * [`device`]: the device that ties them together.

#![forbid(unsafe_code)]

pub mod cli;
pub mod console;
pub mod device;
pub mod modes;
pub mod pointer;
pub mod state;
pub mod wire;
