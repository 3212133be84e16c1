//! The control socket: `SOCK_SEQPACKET` over a unix socket, one message a datagram.
//!
//! Bounded on purpose: [`MAX_MESSAGE`] bytes and [`MAX_FDS`] descriptors a datagram, memory taken
//! for exactly what has come, nothing queued here. Whatever a peer sends that is not a whole,
//! well-formed message is an error of [`SocketError::is_peers_fault`], to be answered by dropping the peer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen,
    shutdown, socket, socketpair, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::scm;

/// Longest message in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Most descriptors with one message.
pub const MAX_FDS: usize = scm::MAX_FDS;

/// Why a message could not be sent or received.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The peer has closed its end, or an empty datagram came, which reads the same. Who must not take the one for the other asks
    /// [`Peer::is_abandoned`].
    #[error("the peer has gone")]
    Closed,
    /// Nothing to receive, or no room to send, on a non-blocking socket.
    #[error("the socket is not ready")]
    WouldBlock,
    /// The peer sent more bytes than [`MAX_MESSAGE`].
    #[error("a message of {0} bytes is longer than {MAX_MESSAGE}")]
    TooLong(usize),
    /// More than [`MAX_FDS`] descriptors, or descriptors that could not be received.
    #[error("a message came cut short or with more than {MAX_FDS} descriptors")]
    Truncated,
    /// Not a message that this build knows.
    #[error("not a message that this build knows: {0}")]
    Malformed(#[source] serde_json::Error),
    /// Our own message cannot be sent.
    #[error("cannot encode a message: {0}")]
    Unencodable(#[source] serde_json::Error),
    /// A descriptor that is no `SOCK_SEQPACKET` unix socket.
    #[error("the descriptor is not a connected unix socket of type SOCK_SEQPACKET")]
    WrongSocket,
    /// The peer runs as a user that may not talk to us.
    #[error("the peer runs as uid {0}, which may not attach here")]
    WrongUser(u32),
    /// The system's own error.
    #[error("control socket: {0}")]
    Io(#[source] io::Error),
}

impl SocketError {
    /// Whether the peer has to be dropped for it.
    pub fn is_peers_fault(&self) -> bool {
        matches!(
            self,
            SocketError::TooLong(_)
                | SocketError::Truncated
                | SocketError::Malformed(_)
                | SocketError::WrongUser(_)
        )
    }
}

impl From<io::Error> for SocketError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => SocketError::WouldBlock,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => SocketError::Closed,
            _ => SocketError::Io(error),
        }
    }
}

impl From<nix::Error> for SocketError {
    fn from(error: nix::Error) -> Self {
        io::Error::from(error).into()
    }
}

/// Who is at the other end, as the kernel recorded when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process id.
    pub pid: i32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// A connected control socket.
#[derive(Debug)]
pub struct Peer {
    fd: OwnedFd,
}

impl Peer {
    /// Connects to a listener. Blocking until [`Peer::set_nonblocking`].
    pub fn connect(path: &Path) -> Result<Peer, SocketError> {
        let fd = new_socket(SockFlag::SOCK_CLOEXEC)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Peer { fd })
    }

    /// Takes a descriptor that was inherited or received, if it is the right kind of socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Peer, SocketError> {
        match getsockopt(&fd, sockopt::SockType) {
            Ok(SockType::SeqPacket) if getsockopt(&fd, sockopt::AcceptConn) == Ok(false) => {}
            _ => return Err(SocketError::WrongSocket),
        }
        getsockopt(&fd, sockopt::PeerCredentials).map_err(|_| SocketError::WrongSocket)?;
        Ok(Peer { fd })
    }

    /// Takes the socket that this process was started with as descriptor `number`. Once for each number.
    pub fn inherited(number: RawFd) -> Result<Peer, SocketError> {
        Peer::from_fd(scm::adopt(number)?)
    }

    /// Two connected ends.
    pub fn pair() -> Result<(Peer, Peer), SocketError> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Peer { fd: a }, Peer { fd: b }))
    }

    /// Makes `send` and `recv` answer [`SocketError::WouldBlock`] instead of waiting.
    pub fn set_nonblocking(&self, on: bool) -> Result<(), SocketError> {
        let mut flags = OFlag::from_bits_retain(fcntl(&self.fd, FcntlArg::F_GETFL)?);
        flags.set(OFlag::O_NONBLOCK, on);
        fcntl(&self.fd, FcntlArg::F_SETFL(flags))?;
        Ok(())
    }

    /// Sends one message with its descriptors, whole or not at all.
    pub fn send<M: Serialize>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        let bytes = serde_json::to_vec(message).map_err(SocketError::Unencodable)?;
        self.send_bytes(&bytes, fds)
    }

    /// Sends one datagram as it is. For tests that play a peer who does not follow the protocol.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(SocketError::TooLong(bytes.len()));
        }
        if fds.len() > MAX_FDS {
            return Err(SocketError::Truncated);
        }
        Ok(scm::send(self.fd.as_fd(), bytes, fds)?)
    }

    /// Nothing more will be sent: the peer reads what has been sent, and then the end. What it says can still be received, its own
    /// end included.
    pub fn finish(&self) -> Result<(), SocketError> {
        Ok(shutdown(self.fd.as_raw_fd(), Shutdown::Write)?)
    }

    /// Whether no process has the other end any more, after [`SocketError::Closed`]. False also if the kernel does not
    /// say: one that only plays dead must not be believed.
    ///
    /// Takes `poll(2)`, which the policies of device processes do not allow: it is for those who distrust the peer. An end
    /// that was shut down for both ways (`shutdown(2)`, which these policies do not allow either) and lives on is not told
    /// from a closed one.
    pub fn is_abandoned(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::empty())];
        let asked = poll(&mut fds, PollTimeout::ZERO);
        asked.is_ok() && fds[0].revents().is_some_and(|found| found.contains(PollFlags::POLLHUP))
    }

    /// Receives one message and its descriptors (close-on-exec), whole or not at all.
    pub fn recv<M: DeserializeOwned>(&self) -> Result<(M, Vec<OwnedFd>), SocketError> {
        self.receive(true)
    }

    /// Like [`Peer::recv`], but never waits, whatever the mode of the socket.
    pub fn try_recv<M: DeserializeOwned>(&self) -> Result<(M, Vec<OwnedFd>), SocketError> {
        self.receive(false)
    }

    fn receive<M: DeserializeOwned>(&self, wait: bool) -> Result<(M, Vec<OwnedFd>), SocketError> {
        let (bytes, fds) = self.recv_bytes(wait)?;
        Ok((serde_json::from_slice(&bytes).map_err(SocketError::Malformed)?, fds))
    }

    fn recv_bytes(&self, wait: bool) -> Result<(Vec<u8>, Vec<OwnedFd>), SocketError> {
        let waiting = scm::peek_len(self.fd.as_fd(), wait)?;
        if waiting == 0 {
            // If it was an empty datagram, it is gone now, so that it does not make the socket readable for ever.
            scm::receive(self.fd.as_fd(), &mut [], wait)?;
            return Err(SocketError::Closed);
        }
        if waiting > MAX_MESSAGE {
            // Taken, so that the peer can go on to say that it ends.
            scm::receive(self.fd.as_fd(), &mut [0], wait)?;
            return Err(SocketError::TooLong(waiting));
        }
        let mut bytes = vec![0; waiting];
        let datagram = scm::receive(self.fd.as_fd(), &mut bytes, wait)?;
        if datagram.truncated {
            return Err(SocketError::Truncated);
        }
        bytes.truncate(datagram.len);
        Ok((bytes, datagram.fds))
    }

    /// Receives one datagram as it is, for protocols with other messages than these: its length in `buffer`, and its descriptors
    /// (close-on-exec). Never waits. One that does not fit is taken and lost: [`SocketError::Truncated`].
    pub fn try_recv_datagram(&self, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), SocketError> {
        whole(scm::receive(self.fd.as_fd(), buffer, false)?)
    }

    /// The same, but the datagram stays where it is; its descriptors are duplicates.
    pub fn try_peek_datagram(&self, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), SocketError> {
        whole(scm::peek(self.fd.as_fd(), buffer)?)
    }

    /// Who connected this socket.
    pub fn credentials(&self) -> Result<Credentials, SocketError> {
        let found = getsockopt(&self.fd, sockopt::PeerCredentials)?;
        Ok(Credentials { pid: found.pid(), uid: found.uid(), gid: found.gid() })
    }

    /// Refuses a peer whose user is none of `allowed`.
    pub fn check_user(&self, allowed: &[u32]) -> Result<Credentials, SocketError> {
        let found = self.credentials()?;
        if allowed.contains(&found.uid) { Ok(found) } else { Err(SocketError::WrongUser(found.uid)) }
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Peer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<Peer> for OwnedFd {
    fn from(peer: Peer) -> OwnedFd {
        peer.fd
    }
}

/// Owns a descriptor of any kind that this process was started with, and makes it close-on-exec. Once for each number:
/// nobody else in this process may own it.
pub fn inherited_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    scm::adopt(number)
}

/// A listening control socket, non-blocking.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
}

impl Listener {
    /// Listens at `path`, which must not exist yet.
    pub fn bind(path: &Path) -> Result<Listener, SocketError> {
        let fd = new_socket(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&fd, Backlog::new(16)?)?;
        Ok(Listener { fd })
    }

    /// Takes an inherited listening socket and makes it non-blocking.
    pub fn from_fd(fd: OwnedFd) -> Result<Listener, SocketError> {
        let right = matches!(getsockopt(&fd, sockopt::SockType), Ok(SockType::SeqPacket));
        if !right || !matches!(getsockopt(&fd, sockopt::AcceptConn), Ok(true)) {
            return Err(SocketError::WrongSocket);
        }
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Listener { fd })
    }

    /// Takes the listening socket that this process was started with as descriptor `number`. Once for each
    /// number.
    pub fn inherited(number: RawFd) -> Result<Listener, SocketError> {
        Listener::from_fd(scm::adopt(number)?)
    }

    /// The next connection, non-blocking; [`SocketError::WouldBlock`] if there is none.
    pub fn accept(&self) -> Result<Peer, SocketError> {
        Ok(Peer { fd: scm::accept(self.fd.as_fd())? })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> OwnedFd {
        listener.fd
    }
}

/// What came, if all of it did.
fn whole(datagram: scm::Datagram) -> Result<(usize, Vec<OwnedFd>), SocketError> {
    match datagram {
        scm::Datagram { truncated: true, .. } => Err(SocketError::Truncated),
        scm::Datagram { len: 0, .. } => Err(SocketError::Closed),
        scm::Datagram { len, fds, .. } => Ok((len, fds)),
    }
}

fn new_socket(flags: SockFlag) -> Result<OwnedFd, SocketError> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Doorbell;
    use crate::message::{ToCore, ToVsp};

    fn closed(channel: u32) -> ToCore {
        ToCore::Closed { channel }
    }

    #[test]
    fn a_message_travels_with_its_descriptors() {
        let (vsp, core) = Peer::pair().unwrap();
        let bell = Doorbell::new().unwrap();
        vsp.send(&closed(3), &[bell.as_fd(), bell.as_fd()]).unwrap();
        let (message, mut fds) = core.recv::<ToCore>().unwrap();
        assert_eq!(message, closed(3));
        assert_eq!(fds.len(), 2);
        Doorbell::from_fd(fds.remove(1)).unwrap().signal().unwrap();
        assert!(bell.drain().unwrap(), "the same open file");
        let flags = fcntl(&fds[0], FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }

    #[test]
    fn nothing_there_and_nobody_there_are_told_apart() {
        let (vsp, core) = Peer::pair().unwrap();
        assert!(matches!(core.try_recv::<ToCore>(), Err(SocketError::WouldBlock)));
        core.set_nonblocking(true).unwrap();
        assert!(matches!(core.recv::<ToCore>(), Err(SocketError::WouldBlock)));
        drop(vsp);
        assert!(matches!(core.recv::<ToCore>(), Err(SocketError::Closed)));
        assert!(matches!(core.send(&ToVsp::ChannelClose { channel: 1 }, &[]), Err(SocketError::Closed)));
    }

    #[test]
    fn a_peer_that_sends_nothing_is_not_one_that_has_gone() {
        let (vsp, core) = Peer::pair().unwrap();
        let bell = Doorbell::new().unwrap();
        // With descriptors or without, once or again, and whether or not we have finished.
        for round in 0..3 {
            vsp.send_bytes(b"", &[]).unwrap();
            vsp.send_bytes(b"", &[bell.as_fd()]).unwrap();
            for _ in 0..2 {
                assert!(matches!(core.try_recv::<ToCore>(), Err(SocketError::Closed)));
                assert!(!core.is_abandoned());
            }
            assert!(
                matches!(core.try_recv::<ToCore>(), Err(SocketError::WouldBlock)),
                "they are not met again"
            );
            vsp.send(&closed(round), &[]).unwrap();
            assert_eq!(core.try_recv::<ToCore>().unwrap().0, closed(round));
            core.finish().unwrap();
        }
        vsp.send_bytes(b"", &[]).unwrap();
        drop(vsp);
        assert!(matches!(core.try_recv::<ToCore>(), Err(SocketError::Closed)));
        assert!(core.is_abandoned());
    }

    #[test]
    fn who_has_finished_still_hears_the_other_end() {
        let (vsp, core) = Peer::pair().unwrap();
        core.send(&ToVsp::Refused { reason: "no".into() }, &[]).unwrap();
        core.finish().unwrap();
        assert!(matches!(vsp.recv::<ToVsp>().unwrap().0, ToVsp::Refused { .. }));
        assert!(matches!(vsp.recv::<ToVsp>(), Err(SocketError::Closed)));
        assert!(matches!(core.try_recv::<ToCore>(), Err(SocketError::WouldBlock)), "it lives");
        vsp.send(&closed(1), &[]).unwrap();
        drop(vsp);
        assert_eq!(core.recv::<ToCore>().unwrap().0, closed(1));
        assert!(matches!(core.recv::<ToCore>(), Err(SocketError::Closed)));
    }

    #[test]
    fn a_peer_that_does_not_read_does_not_block_the_sender() {
        let (_vsp, core) = Peer::pair().unwrap();
        core.set_nonblocking(true).unwrap();
        let end = (0..100_000).find_map(|channel| core.send(&ToVsp::ChannelClose { channel }, &[]).err());
        assert!(matches!(end, Some(SocketError::WouldBlock)));
    }

    #[test]
    fn what_is_no_message_is_the_peers_fault() {
        let (vsp, core) = Peer::pair().unwrap();
        for bytes in [&b"{"[..], b"\xff\xfe", b"{\"Nonsense\":{}}", b"{\"Closed\":{\"channel\":-1}}"] {
            vsp.send_bytes(bytes, &[]).unwrap();
            assert!(core.recv::<ToCore>().unwrap_err().is_peers_fault());
        }
        assert!(vsp.send_bytes(&vec![b' '; MAX_MESSAGE + 1], &[]).is_err());
        scm::send(vsp.as_fd(), &vec![b' '; MAX_MESSAGE + 1], &[]).unwrap();
        assert!(matches!(core.recv::<ToCore>(), Err(SocketError::TooLong(_))));
        assert!(matches!(core.try_recv::<ToCore>(), Err(SocketError::WouldBlock)), "it is not met again");
    }

    #[test]
    fn too_many_descriptors_are_refused_and_none_leaks() {
        let (vsp, core) = Peer::pair().unwrap();
        let bells: Vec<Doorbell> = (0..=MAX_FDS).map(|_| Doorbell::new().unwrap()).collect();
        let raw: Vec<i32> = bells.iter().map(|b| b.as_raw_fd()).collect();
        let iov = [io::IoSlice::new(b"{\"Closed\":{\"channel\":1}}")];
        let rights = [nix::sys::socket::ControlMessage::ScmRights(&raw)];
        let flags = nix::sys::socket::MsgFlags::empty();
        nix::sys::socket::sendmsg::<()>(vsp.as_raw_fd(), &iov, &rights, flags, None).unwrap();
        let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
        assert!(matches!(core.recv::<ToCore>(), Err(SocketError::Truncated)));
        // Other tests open descriptors of their own meanwhile; so many leaked ones would still show in most runs.
        let after = std::fs::read_dir("/proc/self/fd").unwrap().count();
        assert!(after < before + MAX_FDS, "{before} {after}");
    }

    #[test]
    fn a_listener_tells_who_connected() {
        let folder = std::env::temp_dir().join(format!("bulkhead-ipc-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("control.sock");
        let listener = Listener::bind(&path).unwrap();
        assert!(matches!(listener.accept(), Err(SocketError::WouldBlock)));
        let vsp = Peer::connect(&path).unwrap();
        let core = listener.accept().unwrap();
        let uid = nix::unistd::getuid().as_raw();
        assert_eq!(core.check_user(&[uid]).unwrap().pid, std::process::id() as i32);
        assert!(matches!(core.check_user(&[uid + 1]), Err(SocketError::WrongUser(_))));
        core.send(&ToVsp::Refused { reason: "no".into() }, &[]).unwrap();
        assert!(matches!(vsp.recv::<ToVsp>().unwrap().0, ToVsp::Refused { .. }));
        let listener = Listener::from_fd(listener.into()).unwrap();
        assert!(Peer::from_fd(listener.into()).is_err(), "a listener is no peer");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn an_inherited_socket_is_taken_by_number() {
        let (vsp, core) = Peer::pair().unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(OwnedFd::from(vsp));
        Peer::inherited(number).unwrap().send(&closed(1), &[]).unwrap();
        assert_eq!(core.recv::<ToCore>().unwrap().0, closed(1));
        assert!(Peer::inherited(1).is_err());
        assert!(Peer::inherited(1 << 20).is_err());
    }

    #[test]
    fn other_descriptors_are_no_peers() {
        assert!(Peer::from_fd(Doorbell::new().unwrap().into()).is_err());
        let (a, _b) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).unwrap();
        assert!(matches!(Peer::from_fd(a), Err(SocketError::WrongSocket)));
    }
}
