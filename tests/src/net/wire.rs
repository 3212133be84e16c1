//! The other end of a stream: what passt is for a real NIC. A frame on the stream is four bytes of length, big-endian,
//! and its bytes.

use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::socket::{MsgFlags, recv};

/// How long a frame may wait for room.
const LIMIT: Duration = Duration::from_secs(20);
/// Longest frame that can be: what comes with a larger length is not a frame.
const LONGEST: usize = 65_600;

/// The other end of a stream.
#[derive(Debug)]
pub struct Wire {
    socket: UnixStream,
    /// What has come of the next frames.
    come: Vec<u8>,
    /// How much of it has been taken.
    taken: usize,
}

impl Wire {
    /// A wire, and the descriptor for the processes at its other end.
    pub fn new() -> anyhow::Result<(Self, Arc<OwnedFd>)> {
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        // A test that waits for ever tells less than one that fails.
        ours.set_write_timeout(Some(LIMIT))?;
        Ok((Self { socket: ours, come: Vec::new(), taken: 0 }, Arc::new(theirs.into())))
    }

    /// The same wire for another thread: one may send while the other receives.
    pub fn split(&self) -> anyhow::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, come: Vec::new(), taken: 0 })
    }

    /// Sends a frame; waits while nobody takes any.
    pub fn send(&mut self, frame: &[u8]) -> anyhow::Result<()> {
        let mut all = (frame.len() as u32).to_be_bytes().to_vec();
        all.extend_from_slice(frame);
        self.send_raw(&all)
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.socket.write_all(bytes)?)
    }

    /// The next frame; `None` if none comes in time, or is there now if there is no time. What is no frame is an error.
    pub fn receive(&mut self, timeout: Duration) -> anyhow::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(frame) = self.next()? {
                return Ok(Some(frame));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && !timeout.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut bytes = [0; 65536];
            let flags = if timeout.is_zero() { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
            match recv(self.socket.as_raw_fd(), &mut bytes, flags).map_err(std::io::Error::from) {
                Ok(0) => anyhow::bail!("the stream has ended"),
                Ok(n) => self.come.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock && timeout.is_zero() => return Ok(None),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn next(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let come = &self.come[self.taken..];
        let Some(len) = come.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize) else {
            self.come.drain(..self.taken);
            self.taken = 0;
            return Ok(None);
        };
        ensure!((14..=LONGEST).contains(&len), "a frame of {len} bytes: the stream is torn");
        let Some(frame) = come.get(4..4 + len) else {
            self.come.drain(..self.taken);
            self.taken = 0;
            return Ok(None);
        };
        self.taken += 4 + len;
        Ok(Some(frame.to_vec()))
    }
}
