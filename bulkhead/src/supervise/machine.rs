//! What a VM's supervisor does about what happens: a state machine without a process, a clock or a file in it.
//!
//! [`Vm::on`] takes an event and says what to do; the caller does it and reports what came of it as further events. So a
//! test can play any order of deaths. Restarting a device will be one more [`Action`] and one more [`Device`] state.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::fate::{Death, Fate};

/// A device process that ends by itself, and cleanly, has seen its socket to the core close: the core's own death follows
/// within moments and tells more. Longer than the teardown of a large guest's memory, which happens in between.
pub const LAST_WORDS: Duration = Duration::from_secs(5);

/// A device process that exits with an error may have met the same end of the core (a connection reset, say), or have
/// a reason of its own. Long enough for a core that is gone to be reaped on a busy host, short enough not to matter.
pub const BENEFIT_OF_DOUBT: Duration = Duration::from_millis(250);

/// After the core's end, device processes get this long to end by themselves (they do so on seeing their socket close) before
/// they are killed.
pub const GRACE: Duration = Duration::from_secs(1);

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The core has ended.
    CoreEnded(Death),
    /// The device with this number has ended.
    DeviceEnded(usize, Death),
    /// We were asked to end by a signal.
    Signalled(Signal),
    /// The operator asked for the end on the console.
    Quit,
    /// Time has passed (see [`Vm::deadline`]).
    Tick,
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Kill the core, if it lives.
    KillCore,
    /// Kill every device process that lives.
    KillDevices,
}

/// A process of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    Running,
    Ended,
}

/// A device process, by name.
#[derive(Debug)]
struct Device {
    name: String,
    state: Process,
}

/// What the VM as a whole is doing.
#[derive(Debug)]
enum Phase {
    /// The guest runs.
    Running,
    /// A device ended by itself, perhaps because the core is gone; the core's end is awaited until then.
    AwaitingCore { device: usize, death: Death, until: Instant },
    /// Everything is being ended; what lives after `until` is killed.
    Ending { fate: Fate, until: Option<Instant> },
}

/// A VM's processes and what becomes of them.
#[derive(Debug)]
pub struct Vm {
    core: Process,
    devices: Vec<Device>,
    phase: Phase,
}

impl Vm {
    /// A VM whose core and devices have all been started.
    pub fn new(devices: impl IntoIterator<Item = String>) -> Self {
        let devices = devices.into_iter().map(|name| Device { name, state: Process::Running }).collect();
        Self { core: Process::Running, devices, phase: Phase::Running }
    }

    /// Takes note of `event`, which happened at `now`, and returns what to do about it, in order.
    #[must_use = "the actions have to be done"]
    pub fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::CoreEnded(death) => {
                self.core = Process::Ended;
                match self.phase {
                    Phase::Ending { .. } => Vec::new(),
                    _ => self.end(Fate::of_core(death), now),
                }
            }
            Event::DeviceEnded(number, death) => {
                self.devices[number].state = Process::Ended;
                match (&self.phase, death) {
                    (Phase::Running, Death::Exited(code)) => {
                        let patience = if code == 0 { LAST_WORDS } else { BENEFIT_OF_DOUBT };
                        self.phase = Phase::AwaitingCore { device: number, death, until: now + patience };
                        Vec::new()
                    }
                    (Phase::Running, _) => self.device_failed(number, death, now),
                    // The first one to go is the one to tell of, unless this one's end is the plainer failure.
                    (Phase::AwaitingCore { .. }, Death::Exited(_)) => Vec::new(),
                    (Phase::AwaitingCore { .. }, _) => self.device_failed(number, death, now),
                    (Phase::Ending { .. }, _) => Vec::new(),
                }
            }
            Event::Signalled(signal) => self.asked(Fate::Signalled(signal), now),
            Event::Quit => self.asked(Fate::Quit, now),
            Event::Tick => match self.phase {
                Phase::AwaitingCore { device, death, until } if now >= until => {
                    self.device_failed(device, death, now)
                }
                Phase::Ending { until: Some(until), .. } if now >= until => self.kill_everything(),
                _ => Vec::new(),
            },
        }
    }

    /// When the next [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Running => None,
            Phase::AwaitingCore { until, .. } => Some(*until),
            Phase::Ending { until, .. } => *until,
        }
    }

    /// How it ended, once every process has.
    pub fn ended(&self) -> Option<&Fate> {
        let all =
            self.core == Process::Ended && self.devices.iter().all(|device| device.state == Process::Ended);
        match &self.phase {
            Phase::Ending { fate, .. } if all => Some(fate),
            _ => None,
        }
    }

    fn device_failed(&mut self, number: usize, death: Death, now: Instant) -> Vec<Action> {
        let name = self.devices[number].name.clone();
        self.end(Fate::DeviceFailed { name, death }, now)
    }

    /// The first request ends the VM in order, the second one at once.
    fn asked(&mut self, fate: Fate, now: Instant) -> Vec<Action> {
        match self.phase {
            Phase::Ending { .. } => self.kill_everything(),
            _ => self.end(fate, now),
        }
    }

    /// Ends the core now. Devices see that by themselves and finish what they are doing.
    fn end(&mut self, fate: Fate, now: Instant) -> Vec<Action> {
        self.phase = Phase::Ending { fate, until: Some(now + GRACE) };
        match self.core {
            Process::Running => vec![Action::KillCore],
            Process::Ended => Vec::new(),
        }
    }

    fn kill_everything(&mut self) -> Vec<Action> {
        if let Phase::Ending { until, .. } = &mut self.phase {
            *until = None;
        }
        vec![Action::KillCore, Action::KillDevices]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> (Vm, Instant) {
        (Vm::new(["disk0", "disk1"].map(str::to_owned)), Instant::now())
    }

    #[test]
    fn a_power_off_lets_the_devices_finish() {
        let (mut vm, now) = vm();
        assert_eq!(vm.on(Event::CoreEnded(Death::Exited(0)), now), []);
        assert_eq!(vm.on(Event::DeviceEnded(1, Death::Exited(0)), now), []);
        assert_eq!(vm.ended(), None);
        assert_eq!(vm.on(Event::DeviceEnded(0, Death::Exited(0)), now), []);
        assert_eq!(vm.ended(), Some(&Fate::PoweredOff));
    }

    #[test]
    fn a_device_that_does_not_end_is_killed_after_the_grace() {
        let (mut vm, now) = vm();
        assert_eq!(vm.on(Event::CoreEnded(Death::Exited(3)), now), []);
        assert_eq!(vm.deadline(), Some(now + GRACE));
        assert_eq!(vm.on(Event::Tick, now), []);
        assert_eq!(vm.on(Event::Tick, now + GRACE), [Action::KillCore, Action::KillDevices]);
        assert_eq!(vm.deadline(), None);
        assert_eq!(vm.on(Event::DeviceEnded(0, Death::Killed(Signal::SIGKILL)), now), []);
        assert_eq!(vm.on(Event::DeviceEnded(1, Death::Killed(Signal::SIGKILL)), now), []);
        assert_eq!(vm.ended(), Some(&Fate::Crashed));
    }

    #[test]
    fn a_device_that_is_killed_ends_the_vm_and_is_named() {
        let (mut vm, now) = vm();
        let death = Death::Killed(Signal::SIGSEGV);
        assert_eq!(vm.on(Event::DeviceEnded(1, death), now), [Action::KillCore]);
        assert_eq!(vm.on(Event::CoreEnded(Death::Killed(Signal::SIGKILL)), now), []);
        assert_eq!(vm.on(Event::DeviceEnded(0, Death::Exited(0)), now), []);
        assert_eq!(vm.ended(), Some(&Fate::DeviceFailed { name: "disk1".to_owned(), death }));
    }

    #[test]
    fn a_device_that_saw_the_core_go_first_is_not_blamed() {
        let (mut vm, now) = vm();
        assert_eq!(vm.on(Event::DeviceEnded(0, Death::Exited(0)), now), []);
        assert_eq!(vm.on(Event::DeviceEnded(1, Death::Exited(0)), now), []);
        assert_eq!(vm.on(Event::CoreEnded(Death::Killed(Signal::SIGSEGV)), now), []);
        assert_eq!(vm.ended(), Some(&Fate::CoreFailed(Death::Killed(Signal::SIGSEGV))));
    }

    #[test]
    fn a_device_that_leaves_while_the_core_lives_is_blamed_in_the_end() {
        let (mut vm, now) = vm();
        assert_eq!(vm.on(Event::DeviceEnded(0, Death::Exited(0)), now), []);
        assert_eq!(vm.deadline(), Some(now + LAST_WORDS));
        assert_eq!(vm.on(Event::Tick, now + LAST_WORDS), [Action::KillCore]);
        let _ = vm.on(Event::CoreEnded(Death::Killed(Signal::SIGKILL)), now);
        let _ = vm.on(Event::DeviceEnded(1, Death::Exited(0)), now);
        assert_eq!(vm.ended().map(Fate::exit_code), Some(4));
    }

    #[test]
    fn a_device_that_exits_with_an_error_is_blamed_unless_the_core_is_gone_too() {
        let (mut vm, now) = vm();
        let death = Death::Exited(9);
        assert_eq!(vm.on(Event::DeviceEnded(0, death), now), []);
        assert_eq!(vm.on(Event::Tick, now + BENEFIT_OF_DOUBT), [Action::KillCore]);

        let (mut vm, now) = self::vm();
        assert_eq!(vm.on(Event::DeviceEnded(0, death), now), []);
        assert_eq!(vm.on(Event::CoreEnded(Death::Exited(1)), now), []);
        assert_eq!(vm.on(Event::DeviceEnded(1, death), now), []);
        assert_eq!(vm.ended(), Some(&Fate::Refused));
    }

    #[test]
    fn a_signal_ends_in_order_and_a_second_one_at_once() {
        let (mut vm, now) = vm();
        assert_eq!(vm.on(Event::Signalled(Signal::SIGTERM), now), [Action::KillCore]);
        assert_eq!(vm.on(Event::Signalled(Signal::SIGTERM), now), [Action::KillCore, Action::KillDevices]);
        let killed = Death::Killed(Signal::SIGKILL);
        for event in [Event::CoreEnded(killed), Event::DeviceEnded(0, killed), Event::DeviceEnded(1, killed)]
        {
            assert_eq!(vm.on(event, now), []);
        }
        assert_eq!(vm.ended().map(Fate::exit_code), Some(143));
    }
}
