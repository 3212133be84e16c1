//! Bridges of the kernel, and what is plugged into them.
//!
//! Everything here says how things are to be; what is so already stays. It must never take an interface away from whoever made it: an
//! interface with addresses is not made a port, a bridge with ports is not removed.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::netlink::{self, CREATE, EXCLUSIVE, Netlink, Payload, attribute, attributes, number, text};

/// Messages (`linux/rtnetlink.h`).
const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
pub(super) const RTM_SETLINK: u16 = 19;
const RTM_GETADDR: u16 = 22;
/// Attributes of a link (`linux/if_link.h`).
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_VNET_HDR: u16 = 5;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;
/// `IFF_UP` and `IFF_LOWER_UP` (`linux/if.h`).
const UP: u32 = 1;
const LOWER_UP: u32 = 1 << 16;
/// Bytes of `struct ifinfomsg`.
pub(super) const LINK_HEADER: usize = 16;
/// `AF_INET6`, and the scope of addresses that every interface has (`RT_SCOPE_LINK`).
const INET6: u8 = 10;
const SCOPE_LINK: u8 = 253;

/// Why it was not done. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No rights.
    #[error("only root may change the network: try sudo")]
    Forbidden,
    /// There is no connection to the kernel's network.
    #[error("cannot ask the kernel: {0}")]
    Socket(std::io::Error),
    /// The kernel does not know of it.
    #[error(
        "this kernel cannot {what}: load the module {module} (sudo modprobe {module}), or take a kernel that has it"
    )]
    Unsupported {
        /// What was to be done.
        what: String,
        /// What it takes.
        module: &'static str,
    },
    /// The kernel says no.
    #[error("cannot {what}: {error}")]
    Refused {
        /// What was to be done.
        what: String,
        /// Why not.
        error: Errno,
    },
    /// A TAP.
    #[error(transparent)]
    Tap(#[from] super::tun::Error),
    /// Something else, in a sentence.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// What the kernel's `error` means for `what`, which takes `module`.
    pub(super) fn of(what: impl Into<String>, module: &'static str, error: Errno) -> Self {
        let what = what.into();
        match error {
            Errno::EPERM | Errno::EACCES => Self::Forbidden,
            Errno::EOPNOTSUPP => Self::Unsupported { what, module },
            error => Self::Refused { what, error },
        }
    }
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What made it: `bridge`, `tun`, `ifb`, ...; empty for hardware.
    pub kind: String,
    /// The bridge (or bond, ...) that it is a port of.
    pub master: Option<u32>,
    /// Its address.
    pub mac: String,
    /// It is switched on.
    pub is_up: bool,
    /// Somebody is at the other end: a TAP is open.
    pub has_carrier: bool,
    /// A bridge: it tells VLANs apart.
    pub filters_vlans: bool,
    /// A TAP, if it is one.
    pub tap: Option<Tap>,
}

/// What there is to know of a TAP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tap {
    /// The user who may open it besides root; `None`: everybody who can open `/dev/net/tun` (`tun_not_capable` in `drivers/net/tun.c`).
    pub owner: Option<u32>,
    /// It can have several queues.
    pub is_multi_queue: bool,
    /// Frames have a header for offloads.
    pub has_header: bool,
    /// Queues that are open, also those that their process has switched off (`TUNSETQUEUE`).
    pub queues: u32,
}

/// `struct ifinfomsg`.
pub(super) fn link_header(family: u8, index: u32, flags: u32, change: u32) -> Payload {
    let mut bytes = vec![family, 0, 0, 0];
    for word in [index, flags, change] {
        bytes.extend(word.to_ne_bytes());
    }
    Payload::new(&bytes)
}

/// The network, as the kernel has it.
#[derive(Debug)]
pub struct Network {
    pub(super) netlink: Netlink,
}

impl Network {
    /// That of the caller's network namespace.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { netlink: Netlink::new().map_err(Error::Socket)? })
    }

    /// Every interface, by number.
    pub fn links(&mut self) -> Result<BTreeMap<u32, Link>, Error> {
        let found = self.netlink.dump(RTM_GETLINK, &link_header(0, 0, 0, 0));
        let found = found.map_err(|error| Error::of("list the interfaces", "", error))?;
        let links = found.iter().filter_map(|(_, payload)| link(payload));
        Ok(links.map(|link| (link.index, link)).collect())
    }

    /// The interface with this name.
    pub fn find(&mut self, name: &str) -> Result<Option<Link>, Error> {
        Ok(self.links()?.into_values().find(|link| link.name == name))
    }

    /// Makes the interface `name` of that kind.
    pub(super) fn make(&mut self, name: &str, kind: &'static str, data: &Payload) -> Result<Link, Error> {
        let info = Payload::default().text(IFLA_INFO_KIND, kind).nest(IFLA_INFO_DATA, data);
        // As long as hardware's: an IFB's own queue of 32 frames is no queue.
        let message = link_header(0, 0, 0, 0)
            .text(IFLA_IFNAME, name)
            .number(IFLA_TXQLEN, 1000)
            .nest(IFLA_LINKINFO, &info);
        let made = self.netlink.order(RTM_NEWLINK, CREATE | EXCLUSIVE, &message);
        made.map_err(|error| Error::of(format!("make {name}"), kind, error))?;
        let gone = || Error::Other(format!("{name} was made and is gone again"));
        self.find(name)?.ok_or_else(gone)
    }

    /// Switches an interface on.
    pub(super) fn switch_on(&mut self, link: &Link) -> Result<bool, Error> {
        if link.is_up {
            return Ok(false);
        }
        let done = self.netlink.order(RTM_NEWLINK, 0, &link_header(0, link.index, UP, UP));
        done.map_err(|error| Error::of(format!("switch {} on", link.name), "", error))?;
        Ok(true)
    }

    /// Removes an interface.
    pub(super) fn remove(&mut self, link: &Link) -> Result<(), Error> {
        let done = self.netlink.order(RTM_DELLINK, 0, &link_header(0, link.index, 0, 0));
        done.map_err(|error| Error::of(format!("remove {}", link.name), "", error))
    }

    /// Plugs an interface into a bridge. `false`: it was in it.
    pub(super) fn plug(&mut self, port: &Link, bridge: &Link) -> Result<bool, Error> {
        if port.master == Some(bridge.index) {
            return Ok(false);
        }
        let message = link_header(0, port.index, 0, 0).number(IFLA_MASTER, bridge.index);
        let done = self.netlink.order(RTM_SETLINK, 0, &message);
        done.map_err(|error| Error::of(format!("plug {} into {}", port.name, bridge.name), "bridge", error))?;
        Ok(true)
    }

    /// A bridge that tells VLANs apart, switched on, with those interfaces as ports. What was changed, as sentences.
    pub fn bridge(&mut self, name: &str, uplinks: &[String]) -> Result<Vec<String>, Error> {
        let mut changes = Vec::new();
        let mut bridge = match self.find(name)? {
            Some(found) if found.kind != "bridge" => {
                return Err(Error::Other(format!("{name} is there, and no bridge: choose another name")));
            }
            Some(found) => found,
            None => {
                changes.push(format!("{name} was made"));
                self.make(name, "bridge", &Payload::default())?
            }
        };
        if !bridge.filters_vlans {
            let data = Payload::default().add(IFLA_BR_VLAN_FILTERING, &[1]);
            let info = Payload::default().text(IFLA_INFO_KIND, "bridge").nest(IFLA_INFO_DATA, &data);
            let message = link_header(0, bridge.index, 0, 0).nest(IFLA_LINKINFO, &info);
            match self.netlink.order(RTM_NEWLINK, 0, &message) {
                Ok(()) => changes.push(format!("{name} tells VLANs apart")),
                // A kernel without: said once, and where a VLAN is asked for.
                Err(Errno::EOPNOTSUPP) if changes.is_empty() => {}
                Err(Errno::EOPNOTSUPP) => {
                    changes.push(format!("{name} knows no VLANs: this kernel has none for bridges"))
                }
                Err(error) => {
                    return Err(Error::of(format!("have {name} tell VLANs apart"), "bridge", error));
                }
            }
            bridge.filters_vlans = true;
        }
        if self.switch_on(&bridge)? {
            changes.push(format!("{name} is up"));
        }
        for uplink in uplinks {
            let Some(link) = self.find(uplink)? else {
                return Err(Error::Other(format!("there is no interface {uplink}: see ip link")));
            };
            if let Some(master) = link.master.filter(|master| *master != bridge.index) {
                let links = self.links()?;
                let whose = links.get(&master).map_or("something else", |master| master.name.as_str());
                return Err(Error::Other(format!(
                    "{uplink} is a port of {whose} already: take it from there first (ip link set {uplink} nomaster), or name {whose}"
                )));
            }
            if link.master.is_none() && self.has_addresses(link.index)? {
                return Err(Error::Other(format!(
                    "{uplink} has addresses, and this host would be cut off from what they are for: give them to {name} first \
                     (ip address add ... dev {name}), and take them from {uplink}"
                )));
            }
            if self.plug(&link, &bridge)? {
                changes.push(format!("{uplink} is a port of {name}"));
            }
            self.switch_on(&link)?;
        }
        Ok(changes)
    }

    /// Removes a bridge that has no ports. `false`: there was none.
    pub fn remove_bridge(&mut self, name: &str) -> Result<bool, Error> {
        let links = self.links()?;
        let Some(bridge) = links.values().find(|link| link.name == name) else { return Ok(false) };
        if bridge.kind != "bridge" {
            return Err(Error::Other(format!("{name} is no bridge")));
        }
        let ports: Vec<&str> = ports(&links, bridge).map(|port| port.name.as_str()).collect();
        if !ports.is_empty() {
            return Err(Error::Other(format!(
                "{name} has ports: {}. Remove them first (bulkhead net port remove, or ip link set ... nomaster)",
                ports.join(", ")
            )));
        }
        self.remove(&bridge.clone())?;
        Ok(true)
    }

    /// Whether an interface has addresses beyond those that every interface has.
    fn has_addresses(&mut self, index: u32) -> Result<bool, Error> {
        // struct ifaddrmsg: family, prefix length, flags, scope, index
        let found = self.netlink.dump(RTM_GETADDR, &Payload::new(&[0; 8]));
        let found = found.map_err(|error| Error::of("list the addresses", "", error))?;
        Ok(found.iter().any(|(_, address)| {
            let is_its = address.get(4..).and_then(number) == Some(index);
            let everybody_has_it = address.first() == Some(&INET6) && address.get(3) == Some(&SCOPE_LINK);
            is_its && !everybody_has_it
        }))
    }
}

/// The ports of a bridge.
pub fn ports<'l>(links: &'l BTreeMap<u32, Link>, bridge: &Link) -> impl Iterator<Item = &'l Link> {
    let index = bridge.index;
    links.values().filter(move |link| link.master == Some(index))
}

/// What a message says of an interface.
fn link(payload: &[u8]) -> Option<Link> {
    let rest = payload.get(LINK_HEADER..)?;
    let flags = number(payload.get(8..)?)?;
    let mut link = Link { index: number(payload.get(4..)?)?, ..Link::default() };
    link.is_up = flags & UP != 0;
    link.has_carrier = flags & LOWER_UP != 0;
    for (kind, value) in attributes(rest) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_MASTER => link.master = number(value),
            IFLA_ADDRESS => {
                link.mac = value.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
            }
            IFLA_LINKINFO => {
                link.kind = attribute(value, IFLA_INFO_KIND).map(text).unwrap_or_default();
                let data = attribute(value, IFLA_INFO_DATA).unwrap_or_default();
                let flag = |kind| {
                    attribute(data, kind).and_then(|value| value.first()).is_some_and(|byte| *byte != 0)
                };
                link.filters_vlans = link.kind == "bridge" && flag(IFLA_BR_VLAN_FILTERING);
                // A TUN is no TAP: IFF_TAP is 2.
                let is_tap = attribute(data, IFLA_TUN_TYPE).and_then(|value| value.first()) == Some(&2);
                link.tap = (link.kind == "tun" && is_tap).then(|| Tap {
                    owner: attribute(data, IFLA_TUN_OWNER).and_then(netlink::number),
                    is_multi_queue: flag(IFLA_TUN_MULTI_QUEUE),
                    has_header: flag(IFLA_TUN_VNET_HDR),
                    queues: [IFLA_TUN_NUM_QUEUES, IFLA_TUN_NUM_DISABLED_QUEUES]
                        .iter()
                        .filter_map(|kind| attribute(data, *kind).and_then(netlink::number))
                        .sum(),
                });
            }
            _ => {}
        }
    }
    Some(link)
}
