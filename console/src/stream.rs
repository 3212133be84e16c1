//! A viewer's connection, whatever it goes through: bytes in, bytes out, and nothing waits.
//!
//! Two layers, each optional, over a socket: TLS, and the frames of a WebSocket. The descriptor never changes over the life of a
//! connection, so that it stays registered with an edge-triggered poll. For such a poll, [`Stream::read`] says `WouldBlock` only when the
//! socket has said so and nothing decoded is left; and what could not be sent is bounded and sent by [`Stream::flush`].
//!
//! It must never keep more of what a peer sends than one record or one message of [`LONGEST_MESSAGE`].

mod socket;
mod tls;
mod websocket;

use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

pub use self::socket::{Channel, Socket};
pub use self::tls::{Tls, TlsConfig, TlsError};
pub use self::websocket::{LONGEST_MESSAGE, WebSocket};

/// Bytes that a layer takes at once, and keeps if the socket takes none.
const ONE_WRITE: usize = 64 * 1024;

/// A viewer's connection; non-blocking.
#[derive(Debug)]
pub enum Stream {
    /// A Unix socket: the directory that it is in says who may connect.
    Unix(UnixStream),
    /// TCP.
    Tcp(TcpStream),
    /// TLS over one of them (VeNCrypt).
    Tls(Box<Tls>),
    /// A WebSocket; whoever has opened it has shown who he is.
    WebSocket(Box<WebSocket>),
}

impl Stream {
    /// Takes some of what has come; 0: the end.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => io::Read::read(stream, into),
            Stream::Tcp(stream) => io::Read::read(stream, into),
            Stream::Tls(tls) => tls.read(into),
            Stream::WebSocket(socket) => socket.read(into),
        }
    }

    /// Sends some of it, or keeps some of it for [`Stream::flush`]; `WouldBlock`: none.
    pub fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => io::Write::write(stream, from),
            Stream::Tcp(stream) => io::Write::write(stream, from),
            Stream::Tls(tls) => tls.write(from),
            Stream::WebSocket(socket) => socket.write(from),
        }
    }

    /// The same with several pieces.
    pub fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => io::Write::write_vectored(stream, from),
            Stream::Tcp(stream) => io::Write::write_vectored(stream, from),
            Stream::Tls(tls) => tls.write(&gathered(from)),
            Stream::WebSocket(socket) => socket.write(&gathered(from)),
        }
    }

    /// Sends what is kept. `WouldBlock`: there is some left; again when the socket is writable, and while a handshake goes on when
    /// it is readable.
    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Unix(_) | Stream::Tcp(_) => Ok(()),
            Stream::Tls(tls) => tls.flush(),
            Stream::WebSocket(socket) => socket.flush(),
        }
    }

    /// The connection goes on through TLS. `unread`: bytes of that which have been read already.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub fn into_tls(self, with: &TlsConfig, unread: &[u8]) -> io::Result<Stream> {
        let socket = match self {
            Stream::Unix(stream) => Socket::Unix(stream),
            Stream::Tcp(stream) => Socket::Tcp(stream),
            Stream::Tls(_) | Stream::WebSocket(_) => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "the connection has layers already"));
            }
        };
        Ok(Stream::Tls(Box::new(Tls::new(socket, with, unread)?)))
    }

    /// Whether whoever is at the other end has shown already that he may be here.
    pub fn is_private(&self) -> bool {
        match self {
            Stream::Unix(_) | Stream::WebSocket(_) => true,
            Stream::Tcp(_) => false,
            Stream::Tls(tls) => tls.is_unix(),
        }
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Stream::Unix(stream) => stream.as_raw_fd(),
            Stream::Tcp(stream) => stream.as_raw_fd(),
            Stream::Tls(tls) => tls.as_raw_fd(),
            Stream::WebSocket(socket) => socket.as_raw_fd(),
        }
    }
}

/// As much of the pieces as a layer takes at once.
fn gathered(pieces: &[IoSlice<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        let room = ONE_WRITE - bytes.len();
        bytes.extend_from_slice(&piece[..piece.len().min(room)]);
    }
    bytes
}

/// A configuration that connections share.
pub type SharedTls = Arc<TlsConfig>;

#[cfg(test)]
pub(crate) mod tests;
