//! From a VM to files: what is in each, for `systemd`, `systemd-sysusers` and the core. Pure: it writes nothing.
//!
//! The templates in `policies/systemd` hold what is the same for every VM, and all the hardening. What is written for a VM is
//! drop-ins with what only it has: programs, users, paths.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use ipc::config::Console;

use super::escape::{self, Unwritable};
use super::nic::Nic;
use super::screen::Screen;
use super::{Names, SYSUSERS, UNITS, ids, pci};
use crate::plan::{Device, Plan};
use crate::spec::{self, Spec, Storage};

/// The templates, by name.
pub const TEMPLATES: [(&str, &str); 13] = [
    ("bulkhead-vm@.target", include_str!("../../../policies/systemd/bulkhead-vm@.target")),
    ("bulkhead-core@.socket", include_str!("../../../policies/systemd/bulkhead-core@.socket")),
    ("bulkhead-core@.service", include_str!("../../../policies/systemd/bulkhead-core@.service")),
    ("vsp-storage@.service", include_str!("../../../policies/systemd/vsp-storage@.service")),
    ("vsp-net@.service", include_str!("../../../policies/systemd/vsp-net@.service")),
    ("bulkhead-net@.service", include_str!("../../../policies/systemd/bulkhead-net@.service")),
    ("bulkhead-net@.socket", include_str!("../../../policies/systemd/bulkhead-net@.socket")),
    ("vsp-video@.service", include_str!("../../../policies/systemd/vsp-video@.service")),
    ("vsp-hid@.service", include_str!("../../../policies/systemd/vsp-hid@.service")),
    ("vsp-pci@.service", include_str!("../../../policies/systemd/vsp-pci@.service")),
    ("bulkhead-console@.service", include_str!("../../../policies/systemd/bulkhead-console@.service")),
    ("bulkhead-seat@.service", include_str!("../../../policies/systemd/bulkhead-seat@.service")),
    ("bulkhead-seat@.socket", include_str!("../../../policies/systemd/bulkhead-seat@.socket")),
];

/// The template of consoles.
pub const CONSOLE: &str = "bulkhead-console";

/// The drop-in in the directory of each unit. Other drop-ins beside it are the administrator's.
pub const DROP_IN: &str = "50-bulkhead.conf";
/// The drop-in that `bulkhead disk` writes, below the runtime units: read after the one above, and in its place.
pub const DISKS: &str = "55-disks.conf";

/// What every generated file begins with.
pub(super) const HEADER: &str = "# Written by `bulkhead units`, which replaces it the next time; put changes into another file beside it.\n";

/// Directories that `ProtectHome=yes` makes inaccessible.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];

/// Why a device depends on its core as it does.
const DEVICE_OF_CORE: &str = "# It ends with the core and is started while there is one. Nothing here may pull the core in (Requires=, BindsTo=): a device that \
    is just\n# starting again when its VM ends would boot the VM anew.\n";

/// A file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Where; relative to the root directory.
    pub path: PathBuf,
    /// What is in it.
    pub content: String,
}

/// Everything that has to be written for the VM of `plan`, which `spec` describes. `plan` is for root, with ids of `block`.
/// `is_device` tells block devices from files.
pub fn files(
    spec: &Spec,
    plan: &Plan,
    bulkhead: &Path,
    block: u32,
    is_device: impl Fn(&Path) -> bool,
) -> Result<Vec<File>, Unwritable> {
    let names = Names::of(&plan.name);
    let mut files = Vec::new();
    for (name, content) in TEMPLATES {
        files.push(File { path: Path::new(UNITS).join(name), content: content.to_owned() });
    }
    files.push(File { path: names.configuration().join("core.json"), content: core_config(plan, names) });
    files.push(File { path: names.configuration().join(ids::FILE), content: format!("{block}\n") });
    files.push(File { path: Path::new(SYSUSERS).join(names.sysusers()), content: sysusers(plan, block) });
    let mut wanted = vec![names.core()];
    files.push(drop_in(&names.core(), core(spec, plan, names)?));
    let screen = spec.screen.as_ref().zip(plan.seat.as_ref());
    let screen = screen.map(|(screen, seat)| Screen { bulkhead, screen, seat, plan, names });
    if let Some(screen) = &screen {
        files.push(drop_in(&names.seat(), screen.holder(&ids::user(block, screen.seat.user))?));
        wanted.extend([names.seat_socket(), names.seat()]);
    }
    for (position, device) in plan.devices.iter().enumerate() {
        let user = ids::user(block, device.user);
        let content = match (&device.network, device.part, spec.storage.get(position)) {
            (Some(network), ..) => {
                let helper = ids::user(block, device.user + spec.net.len());
                let nic = Nic { bulkhead, device, network, names, position };
                for (unit, content) in nic.others(&user, &helper)? {
                    files.push(drop_in(&unit, content));
                    wanted.push(unit);
                }
                nic.device(&user)?
            }
            (_, Some(part), _) => match &screen {
                Some(screen) => screen.device(device, part, &user)?,
                None => continue,
            },
            _ if device.pci.is_some() => pci::device_unit(device, names, &user)?,
            (.., Some(storage)) => storage_device(device, storage, names, user, &is_device)?,
            (None, None, None) => continue,
        };
        let [first, second] = names.device(kind(device), &device.name);
        files.push(drop_in(&first, content.clone()));
        wanted.push(first);
        // Nobody stands by for the console, nor takes over from it.
        if device.is_of_core() {
            files.push(drop_in(&second, content));
        }
        if device.spare {
            wanted.push(second);
        }
    }
    let target = format!("{HEADER}[Unit]\nWants={}\nAfter={}\n", wanted.join(" "), wanted.join(" "));
    files.push(drop_in(&names.target(), target));
    Ok(files)
}

/// Which template a device is an instance of: it is called like the program.
pub fn kind(device: &Device) -> &str {
    device.program.file_name().and_then(OsStr::to_str).unwrap_or("vsp-storage")
}

fn drop_in(unit: &str, content: String) -> File {
    File { path: Path::new(UNITS).join(format!("{unit}.d")).join(DROP_IN), content }
}

/// The core's configuration. There is no terminal under systemd: the console becomes a socket.
fn core_config(plan: &Plan, names: Names<'_>) -> String {
    let mut config = plan.core.clone();
    if config.console == Console::Stdio {
        config.console = Console::Socket(names.console());
    }
    // A value made of strings and numbers can always be written.
    serde_json::to_string_pretty(&config).unwrap_or_default() + "\n"
}

/// A user for each process, so that `ps` and the journal have a name for it, and because `User=` wants one.
fn sysusers(plan: &Plan, block: u32) -> String {
    let mut out = HEADER.to_owned();
    let member = |(number, member): (usize, String)| {
        let (user, id) = (ids::user(block, number), ids::id(block, number));
        // Infallible on a string.
        let _ = writeln!(out, "u {user} {id} \"Bulkhead VM {}, {member}\" - -", plan.name);
    };
    let devices = plan.devices.iter().map(|device| (device.user, device.name.clone()));
    // Behind the NICs, as in the plan: what they are connected to.
    let nics: Vec<_> = plan.devices.iter().filter(|device| device.network.is_some()).collect();
    let helpers =
        nics.iter().map(|nic| (nic.user + nics.len(), format!("what {} is connected to", nic.name)));
    let seat =
        plan.seat.iter().map(|seat| (seat.user, "what lies between its screen and its console".to_owned()));
    let core = std::iter::once((0, "core".to_owned()));
    let later = plan.later.numbers().map(|number| (number, "a device that is attached later".to_owned()));
    core.chain(devices).chain(helpers).chain(seat).chain(later).for_each(member);
    out
}

fn core(spec: &Spec, plan: &Plan, names: Names<'_>) -> Result<String, Unwritable> {
    let config = Path::new("/").join(names.configuration()).join("core.json");
    let words = [
        "--config".as_ref(),
        config.as_os_str(),
        "--listen-fd".as_ref(),
        "3".as_ref(),
        "--no-pid-namespace".as_ref(),
    ];
    let mut readable = vec![plan.core_program.as_path(), &plan.core.kernel];
    readable.extend(plan.core.initrd.as_deref());
    let mut sandbox = Sandbox::default();
    for path in readable {
        sandbox.read(path)?;
    }
    if let spec::Console::Socket(path) = &spec.console
        && let Some(directory) = path.parent()
    {
        sandbox.write(directory)?;
    }
    let program = std::iter::once(plan.core_program.as_os_str());
    let command = escape::command_line(program.chain(words))?;
    Ok(format!("{HEADER}[Service]\nExecStart=\nExecStart={command}\n{}", sandbox.text))
}

fn storage_device(
    device: &Device,
    storage: &Storage,
    names: Names<'_>,
    user: String,
    is_device: &impl Fn(&Path) -> bool,
) -> Result<String, Unwritable> {
    let mut sandbox = Sandbox::default();
    sandbox.read(&device.program)?;
    for disk in &storage.disks {
        sandbox.disk(&disk.path, disk.readonly, is_device(&disk.path))?;
    }
    device_unit(device, &[], names, "", &user, &sandbox)
}

/// The drop-in of a device; `more` are arguments that depend on systemd, `after` what else has to be there before it.
pub(super) fn device_unit(
    device: &Device,
    more: &[&OsStr],
    names: Names<'_>,
    after: &str,
    user: &str,
    sandbox: &Sandbox,
) -> Result<String, Unwritable> {
    let socket = names.core_socket();
    let attach = device.is_of_core().then_some(["--core".as_ref(), socket.as_os_str()]);
    let attach = attach.into_iter().flatten();
    let words = std::iter::once(device.program.as_os_str()).chain(attach).chain(more.iter().copied());
    let command = escape::command_line(words.chain(device.args.iter().map(|word| word.as_os_str())))?;
    let (unit, socket_unit) = (of_core(names), names.socket());
    let core = names.core();
    Ok(format!(
        "{HEADER}[Unit]\n{DEVICE_OF_CORE}{unit}After={core} {socket_unit}{after}\n\
         [Service]\nUser={user}\nExecStart=\nExecStart={command}\n{}",
        sandbox.text
    ))
}

/// What ties a unit to the VM's core: without one it does not start, with it it ends.
pub(super) fn of_core(names: Names<'_>) -> String {
    let (core, target) = (names.core(), names.target());
    format!("Requisite={core}\nStopPropagatedFrom={core}\nPartOf={target}\n")
}

/// What of the file system a process needs besides what the templates leave it.
#[derive(Default)]
pub(super) struct Sandbox {
    /// Settings, a line each.
    pub(super) text: String,
}

impl Sandbox {
    /// It can read what is at `path`, or run it.
    pub(super) fn read(&mut self, path: &Path) -> Result<(), Unwritable> {
        self.bind("BindReadOnlyPaths", path)
    }

    fn write(&mut self, path: &Path) -> Result<(), Unwritable> {
        self.bind("BindPaths", path)
    }

    /// It can use a disk.
    pub(super) fn disk(&mut self, path: &Path, readonly: bool, is_device: bool) -> Result<(), Unwritable> {
        if readonly {
            self.read(path)?
        } else {
            self.write(path)?
        }
        if is_device {
            let access = if readonly { "r" } else { "rw" };
            // Infallible on a string.
            let _ = writeln!(self.text, "DeviceAllow={} {access}", escape::path(path)?);
        }
        Ok(())
    }

    /// Mounts what is at `path` there: over whatever else the template has put in its place, an empty home or a private `/tmp`.
    fn bind(&mut self, setting: &str, path: &Path) -> Result<(), Unwritable> {
        const HOME: &str = "ProtectHome=tmpfs\n";
        if HOMES.iter().any(|home| path.starts_with(home)) && !self.text.contains(HOME) {
            self.text.push_str(HOME);
        }
        let _ = writeln!(self.text, "{setting}={}", escape::path(path)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
