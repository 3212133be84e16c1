//! Where the serial console leads outside: the terminal that the VM was started on, or a socket.
//!
//! Knows descriptors and nothing of serial ports. Used by the main thread alone, which must never block: it
//! writes only to what `poll` has shown to have room, and little at a time.

use std::{
    fs::OpenOptions,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::{
            fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::Path,
    time::{Duration, Instant},
};

use nix::errno::Errno;

/// Bytes that a terminal or pipe takes without blocking once it polls as writable: Linux reports a terminal
/// as writable when fewer than 256 bytes wait in it.
pub const CHUNK: usize = 256;

/// After a client could not be accepted, the next is tried so much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The outside end of the console.
#[derive(Debug)]
pub enum Terminal {
    /// Standard input and output; `None` once they have ended.
    Stdio {
        /// What people type.
        input: Option<OwnedFd>,
        /// What they see.
        output: Option<OwnedFd>,
    },
    /// A listening socket; the newest client counts.
    Socket {
        /// Where clients connect.
        listener: UnixListener,
        /// The client.
        client: Option<OwnedFd>,
        /// The client may still say something.
        talks: bool,
        /// Nobody is accepted before then: descriptors had run out.
        accept_after: Option<Instant>,
    },
}

impl Terminal {
    /// Standard input and output of the process.
    pub fn stdio() -> std::io::Result<Self> {
        let input = Some(std::io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Self::Stdio { input, output: Some(stdout()?) })
    }

    /// Output has nowhere to go, now or later.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Stdio { output: None, .. })
    }

    /// A socket at `path`, for the owner alone: a console is root on the guest. A stale socket that nobody
    /// listens on is replaced.
    pub fn socket(path: &Path) -> std::io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && is_stale(path) => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            other => other?,
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self::Socket { listener, client: None, talks: false, accept_after: None })
    }

    /// Descriptors that stay open in the compartment.
    pub fn descriptors(&self) -> Vec<RawFd> {
        match self {
            Self::Stdio { input, output } => input.iter().chain(output).map(AsRawFd::as_raw_fd).collect(),
            Self::Socket { listener, .. } => vec![listener.as_raw_fd()],
        }
    }

    /// What to poll for input.
    pub fn input(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Stdio { input, .. } => input.as_ref().map(AsFd::as_fd),
            Self::Socket { client, talks, .. } => client.as_ref().filter(|_| *talks).map(AsFd::as_fd),
        }
    }

    /// What to poll for room, when there is output.
    pub fn output(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Stdio { output, .. } => output.as_ref().map(AsFd::as_fd),
            Self::Socket { client, .. } => client.as_ref().map(AsFd::as_fd),
        }
    }

    /// What to poll for clients.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Socket { listener, accept_after: None, .. } => Some(listener.as_fd()),
            Self::Stdio { .. } | Self::Socket { .. } => None,
        }
    }

    /// When the listener is to be polled again.
    pub fn accept_after(&self) -> Option<Instant> {
        match self {
            Self::Socket { accept_after, .. } => *accept_after,
            Self::Stdio { .. } => None,
        }
    }

    /// The time is `now`.
    pub fn tick(&mut self, now: Instant) {
        if let Self::Socket { accept_after, .. } = self
            && accept_after.is_some_and(|after| after <= now)
        {
            *accept_after = None;
        }
    }

    /// Takes the client that polled as waiting.
    pub fn accept(&mut self) {
        let Self::Socket { listener, client, talks, accept_after } = self else { return };
        match listener.accept() {
            Ok((stream, _)) if stream.set_nonblocking(true).is_ok() => {
                (*client, *talks) = (Some(stream.into()), true);
            }
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => *accept_after = Some(Instant::now() + ACCEPT_PAUSE),
        }
    }

    /// Reads what polled as readable. At its end input stops; output goes on.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        let Some(fd) = self.input() else { return 0 };
        match nix::unistd::read(fd, into) {
            Ok(n) if n > 0 => return n,
            Err(Errno::EAGAIN | Errno::EINTR) => return 0,
            Ok(_) | Err(_) => {}
        }
        match self {
            Self::Stdio { input, .. } => *input = None,
            Self::Socket { talks, .. } => *talks = false,
        }
        0
    }

    /// Writes to what polled as writable; returns how much was taken. A terminal that has gone must not stop the
    /// guest: its output is taken, and lost.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(fd) = self.output() else { return bytes.len() };
        match nix::unistd::write(fd, bytes) {
            Ok(n) => return n,
            Err(Errno::EAGAIN | Errno::EINTR) => return 0,
            Err(_) => {}
        }
        match self {
            Self::Stdio { output, .. } => *output = None,
            Self::Socket { client, talks, .. } => (*client, *talks) = (None, false),
        }
        bytes.len()
    }
}

/// Standard output. A terminal or a pipe is opened anew without blocking: a descriptor that others share must
/// keep its flags, and one that blocks may do so in the middle of what `poll` promised room for.
fn stdout() -> std::io::Result<OwnedFd> {
    let shared = std::io::stdout().as_fd().try_clone_to_owned()?;
    let kind = std::fs::File::from(shared.try_clone()?).metadata()?.file_type();
    if kind.is_fifo() || kind.is_char_device() {
        let own = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{}", shared.as_raw_fd()));
        if let Ok(own) = own {
            return Ok(own.into());
        }
    }
    Ok(shared)
}

/// Whether nobody listens on the socket.
fn is_stale(path: &Path) -> bool {
    let refused = std::os::unix::net::UnixStream::connect(path);
    refused.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    #[test]
    fn a_reader_that_goes_away_is_noticed() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut terminal = Terminal::Stdio { input: None, output: Some(writer) };
        assert!(!terminal.is_gone());
        drop(reader);
        assert_eq!(terminal.write(b"into the void"), 13);
        assert!(terminal.is_gone());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = std::env::temp_dir().join(format!("bulkhead-console-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("console.sock");
        drop(Terminal::socket(&path).unwrap());
        let mut terminal = Terminal::socket(&path).unwrap();
        assert!(Terminal::socket(&path).is_err(), "somebody listens there");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);

        let mut client = UnixStream::connect(&path).unwrap();
        // The first is the one that looked whether somebody listens.
        terminal.accept();
        terminal.accept();
        client.write_all(b"typed").unwrap();
        let mut seen = [0; 16];
        assert_eq!(terminal.read(&mut seen), 5);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(terminal.read(&mut seen), 0);
        assert!(terminal.input().is_none(), "its end must not be polled again");
        assert_eq!(terminal.write(b"still heard"), 11);
        assert_eq!(client.read(&mut seen).unwrap(), 11);
        drop(client);
        assert_eq!(terminal.write(b"lost"), 4);
        assert!(terminal.output().is_none());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
