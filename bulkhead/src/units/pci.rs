//! The units of PCI devices that a VM has as its own: those of its spec, and those that it is given while it runs.
//!
//! A device that is attached has its drop-ins below the runtime units, which are gone with the host's next boot; the core is told of it as under
//! `bulkhead run`. What fails on the way is undone (`steps`).

mod steps;

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ipc::config::{CoreConfig, DeviceSlot};

use super::device::{Systemd, failed};
use super::escape::Unwritable;
use super::systemctl::{RUNTIME_UNITS, Systemctl};
use super::{CONFIG, Names, UNITS, content, escape, ids, install, swap};
use crate::device::core::CoreError;
use crate::device::{Backend, Error};
use crate::disk::Told;
use crate::pci::{Address, Host};
use crate::plan::{self, Device, Later};
use crate::spec::{self, Pci};
use crate::supervise::EJECT;

/// The template.
pub(super) const TEMPLATE: &str = "vsp-pci";
/// How long a device may take until it is served: all of the VM's memory is pinned for it before that.
const SERVED: Duration = Duration::from_secs(60);
/// How long to wait before it is asked again.
const AGAIN: Duration = Duration::from_millis(50);

/// The drop-in of a device.
pub(super) fn device_unit(device: &Device, names: Names<'_>, user: &str) -> Result<String, Unwritable> {
    let mut sandbox = content::Sandbox::default();
    sandbox.read(&device.program)?;
    let group = device.pci.map(|pci| pci.group.to_string()).unwrap_or_default();
    for node in ["vfio", &group] {
        let path = Path::new("/dev/vfio").join(node);
        let path = escape::path(&path)?;
        // The node of a group is there once a device of it is bound; if it is not, the process says so better than systemd.
        let optional = path.replacen('"', "\"-", 1);
        sandbox.text += &format!("BindPaths={optional}\nDeviceAllow={path} rw\n");
    }
    content::device_unit(device, &[], names, "", user, &sandbox)
}

/// The names of devices that were attached to a VM while it runs.
pub(super) fn attached(vm: &str) -> Vec<String> {
    attached_below(Path::new(RUNTIME_UNITS), vm)
}

fn attached_below(units: &Path, vm: &str) -> Vec<String> {
    let entries = fs::read_dir(units).into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.path().join(content::DROP_IN).exists());
    let mut names: Vec<String> = names
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (of, device) = name.strip_prefix(TEMPLATE)?.strip_prefix('@')?.split_once(':')?;
            let device = device.strip_suffix(".service.d")?;
            (of == vm && !device.contains(':')).then(|| device.to_owned())
        })
        .collect();
    names.sort();
    names
}

/// Gives the VM a device.
pub(super) fn attach(
    vm: &mut Systemd,
    address: Address,
    name: Option<&str>,
    spare: bool,
) -> Result<String, Error> {
    if let Some(name) = name {
        spec::device_name(name).map_err(Error::Failed)?;
    }
    let name = name.map_or_else(|| spec::pci::usual_name(address), str::to_owned);
    let _only_we = swap::Alone::with(vm.names(), &name)?;
    let rows = vm.list()?;
    if rows.iter().any(|row| row.name == name) {
        return Err(Error::Failed(format!("the VM has a device {name} already: give another --name")));
    }
    let group = spec::pci::look_up(&Host::this(), address, false)
        .map_err(|(why, fix)| Error::Failed(format!("{why}: {fix}")))?;
    let (later, block) = later(vm)?;
    let taken: Vec<usize> =
        attached(vm.name()).iter().filter_map(|name| user_of(vm.names(), block, name)).collect();
    let pci = Pci { name: name.clone(), address, group, spare };
    let units = vm.names().device(TEMPLATE, &name);
    let own = fs::read_to_string(drop_in_below(&Path::new("/").join(UNITS), &units[0])).ok();
    let (text, slot) = match own {
        Some(own) => {
            let user = user_of_own(&own, &pci, block).map_err(Error::Failed)?;
            (None, later.device_of(&pci, user).map_err(Error::Failed)?.1)
        }
        None => {
            let (device, slot) = later.device(&pci, &taken).map_err(Error::Failed)?;
            let text = device_unit(&device, vm.names(), &ids::user(block, device.user)).map_err(failed)?;
            (Some(text), slot)
        }
    };
    let new = New { text: text.as_deref(), slot: &slot, spare };
    steps::attach(&mut Hands { vm, device: &name, units: &units, new: Some(new) })?;
    Ok(format!("{name}: {address} is the VM's; {} serves it", units[0]))
}

/// The user's number of a device whose units were written with the VM's, and which comes back to it. Systemd takes those before any that are written for the time
/// being, so it has to be the same device; why not, as a sentence.
fn user_of_own(unit: &str, pci: &Pci, block: u32) -> Result<usize, String> {
    let Pci { name, address, group, .. } = pci;
    if !unit.contains(&format!("\"--address\" \"{address}\" \"--group\" \"{group}\"")) {
        return Err(format!(
            "the VM's units have a device {name}, which is another one than {address} of group {group}: give another --name"
        ));
    }
    user_in(unit, block).ok_or_else(|| {
        format!("the VM's unit of {name} has none of the VM's users: run bulkhead units again")
    })
}

/// Takes a device from the VM.
pub(super) fn detach(vm: &mut Systemd, device: &str, force: bool) -> Result<String, Error> {
    let pair = vm.pair(device)?;
    if !pair.names[0].starts_with(TEMPLATE) {
        let why = "only PCI devices can be attached and detached; bulkhead disk removes disks";
        return Err(Error::Failed(format!("{device}: {why}")));
    }
    let _only_we = swap::Alone::with(vm.names(), device)?;
    steps::detach(&mut Hands { vm, device, units: &pair.names, new: None }, force)?;
    Ok(format!("{device} is the VM's no more"))
}

/// Who does what the steps say: systemd and the core.
struct Hands<'a> {
    vm: &'a mut Systemd,
    device: &'a str,
    units: &'a [String; 2],
    new: Option<New<'a>>,
}

/// A device that comes.
#[derive(Clone, Copy)]
struct New<'a> {
    /// Its drop-in, if it has none yet.
    text: Option<&'a str>,
    /// Its place in the core.
    slot: &'a DeviceSlot,
    /// Whether a second process is to stand by.
    spare: bool,
}

impl steps::Hands for Hands<'_> {
    fn is_there(&mut self) -> Result<bool, Error> {
        let known = self.vm.operator()?.devices().map_err(failed)?;
        Ok(known.iter().any(|device| device.name == self.device))
    }

    fn write(&mut self) -> Result<(), Error> {
        let Some(text) = self.new.and_then(|new| new.text) else { return Ok(()) };
        for unit in self.units {
            install::replace(&drop_in(unit), text).map_err(failed)?;
        }
        Systemctl.reload().map_err(failed)
    }

    fn add(&mut self) -> Result<(), CoreError> {
        let Some(New { slot, .. }) = self.new else { return Ok(()) };
        self.vm.core()?.add(slot)
    }

    fn start(&mut self) -> Result<(), Error> {
        Systemctl.tell("start", &self.units[0]).map_err(failed)?;
        served(self.vm, self.device)?;
        if self.new.is_some_and(|new| new.spare) {
            Systemctl.tell("start", &self.units[1]).map_err(failed)?;
        }
        Ok(())
    }

    fn eject(&mut self) -> Result<Told, Error> {
        self.vm.tell(self.device, EJECT)
    }

    fn remove(&mut self) -> Result<(), Error> {
        self.vm.operator()?.remove(self.device).map_err(failed)
    }

    fn end(&mut self) -> Result<(), Error> {
        end(self.units)
    }

    fn device(&self) -> &str {
        self.device
    }
}

/// Ends the units of a device, and forgets what there is of them until the next boot.
fn end(units: &[String; 2]) -> Result<(), Error> {
    let stopped = units.each_ref().map(|unit| Systemctl.tell("stop", unit).map_err(failed));
    for unit in units {
        let path = drop_in(unit);
        let _ = fs::remove_file(&path);
        if let Some(directory) = path.parent() {
            // Fails, as it should, if an administrator has something there.
            let _ = fs::remove_dir(directory);
        }
    }
    Systemctl.reload().map_err(failed)?;
    stopped.into_iter().collect()
}

/// Until a process serves the device.
fn served(vm: &Systemd, device: &str) -> Result<(), Error> {
    let limit = Instant::now() + SERVED;
    loop {
        match vm.pair(device)?.serving() {
            Some(_) => return Ok(()),
            None if Instant::now() >= limit => {
                let unit = &vm.names().device(TEMPLATE, device)[0];
                return Err(Error::Failed(format!(
                    "{device}: nobody serves it; see journalctl --unit={unit}"
                )));
            }
            None => sleep(AGAIN),
        }
    }
}

/// What devices of this VM are made of that are attached, and its block of users.
fn later(vm: &Systemd) -> Result<(Later, u32), Error> {
    let configuration = Path::new("/").join(CONFIG).join(vm.name());
    let read = |name: &str| {
        let path = configuration.join(name);
        fs::read_to_string(&path)
            .map_err(|error| Error::Failed(format!("cannot read {}: {error}", path.display())))
    };
    let config: CoreConfig = serde_json::from_str(&read("core.json")?).map_err(failed)?;
    let block: u32 = read(ids::FILE)?.trim().parse().map_err(failed)?;
    let program = vm.program_beside_core(TEMPLATE)?;
    let first = config.later_uids.first().and_then(|id| id.checked_sub(ids::id(block, 0)));
    let first = first.and_then(|first| usize::try_from(first).ok()).ok_or_else(|| {
        Error::Failed(
            "its units were written by an older release: run bulkhead units again, and start the VM anew"
                .to_owned(),
        )
    })?;
    Ok((plan::later(&config.name, Some(program), ids::id(block, 0), first), block))
}

/// The number of the user of an attached device.
fn user_of(names: Names<'_>, block: u32, device: &str) -> Option<usize> {
    user_in(&fs::read_to_string(drop_in(&names.device(TEMPLATE, device)[0])).ok()?, block)
}

/// The same, from its drop-in.
fn user_in(text: &str, block: u32) -> Option<usize> {
    let user = text.lines().find_map(|line| line.strip_prefix("User="))?;
    (0..plan::IDS_PER_VM as usize).find(|number| ids::user(block, *number) == user)
}

fn drop_in(unit: &str) -> std::path::PathBuf {
    drop_in_below(Path::new(RUNTIME_UNITS), unit)
}

fn drop_in_below(units: &Path, unit: &str) -> std::path::PathBuf {
    units.join(format!("{unit}.d")).join(content::DROP_IN)
}

/// The VM's units have been written anew, or are gone. Devices that the VM has meanwhile stay.
pub(super) fn forget(vm: &str, stays: impl Fn(&str) -> bool) {
    forget_below(Path::new(RUNTIME_UNITS), vm, stays);
}

fn forget_below(units: &Path, vm: &str, stays: impl Fn(&str) -> bool) {
    for device in attached_below(units, vm).into_iter().filter(|device| !stays(device)) {
        for unit in Names::of(vm).device(TEMPLATE, &device) {
            let path = drop_in_below(units, &unit);
            let _ = fs::remove_file(&path);
            if let Some(directory) = path.parent() {
                let _ = fs::remove_dir(directory);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_comes_back_is_the_one_that_the_units_have() {
        let unit = "[Service]\nUser=bulkhead-3-2\nExecStart=\nExecStart=\"vsp-pci\" \"--device\" \"nic\" \"--address\" \"0000:03:00.0\" \"--group\" \"7\"\n";
        let pci =
            |group| Pci { name: "nic".into(), address: "03:00.0".parse().unwrap(), group, spare: false };
        assert_eq!(user_of_own(unit, &pci(7), 3), Ok(2));
        assert!(user_of_own(unit, &pci(8), 3).unwrap_err().contains("give another --name"));
        assert!(user_of_own(unit, &pci(7), 4).unwrap_err().contains("bulkhead units"), "another VM's user");
    }

    #[test]
    fn a_vm_that_runs_keeps_what_it_was_given() {
        let units = std::env::temp_dir().join(format!("bulkhead-attached-{}", std::process::id()));
        let _ = fs::remove_dir_all(&units);
        for (vm, device) in [("a", "nic"), ("a", "gpu"), ("a-b", "nic")] {
            for unit in Names::of(vm).device(TEMPLATE, device) {
                install::replace(&drop_in_below(&units, &unit), "[Service]\n").unwrap();
            }
        }
        assert_eq!(attached_below(&units, "a"), ["gpu", "nic"]);
        // The spec has one of them now.
        forget_below(&units, "a", |device| device != "gpu");
        assert_eq!(attached_below(&units, "a"), ["nic"]);
        forget_below(&units, "a", |_| false);
        assert_eq!(attached_below(&units, "a"), [""; 0]);
        assert_eq!(attached_below(&units, "a-b"), ["nic"], "another VM's");
        fs::remove_dir_all(&units).unwrap();
    }
}
