//! The command line of `bulkhead net`, and what it does.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::bail;
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use ipc::config::CoreConfig;
use nix::unistd::User;
use serde_json::{Value, json};

use super::limit::Limit;
use super::port::{self, Port, Ranges};
use super::rate::Rate;
use super::switch::Network;
use super::{holder, ls};
use crate::device::command::Place;
use crate::device::{Error, find};
use crate::disk::words::Change;
use crate::disk::{persist, shown};
use crate::plan::link_word;
use crate::spec::net::interface_name;
use crate::spec::size;

/// What it is, in a line.
pub const ABOUT: &str = "Bridges and ports for NICs, their VLANs and limits; plugs cables in and out";

/// What it is.
pub const LONG_ABOUT: &str = "\
The switch of Bulkhead is the kernel's bridge: a NIC with tap = \"NAME\" is plugged into it by its TAP. These commands make bridges \
and TAPs, put them into VLANs and limit them; each says how things are to be, and what is so already stays. They last until the \
host boots. Making and changing takes root; looking does not.

link, pause, resume and show are about the NICs of running VMs, and are for root and for the user who runs the VM.";

/// Below its options.
pub const AFTER_HELP: &str = "\
Examples:
  sudo bulkhead net bridge add br0                        A bridge without a way out
  sudo bulkhead net bridge add br0 --uplink eth1 --capacity 1Gbit
  sudo bulkhead net port add tap0 --bridge br0 --owner $USER
  sudo bulkhead net port add tap0 --bridge br0 --vlan 10  Untagged in VLAN 10
  sudo bulkhead net port add tap0 --bridge br0 --trunk 10,20-30
  sudo bulkhead net limit tap0 --max 100Mbit --min 10Mbit
  sudo bulkhead net limit tap0 --none
  bulkhead net ls                                         All of it
  bulkhead net link debian nic0 down                      Pulls the cable";

const LS_LONG_ABOUT: &str = "\
Shows bridges and their ports, and TAPs that are in none:
  OWNER   Who may open the TAP besides root; anybody: any user of the host (not one that was made here)
  QUEUES  Those that are open now
  STATE   up, down (switched off), no-carrier (nobody has the TAP open)
  VLAN    The one of frames without a tag; after a +, those of frames with one
  MIN, MAX, BURST  What the port gets, see bulkhead net limit";

const BRIDGE_LONG_ABOUT: &str = "\
Makes a bridge that tells VLANs apart and switches it on; it has no address but the one for the link that the kernel gives it where \
IPv6 is on (fe80::...), by which guests can talk to this host. An uplink is an interface that connects it to \
the world; one that has addresses is refused, because the host would be cut off, and so is a port of another bridge.

With --capacity the uplink sends no more than that, and what is promised to ports (bulkhead net limit --min) is kept when it is full.";

const PORT_LONG_ABOUT: &str = "\
Makes a TAP that stays (until the host boots), with a header for offloads and as many queues as its NIC opens, and plugs it into a \
bridge. What is not said stays as it is.

--owner names the user who may open it: a name, a number, or VM:DEVICE for the user that `bulkhead units` has given the device. A new \
TAP without one is root's, which will do for a VM that root runs by `bulkhead run`.

--vlan is the VLAN of frames without a tag, --trunk those of frames with one. With --trunk alone, frames without a tag go \
nowhere. With neither, the port is in the bridge's default VLAN, 1.";

const LIMIT_LONG_ABOUT: &str = "\
Limits what goes through a port. --max holds in each direction: to the guest and from it. --min is what the port gets of the bridge's \
uplink even when that is full, and needs an uplink of a known capacity. --burst is how much may go through at once after a pause; if \
left out, a hundredth of a second's worth, 128 KiB at least. A packet scheduler that somebody else has set up is left alone, and the \
command refused.

Every call says all of it: what is left out is no limit any more.";

/// `bulkhead net`.
#[derive(Debug, Args)]
pub struct Net {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(about = "Shows bridges and ports", long_about = LS_LONG_ABOUT)]
    /// Shows bridges and ports.
    Ls(Ls),
    #[command(about = "Makes and removes bridges")]
    /// Bridges.
    Bridge(Bridge),
    #[command(about = "Makes, changes and removes ports for NICs")]
    /// Ports.
    Port(PortArgs),
    #[command(about = "Limits what goes through a port", long_about = LIMIT_LONG_ABOUT)]
    /// Limits.
    Limit(LimitArgs),
    #[command(about = "Plugs the cable of a running VM's NIC in or out")]
    /// The state of a NIC's cable.
    Link(LinkArgs),
    #[command(about = "Has a running VM's NIC keep still: what is sent to it waits, what it sends is lost")]
    /// Keep still.
    Pause(Nic),
    #[command(about = "Has a NIC go on that keeps still")]
    /// Go on.
    Resume(Nic),
    #[command(about = "Shows what a running VM's NIC does, in its process's own figures")]
    /// Figures.
    Show(Nic),
    #[command(hide = true)]
    /// Keeps what a NIC is connected to, for systemd.
    Hold(holder::Hold),
}

/// `bulkhead net ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// One JSON array of ports; rates in bits a second
    #[arg(long)]
    pub json: bool,
}

/// `bulkhead net bridge`.
#[derive(Debug, Args)]
pub struct Bridge {
    /// What to do.
    #[command(subcommand)]
    pub command: BridgeCommand,
}

/// What to do about a bridge.
#[derive(Debug, Subcommand)]
pub enum BridgeCommand {
    #[command(about = "Makes a bridge what it is to be", long_about = BRIDGE_LONG_ABOUT)]
    /// Makes it.
    Add {
        /// The bridge
        #[arg(value_name = "BRIDGE", value_parser = interface)]
        name: String,
        /// An interface that connects it to the world
        #[arg(long, value_name = "INTERFACE", value_parser = interface)]
        uplink: Option<String>,
        /// What the uplink carries, such as 1Gbit
        #[arg(long, value_name = "RATE", requires = "uplink")]
        capacity: Option<Rate>,
    },
    #[command(about = "Removes a bridge that has no ports")]
    /// Removes it.
    Remove {
        /// The bridge
        #[arg(value_name = "BRIDGE", value_parser = interface)]
        name: String,
    },
}

/// `bulkhead net port`.
#[derive(Debug, Args)]
pub struct PortArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: PortCommand,
}

/// What to do about a port.
#[derive(Debug, Subcommand)]
pub enum PortCommand {
    #[command(about = "Makes a port what it is to be", long_about = PORT_LONG_ABOUT)]
    /// Makes it.
    Add {
        /// The TAP
        #[arg(value_name = "PORT", value_parser = interface)]
        name: String,
        /// The bridge that it is plugged into
        #[arg(long, value_name = "BRIDGE", value_parser = interface)]
        bridge: Option<String>,
        /// Who may open it: a user, a number, or VM:DEVICE
        #[arg(long, value_name = "USER")]
        owner: Option<String>,
        /// The VLAN of frames without a tag
        #[arg(long, value_name = "VLAN", value_parser = port::vlan)]
        vlan: Option<u16>,
        /// VLANs of frames with a tag, such as 10,20-30
        #[arg(long, value_name = "VLANS")]
        trunk: Option<Ranges>,
    },
    #[command(about = "Removes a port with its limits")]
    /// Removes it.
    Remove {
        /// The TAP
        #[arg(value_name = "PORT", value_parser = interface)]
        name: String,
    },
}

/// `bulkhead net limit`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("limits").required(true).multiple(true).args(["max", "min", "none"]))]
pub struct LimitArgs {
    /// The port
    #[arg(value_name = "PORT", value_parser = interface)]
    pub port: String,

    /// At most that much in each direction, such as 100Mbit
    #[arg(long, value_name = "RATE")]
    pub max: Option<Rate>,

    /// At least that much of the bridge's uplink
    #[arg(long, value_name = "RATE")]
    pub min: Option<Rate>,

    /// How much may go through at once, such as 256KiB
    #[arg(long, value_name = "SIZE", value_parser = burst, requires = "max")]
    pub burst: Option<u64>,

    /// No limit
    #[arg(long, conflicts_with_all = ["max", "min", "burst"])]
    pub none: bool,
}

/// A NIC of a running VM.
#[derive(Debug, Args)]
pub struct Nic {
    /// The VM's name
    #[arg(value_name = "VM")]
    pub vm: String,

    /// The NIC's name in its spec
    #[arg(value_name = "DEVICE")]
    pub device: String,

    /// Where to look.
    #[command(flatten)]
    pub place: Place,
}

/// `bulkhead net link`.
#[derive(Debug, Args)]
pub struct LinkArgs {
    /// Of which NIC.
    #[command(flatten)]
    pub nic: Nic,

    /// In or out
    #[arg(value_name = "STATE")]
    pub state: State,
}

/// The state of a cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// Plugged in
    Up,
    /// Pulled out
    Down,
}

fn interface(text: &str) -> Result<String, String> {
    interface_name(text).map_or_else(|| Ok(text.to_owned()), |problem| Err(format!("the name {problem}")))
}

fn burst(text: &str) -> Result<u64, String> {
    // Less than two packets is no burst: nothing would go through at the rate.
    match size::parse(text) {
        Ok(bytes @ 4096..=0x4000_0000) => Ok(bytes),
        Ok(_) => Err("use 4KiB to 1GiB".to_owned()),
        Err(bad) => Err(format!("{}: {}", bad.why, bad.fix)),
    }
}

/// Does what the command line says.
///
/// # Errors
/// One sentence with what to do about it.
pub fn execute(net: &Net) -> anyhow::Result<ExitCode> {
    match &net.command {
        Command::Ls(options) => ls::list(options.json)?,
        Command::Bridge(bridge) => change_bridge(&bridge.command)?,
        Command::Port(port) => change_port(&port.command)?,
        Command::Limit(limit) => {
            let wanted = Limit { min: limit.min, max: limit.max, burst: limit.burst };
            tell(&Network::new()?.limit(&limit.port, wanted)?);
        }
        Command::Link(link) => println!("{}", plug(&link.nic, link.state == State::Up)?),
        Command::Pause(nic) => {
            ask(nic, &json!({ "pause": {} }))?;
            println!("{} keeps still until bulkhead net resume {} {}", nic.device, nic.vm, nic.device);
        }
        Command::Resume(nic) => {
            ask(nic, &json!({ "resume": {} }))?;
            println!("{} goes on", nic.device);
        }
        Command::Show(nic) => show(&ask(nic, &json!({ "stats": {} }))?),
        Command::Hold(hold) => holder::execute(hold)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(changes: &[String]) {
    match changes {
        [] => println!("as it was"),
        changes => changes.iter().for_each(|change| println!("{change}")),
    }
}

fn change_bridge(command: &BridgeCommand) -> anyhow::Result<()> {
    let mut network = Network::new()?;
    match command {
        BridgeCommand::Add { name, uplink, capacity } => {
            let mut changes = network.bridge(name, uplink.as_slice())?;
            if let (Some(uplink), Some(capacity)) = (uplink, capacity) {
                changes.extend(network.capacity(uplink, *capacity)?);
            }
            tell(&changes);
        }
        BridgeCommand::Remove { name } => {
            let was_there = network.remove_bridge(name)?;
            println!("{name} {}", if was_there { "was removed" } else { "was not there" });
        }
    }
    Ok(())
}

fn change_port(command: &PortCommand) -> anyhow::Result<()> {
    let mut network = Network::new()?;
    match command {
        PortCommand::Add { name, bridge, owner, vlan, trunk } => {
            let owner = owner.as_deref().map(user).transpose()?;
            let (name, bridge, trunk) = (name.clone(), bridge.clone(), trunk.clone());
            tell(&network.port(&Port { name, bridge, owner, access: *vlan, trunk })?);
        }
        PortCommand::Remove { name } => {
            let was_there = network.remove_port(name)?;
            println!("{name} {}", if was_there { "was removed" } else { "was not there" });
        }
    }
    Ok(())
}

/// The number of a user: named, numbered, or that of a device of a VM that systemd runs.
fn user(text: &str) -> anyhow::Result<u32> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    if let Some((vm, device)) = text.split_once(':') {
        let path = format!("/etc/bulkhead/{vm}/core.json");
        let config: Option<CoreConfig> =
            std::fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str(&text).ok());
        let Some(config) = config else {
            bail!(
                "there are no units of a VM {vm} (cannot read {path}): write them first, with bulkhead units"
            );
        };
        let found = config.devices.iter().find(|slot| slot.name == device).and_then(|slot| slot.uid);
        return found.ok_or_else(|| anyhow::anyhow!("VM {vm} has no device {device} with a user of its own"));
    }
    match User::from_name(text)? {
        Some(user) => Ok(user.uid.as_raw()),
        None => bail!("there is no user {text} here: give another name, a number, or VM:DEVICE"),
    }
}

/// Plugs the cable in or out: of every later process, and of the one that serves.
fn plug(nic: &Nic, is_up: bool) -> Result<String, Error> {
    let change = Change::Link { up: is_up };
    let payload = json!({ "link": link_word(is_up) }).to_string();
    let mut backend = find(&nic.place.base(), &nic.vm)?;
    persist(|| backend.change(&nic.device, &change, &payload, Vec::new()))?;
    Ok(format!("{}: the link is {}", nic.device, link_word(is_up)))
}

/// Says something to the process that serves a NIC; its answer.
fn ask(nic: &Nic, question: &Value) -> Result<String, Error> {
    let mut backend = find(&nic.place.base(), &nic.vm)?;
    persist(|| backend.tell(&nic.device, &question.to_string()))
}

/// What a process says of itself: shown, never acted upon.
fn show(answer: &str) {
    let Ok(figures) = serde_json::from_str::<BTreeMap<String, Value>>(answer) else {
        return println!("{}", shown(answer));
    };
    let width = figures.keys().map(|name| name.chars().count()).max().unwrap_or(0).min(40);
    for (name, value) in figures {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        println!("{:width$}  {}", shown(&name), shown(&value));
    }
}

#[cfg(test)]
mod tests;
