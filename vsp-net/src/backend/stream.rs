//! A connected unix stream socket, at whose other end is passt: each frame has its length in front, four bytes, big-endian.
//! (passt's and QEMU's protocol: `passt(1)`, option `--socket`; QEMU's `-netdev stream`.)
//!
//! The socket outlives this process, which may die at any instruction, and half a frame in either direction would be the
//! end of the protocol. What Linux promises, by `net/unix/af_unix.c` (6.1 to 6.18):
//!
//! * **Sending.** `sendmsg` fills one buffer after the other and queues each whole; a death, a signal or a full socket shows
//!   between two of them only. A message of up to 32 KiB (less if the socket may hold little: half of `SO_SNDBUF`) is one
//!   buffer. Longer frames are not sent at all; no MTU that a guest may choose needs them.
//! * **Receiving.** Frames are looked at, not taken (`MSG_PEEK`). [`Stream::settle`] takes them, once the guest has been told of
//!   them: a process that dies before leaves them in the socket, and its successor delivers them, perhaps again. Ethernet
//!   may do that, and TCP bears it far better than a loss.
//! * **Taking** many bytes is many steps, as they lie in many buffers, and a death may come after any of them. But the socket
//!   has a *peek offset* (`SO_PEEK_OFF`): where the next look begins, counted from the first byte that waits. Looking moves it
//!   up, taking moves it down by exactly the bytes taken, and it outlives us. Three calls, each of them whole or not at all as
//!   far as this goes:
//!
//!   1. the offset is set to [`MARK`] + n, with n bytes of whole frames to be taken;
//!   2. n bytes are taken, in whatever portions: it is always [`MARK`] + what is left of them;
//!   3. it is set to where the looking was.
//!
//!   A successor that finds an offset of at least [`MARK`] takes the rest, in the same way. Otherwise nothing was begun, the
//!   first byte that waits begins a frame, and the looking begins there.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use libc::c_int;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockType, SockaddrLike, UnixAddr, getpeername, getsockopt, sockopt};
use thiserror::Error;
use vsp::ipc::shm::HeldSpan;

use super::{LONGEST_FRAME, Received, SHORTEST_FRAME, Sent, VnetHeader, concerns_one_frame};
use crate::sys;

/// Bytes of the length in front of a frame.
const PREFIX: usize = 4;
/// Longest message that the kernel queues as one: its limit is `SKB_MAX_HEAD(0) + UNIX_SKB_FRAGS_SZ`, with pages of 4 KiB
/// 3,776 and 32,768 bytes.
const WHOLE: usize = 32 * 1024;
/// Shortest that it may be: a frame for the largest MTU of a guest, 9,000, with Ethernet header and two VLAN tags.
const WHOLE_AT_LEAST: usize = PREFIX + SHORTEST_FRAME + 8 + 9_000;
/// A peek offset from here on: bytes are being taken. Far more than a socket can hold.
const MARK: c_int = 1 << 30;
/// Bytes that are looked at in one go. passt sends up to some 64 KiB at a time; a frame may be as long, too.
const LOOK: usize = 128 * 1024;
/// Bytes that are taken in one go: they have to be copied somewhere. In tests many steps, so that many deaths fall between two.
const SCRATCH: usize = if cfg!(test) { 500 } else { 32 * 1024 };
/// What is said when passt has ended.
const ENDED: &str = "the other end of the stream has ended";

/// Why a descriptor is not such a stream.
#[derive(Debug, Error)]
pub enum StreamError {
    /// Another sort of descriptor.
    #[error("not a connected unix socket of type SOCK_STREAM")]
    WrongSocket,
    /// Frames could be torn.
    #[error(
        "the socket's send buffer of {0} bytes is too small to send frames whole: raise net.core.wmem_default"
    )]
    SmallBuffer(usize),
    /// The system's own error.
    #[error("cannot prepare the socket: {0}")]
    Os(io::Error),
}

/// The stream.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    /// Longest message that is queued as one.
    whole: usize,
    /// `looked[next..end]` has been looked at and not been handed out.
    looked: Box<[u8]>,
    next: usize,
    end: usize,
    /// Bytes of whole frames that were handed out and are still in the socket, before those of `looked`. The socket's peek
    /// offset is always the sum of both.
    handed: usize,
    /// Bytes of them that are the last frame's.
    last: usize,
    /// Where taken bytes end up.
    scratch: Box<[u8]>,
}

impl Stream {
    /// Takes a connected socket. Nothing is read or changed that another process of the device could mind.
    pub fn new(socket: OwnedFd) -> Result<Stream, StreamError> {
        let stream = getsockopt(&socket, sockopt::SockType).is_ok_and(|t| t == SockType::Stream);
        let peer = getpeername::<UnixAddr>(socket.as_raw_fd());
        if !stream || !peer.is_ok_and(|address| address.family() == Some(AddressFamily::Unix)) {
            return Err(StreamError::WrongSocket);
        }
        let os = |error: nix::Error| StreamError::Os(error.into());
        let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL).map_err(os)?);
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(os)?;
        // "Keep two messages in the pipe": half of it, less 64 bytes.
        let buffer = getsockopt(&socket, sockopt::SndBuf).map_err(os)?;
        let whole = (buffer / 2).saturating_sub(64).min(WHOLE);
        if whole < WHOLE_AT_LEAST {
            return Err(StreamError::SmallBuffer(buffer));
        }
        let (looked, scratch) = (vec![0; LOOK].into_boxed_slice(), vec![0; SCRATCH].into_boxed_slice());
        Ok(Stream { socket, whole, looked, next: 0, end: 0, handed: 0, last: 0, scratch })
    }

    pub(super) fn longest_frame(&self) -> usize {
        self.whole - PREFIX
    }

    pub(super) fn start(&mut self) -> io::Result<()> {
        let found = sys::peek_offset(self.socket.as_fd())?;
        if let Ok(left) = usize::try_from(found - MARK) {
            tracing::info!(bytes = left, "a predecessor has not quite taken what it delivered");
            self.take(left)?;
        }
        sys::set_peek_offset(self.socket.as_fd(), 0)?;
        (self.next, self.end, self.handed, self.last) = (0, 0, 0, 0);
        Ok(())
    }

    pub(super) fn send<'a>(
        &mut self,
        vnet: &VnetHeader,
        len: usize,
        headers: &[u8],
        rest: impl IntoIterator<Item = HeldSpan<'a>>,
    ) -> io::Result<Sent> {
        if vnet.flags & VnetHeader::NEEDS_CSUM != 0 || vnet.gso_type != VnetHeader::GSO_NONE {
            // Nobody at the other end could do what is left to be done; no guest is told that it may leave it.
            return Ok(Sent::Dropped);
        }
        let prefix = (len as u32).to_be_bytes();
        match sys::send_message(self.socket.as_fd(), &[&prefix, headers], rest) {
            Ok(count) if count == PREFIX + len => Ok(Sent::Whole),
            Ok(count) => Err(io::Error::other(format!("{count} of {} bytes were sent", PREFIX + len))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Sent::Later),
            Err(error) if concerns_one_frame(&error) => Ok(Sent::Dropped),
            Err(error) => Err(ended(error)),
        }
    }

    pub(super) fn receive<'a>(
        &mut self,
        into: impl IntoIterator<Item = HeldSpan<'a>>,
    ) -> io::Result<Received> {
        let (at, len) = loop {
            match self.front()? {
                Some(frame) => break frame,
                None if self.look()? => {}
                None => return Ok(Received::Nothing),
            }
        };
        let next = at + len;
        self.last = next - self.next;
        self.handed += self.last;
        self.next = next;
        if len < SHORTEST_FRAME || !copy_in(into, &self.looked[at..next]) {
            return Ok(Received::Dropped);
        }
        Ok(Received::Frame { vnet: VnetHeader::default(), len })
    }

    /// Where in `looked` the next frame is, and its length; `None`: not all of it is there.
    fn front(&self) -> io::Result<Option<(usize, usize)>> {
        let Some((prefix, rest)) = self.looked[self.next..self.end].split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > LONGEST_FRAME {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the other end of the stream announces a frame of {len} bytes: it does not speak passt's protocol"
                ),
            ));
        }
        Ok((len <= rest.len()).then_some((self.next + PREFIX, len)))
    }

    /// Looks at more; false: there is none.
    fn look(&mut self) -> io::Result<bool> {
        self.looked.copy_within(self.next..self.end, 0);
        (self.next, self.end) = (0, self.end - self.next);
        match sys::peek(self.socket.as_fd(), &mut self.looked[self.end..]) {
            Ok(0) => Err(ended(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => {
                self.end += count;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(ended(error)),
        }
    }

    /// Takes what was handed out.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        self.settle_but(0)
    }

    /// The same, but for the last frame.
    pub(super) fn settle_but_last(&mut self) -> io::Result<()> {
        self.settle_but(self.last)
    }

    fn settle_but(&mut self, kept: usize) -> io::Result<()> {
        let settled = self.handed - kept;
        if settled == 0 {
            return Ok(());
        }
        // A socket's buffer is less than 1 GiB, or its owner has gone mad.
        let offset = c_int::try_from(settled).ok().filter(|n| *n < MARK);
        let offset = offset.ok_or_else(|| io::Error::other("there is more in the socket than can be"))?;
        sys::set_peek_offset(self.socket.as_fd(), MARK + offset)?;
        self.take(settled)?;
        (self.handed, self.last) = (kept, kept);
        sys::set_peek_offset(self.socket.as_fd(), (kept + self.end - self.next) as c_int)
    }

    /// Takes `count` bytes, which are all there.
    fn take(&mut self, mut count: usize) -> io::Result<()> {
        while count > 0 {
            let portion = count.min(SCRATCH);
            match sys::discard(self.socket.as_fd(), &mut self.scratch[..portion]) {
                Ok(0) => return Err(ended(io::ErrorKind::UnexpectedEof.into())),
                Ok(taken) => count -= taken,
                Err(error) => return Err(ended(error)),
            }
        }
        Ok(())
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Copies a frame to where it belongs, one piece after the other. False: there is no room for it.
fn copy_in<'a>(into: impl IntoIterator<Item = HeldSpan<'a>>, mut frame: &[u8]) -> bool {
    for span in into {
        let (part, rest) = frame.split_at(frame.len().min(span.len()));
        if span.copy_in(0, part).is_err() {
            return false;
        }
        frame = rest;
        if frame.is_empty() {
            break;
        }
    }
    frame.is_empty()
}

/// The sentence that the supervisor's log should have; anything but the end of passt is told with it.
fn ended(error: io::Error) -> io::Error {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match error.kind() {
        BrokenPipe | ConnectionReset | UnexpectedEof => io::Error::new(error.kind(), ENDED),
        kind => io::Error::new(kind, format!("the stream can no longer be used: {error}")),
    }
}

#[cfg(test)]
mod tests;
