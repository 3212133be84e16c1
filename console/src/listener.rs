//! Where viewers and commands connect.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::socket::{setsockopt, sockopt};

use crate::stream::Stream;

/// For how long a peer may leave what is sent to it unacknowledged, or not read on, in milliseconds.
const UNACKNOWLEDGED: u32 = 60_000;

/// A listening socket; non-blocking.
#[derive(Debug)]
pub enum Listener {
    /// Whose directory says who may connect.
    Unix(UnixListener),
    /// To which anybody can connect who reaches the address.
    Tcp(TcpListener),
}

impl Listener {
    /// Takes a socket that listens already.
    pub fn new(socket: OwnedFd) -> io::Result<Listener> {
        let unix = UnixListener::from(socket);
        if unix.local_addr().is_ok() {
            unix.set_nonblocking(true)?;
            return Ok(Listener::Unix(unix));
        }
        let tcp = TcpListener::from(OwnedFd::from(unix));
        tcp.local_addr()?;
        tcp.set_nonblocking(true)?;
        notice_absence(&tcp)?;
        Ok(Listener::Tcp(tcp))
    }

    /// Whether it is reached by TCP.
    pub fn is_tcp(&self) -> bool {
        matches!(self, Listener::Tcp(_))
    }

    /// The next connection, non-blocking; `None`: there is none.
    pub fn accept(&self) -> io::Result<Option<Stream>> {
        let stream = match self {
            Listener::Unix(listener) => next(|| listener.accept())?.map(|(stream, _)| Stream::Unix(stream)),
            Listener::Tcp(listener) => next(|| listener.accept())?.map(|(stream, _)| Stream::Tcp(stream)),
        };
        match &stream {
            Some(Stream::Tcp(tcp)) => {
                tcp.set_nonblocking(true)?;
                // An update's last bytes must not wait for an acknowledgement.
                tcp.set_nodelay(true)?;
            }
            Some(Stream::Unix(unix)) => unix.set_nonblocking(true)?,
            _ => {}
        }
        Ok(stream)
    }
}

/// Who has gone without a word is found out within a minute, and lets go of his keys. Connections inherit it from this listener, which need not
/// listen yet.
pub fn notice_absence(listener: &TcpListener) -> io::Result<()> {
    setsockopt(listener, sockopt::KeepAlive, &true)?;
    setsockopt(listener, sockopt::TcpKeepIdle, &30)?;
    setsockopt(listener, sockopt::TcpKeepInterval, &10)?;
    setsockopt(listener, sockopt::TcpKeepCount, &3)?;
    // The above is for those of whom nothing is wanted. While something of an update is on its way to them it is sent again and again instead, for
    // a quarter of an hour.
    setsockopt(listener, sockopt::TcpUserTimeout, &UNACKNOWLEDGED)?;
    Ok(())
}

/// The same for commands.
pub fn accept_command(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    let Some((stream, _)) = next(|| listener.accept())? else { return Ok(None) };
    stream.set_nonblocking(true)?;
    Ok(Some(stream))
}

/// Who has gone again before he was taken is nobody.
fn next<T>(mut accept: impl FnMut() -> io::Result<T>) -> io::Result<Option<T>> {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    loop {
        match accept() {
            Ok(taken) => return Ok(Some(taken)),
            Err(error) if error.kind() == WouldBlock => return Ok(None),
            Err(error) if matches!(error.kind(), Interrupted | ConnectionAborted) => {}
            Err(error) => return Err(error),
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Listener::Unix(listener) => listener.as_raw_fd(),
            Listener::Tcp(listener) => listener.as_raw_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use nix::sys::socket::getsockopt;

    use super::*;

    #[test]
    fn who_vanishes_is_missed_whether_something_is_on_its_way_to_him_or_not() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let listener = Listener::new(tcp.into()).unwrap();
        let _peer = TcpStream::connect(address).unwrap();
        let Some(Stream::Tcp(stream)) = listener.accept().unwrap() else { panic!("it is TCP") };
        assert!(getsockopt(&stream, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepIdle).unwrap(), 30);
        assert_eq!(getsockopt(&stream, sockopt::TcpUserTimeout).unwrap(), 60_000);
    }
}
