//! A connection to a front end: bytes into messages, answers into bytes.
//!
//! It never waits: half a message stays here until the rest has come, and an answer that does not fit into the socket ends the connection.
//! It reads one message at a time and no byte of the next, so descriptors belong to the message that they came with.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use ipc::stream::Stream;
use thiserror::Error;

use crate::wire::{self, HEADER, Header, MAX_PAYLOAD, Message, WireError};

/// Most descriptors that a message has: a memory table's.
const MAX_FDS: usize = wire::MAX_TABLE;

/// Why a connection ends.
#[derive(Debug, Error)]
pub(crate) enum ConnectionError {
    /// The front end has closed it.
    #[error("the front end has left")]
    Closed,
    /// A message cannot be understood.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Descriptors were lost.
    #[error("a message has more than {MAX_FDS} descriptors")]
    TooManyDescriptors,
    /// It does not work.
    #[error("its socket does not work: {0}")]
    Socket(#[from] io::Error),
}

/// A message, with what its header said.
pub(crate) type Heard = (Header, Message);

/// One front end.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    buffer: [u8; HEADER + MAX_PAYLOAD],
    /// How much of a message there is.
    have: usize,
    header: Option<Header>,
    fds: Vec<OwnedFd>,
}

impl Connection {
    pub fn new(stream: Stream) -> Connection {
        Connection { stream, buffer: [0; HEADER + MAX_PAYLOAD], have: 0, header: None, fds: Vec::new() }
    }

    /// The next message, if all of it has come.
    pub fn hear(&mut self) -> Result<Option<Heard>, ConnectionError> {
        loop {
            let wanted = HEADER + self.header.map_or(0, |header| header.len);
            if self.have < wanted {
                let piece = match self.stream.try_receive(&mut self.buffer[self.have..wanted]) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                        return Err(ConnectionError::Closed);
                    }
                    other => other?,
                };
                if piece.len == 0 {
                    return Err(ConnectionError::Closed);
                }
                self.have += piece.len;
                self.fds.extend(piece.fds);
                if piece.truncated || self.fds.len() > MAX_FDS {
                    return Err(ConnectionError::TooManyDescriptors);
                }
                continue;
            }
            let Some(header) = self.header else {
                let (bytes, _) = self.buffer.split_first_chunk::<HEADER>().ok_or(ConnectionError::Closed)?;
                self.header = Some(Header::parse(bytes)?);
                continue;
            };
            let fds = std::mem::take(&mut self.fds);
            let message = Message::parse(header.request, &self.buffer[HEADER..wanted], fds)?;
            (self.header, self.have) = (None, 0);
            return Ok(Some((header, message)));
        }
    }

    /// Answers a request.
    pub fn answer(&self, request: u32, payload: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.stream.try_send(&wire::answer(request, payload), fd.as_slice())
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::wire::request;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Connection::new(ours.into()), theirs)
    }

    fn message(request: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = wire::answer(request, payload);
        bytes[4] = 1;
        bytes
    }

    #[test]
    fn messages_come_in_pieces_and_in_heaps() {
        let (mut connection, mut peer) = pair();
        let all = [message(request::SET_OWNER, &[]), message(request::SET_FEATURES, &7u64.to_ne_bytes())];
        for byte in all.concat() {
            peer.write_all(&[byte]).unwrap();
            if let Some((header, _)) = connection.hear().unwrap() {
                assert!(matches!(header.request, request::SET_OWNER | request::SET_FEATURES));
            }
        }
        assert!(connection.hear().unwrap().is_none());
        peer.write_all(&all.concat()).unwrap();
        assert!(matches!(connection.hear().unwrap(), Some((_, Message::SetOwner))));
        assert!(matches!(connection.hear().unwrap(), Some((_, Message::SetFeatures(7)))));
        drop(peer);
        assert!(matches!(connection.hear(), Err(ConnectionError::Closed)));
    }

    #[test]
    fn the_longest_table_of_memory_comes_whole() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (mut connection, peer) = (Connection::new(ours.into()), Connection::new(theirs.into()));
        let files: Vec<_> = (0..MAX_FDS).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let mut table = (MAX_FDS as u64).to_ne_bytes().to_vec();
        (0..MAX_FDS)
            .for_each(|_| table.extend([0x1000_u64, 0x2000, 0x7000_0000, 0].map(u64::to_ne_bytes).concat()));
        let fds: Vec<_> = files.iter().map(std::os::fd::AsFd::as_fd).collect();
        peer.stream.try_send(&message(request::SET_MEM_TABLE, &table), &fds).unwrap();
        let heard = connection.hear().unwrap();
        assert!(matches!(heard, Some((_, Message::SetMemTable(all))) if all.len() == MAX_FDS));
    }

    #[test]
    fn half_a_message_waits_for_ever_and_holds_nobody_up() {
        let (mut connection, mut peer) = pair();
        peer.write_all(&message(request::SET_FEATURES, &7u64.to_ne_bytes())[..15]).unwrap();
        assert!(connection.hear().unwrap().is_none() && connection.hear().unwrap().is_none());
    }

    #[test]
    fn who_reads_nothing_is_not_waited_for() {
        let (connection, _peer) = pair();
        let full = (0..100_000).find_map(|_| connection.answer(1, &[0; 8], None).err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }
}
