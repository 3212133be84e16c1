//! What whoever supervises this process has opened for it: sockets, by their numbers or over one more socket; and files that only this
//! process reads, by their paths.
//!
//! All of it is taken before the door closes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use ipc::socket::{Peer, SocketError, inherited_descriptor};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::rfb::password::Password;
use crate::stream::{TlsConfig, TlsError};

/// What is given. The options of descriptors are also what `--seat-socket` calls them.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
#[group(id = "given")]
#[command(next_help_heading = "What it is given")]
#[group(skip)]
pub struct Args {
    /// Our end of the screen's socket pair
    #[arg(long, value_name = "FD")]
    pub video_fd: Option<RawFd>,

    /// Our end of the keyboard's
    #[arg(long, value_name = "FD")]
    pub keyboard_fd: Option<RawFd>,

    /// Our end of the mouse's
    #[arg(long, value_name = "FD")]
    pub mouse_fd: Option<RawFd>,

    /// A listening socket for VNC viewers, Unix or TCP; can be given several times
    #[arg(long, value_name = "FD")]
    pub rfb_fd: Vec<RawFd>,

    /// A listening Unix socket for `bulkhead screenshot` and its like
    #[arg(long, value_name = "FD")]
    pub control_fd: Option<RawFd>,

    /// A bound TCP socket for the web page, which need not listen yet
    #[arg(long, value_name = "FD")]
    pub web_fd: Option<RawFd>,

    /// A file with 32 random bytes that outlives this process, for the web page's cookies
    #[arg(long, value_name = "FD")]
    pub secret_fd: Option<RawFd>,

    /// Whoever listens at the unix socket PATH hands over all of the above
    #[arg(
        long, value_name = "PATH",
        conflicts_with_all = ["video_fd", "keyboard_fd", "mouse_fd", "rfb_fd", "control_fd", "web_fd", "secret_fd"]
    )]
    pub seat_socket: Option<PathBuf>,

    /// The password that TCP viewers are asked for: the first line of this file
    #[arg(long, value_name = "PATH")]
    pub password_file: Option<PathBuf>,

    /// The certificate for VeNCrypt and https, and those that lead from it to a root, as a PEM file
    #[arg(long, value_name = "PATH", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Its private key, as a PEM file
    #[arg(long, value_name = "PATH", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

/// All of it, owned.
#[derive(Debug)]
pub struct Given {
    /// Our end of the screen's pair,
    pub video: OwnedFd,
    /// of the keyboard's,
    pub keyboard: OwnedFd,
    /// and of the mouse's.
    pub mouse: OwnedFd,
    /// Listening sockets for viewers.
    pub rfb: Vec<OwnedFd>,
    /// The one for commands.
    pub control: Option<OwnedFd>,
    /// The one for browsers.
    pub web: Option<OwnedFd>,
    /// What makes cookies.
    pub secret: Option<OwnedFd>,
    /// What TCP viewers are asked for.
    pub password: Option<Password>,
    /// What encrypts.
    pub tls: Option<TlsConfig>,
}

/// Why there is nothing to begin with. The text says what to do about it.
#[derive(Debug, Error)]
pub enum GivenError {
    /// The command line names too little.
    #[error("{0} is missing (or --seat-socket, in place of all descriptors)")]
    Missing(&'static str),
    /// The same number twice.
    #[error("descriptor {0} is given twice")]
    Twice(RawFd),
    /// Not a descriptor of this process.
    #[error("{option} {number}: {source}")]
    Descriptor {
        /// What it was for.
        option: &'static str,
        /// Its number.
        number: RawFd,
        /// The system's error.
        source: io::Error,
    },
    /// Nothing was handed over.
    #[error("cannot get the sockets from {path}: {source}", path = .path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// What went wrong.
        source: SocketError,
    },
    /// Something else was handed over.
    #[error("{path} handed over something else than sockets for a console", path = .0.display())]
    Handed(PathBuf),
    /// A file.
    #[error("cannot read {path}: {source}", path = .path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A password that everybody knows.
    #[error("the first line of the password file {path} is empty: write the password there", path = .0.display())]
    NoPassword(PathBuf),
    /// The certificate or its key.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What is handed over at `--seat-socket`: the option for each of the descriptors beside it, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handed {
    /// For a console.
    Console {
        /// `--video-fd` and so on.
        options: Vec<String>,
    },
}

/// The descriptors, each with its option.
type Sockets = Vec<(&'static str, OwnedFd)>;

const OPTIONS: [&str; 7] =
    ["--video-fd", "--keyboard-fd", "--mouse-fd", "--rfb-fd", "--control-fd", "--web-fd", "--secret-fd"];

impl Given {
    /// Takes it. At most once a process: descriptors are taken by their numbers.
    pub fn take(args: &Args) -> Result<Self, GivenError> {
        let mut sockets = match &args.seat_socket {
            Some(path) => handed_over(path)?,
            None => adopted(args)?,
        };
        let mut all = |option| {
            let (these, others) =
                std::mem::take(&mut sockets).into_iter().partition(|(name, _)| *name == option);
            sockets = others;
            let these: Sockets = these;
            these.into_iter().map(|(_, fd)| fd)
        };
        let mut one = |option| all(option).next().ok_or(GivenError::Missing(option));
        let (video, keyboard, mouse) = (one("--video-fd")?, one("--keyboard-fd")?, one("--mouse-fd")?);
        Ok(Self {
            video,
            keyboard,
            mouse,
            rfb: all("--rfb-fd").collect(),
            control: all("--control-fd").next(),
            web: all("--web-fd").next(),
            secret: all("--secret-fd").next(),
            password: args.password_file.as_deref().map(password).transpose()?,
            tls: args.tls_cert.as_deref().zip(args.tls_key.as_deref()).map(tls).transpose()?,
        })
    }
}

fn adopted(args: &Args) -> Result<Sockets, GivenError> {
    let one =
        |option, number: &Option<RawFd>| number.iter().map(|number| (option, *number)).collect::<Vec<_>>();
    let mut numbers = [
        one("--video-fd", &args.video_fd),
        one("--keyboard-fd", &args.keyboard_fd),
        one("--mouse-fd", &args.mouse_fd),
        one("--control-fd", &args.control_fd),
        one("--web-fd", &args.web_fd),
        one("--secret-fd", &args.secret_fd),
    ]
    .concat();
    numbers.extend(args.rfb_fd.iter().map(|number| ("--rfb-fd", *number)));
    let mut seen = BTreeSet::new();
    let adopt = |(option, number): (&'static str, RawFd)| {
        if !seen.insert(number) {
            return Err(GivenError::Twice(number));
        }
        let taken = inherited_descriptor(number);
        taken.map(|fd| (option, fd)).map_err(|source| GivenError::Descriptor { option, number, source })
    };
    numbers.into_iter().map(adopt).collect()
}

fn handed_over(path: &Path) -> Result<Sockets, GivenError> {
    let received = Peer::connect(path).and_then(|peer| peer.recv::<Handed>());
    let (Handed::Console { options }, fds) =
        received.map_err(|source| GivenError::Socket { path: path.into(), source })?;
    let known = |option: &String| OPTIONS.into_iter().find(|known| known == option);
    if options.len() != fds.len() {
        return Err(GivenError::Handed(path.into()));
    }
    // What a later supervisor gives besides is left.
    Ok(options.iter().zip(fds).filter_map(|(option, fd)| Some((known(option)?, fd))).collect())
}

fn read(path: &Path) -> Result<Vec<u8>, GivenError> {
    fs::read(path).map_err(|source| GivenError::File { path: path.into(), source })
}

fn password(path: &Path) -> Result<Password, GivenError> {
    Password::of_file(&read(path)?).ok_or_else(|| GivenError::NoPassword(path.into()))
}

fn tls((certificates, key): (&Path, &Path)) -> Result<TlsConfig, GivenError> {
    Ok(TlsConfig::new(&read(certificates)?, &read(key)?)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, IntoRawFd};
    use std::os::unix::net::UnixStream;

    use clap::Parser;
    use ipc::socket::Listener;

    use super::*;
    use crate::rfb::password::CHALLENGE;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        given: Args,
    }

    fn given(line: &str) -> Result<Given, GivenError> {
        let line = Line::try_parse_from(format!("console {line}").split_whitespace()).unwrap();
        Given::take(&line.given)
    }

    fn number() -> RawFd {
        UnixStream::pair().unwrap().0.into_raw_fd()
    }

    #[test]
    fn descriptors_are_taken_by_their_numbers() {
        let numbers: Vec<RawFd> = (0..5).map(|_| number()).collect();
        let [a, b, c, d, e] = numbers[..] else { unreachable!() };
        let all =
            given(&format!("--video-fd {a} --keyboard-fd {b} --mouse-fd {c} --rfb-fd {d} --rfb-fd {e}"))
                .unwrap();
        assert_eq!((all.rfb.len(), all.control.is_some(), all.web.is_some()), (2, false, false));
        let number = number();
        assert!(matches!(given(&format!("--video-fd {number}")), Err(GivenError::Missing("--keyboard-fd"))));
        assert!(matches!(given("--video-fd 77777"), Err(GivenError::Descriptor { number: 77777, .. })));
        let twice = self::number();
        assert!(matches!(
            given(&format!("--video-fd {twice} --mouse-fd {twice}")),
            Err(GivenError::Twice(_))
        ));
        assert!(Line::try_parse_from(["c", "--seat-socket", "/x", "--web-fd", "3"]).is_err());
        assert!(Line::try_parse_from(["c", "--tls-cert", "/x"]).is_err());
    }

    #[test]
    fn descriptors_are_taken_from_a_socket() {
        let path = std::env::temp_dir().join(format!("bulkhead-given-{}", std::process::id()));
        let listener = Listener::bind(&path).unwrap();
        let hand = |options: &[&str]| {
            let (sockets, _others): (Vec<_>, Vec<_>) =
                options.iter().map(|_| UnixStream::pair().unwrap()).unzip();
            let options = options.iter().map(|option| (*option).to_owned()).collect();
            let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            std::thread::scope(|scope| {
                let taker = scope.spawn(|| given(&format!("--seat-socket {}", path.display())));
                let peer = loop {
                    if let Ok(peer) = listener.accept() {
                        break peer;
                    }
                };
                peer.send(&Handed::Console { options }, &fds).unwrap();
                taker.join().unwrap()
            })
        };
        let all = hand(&[
            "--video-fd",
            "--keyboard-fd",
            "--mouse-fd",
            "--rfb-fd",
            "--from-the-future",
            "--secret-fd",
        ]);
        let all = all.unwrap();
        assert_eq!((all.rfb.len(), all.secret.is_some(), all.web.is_some()), (1, true, false));
        assert!(matches!(hand(&["--video-fd"]), Err(GivenError::Missing(_))));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn files_are_read_and_what_is_wrong_with_them_is_said() {
        let directory = std::env::temp_dir().join(format!("bulkhead-given-files-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = |text: &str| {
            let path = directory.join("file");
            std::fs::write(&path, text).unwrap();
            password(&path)
        };
        let answer = |password: Password| password.answer(&[7; CHALLENGE]);
        let wanted = answer(Password::of_file(b"secret").unwrap());
        assert_eq!(answer(file("secret\r\nand more\n").unwrap()), wanted);
        assert_eq!(answer(file("secret").unwrap()), wanted);
        for none in ["", "\nsecret", "\r\nsecret", "\rsecret"] {
            assert!(matches!(file(none), Err(GivenError::NoPassword(_))), "{none:?}");
        }
        assert!(matches!(password(Path::new("/nowhere")), Err(GivenError::File { .. })));
        let path = directory.join("file");
        assert!(matches!(tls((&path, &path)), Err(GivenError::Tls(_))));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
