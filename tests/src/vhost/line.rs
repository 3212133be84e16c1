//! A connection to a daemon, on which anything can be said.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::protocol::{HEADER, Header, NEED_REPLY, REPLY, VERSION};
use crate::steps::LIMIT;

/// Most descriptors that are sent or taken: more than any message has.
const MOST_FDS: usize = 64;
/// How often to try to connect.
const PAUSE: Duration = Duration::from_millis(1);
/// Longest answer; a config space is 256 bytes.
const LONGEST: u32 = 4096;

/// A message that has come.
#[derive(Debug)]
pub struct Message {
    /// Its head.
    pub header: Header,
    /// What follows.
    pub payload: Vec<u8>,
    /// What came with it.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The first number of the payload.
    pub fn number(&self) -> anyhow::Result<u64> {
        let bytes = self.payload.first_chunk().context("an answer without a number")?;
        Ok(u64::from_le_bytes(*bytes))
    }
}

/// A connection.
#[derive(Debug)]
pub struct Line {
    stream: UnixStream,
}

impl Line {
    /// Connects as soon as somebody listens.
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let begin = Instant::now();
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return Self::over(stream),
                Err(error) if begin.elapsed() > LIMIT => {
                    return Err(error).with_context(|| format!("nobody listens at {}", socket.display()));
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    fn over(stream: UnixStream) -> anyhow::Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        // One who does not listen gets no more than this.
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self { stream })
    }

    /// Says anything at all.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ensure!(control.push(SendAncillaryMessage::ScmRights(fds)), "too many descriptors");
        }
        let sent =
            rustix::net::sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        // What is left has no descriptors to carry.
        Ok((&self.stream).write_all(&bytes[sent..])?)
    }

    /// Says something as it should be said.
    pub fn send(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
        self.send_with(request, 0, payload, fds)
    }

    /// The same with more flags.
    pub fn send_with(
        &self,
        request: u32,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> anyhow::Result<()> {
        let header = Header { request, flags: VERSION | flags, size: payload.len() as u32 };
        let mut bytes = header.bytes().to_vec();
        bytes.extend_from_slice(payload);
        self.send_raw(&bytes, fds)
    }

    /// Says something that is answered, and takes the answer.
    pub fn ask(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> anyhow::Result<Message> {
        self.send(request, payload, fds)?;
        self.answer(request)
    }

    /// The number that a request is answered with.
    pub fn ask_number(&self, request: u32) -> anyhow::Result<u64> {
        self.ask(request, &[], &[])?.number()
    }

    /// Says something that is not answered by itself, and takes the word that it was done; true: it was. `REPLY_ACK` has to
    /// be negotiated.
    pub fn order(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> anyhow::Result<bool> {
        self.send_with(request, NEED_REPLY, payload, fds)?;
        Ok(self.answer(request)?.number()? == 0)
    }

    /// The answer to a request.
    pub fn answer(&self, request: u32) -> anyhow::Result<Message> {
        let message = self.receive().with_context(|| format!("no answer to request {request}"))?;
        let header = message.header;
        ensure!(header.request == request, "request {request} is answered by {header:?}");
        ensure!(header.flags & 3 == VERSION && header.flags & REPLY != 0, "no answer: {header:?}");
        Ok(message)
    }

    fn receive(&self) -> anyhow::Result<Message> {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut head = [0; HEADER];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
        let came =
            rustix::net::recvmsg(&self.stream, &mut [IoSliceMut::new(&mut head)], &mut control, flags)?;
        ensure!(came.bytes > 0, "the daemon has hung up");
        ensure!(came.bytes == HEADER, "half a header");
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        let header = Header::parse(&head);
        ensure!(header.size <= LONGEST, "an answer of {} bytes", header.size);
        let mut payload = vec![0; header.size as usize];
        (&self.stream).read_exact(&mut payload)?;
        Ok(Message { header, payload, fds })
    }

    /// Hangs up, and waits until the daemon has done so too: it is free for another front end then.
    pub fn hang_up(&self) -> anyhow::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)?;
        ensure!(self.ends(), "the daemon does not hang up");
        Ok(())
    }

    /// Waits until the daemon hangs up; what it says before does not matter. False: it does not.
    pub fn ends(&self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match (&self.stream).read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}
