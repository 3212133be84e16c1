//! The command line of `bulkhead device`, and what it does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::protocol::Row;
use super::{Error, check_binary, find, running, stats, table};
use crate::pci::Address;
use crate::runtime_dir;

/// What it is, in a line.
pub const ABOUT: &str =
    "Lists, restarts and replaces the device processes of running VMs; attaches and detaches PCI devices";

/// What it is.
pub const LONG_ABOUT: &str = "\
Every device of a VM is a process of its own, which may die or be replaced while the guest runs: its requests wait for a moment, \
none is lost, and none is done twice. PCI devices of the host can be given to a VM and taken back while it runs. These commands work for VMs under `bulkhead run` and for VMs under systemd alike, for root and \
for the user who runs the VM.";

/// Below its options.
pub const AFTER_HELP: &str = "\
Examples:
  bulkhead device ls                       Every device of every running VM
  bulkhead device ls debian --json         For a machine to read
  bulkhead device ls debian --stats        What each disk does
  bulkhead device restart debian disk0     A new process, as after a crash
  bulkhead device swap debian disk0        A new process, which takes over in order
  bulkhead device swap debian disk0 --binary ./vsp-storage
  bulkhead device attach debian --pci 0000:03:00.0    Which bulkhead pci bind has taken from the host
  bulkhead device detach debian pci-03-00-0           The guest lets go of it first";

const LS_ABOUT: &str = "Shows the devices, the processes that serve them, and how the last one died";

const LS_LONG_ABOUT: &str = "\
Shows a line for each device:
  STATE       serving, starting (it starts, or waits for the last I/O of a dead one),
              hung (it is being ended), backing-off (its processes keep dying; the
              next one starts after a pause, and the guest's I/O waits)
  PID, SPARE  The process that serves it, and the one that stands by (spare = true)
  RESTARTS    Processes that had to be replaced since the VM was started
  UPTIME      Since when the process serves
  LAST DEATH  When and how the last one of those ended: its exit code, its signal,
              the forbidden system call that it made, or that it hung
  EXPOSED     Guest memory that the process maps; the core copies more to a confined NIC's when a packet names it.
              Of a PCI device: all of it, which the device itself reaches, too

With --stats, a line for each disk instead: commands and bytes of the guest, and how long half of the commands and 99 of a hundred took at \
most, since the process that serves began to.";

const RESTART_ABOUT: &str = "Ends the process that serves a device and waits until another one does";

const RESTART_LONG_ABOUT: &str = "\
Kills the process that serves a device. Its spare takes over, or a new process is started; the guest's requests wait for it. Where \
processes keep dying, the next one is started now instead of after the pause. To replace a process without that break, use swap.";

const SWAP_ABOUT: &str = "Replaces the process that serves a device by a new one, without a break";

const SWAP_LONG_ABOUT: &str = "\
Starts a new process, lets the old one end what it has under way and hand over, and lets it go once the new one serves. If the new \
one does not start, or cannot read what the old one leaves it, the old one goes on as before and the command fails with the reason.

With --binary the new process is of another build. That build stays in force: later restarts and spares of this device are of it, \
until the next swap or the end of the VM. Without --binary the program is the one in force, as it is on disk now.";

const ATTACH_ABOUT: &str = "Gives a running VM a PCI device of the host";

const ATTACH_LONG_ABOUT: &str = "\
Gives a running VM a PCI device of the host, which has to be bound (bulkhead pci bind). The guest finds it by itself and drives it \
with its own driver. All of the VM's memory is pinned for it. The device is the VM's until it is detached or the VM ends; for the next \
start, write it into the spec ([[pci]]).

What cannot be done is undone, and the VM runs on without the device.";

const DETACH_ABOUT: &str = "Takes a PCI device from a running VM";

const DETACH_LONG_ABOUT: &str = "\
Takes a PCI device from a running VM: the guest's driver is asked to let go of it, then the device is reset and nobody's. If the guest does \
not let go, the command fails after half a minute and the VM keeps it. With --force the guest is not asked: like pulling a card \
out of a machine that runs. The device is quiet and reset in either case before the command ends.";

/// `bulkhead device`.
#[derive(Debug, Args)]
pub struct Device {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(about = LS_ABOUT, long_about = LS_LONG_ABOUT)]
    /// Shows the devices.
    Ls(Ls),
    #[command(about = RESTART_ABOUT, long_about = RESTART_LONG_ABOUT)]
    /// A new process, the hard way.
    Restart(Restart),
    #[command(about = SWAP_ABOUT, long_about = SWAP_LONG_ABOUT)]
    /// A new process, the smooth way.
    Swap(Swap),
    #[command(about = ATTACH_ABOUT, long_about = ATTACH_LONG_ABOUT)]
    /// A device more.
    Attach(Attach),
    #[command(about = DETACH_ABOUT, long_about = DETACH_LONG_ABOUT)]
    /// A device less.
    Detach(Detach),
}

/// `bulkhead device ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// The VM's name [default: every VM that runs]
    #[arg(value_name = "VM")]
    pub vm: Option<String>,

    /// One JSON array of devices; of {vm, devices} objects if no VM is named
    #[arg(long)]
    pub json: bool,

    /// What each disk has done since its process began to serve, instead of the processes; with --json besides
    #[arg(long)]
    pub stats: bool,

    /// Where to look.
    #[command(flatten)]
    pub place: Place,
}

/// `bulkhead device restart`.
#[derive(Debug, Args)]
pub struct Restart {
    /// The VM's name
    #[arg(value_name = "VM")]
    pub vm: String,

    /// The device's name in its spec
    #[arg(value_name = "DEVICE")]
    pub device: String,

    /// Where to look.
    #[command(flatten)]
    pub place: Place,
}

/// `bulkhead device swap`.
#[derive(Debug, Args)]
pub struct Swap {
    /// The VM's name
    #[arg(value_name = "VM")]
    pub vm: String,

    /// The device's name in its spec
    #[arg(value_name = "DEVICE")]
    pub device: String,

    /// The program of the new process, from now on; another build of the one that serves
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,

    /// Where to look.
    #[command(flatten)]
    pub place: Place,
}

/// `bulkhead device attach`.
#[derive(Debug, Args)]
pub struct Attach {
    /// The VM's name
    #[arg(value_name = "VM")]
    pub vm: String,

    /// The PCI device, as bulkhead pci ls shows it
    #[arg(long, value_name = "ADDRESS")]
    pub pci: Address,

    /// What it is called from now on [default: made of its address, pci-03-00-0]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Have a second process stand by
    #[arg(long)]
    pub spare: bool,

    /// Where to look.
    #[command(flatten)]
    pub place: Place,
}

/// `bulkhead device detach`.
#[derive(Debug, Args)]
pub struct Detach {
    /// The VM's name
    #[arg(value_name = "VM")]
    pub vm: String,

    /// The device's name
    #[arg(value_name = "DEVICE")]
    pub device: String,

    /// Do not ask the guest
    #[arg(long)]
    pub force: bool,

    /// Where to look.
    #[command(flatten)]
    pub place: Place,
}

/// Where running VMs are.
#[derive(Debug, Args)]
pub struct Place {
    /// Where running VMs have their directories [default: /run/bulkhead, or $XDG_RUNTIME_DIR/bulkhead]
    #[arg(long, value_name = "DIR", env = "BULKHEAD_RUNTIME_DIR", hide_env_values = true)]
    pub runtime_dir: Option<PathBuf>,
}

impl Place {
    pub(crate) fn base(&self) -> PathBuf {
        let base = runtime_dir::base(self.runtime_dir.as_deref());
        std::path::absolute(&base).unwrap_or(base)
    }
}

/// Does what the command line says.
///
/// # Errors
/// One sentence with what to do about it.
pub fn execute(device: &Device) -> anyhow::Result<ExitCode> {
    match &device.command {
        Command::Ls(ls) => list(ls)?,
        Command::Restart(restart) => {
            println!("{}", find(&restart.place.base(), &restart.vm)?.restart(&restart.device)?);
        }
        Command::Attach(attach) => {
            let mut backend = find(&attach.place.base(), &attach.vm)?;
            println!("{}", backend.attach(attach.pci, attach.name.as_deref(), attach.spare)?);
        }
        Command::Detach(detach) => {
            println!("{}", find(&detach.place.base(), &detach.vm)?.detach(&detach.device, detach.force)?);
        }
        Command::Swap(swap) => {
            let binary = swap.binary.as_deref().map(check_binary).transpose()?;
            let mut backend = find(&swap.place.base(), &swap.vm)?;
            println!("{}", backend.swap(&swap.device, binary.as_deref())?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(ls: &Ls) -> anyhow::Result<()> {
    let base = ls.place.base();
    let of = |vm: &str| {
        let mut backend = find(&base, vm)?;
        let mut rows = backend.list()?;
        if ls.stats {
            for row in &mut rows {
                let name = row.name.clone();
                row.disks = Some(stats::units(|question| backend.tell(&name, question)));
            }
        }
        Ok::<_, Error>((vm.to_owned(), rows))
    };
    let table = if ls.stats { table::of_disks } else { table };
    match &ls.vm {
        Some(vm) => {
            let found = of(vm)?;
            match ls.json {
                true => println!("{}", serde_json::to_string(&found.1)?),
                false => print!("{}", table(&[found], false)),
            }
        }
        None => {
            let found = all(&running(&base), of);
            match ls.json {
                true => println!("{}", serde_json::to_string(&documents(&found))?),
                false if found.is_empty() => println!("{}", nothing(&base)),
                false => print!("{}", table(&found, true)),
            }
        }
    }
    Ok(())
}

/// The devices of those VMs that answer: one may have ended since it was found.
fn all(names: &[String], of: impl Fn(&str) -> Result<(String, Vec<Row>), Error>) -> Vec<(String, Vec<Row>)> {
    let ask = |name: &String| match of(name) {
        Ok(found) => Some(found),
        Err(Error::NotRunning { .. } | Error::NoSuchVm { .. }) => None,
        Err(error) => {
            eprintln!("bulkhead: {error}");
            None
        }
    };
    names.iter().filter_map(ask).collect()
}

fn documents(found: &[(String, Vec<Row>)]) -> serde_json::Value {
    let document = |(vm, rows): &(String, Vec<Row>)| serde_json::json!({ "vm": vm, "devices": rows });
    found.iter().map(document).collect()
}

fn nothing(base: &Path) -> String {
    format!("no VM runs here (looked in {})", base.display())
}
