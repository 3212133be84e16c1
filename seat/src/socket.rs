//! One end of a socket pair.

use std::cell::{Cell, RefCell};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipc::shm::SharedMemory;
use ipc::socket::{Peer, SocketError};
use thiserror::Error;

use crate::message::{self, MAX_MESSAGE, Message, MessageError};

/// So many empty datagrams in a row, more than come by mistake, and there is nothing behind them for a while: it is the end, or the
/// peer means no good.
const EMPTY: u32 = 32;
/// For that long. A peer that fills the socket with them has made those who come after it wait for a second; the end costs ten looks a second.
const LULL: Duration = Duration::from_millis(100);

/// Why nothing was sent or received.
#[derive(Debug, Error)]
pub enum SeatError {
    /// Taken, and to be skipped: the peer has sent something that is no message of this build's. The socket is as good as before.
    #[error("the peer of the seat's socket has sent something that is skipped: {0}")]
    Peer(#[from] MessageError),
    /// The socket does not work any more, and will not again.
    #[error("the seat's socket: {0}")]
    Socket(#[source] SocketError),
    /// The descriptor is no end of such a pair.
    #[error("descriptor {number} is no end of a seat's socket pair: {source}")]
    NotASeat {
        /// Which.
        number: RawFd,
        /// Why not.
        source: SocketError,
    },
}

impl SeatError {
    /// Whether it was the peer who did something wrong: skip it and go on.
    pub fn is_peers_fault(&self) -> bool {
        matches!(self, SeatError::Peer(_))
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a message that was not sent has to be sent later, or forgotten on purpose"]
pub enum Sent {
    /// It is in the socket.
    Whole,
    /// The peer has not read for long: there is no room. Nothing was sent.
    Full,
}

/// What was received.
#[derive(Debug)]
pub struct Received<In> {
    /// What is said.
    pub message: In,
    /// Tells this message from all others that were sent on this socket in this direction, also by processes of the past. A peer that lies
    /// about it has told one message as another.
    pub number: u64,
    /// The memory that comes with it: there if, and only if, [`Message::memory`] says that there is some. It has that many bytes
    /// at least, and can neither shrink nor grow. What is in it is the peer's and changes at any time.
    pub memory: Option<SharedMemory>,
}

/// One end of a socket pair: sends `Out`, receives `In`. Never waits.
///
/// Processes that stand by hold the same end as the one that serves: who does not serve does not touch it.
#[derive(Debug)]
pub struct Seat<Out, In> {
    peer: Peer,
    /// For messages on their way out, so that none takes memory anew.
    scratch: RefCell<Vec<u8>>,
    /// Number of the next message.
    next: Cell<u64>,
    /// Empty datagrams in a row that were met on the way in.
    empty: Cell<u32>,
    /// See [`Seat::look_again`].
    again: Cell<Option<Instant>>,
    directions: PhantomData<fn(Out) -> In>,
}

/// Both ends of a pair.
pub type Pair<Out, In> = (Seat<Out, In>, Seat<In, Out>);

impl<Out: Message, In: Message> Seat<Out, In> {
    /// Two connected ends.
    pub fn pair() -> Result<Pair<Out, In>, SeatError> {
        let (a, b) = Peer::pair().map_err(SeatError::Socket)?;
        Ok((Seat::of(a).map_err(SeatError::Socket)?, Seat::of(b).map_err(SeatError::Socket)?))
    }

    /// Takes the end that this process was started with as descriptor `number`. Once for each number, and before the door is
    /// closed.
    pub fn inherited(number: RawFd) -> Result<Seat<Out, In>, SeatError> {
        let seat = Peer::inherited(number).and_then(Seat::of);
        seat.map_err(|source| SeatError::NotASeat { number, source })
    }

    fn of(peer: Peer) -> Result<Seat<Out, In>, SocketError> {
        peer.set_nonblocking(true)?;
        let scratch = RefCell::new(Vec::with_capacity(MAX_MESSAGE));
        let (next, empty, again) = (Cell::new(first_number()), Cell::new(0), Cell::new(None));
        Ok(Seat { peer, scratch, next, empty, again, directions: PhantomData })
    }

    /// Takes an end that somebody has handed over.
    pub fn from_fd(fd: OwnedFd) -> Result<Seat<Out, In>, SeatError> {
        let number = fd.as_raw_fd();
        Peer::from_fd(fd).and_then(Seat::of).map_err(|source| SeatError::NotASeat { number, source })
    }

    /// Sends one message, with the memory that belongs to it if [`Message::memory`] says that there is some.
    pub fn send(&self, message: &Out, memory: Option<&SharedMemory>) -> Result<Sent, SeatError> {
        debug_assert_eq!(
            message.memory().is_some(),
            memory.is_some(),
            "memory belongs to some messages only"
        );
        let mut scratch = self.scratch.borrow_mut();
        scratch.clear();
        message.encode(&mut scratch);
        debug_assert!(scratch.len() <= MAX_MESSAGE, "a message of {} bytes", scratch.len());
        message::set_number(&mut scratch, self.next.get());
        let sent = self.send_bytes(&scratch, memory.map(AsFd::as_fd).as_slice())?;
        if sent == Sent::Whole {
            self.next.set(self.next.get().wrapping_add(1));
        }
        Ok(sent)
    }

    /// Sends one datagram as it is. For tests that play a peer who does not follow the protocol.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Sent, SeatError> {
        match self.peer.send_bytes(bytes, fds) {
            Ok(()) => Ok(Sent::Whole),
            Err(SocketError::WouldBlock) => Ok(Sent::Full),
            Err(SocketError::Io(error)) if is_passing(&error) => Ok(Sent::Full),
            Err(error) => Err(SeatError::Socket(error)),
        }
    }

    /// Takes the next message; `None`: there is none now. [`SeatError::Peer`]: one was taken that is none, or none that this build
    /// knows, and others may follow.
    ///
    /// A peer can send as fast as anybody can take: who takes all there is bounds how many, and comes back later for the rest.
    pub fn receive(&self) -> Result<Option<Received<In>>, SeatError> {
        self.next_of(Peer::try_recv_datagram)
    }

    /// Like [`Seat::receive`], but the message stays, also one that is none: the next call finds it again, in whatever process, until
    /// [`Seat::skip`].
    pub fn peek(&self) -> Result<Option<Received<In>>, SeatError> {
        self.next_of(Peer::try_peek_datagram)
    }

    /// Takes the next message, whatever it is, if there is one.
    pub fn skip(&self) -> Result<(), SeatError> {
        match self.take(Peer::try_recv_datagram) {
            Err(error) if !error.is_peers_fault() => Err(error),
            _ => Ok(()),
        }
    }

    /// After `None`: when to look again though nobody rings. There is such a time if there were nothing but empty datagrams for long, which is
    /// what the end reads like: there may be something behind them, but an end must not be read without a pause.
    pub fn look_again(&self) -> Option<Instant> {
        self.again.get()
    }

    /// Counts the empty ones.
    fn next_of(&self, how: TakeDatagram) -> Result<Option<Received<In>>, SeatError> {
        let next = self.take(how);
        let is_empty = matches!(next, Err(SeatError::Peer(MessageError::Empty)));
        self.empty.set(if is_empty { self.empty.get() + 1 } else { 0 });
        if self.empty.get() > EMPTY {
            self.empty.set(0);
            self.again.set(Some(Instant::now() + LULL));
            return Ok(None);
        }
        self.again.set(None);
        next
    }

    fn take(&self, how: TakeDatagram) -> Result<Option<Received<In>>, SeatError> {
        let mut bytes = [0; MAX_MESSAGE];
        let (len, fds) = match how(&self.peer, &mut bytes) {
            Ok(datagram) => datagram,
            Err(SocketError::WouldBlock) => return Ok(None),
            // It reads the same as the end, but something may follow.
            Err(SocketError::Closed) => return Err(MessageError::Empty.into()),
            Err(SocketError::Truncated) => return Err(MessageError::TooLong.into()),
            Err(error) => return Err(SeatError::Socket(error)),
        };
        let bytes = &bytes[..len];
        let message = In::parse(bytes)?;
        let memory = memory(&message, fds)?;
        Ok(Some(Received { message, number: message::number(bytes), memory }))
    }
}

/// How a datagram is looked at.
type TakeDatagram = fn(&Peer, &mut [u8]) -> Result<(usize, Vec<OwnedFd>), SocketError>;

/// No process of the past has counted as far as this: they began at their own time, and none sends a message a nanosecond.
fn first_number() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64)
}

/// The memory that came with a message.
fn memory(message: &impl Message, mut fds: Vec<OwnedFd>) -> Result<Option<SharedMemory>, MessageError> {
    match (message.memory(), fds.pop(), fds.is_empty()) {
        (None, None, _) => Ok(None),
        (Some(needed), Some(fd), true) => {
            SharedMemory::from_fd(fd, needed).map(Some).map_err(|_| MessageError::Memory)
        }
        _ => Err(MessageError::Memory),
    }
}

/// What the kernel says when too much is under way, which ends when somebody reads.
fn is_passing(error: &io::Error) -> bool {
    /// `ETOOMANYREFS`: too many descriptors of this user are in sockets.
    const TOO_MANY_REFERENCES: i32 = 109;
    /// `ENOBUFS`: no memory for the datagram.
    const NO_BUFFERS: i32 = 105;
    matches!(error.raw_os_error(), Some(TOO_MANY_REFERENCES | NO_BUFFERS))
}

impl<Out, In> AsFd for Seat<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.peer.as_fd()
    }
}

impl<Out, In> AsRawFd for Seat<Out, In> {
    fn as_raw_fd(&self) -> RawFd {
        self.peer.as_raw_fd()
    }
}

impl<Out, In> From<Seat<Out, In>> for OwnedFd {
    fn from(seat: Seat<Out, In>) -> OwnedFd {
        seat.peer.into()
    }
}
