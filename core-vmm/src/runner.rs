//! The life of one VM: devices attach, the guest runs, is reset, ends. One thread, one `poll`.

use std::{
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use ipc::{config::OnCrash, socket::Listener};
use logs::Ration;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    boot::{BootError, Entry, Payload},
    kvm::{
        Host,
        machine::{Machine, MachineError, Wires},
        vcpu::{Asked, Question},
    },
    legacy::{Outcome, Platform, console::Output},
    memory::{
        MemoryError, Ram,
        large::{self, Gatherer},
    },
    partition::{HvStatus, Partition},
    server::Server,
    terminal::{CHUNK, Terminal},
};

/// How long the configured devices may take to attach.
const ATTACH_GRACE: Duration = Duration::from_secs(30);
/// Console input taken at a time, in bytes.
const INPUT_CHUNK: usize = 256;
/// How long the guest's last output may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);
const LAST_WORDS_POLL: u8 = 100;
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
    /// Where the console leads.
    pub terminal: Terminal,
    /// What a crash means.
    pub on_crash: OnCrash,
    /// Whether all memory is made present before the guest starts.
    pub prefault: bool,
    /// Whether memory that the guest uses is gathered into large pages.
    pub large_pages: bool,
    /// Whether all memory is going to be pinned, for a device of the host's that may reach it.
    pub pins: bool,
    /// Runs on each VP thread before the guest does.
    pub restrict: fn() -> Result<(), String>,
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
    /// Made and not started while devices attach; gone only for the moment in which a reset makes the next one.
    machine: Option<Machine>,
    entry: Entry,
    gatherer: Option<Gatherer>,
    phase: Phase,
    /// A reset waits for devices, and that has been said.
    is_held_up: bool,
    crashes: Ration,
    resets: Ration,
    /// Taken from the console, and not yet by the terminal.
    unwritten: Vec<u8>,
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
    Output,
    Client,
}

impl Runner {
    /// Makes the machine and loads the guest; nothing runs yet.
    pub fn new(parts: Parts) -> Result<Self, RunError> {
        let (ask, asked) = mpsc::sync_channel(QUESTIONS);
        let phase = Phase::Attaching(Instant::now() + ATTACH_GRACE);
        let entry = Entry::Linux64 { rip: 0 };
        let (crashes, resets) = (Ration::new(), Ration::new());
        let mut runner = Self {
            parts,
            machine: None,
            entry,
            gatherer: None,
            phase,
            is_held_up: false,
            crashes,
            resets,
            unwritten: Vec::new(),
            ask,
            asked,
        };
        runner.prepare()?;
        Ok(runner)
    }

    /// A machine with a freshly loaded guest. The old machine must be gone: a kernel from 6.17 on does not let two
    /// of them listen to the same eventfd.
    fn prepare(&mut self) -> Result<(), RunError> {
        let parts = &mut self.parts;
        let wires = Arc::clone(&parts.wires);
        self.machine = Some(Machine::new(&parts.host, &parts.ram, wires, parts.vps)?);
        if parts.large_pages {
            for (gpa, len) in parts.payload.extents(&parts.ram) {
                large::prepare(&parts.ram, gpa, len);
            }
        }
        self.entry = parts.payload.load(&parts.ram, parts.vps)?;
        Ok(())
    }

    /// Runs the guest to its end, through all its resets.
    pub fn run(mut self) -> Result<Outcome, RunError> {
        let outcome = self.turns();
        // Whatever the reason: the guest does not run on, and no VP waits for the terminal.
        self.parts.platform.console().release();
        if let Some(machine) = &mut self.machine {
            machine.stop();
        }
        self.write_rest();
        outcome
    }

    fn turns(&mut self) -> Result<Outcome, RunError> {
        loop {
            if let Some(outcome) = self.advance()? {
                return Ok(outcome);
            }
            let ready = self.wait()?;
            for source in ready {
                self.handle(source);
            }
            if self.parts.terminal.is_gone() {
                // Nobody will ever read it, and no VP may wait for that.
                self.unwritten.clear();
                self.parts.platform.console().take_output(usize::MAX);
            }
            let now = Instant::now();
            self.parts.terminal.tick(now);
            if let Some(machine) = &self.machine {
                self.parts.server.tick(machine, now);
            }
        }
    }

    /// Goes on to the next phase if it is time.
    fn advance(&mut self) -> Result<Option<Outcome>, RunError> {
        if let Some(reason) = self.parts.server.failure() {
            return Ok(Some(match &self.phase {
                // No guest follows that could come to harm, and this one has had its fate.
                Phase::Quiescing(outcome) if *outcome != Outcome::Reset => {
                    tracing::error!("{reason}");
                    outcome.clone()
                }
                _ => Outcome::Failed(reason.to_owned()),
            }));
        }
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
            Phase::Quiescing(outcome) if *outcome != Outcome::Reset => {
                if self.parts.server.is_released() {
                    return Ok(Some(outcome.clone()));
                }
            }
            Phase::Quiescing(_) => {
                let missing = self.parts.server.missing_devices();
                if !missing.is_empty() {
                    if !std::mem::replace(&mut self.is_held_up, true) {
                        let devices = missing.join(", ");
                        tracing::warn!(%devices, "the guest starts again when these devices have a process again");
                    }
                } else if self.parts.server.is_quiet() {
                    self.reset()?;
                }
            }
        }
        Ok(None)
    }

    fn reset(&mut self) -> Result<(), RunError> {
        if let Some(times) = self.resets.another() {
            tracing::info!(times, "guest reset");
        }
        self.is_held_up = false;
        self.gatherer = None;
        self.machine = None;
        self.parts.ram.discard()?;
        if self.parts.prefault {
            self.parts.ram.prefault()?;
        }
        self.parts.platform.console().reset();
        self.prepare()?;
        self.start()
    }

    fn start(&mut self) -> Result<(), RunError> {
        let parts = &self.parts;
        if let Some(machine) = &mut self.machine {
            machine.start(self.entry, &parts.platform, &self.ask, parts.restrict)?;
        }
        if parts.large_pages {
            self.gatherer = Gatherer::start(&parts.ram, parts.pins)
                .map_err(|e| tracing::warn!("no large pages: {e}"))
                .ok();
        }
        self.phase = Phase::Running;
        tracing::info!(vps = parts.vps, "guest started");
        Ok(())
    }

    fn wait(&self) -> Result<Vec<Source>, RunError> {
        let parts = &self.parts;
        let mut sources = vec![(parts.wires.wake.as_fd(), Source::Questions)];
        let ended = parts.wires.ended().iter().enumerate();
        sources.extend(ended.map(|(vp, fd)| (fd.as_fd(), Source::Ended(vp as u32))));
        let listener = parts.listener.iter().filter(|_| parts.server.accepts());
        sources.extend(listener.map(|l| (l.as_fd(), Source::Listener)));
        sources.extend(parts.server.peers().map(|p| (p, Source::Peer(p.as_raw_fd()))));
        sources.extend(parts.terminal.input().map(|fd| (fd, Source::Input)));
        sources.extend(parts.terminal.listener().map(|fd| (fd, Source::Client)));
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().map(|(fd, _)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        let output = parts.platform.console().output();
        if (!self.unwritten.is_empty() || output == Output::Now)
            && let Some(fd) = parts.terminal.output()
        {
            sources.push((fd, Source::Output));
            fds.push(PollFd::new(fd, PollFlags::POLLOUT));
        }
        match poll(&mut fds, self.timeout(output)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(RunError::Poll(e)),
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| !r.is_empty());
        Ok(fds.iter().zip(&sources).filter(|(fd, _)| ready(fd)).map(|(_, (_, s))| *s).collect())
    }

    /// `output` as it was when the poll set was made: looked at anew, it might have become due in between.
    fn timeout(&self, output: Output) -> PollTimeout {
        let attach = match self.phase {
            Phase::Attaching(until) => Some(until),
            _ => None,
        };
        let print = match output {
            Output::At(at) => Some(at),
            Output::None | Output::Now => None,
        };
        let accept = self.parts.terminal.accept_after();
        let deadlines = attach.into_iter().chain(self.parts.server.deadline()).chain(print).chain(accept);
        let Some(until) = deadlines.min() else {
            return PollTimeout::NONE;
        };
        // Rounded up, so that the deadline has passed when poll returns.
        let left = until.saturating_duration_since(Instant::now()).as_millis() + 1;
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn handle(&mut self, source: Source) {
        let parts = &mut self.parts;
        match source {
            Source::Questions => {
                let _ = parts.wires.wake.read();
                for turn in 0..=QUESTIONS {
                    if turn == QUESTIONS {
                        // Others have their turn; the bell was silenced, so it is rung for what is left.
                        let _ = self.parts.wires.wake.write(1);
                        break;
                    }
                    let Ok(asked) = self.asked.try_recv() else { break };
                    self.answer(asked);
                }
            }
            Source::Ended(vp) => {
                let _ = parts.wires.ended()[vp as usize].read();
                if let Some(machine) = &self.machine {
                    parts.server.end_of_message(machine, vp);
                }
            }
            Source::Listener => {
                if let Some(listener) = &parts.listener {
                    parts.server.accept(listener);
                }
            }
            Source::Peer(fd) => {
                if let Some(machine) = &self.machine {
                    parts.server.peer_ready(machine, fd);
                }
            }
            Source::Input => {
                let mut chunk = [0; INPUT_CHUNK];
                let n = parts.terminal.read(&mut chunk);
                parts.platform.console().input(&chunk[..n]);
            }
            Source::Output => self.print(),
            Source::Client => parts.terminal.accept(),
        }
    }

    /// Writes out what the terminal takes without blocking.
    fn print(&mut self) {
        if self.unwritten.is_empty() {
            self.unwritten = self.parts.platform.console().take_output(CHUNK);
        }
        let n = self.parts.terminal.write(&self.unwritten);
        self.unwritten.drain(..n.min(self.unwritten.len()));
    }

    /// The guest's last words, for as long as somebody takes them.
    fn write_rest(&mut self) {
        let until = Instant::now() + LAST_WORDS;
        while self.has_output() && Instant::now() < until {
            let Some(fd) = self.parts.terminal.output() else { return };
            let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
            if matches!(poll(&mut fds, LAST_WORDS_POLL), Ok(1)) {
                self.print();
            }
        }
    }

    fn has_output(&self) -> bool {
        !self.unwritten.is_empty() || self.parts.platform.console().output() != Output::None
    }

    fn answer(&mut self, Asked { vp, question }: Asked) {
        // What VPs asked before they were stopped concerns nobody any more.
        let (Phase::Running, Some(machine)) = (&self.phase, &mut self.machine) else { return };
        match question {
            Question::PostMessage { connection, payload } => {
                let status = self.parts.server.post_message(machine, connection, &payload);
                machine.answer(vp, status);
            }
            Question::Synic(registers) => {
                self.parts.server.set_synic(machine, vp, registers);
                machine.answer(vp, HvStatus::Success);
            }
            Question::Access { gpa, bytes, write } => {
                if let Some(value) = self.parts.server.access(machine, vp, gpa, bytes, write) {
                    machine.access_done(vp, value);
                }
            }
            Question::Retarget(retarget) => {
                let status = self.parts.server.retarget_interrupt(machine, &retarget);
                machine.answer(vp, status);
            }
            Question::MemoryFault(gpa) => {
                if self.parts.server.region_fault(machine, vp, gpa) {
                    machine.answer(vp, HvStatus::Success);
                } else {
                    self.end(Outcome::Failed(format!("KVM_RUN on VP {vp}: memory does not answer")));
                }
            }
            Question::Crash(parameters) => {
                if let Some(times) = self.crashes.another() {
                    let hex = parameters.map(|p| format!("{p:#x}")).join(" ");
                    tracing::error!(times, parameters = %hex, "guest reports a crash");
                }
                match self.parts.on_crash {
                    OnCrash::Continue => machine.answer(vp, HvStatus::Success),
                    OnCrash::Exit => self.end(Outcome::Crashed(parameters)),
                }
            }
            Question::End(outcome) => self.end(outcome),
        }
    }

    /// The guest has come to an end, or to a new beginning.
    fn end(&mut self, mut outcome: Outcome) {
        if outcome == Outcome::TripleFault {
            if let Some(times) = self.crashes.another() {
                tracing::error!(times, "triple fault: the guest is reset");
            }
            outcome = Outcome::Reset;
        }
        self.parts.platform.console().release();
        if let Some(machine) = &mut self.machine {
            machine.stop();
            self.parts.server.reset(machine);
        }
        // Questions from before the stop must not be taken for the next guest's.
        while self.asked.try_recv().is_ok() {}
        self.phase = Phase::Quiescing(outcome);
    }
}
