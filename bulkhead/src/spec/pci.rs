//! The `[[pci]]` sections of a spec: devices of the host that the VM has as its own.
//!
//! Whether a device is there, and may be had, is looked up here, as a file is for a disk; it must never be opened here.

use std::collections::HashMap;

use super::reader::{Located, Section, Shape};
use super::{HOMES, Loader, MOST_DEVICES};
use crate::pci::function::Function;
use crate::pci::problem::{self, Problem};
use crate::pci::{Address, Host};

pub(super) const PCI: Shape = Shape { title: "[[pci]]", keys: &["address", "name", "spare"] };

/// A PCI device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pci {
    /// Its name, `[a-z0-9-]`.
    pub name: String,
    /// Where it is.
    pub address: Address,
    /// The number of its IOMMU group.
    pub group: u32,
    /// A second process stands by to take over.
    pub spare: bool,
}

/// What a device is called that is given no name: the same for the same place.
pub fn usual_name(address: Address) -> String {
    let Address { domain, bus, device, function } = address;
    let domain = if domain == 0 { String::new() } else { format!("{domain:x}-") };
    format!("pci-{domain}{bus:02x}-{device:02x}-{function}")
}

/// Why a device cannot be had, and what to do about it.
pub type Refusal = (String, String);

/// The IOMMU group of a device that can be had. With `later`, it may be another one's, or the host's, just now.
pub fn look_up(host: &Host, address: Address, later: bool) -> Result<u32, Refusal> {
    let list = || "bulkhead pci ls shows the devices of this host, and what stands in their way".to_owned();
    let Some(function) = Function::find(host, address) else {
        return Err((format!("there is no PCI device {address}"), list()));
    };
    let of_itself = problem::of_itself(host, &function);
    match of_itself {
        Some(Problem::InUse(_) | Problem::Assigned(_) | Problem::WeakReset(_)) if later => {}
        Some(problem) => return Err((format!("{address} {problem}"), list())),
        None => {}
    }
    if !later {
        if let Some(problem) = problem::of_group(host, &function) {
            return Err((format!("{address} {problem}"), list()));
        }
        if !function.is_bound() {
            let driver = function.driver.as_ref();
            let whose = driver.map_or_else(
                || "has no driver".to_owned(),
                |driver| format!("is the host's (driver {driver})"),
            );
            return Err((
                format!("{address} {whose}"),
                format!("take it from the host: sudo bulkhead pci bind {address}"),
            ));
        }
    }
    function.group.ok_or_else(|| (format!("{address} has no IOMMU group"), list()))
}

impl Loader<'_> {
    /// Every device; `None` if anything is wrong with one. `names` gets theirs; there are `users` users before them.
    pub(super) fn pci(
        &mut self,
        top: &Section<'_, '_>,
        host: &Host,
        names: &mut HashMap<String, usize>,
        users: usize,
    ) -> Option<Vec<Pci>> {
        let sections = top.tables("pci", "[[pci]]", self.report);
        if let Some(most) = MOST_DEVICES.checked_sub(users)
            && let Some((_, span)) = sections.get(most)
        {
            self.report.error(
                span.clone(),
                "there are more devices than one VM has users for",
                "leave some out",
            );
            return None;
        }
        let mut all = Some(Vec::new());
        let mut taken: HashMap<Address, usize> = HashMap::new();
        for (position, (table, span)) in sections.into_iter().enumerate() {
            let section = Section::new(table, &PCI, Some(span), &HOMES, self.report);
            let number = names.len();
            let address = self.pci_address(&section);
            let name = match (section.has("name"), &address) {
                (false, Some(address)) => Some(address.clone().map(usual_name)),
                (false, None) => None,
                (true, _) => self.name(&section, "name", "name = \"gpu0\""),
            };
            let known = self.report.errors();
            if let Some(name) = &name {
                self.device_name(name, number, "pci", names);
            }
            let spare = section.boolean("spare", false, self.report);
            let group = address.as_ref().and_then(|Located { value, span }| {
                if let Some(earlier) = taken.insert(*value, position) {
                    let message = format!("{value} is PCI device {} of this VM already", earlier + 1);
                    self.report.error(span.clone(), message, "name each device once");
                    return None;
                }
                // Units may be written while the VM runs.
                let found = look_up(host, *value, self.host.disks_in_use);
                found.map_err(|(message, fix)| self.report.error(span.clone(), message, fix)).ok()
            });
            match (name, address, group, &mut all) {
                (Some(name), Some(address), Some(group), Some(all)) if self.report.errors() == known => {
                    all.push(Pci { name: name.value, address: address.value, group, spare });
                }
                _ => all = None,
            }
        }
        all
    }

    fn pci_address(&mut self, section: &Section<'_, '_>) -> Option<Located<Address>> {
        let Some(Located { value: text, span }) = section.string("address", self.report) else {
            section.missing(
                "address",
                "address = \"0000:03:00.0\"; bulkhead pci ls has the addresses",
                self.report,
            );
            return None;
        };
        match text.parse() {
            Ok(address) => Some(Located { value: address, span }),
            Err(_) => {
                let message = format!("`address` is no PCI address: \"{text}\"");
                self.report.error(span, message, "write it as bulkhead pci ls does: \"0000:03:00.0\"");
                None
            }
        }
    }
}
