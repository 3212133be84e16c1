//! How a process is given its end of a pair: as a descriptor from the process that started it, or from a socket where somebody
//! keeps it.

use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use ipc::socket::{Peer, SocketError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::message::Message;
use crate::socket::{Seat, SeatError};

/// Where the end of the seat's socket pair is. Flatten it into the device's arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
#[group(id = "seat", required = true, multiple = false)]
pub struct SeatArgs {
    /// The device's end of the socket pair to the console, given as descriptor FD
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(RawFd).range(3..))]
    pub seat_fd: Option<RawFd>,

    /// Whoever listens at the unix socket PATH hands over the device's end of the socket pair to the console
    #[arg(long, value_name = "PATH")]
    pub seat_socket: Option<PathBuf>,
}

/// What a socket of `--seat-socket` says, with one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handed {
    /// The end of a pair.
    Seat {},
}

/// Why there is no end.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The command line names none.
    #[error("say where the console is: --seat-fd or --seat-socket")]
    None,
    /// It is none.
    #[error(transparent)]
    Seat(#[from] SeatError),
    /// Nothing was handed over.
    #[error("cannot get the seat from {path}: {source}", path = path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// What went wrong.
        source: SocketError,
    },
    /// Something else was handed over.
    #[error("{path} handed over {count} descriptors instead of one end of a seat's socket pair", path = path.display())]
    Handed {
        /// By whom.
        path: PathBuf,
        /// How many.
        count: usize,
    },
}

impl SeatArgs {
    /// Takes the end that the arguments name, before the compartment closes. At most once a process.
    pub fn open<Out: Message, In: Message>(&self) -> Result<Seat<Out, In>, OpenError> {
        match (self.seat_fd, &self.seat_socket) {
            (Some(number), _) => Ok(Seat::inherited(number)?),
            (None, Some(path)) => Ok(Seat::from_fd(from_socket(path)?)?),
            (None, None) => Err(OpenError::None),
        }
    }
}

fn from_socket(path: &Path) -> Result<OwnedFd, OpenError> {
    let received = Peer::connect(path).and_then(|peer| peer.recv::<Handed>());
    let (Handed::Seat {}, mut fds) =
        received.map_err(|source| OpenError::Socket { path: path.into(), source })?;
    match (fds.pop(), fds.len()) {
        (Some(fd), 0) => Ok(fd),
        (_, left) => Err(OpenError::Handed { path: path.into(), count: left }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use clap::Parser;
    use ipc::socket::Listener;

    use super::*;
    use crate::Sent;
    use crate::mouse::{ConsoleEnd, DeviceEnd, ToConsole};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        seat: SeatArgs,
    }

    fn parse(line: &str) -> Result<SeatArgs, clap::Error> {
        Line::try_parse_from(line.split(' ')).map(|line| line.seat)
    }

    #[test]
    fn there_is_one_end() {
        assert_eq!(parse("vsp --seat-fd 5").unwrap(), SeatArgs { seat_fd: Some(5), seat_socket: None });
        for line in ["vsp", "vsp --seat-fd 2", "vsp --seat-fd x", "vsp --seat-fd 5 --seat-socket /run/x"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(matches!(SeatArgs::default().open::<ToConsole, ToConsole>(), Err(OpenError::None)));
        let closed = SeatArgs { seat_fd: Some(1 << 20), seat_socket: None };
        assert!(matches!(closed.open::<ToConsole, ToConsole>(), Err(OpenError::Seat(_))));
    }

    #[test]
    fn it_comes_from_a_socket() {
        let folder = std::env::temp_dir().join(format!("bulkhead-seat-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("seat.sock");
        let listener = Listener::bind(&path).unwrap();
        let args = SeatArgs { seat_fd: None, seat_socket: Some(path.clone()) };
        let (device, console): (DeviceEnd, ConsoleEnd) = DeviceEnd::pair().unwrap();
        let device = OwnedFd::from(device);
        for fds in [vec![device.as_fd()], vec![], vec![device.as_fd(); 2]] {
            let opened = std::thread::scope(|scope| {
                let opening = scope.spawn(|| args.open());
                let peer = loop {
                    match listener.accept() {
                        Ok(peer) => break peer,
                        Err(_) => std::thread::yield_now(),
                    }
                };
                peer.send(&Handed::Seat {}, &fds).unwrap();
                opening.join().unwrap()
            });
            match opened {
                Ok(end) => {
                    let end: DeviceEnd = end;
                    assert_eq!(fds.len(), 1);
                    assert_eq!(end.send(&ToConsole::Ready(true), None).unwrap(), Sent::Whole);
                    assert_eq!(console.receive().unwrap().unwrap().message, ToConsole::Ready(true));
                }
                Err(error) => {
                    assert_ne!(fds.len(), 1);
                    assert!(matches!(error, OpenError::Handed { .. }), "{error}");
                }
            }
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
