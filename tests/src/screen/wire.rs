//! The bytes of a viewer's connection, each with a limit on how long it may take.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};

use crate::steps::LIMIT;

/// A stream of any kind.
pub trait Stream: Read + AsFd + Send + std::fmt::Debug {}

impl Stream for UnixStream {}
impl Stream for TcpStream {}

/// A connection that is read through a buffer.
#[derive(Debug)]
pub struct Wire {
    stream: Box<dyn Stream>,
    buffer: Box<[u8]>,
    begin: usize,
    end: usize,
    /// Bytes read.
    pub received: u64,
}

fn wait(fd: BorrowedFd<'_>, flags: PollFlags, deadline: Instant) -> anyhow::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: a wait of half a millisecond is no spin.
        let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        let timeout = if left.is_zero() { PollTimeout::ZERO } else { timeout };
        match poll(&mut [PollFd::new(fd, flags)], timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

impl Wire {
    /// Over a stream.
    pub fn new(stream: impl Stream + 'static) -> Self {
        let buffer = vec![0; 64 << 10].into_boxed_slice();
        Self { stream: Box::new(stream), buffer, begin: 0, end: 0, received: 0 }
    }

    /// Whether there is something to read before the time is over; the end of the stream counts.
    pub fn readable(&self, timeout: Duration) -> anyhow::Result<bool> {
        Ok(self.begin < self.end || wait(self.stream.as_fd(), PollFlags::POLLIN, Instant::now() + timeout)?)
    }

    /// Reads something. 0 is the end.
    pub fn some(&mut self, into: &mut [u8]) -> anyhow::Result<usize> {
        if self.begin < self.end {
            let len = into.len().min(self.end - self.begin);
            into[..len].copy_from_slice(&self.buffer[self.begin..self.begin + len]);
            self.begin += len;
            return Ok(len);
        }
        ensure!(wait(self.stream.as_fd(), PollFlags::POLLIN, Instant::now() + LIMIT)?, "nothing comes");
        // What is larger than the buffer goes around it.
        let large = into.len() >= self.buffer.len();
        let read = self.stream.read(if large { into } else { &mut self.buffer });
        let len = match read {
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error).context("reading"),
        };
        self.received += len as u64;
        if large || len == 0 {
            return Ok(len);
        }
        (self.begin, self.end) = (0, len);
        self.some(into)
    }

    /// Reads exactly so much.
    pub fn exactly(&mut self, into: &mut [u8]) -> anyhow::Result<()> {
        let mut at = 0;
        while at < into.len() {
            match self.some(&mut into[at..])? {
                0 => bail!("the connection has ended"),
                len => at += len,
            }
        }
        Ok(())
    }

    /// Reads so many bytes.
    pub fn array<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.exactly(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads so many bytes that a peer has announced.
    pub fn vec(&mut self, len: usize) -> anyhow::Result<Vec<u8>> {
        ensure!(len <= 80 << 20, "{len} bytes are announced");
        let mut bytes = vec![0; len];
        self.exactly(&mut bytes)?;
        Ok(bytes)
    }

    /// A byte.
    pub fn u8(&mut self) -> anyhow::Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self) -> anyhow::Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> anyhow::Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Four bytes with a sign.
    pub fn i32(&mut self) -> anyhow::Result<i32> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    /// Writes everything. Whoever does not read in time is an error.
    pub fn send(&mut self, mut bytes: &[u8]) -> anyhow::Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !bytes.is_empty() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.stream.as_fd().as_raw_fd(), bytes, flags) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    ensure!(wait(self.stream.as_fd(), PollFlags::POLLOUT, deadline)?, "nobody reads");
                }
                Err(error) => return Err(error).context("writing"),
            }
        }
        Ok(())
    }

    /// Waits for the end of the stream; what comes before it is thrown away.
    pub fn until_end(&mut self, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        let mut scratch = vec![0; 64 << 10];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero() && self.readable(left)?, "the connection goes on");
            if self.some(&mut scratch)? == 0 {
                return Ok(());
            }
        }
    }

    /// The stream.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
