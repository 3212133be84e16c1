//! The command line of `bulkhead pci`, and what it does.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use nix::unistd::{User, chown};

use super::bind::{self, Done};
use super::function::Function;
use super::host::Host;
use super::{Address, ls};

/// What it is, in a line.
pub const ABOUT: &str = "Lists PCI devices of this host, and takes them from it for VMs";

/// What it is.
pub const LONG_ABOUT: &str = "\
A VM can have a PCI device of its host as its own ([[pci]] in its spec, or bulkhead device attach): its guest drives it with the \
driver that it has for it, at its own speed. The host's IOMMU keeps the device from all memory but the guest's. For that the device has to \
belong to nobody else: the host's driver gives it up (bind), and gets it back afterwards (unbind).

Devices that the IOMMU cannot tell apart are of one group, and go together.";

/// Below its options.
pub const AFTER_HELP: &str = "\
Examples:
  bulkhead pci ls                          Every device, and what stands in its way
  sudo bulkhead pci bind 0000:03:00.0      The host gives it up
  sudo bulkhead pci bind --owner $USER 03:00.0    And this user's VMs can have it
  bulkhead device attach debian --pci 0000:03:00.0
  sudo bulkhead pci unbind 0000:03:00.0    The host has it again";

const LS_ABOUT: &str = "Shows PCI devices, whose they are, and whether a VM can have them";

const LS_LONG_ABOUT: &str = "\
Shows a line for each PCI device of this host:
  CLASS, ID   What it is, and its numbers of vendor and device
  GROUP       Its IOMMU group, and how many others are in it
  DRIVER      Who has it; vfio-pci: it is bound, and waits for a VM or is a VM's
  ASSIGNABLE  Whether a VM can have it; if not, what stands in the way, and what to
              do about it

Some of what stands in the way only root can see: whether the device has message interrupts, and whether a VM has it.";

const BIND_ABOUT: &str = "Takes a device from the host, for VMs";

const BIND_LONG_ABOUT: &str = "\
Takes a device from its driver and gives it to vfio-pci, until it is unbound or the host boots. Refused, with the reason, if the host \
works with it (an interface with addresses, a disk that is mounted), if it could not be confined (no IOMMU, another \
device of its group is the host's), or if it cannot be reset. A device that is bound already stays so.

Where the kernel can reset it in several ways, it does so by the bus before it does by power states (and by the function itself before both): not \
every device forgets its last user by power states.";

const UNBIND_ABOUT: &str = "Gives a device back to the host";

const UNBIND_LONG_ABOUT: &str = "\
Gives a device back to the driver that the host has for it. Refused while a VM has it.";

/// `bulkhead pci`.
#[derive(Debug, Args)]
pub struct Pci {
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
    #[command(about = BIND_ABOUT, long_about = BIND_LONG_ABOUT)]
    /// Takes one from the host.
    Bind(Bind),
    #[command(about = UNBIND_ABOUT, long_about = UNBIND_LONG_ABOUT)]
    /// Gives one back.
    Unbind(Unbind),
}

/// `bulkhead pci ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// Only those that a VM can have, at most with the rest of their group
    #[arg(long)]
    pub assignable: bool,

    /// One JSON array
    #[arg(long)]
    pub json: bool,
}

/// `bulkhead pci bind`.
#[derive(Debug, Args)]
pub struct Bind {
    /// The device, as bulkhead pci ls and lspci show it
    #[arg(value_name = "ADDRESS")]
    pub address: Address,

    /// The rest of its IOMMU group, too
    #[arg(long)]
    pub group: bool,

    /// Whose VMs can have it besides root's
    #[arg(long, value_name = "USER")]
    pub owner: Option<String>,
}

/// `bulkhead pci unbind`.
#[derive(Debug, Args)]
pub struct Unbind {
    /// The device, as bulkhead pci ls and lspci show it
    #[arg(value_name = "ADDRESS")]
    pub address: Address,

    /// The rest of its IOMMU group, too
    #[arg(long)]
    pub group: bool,
}

/// Does what the command line says.
///
/// # Errors
/// One sentence with what to do about it.
pub fn execute(pci: &Pci) -> anyhow::Result<ExitCode> {
    let host = Host::this();
    match &pci.command {
        Command::Ls(options) => {
            let lines = ls::lines(&host, options.assignable);
            match options.json {
                true => println!("{}", serde_json::to_string(&ls::documents(&lines))?),
                false if lines.is_empty() => println!("{}", nothing(options.assignable)),
                false => print!("{}", ls::table(&lines)),
            }
        }
        Command::Bind(options) => {
            let owner = options.owner.as_deref().map(user).transpose()?;
            tell(options.address, &bind::bind(&host, options.address, options.group)?);
            if let Some(owner) = owner {
                give_nodes(&host, options.address, &owner)?;
            }
        }
        Command::Unbind(options) => {
            tell(options.address, &bind::unbind(&host, options.address, options.group)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn nothing(assignable: bool) -> &'static str {
    match assignable {
        true => "no PCI device of this host can be a VM's: bulkhead pci ls says of each why",
        false => "this host has no PCI devices",
    }
}

fn tell(address: Address, done: &[Done]) {
    for Done { address, before, after } in done {
        let name = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "none".to_owned());
        println!("{address}: driver {} (was {})", name(after), name(before));
    }
    if done.is_empty() {
        println!("{address}: as it was");
    }
}

fn user(name: &str) -> anyhow::Result<User> {
    let found = match name.parse::<u32>() {
        Ok(number) => User::from_uid(number.into()),
        Err(_) => User::from_name(name),
    };
    found.ok().flatten().with_context(|| format!("there is no user {name}"))
}

/// Makes the nodes by which a device is had a user's: its group's, and its own where the kernel has such.
fn give_nodes(host: &Host, address: Address, owner: &User) -> anyhow::Result<()> {
    let Some(function) = Function::find(host, address) else { bail!("{address} is gone") };
    let nodes = [function.node(), function.own_node(host)].into_iter().flatten();
    let there: Vec<_> = nodes.map(|node| host.path(node)).filter(|node| node.exists()).collect();
    if there.is_empty() {
        bail!("{address} has no node below /dev/vfio: is the module vfio-pci loaded, and devtmpfs mounted?");
    }
    for node in there {
        chown(&node, Some(owner.uid), Some(owner.gid))
            .with_context(|| format!("cannot make {} {}'s", node.display(), owner.name))?;
        println!("{}: {}'s", node.display(), owner.name);
    }
    Ok(())
}
