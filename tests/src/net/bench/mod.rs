//! Two network stacks and what is between them: one side of `cargo xtask bench net`.
//!
//! Each stack is a network namespace with a TAP. Between the TAPs is either a plain loop that moves frames as they are, with
//! their offloads, or a guest on the software partition with the real `vsp-net` behind it: the guest's TAP stands for the stack that a
//! real guest has above its driver. What is measured is the same either way.
//!
//! * [`town`]: namespaces and TAPs
//! * [`plain`]: the loop
//! * [`relay`]: the guest
//! * [`offload`]: what a TAP says about a frame, in a driver's words
//! * [`bulk`], [`small`], [`ping`]: TCP, small packets, round trips
//! * [`orders`]: measures on demand

pub mod bulk;
pub mod offload;
mod orders;
pub mod ping;
pub mod plain;
pub mod relay;
pub mod small;
pub mod town;

pub use orders::serve;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes that a TAP has before each frame: `struct virtio_net_hdr`.
pub const VNET: usize = 10;
/// Longest that a TAP gives at once, with that.
pub const LONGEST: usize = VNET + 65_562;
/// How long anybody waits before looking whether all is over.
pub const LOOK: Duration = Duration::from_millis(20);

/// What is between the two TAPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A plain loop.
    Plain,
    /// A guest and its NIC.
    Ours,
}

/// Waits until one of these is readable, for a while.
fn wait(fds: &[BorrowedFd<'_>]) {
    let mut all: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
    let timeout = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
    // Interrupted or not: it is looked at again.
    let _ = poll(&mut all, timeout);
}
