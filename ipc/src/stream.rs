//! Byte streams with descriptors, as vhost-user has them; the control socket of a core is another matter ([`crate::socket`]).
//!
//! Nothing here waits: a peer that sends half a message, or reads nothing, holds nobody up.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::sockopt::AcceptConn;
use nix::sys::socket::{UnixAddr, getsockname, getsockopt};

use crate::scm;

/// Most descriptors that come with one piece.
pub const MAX_FDS: usize = scm::MAX_FDS;

/// What one look at the stream brought.
#[derive(Debug)]
pub struct Piece {
    /// Bytes; 0: the peer is gone.
    pub len: usize,
    /// The descriptors that came with them.
    pub fds: Vec<OwnedFd>,
    /// There were more descriptors, which are lost.
    pub truncated: bool,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Stream(OwnedFd);

impl Stream {
    /// Takes whatever has come, at most as much as fits. Descriptors end a piece, so those of two messages never come together.
    pub fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Piece> {
        let scm::Datagram { len, fds, truncated } = scm::receive(self.0.as_fd(), buffer, false)?;
        Ok(Piece { len, fds, truncated })
    }

    /// Sends all of it at once, or fails: a peer that has not read for so long that it does not fit is not worth waiting for.
    pub fn try_send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        scm::send(self.0.as_fd(), bytes, fds)
    }
}

impl From<UnixStream> for Stream {
    /// For tests; it has to be non-blocking.
    fn from(stream: UnixStream) -> Stream {
        Stream(stream.into())
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Where peers connect.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens at `path`, in the place of a socket where nobody listens any more.
    pub fn bind(path: &Path) -> io::Result<Listener> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_deserted(path) => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            other => other?,
        };
        listener.set_nonblocking(true)?;
        Ok(Listener(listener.into()))
    }

    /// One that this process was started with, listening already.
    pub fn inherited(number: RawFd) -> io::Result<Listener> {
        let fd = scm::adopt(number)?;
        if !getsockopt(&fd, AcceptConn)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no socket that listens"));
        }
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Listener(fd))
    }

    /// Where it listens, for names that stay the same over restarts.
    pub fn address(&self) -> String {
        getsockname::<UnixAddr>(self.0.as_raw_fd()).map(|address| address.to_string()).unwrap_or_default()
    }

    /// Whoever has connected, if anybody has.
    pub fn try_accept(&self) -> io::Result<Stream> {
        scm::accept(self.0.as_fd()).map(Stream)
    }
}

/// A socket whose listener is gone.
fn is_deserted(path: &Path) -> bool {
    matches!(UnixStream::connect(path), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_deserted_socket_is_taken_over_and_a_live_one_is_not() {
        let path = std::env::temp_dir().join(format!("bulkhead-stream-{}", std::process::id()));
        let first = Listener::bind(&path).unwrap();
        assert_eq!(Listener::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(first.address(), path.to_str().unwrap());
        drop(first);
        let second = Listener::bind(&path).unwrap();
        assert_eq!(second.try_accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut peer = UnixStream::connect(&path).unwrap();
        let stream = second.try_accept().unwrap();
        peer.write_all(b"abc").unwrap();
        let mut bytes = [0; 2];
        let piece = stream.try_receive(&mut bytes).unwrap();
        assert_eq!((piece.len, piece.fds.len(), &bytes), (2, 0, b"ab"));
        stream.try_send(b"xy", &[]).unwrap();
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"xy");
        drop(peer);
        assert_eq!(stream.try_receive(&mut bytes).unwrap().len, 1, "what was sent before");
        assert_eq!(stream.try_receive(&mut bytes).unwrap().len, 0);
        std::fs::remove_file(path).unwrap();
    }
}
