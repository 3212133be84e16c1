//! Queues of a TAP or macvtap interface.
//!
//! One write is one frame and one read is one frame, each with a `virtio_net_hdr` in front (`IFF_VNET_HDR`), so nothing can
//! be torn. The kernel spreads frames over the queues by flow, and a flow goes to the queue from which its other direction
//! was sent last (`tun_automq_select_queue`).

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, c_int, c_uint};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::write;
use thiserror::Error;
use vsp::ipc::shm::HeldSpan;

use super::{Offloads, Received, SHORTEST_FRAME, Sent, VnetHeader, concerns_one_frame};
use crate::headers::VLAN_LEN;
use crate::offload::HEADERS_LEN;
use crate::sys;

/// Where queues are made.
const DEVICE: &str = "/dev/net/tun";
/// Bytes of a `virtio_net_hdr`, as the interface is told.
const HEADER: usize = VnetHeader::LEN;
/// Bytes of a frame's headers at most that are sent in one piece, if they are all of it.
const HEADERS: usize = HEADERS_LEN + VLAN_LEN;
/// Most queues: `MAX_TAP_QUEUES` of the kernel.
pub const MOST_QUEUES: usize = 256;

/// Why an interface cannot be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// No such interface, or it cannot be asked for.
    #[error("there is no interface `{name}`: {source}. `bulkhead net port add` makes one")]
    Unknown {
        /// Its name.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// No TAP devices on this host, or not for this user.
    #[error("cannot open {DEVICE}: {0}")]
    Device(io::Error),
    /// It is no TAP, has other properties, or belongs to somebody else.
    #[error("cannot use `{name}` as a TAP{}: {source}", if *multi { " with several queues" } else { "" })]
    Join {
        /// Its name.
        name: String,
        /// It was asked for as one with several queues.
        multi: bool,
        /// The system's error.
        source: io::Error,
    },
    /// A descriptor that is no queue.
    #[error("not a queue of a TAP or macvtap: {0}")]
    NoQueue(io::Error),
    /// A queue of the wrong sort.
    #[error("`{0}` is not a TAP with IFF_VNET_HDR and IFF_NO_PI")]
    Properties(String),
    /// The system refused; `what` says which step.
    #[error("cannot {what} `{name}`: {source}")]
    Os {
        /// The step that failed.
        what: &'static str,
        /// The interface.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// Too many, or none.
    #[error("a NIC has 1 to {MOST_QUEUES} queues")]
    Count,
}

/// Who decides whether frames go to the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Switch {
    /// Whoever has opened them: they are on, and stay so.
    Theirs,
    /// We, and they are off: a process that does not serve must get no frames.
    Off,
    /// We, and they are on.
    On,
}

/// The queues of one interface.
#[derive(Debug)]
pub struct TapQueues {
    name: String,
    queues: Vec<OwnedFd>,
    switch: Switch,
    /// What the interface was last told by this process.
    told: Option<Offloads>,
}

impl TapQueues {
    /// Takes queues that somebody else has opened, all of one interface, in order.
    pub fn adopt(queues: Vec<OwnedFd>) -> Result<TapQueues, TapError> {
        let mut name = String::new();
        for queue in &queues {
            let (found, flags) = sys::interface(queue.as_fd()).map_err(TapError::NoQueue)?;
            let needed = IFF_TAP | IFF_VNET_HDR | IFF_NO_PI;
            if flags & needed != needed {
                return Err(TapError::Properties(found));
            }
            name = found;
        }
        TapQueues::prepare(name, queues, Switch::Theirs)
    }

    /// Opens `count` queues of the interface `name`, which must exist. They are off until [`TapQueues::start`], but for an
    /// interface that can have one queue only.
    pub fn open(name: &str, count: usize) -> Result<TapQueues, TapError> {
        // The kernel would make an interface that there is not.
        sys::interface_index(name).map_err(|source| TapError::Unknown { name: name.into(), source })?;
        if count == 1 {
            // Which of the two sorts it is shows only when it is tried.
            return match open_queue(name, true) {
                Ok(queue) => TapQueues::prepare(name.into(), vec![queue], Switch::On)?.switched_off(),
                Err(TapError::Join { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                    TapQueues::prepare(name.into(), vec![open_queue(name, false)?], Switch::Theirs)
                }
                Err(error) => Err(error),
            };
        }
        let queues = (0..count.min(MOST_QUEUES + 1)).map(|_| open_queue(name, true));
        TapQueues::prepare(name.into(), queues.collect::<Result<_, _>>()?, Switch::On)?.switched_off()
    }

    fn prepare(name: String, queues: Vec<OwnedFd>, switch: Switch) -> Result<TapQueues, TapError> {
        if !(1..=MOST_QUEUES).contains(&queues.len()) {
            return Err(TapError::Count);
        }
        for queue in &queues {
            let os = |what| {
                let name = name.clone();
                move |source| TapError::Os { what, name, source }
            };
            sys::set_header_size(queue.as_fd(), HEADER as c_int)
                .map_err(os("set the size of the header of"))?;
            let flags = fcntl(queue, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
            flags
                .and_then(|flags| fcntl(queue, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)))
                .map_err(io::Error::from)
                .map_err(os("stop waiting at"))?;
        }
        Ok(TapQueues { name, queues, switch, told: None })
    }

    fn switched_off(mut self) -> Result<TapQueues, TapError> {
        match self.stop() {
            Ok(()) => Ok(self),
            Err(source) => Err(TapError::Os { what: "switch off a queue of", name: self.name, source }),
        }
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn queues(&self) -> usize {
        self.queues.len()
    }

    pub(super) fn fds(&self) -> Vec<RawFd> {
        self.queues.iter().map(AsRawFd::as_raw_fd).collect()
    }

    pub(super) fn start(&mut self) -> io::Result<()> {
        self.told = None;
        if self.switch == Switch::Off {
            // In order, so that the kernel numbers them as we do.
            self.queues.iter().try_for_each(|queue| sys::set_queue(queue.as_fd(), sys::ATTACH))?;
            self.switch = Switch::On;
        }
        Ok(())
    }

    pub(super) fn stop(&mut self) -> io::Result<()> {
        if self.switch == Switch::On {
            self.queues.iter().try_for_each(|queue| sys::set_queue(queue.as_fd(), sys::DETACH))?;
            self.switch = Switch::Off;
        }
        Ok(())
    }

    pub(super) fn set_offloads(&mut self, receive: Offloads) -> io::Result<()> {
        if self.told == Some(receive) {
            return Ok(());
        }
        // A TAP keeps this once for all its queues, and so does macvtap for its interface.
        if let Some(queue) = self.queues.first() {
            sys::set_offload(queue.as_fd(), features(receive))?;
        }
        self.told = Some(receive);
        Ok(())
    }

    pub(super) fn send<'a>(
        &mut self,
        queue: usize,
        vnet: &VnetHeader,
        headers: &[u8],
        rest: impl IntoIterator<Item = HeldSpan<'a>>,
    ) -> io::Result<Sent> {
        let Some(queue) = self.queues.get(queue) else { return Ok(Sent::Dropped) };
        // The kernel takes a frame whole or not at all, and says the length that it was given.
        let mut rest = rest.into_iter().peekable();
        let sent = if rest.peek().is_none() && headers.len() <= HEADERS {
            // Put in a row here: a small frame costs the kernel less in one piece than in two.
            let mut frame = [0; HEADER + HEADERS];
            frame[..HEADER].copy_from_slice(&vnet.to_bytes());
            frame[HEADER..][..headers.len()].copy_from_slice(headers);
            write(queue, &frame[..HEADER + headers.len()]).map_err(io::Error::from)
        } else {
            sys::gather(queue.as_fd(), &[&vnet.to_bytes(), headers], rest)
        };
        match sent {
            Ok(_) => Ok(Sent::Whole),
            Err(error) if is_passing(&error) => Ok(Sent::Later),
            Err(error) if concerns_one_frame(&error) => Ok(Sent::Dropped),
            Err(error) => Err(self.gone(error)),
        }
    }

    pub(super) fn receive<'a>(
        &mut self,
        queue: usize,
        into: impl Iterator<Item = HeldSpan<'a>> + Clone,
    ) -> io::Result<Received> {
        let Some(queue) = self.queues.get(queue) else { return Ok(Received::Nothing) };
        let room = into.clone().fold(0usize, |sum, span| sum.saturating_add(span.len()));
        let mut vnet = [0; HEADER];
        // What is too long is cut off without a word. A byte that comes to lie here says so.
        let mut spill = [0; 1];
        match sys::scatter(queue.as_fd(), &mut vnet, into, &mut spill) {
            Ok(count) => match count.checked_sub(HEADER) {
                Some(len) if (SHORTEST_FRAME..=room).contains(&len) => {
                    Ok(Received::Frame { vnet: VnetHeader::from_bytes(&vnet), len })
                }
                _ => Ok(Received::Dropped),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
            // It was taken from the queue before it went wrong.
            Err(error) if concerns_one_frame(&error) => Ok(Received::Dropped),
            Err(error) => Err(self.gone(error)),
        }
    }

    fn gone(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("the interface `{}` can no longer be used: {error}", self.name))
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn open_queue(name: &str, multi: bool) -> Result<OwnedFd, TapError> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE);
    let file = file.map_err(TapError::Device)?;
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | if multi { IFF_MULTI_QUEUE } else { 0 };
    sys::join_interface(file.as_fd(), name, flags).map_err(|source| TapError::Join {
        name: name.into(),
        multi,
        source,
    })?;
    Ok(file.into())
}

/// `TUN_F_*`. Segmentation without checksums is nothing that the kernel knows.
fn features(offloads: Offloads) -> c_uint {
    let Offloads { checksum: true, tso4, tso6, ecn } = offloads else { return 0 };
    let either = if ecn && (tso4 || tso6) { libc::TUN_F_TSO_ECN } else { 0 };
    libc::TUN_F_CSUM
        | either
        | if tso4 { libc::TUN_F_TSO4 } else { 0 }
        | if tso6 { libc::TUN_F_TSO6 } else { 0 }
}

#[cfg(test)]
mod tests;
