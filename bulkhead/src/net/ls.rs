//! `bulkhead net ls`: bridges and ports as the kernel has them, for people and for machines. Nothing is changed here.

use nix::unistd::{Uid, User};
use serde_json::{Value, json};

use super::limit::Limit;
use super::port::{self, Ranges};
use super::rate::Rate;
use super::switch::{Error, Link, Network, ports};

/// A line of `ls`.
pub(super) struct Line {
    pub(super) bridge: String,
    pub(super) port: Option<Link>,
    pub(super) vlans: port::Vlans,
    pub(super) limit: Limit,
}

fn lines(network: &mut Network) -> Result<Vec<Line>, Error> {
    let links = network.links()?;
    let vlans = network.vlans()?;
    let mut lines = Vec::new();
    let mut line = |bridge: &str, port: Option<&Link>| -> Result<(), Error> {
        let limit = port.map(|port| network.limit_of(port)).transpose()?.unwrap_or_default();
        let vlans = port.and_then(|port| vlans.get(&port.index)).cloned().unwrap_or_default();
        lines.push(Line { bridge: bridge.to_owned(), port: port.cloned(), vlans, limit });
        Ok(())
    };
    let bridges: Vec<&Link> = links.values().filter(|link| link.kind == "bridge").collect();
    for bridge in &bridges {
        let mut is_empty = true;
        for port in ports(&links, bridge) {
            line(&bridge.name, Some(port))?;
            is_empty = false;
        }
        if is_empty {
            line(&bridge.name, None)?;
        }
    }
    let in_one = |link: &Link| bridges.iter().any(|bridge| link.master == Some(bridge.index));
    for tap in links.values().filter(|link| link.tap.is_some() && !in_one(link)) {
        line("-", Some(tap))?;
    }
    Ok(lines)
}

/// Shows all of it.
pub(super) fn list(json: bool) -> anyhow::Result<()> {
    let lines = lines(&mut Network::new()?)?;
    if json {
        println!("{}", serde_json::to_string(&lines.iter().map(document).collect::<Vec<_>>())?);
    } else if lines.is_empty() {
        println!("no bridge and no TAP is here: bulkhead net bridge add br0 makes a bridge");
    } else {
        print!("{}", table(&lines));
    }
    Ok(())
}

fn state(link: &Link) -> &'static str {
    match (link.is_up, link.has_carrier) {
        (false, _) => "down",
        (true, false) => "no-carrier",
        (true, true) => "up",
    }
}

pub(super) fn document(line: &Line) -> Value {
    let bits = |rate: Option<Rate>| rate.map(|rate| rate.0.saturating_mul(8));
    let port = line.port.as_ref();
    let tap = port.and_then(|port| port.tap.as_ref());
    let (vlan, trunk) = port::parts(&line.vlans);
    json!({
        "bridge": if line.bridge == "-" { None } else { Some(&line.bridge) },
        "port": port.map(|port| &port.name),
        "kind": port.map(|port| if port.tap.is_some() { "tap" } else { port.kind.as_str() }),
        "mac": port.map(|port| &port.mac),
        "state": port.map(state),
        "owner": tap.and_then(|tap| tap.owner),
        "queues": tap.map(|tap| tap.queues),
        "vlan": vlan,
        "trunk": trunk,
        "min": bits(line.limit.min),
        "max": bits(line.limit.max),
        "burst": line.limit.burst,
    })
}

const TITLES: [&str; 10] =
    ["BRIDGE", "PORT", "KIND", "OWNER", "QUEUES", "STATE", "VLAN", "MIN", "MAX", "BURST"];

pub(super) fn table(lines: &[Line]) -> String {
    let none = || "-".to_owned();
    let cells = |line: &Line| {
        let port = line.port.as_ref();
        let tap = port.and_then(|port| port.tap.as_ref());
        let owner = tap.map(|tap| {
            let Some(owner) = tap.owner else { return "anybody".to_owned() };
            let user = User::from_uid(Uid::from_raw(owner)).ok().flatten();
            user.map_or_else(|| owner.to_string(), |user| user.name)
        });
        let kind = port.map(|port| match (&port.tap, port.kind.as_str()) {
            (Some(_), _) => "tap".to_owned(),
            (None, "") => "hardware".to_owned(),
            (None, kind) => kind.to_owned(),
        });
        let vlan = match port::parts(&line.vlans) {
            (None, tagged) if tagged.is_empty() => none(),
            (access, tagged) => {
                let access = access.map_or(none(), |vlan| vlan.to_string());
                if tagged.is_empty() { access } else { format!("{access}+{}", Ranges(tagged)) }
            }
        };
        let rate = |rate: Option<Rate>| rate.map_or(none(), |rate| rate.to_string());
        [
            line.bridge.clone(),
            port.map_or(none(), |port| port.name.clone()),
            kind.unwrap_or_else(none),
            owner.unwrap_or_else(none),
            tap.map_or(none(), |tap| tap.queues.to_string()),
            port.map_or(none(), |port| state(port).to_owned()),
            vlan,
            rate(line.limit.min),
            rate(line.limit.max),
            line.limit.burst.map_or(none(), |burst| format!("{} KiB", burst / 1024)),
        ]
    };
    let rows: Vec<[String; 10]> =
        std::iter::once(TITLES.map(str::to_owned)).chain(lines.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..TITLES.len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        out.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}
