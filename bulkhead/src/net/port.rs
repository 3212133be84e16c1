//! Ports of a bridge for NICs: TAPs that stay, whose they are, and which VLANs they are in.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use nix::errno::Errno;

use super::limit;
use super::netlink::{Payload, attribute, attributes};
use super::switch::{Error, LINK_HEADER, Link, Network, RTM_DELLINK, RTM_SETLINK, link_header};
use super::tun;

/// `AF_BRIDGE`: what a bridge knows of its ports.
const BRIDGE: u8 = 7;
const RTM_GETLINK: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_EXT_MASK: u16 = 29;
/// One entry a VLAN, ranges not put together (`RTEXT_FILTER_BRVLAN`).
const EACH_VLAN: u32 = 2;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
/// Flags of `struct bridge_vlan_info`: frames without a tag are of this VLAN; its frames leave without a tag.
const PVID: u16 = 2;
const UNTAGGED: u16 = 4;
/// VLANs that there are (0 and 4095 have other meanings, IEEE 802.1Q 9.6).
const VLANS: std::ops::RangeInclusive<u16> = 1..=4094;

/// VLANs of a port, each with its flags.
pub type Vlans = BTreeMap<u16, u16>;

/// A list of VLANs, as people write it: `10,20-30`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(pub Vec<u16>);

impl FromStr for Ranges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (vlan(first)?, vlan(last)?);
            if first > last {
                return Err(format!("`{part}` runs backwards: write {last}-{first}"));
            }
            all.extend(first..=last);
        }
        all.sort_unstable();
        all.dedup();
        Ok(Self(all))
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = left.next() {
            let mut last = first;
            while let Some(next) = left.next_if(|next| *next == last + 1) {
                last = next;
            }
            write!(f, "{comma}{first}")?;
            if last != first {
                write!(f, "-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

/// The number of a VLAN.
pub fn vlan(text: &str) -> Result<u16, String> {
    let number = text.trim().parse().ok().filter(|vlan| VLANS.contains(vlan));
    number.ok_or_else(|| format!("`{text}` is no VLAN: use {} to {}", VLANS.start(), VLANS.end()))
}

/// How a port is to be. What is `None` or empty stays as it is, or as a bridge makes it.
#[derive(Clone, Debug, Default)]
pub struct Port {
    /// The TAP.
    pub name: String,
    /// The bridge.
    pub bridge: Option<String>,
    /// The user who may open it.
    pub owner: Option<u32>,
    /// The VLAN of frames without a tag.
    pub access: Option<u16>,
    /// VLANs of frames with one.
    pub trunk: Option<Ranges>,
}

impl Port {
    /// The VLANs that it is to have; `None`: nothing is said.
    fn vlans(&self) -> Option<Vlans> {
        if self.access.is_none() && self.trunk.is_none() {
            return None;
        }
        let tagged = self.trunk.iter().flat_map(|ranges| ranges.0.iter()).map(|vlan| (*vlan, 0));
        // Last: a VLAN that is named twice is the untagged one.
        Some(tagged.chain(self.access.map(|vlan| (vlan, PVID | UNTAGGED))).collect())
    }
}

impl Network {
    /// Makes a port what it is to be. What was changed, as sentences.
    pub fn port(&mut self, port: &Port) -> Result<Vec<String>, Error> {
        let name = &port.name;
        let mut changes = Vec::new();
        let bridge = match &port.bridge {
            None => None,
            Some(bridge) => match self.find(bridge)? {
                Some(found) if found.kind == "bridge" => Some(found),
                _ => {
                    let why =
                        format!("there is no bridge {bridge}: make it (bulkhead net bridge add {bridge})");
                    return Err(Error::Other(why));
                }
            },
        };
        let vlans = port.vlans();
        if vlans.is_some() {
            self.can_have_vlans(name, bridge.as_ref())?;
        }
        let link = self.tap(name, port.owner, &mut changes)?;
        if let Some(bridge) = &bridge {
            if link.master.is_some_and(|master| master != bridge.index) && self.take_back_promise(&link)? {
                changes.push(format!("{name} is promised nothing any more"));
            }
            if self.plug(&link, bridge)? {
                changes.push(format!("{name} is a port of {}", bridge.name));
            }
        }
        // Before it is on: no frame is to pass in a VLAN that is not its own, above all not if this fails.
        if let Some(wanted) = vlans
            && self.set_vlans(&link, &wanted)?
        {
            changes.push(format!("{name} is in {}", shown(&wanted)));
        }
        if self.switch_on(&link)? {
            changes.push(format!("{name} is up"));
        }
        Ok(changes)
    }

    /// VLANs are what keeps guests apart, so that they are asked for where nothing would come of them must not pass. `bridge` is the one that
    /// is named; else it is the one that the port is in.
    fn can_have_vlans(&mut self, name: &str, bridge: Option<&Link>) -> Result<(), Error> {
        let links = self.links()?;
        let its = || links.get(&links.values().find(|link| link.name == name)?.master?);
        match bridge.or_else(its) {
            Some(bridge) if bridge.filters_vlans => Ok(()),
            Some(Link { name: bridge, .. }) => Err(Error::Other(format!(
                "{bridge} does not tell VLANs apart, so {name} cannot be put into one: have it do so (bulkhead net bridge add \
                 {bridge}; the kernel needs CONFIG_BRIDGE_VLAN_FILTERING)"
            ))),
            None => Err(Error::Other(format!(
                "{name} is in no bridge, and so in no VLAN: name one with --bridge"
            ))),
        }
    }

    /// The TAP `name`, which is made unless it is there.
    fn tap(&mut self, name: &str, owner: Option<u32>, changes: &mut Vec<String>) -> Result<Link, Error> {
        let before = self.find(name)?;
        match &before {
            Some(Link { tap: Some(tap), .. }) if !tap.is_multi_queue || !tap.has_header => {
                return Err(Error::Other(format!(
                    "{name} is a TAP with one queue, or without the header for offloads: remove it (bulkhead net port remove \
                     {name}) and make it anew"
                )));
            }
            Some(Link { tap: None, .. }) => {
                return Err(Error::Other(format!("{name} is there, and no TAP: choose another name")));
            }
            Some(Link { tap: Some(tap), .. }) if owner.is_none() || tap.owner == owner => {}
            _ => {
                // One without an owner would be everybody's.
                let owner = owner.or(before.is_none().then_some(0));
                let made = tun::make_tap(name, owner);
                made.map_err(|error| match error {
                    // Of a TAP that is not there this only means that we are not root.
                    tun::Error::NotYours(_) => Error::Forbidden,
                    error => error.into(),
                })?;
                self.is_nobody_elses(name, before.as_ref())?;
                let whose = owner.map_or(String::new(), |owner| format!(", for user {owner}"));
                changes
                    .push(format!("{name} was {}{whose}", if before.is_some() { "changed" } else { "made" }));
            }
        }
        self.find(name)?.ok_or_else(|| Error::Other(format!("{name} is gone again")))
    }

    /// A new TAP is everybody's for a moment, until it is given its owner: whoever opened it then would keep it.
    fn is_nobody_elses(&mut self, name: &str, before: Option<&Link>) -> Result<(), Error> {
        if before.is_some() {
            return Ok(());
        }
        match self.find(name)? {
            Some(link) if link.tap.as_ref().is_some_and(|tap| tap.queues > 0) => {
                self.remove(&link)?;
                Err(Error::Other(format!(
                    "another process opened {name} while it was made, and so it was removed again: see which (sudo fuser \
                     /dev/net/tun), and try again"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Removes a TAP and what belongs to it. `false`: there was none.
    pub fn remove_port(&mut self, name: &str) -> Result<bool, Error> {
        let Some(link) = self.find(name)? else { return Ok(false) };
        if link.tap.is_none() {
            return Err(Error::Other(format!("{name} is no TAP, and not removed here")));
        }
        self.unlimit(&link)?;
        self.remove(&link)?;
        Ok(true)
    }

    /// The VLANs of every port, by number of the interface.
    pub fn vlans(&mut self) -> Result<BTreeMap<u32, Vlans>, Error> {
        let ask = link_header(BRIDGE, 0, 0, 0).number(IFLA_EXT_MASK, EACH_VLAN);
        let found = match self.netlink.dump(RTM_GETLINK, &ask) {
            // A kernel without bridges has no ports.
            Err(Errno::EOPNOTSUPP) => Vec::new(),
            found => found.map_err(|error| Error::of("list the VLANs", "bridge", error))?,
        };
        let mut all = BTreeMap::new();
        for (_, payload) in &found {
            let Some(index) = payload.get(4..).and_then(super::netlink::number) else { continue };
            let rest = payload.get(LINK_HEADER..).unwrap_or_default();
            let spec = attribute(rest, IFLA_AF_SPEC).unwrap_or_default();
            let vlans: &mut Vlans = all.entry(index).or_default();
            for (kind, value) in attributes(spec) {
                if let (IFLA_BRIDGE_VLAN_INFO, [a, b, c, d]) = (kind, value) {
                    let (flags, vlan) = (u16::from_ne_bytes([*a, *b]), u16::from_ne_bytes([*c, *d]));
                    vlans.insert(vlan, flags & (PVID | UNTAGGED));
                }
            }
        }
        Ok(all)
    }

    /// `false`: it was so.
    fn set_vlans(&mut self, link: &Link, wanted: &Vlans) -> Result<bool, Error> {
        let now = self.vlans()?.remove(&link.index).unwrap_or_default();
        if now == *wanted {
            return Ok(false);
        }
        // First the new ones: what is in both is never interrupted.
        let (add, remove) = (
            wanted.iter().filter(|(vlan, flags)| now.get(vlan) != Some(flags)),
            now.iter().filter(|(vlan, _)| !wanted.contains_key(vlan)),
        );
        let orders = add.map(|entry| (RTM_SETLINK, entry)).chain(remove.map(|entry| (RTM_DELLINK, entry)));
        for (order, (vlan, flags)) in orders {
            let info = [flags.to_ne_bytes(), vlan.to_ne_bytes()].concat();
            let spec = Payload::default().add(IFLA_BRIDGE_VLAN_INFO, &info);
            let message = link_header(BRIDGE, link.index, 0, 0).nest(IFLA_AF_SPEC, &spec);
            let what = || {
                format!("change VLAN {vlan} of {} (the kernel needs CONFIG_BRIDGE_VLAN_FILTERING)", link.name)
            };
            self.netlink.order(order, 0, &message).map_err(|error| Error::of(what(), "bridge", error))?;
        }
        Ok(true)
    }

    /// What a port is limited to.
    pub fn limit_of(&mut self, link: &Link) -> Result<limit::Limit, Error> {
        self.read_limit(link)
    }
}

/// VLANs for people: the untagged one, and the tagged ones.
pub fn shown(vlans: &Vlans) -> String {
    let access = vlans.iter().find(|(_, flags)| **flags & PVID != 0).map(|(vlan, _)| *vlan);
    let tagged =
        Ranges(vlans.iter().filter(|(_, flags)| **flags & UNTAGGED == 0).map(|(vlan, _)| *vlan).collect());
    match (access, tagged.0.is_empty()) {
        (Some(vlan), true) => format!("VLAN {vlan}"),
        (Some(vlan), false) => format!("VLAN {vlan}, trunk {tagged}"),
        (None, false) => format!("trunk {tagged}"),
        (None, true) => "no VLAN".to_owned(),
    }
}

/// The same for a machine: the untagged VLAN, and the tagged ones.
pub fn parts(vlans: &Vlans) -> (Option<u16>, Vec<u16>) {
    let access = vlans.iter().find(|(_, flags)| **flags & PVID != 0).map(|(vlan, _)| *vlan);
    (access, vlans.iter().filter(|(_, flags)| **flags & UNTAGGED == 0).map(|(vlan, _)| *vlan).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlans_are_written_as_ranges() {
        let ranges: Ranges = "30,10,20-22,21".parse().unwrap();
        assert_eq!(ranges.0, [10, 20, 21, 22, 30]);
        assert_eq!(ranges.to_string(), "10,20-22,30");
        for (text, why) in
            [("0", "1 to 4094"), ("4095", "no VLAN"), ("5-3", "3-5"), ("", "no VLAN"), ("1-", "no VLAN")]
        {
            assert!(text.parse::<Ranges>().unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn a_port_is_in_one_vlan_without_tags_and_in_many_with_them() {
        let port = |access, trunk: Option<&str>| Port {
            access,
            trunk: trunk.map(|text| text.parse().unwrap()),
            ..Port::default()
        };
        assert_eq!(port(None, None).vlans(), None, "as the bridge makes it");
        assert_eq!(shown(&port(Some(7), None).vlans().unwrap()), "VLAN 7");
        assert_eq!(shown(&port(None, Some("7-9")).vlans().unwrap()), "trunk 7-9");
        let both = port(Some(8), Some("7-9")).vlans().unwrap();
        assert_eq!((shown(&both), parts(&both)), ("VLAN 8, trunk 7,9".to_owned(), (Some(8), vec![7, 9])));
    }
}
