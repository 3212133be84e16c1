//! What a VM's supervisor does about what happens: a state machine without a process, a clock or a file in it.
//!
//! [`Vm::on`] takes an event and says what to do; the caller does it and reports what came of it as further events. So a
//! test can play any order of deaths.
//!
//! What it does: a device process that dies is followed by another one, at once or, if its like keep dying, after a pause
//! ([`policy`]); a process that stands by takes its place where there is one; a process that gives no sign of life is ended; the end
//! of the core is the end of everything.
//!
//! What it must never do: end a VM because a device is gone (its I/O waits, and an operator is told); give a device up; look at
//! what a process serves, or at anything that a guest can write to.

mod device;
pub mod policy;
mod process;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use self::device::{Aftermath, Device};
use self::policy::{BENEFIT_OF_DOUBT, GRACE};
use super::fate::{Death, Fate};

pub use self::device::{State, View};
pub use self::process::{ProcessId, Word};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The core has ended.
    CoreEnded(Death),
    /// This device process has ended, or could not be started.
    Ended(ProcessId, Death),
    /// This device process says something.
    Said(ProcessId, Word),
    /// The core has cut off a process of a device.
    CutOff {
        /// The device's number.
        device: usize,
        /// It has served the device, and the core gives that to nobody else until it has ended. `false`: it stood by, or was on
        /// its way to serving.
        had_channels: bool,
        /// Why; one sentence.
        reason: String,
    },
    /// The core has handed the device over, with this pause.
    Swapped(usize, Duration),
    /// The core has not handed the device over.
    SwapFailed(usize, String),
    /// An operator wants a new process for the device.
    Restart(usize),
    /// What the device's processes are given is another thing from now on, and the old one is of no use any more.
    Recabled(usize),
    /// An operator wants another program to serve the device.
    Swap(usize),
    /// What the device's processes are started with has changed; the one that serves is told otherwise.
    Renew(usize),
    /// The VM has one device more; its number is the next one.
    Attached(Wanted),
    /// The core has been asked to give this device up (`true`), or has refused to.
    Detaching(usize, bool),
    /// The core has this device no more.
    Detached(usize),
    /// We were asked to end by a signal.
    Signalled(Signal),
    /// The operator asked for the end on the console.
    Quit,
    /// Time has passed (see [`Vm::deadline`]).
    Tick,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Kill the core, if it lives.
    KillCore,
    /// Kill every device process that lives.
    KillDevices,
    /// Start a process for the device.
    Start {
        /// The device's number.
        device: usize,
        /// What the process is called from now on.
        process: ProcessId,
        /// Which program.
        program: Program,
    },
    /// Ask a process for its end (SIGABRT).
    Abort(ProcessId),
    /// Kill a process.
    Kill(ProcessId),
    /// Ask the core to hand the device over to the process that stands by.
    AskForSwap {
        /// The device's number.
        device: usize,
    },
    /// The candidate's program is the device's from now on.
    Adopt {
        /// The device's number.
        device: usize,
    },
    /// A device that was attached while the VM runs cannot be served: take it back.
    TakeBack {
        /// The device's number.
        device: usize,
        /// How its process ended.
        death: Death,
    },
    /// Tell whoever asked for a swap what came of it.
    SwapDone {
        /// The device's number.
        device: usize,
        /// The rest of a sentence.
        outcome: Result<String, String>,
    },
    /// Tell people, once everything else is done.
    Tell(Notice),
}

/// A device, as far as its processes are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// A second process is to stand by.
    pub spare: bool,
    /// Its processes are attached to the core: they end by themselves with it, and it hands over from one to another.
    pub of_core: bool,
}

/// Which program a process is started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The device's.
    Current,
    /// The one that it may be swapped to.
    Candidate,
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A process has ended.
    Died {
        /// The device's number.
        device: usize,
        /// Which process.
        process: ProcessId,
        /// It only stood by.
        spare: bool,
        /// How.
        death: Death,
        /// Who follows.
        next: Next,
    },
    /// Processes of the device keep dying; the next one starts after a pause.
    BacksOff {
        /// The device's number.
        device: usize,
        /// How long.
        pause: Duration,
        /// Early deaths so far.
        in_a_row: u32,
    },
    /// A process serves the device now.
    Serves {
        /// The device's number.
        device: usize,
        /// Which process.
        process: ProcessId,
        /// How long nobody served, as far as the supervisor saw.
        pause: Option<Duration>,
    },
    /// A process stands by.
    StandsBy {
        /// The device's number.
        device: usize,
        /// Which process.
        process: ProcessId,
    },
}

/// Who follows a process that has died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A new one, at once.
    AtOnce,
    /// A new one, after a pause.
    In(Duration),
    /// The one that stood by.
    Spare,
    /// Nobody: the VM ends.
    Nobody,
}

/// Where decisions are collected.
#[derive(Debug)]
struct Out {
    actions: Vec<Action>,
    /// Kept apart: what has to be done is done before anybody is told.
    notices: Vec<Notice>,
    last_id: u64,
    watchdog: Duration,
}

impl Out {
    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn tell(&mut self, notice: Notice) {
        self.notices.push(notice);
    }

    fn next_id(&mut self) -> ProcessId {
        self.last_id += 1;
        ProcessId(self.last_id)
    }

    fn take(&mut self) -> Vec<Action> {
        let mut actions = std::mem::take(&mut self.actions);
        actions.extend(self.notices.drain(..).map(Action::Tell));
        actions
    }
}

/// The core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Core {
    Running,
    Ended,
}

/// What the VM as a whole is doing.
#[derive(Debug)]
enum Phase {
    /// The guest runs, or starts.
    Running,
    /// A device could not be started, perhaps because the core is gone; the core's end is awaited until then.
    AwaitingCore { device: usize, death: Death, until: Instant },
    /// Everything is being ended; what lives after `until` is killed.
    Ending { fate: Fate, until: Option<Instant> },
}

/// A VM's processes and what becomes of them.
#[derive(Debug)]
pub struct Vm {
    core: Core,
    devices: Vec<Device>,
    phase: Phase,
    out: Out,
}

impl Vm {
    /// A VM whose core has been started, and what to do to start its devices. A process that is silent for as long as `watchdog` hangs.
    pub fn new(
        devices: impl IntoIterator<Item = Wanted>,
        watchdog: Duration,
        now: Instant,
    ) -> (Self, Vec<Action>) {
        let mut out = Out { actions: Vec::new(), notices: Vec::new(), last_id: 0, watchdog };
        let devices = devices.into_iter().enumerate();
        let devices = devices.map(|(number, wanted)| Device::new(number, wanted, &mut out, now));
        let devices = devices.collect();
        let actions = out.take();
        (Self { core: Core::Running, devices, phase: Phase::Running, out }, actions)
    }

    /// Takes note of `event`, which happened at `now`, and returns what to do about it, in order.
    #[must_use = "the actions have to be done"]
    pub fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::CoreEnded(death) => {
                self.core = Core::Ended;
                if !matches!(self.phase, Phase::Ending { .. }) {
                    self.end(Fate::of_core(death), now);
                }
            }
            Event::Ended(id, death) => self.ended_process(id, death, now),
            Event::Signalled(signal) => self.asked(Fate::Signalled(signal), now),
            Event::Quit => self.asked(Fate::Quit, now),
            Event::Tick => self.tick(now),
            Event::Said(id, word) => self.each(|device, out| device.on_said(id, word, out, now)),
            Event::CutOff { device, had_channels, reason } => {
                self.one(device, |device, out| device.on_cut_off(had_channels, reason, out));
            }
            Event::Swapped(number, pause) => {
                self.one(number, |device, out| device.on_swapped(pause, out, now));
            }
            Event::SwapFailed(number, reason) => {
                self.one(number, |device, out| device.on_swap_failed(reason, out, now));
            }
            Event::Restart(number) => {
                self.one(number, |device, out| _ = device.restart(Death::Restarted, out, now));
            }
            Event::Recabled(number) => self.one(number, |device, out| {
                // The spare first: it has the old one, too.
                device.renew_spare(out);
                device.restart(Death::Recabled, out, now);
            }),
            Event::Renew(number) => self.one(number, Device::renew_spare),
            Event::Attached(wanted) if self.is_running() => {
                let number = self.devices.len();
                self.devices.push(Device::new(number, wanted, &mut self.out, now).added());
            }
            // Numbers stay what they are: there is a device that nobody serves.
            Event::Attached(wanted) => self.devices.push(Device::gone(self.devices.len(), wanted)),
            Event::Detaching(number, expected) => {
                self.one(number, |device, _| device.expect_end(expected));
            }
            Event::Detached(number) => self.one(number, |device, out| device.leave(out, now)),
            Event::Swap(number) => self.one(number, |device, out| {
                if let Err(why) = device.swap(out, now) {
                    out.act(Action::SwapDone { device: number, outcome: Err(why) });
                }
            }),
        }
        self.out.take()
    }

    /// When the next [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Running => self.devices.iter().filter_map(Device::deadline).min(),
            Phase::AwaitingCore { until, .. } => Some(*until),
            Phase::Ending { until, .. } => *until,
        }
    }

    /// How it ended, once every process has.
    pub fn ended(&self) -> Option<&Fate> {
        let all = self.core == Core::Ended && self.devices.iter().all(|device| device.processes() == 0);
        match &self.phase {
            Phase::Ending { fate, .. } if all => Some(fate),
            _ => None,
        }
    }

    /// The devices, in order: names, and what can be seen of them.
    pub fn devices(&self) -> impl Iterator<Item = (&str, View<'_>)> {
        self.devices.iter().map(|device| (device.name.as_str(), device.view()))
    }

    /// Whether nobody serves the device any more, nor ever will, and all its processes have ended.
    pub fn has_left(&self, number: usize) -> bool {
        self.devices.get(number).is_none_or(|device| device.has_left())
    }

    /// Whether processes that end are followed by others.
    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    fn ended_process(&mut self, id: ProcessId, death: Death, now: Instant) {
        if !self.is_running() {
            self.devices.iter_mut().for_each(|device| device.give_up(id, &death, &mut self.out));
            return;
        }
        for number in 0..self.devices.len() {
            match self.devices[number].on_ended(id, death.clone(), &mut self.out, now) {
                None => {}
                Some(Aftermath::Recovering) => return,
                Some(Aftermath::CannotStart(death)) if self.devices[number].is_added() => {
                    // The VM has run without it.
                    self.devices[number].leave(&mut self.out, now);
                    self.out.act(Action::TakeBack { device: number, death });
                    return;
                }
                Some(Aftermath::CannotStart(death)) => {
                    let until = now + BENEFIT_OF_DOUBT;
                    self.phase = Phase::AwaitingCore { device: number, death, until };
                    return;
                }
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        match &self.phase {
            Phase::Running => self.each(|device, out| device.on_tick(out, now)),
            Phase::AwaitingCore { device, death, until } if now >= *until => {
                let (name, death) = (self.devices[*device].name.clone(), death.clone());
                self.end(Fate::DeviceFailed { name, death }, now);
            }
            Phase::Ending { until: Some(until), .. } if now >= *until => self.kill_everything(),
            _ => {}
        }
    }

    /// Has every device look at something, while there is something to be done about it.
    fn each(&mut self, mut act: impl FnMut(&mut Device, &mut Out)) {
        if let Phase::Running = self.phase {
            self.devices.iter_mut().for_each(|device| act(device, &mut self.out));
        }
    }

    fn one(&mut self, number: usize, act: impl FnOnce(&mut Device, &mut Out)) {
        if let (Phase::Running, Some(device)) = (&self.phase, self.devices.get_mut(number)) {
            act(device, &mut self.out);
        }
    }

    /// The first request ends the VM in order, the second one at once.
    fn asked(&mut self, fate: Fate, now: Instant) {
        match self.phase {
            Phase::Ending { .. } => self.kill_everything(),
            _ => self.end(fate, now),
        }
    }

    /// Ends the core now. Devices see that by themselves and finish what they are doing; the others have nothing to finish.
    fn end(&mut self, fate: Fate, now: Instant) {
        self.phase = Phase::Ending { fate, until: Some(now + GRACE) };
        if self.core == Core::Running {
            self.out.act(Action::KillCore);
        }
        self.devices.iter_mut().for_each(|device| device.end_with_core(&mut self.out));
    }

    fn kill_everything(&mut self) {
        if let Phase::Ending { until, .. } = &mut self.phase {
            *until = None;
        }
        self.out.act(Action::KillCore);
        self.out.act(Action::KillDevices);
    }
}
