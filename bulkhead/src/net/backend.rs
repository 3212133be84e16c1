//! The other end of a NIC's cable: descriptors that are opened once and given to every process of the device, and the `passt` behind them
//! where it is one.
//!
//! A process of the device may die at any moment; the descriptors stay, and frames wait in them. When a `passt` dies, its stream may end in
//! the middle of a frame, and so the next one gets a new stream: the device's processes have to be replaced then. Until it is known to
//! run, they keep the old one, whose other end is kept open, so that nothing ends but the traffic.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use sandbox::Want;
use sandbox::spawn::Command;

use super::{switch, tun};
use crate::plan::Network;
use crate::supervise::machine::policy::Backoff;
use crate::supervise::member::Member;
use crate::supervise::{Death, Seconds};

/// Number of the stream in a `passt`.
const STREAM: i32 = 3;
/// A `passt` that has lived for this long has read its configuration and runs: it does so in a few milliseconds, or ends.
const SETTLED: Duration = Duration::from_millis(100);
/// One that has lived for this long is followed at once.
const PROVEN: Duration = Duration::from_secs(1);

/// Processes of a VM that has ended may have its TAP open for a moment: until the kernel has cleared away what they had mapped.
const LINGERING: Duration = Duration::from_secs(1);

/// Why there is no backend. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An interface.
    #[error(transparent)]
    Interface(#[from] tun::Error),
    /// The list of interfaces.
    #[error(transparent)]
    Network(#[from] switch::Error),
    /// It is not there.
    #[error(
        "the macvtap {0} is not there: make it (sudo ip link add link eth0 name {0} type macvtap mode bridge)"
    )]
    Gone(String),
    /// A socket pair.
    #[error("cannot make a socket pair for passt: {0}")]
    Pair(io::Error),
}

/// How the descriptors are to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Queues of a TAP.
    Taps,
    /// A stream with `passt`'s framing.
    Stream,
}

/// What comes of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Same,
    /// The descriptors are others: processes that have the old ones have to be replaced.
    Changed,
}

/// What a NIC is connected to.
#[derive(Debug)]
pub struct Backend {
    fds: Vec<OwnedFd>,
    passt: Option<Passt>,
}

/// A stream: the device's end and passt's, of which a copy is kept.
#[derive(Debug)]
struct Pair {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Pair {
    fn new() -> Result<Self, Error> {
        let made = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = made.map_err(|error| Error::Pair(error.into()))?;
        let nonblocking = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&ours, nonblocking).map_err(|error| Error::Pair(error.into()))?;
        Ok(Self { ours, theirs })
    }
}

#[derive(Debug)]
struct Passt {
    name: String,
    program: PathBuf,
    mtu: u16,
    id: Option<u32>,
    /// passt's end of the stream that the device has: while it is open, that does not end.
    theirs: OwnedFd,
    state: State,
    backoff: Backoff,
}

#[derive(Debug)]
enum State {
    /// It runs on the device's stream.
    Running { child: Member, since: Instant },
    /// The next one has been started on a new stream, which becomes the device's if it lives.
    Trying { child: Member, since: Instant, pair: Pair },
    /// The next one is started then.
    Due { at: Instant },
}

impl Backend {
    /// Opens everything, and starts what has to be started. `device` is the name for the log.
    pub fn open(device: &str, network: &Network) -> Result<Self, Error> {
        Ok(match network {
            Network::Tap { name, queues } => {
                wait_until_free(name)?;
                Self { fds: tun::open_tap(name, *queues)?, passt: None }
            }
            Network::Macvtap { name, queues } => {
                let found = switch::Network::new()?.find(name)?;
                let index = found.ok_or_else(|| Error::Gone(name.clone()))?.index;
                Self { fds: tun::open_macvtap(name, index, *queues)?, passt: None }
            }
            Network::Passt { program, mtu, id, .. } => {
                let pair = Pair::new()?;
                let mut passt = Passt {
                    name: format!("{device}/passt"),
                    program: program.clone(),
                    mtu: *mtu,
                    id: *id,
                    theirs: pair.theirs,
                    state: State::Due { at: Instant::now() },
                    backoff: Backoff::default(),
                };
                let now = Instant::now();
                if let Some(child) = passt.start(&passt.theirs) {
                    passt.state = State::Running { child, since: now };
                } else {
                    passt.retry(true, now);
                }
                Self { fds: vec![pair.ours], passt: Some(passt) }
            }
        })
    }

    /// What a process of the device is given.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd)
    }

    /// What that is.
    pub fn kind(&self) -> Kind {
        if self.passt.is_some() { Kind::Stream } else { Kind::Taps }
    }

    /// The same, each with the option by which the process is told of it.
    pub fn given(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        let option = match self.kind() {
            Kind::Taps => "--tap-fd",
            Kind::Stream => "--stream-fd",
        };
        self.fds().map(move |fd| (option, fd))
    }

    /// Readable when [`Backend::tick`] has something to do.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        match &self.passt.as_ref()?.state {
            State::Running { child, .. } | State::Trying { child, .. } => child.pidfd(),
            State::Due { .. } => None,
        }
    }

    /// When [`Backend::tick`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.passt.as_ref()?.state {
            State::Running { .. } => None,
            State::Trying { since, .. } => Some(*since + SETTLED),
            State::Due { at } => Some(*at),
        }
    }

    /// A child may have ended, or time has passed.
    pub fn tick(&mut self, now: Instant) -> Step {
        let Some(passt) = &mut self.passt else { return Step::Same };
        passt.reap(now);
        passt.start_due(now);
        match passt.adopt(now) {
            Some(ours) => {
                // With the last of our copies the old stream ends for whoever still has it.
                self.fds = vec![ours];
                Step::Changed
            }
            None => Step::Same,
        }
    }
}

/// Waits until nobody has the TAP open. The kernel does not mind several who open one with several queues, and gives each some of the
/// guest's frames; and one who may do anything makes a TAP by opening it.
fn wait_until_free(name: &str) -> Result<(), Error> {
    let end = Instant::now() + LINGERING;
    loop {
        let found = switch::Network::new()?.find(name)?;
        let found = found.ok_or_else(|| tun::Error::NotYours(name.to_owned()))?;
        let tap = found.tap.ok_or_else(|| tun::Error::Kind(name.to_owned()))?;
        match tap.queues {
            0 => return Ok(()),
            _ if Instant::now() >= end => return Err(tun::Error::Busy(name.to_owned()).into()),
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

impl Passt {
    /// Starts one on that end of a stream. `None`: it cannot be started, which is in the log.
    fn start(&self, stream: &OwnedFd) -> Option<Member> {
        let mut command = Command::new(&self.program)
            .args(["--foreground", "--quiet", "--fd", &STREAM.to_string(), "--mtu", &self.mtu.to_string()])
            .fd(stream.as_fd(), STREAM)
            // It makes namespaces of its own, and a parent of it that is the first of one does not help.
            .pid_namespace(Want::No);
        if let Some(id) = self.id {
            command = command.args(["--runas", &format!("{id}:{id}")]);
        }
        match command.spawn() {
            Ok(child) => {
                let member = Member::new(&self.name, child);
                member.log_start();
                Some(member)
            }
            Err(error) => {
                tracing::error!(process = self.name, %error, "cannot be started");
                None
            }
        }
    }

    fn reap(&mut self, now: Instant) {
        let (child, since) = match &mut self.state {
            State::Running { child, since } | State::Trying { child, since, .. } => (child, *since),
            State::Due { .. } => return,
        };
        if let Some(death) = child.reap() {
            self.died(&death, now.saturating_duration_since(since), now);
        }
    }

    fn died(&mut self, death: &Death, life: Duration, now: Instant) {
        let pause = self.retry(life < PROVEN, now);
        let next = if pause.is_zero() {
            "a new one starts".to_owned()
        } else {
            format!("a new one starts in {}", Seconds(pause))
        };
        tracing::warn!(process = self.name, next, "{death}; the guest's connections through it are lost");
    }

    fn retry(&mut self, early: bool, now: Instant) -> Duration {
        let pause = self.backoff.after_death(early);
        self.state = State::Due { at: now + pause };
        pause
    }

    fn start_due(&mut self, now: Instant) {
        if !matches!(self.state, State::Due { at } if now >= at) {
            return;
        }
        let pair = match Pair::new() {
            Ok(pair) => pair,
            Err(error) => {
                tracing::error!(process = self.name, %error, "cannot be started");
                self.retry(true, now);
                return;
            }
        };
        match self.start(&pair.theirs) {
            Some(child) => self.state = State::Trying { child, since: now, pair },
            None => _ = self.retry(true, now),
        }
    }

    /// The device's end of a new stream, if the one behind that runs by now.
    fn adopt(&mut self, now: Instant) -> Option<OwnedFd> {
        if !matches!(self.state, State::Trying { since, .. } if now >= since + SETTLED) {
            return None;
        }
        match std::mem::replace(&mut self.state, State::Due { at: now }) {
            State::Trying { child, since, pair } => {
                self.state = State::Running { child, since };
                self.theirs = pair.theirs;
                Some(pair.ours)
            }
            other => {
                self.state = other;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A passt that says in a file that it has come, and does what it is told by its stream.
    fn fake(test: &str, body: &str) -> (PathBuf, Network) {
        let directory = std::env::temp_dir().join(format!("bulkhead-passt-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let program = directory.join("passt");
        std::fs::write(&program, format!("#!/bin/bash\nPATH=/usr/bin:/bin\n{body}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        (directory, Network::Passt { program, mtu: 1400, user: 0, id: None })
    }

    fn until(backend: &mut Backend, what: &str, mut is_so: impl FnMut(Step) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            assert!(Instant::now() < end, "waited in vain until {what}");
            if is_so(backend.tick(Instant::now())) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_passt_that_dies_is_followed_by_another_one_on_a_new_stream() {
        let (directory, network) = fake("dies", "echo \"$@\" >> \"${0%/*}/calls\"; exec cat <&3 >&3");
        let mut backend = Backend::open("nic0", &network).unwrap();
        assert_eq!((backend.kind(), backend.fds().count()), (Kind::Stream, 1));
        let mine =
            |backend: &Backend| UnixStream::from(backend.fds().next().unwrap().try_clone_to_owned().unwrap());
        let mut before = mine(&backend);
        before.set_nonblocking(false).unwrap();
        before.write_all(b"ping").unwrap();
        let mut answer = [0; 4];
        before.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ping");
        if let Some(Passt { state: State::Running { child, .. }, .. }) = &backend.passt {
            child.kill();
        }
        // Until there is another one the stream does not end.
        before.set_nonblocking(true).unwrap();
        until(&mut backend, "the next one runs", |step| {
            if step == Step::Same {
                assert_eq!(before.read(&mut answer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            }
            step == Step::Changed
        });
        assert_eq!(before.read(&mut answer).unwrap(), 0, "and then it does");
        let mut after = mine(&backend);
        after.set_nonblocking(false).unwrap();
        after.write_all(b"pong").unwrap();
        after.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"pong");
        drop(backend);
        let calls = std::fs::read_to_string(directory.join("calls")).unwrap();
        assert_eq!(calls, "--foreground --quiet --fd 3 --mtu 1400\n".repeat(2));
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_passt_that_cannot_start_is_tried_ever_more_slowly_and_changes_nothing() {
        let (directory, network) = fake("cannot", "echo >> \"${0%/*}/lives\"; exit 1");
        let mut backend = Backend::open("nic0", &network).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        // Time stands still for as long as one lives, however slow the machine is.
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        while pauses.len() < 5 {
            assert!(Instant::now() < end, "one that ends at once does not end");
            assert_eq!(backend.tick(now), Step::Same);
            if let Some(Passt { state: State::Due { at }, .. }) = &backend.passt {
                assert_eq!(backend.deadline(), Some(*at));
                pauses.push((*at - now).as_millis());
                now = *at;
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160], "the first is followed at once");
        let lives = std::fs::read_to_string(directory.join("lives")).unwrap().lines().count();
        assert_eq!(lives, 6);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_program_that_is_missing_is_no_end_either() {
        let network = Network::Passt { program: "/nowhere/passt".into(), mtu: 1500, user: 0, id: None };
        let mut backend = Backend::open("nic0", &network).unwrap();
        assert_eq!(backend.tick(Instant::now()), Step::Same);
        assert_eq!(backend.fds().count(), 1);
    }
}
