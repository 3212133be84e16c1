//! `bulkhead run`: starts the processes of one VM, watches them, and ends with them.
//!
//! One thread, one `poll`: pidfds say that a process has ended, a signalfd that we should, the terminal that somebody
//! types. What to do is decided in [`machine`]; here it is done. No process of the VM may outlive this one, and the
//! supervisor must never hold what would let it: it owns no disk, no guest memory, no connection to the core.

mod fate;
mod machine;
mod process;

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use ipc::socket::Peer;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sandbox::spawn::Child;

pub use self::fate::{Death, Fate};
pub use self::process::Logging;

use self::machine::{Action, Event, Vm};
use self::process::{Input, StartError, Switchboard};
use crate::console::{self, Request, Terminal};
use crate::plan::{Device, Plan};
use crate::runtime_dir::RuntimeDir;

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
pub fn run(plan: &Plan, runtime: &RuntimeDir, signals: &Signals, logging: Logging) -> Fate {
    match Supervisor::start(plan, runtime, logging) {
        Ok(supervisor) => supervisor.watch(signals),
        Err(error) => Fate::NotStarted(error.to_string()),
    }
}

/// A process that is running, or was.
struct Member {
    /// The name in the log: `core-vmm`, or the device's.
    name: String,
    /// `None` once it has been reaped.
    child: Option<Child>,
}

impl Member {
    fn started(name: &str, child: Child) -> Self {
        let (pid, own_pid_namespace) = (child.pid(), child.own_pid_namespace());
        tracing::info!(process = name, pid, own_pid_namespace, "started");
        Self { name: name.to_owned(), child: Some(child) }
    }

    fn kill(&self) {
        if let Some(child) = &self.child
            && let Err(error) = child.kill()
        {
            tracing::error!(process = self.name, %error, "cannot be killed");
        }
    }

    /// Reaps it if it has ended.
    fn reap(&mut self) -> Option<Death> {
        let death = match self.child.as_mut()?.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => Death::from(status),
            Err(error) => {
                // Nobody else waits for our children, so this does not happen; what cannot be waited for is gone.
                tracing::error!(process = self.name, %error, "cannot be waited for");
                Death::Unknown(0)
            }
        };
        self.child = None;
        Some(death)
    }
}

/// No process is left behind on any way out.
impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

struct Supervisor {
    name: String,
    terminal: Option<Terminal>,
    core: Member,
    devices: Vec<Member>,
    vm: Vm,
}

impl Supervisor {
    /// Starts the core and then every device. If one cannot be started, those before it are ended.
    fn start(plan: &Plan, runtime: &RuntimeDir, logging: Logging) -> Result<Self, StartError> {
        let on_stdio = plan.core.console == ipc::config::Console::Stdio;
        let taken = if on_stdio { Terminal::take() } else { Ok(None) };
        let taken = taken.map_err(|error| StartError::Prepare { what: "the terminal", error })?;
        let (terminal, input) = match taken {
            Some((terminal, pipe)) => (Some(terminal), Input::Terminal(pipe)),
            // A terminal that was not taken is not ours to read: we are in its background.
            None if on_stdio && !io::IsTerminal::is_terminal(&io::stdin()) => (None, Input::Inherited),
            None => (None, Input::None),
        };
        let switchboard = Switchboard::new(&runtime.core_socket(), plan.devices.len())?;
        let core = Member::started("core-vmm", process::start_core(plan, &switchboard, &input, logging)?);
        let start = |(device, connection): (&Device, Peer)| {
            let child = process::start_device(device, &connection, logging)?;
            Ok(Member::started(&device.name, child))
        };
        let devices = plan.devices.iter().zip(switchboard.into_connections());
        let devices = devices.map(start).collect::<Result<_, StartError>>()?;
        let vm = Vm::new(plan.devices.iter().map(|device| device.name.clone()));
        let supervisor = Self { name: plan.name.clone(), terminal, core, devices, vm };
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
            let mut events = Vec::new();
            if ready.signals {
                while let Some(signal) = signals.next() {
                    match (signal, &self.terminal) {
                        (Signal::SIGCONT, Some(terminal)) => _ = terminal.enter_raw_mode(),
                        (Signal::SIGCONT, None) => {}
                        (signal, _) => events.push(Event::Signalled(signal)),
                    }
                }
            }
            if ready.typed {
                events.extend(self.read_terminal());
            }
            if let Some(terminal) = &mut self.terminal {
                terminal.flush();
            }
            // The core first: its end explains that of the devices.
            if let Some(death) = self.core.reap() {
                tracing::info!(process = self.core.name, "{death}");
                events.push(Event::CoreEnded(death));
            }
            for (number, device) in self.devices.iter_mut().enumerate() {
                if let Some(death) = device.reap() {
                    match death {
                        Death::Exited(0) => tracing::info!(process = device.name, "{death}"),
                        _ => tracing::warn!(process = device.name, "{death}"),
                    }
                    events.push(Event::DeviceEnded(number, death));
                }
            }
            events.push(Event::Tick);
            for event in events {
                for action in self.vm.on(event, Instant::now()) {
                    self.act(action);
                }
            }
        }
    }

    fn act(&self, action: Action) {
        match action {
            Action::KillCore => self.core.kill(),
            Action::KillDevices => self.devices.iter().for_each(Member::kill),
        }
    }

    fn read_terminal(&mut self) -> Option<Event> {
        match self.terminal.as_mut()?.read() {
            Ok(Some(Request::Quit)) => Some(Event::Quit),
            Ok(Some(Request::Help)) => {
                self.tell(console::HELP);
                None
            }
            Ok(None) => None,
            Err(_) => {
                // Nobody is there to type any more; a SIGHUP says so if that is meant to end the VM.
                self.terminal = None;
                None
            }
        }
    }

    /// A line to the operator at the terminal, apart from the guest's output.
    fn tell(&self, what: &str) {
        eprintln!("\nbulkhead: {}: {what}", self.name);
    }

    /// Sleeps until something happens.
    fn wait(&self, signals: &Signals) -> nix::Result<Ready> {
        let stdin = io::stdin();
        let mut fds = vec![PollFd::new(signals.0.as_fd(), PollFlags::POLLIN)];
        let typing = self.terminal.is_some();
        if typing {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        if let Some(pipe) = self.terminal.as_ref().and_then(Terminal::wants_room) {
            fds.push(PollFd::new(pipe, PollFlags::POLLOUT));
        }
        let members = std::iter::once(&self.core).chain(&self.devices);
        let children = members.filter_map(|member| member.child.as_ref());
        fds.extend(children.map(|child| PollFd::new(child.as_fd(), PollFlags::POLLIN)));
        let timeout = self.vm.deadline().map_or(PollTimeout::NONE, |deadline| {
            // Rounded up: waking a moment early would only mean waking twice.
            let left = deadline.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Ready { signals: true, typed: false }),
            Err(error) => return Err(error),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        Ok(Ready { signals: is_ready(&fds[0]), typed: typing && is_ready(&fds[1]) })
    }
}

/// What woke us, besides the ends of processes, which are asked for one by one.
struct Ready {
    signals: bool,
    typed: bool,
}
