//! The `[[net]]` sections of a spec: NICs, and what is at the other end of their cable.
//!
//! Whether a TAP is there is looked up here, as a file is for a disk; it must never be opened here.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use super::reader::{Located, Section, Shape, closest};
use super::{HOMES, Loader, MOST_DEVICES};
use crate::net::switch::{Link, Network};

pub(super) const NET: Shape = Shape {
    title: "[[net]]",
    keys: &[
        "name",
        "mac",
        "backend",
        "tap",
        "macvtap",
        "queues",
        "memory",
        "antispoof",
        "mtu",
        "link",
        "spare",
    ],
};

/// What a guest may set its MTU to: IPv4's least, and what `vsp-net` has room for.
pub const MTUS: std::ops::RangeInclusive<u64> = 68..=9000;
/// Ethernet's own.
const DEFAULT_MTU: u16 = 1500;
/// Queues of a NIC: a descriptor each, which go to a process in one message (`ipc::socket::MAX_FDS`).
const QUEUES: std::ops::RangeInclusive<u64> = 1..=8;
/// Queues that a NIC on a TAP gets if nothing is said: as many as processors, up to this.
const USUAL_QUEUES: u32 = 8;
/// Longest name of a network interface (`IFNAMSIZ` less the final zero).
const LONGEST_INTERFACE: usize = 15;

/// One NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// Its name, `[a-z0-9-]`.
    pub name: String,
    /// Its address; `None`: made of the names of the VM and the device.
    pub mac: Option<Mac>,
    /// The other end of the cable.
    pub backend: Backend,
    /// Queues: channels to the guest, and queues of a TAP.
    pub queues: u32,
    /// How much of the guest's memory its process can reach.
    pub memory: Exposure,
    /// Frames of another sender than its own address are dropped.
    pub antispoof: bool,
    /// The largest MTU.
    pub mtu: u16,
    /// Whether the cable is plugged in at the start.
    pub link: bool,
    /// A second process stands by to take over.
    pub spare: bool,
}

/// What a NIC is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A `passt` of its own.
    Passt,
    /// The TAP interface with this name.
    Tap(String),
    /// The macvtap interface with this name.
    Macvtap(String),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passt => f.write_str("passt"),
            Self::Tap(name) => write!(f, "tap {name}"),
            Self::Macvtap(name) => write!(f, "macvtap {name}"),
        }
    }
}

/// How much of the guest's memory the process of a NIC can reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exposure {
    /// Its rings and the NIC's two buffers.
    #[default]
    Confined,
    /// All of it.
    Full,
}

impl Exposure {
    const ALL: [(&'static str, Self); 2] = [("confined", Self::Confined), ("full", Self::Full)];

    /// As people write it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, exposure)| *exposure == self).map_or("", |(name, _)| name)
    }
}

/// An Ethernet address of one station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    /// The rest of a sentence, and the remedy.
    type Err = (String, String);

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXAMPLE: &str = "write six bytes, such as \"02:00:00:12:34:56\"";
        let parts: Vec<&str> = text.split([':', '-']).collect();
        let byte = |part: &&str| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten();
        let bytes: Option<Vec<u8>> = parts.iter().map(byte).collect();
        let Some(Ok(mac)) = bytes.map(<[u8; 6]>::try_from) else {
            return Err((format!("is no Ethernet address: \"{text}\""), EXAMPLE.to_owned()));
        };
        if mac == [0; 6] {
            return Err(("is all zeros, which no station has".to_owned(), EXAMPLE.to_owned()));
        }
        if mac[0] & 1 != 0 {
            let single = Mac([mac[0] & 0xfe | 2, mac[1], mac[2], mac[3], mac[4], mac[5]]);
            let message = "is a group's address, which no station has".to_owned();
            return Err((message, format!("make its first byte even: \"{single}\"")));
        }
        Ok(Mac(mac))
    }
}

impl Loader<'_> {
    /// Every NIC; `None` if anything is wrong with one. `names` are those of the devices before them, `vcpus` the VM's processors.
    pub(super) fn net(
        &mut self,
        top: &Section<'_, '_>,
        vcpus: u32,
        names: &mut HashMap<String, usize>,
    ) -> Option<Vec<Net>> {
        let nics = top.tables("net", "[[net]]", self.report);
        let before = names.len();
        // Each of them may need a second user, for what is at the other end.
        if !nics.is_empty() && before + 2 * nics.len() > MOST_DEVICES {
            let message =
                format!("{} devices and {} NICs are more than one VM has users for", before, nics.len());
            self.report.error(nics[0].1.clone(), message, "put several disks on one controller");
            return None;
        }
        // Who cannot ask the kernel will hear of it when a TAP is opened.
        let links = || Network::new().and_then(|mut network| network.links()).unwrap_or_default();
        let links: Vec<Link> = if nics.is_empty() { Vec::new() } else { links().into_values().collect() };
        let mut all = Some(Vec::new());
        let mut taken: HashMap<Mac, String> = HashMap::new();
        let mut taps: HashMap<String, String> = HashMap::new();
        for (number, (table, span)) in nics.into_iter().enumerate() {
            let section = Section::new(table, &NET, Some(span), &HOMES, self.report);
            let errors = self.report.errors();
            let name = self.name(&section, "name", &format!("name = \"nic{number}\""));
            if let Some(name) = &name {
                self.device_name(name, before + number, "nic", names);
            }
            let shown = name.as_ref().map_or_else(|| format!("nic{number}"), |name| name.value.clone());
            let backend = self.backend(&section, &shown, &mut taps);
            let found = self.interface(backend.as_ref(), &links);
            let own = backend.as_ref().and_then(|backend| own_address(&links, &backend.value));
            let mac = self.mac(&section, &shown, own, &mut taken);
            let queues = self.queues(&section, backend.as_ref(), found, vcpus);
            let memory = self.exposure(&section);
            let antispoof = section.boolean("antispoof", false, self.report);
            let mtu = section.integer("mtu", MTUS, self.report);
            let mtu = mtu.and_then(|mtu| u16::try_from(mtu.value).ok()).unwrap_or(DEFAULT_MTU);
            let link = self.link(&section);
            let spare = section.boolean("spare", false, self.report);
            match (name, backend, &mut all) {
                (Some(name), Some(backend), Some(nics)) if self.report.errors() == errors => {
                    let backend = backend.value;
                    nics.push(Net {
                        name: name.value,
                        mac,
                        backend,
                        queues,
                        memory,
                        antispoof,
                        mtu,
                        link,
                        spare,
                    });
                }
                _ => all = None,
            }
        }
        all
    }

    /// What the NIC is connected to, from three keys of which at most one is there.
    fn backend(
        &mut self,
        section: &Section<'_, '_>,
        nic: &str,
        taps: &mut HashMap<String, String>,
    ) -> Option<Located<Backend>> {
        let backend = section.string("backend", self.report);
        let (tap, macvtap) = (section.string("tap", self.report), section.string("macvtap", self.report));
        if section.has("tap") && section.has("macvtap")
            || section.has("backend") && (tap.is_some() || macvtap.is_some())
        {
            let span = macvtap.or(tap).map(|name| name.span);
            let message = "a NIC has one other end: `backend`, `tap` or `macvtap`";
            self.report.error(span, message, "keep one of them");
            return None;
        }
        if let Some(backend) = backend {
            if backend.value == "passt" {
                return Some(backend.map(|_| Backend::Passt));
            }
            let fix = match backend.value.as_str() {
                "tap" => "write tap = \"tap0\" instead, with the name of the TAP".to_owned(),
                "macvtap" => "write macvtap = \"macvtap0\" instead, with the name of the macvtap".to_owned(),
                _ => "write \"passt\", or leave it out; or name a TAP: tap = \"tap0\"".to_owned(),
            };
            self.report.error(backend.span, format!("`backend` cannot be \"{}\"", backend.value), fix);
            return None;
        }
        let wrong = section.has("tap") || section.has("macvtap") || section.has("backend");
        let (key, name, make): (_, _, fn(String) -> Backend) = match (tap, macvtap) {
            (Some(name), _) => ("tap", name, Backend::Tap),
            (_, Some(name)) => ("macvtap", name, Backend::Macvtap),
            (None, None) if wrong => return None,
            (None, None) => {
                let span = section.span.clone().unwrap_or_default();
                return Some(Located { value: Backend::Passt, span });
            }
        };
        if let Some(problem) = interface_name(&name.value) {
            let fix = format!("use up to {LONGEST_INTERFACE} letters, digits, `-`, `_` and `.`");
            self.report.error(name.span, format!("`{key}` {problem}"), fix);
            return None;
        }
        if let Some(other) = taps.insert(name.value.clone(), nic.to_owned()) {
            let message = format!("{} is at the end of {other} already", name.value);
            self.report.error(name.span, message, "give each NIC an interface of its own");
            return None;
        }
        Some(name.map(make))
    }

    /// Looks at the interface, if it can be there by now: its queues are as many as wanted (`true`), or one.
    fn interface(&mut self, backend: Option<&Located<Backend>>, links: &[Link]) -> Option<bool> {
        let backend = backend?;
        let (key, name) = match &backend.value {
            Backend::Passt => return None,
            Backend::Tap(name) => ("tap", name),
            Backend::Macvtap(name) => ("macvtap", name),
        };
        // Units are written before the VM's users are there, and so before its TAPs; perhaps for another host.
        if self.host.disks_in_use || links.is_empty() {
            return None;
        }
        match examine(links, &backend.value) {
            Ok(multi_queue) => multi_queue,
            Err((what, fix)) => {
                self.report.error(backend.span.clone(), format!("the {key} {name} {what}"), fix);
                None
            }
        }
    }

    fn mac(
        &mut self,
        section: &Section<'_, '_>,
        nic: &str,
        own: Option<Mac>,
        taken: &mut HashMap<Mac, String>,
    ) -> Option<Mac> {
        let given = section.string("mac", self.report);
        let Some(Located { value: text, span }) = given else {
            return if section.has("mac") { None } else { own };
        };
        let mac: Mac = match text.parse() {
            Ok(mac) => mac,
            Err((problem, fix)) => {
                self.report.error(span, format!("`mac` {problem}"), fix);
                return None;
            }
        };
        if let Some(other) = taken.insert(mac, nic.to_owned()) {
            let message = format!("{mac} is the address of {other} already");
            self.report.error(span, message, "give each NIC an address of its own, or leave `mac` out");
        } else if let Some(own) = own.filter(|own| *own != mac) {
            let message = format!("a macvtap passes on what is for its own address, {own}, and nothing else");
            self.report.error(
                span,
                message,
                "leave `mac` out, or change the macvtap's (ip link set address)",
            );
        }
        Some(mac)
    }

    fn queues(
        &mut self,
        section: &Section<'_, '_>,
        backend: Option<&Located<Backend>>,
        multi_queue: Option<bool>,
        vcpus: u32,
    ) -> u32 {
        let given = section.integer("queues", QUEUES, self.report);
        let Some(Located { value, span }) = given else {
            return match (backend.map(|backend| &backend.value), multi_queue) {
                (Some(Backend::Tap(_)), None | Some(true)) => vcpus.clamp(1, USUAL_QUEUES),
                _ => 1,
            };
        };
        let queues = u32::try_from(value).unwrap_or(1);
        if queues > vcpus {
            let message = format!("{queues} queues are more than the VM has processors ({vcpus})");
            self.report.error(span, message, format!("write queues = {vcpus}, or leave it out"));
        } else if let (2.., Some(false), Some(backend)) = (queues, multi_queue, backend) {
            let message = format!("the {} was made for one queue", backend.value);
            let fix = "make it anew (bulkhead net port remove, add), or write queues = 1";
            self.report.error(span, message, fix);
        }
        queues
    }

    fn exposure(&mut self, section: &Section<'_, '_>) -> Exposure {
        let Some(memory) = section.string("memory", self.report) else { return Exposure::default() };
        let found = Exposure::ALL.iter().find(|(name, _)| *name == memory.value);
        found.map_or_else(
            || {
                let fix = "write \"confined\" (its rings and buffers) or \"full\" (all guest memory)";
                self.report.error(memory.span, format!("`memory` cannot be \"{}\"", memory.value), fix);
                Exposure::default()
            },
            |(_, exposure)| *exposure,
        )
    }

    fn link(&mut self, section: &Section<'_, '_>) -> bool {
        let Some(link) = section.string("link", self.report) else { return true };
        match link.value.as_str() {
            "up" => true,
            "down" => false,
            other => {
                self.report.error(
                    link.span,
                    format!("`link` cannot be \"{other}\""),
                    "write \"up\" or \"down\"",
                );
                true
            }
        }
    }
}

/// What is wrong with the name of an interface, as the rest of a sentence.
pub(crate) fn interface_name(name: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name == "." || name == ".." {
        Some("is no name of an interface".to_owned())
    } else if name.starts_with('-') {
        Some("may not begin with '-', which is for options".to_owned())
    } else if let Some(bad) = name.chars().find(|c| !allowed(*c)) {
        Some(format!("may not contain {bad:?}"))
    } else if name.len() > LONGEST_INTERFACE {
        Some(format!("is longer than {LONGEST_INTERFACE} characters"))
    } else {
        None
    }
}

/// Whether the interface of `backend` can have several queues, if that can be seen. Else what is wrong with it, and the fix. `links` are
/// the interfaces of this host.
pub(super) fn examine(links: &[Link], backend: &Backend) -> Result<Option<bool>, (String, String)> {
    let (name, is_macvtap) = match backend {
        Backend::Passt => return Ok(None),
        Backend::Tap(name) => (name, false),
        Backend::Macvtap(name) => (name, true),
    };
    let Some(link) = links.iter().find(|link| link.name == *name) else {
        let make = if is_macvtap {
            format!("make it: sudo ip link add link eth0 name {name} type macvtap mode bridge")
        } else {
            format!("make it: sudo bulkhead net port add {name} --bridge br0 --owner $USER")
        };
        let is_like = |link: &&Link| if is_macvtap { link.kind == MACVTAP } else { link.tap.is_some() };
        let others: Vec<&str> = links.iter().filter(is_like).map(|link| link.name.as_str()).collect();
        let fix = closest(name, &others).map_or(make, |near| format!("did you mean \"{near}\"?"));
        return Err(("does not exist".to_owned(), fix));
    };
    match (is_macvtap, link.kind.as_str(), &link.tap) {
        (true, MACVTAP, _) => Ok(None),
        (true, ..) => Err(("is no macvtap".to_owned(), format!("write tap = \"{name}\" if it is a TAP"))),
        (false, MACVTAP, _) => Err(("is a macvtap".to_owned(), format!("write macvtap = \"{name}\""))),
        (false, _, Some(tap)) => Ok(Some(tap.is_multi_queue)),
        (false, ..) => {
            Err(("is no TAP".to_owned(), "name a TAP; bulkhead net port add makes one".to_owned()))
        }
    }
}

/// What the kernel calls it.
const MACVTAP: &str = "macvtap";

/// The address that the guest has to have: a macvtap's own.
pub(super) fn own_address(links: &[Link], backend: &Backend) -> Option<Mac> {
    let Backend::Macvtap(name) = backend else { return None };
    links.iter().find(|link| link.name == *name)?.mac.parse().ok()
}
