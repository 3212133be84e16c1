//! The server's side of a WebSocket (RFC 6455) whose binary messages are a stream of bytes.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};

use tungstenite::error::ProtocolError;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Bytes, Error, Message};

use super::{Channel, ONE_WRITE};

/// Longest message that is taken, in bytes.
pub const LONGEST_MESSAGE: usize = 64 * 1024;
/// Messages without a byte for us that may come in a row: pings, empty ones.
const MOST_ROUNDS: usize = 64;

/// A connection, after the HTTP part of it.
#[derive(Debug)]
pub struct WebSocket {
    inner: tungstenite::WebSocket<Channel>,
    /// What is left of the last message.
    message: Bytes,
    /// Something may not have been sent.
    unsent: bool,
}

impl WebSocket {
    /// Begins behind the answer to the request, with what has been read behind that.
    pub fn new(channel: Channel, unread: Vec<u8>) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(16 * 1024)
            .max_message_size(Some(LONGEST_MESSAGE))
            .max_frame_size(Some(LONGEST_MESSAGE))
            // What is written goes to the socket at once, and what that does not take is kept here.
            .write_buffer_size(0)
            .max_write_buffer_size(4 * ONE_WRITE);
        let inner = tungstenite::WebSocket::from_partially_read(channel, unread, Role::Server, Some(config));
        Self { inner, message: Bytes::new(), unsent: false }
    }

    /// Takes what has come.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        for _ in 0..MOST_ROUNDS {
            if !self.message.is_empty() {
                let taken = self.message.split_to(self.message.len().min(into.len()));
                into[..taken.len()].copy_from_slice(&taken);
                return Ok(taken.len());
            }
            match self.inner.read() {
                Ok(Message::Binary(bytes)) => self.message = bytes,
                // Answered by whoever reads or writes next.
                Ok(Message::Ping(_) | Message::Pong(_)) => self.unsent = true,
                Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Ok(0),
                // The end without a good-bye, which is the end all the same.
                Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => return Ok(0),
                Ok(Message::Text(_) | Message::Frame(_)) => {
                    return Err(io::Error::new(
                        ErrorKind::InvalidData,
                        "a WebSocket message that is not binary",
                    ));
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Err(io::Error::new(ErrorKind::InvalidData, "the peer sends nothing but the WebSocket's own messages"))
    }

    /// Sends some of it as a message.
    pub fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.flush()?;
        let taken = from.len().min(ONE_WRITE);
        self.unsent = true;
        match self.inner.write(Message::Binary(Bytes::copy_from_slice(&from[..taken]))) {
            Ok(()) => {}
            // It has been taken, and is kept.
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return Ok(taken),
            Err(error) => return Err(failed(error)),
        }
        match self.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    /// Sends what is left.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.unsent {
            self.inner.flush().map_err(failed)?;
            self.unsent = false;
        }
        Ok(())
    }
}

impl AsRawFd for WebSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.get_ref().as_raw_fd()
    }
}

fn failed(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::WriteBufferFull(_) => ErrorKind::WouldBlock.into(),
        Error::ConnectionClosed | Error::AlreadyClosed => ErrorKind::ConnectionAborted.into(),
        other => io::Error::new(ErrorKind::InvalidData, other),
    }
}
