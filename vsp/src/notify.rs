//! How a device process tells whoever supervises it that it is there: sd_notify's protocol, to `bulkhead run` and to
//! systemd alike.
//!
//! Datagrams of `KEY=VALUE` lines. `READY=1` once the device is served or stands by; `STATUS=...` at each change of role;
//! `WATCHDOG=1` at half the interval that was asked for at the latest, from the event loop, so that a device that hangs is found out.
//! Nothing here waits, and nothing fails once the socket is connected: a supervisor that does not listen must not keep a
//! guest from its disk.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket};
use thiserror::Error;

use crate::cli::Common;

/// Why the supervisor cannot be told anything.
#[derive(Debug, Error)]
pub enum NotifyError {
    /// `NOTIFY_SOCKET` is no address.
    #[error("NOTIFY_SOCKET={0} is no address of a unix socket: an absolute path or @NAME is")]
    Address(String),
    /// The supervisor's socket does not work.
    #[error("cannot talk to the supervisor: {0}")]
    Socket(#[from] nix::Error),
}

/// A sign of life that could not be sent is tried this often in the time after which the next one would be due: all that
/// fit before the supervisor's patience, twice that time, is over, and few enough to cost nothing.
const RETRIES: u32 = 8;

/// Whoever is awake anyway gives another sign of life if the last one is older than this part of the time after which one is due: what comes
/// next may take a second or two, as the reset of a PCI bus does, and has nearly all of the supervisor's patience for it.
const FRESH: u32 = 8;

/// A connected datagram socket.
#[derive(Debug)]
enum Socket {
    /// Inherited; nobody else here uses the number, and it is never closed.
    Inherited(RawFd),
    Own(OwnedFd),
}

/// The line to the supervisor; silent if there is none.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<Socket>,
    beat: Option<Beat>,
    ready: bool,
}

/// Signs of life.
#[derive(Debug)]
struct Beat {
    interval: Duration,
    /// One is due.
    next: Instant,
    /// One is given if the process is awake.
    welcome: Instant,
}

impl Beat {
    /// The first one is due now.
    fn now(interval: Duration) -> Beat {
        let now = Instant::now();
        Beat { interval, next: now, welcome: now }
    }
}

impl Notifier {
    /// Nobody supervises us.
    pub fn silent() -> Notifier {
        Notifier { socket: None, beat: None, ready: false }
    }

    /// As the command line says, else as systemd's environment says. The first sign of life is given at once.
    pub fn new(common: &Common) -> Result<Notifier, NotifyError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let number = |name: &str| variable(name)?.parse::<u64>().ok();
        let (socket, limit) = match (common.notify_fd, variable("NOTIFY_SOCKET")) {
            (Some(inherited), _) => (Socket::Inherited(inherited), common.watchdog_usec),
            (None, Some(address)) => {
                let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
                let limit = number("WATCHDOG_USEC").filter(|_| ours);
                (Socket::Own(connect_to(&address)?), common.watchdog_usec.or(limit))
            }
            (None, None) => return Ok(Notifier::silent()),
        };
        // Half of it, as sd_watchdog_enabled(3) wants it: one that comes late is not missed.
        let beat = limit
            .filter(|limit| *limit > 0)
            .map(|limit| Beat::now(Duration::from_micros((limit / 2).max(1))));
        let mut notifier = Notifier { socket: Some(socket), beat, ready: false };
        match notifier.send("WATCHDOG=1") {
            // Full, not broken.
            Ok(()) | Err(nix::Error::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        notifier.alive();
        Ok(notifier)
    }

    /// The socket, for the compartment to keep and for last words.
    pub fn descriptor(&self) -> Option<RawFd> {
        match self.socket.as_ref()? {
            Socket::Inherited(number) => Some(*number),
            Socket::Own(fd) => Some(fd.as_raw_fd()),
        }
    }

    /// What the process does now. With `ready`, also that it is started, the first time.
    pub fn status(&mut self, ready: bool, status: &str) {
        let first = ready && !self.ready;
        self.ready |= ready;
        let begin = if first { "READY=1\n" } else { "" };
        let _ = self.send(&format!("{begin}STATUS={status}"));
    }

    /// Gives a sign of life if the last one is not fresh any more; how long until the next one is due.
    pub fn alive(&mut self) -> Option<Duration> {
        let Beat { interval, next, welcome } = *self.beat.as_ref()?;
        let now = Instant::now();
        if now < welcome {
            return Some(next - now);
        }
        // The supervisor's queue may be full for a moment, others' messages included.
        let wait = if self.send("WATCHDOG=1").is_ok() { interval } else { interval / RETRIES };
        self.beat = Some(Beat { interval, next: now + wait, welcome: now + interval / FRESH });
        Some(wait)
    }

    fn send(&self, text: &str) -> Result<(), nix::Error> {
        let Some(socket) = self.descriptor() else { return Ok(()) };
        // By sendmsg, like messages to the core: one system call less to allow.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(socket, &[IoSlice::new(text.as_bytes())], &[], flags, None).map(drop)
    }
}

fn connect_to(address: &str) -> Result<OwnedFd, NotifyError> {
    let wrong = |_| NotifyError::Address(address.to_owned());
    let target = match address.strip_prefix('@') {
        Some(name) => UnixAddr::new_abstract(name.as_bytes()).map_err(wrong)?,
        None if address.starts_with('/') => UnixAddr::new(address).map_err(wrong)?,
        None => return Err(NotifyError::Address(address.to_owned())),
    };
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &target)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;

    fn line(limit: Option<u64>) -> (Notifier, UnixDatagram, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let common = Common { notify_fd: Some(ours.as_raw_fd()), watchdog_usec: limit, ..Common::default() };
        (Notifier::new(&common).unwrap(), ours, theirs)
    }

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 256];
        let next =
            || socket.recv(&mut buffer).ok().map(|len| String::from_utf8_lossy(&buffer[..len]).into_owned());
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn readiness_is_told_once_and_every_change() {
        let (mut notifier, _ours, theirs) = line(None);
        notifier.status(false, "fencing");
        notifier.status(true, "serving");
        notifier.status(true, "serving");
        assert_eq!(
            heard(&theirs),
            ["WATCHDOG=1", "STATUS=fencing", "READY=1\nSTATUS=serving", "STATUS=serving"]
        );
        assert_eq!(notifier.alive(), None, "nobody waits for signs of life");
    }

    #[test]
    fn signs_of_life_come_at_half_the_limit_and_sooner_from_who_is_awake() {
        let (mut notifier, _ours, theirs) = line(Some(4_000_000));
        heard(&theirs);
        let due = notifier.alive().unwrap();
        assert!(due > Duration::from_secs(1) && due <= Duration::from_secs(2), "{due:?}");
        assert!(heard(&theirs).is_empty(), "the last one is fresh");
        std::thread::sleep(Duration::from_secs(2) / FRESH);
        assert_eq!(notifier.alive(), Some(Duration::from_secs(2)));
        assert_eq!(heard(&theirs), ["WATCHDOG=1"]);
    }

    #[test]
    fn a_sign_of_life_that_could_not_be_sent_is_tried_again_soon() {
        let (mut notifier, _ours, theirs) = line(Some(40_000));
        while notifier.send("STATUS=talkative").is_ok() {}
        std::thread::sleep(Duration::from_millis(21));
        assert_eq!(notifier.alive(), Some(Duration::from_millis(20) / RETRIES));
        heard(&theirs);
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(notifier.alive(), Some(Duration::from_millis(20)));
        assert_eq!(heard(&theirs), ["WATCHDOG=1"]);
    }

    #[test]
    fn a_supervisor_that_does_not_listen_stops_nobody() {
        let (mut notifier, _ours, theirs) = line(None);
        (0..10_000).for_each(|_| notifier.status(true, "serving"));
        drop(theirs);
        notifier.status(true, "serving");
    }

    #[test]
    fn systemds_addresses_are_understood() {
        let name = format!("bulkhead-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let of_path = UnixDatagram::bind(&path).unwrap();
        let of_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (address, theirs) in [(path.display().to_string(), of_path), (format!("@{name}"), of_name)] {
            let socket = Some(Socket::Own(connect_to(&address).unwrap()));
            Notifier { socket, beat: None, ready: false }.status(true, "serving");
            theirs.set_nonblocking(true).unwrap();
            assert_eq!(heard(&theirs), ["READY=1\nSTATUS=serving"]);
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_said_at_the_start() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let common = Common { notify_fd: Some(file.as_raw_fd()), ..Common::default() };
        assert!(matches!(Notifier::new(&common), Err(NotifyError::Socket(_))));
        assert!(matches!(connect_to("vsock:1"), Err(NotifyError::Address(_))));
        assert!(matches!(connect_to("/nonexistent/notify"), Err(NotifyError::Socket(_))));
    }
}
