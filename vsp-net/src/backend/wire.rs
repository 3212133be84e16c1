//! The other end of a stream, for the tests of both faces.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::{Backend, Stream};

/// The other end of the stream.
#[derive(Debug)]
pub struct Wire {
    pub socket: UnixStream,
    ours: UnixStream,
    bytes: Vec<u8>,
}

impl Wire {
    pub fn new() -> Wire {
        let (socket, ours) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        Wire { socket, ours, bytes: Vec::new() }
    }

    /// A process's descriptor of it.
    pub fn backend(&self) -> Backend {
        Backend::Stream(Stream::new(OwnedFd::from(self.ours.try_clone().unwrap())).unwrap())
    }

    /// A frame for the guest.
    pub fn send(&mut self, frame: &[u8]) {
        let mut bytes = (frame.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(frame);
        self.socket.write_all(&bytes).unwrap();
    }

    /// The next frame of the guest's, if there is one.
    pub fn next(&mut self) -> Option<Vec<u8>> {
        let mut part = [0; 65536];
        while let Ok(count @ 1..) = self.socket.read(&mut part) {
            self.bytes.extend_from_slice(&part[..count]);
        }
        let len = u32::from_be_bytes(*self.bytes.first_chunk()?) as usize;
        let frame = self.bytes.get(4..4 + len)?.to_vec();
        self.bytes.drain(..4 + len);
        Some(frame)
    }
}

/// A frame of so many bytes.
pub fn frame(to: [u8; 6], from: [u8; 6], len: usize, fill: u8) -> Vec<u8> {
    let mut frame = [&to[..], &from[..], &[0x88, 0xb5]].concat();
    frame.resize(len, fill);
    frame
}
