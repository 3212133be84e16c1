//! `bulkhead device` for a VM that systemd runs.
//!
//! systemd knows processes, the core knows who serves: each is asked for what it knows. A device has two units; the words that its
//! process sends as its status tell which one serves. A swap starts the other one, lets the core hand over, and stops the first.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ipc::config::CoreConfig;
use nix::time::{ClockId, clock_gettime};

use super::systemctl::{self, RUNTIME_UNITS, Systemctl, Unit};
use super::{CONFIG, Names, UNITS, escape};
use crate::device::core::Operator;
use crate::device::{Backend, Error, Row, State, check_binary};

/// What is asked of each unit.
const PROPERTIES: [&str; 7] = [
    "ActiveState",
    "SubState",
    "MainPID",
    "NRestarts",
    "StatusText",
    "ActiveEnterTimestampMonotonic",
    "ExecStart",
];
/// Status of a process that serves, and of one that stands by (`vsp::notify`).
const SERVING: &str = "serving";
const STANDING_BY: &str = "standing by";
/// How long the core waits for the new process to be welcomed: it says that it is ready only then, so it has been already.
const WELCOME: Duration = Duration::from_secs(5);
/// The drop-in that gives a unit another program until the next boot. Read after our own.
const BINARY: &str = "60-swap.conf";

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

struct Systemd {
    vm: String,
}

/// The two units of a device, and what systemd says of them.
struct Pair {
    names: [String; 2],
    units: [Unit; 2],
}

impl Pair {
    /// Which one serves; `None`: none does just now.
    fn serving(&self) -> Option<usize> {
        // The words of a process outlive it.
        let serves =
            |unit: &Unit| unit.number("MainPID") != 0 && unit.text("StatusText").starts_with(SERVING);
        self.units.iter().position(serves)
    }

    /// The one that matters: that serves, or else that is up.
    fn main(&self) -> usize {
        self.serving().or_else(|| self.units.iter().position(Unit::is_up)).unwrap_or(0)
    }

    /// The one that does not serve, if it is up: a spare.
    fn spare(&self) -> Option<usize> {
        let other = 1 - self.main();
        self.units[other].is_up().then_some(other)
    }

    fn is_ready(&self, number: usize) -> bool {
        let unit = &self.units[number];
        unit.number("MainPID") != 0 && unit.text("StatusText").starts_with(STANDING_BY)
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Failed(error.to_string())
}

impl Systemd {
    fn names(&self) -> Names<'_> {
        Names::of(&self.vm)
    }

    /// The names of the devices, in the order of the spec.
    fn devices(&self) -> Result<Vec<String>, Error> {
        let path = Path::new("/").join(self.names().configuration()).join("core.json");
        let text = fs::read_to_string(&path)
            .map_err(|error| Error::Failed(format!("cannot read {}: {error}", path.display())))?;
        let config: CoreConfig = serde_json::from_str(&text).map_err(failed)?;
        Ok(config.devices.into_iter().map(|device| device.name).collect())
    }

    fn pair(&self, device: &str) -> Result<Pair, Error> {
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
        let entries = fs::read_dir(Path::new("/").join(UNITS)).into_iter().flatten().flatten();
        let kind = entries
            .filter_map(|entry| entry.file_name().into_string().ok()?.strip_suffix(&tail).map(str::to_owned));
        kind.into_iter().next().unwrap_or_else(|| "vsp-storage".to_owned())
    }

    fn operator(&self) -> Result<Operator, Error> {
        Operator::connect(&self.names().core_socket()).map_err(failed)
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
        })
    }

    /// Starts `new` with the program in force and lets the core hand over to it. How long nobody served.
    fn hand_over(&self, device: &str, new: &str) -> Result<Duration, Error> {
        // Returns once it stands by.
        Systemctl.tell("restart", new).map_err(failed)?;
        self.operator()?.swap(device, WELCOME).map_err(failed)
    }
}

impl Backend for Systemd {
    fn list(&mut self) -> Result<Vec<Row>, Error> {
        let known = self.operator()?.devices().map_err(failed)?;
        self.devices()?.iter().map(|name| self.row(name, &known)).collect()
    }

    fn restart(&mut self, device: &str) -> Result<String, Error> {
        let pair = self.pair(device)?;
        let unit = &pair.names[pair.main()];
        Systemctl.tell("restart", unit).map_err(failed)?;
        Ok(format!("{unit} was restarted"))
    }

    fn swap(&mut self, device: &str, binary: Option<&Path>) -> Result<String, Error> {
        let pair = self.pair(device)?;
        let (old, new) = (&pair.names[pair.main()], &pair.names[1 - pair.main()]);
        let had_spare = pair.spare().is_some();
        let before = pair.names.each_ref().map(|unit| Override::of(unit));
        if let Some(binary) = binary {
            // For both, so that whichever is started later is of this build too.
            for over in &before {
                over.set(Some(&binary_drop_in(&over.unit, binary)?))?;
            }
            Systemctl.reload().map_err(failed)?;
        }
        match self.hand_over(device, new) {
            Ok(pause) => {
                // What has retired has ended, and systemd starts it again: that is right for a spare.
                let then = if had_spare { "start" } else { "stop" };
                Systemctl.tell(then, old).map_err(failed)?;
                Ok(format!("{new} serves {device} now, after a pause of {:.1} ms", pause.as_secs_f64() * 1e3))
            }
            Err(error) => {
                if binary.is_some() {
                    before.iter().try_for_each(|over| over.set(over.text.as_deref()))?;
                    Systemctl.reload().map_err(failed)?;
                }
                let then = if had_spare { "restart" } else { "stop" };
                Systemctl.tell(then, new).map_err(failed)?;
                Err(error)
            }
        }
    }
}

/// The drop-in that gives a unit another program. It lasts until the next boot, or the next swap to another program.
struct Override {
    unit: String,
    path: PathBuf,
    /// What is in it.
    text: Option<String>,
}

impl Override {
    fn of(unit: &str) -> Self {
        let path = Path::new(RUNTIME_UNITS).join(format!("{unit}.d")).join(BINARY);
        let text = fs::read_to_string(&path).ok();
        Self { unit: unit.to_owned(), path, text }
    }

    fn set(&self, text: Option<&str>) -> Result<(), Error> {
        let done = match (text, self.path.parent()) {
            (Some(text), Some(directory)) => {
                fs::create_dir_all(directory).and_then(|()| fs::write(&self.path, text))
            }
            _ => match fs::remove_file(&self.path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        done.map_err(|error| Error::Failed(format!("cannot change {}: {error}", self.path.display())))
    }
}

/// The unit's own command line with another program.
fn binary_drop_in(unit: &str, binary: &Path) -> Result<String, Error> {
    let binary = check_binary(binary)?;
    let own = Path::new("/").join(UNITS).join(format!("{unit}.d")).join(super::content::DROP_IN);
    let text = fs::read_to_string(&own)
        .map_err(|error| Error::Failed(format!("cannot read {}: {error}", own.display())))?;
    with_program(&text, &binary)
        .map_err(failed)?
        .ok_or_else(|| Error::Failed(format!("{} has no command line", own.display())))
}

/// The drop-in that runs `binary` with the arguments that `text`, a drop-in of ours, gives the unit's program.
fn with_program(text: &str, binary: &Path) -> Result<Option<String>, escape::Unwritable> {
    let command =
        text.lines().filter_map(|line| line.strip_prefix("ExecStart=")).find(|command| !command.is_empty());
    // Words are quoted, and a quote inside of one has a backslash before it.
    let Some((_, arguments)) = command.and_then(|command| command.split_once("\" \"")) else {
        return Ok(None);
    };
    let (word, path) = (escape::argument(binary.as_os_str())?, escape::path(binary)?);
    Ok(Some(format!("[Service]\nExecStart=\nExecStart={word} \"{arguments}\nBindReadOnlyPaths={path}\n")))
}

fn state(unit: &Unit, is_serving: bool) -> State {
    match (unit.text("ActiveState"), unit.text("SubState")) {
        _ if is_serving => State::Serving,
        (_, "stop-watchdog" | "stop-sigterm" | "stop-sigkill") => State::Hung,
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

    #[test]
    fn another_program_gets_the_same_arguments() {
        let own = "[Service]\nUser=x\nExecStart=\nExecStart=\"/bin/a\\\" \\\"b\" \"--disk\" \"path=/x y%%\"\nBindPaths=\"/x y%%\"\n";
        let text = with_program(own, Path::new("/new/100%")).unwrap().unwrap();
        assert_eq!(
            text,
            "[Service]\nExecStart=\nExecStart=\"/new/100%%\" \"--disk\" \"path=/x y%%\"\nBindReadOnlyPaths=\"/new/100%%\"\n"
        );
        assert_eq!(with_program("[Service]\nExecStart=\n", Path::new("/b")).unwrap(), None);
    }
}
