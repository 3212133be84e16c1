//! Which backend the command line means, opened before the compartment closes.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vsp::ipc::socket::{Peer, SocketError};

use super::stream::StreamError;
use super::tap::TapError;
use super::{Backend, Stream, TapQueues};
use crate::sys;

/// What is behind the NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct BackendArgs {
    #[command(flatten)]
    place: Place,

    /// Queues of the NIC, and of a TAP or macvtap interface; 1 if it is not said, or as many as there are --tap-fd
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    queues: Option<u16>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
#[group(id = "backend", required = true, multiple = false)]
struct Place {
    /// An open queue of a TAP or macvtap interface, given as descriptor FD; once for each queue
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(RawFd).range(3..))]
    tap_fd: Vec<RawFd>,

    /// The TAP interface NAME, which exists and may be used by this user
    #[arg(long, value_name = "NAME")]
    tap: Option<String>,

    /// Whoever listens at the unix socket PATH hands over the queues of a TAP or macvtap interface
    #[arg(long, value_name = "PATH")]
    tap_socket: Option<PathBuf>,

    /// A connected unix stream socket, given as descriptor FD; at its other end is passt
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(RawFd).range(3..))]
    stream_fd: Option<RawFd>,

    /// Whoever listens at the unix socket PATH hands over a connected stream socket, at whose other end is passt
    #[arg(long, value_name = "PATH")]
    stream_socket: Option<PathBuf>,
}

/// Why there is no backend.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The command line names none.
    #[error("say what is behind the NIC: --tap-fd, --tap, --tap-socket, --stream-fd or --stream-socket")]
    None,
    /// More or fewer than there should be.
    #[error("--queues {asked}, and {found} queues are there")]
    Queues {
        /// As the command line says.
        asked: usize,
        /// As there are.
        found: usize,
    },
    /// The same number twice.
    #[error("descriptor {0} is given twice")]
    Twice(RawFd),
    /// Not a descriptor of this process.
    #[error("descriptor {number}: {source}")]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// The system's error.
        source: io::Error,
    },
    /// The TAP cannot be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The stream cannot be used.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Nothing was handed over.
    #[error("cannot get the backend from {path}: {source}", path = path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// What went wrong.
        source: SocketError,
    },
    /// Something else was handed over.
    #[error("{path} handed over something else ({count} descriptors) than {wanted}", path = path.display())]
    Handed {
        /// By whom.
        path: PathBuf,
        /// How many.
        count: usize,
        /// What was wanted.
        wanted: &'static str,
    },
}

/// What a socket of `--tap-socket` or `--stream-socket` hands over, with one descriptor for each queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handed {
    /// Queues of a TAP or macvtap interface.
    Taps {},
    /// A stream socket.
    Stream {},
}

impl BackendArgs {
    /// How many queues the NIC is to have. A stream serves several as well: somebody else has to spread its frames.
    pub fn queues(&self) -> u16 {
        // There are no more than 256 of them, or `open` refuses.
        self.queues.unwrap_or(self.place.tap_fd.len().clamp(1, 256) as u16)
    }

    /// Whether it is a stream.
    pub fn is_stream(&self) -> bool {
        self.place.stream_fd.is_some() || self.place.stream_socket.is_some()
    }

    /// Opens or takes what the arguments name, before the compartment closes. At most once a process: descriptors are taken
    /// by their numbers.
    pub fn open(&self) -> Result<Backend, OpenError> {
        let backend = self.place.open(self.queues().into())?;
        match (&backend, self.queues) {
            (Backend::Tap(tap), Some(asked)) if usize::from(asked) != tap.queues() => {
                Err(OpenError::Queues { asked: asked.into(), found: tap.queues() })
            }
            _ => Ok(backend),
        }
    }
}

impl Place {
    fn open(&self, queues: usize) -> Result<Backend, OpenError> {
        if let Some(name) = &self.tap {
            return Ok(Backend::Tap(TapQueues::open(name, queues)?));
        }
        if let Some(path) = &self.tap_socket {
            return match from_socket(path)? {
                (Handed::Taps {}, fds) if !fds.is_empty() => Ok(Backend::Tap(TapQueues::adopt(fds)?)),
                (_, fds) => Err(OpenError::Handed { path: path.clone(), count: fds.len(), wanted: "queues" }),
            };
        }
        if let Some(number) = self.stream_fd {
            return Ok(Backend::Stream(Stream::new(adopt(number)?)?));
        }
        if let Some(path) = &self.stream_socket {
            let (handed, mut fds) = from_socket(path)?;
            return match (handed, fds.pop(), fds.len()) {
                (Handed::Stream {}, Some(fd), 0) => Ok(Backend::Stream(Stream::new(fd)?)),
                (_, _, count) => {
                    Err(OpenError::Handed { path: path.clone(), count, wanted: "a stream socket" })
                }
            };
        }
        if self.tap_fd.is_empty() {
            return Err(OpenError::None);
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.tap_fd.iter().find(|number| !seen.insert(**number)) {
            return Err(OpenError::Twice(*twice));
        }
        let queues = self.tap_fd.iter().map(|number| adopt(*number)).collect::<Result<_, _>>()?;
        Ok(Backend::Tap(TapQueues::adopt(queues)?))
    }
}

fn adopt(number: RawFd) -> Result<OwnedFd, OpenError> {
    sys::adopt(number).map_err(|source| OpenError::Descriptor { number, source })
}

fn from_socket(path: &Path) -> Result<(Handed, Vec<OwnedFd>), OpenError> {
    let received = Peer::connect(path).and_then(|peer| peer.recv());
    received.map_err(|source| OpenError::Socket { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        backend: BackendArgs,
    }

    fn parse(line: &[&str]) -> Result<BackendArgs, clap::Error> {
        Line::try_parse_from([&["vsp-net"], line].concat()).map(|line| line.backend)
    }

    #[test]
    fn one_backend_at_a_time() {
        Line::command().debug_assert();
        let taps = parse(&["--tap-fd", "5", "--tap-fd", "6"]).unwrap();
        assert_eq!((&taps.place.tap_fd[..], taps.queues(), taps.is_stream()), (&[5, 6][..], 2, false));
        let tap = parse(&["--tap", "tap0", "--queues", "4"]).unwrap();
        assert_eq!((tap.place.tap.as_deref(), tap.queues(), tap.is_stream()), (Some("tap0"), 4, false));
        let stream = parse(&["--stream-fd", "5"]).unwrap();
        assert_eq!((stream.place.stream_fd, stream.queues()), (Some(5), 1));
        assert!(stream.is_stream() && parse(&["--stream-socket", "/x"]).unwrap().is_stream());
        assert_eq!(parse(&["--tap-socket", "/x", "--queues", "2"]).unwrap().queues(), 2);
        for line in [
            &["--tap", "a", "--tap-fd", "5"][..],
            &["--tap", "a", "--stream-fd", "5"],
            &["--tap-fd", "6", "--stream-fd", "5"],
            &["--tap-socket", "/x", "--stream-fd", "5"],
            &["--tap-socket", "/x", "--stream-socket", "/x"],
            &["--queues", "2"],
            &["--tap", "a", "--queues", "0"],
            &["--tap", "a", "--queues", "257"],
            &["--tap-fd", "2"],
            &[],
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
        assert!(matches!(
            parse(&["--tap-fd", "9", "--tap-fd", "9"]).unwrap().open(),
            Err(OpenError::Twice(9))
        ));
    }

    fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    fn stream_at(number: RawFd) -> BackendArgs {
        let place = Place { stream_fd: Some(number), ..Place::default() };
        BackendArgs { place, queues: Some(3) }
    }

    #[test]
    fn a_stream_comes_by_number() {
        let (ours, _theirs) = pair(SockType::Stream);
        let number = ours.into_raw_fd();
        let backend = stream_at(number).open().unwrap();
        assert_eq!((backend.queues(), backend.fds()), (1, vec![number]));
        assert!(matches!(stream_at(1_000_000).open(), Err(OpenError::Descriptor { .. })));
    }

    #[test]
    fn what_is_handed_over_is_looked_at() {
        use nix::sys::socket::{Backlog, UnixAddr, accept, bind, listen, socket};
        let path = std::env::temp_dir().join(format!("vsp-net-args-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let stream = Place { stream_socket: Some(path.clone()), ..Place::default() };
        let taps = Place { tap_socket: Some(path.clone()), ..Place::default() };
        for (place, handed, kind, good) in [
            (&stream, Handed::Stream {}, SockType::Stream, true),
            (&stream, Handed::Stream {}, SockType::Datagram, false),
            (&stream, Handed::Taps {}, SockType::Stream, false),
            (&taps, Handed::Stream {}, SockType::Stream, false),
            (&taps, Handed::Taps {}, SockType::Stream, false),
        ] {
            let backend = std::thread::scope(|scope| {
                let opened = scope.spawn(|| place.open(1));
                let number = accept(listener.as_raw_fd()).unwrap();
                assert!(number > 2);
                let peer = Peer::inherited(number).unwrap();
                let (ours, _theirs) = pair(kind);
                peer.send(&handed, &[ours.as_fd()]).unwrap();
                opened.join().unwrap()
            });
            assert_eq!(backend.is_ok(), good, "{backend:?}");
        }
        drop(listener);
        assert!(matches!(stream.open(1), Err(OpenError::Socket { .. })));
        let _ = std::fs::remove_file(&path);
    }
}
