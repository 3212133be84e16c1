//! The life of one VM: devices attach, the guest runs, is reset, ends. One thread, one `poll`.

use std::{
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use ipc::{config::OnCrash, socket::Listener};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    boot::{BootError, Payload},
    kvm::{
        Host,
        machine::{Machine, MachineError, Wires},
        vcpu::{Asked, Question},
    },
    legacy::{Outcome, Platform},
    memory::{MemoryError, Ram},
    server::Server,
};

/// How long the configured devices may take to attach.
const ATTACH_GRACE: Duration = Duration::from_secs(30);
/// Console input taken at a time, in bytes.
const INPUT_CHUNK: usize = 256;
/// Questions that VPs may have under way; each has one at most.
const QUESTIONS: usize = 64;

/// Why the VM could not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Booting.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Devices that did not come.
    #[error("no process has attached as {0} within {s} seconds; the guest was not started", s = ATTACH_GRACE.as_secs())]
    Missing(String),
    /// Waiting failed.
    #[error("cannot wait for events: {0}")]
    Poll(Errno),
}

/// Everything that was opened before the compartment closed.
#[derive(Debug)]
pub struct Parts {
    /// KVM.
    pub host: Host,
    /// Guest memory.
    pub ram: Ram,
    /// Number of VPs.
    pub vps: u32,
    /// What is booted.
    pub payload: Payload,
    /// Eventfds.
    pub wires: Arc<Wires>,
    /// Serial console and power.
    pub platform: Arc<Platform>,
    /// The bus.
    pub server: Server,
    /// Where device processes connect.
    pub listener: Option<Listener>,
    /// Where console input comes from.
    pub input: Input,
    /// What a crash means.
    pub on_crash: OnCrash,
    /// Runs on each VP thread before the guest does.
    pub restrict: fn() -> Result<(), String>,
}

/// Where console input comes from.
#[derive(Debug)]
pub enum Input {
    /// A descriptor; `None` once it has ended.
    File(Option<OwnedFd>),
    /// Clients of a socket, the newest one counts.
    Socket(UnixListener, Option<OwnedFd>),
}

impl Input {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Input::File(fd) => fd.as_ref().map(AsFd::as_fd),
            Input::Socket(_, client) => client.as_ref().map(AsFd::as_fd),
        }
    }
}

/// What the guest's life is at.
#[derive(Debug)]
enum Phase {
    /// Until then.
    Attaching(Instant),
    Running,
    /// VPs have stopped, devices are letting go of channels.
    Quiescing(Outcome),
}

/// A VM in the making.
#[derive(Debug)]
pub struct Runner {
    parts: Parts,
    machine: Machine,
    phase: Phase,
    ask: mpsc::SyncSender<Asked>,
    asked: mpsc::Receiver<Asked>,
}

/// What a descriptor in the poll set is.
#[derive(Debug, Clone, Copy)]
enum Source {
    Questions,
    Ended(u32),
    Listener,
    Peer(RawFd),
    Input,
    ConsoleListener,
}

impl Runner {
    /// Makes the machine; nothing runs yet.
    pub fn new(parts: Parts) -> Result<Self, RunError> {
        let (ask, asked) = mpsc::sync_channel(QUESTIONS);
        let machine = Machine::new(&parts.host, &parts.ram, Arc::clone(&parts.wires), parts.vps)?;
        let phase = Phase::Attaching(Instant::now() + ATTACH_GRACE);
        Ok(Self { parts, machine, phase, ask, asked })
    }

    /// Runs the guest to its end, through all its resets.
    pub fn run(mut self) -> Result<Outcome, RunError> {
        loop {
            if let Some(outcome) = self.advance()? {
                return Ok(outcome);
            }
            let ready = self.wait()?;
            for source in ready {
                self.handle(source);
            }
            self.parts.server.tick(&self.machine, Instant::now());
        }
    }

    /// Goes on to the next phase if it is time.
    fn advance(&mut self) -> Result<Option<Outcome>, RunError> {
        match &self.phase {
            Phase::Attaching(until) => {
                let missing = self.parts.server.missing_devices();
                if missing.is_empty() {
                    self.start()?;
                } else if Instant::now() >= *until {
                    return Err(RunError::Missing(missing.join(", ")));
                }
            }
            Phase::Running => {}
            Phase::Quiescing(outcome) => {
                if self.parts.server.is_quiet() {
                    if *outcome != Outcome::Reset {
                        return Ok(Some(outcome.clone()));
                    }
                    tracing::info!("guest reset");
                    self.parts.ram.discard()?;
                    self.parts.platform.console().reset();
                    let wires = Arc::clone(&self.parts.wires);
                    self.machine = Machine::new(&self.parts.host, &self.parts.ram, wires, self.parts.vps)?;
                    self.start()?;
                }
            }
        }
        Ok(None)
    }

    fn start(&mut self) -> Result<(), RunError> {
        let parts = &mut self.parts;
        let entry = parts.payload.load(&parts.ram, parts.vps)?;
        self.machine.start(&parts.ram, entry, &parts.platform, &self.ask, parts.restrict)?;
        self.phase = Phase::Running;
        tracing::info!(vps = parts.vps, "guest started");
        Ok(())
    }

    fn wait(&self) -> Result<Vec<Source>, RunError> {
        let parts = &self.parts;
        let mut sources = vec![(parts.wires.wake.as_fd(), Source::Questions)];
        let ended = parts.wires.ended().iter().enumerate();
        sources.extend(ended.map(|(vp, fd)| (fd.as_fd(), Source::Ended(vp as u32))));
        sources.extend(parts.listener.iter().map(|l| (l.as_fd(), Source::Listener)));
        sources.extend(parts.server.peers().map(|p| (p, Source::Peer(p.as_raw_fd()))));
        sources.extend(parts.input.fd().map(|fd| (fd, Source::Input)));
        if let Input::Socket(listener, _) = &parts.input {
            sources.push((listener.as_fd(), Source::ConsoleListener));
        }
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().map(|(fd, _)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, self.timeout()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(RunError::Poll(e)),
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
        Ok(fds.iter().zip(&sources).filter(|(fd, _)| ready(fd)).map(|(_, (_, s))| *s).collect())
    }

    fn timeout(&self) -> PollTimeout {
        let attach = match self.phase {
            Phase::Attaching(until) => Some(until),
            _ => None,
        };
        let Some(until) = attach.into_iter().chain(self.parts.server.deadline()).min() else {
            return PollTimeout::NONE;
        };
        // Rounded up, so that the deadline has passed when poll returns.
        let left = until.saturating_duration_since(Instant::now()).as_millis() + 1;
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Questions => {
                let _ = self.parts.wires.wake.read();
                while let Ok(asked) = self.asked.try_recv() {
                    self.answer(asked);
                }
            }
            Source::Ended(vp) => {
                let _ = self.parts.wires.ended()[vp as usize].read();
                self.parts.server.end_of_message(&self.machine, vp);
            }
            Source::Listener => {
                if let Some(listener) = &self.parts.listener {
                    while self.parts.server.accept(listener) {}
                }
            }
            Source::Peer(fd) => self.parts.server.peer_ready(&self.machine, fd),
            Source::Input => self.input(),
            Source::ConsoleListener => self.console_client(),
        }
    }

    fn answer(&mut self, Asked { vp, question }: Asked) {
        // What VPs asked before they were stopped concerns nobody any more.
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        match question {
            Question::PostMessage { connection, payload } => {
                let status = self.parts.server.post_message(&self.machine, connection, &payload);
                self.machine.answer(vp, status);
            }
            Question::Synic(registers) => {
                self.parts.server.set_synic(&self.machine, vp, registers);
                self.machine.answer(vp, crate::partition::HvStatus::Success);
            }
            Question::End(outcome) => {
                if let Outcome::Crashed(parameters) = outcome {
                    tracing::error!(parameters = format_args!("{parameters:#x?}"), "guest reports a crash");
                    if self.parts.on_crash == OnCrash::Continue {
                        return;
                    }
                }
                self.machine.stop();
                self.parts.server.reset(&self.machine);
                self.phase = Phase::Quiescing(outcome);
            }
        }
    }

    fn input(&mut self) {
        let mut chunk = [0; INPUT_CHUNK];
        let Some(fd) = self.parts.input.fd() else { return };
        match nix::unistd::read(fd, &mut chunk) {
            Ok(0) => self.input_ended(),
            Ok(n) => self.parts.platform.console().input(&chunk[..n]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.input_ended(),
        }
    }

    fn input_ended(&mut self) {
        match &mut self.parts.input {
            Input::File(fd) => *fd = None,
            Input::Socket(_, client) => {
                *client = None;
                self.parts.platform.console().set_client(None);
            }
        }
    }

    fn console_client(&mut self) {
        let Input::Socket(listener, client) = &mut self.parts.input else { return };
        let Ok((stream, _)) = listener.accept() else { return };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let fd = OwnedFd::from(stream);
        if let Ok(output) = fd.try_clone() {
            self.parts.platform.console().set_client(Some(output));
            *client = Some(fd);
        }
    }
}
