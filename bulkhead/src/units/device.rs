//! `bulkhead device` for a VM that systemd runs.
//!
//! systemd knows processes, the core knows who serves: each is asked for what it knows. A device has two units; the words that its
//! process sends as its status tell which one serves. [`super::swap`] replaces one by the other.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ipc::config::CoreConfig;
use nix::time::{ClockId, clock_gettime};

use super::systemctl::{self, Systemctl, Unit};
use super::{CONFIG, Names, UNITS, content, disks, pci, swap};
use crate::device::core::{CoreError, Operator};
use crate::device::supervised::tell;
use crate::device::{Backend, Error, Row, State};
use crate::disk::Told;
use crate::disk::words::{self, Change};
use crate::pci::Address;
use crate::spec::screen::CONSOLE;

/// What is asked of each unit.
const PROPERTIES: [&str; 8] = [
    "ActiveState",
    "SubState",
    "Result",
    "MainPID",
    "NRestarts",
    "StatusText",
    "ActiveEnterTimestampMonotonic",
    "ExecStart",
];
/// Status of a process that serves, and of one that stands by (`vsp::notify`).
const SERVING: &str = "serving";
const STANDING_BY: &str = "standing by";

/// The VM `vm`, if systemd has units of it that run.
pub fn backend(_base: &Path, vm: &str) -> Option<Box<dyn Backend>> {
    let names = Names::of(vm);
    let known = vms(_base).iter().any(|known| known == vm);
    // A systemd that does not answer is asked again, and then its answer is what there is to say.
    if !known || matches!(Systemctl.is_running(&names.core()), Ok(false)) {
        return None;
    }
    Some(Box::new(Systemd { vm: vm.to_owned() }))
}

/// The VMs that systemd runs.
pub fn vms(_base: &Path) -> Vec<String> {
    let entries = fs::read_dir(Path::new("/").join(CONFIG)).into_iter().flatten().flatten();
    let mut vms: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    vms.retain(|vm| Names::of(vm).core_socket().exists());
    vms.sort();
    vms
}

pub(super) struct Systemd {
    vm: String,
}

/// The two units of a device, and what systemd says of them.
pub(super) struct Pair {
    /// Their names.
    pub(super) names: [String; 2],
    units: [Unit; 2],
}

impl Pair {
    /// Which one serves; `None`: none does just now.
    pub(super) fn serving(&self) -> Option<usize> {
        // The words of a process outlive it.
        let serves =
            |unit: &Unit| unit.number("MainPID") != 0 && unit.text("StatusText").starts_with(SERVING);
        match self.units.each_ref().map(serves) {
            [true, false] => Some(0),
            [false, true] => Some(1),
            _ => None,
        }
    }

    /// The one that matters: that serves, or else that is up.
    pub(super) fn main(&self) -> usize {
        self.serving().or_else(|| self.units.iter().position(Unit::is_up)).unwrap_or(0)
    }

    /// The one that does not serve, if it is up: a spare.
    pub(super) fn spare(&self) -> Option<usize> {
        let other = 1 - self.main();
        self.units[other].is_up().then_some(other)
    }

    fn is_ready(&self, number: usize) -> bool {
        let unit = &self.units[number];
        unit.number("MainPID") != 0 && unit.text("StatusText").starts_with(STANDING_BY)
    }
}

pub(super) fn failed(error: impl std::fmt::Display) -> Error {
    Error::Failed(error.to_string())
}

impl Systemd {
    pub(super) fn names(&self) -> Names<'_> {
        Names::of(&self.vm)
    }

    /// What the VM is called.
    pub(super) fn name(&self) -> &str {
        &self.vm
    }

    /// A program of ours: where the core's is.
    pub(super) fn program_beside_core(&self, name: &str) -> Result<PathBuf, Error> {
        let shown = Systemctl.show(&["ExecStart"], &[&self.names().core()]).map_err(failed)?;
        let core = shown.first().and_then(|unit| systemctl::program(unit.text("ExecStart")));
        let found = core.map(|core| core.with_file_name(name)).filter(|path| path.is_file());
        found.ok_or_else(|| Error::Failed(format!("there is no {name} beside core-vmm: install it there")))
    }

    /// The names of the devices, in the order of the spec.
    fn devices(&self) -> Result<Vec<String>, Error> {
        let path = Path::new("/").join(self.names().configuration()).join("core.json");
        let text = fs::read_to_string(&path)
            .map_err(|error| Error::Failed(format!("cannot read {}: {error}", path.display())))?;
        let config: CoreConfig = serde_json::from_str(&text).map_err(failed)?;
        let mut devices: Vec<String> = config.devices.into_iter().map(|device| device.name).collect();
        // The console is no device of the core's; it is there with the screen.
        if self.kind(CONSOLE) == content::CONSOLE {
            devices.push(CONSOLE.to_owned());
        }
        devices.extend(pci::attached(&self.vm));
        Ok(devices)
    }

    /// The units of `device`, as they are now.
    pub(super) fn pair(&self, device: &str) -> Result<Pair, Error> {
        let known = self.devices()?;
        if !known.iter().any(|name| name == device) {
            return Err(Error::NoSuchDevice { vm: self.vm.clone(), device: device.to_owned(), known });
        }
        let names = self.names().device(&self.kind(device), device);
        let shown = Systemctl.show(&PROPERTIES, &[&names[0], &names[1]]).map_err(failed)?;
        let units = shown.try_into().unwrap_or_default();
        Ok(Pair { names, units })
    }

    /// The template that the device's units are instances of: whose drop-in there is.
    fn kind(&self, device: &str) -> String {
        let tail = format!("@{}:{device}.service.d", self.vm);
        let places = [Path::new("/").join(UNITS), systemctl::RUNTIME_UNITS.into()];
        let entries = places.iter().flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
        let mut kinds = entries
            .filter_map(|entry| entry.file_name().into_string().ok()?.strip_suffix(&tail).map(str::to_owned))
            .filter(|kind| kind.starts_with("vsp-") || kind == content::CONSOLE);
        kinds.next().unwrap_or_else(|| "vsp-storage".to_owned())
    }

    pub(super) fn core_socket(&self) -> PathBuf {
        self.names().core_socket()
    }

    /// A connection to the core.
    pub(super) fn operator(&self) -> Result<Operator, Error> {
        self.core().map_err(failed)
    }

    /// The same, with the reason as the core has it.
    pub(super) fn core(&self) -> Result<Operator, CoreError> {
        Operator::connect(&self.names().core_socket())
    }

    fn row(&self, name: &str, known: &[ipc::operator::Device]) -> Result<Row, Error> {
        let pair = self.pair(name)?;
        let (main, spare) = (pair.main(), pair.spare());
        let unit = &pair.units[main];
        let core = known.iter().find(|device| device.name == name).cloned().unwrap_or_default();
        let is_serving = pair.serving().is_some();
        let pid = |unit: &Unit| u32::try_from(unit.number("MainPID")).ok().filter(|pid| *pid != 0);
        let ending =
            pair.names.iter().filter_map(|unit| systemctl::last_ending(unit)).max_by_key(|ending| ending.at);
        let since = |at: SystemTime| u64::try_from(at.elapsed().ok()?.as_millis()).ok();
        Ok(Row {
            name: name.to_owned(),
            state: state(unit, is_serving),
            pid: pid(unit),
            spare: spare.and_then(|number| pid(&pair.units[number])),
            spare_ready: spare.is_some_and(|number| pair.is_ready(number)),
            restarts: pair.units.iter().map(|unit| unit.number("NRestarts")).sum(),
            uptime_ms: is_serving.then(|| age(unit)).flatten(),
            last_death_ms: ending.as_ref().and_then(|ending| since(ending.at)),
            last_death: ending.map(|ending| ending.death.to_string()),
            program: systemctl::program(unit.text("ExecStart")).unwrap_or_default(),
            build: core.build,
            channels: core.channels,
            exposed_bytes: core.exposed_bytes,
            takeovers: core.takeovers,
            disks: None,
        })
    }
}

impl Backend for Systemd {
    fn list(&mut self) -> Result<Vec<Row>, Error> {
        let known = self.operator()?.devices().map_err(failed)?;
        // The core does not know the console, and no device any more that was detached.
        let is_there = |name: &&String| known.iter().any(|device| device.name == **name) || **name == CONSOLE;
        self.devices()?.iter().filter(is_there).map(|name| self.row(name, &known)).collect()
    }

    fn restart(&mut self, device: &str) -> Result<String, Error> {
        let pair = self.pair(device)?;
        let _only_we = swap::Alone::with(self.names(), device)?;
        let unit = &pair.names[pair.main()];
        Systemctl.tell("restart", unit).map_err(failed)?;
        Ok(format!("{unit} was restarted"))
    }

    fn swap(&mut self, device: &str, binary: Option<&Path>) -> Result<String, Error> {
        if device == CONSOLE && self.kind(device) == content::CONSOLE {
            let why = "it has nothing to hand over: restart it (bulkhead device restart)";
            return Err(Error::Failed(format!("{device} was not swapped: {why}")));
        }
        // Before the lock: it says so if there is no such device.
        self.pair(device)?;
        let _only_we = swap::Alone::with(self.names(), device)?;
        swap::swap(self, device, binary)
    }

    fn disks(&mut self, device: &str) -> Result<Vec<String>, Error> {
        let pair = self.pair(device)?;
        Ok(words::list(&disks::arguments(&disks::in_force(&pair.names[0])?)))
    }

    fn change(
        &mut self,
        device: &str,
        change: &Change,
        payload: &str,
        fds: Vec<OwnedFd>,
    ) -> Result<Told, Error> {
        self.pair(device)?;
        let _only_we = swap::Alone::with(self.names(), device)?;
        disks::change(self, device, change, payload, fds)
    }

    fn tell(&mut self, device: &str, payload: &str) -> Result<Told, Error> {
        tell(&self.core_socket(), device, payload, Vec::new())
    }

    fn attach(&mut self, address: Address, name: Option<&str>, spare: bool) -> Result<String, Error> {
        pci::attach(self, address, name, spare)
    }

    fn detach(&mut self, device: &str, force: bool) -> Result<String, Error> {
        pci::detach(self, device, force)
    }

    /// Its processes may open whatever root can, until their compartments are closed.
    fn opener(&self) -> u32 {
        0
    }

    fn runtime(&self) -> PathBuf {
        self.names().runtime()
    }
}

fn state(unit: &Unit, is_serving: bool) -> State {
    match (unit.text("ActiveState"), unit.text("SubState")) {
        _ if is_serving => State::Serving,
        (_, "stop-watchdog" | "stop-sigterm" | "stop-sigkill") => State::Hung,
        // It has ended, and the pause before its next start runs.
        ("deactivating", "stop-post") if unit.text("Result") != "success" => State::BackingOff,
        ("active" | "activating" | "reloading", _) => State::Starting,
        _ => State::Failed,
    }
}

/// How long a unit has been up, in milliseconds.
fn age(unit: &Unit) -> Option<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?);
    let since = Duration::from_micros(unit.number("ActiveEnterTimestampMonotonic"));
    u64::try_from(now.checked_sub(since)?.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(properties: &str) -> Unit {
        systemctl::parse(properties, 1).remove(0)
    }

    #[test]
    fn a_state_is_what_the_operator_has_to_know() {
        let states = [
            ("ActiveState=active\nSubState=running\nResult=success", true, State::Serving),
            ("ActiveState=deactivating\nSubState=stop-watchdog\nResult=watchdog", false, State::Hung),
            ("ActiveState=deactivating\nSubState=stop-post\nResult=exit-code", false, State::BackingOff),
            ("ActiveState=activating\nSubState=auto-restart\nResult=exit-code", false, State::Starting),
            ("ActiveState=inactive\nSubState=dead\nResult=success", false, State::Failed),
        ];
        for (shown, is_serving, expected) in states {
            assert_eq!(state(&unit(shown), is_serving), expected, "{shown}");
        }
    }

    #[test]
    fn who_serves_is_who_says_so_and_lives() {
        let pair = |first: &str, second: &str| Pair {
            names: [String::new(), String::new()],
            units: [unit(first), unit(second)],
        };
        let (serving, gone) =
            ("MainPID=7\nStatusText=serving\nActiveState=active", "MainPID=0\nStatusText=serving");
        assert_eq!(pair(gone, serving).serving(), Some(1));
        assert_eq!(pair(gone, gone).serving(), None);
        assert_eq!(
            pair(serving, serving).serving(),
            None,
            "two that say so: one of them is on its way out, or lies"
        );
    }
}
