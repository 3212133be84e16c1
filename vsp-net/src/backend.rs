//! Where frames go and come from: what is behind the NIC.
//!
//! Whole frames only, in both directions, and nothing waits. A backend never looks into a frame, never keeps one that it
//! could not send, and must never leave the other side with half a frame, whenever this process dies.
//!
//! * [`tap`]: queues of a TAP or macvtap interface, with offloads.
//! * [`stream`]: a connected stream socket, at whose other end is passt.
//! * [`args`]: which of them the command line means.

pub mod args;
pub mod stream;
pub mod tap;
mod vnet;
#[cfg(test)]
pub(crate) mod wire;

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vsp::ipc::shm::HeldSpan;

pub use args::{BackendArgs, OpenError};
pub use stream::Stream;
pub use tap::TapQueues;
pub use vnet::VnetHeader;

/// Bytes of an Ethernet header: nothing shorter is a frame.
pub const SHORTEST_FRAME: usize = 14;
/// Longest frame that is sent or received: the longest IP packet, an Ethernet header, and two VLAN tags, with some air.
pub const LONGEST_FRAME: usize = 65_562;

/// What can be left to somebody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums of TCP and UDP.
    pub checksum: bool,
    /// Cutting up a long TCP frame over IPv4; wants `checksum`.
    pub tso4: bool,
    /// The same over IPv6.
    pub tso6: bool,
    /// Such long frames may carry the congestion flag (CWR), which only the first of their segments keeps.
    pub ecn: bool,
}

impl Offloads {
    /// None at all.
    pub const NONE: Offloads = Offloads { checksum: false, tso4: false, tso6: false, ecn: false };
    /// All of them.
    pub const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true };
}

/// What became of a frame that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a frame that was not sent has to wait or to be counted"]
pub enum Sent {
    /// It has been sent.
    Whole,
    /// Not now. Nothing of it was sent; it may be tried again when the backend is writable.
    Later,
    /// Never: the interface is down, or nobody could send such a frame. To be counted and forgotten.
    Dropped,
}

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a frame may have come"]
pub enum Received {
    /// A frame.
    Frame {
        /// What is left to do to it.
        vnet: VnetHeader,
        /// Its length in bytes.
        len: usize,
    },
    /// Nothing waits.
    Nothing,
    /// A frame that is too long for the memory given, or too short for a frame. It is gone; there may be others.
    Dropped,
}

/// What is behind the NIC. The queues of one share their process's fate: an error of one of these methods means that it
/// will never work again.
#[derive(Debug)]
pub enum Backend {
    /// A TAP or macvtap interface.
    Tap(TapQueues),
    /// A stream socket.
    Stream(Stream),
}

impl Backend {
    /// Number of queues, at least 1.
    pub fn queues(&self) -> usize {
        match self {
            Backend::Tap(tap) => tap.queues(),
            Backend::Stream(_) => 1,
        }
    }

    /// One descriptor a queue: to be kept when the compartment closes, and to be watched.
    pub fn fds(&self) -> Vec<RawFd> {
        match self {
            Backend::Tap(tap) => tap.fds(),
            Backend::Stream(stream) => vec![stream.as_raw_fd()],
        }
    }

    /// The process begins to serve: from now on nobody else uses the backend, a predecessor least of all. What one has left
    /// half done is brought to its end. Before anything below.
    pub fn start(&mut self) -> io::Result<()> {
        match self {
            Backend::Tap(tap) => tap.start(),
            Backend::Stream(stream) => stream.start(),
        }
    }

    /// The process serves no more, and another may begin to. What was received and not settled is for the other.
    pub fn stop(&mut self) {
        if let Backend::Tap(tap) = self
            && let Err(error) = tap.stop()
        {
            tracing::warn!("giving up the interface: {error}");
        }
    }

    /// What it can do at most, in both directions.
    pub fn offloads(&self) -> Offloads {
        match self {
            Backend::Tap(_) => Offloads::ALL,
            Backend::Stream(_) => Offloads::NONE,
        }
    }

    /// Says what the guest can take: frames whose checksum nobody has finished, and long ones. To be said once after each
    /// [`Backend::start`], as a predecessor may have said something else, and whenever it changes.
    pub fn set_offloads(&mut self, receive: Offloads) -> io::Result<()> {
        match self {
            Backend::Tap(tap) => tap.set_offloads(receive),
            Backend::Stream(_) => Ok(()),
        }
    }

    /// Longest frame that can be sent, in bytes.
    pub fn longest_frame(&self) -> usize {
        match self {
            Backend::Tap(_) => LONGEST_FRAME,
            Backend::Stream(stream) => stream.longest_frame(),
        }
    }

    /// Sends one frame: `headers`, then `rest`. Never waits.
    pub fn send<'a>(
        &mut self,
        queue: usize,
        vnet: &VnetHeader,
        headers: &[u8],
        rest: impl IntoIterator<Item = HeldSpan<'a>, IntoIter: Clone>,
    ) -> io::Result<Sent> {
        let rest = rest.into_iter();
        let len = rest.clone().fold(headers.len(), |sum, span| sum.saturating_add(span.len()));
        if !(SHORTEST_FRAME..=self.longest_frame()).contains(&len) {
            return Ok(Sent::Dropped);
        }
        match self {
            Backend::Tap(tap) => tap.send(queue, vnet, headers, rest),
            Backend::Stream(stream) => stream.send(vnet, len, headers, rest),
        }
    }

    /// Receives one frame into shared memory, one piece after the other. Never waits.
    pub fn receive<'a>(
        &mut self,
        queue: usize,
        into: impl IntoIterator<Item = HeldSpan<'a>, IntoIter: Clone>,
    ) -> io::Result<Received> {
        let into = into.into_iter();
        match self {
            Backend::Tap(tap) => tap.receive(queue, into),
            Backend::Stream(stream) => stream.receive(into),
        }
    }

    /// The guest has been told of all frames that were received: the backend may forget them. What it has not been told of
    /// when the process dies comes again, where the backend can do that (a stream).
    pub fn settle(&mut self) -> io::Result<()> {
        match self {
            Backend::Tap(_) => Ok(()),
            Backend::Stream(stream) => stream.settle(),
        }
    }

    /// The same, but for the frame that was received last: that one comes again.
    pub fn settle_but_last(&mut self) -> io::Result<()> {
        match self {
            Backend::Tap(_) => Ok(()),
            Backend::Stream(stream) => stream.settle_but_last(),
        }
    }
}

/// Without its backend there is nothing that this process could still do; a successor can.
pub(crate) fn broken(error: &io::Error) -> ! {
    tracing::error!("the network backend does not work any more: {error}");
    std::process::exit(1)
}

/// Errors after which a frame is lost and the next one may fare better.
fn concerns_one_frame(error: &io::Error) -> bool {
    // EINVAL: a header that the kernel does not believe; EIO: the interface is down; EFAULT and the others: no memory.
    let one = [libc::EINVAL, libc::EIO, libc::EFAULT, libc::ENOMEM, libc::ENOBUFS, libc::EMSGSIZE];
    error.raw_os_error().is_some_and(|number| one.contains(&number))
        || error.kind() == io::ErrorKind::InvalidInput
}
