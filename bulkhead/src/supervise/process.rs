//! Starts the processes of a VM: which descriptors each gets, at which numbers, and what it is told.

use std::fs::File;
use std::io::{self, PipeReader, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use ipc::socket::{Listener, Peer, SocketError};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{Backlog, listen};
use sandbox::spawn::{Child, Command};

use crate::net::backend;
use crate::plan::{Device, Plan};
use crate::screen::seat;

/// Numbers of the descriptors in a child; 0 to 2 are the standard streams.
const FIRST_FD: i32 = 3;
const SECOND_FD: i32 = 4;
/// A device's: behind the core's and the one for its signs of life.
const CONNECTIONS: i32 = 5;

/// Microseconds, as `WATCHDOG_USEC` has them.
fn micros(time: Duration) -> String {
    time.as_micros().to_string()
}

/// Variables of ours that a child needs for logging; it gets no others.
const ENVIRONMENT: [&str; 3] = ["JOURNAL_STREAM", "NO_COLOR", "TERM"];

/// How every process logs.
#[derive(Clone, Copy, Debug)]
pub struct Logging {
    /// What its records look like.
    pub format: logs::Format,
    /// How many there are.
    pub level: logs::Level,
}

/// How a VM is supervised.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How every process logs.
    pub logging: Logging,
    /// How long a device process may be silent.
    pub watchdog: Duration,
}

/// Where the core's standard input comes from.
#[derive(Debug)]
pub enum Input {
    /// What is typed on the terminal.
    Terminal(PipeReader),
    /// Our own standard input, untouched.
    Inherited,
    /// Nothing.
    None,
}

/// A process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// While preparing what it is given.
    #[error("cannot prepare {what}: {error}")]
    Prepare {
        /// What was being prepared.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// The core's control socket.
    #[error("cannot {what} the control socket: {error}")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: ipc::socket::SocketError,
    },
    /// What a NIC is connected to.
    #[error("the NIC {device}: {error}")]
    Backend {
        /// The NIC's name.
        device: String,
        /// Why not.
        error: backend::Error,
    },
    /// The guest's memory cannot be pinned.
    #[error("{0}")]
    Memory(String),
    /// What lies between the processes of a screen.
    #[error("the screen: {0}")]
    Seat(#[from] seat::Error),
    /// The program itself.
    #[error("{program}: {error}")]
    Spawn {
        /// The program.
        program: String,
        /// Why not.
        error: sandbox::Error,
    },
}

/// The core's socket before there is a core, with a connection for each device already waiting in its queue: so nobody
/// is refused, however early the core ends.
#[derive(Debug)]
pub struct Switchboard {
    listener: Listener,
    connections: Vec<Peer>,
}

impl Switchboard {
    /// Listens at `path` and connects `devices` times.
    pub fn new(path: &Path, devices: usize) -> Result<Self, StartError> {
        let listener = Listener::bind(path).map_err(|error| StartError::Socket { what: "make", error })?;
        // The queue has to hold every device: connecting would wait for ever for a core that is not there yet.
        listen(&listener, Backlog::MAXALLOWABLE)
            .map_err(|error| StartError::Socket { what: "make", error: error.into() })?;
        let connections = (0..devices).map(|_| connect(path)).collect::<Result<_, _>>()?;
        Ok(Self { listener, connections })
    }

    /// Closes our copy of the listener, so that the end of the core is the end of every connection to it.
    pub fn into_connections(self) -> Vec<Peer> {
        self.connections
    }
}

/// Starts the core.
pub fn start_core(
    plan: &Plan,
    switchboard: &Switchboard,
    input: &Input,
    logging: Logging,
) -> Result<Child, StartError> {
    let config =
        config_file(plan).map_err(|error| StartError::Prepare { what: "the configuration", error })?;
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let mut command = with_logging(Command::new(&plan.core_program), logging)
        .arg("--config")
        .arg(format!("/proc/self/fd/{FIRST_FD}"))
        .fd(config.as_fd(), FIRST_FD)
        .arg("--listen-fd")
        .arg(SECOND_FD.to_string())
        .fd(switchboard.listener.as_fd(), SECOND_FD)
        .fd(stdout.as_fd(), 1);
    match input {
        Input::Terminal(pipe) => command = command.fd(pipe.as_fd(), 0),
        Input::Inherited => command = command.fd(stdin.as_fd(), 0),
        Input::None => {}
    }
    spawn(command, &plan.core_program)
}

/// What a device process is given.
#[derive(Clone, Debug)]
pub struct Given<'a> {
    /// Its connection to the core, if it has one.
    pub core: Option<&'a Peer>,
    /// The socket on which it says how it is.
    pub notify: &'a OwnedFd,
    /// What else it is connected to, each with the option by which it is told of it.
    pub connections: Vec<(&'static str, BorrowedFd<'a>)>,
}

/// Starts one device process, from `program`.
pub fn start_device(
    device: &Device,
    program: &Path,
    given: Given<'_>,
    options: Options,
) -> Result<Child, StartError> {
    let mut command = with_logging(Command::new(program), options.logging);
    if let Some(core) = given.core {
        command = command.arg("--core-fd").arg(FIRST_FD.to_string()).fd(core.as_fd(), FIRST_FD);
    }
    command = command
        .arg("--notify-fd")
        .arg(SECOND_FD.to_string())
        .fd(given.notify.as_fd(), SECOND_FD)
        .arg("--watchdog-usec")
        .arg(micros(options.watchdog))
        .args(&device.args);
    for (number, (option, fd)) in (CONNECTIONS..).zip(given.connections) {
        command = command.arg(option).arg(number.to_string()).fd(fd, number);
    }
    spawn(command, program)
}

/// Connects to the core's socket, as one more device process.
pub fn connect(socket: &Path) -> Result<Peer, StartError> {
    Peer::connect(socket).map_err(|error| StartError::Socket { what: "connect to", error })
}

impl StartError {
    /// Whether the core listens no more: it is about to end. With devices of the host's that takes it a second and more.
    pub fn is_core_gone(&self) -> bool {
        match self {
            Self::Socket { error: SocketError::Closed, .. } => true,
            Self::Socket { error: SocketError::Io(error), .. } => {
                error.kind() == io::ErrorKind::ConnectionRefused
            }
            _ => false,
        }
    }
}

fn spawn(command: Command<'_>, program: &Path) -> Result<Child, StartError> {
    command.spawn().map_err(|error| StartError::Spawn { program: program.display().to_string(), error })
}

fn with_logging<'fd>(mut command: Command<'fd>, logging: Logging) -> Command<'fd> {
    for name in ENVIRONMENT {
        if let Some(value) = std::env::var_os(name) {
            command = command.env(name, value);
        }
    }
    command
        .arg("--log-format")
        .arg(logging.format.to_string())
        .arg("--log-level")
        .arg(logging.level.to_string().to_ascii_lowercase())
}

/// The core's configuration as an anonymous file: it needs no cleaning up, and nobody else can change it.
fn config_file(plan: &Plan) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"core-config", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(&plan.core)?)?;
    file.rewind()?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_listens_no_more_is_told_from_one_that_is_not_there() {
        let socket = std::env::temp_dir().join(format!("bulkhead-gone-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        assert!(!connect(&socket).unwrap_err().is_core_gone());
        let listener = Listener::bind(&socket).unwrap();
        assert!(connect(&socket).is_ok());
        drop(listener);
        assert!(connect(&socket).unwrap_err().is_core_gone());
        std::fs::remove_file(&socket).unwrap();
    }
}
