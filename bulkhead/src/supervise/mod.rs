//! `bulkhead run`: starts the processes of one VM, watches them, replaces those that die, and ends with the core.
//!
//! One thread, one `poll`: pidfds say that a process has ended, a socket of its own what it says about itself, a signalfd that we
//! should end, the terminal that somebody types. What to do is decided in [`machine`]; here it is done, and what has to be
//! done for the guest is done before anything is said about it. No process of the VM may outlive this one, and the supervisor
//! must never hold what would let it: it owns no disk, no guest memory, no copy of the core's listener.

mod answers;
mod attach;
mod control;
mod disks;
mod fate;
pub mod machine;
pub(crate) mod member;
mod memory;
mod notices;
mod notify;
mod operator;
mod process;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipc::socket::Peer;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

pub use self::fate::{Death, Fate, Seconds};
pub use self::process::{Logging, Options};

pub(crate) use self::attach::EJECT;

use self::attach::{Coming, Going};
use self::control::Control;
use self::machine::{Action, Event, Notice, ProcessId, Program, Vm, Wanted};
use self::member::{DeviceProcess, Member};
use self::notify::Notify;
use self::operator::{Operator, Said};
use self::process::{Input, StartError, Switchboard};
use crate::console::{self, Request, Terminal};
use crate::disk::words::Change;
use crate::net::backend::{Backend, Step};
use crate::plan::{self, Later, Plan};
use crate::runtime_dir::RuntimeDir;
use crate::screen::seat::{Doors, Seat};

/// Signals that end the VM.
const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// Signals, from now on read from a descriptor instead of interrupting us.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals that end a VM and makes them readable. Call it before anything that would have to be cleaned up
    /// exists, on the only thread.
    pub fn take() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in ENDING.into_iter().chain([Signal::SIGCONT]) {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// The next one that has arrived.
    fn next(&self) -> Option<Signal> {
        let info = self.0.read_signal().ok().flatten()?;
        Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
    }
}

/// Runs the VM of `plan` to its end; no process of it is left when this returns.
pub fn run(plan: &Plan, runtime: &RuntimeDir, signals: &Signals, options: Options) -> Fate {
    match Supervisor::start(plan, runtime, options) {
        Ok(supervisor) => supervisor.watch(signals),
        Err(error) => Fate::NotStarted(error.to_string()),
    }
}

/// A device, as far as it is the same whoever serves it.
struct Slot {
    plan: plan::Device,
    /// The program that its processes are started from.
    program: PathBuf,
    /// The one that a swap is to bring.
    candidate: Option<PathBuf>,
    /// The operator at the terminal has been told that it is in trouble.
    in_trouble: bool,
    /// The change of its disks that its process is being told of, and in which words.
    change: Option<(Change, String)>,
    /// What a NIC is connected to: every process of the device is given the same.
    backend: Option<Backend>,
    /// Who waits for it, if it was attached while the VM runs and is not served yet.
    ticket: Option<u64>,
    /// How far it has gone.
    going: Going,
}

impl Slot {
    /// The device as it is in `plan`, with what it takes opened.
    fn new(plan: &plan::Device) -> Result<Self, StartError> {
        let open = |network| {
            Backend::open(&plan.name, network)
                .map_err(|error| StartError::Backend { device: plan.name.clone(), error })
        };
        Ok(Self {
            backend: plan.network.as_ref().map(open).transpose()?,
            plan: plan.clone(),
            program: plan.program.clone(),
            candidate: None,
            in_trouble: false,
            change: None,
            ticket: None,
            going: Going::No,
        })
    }

    /// Whether it is the VM's.
    fn is_there(&self) -> bool {
        !matches!(self.going, Going::Ending | Going::Gone)
    }
}

struct Supervisor {
    name: String,
    options: Options,
    core_socket: PathBuf,
    terminal: Option<Terminal>,
    /// Before the processes: whoever is dropped first cannot be asked to hand over any more.
    operator: Operator,
    control: Control,
    core: Member,
    slots: Vec<Slot>,
    /// Devices that the core has been told of, and that nobody serves yet.
    coming: Vec<Coming>,
    /// How many have been wanted so far.
    tickets: u64,
    /// What such devices are made of.
    later: Later,
    /// The guest's memory in bytes.
    memory: u64,
    /// What lies between the processes of a screen.
    seat: Option<Seat>,
    processes: BTreeMap<ProcessId, DeviceProcess>,
    vm: Vm,
    /// What is still to be told to the state machine.
    events: VecDeque<Event>,
    /// What is still to be told to people.
    notices: Vec<Notice>,
}

impl Supervisor {
    /// Starts the core and then every device. If one cannot be started, those before it are ended.
    fn start(plan: &Plan, runtime: &RuntimeDir, options: Options) -> Result<Self, StartError> {
        let on_stdio = plan.core.console == ipc::config::Console::Stdio;
        let taken = if on_stdio { Terminal::take() } else { Ok(None) };
        let taken = taken.map_err(|error| StartError::Prepare { what: "the terminal", error })?;
        let (terminal, input) = match taken {
            Some((terminal, pipe)) => (Some(terminal), Input::Terminal(pipe)),
            // A terminal that was not taken is not ours to read: we are in its background.
            None if on_stdio && !io::IsTerminal::is_terminal(&io::stdin()) => (None, Input::Inherited),
            None => (None, Input::None),
        };
        // First what may well fail, and costs nothing.
        let passed = plan.devices.iter().filter(|device| device.pci.is_some()).count();
        if passed > 0 {
            memory::allow(plan.core.memory, passed).map_err(StartError::Memory)?;
        }
        let slots = plan.devices.iter().map(Slot::new).collect::<Result<_, _>>()?;
        let doors = || Doors::open(&runtime.vnc_socket(), &runtime.screen_socket());
        let seat = plan.seat.as_ref().map(|seat| Seat::new(seat.listen, seat.web, doors()?)).transpose()?;
        let core_socket = runtime.core_socket();
        let of_core = plan.devices.iter().filter(|device| device.is_of_core()).count();
        let switchboard = Switchboard::new(&core_socket, of_core)?;
        let operator = Operator::new(&core_socket);
        let control = Control::new(&runtime.supervisor_socket())
            .map_err(|error| StartError::Socket { what: "make", error })?;
        let core = process::start_core(plan, &switchboard, &input, options.logging)?;
        let core = Member::new("core-vmm", core);
        core.log_start();
        let devices = plan.devices.iter().map(|device| Wanted {
            name: device.name.clone(),
            spare: device.spare,
            of_core: device.is_of_core(),
        });
        let (vm, actions) = Vm::new(devices, options.watchdog, Instant::now());
        let mut supervisor = Self {
            name: plan.name.clone(),
            options,
            core_socket,
            terminal,
            operator,
            control,
            core,
            slots,
            coming: Vec::new(),
            tickets: 0,
            later: plan.later.clone(),
            memory: plan.core.memory,
            seat,
            processes: BTreeMap::new(),
            vm,
            events: VecDeque::new(),
            notices: Vec::new(),
        };
        let mut connections = switchboard.into_connections().into_iter();
        for action in actions {
            if let Action::Start { device, process, program } = action {
                let is_of_core = plan.devices[device].is_of_core();
                let peer = if is_of_core { connections.next() } else { None };
                supervisor.start_device(device, process, program, peer.as_ref())?;
            }
        }
        if supervisor.terminal.is_some() {
            supervisor.tell("starting; Ctrl-] q ends it");
        }
        Ok(supervisor)
    }

    /// Until every process has ended.
    fn watch(mut self, signals: &Signals) -> Fate {
        loop {
            if let Some(fate) = self.vm.ended() {
                return fate.clone();
            }
            let ready = match self.wait(signals) {
                Ok(ready) => ready,
                Err(error) => return Fate::SupervisorFailed(format!("cannot wait: {error}")),
            };
            // What the core says explains what happens to its peers, and its end explains theirs.
            if ready.contains(&Source::Operator) {
                self.hear_core();
            }
            if ready.contains(&Source::Core)
                && let Some(death) = self.core.reap()
            {
                tracing::info!(process = self.core.name, "{death}");
                self.events.push_back(Event::CoreEnded(death));
            }
            self.tick_backends();
            self.settle();
            for source in &ready {
                if let Source::Process(id) = source {
                    self.hear_process(*id, true);
                    self.settle();
                }
            }
            // Nobody waits for the rest.
            for source in ready {
                match source {
                    Source::Notify(id) => self.hear_process(id, false),
                    Source::Signals => self.hear_signals(signals),
                    Source::Terminal => self.hear_terminal(),
                    Source::Control => self.hear_operators(),
                    Source::Room | Source::Core | Source::Operator | Source::Process(_) | Source::Backend => {
                    }
                }
            }
            if let Some(terminal) = &mut self.terminal {
                terminal.flush();
            }
            self.events.push_back(Event::Tick);
            self.settle();
            self.answer_detached();
            self.answer_late();
            self.publish();
        }
    }

    /// Has the state machine decide about everything that has happened, and does it.
    fn settle(&mut self) {
        while let Some(event) = self.events.pop_front() {
            for action in self.vm.on(event, Instant::now()) {
                self.act(action);
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::KillCore => self.core.kill(),
            Action::KillDevices => self.processes.values().for_each(|process| process.member.kill()),
            Action::Start { device, process, program } => {
                let is_of_core = self.slots[device].plan.is_of_core();
                let peer = is_of_core.then(|| process::connect(&self.core_socket)).transpose();
                let started =
                    peer.and_then(|peer| self.start_device(device, process, program, peer.as_ref()));
                if let Err(error) = started {
                    let death = match is_of_core && error.is_core_gone() {
                        true => Death::CoreGone,
                        false => Death::NotStarted(error.to_string()),
                    };
                    self.events.push_back(Event::Ended(process, death));
                }
            }
            Action::Abort(id) => {
                if let Some(process) = self.processes.get(&id) {
                    process.member.abort();
                }
            }
            Action::Kill(id) => {
                if let Some(process) = self.processes.get(&id) {
                    process.member.kill();
                }
            }
            Action::AskForSwap { device } => {
                let name = &self.slots[device].plan.name;
                if !self.operator.ask_for_swap(name) {
                    let why = "the core cannot be asked to hand it over".to_owned();
                    self.events.push_back(Event::SwapFailed(device, why));
                }
            }
            Action::Adopt { device } => {
                let slot = &mut self.slots[device];
                if let Some(program) = slot.candidate.take() {
                    slot.program = program;
                }
            }
            Action::TakeBack { device, death } => self.take_back(device, &death),
            Action::SwapDone { device, outcome } => self.answer_swap(device, outcome),
            Action::Tell(notice) => self.notices.push(notice),
        }
    }

    /// Starts a device process with its connection to the core, if it is to have one.
    fn start_device(
        &mut self,
        device: usize,
        process: ProcessId,
        program: Program,
        peer: Option<&Peer>,
    ) -> Result<(), StartError> {
        let slot = &self.slots[device];
        let program = match (program, &slot.candidate) {
            (Program::Candidate, Some(candidate)) => candidate,
            _ => &slot.program,
        };
        let (notify, theirs) =
            Notify::new().map_err(|error| StartError::Prepare { what: "a socket", error })?;
        let backend = slot.backend.iter().flat_map(Backend::given);
        let seat = self.seat.as_ref().zip(slot.plan.part).map(|(seat, part)| seat.given(part));
        let connections = backend.chain(seat.into_iter().flatten()).collect();
        let given = process::Given { core: peer, notify: &theirs, connections };
        let child = process::start_device(&slot.plan, program, given, self.options)?;
        let member = Member::new(&slot.plan.name, child);
        member.log_start();
        self.processes.insert(process, DeviceProcess::new(member, notify));
        Ok(())
    }

    /// What NICs are connected to may be another thing by now.
    fn tick_backends(&mut self) {
        let now = Instant::now();
        for (device, slot) in self.slots.iter_mut().enumerate() {
            if let Some(Step::Changed) = slot.backend.as_mut().map(|backend| backend.tick(now)) {
                self.events.push_back(Event::Recabled(device));
            }
        }
    }

    /// What a process says, and whether it has ended.
    fn hear_process(&mut self, id: ProcessId, may_have_ended: bool) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let said = process.listen().into_iter().map(|message| Event::Said(id, message.word));
        self.events.extend(said);
        if may_have_ended && let Some(death) = process.reap() {
            self.events.push_back(Event::Ended(id, death));
        }
    }

    fn hear_core(&mut self) {
        while let Some(said) = self.operator.listen() {
            let number = |name: &str| self.slots.iter().rposition(|slot| slot.plan.name == name);
            let event = match said {
                Said::Devices(known) => {
                    self.answer_lists(&known);
                    None
                }
                Said::Swapped(device, pause_us) => {
                    number(&device).map(|device| Event::Swapped(device, Duration::from_micros(pause_us)))
                }
                Said::SwapFailed(device, reason) => {
                    number(&device).map(|device| Event::SwapFailed(device, notify::printable(&reason)))
                }
                Said::Told(device, answer) => {
                    if let Some(device) = number(&device)
                        && let Some(answer) = self.answer_eject(device, answer)
                    {
                        self.answer_change(device, answer);
                    }
                    None
                }
                Said::Added(device, result) => {
                    self.core_added(&device, result);
                    None
                }
                Said::Removed(device, result) => {
                    self.core_removed(&device, result);
                    None
                }
                Said::CutOff { device, reason, had_channels } => {
                    // Who has the device now: what the processes have said before counts first.
                    let said = self.processes.iter_mut().flat_map(|(id, process)| {
                        process.listen().into_iter().map(|message| Event::Said(*id, message.word))
                    });
                    self.events.extend(said);
                    let reason = notify::printable(&reason);
                    number(&device).map(|device| Event::CutOff { device, had_channels, reason })
                }
            };
            self.events.extend(event);
        }
    }

    fn hear_signals(&mut self, signals: &Signals) {
        while let Some(signal) = signals.next() {
            match (signal, &self.terminal) {
                (Signal::SIGCONT, Some(terminal)) => _ = terminal.enter_raw_mode(),
                (Signal::SIGCONT, None) => {}
                (signal, _) => self.events.push_back(Event::Signalled(signal)),
            }
        }
    }

    fn hear_terminal(&mut self) {
        match self.terminal.as_mut().map(Terminal::read) {
            Some(Ok(Some(Request::Quit))) => self.events.push_back(Event::Quit),
            Some(Ok(Some(Request::Help))) => self.tell(console::HELP),
            Some(Ok(None)) | None => {}
            // Nobody is there to type any more; a SIGHUP says so if that is meant to end the VM.
            Some(Err(_)) => self.terminal = None,
        }
    }

    /// A line to the operator at the terminal, apart from the guest's output.
    fn tell(&self, what: &str) {
        eprintln!("\nbulkhead: {}: {what}", self.name);
    }

    /// Sleeps until something happens.
    fn wait(&self, signals: &Signals) -> nix::Result<Vec<Source>> {
        let stdin = io::stdin();
        let mut fds = vec![PollFd::new(signals.0.as_fd(), PollFlags::POLLIN)];
        let mut sources = vec![Source::Signals];
        let mut watch = |fd, source, flags| {
            fds.push(PollFd::new(fd, flags));
            sources.push(source);
        };
        if self.terminal.is_some() {
            watch(stdin.as_fd(), Source::Terminal, PollFlags::POLLIN);
        }
        if let Some(pipe) = self.terminal.as_ref().and_then(Terminal::wants_room) {
            watch(pipe, Source::Room, PollFlags::POLLOUT);
        }
        if let Some(core) = self.core.pidfd() {
            watch(core, Source::Core, PollFlags::POLLIN);
        }
        if let Some(operator) = self.operator.fd() {
            watch(operator, Source::Operator, PollFlags::POLLIN);
        }
        for (id, process) in &self.processes {
            if let Some(pidfd) = process.member.pidfd() {
                watch(pidfd, Source::Process(*id), PollFlags::POLLIN);
                watch(process.notify_fd(), Source::Notify(*id), PollFlags::POLLIN);
            }
        }
        for fd in self.control.fds() {
            watch(fd, Source::Control, PollFlags::POLLIN);
        }
        let backends = || self.slots.iter().filter_map(|slot| slot.backend.as_ref());
        for pidfd in backends().filter_map(Backend::pidfd) {
            watch(pidfd, Source::Backend, PollFlags::POLLIN);
        }
        let deadlines = [self.vm.deadline(), self.control.deadline()].into_iter();
        let deadline = deadlines.chain(backends().map(Backend::deadline)).flatten().min();
        let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
            // Rounded up: waking a moment early would only mean waking twice.
            let left = deadline.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(vec![Source::Signals]),
            Err(error) => return Err(error),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        let ready = fds.iter().zip(sources).filter(|(fd, _)| is_ready(fd)).map(|(_, source)| source);
        Ok(ready.collect())
    }
}

/// What woke us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Signals,
    /// Somebody typed.
    Terminal,
    /// The core's standard input has room again.
    Room,
    /// The core has ended.
    Core,
    /// The core says something.
    Operator,
    /// A device process has ended.
    Process(ProcessId),
    /// A device process says something.
    Notify(ProcessId),
    /// An operator says something.
    Control,
    /// What a NIC is connected to has ended.
    Backend,
}
