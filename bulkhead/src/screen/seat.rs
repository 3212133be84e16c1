//! What lies between the processes of a screen, and where people come to it: sockets that are opened once and given to every process.
//!
//! A device and the console talk over a pair of sockets, of which both ends are kept here: so the death of one side is no end of file for the
//! other, what it has said is still there, and whoever comes next goes on. The console's listeners are kept for the same reason: who connects
//! while there is no console waits for the next one.
//!
//! It must never read from any of them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrStorage, bind, setsockopt, socket, socketpair,
    sockopt,
};

use crate::plan::Part;

/// Bytes of the secret behind the web page's cookies.
const SECRET: usize = 32;

/// Why there is no seat. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A TCP port.
    #[error("cannot listen at {address}: {error}; choose another `{key}` under [screen]")]
    Port {
        /// The key in the spec.
        key: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// A Unix socket.
    #[error("cannot listen at {}: {error}", .path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Something that always works.
    #[error("cannot make {what}: {error}")]
    Made {
        /// What.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
}

/// The Unix sockets on which people and their tools come.
#[derive(Debug)]
pub struct Doors {
    /// VNC.
    pub vnc: OwnedFd,
    /// `bulkhead screenshot` and its like.
    pub control: OwnedFd,
}

impl Doors {
    /// Listens at two paths, which must not exist yet.
    pub fn open(vnc: &Path, control: &Path) -> Result<Self, Error> {
        let listen = |path: &Path| {
            let made = UnixListener::bind(path);
            made.map(OwnedFd::from).map_err(|error| Error::Socket { path: path.to_owned(), error })
        };
        Ok(Self { vnc: listen(vnc)?, control: listen(control)? })
    }
}

/// A device's end and the console's.
#[derive(Debug)]
struct Pair {
    device: OwnedFd,
    console: OwnedFd,
}

impl Pair {
    fn new() -> io::Result<Self> {
        // Nobody waits for the other side, whatever it does.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (device, console) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok(Self { device, console })
    }
}

/// A TCP port at which people come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// For VNC.
    Vnc(SocketAddr),
    /// For the web page; without an address one of 127.0.0.1 that is free.
    Web(Option<SocketAddr>),
}

impl Port {
    /// Those of a seat.
    pub fn all(vnc: Option<SocketAddr>, web: Option<SocketAddr>) -> impl Iterator<Item = Self> {
        vnc.map(Self::Vnc).into_iter().chain([Self::Web(web)])
    }
}

/// All of it.
#[derive(Debug)]
pub struct Seat {
    video: Pair,
    keyboard: Pair,
    mouse: Pair,
    doors: Doors,
    listener: Option<OwnedFd>,
    web: Option<OwnedFd>,
    secret: OwnedFd,
}

impl Seat {
    /// Opens what is not there yet: VNC at `vnc` besides, the web page at `web` instead of a port that is free.
    pub fn new(vnc: Option<SocketAddr>, web: Option<SocketAddr>, doors: Doors) -> Result<Self, Error> {
        let mut seat = Self::without_ports(doors)?;
        Port::all(vnc, web).try_for_each(|port| seat.open(port))?;
        Ok(seat)
    }

    /// Opens a port. The console that comes next is given it.
    pub fn open(&mut self, port: Port) -> Result<(), Error> {
        match port {
            Port::Vnc(address) => self.listener = Some(listen("listen", address)?),
            Port::Web(address) => self.open_web(address)?,
        }
        Ok(())
    }

    fn open_web(&mut self, web: Option<SocketAddr>) -> Result<(), Error> {
        let made = |what| move |error| Error::Made { what, error };
        let web = match web {
            Some(address) => reserved(address).map_err(|error| Error::Port { key: "web", address, error })?,
            None => reserved_port().map_err(made("a socket for the web page"))?,
        };
        self.web = Some(web);
        Ok(())
    }

    /// Opens what always can be opened.
    pub fn without_ports(doors: Doors) -> Result<Self, Error> {
        let made = |what| move |error| Error::Made { what, error };
        for door in [&doors.vnc, &doors.control] {
            never_wait(door).map_err(made("a socket non-blocking"))?;
        }
        let pair = || Pair::new().map_err(made("a pair of sockets"));
        Ok(Self {
            video: pair()?,
            keyboard: pair()?,
            mouse: pair()?,
            doors,
            listener: None,
            web: None,
            secret: secret().map_err(made("a secret"))?,
        })
    }

    /// What a process with that part is given, each with the option by which it is told of it.
    pub fn given(&self, part: Part) -> Vec<(&'static str, BorrowedFd<'_>)> {
        let pair = match part {
            Part::Video => &self.video,
            Part::Keyboard => &self.keyboard,
            Part::Mouse => &self.mouse,
            Part::Console => return self.for_console(),
        };
        vec![("--seat-fd", pair.device.as_fd())]
    }

    fn for_console(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        let mut given = vec![
            ("--video-fd", self.video.console.as_fd()),
            ("--keyboard-fd", self.keyboard.console.as_fd()),
            ("--mouse-fd", self.mouse.console.as_fd()),
            ("--rfb-fd", self.doors.vnc.as_fd()),
            ("--control-fd", self.doors.control.as_fd()),
            ("--secret-fd", self.secret.as_fd()),
        ];
        given.extend(self.web.iter().map(|web| ("--web-fd", web.as_fd())));
        given.extend(self.listener.iter().map(|listener| ("--rfb-fd", listener.as_fd())));
        given
    }
}

fn listen(key: &'static str, address: SocketAddr) -> Result<OwnedFd, Error> {
    let failed = |error| Error::Port { key, address, error };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener.into())
}

/// An address at which nobody listens yet: the console does when it is asked for a web page for the first time. With `SO_REUSEADDR`, because the
/// connections of the VM's last run may hold the port for another minute. So another program can take it until then, and then no page is
/// offered; no token is ever made for a port at which somebody else listens.
fn reserved(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
}

/// A port of 127.0.0.1 that is ours, and at which nobody listens yet: the console does when it is asked for a web page for the first time.
/// Without `SO_REUSEADDR`, so that nobody else can take it.
fn reserved_port() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)))?;
    Ok(socket)
}

/// Random bytes that nobody can change: who has a cookie made of them is known to the next console as well.
fn secret() -> io::Result<OwnedFd> {
    let mut bytes = [0; SECRET];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut file =
        File::from(memfd_create(c"console-secret", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.write_all(&bytes)?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

fn never_wait(socket: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use nix::sys::socket::{Backlog, getsockname, listen};

    use super::*;

    #[test]
    fn nobody_can_connect_to_a_named_address_before_a_page_is_wanted() {
        for ip in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(web) = reserved(ip.parse().unwrap()) else {
                assert!(ip.contains("::1"), "a host without IPv6 has 127.0.0.1");
                continue;
            };
            let bound: SockaddrStorage = getsockname(web.as_raw_fd()).unwrap();
            let address: SocketAddr = bound.to_string().parse().unwrap();
            assert_eq!(TcpStream::connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            listen(&web, Backlog::new(1).unwrap()).unwrap();
            let browser = TcpStream::connect(address).unwrap();
            assert_eq!(reserved(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            // The last run's connections are in nobody's way.
            let (served, _) = TcpListener::from(web).accept().unwrap();
            drop(served);
            drop(browser);
            reserved(address).unwrap();
        }
    }
}
