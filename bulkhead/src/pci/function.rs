//! A PCI function, as sysfs shows it (Documentation/ABI/testing/sysfs-bus-pci of the kernel).

use std::path::{Path, PathBuf};

use super::host::Host;
use super::{Address, class, reset};

/// The driver by which VFIO has a device.
pub const VFIO: &str = "vfio-pci";
/// Drivers that may have other devices of a VFIO group: they do no DMA themselves (`driver_managed_dma` in the kernel).
const HARMLESS: [&str; 2] = ["pcieport", "pci-stub"];

/// Where the devices are.
const DEVICES: &str = "sys/bus/pci/devices";
/// Where the groups are.
const GROUPS: &str = "sys/kernel/iommu_groups";

/// Where VFIO is told that a host need not remap interrupts: for containers, and for iommufd.
const UNSAFE_INTERRUPTS: [&str; 2] = [
    "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    "sys/module/iommufd/parameters/allow_unsafe_interrupts",
];

/// A capability of the configuration space: MSI,
const MSI: u8 = 0x05;
/// MSI-X.
const MSI_X: u8 = 0x11;
/// Where the configuration space has its status, and the bit that says that there are capabilities.
const STATUS: (usize, u8) = (0x06, 1 << 4);
/// Where the place of the first capability is.
const FIRST_CAPABILITY: usize = 0x34;
/// Without capabilities; and all that somebody without privilege can read.
const HEADER: usize = 64;

/// A function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// What it is called.
    pub address: Address,
    /// Class, subclass and programming interface.
    pub class: u32,
    /// Who made it,
    pub vendor: u32,
    /// and its number there.
    pub device: u32,
    /// The number of its IOMMU group.
    pub group: Option<u32>,
    /// Its driver.
    pub driver: Option<String>,
    /// It can be reset.
    pub resets: bool,
    /// It has MSI or MSI-X; `None`: that cannot be seen without privilege.
    pub messages: Option<bool>,
    /// Virtual functions that it has.
    pub virtual_functions: u32,
    /// The host's firmware has shown its screen on it.
    pub boot_screen: bool,
}

impl Function {
    /// The one at `address`.
    pub fn find(host: &Host, address: Address) -> Option<Self> {
        let at = directory(address);
        let file = |name: &str| at.join(name);
        Some(Self {
            address,
            class: host.number(file("class"))?,
            vendor: host.number(file("vendor"))?,
            device: host.number(file("device"))?,
            group: host.link(file("iommu_group")).and_then(|name| name.parse().ok()),
            driver: host.link(file("driver")),
            // An operator can take all ways away.
            resets: host.path(file("reset")).exists()
                && host.read(file("reset_method")).is_none_or(|methods| !methods.is_empty()),
            messages: std::fs::read(host.path(file("config"))).ok().and_then(|config| messages(&config)),
            virtual_functions: host
                .read(file("sriov_numvfs"))
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
            boot_screen: host.read(file("boot_vga")).as_deref() == Some("1"),
        })
    }

    /// All of them, in the order of their addresses.
    pub fn all(host: &Host) -> Vec<Self> {
        let mut addresses: Vec<Address> =
            host.names(DEVICES).iter().filter_map(|name| name.parse().ok()).collect();
        addresses.sort();
        addresses.into_iter().filter_map(|address| Self::find(host, address)).collect()
    }

    /// The others of its group.
    pub fn neighbours(&self, host: &Host) -> Vec<Self> {
        let Some(group) = self.group else { return Vec::new() };
        let members = host.names(Path::new(GROUPS).join(group.to_string()).join("devices"));
        let others = members.iter().filter_map(|name| name.parse().ok()).filter(|name| *name != self.address);
        others.filter_map(|address| Self::find(host, address)).collect()
    }

    /// What it is, in a word.
    pub fn class_name(&self) -> String {
        class::name(self.class)
    }

    /// Whether it leads to others, or to the host itself.
    pub fn is_bridge(&self) -> bool {
        class::is_bridge(self.class)
    }

    /// Whether VFIO has it.
    pub fn is_bound(&self) -> bool {
        self.driver.as_deref() == Some(VFIO)
    }

    /// The driver that keeps a group that it is in from being passed through.
    pub fn hinders(&self) -> Option<&str> {
        let driver = self.driver.as_deref()?;
        let is_fine = self.is_bound() || HARMLESS.contains(&driver);
        (!is_fine).then_some(driver)
    }

    /// Its files, below the root.
    pub fn directory(&self) -> PathBuf {
        directory(self.address)
    }

    /// The order in which the kernel should try its ways to reset it, if that is another one than now.
    pub fn better_resets(&self, host: &Host) -> Option<String> {
        // Where there are others, the bus is none of the ways, though the kernel lists it if this one was found first.
        let Address { domain, bus, .. } = self.address;
        let is_other = |other: &Address| (other.domain, other.bus) == (domain, bus) && *other != self.address;
        let alone =
            !host.names(DEVICES).iter().filter_map(|name| name.parse().ok()).any(|other| is_other(&other));
        host.read(self.reset_method()).filter(|_| alone).and_then(|methods| reset::better(&methods))
    }

    /// The file with the kernel's ways to reset it.
    pub fn reset_method(&self) -> PathBuf {
        self.directory().join("reset_method")
    }

    /// The node by which its group is used, below the root.
    pub fn node(&self) -> Option<PathBuf> {
        Some(Path::new("dev/vfio").join(self.group?.to_string()))
    }

    /// Its own node, below the root, if the kernel has such (CONFIG_VFIO_DEVICE_CDEV; without it there is a directory, and no number in it). What it is
    /// called changes with every binding.
    pub fn own_node(&self, host: &Host) -> Option<PathBuf> {
        let devices = self.directory().join("vfio-dev");
        let mut names = host.names(&devices).into_iter();
        let name = names.find(|name| host.path(devices.join(name).join("dev")).exists())?;
        Some(Path::new("dev/vfio/devices").join(name))
    }

    /// Whether somebody, a VM most likely, uses it, or another one of its group, just now.
    pub fn is_open(&self, host: &Host) -> bool {
        let group = self.node().map(|node| host.path(node)).filter(|node| node.exists());
        if let Some(group) = group {
            // Also if he has it by its own node: the kernel sees to that.
            return host.kernel().is_open(&group);
        }
        // A kernel without groups has no other sign than that.
        let neighbours = self.neighbours(host);
        let mut own = std::iter::once(self).chain(&neighbours).filter_map(|function| function.own_node(host));
        own.any(|node| host.kernel().is_held(&host.path(node)))
    }

    /// What a group is called that gives no protection, in VFIO's no-IOMMU mode.
    pub fn is_unprotected(&self, host: &Host) -> bool {
        let group = self.group.map(|group| Path::new(GROUPS).join(group.to_string()).join("name"));
        group.and_then(|name| host.read(name)).as_deref() == Some("vfio-noiommu")
    }
}

/// Whether an IOMMU is there and in use.
pub fn has_iommu(host: &Host) -> bool {
    !host.names(GROUPS).is_empty()
}

/// Whether VFIO would pass a device through though the host does not remap interrupts: such a device can write any interrupt of the host. Without being told so
/// VFIO does not do it.
pub fn has_unsafe_interrupts(host: &Host) -> bool {
    let is_told = UNSAFE_INTERRUPTS.iter().any(|told| host.read(told).as_deref() == Some("Y"));
    // Linux calls interrupts IR-IO-APIC, IR-PCI-MSI and so on that are remapped, whoever has made the IOMMU; there are some on every host that does so.
    let is_remapped = || {
        let interrupts = host.read("proc/interrupts").unwrap_or_default();
        interrupts.split_whitespace().any(|word| word.starts_with("IR-"))
    };
    is_told && !is_remapped()
}

fn directory(address: Address) -> PathBuf {
    Path::new(DEVICES).join(address.to_string())
}

/// Whether a configuration space has MSI or MSI-X; `None`: too little of it can be read.
fn messages(config: &[u8]) -> Option<bool> {
    let byte = |at: usize| config.get(at).copied();
    if byte(STATUS.0)? & STATUS.1 == 0 {
        return Some(false);
    }
    if config.len() <= HEADER {
        return None;
    }
    let mut at = usize::from(byte(FIRST_CAPABILITY)? & !3);
    // As many as there is room for: a device whose list is a ring must not keep us.
    for _ in 0..(256 - HEADER) / 4 {
        if at < HEADER {
            break;
        }
        if matches!(byte(at)?, MSI | MSI_X) {
            return Some(true);
        }
        at = usize::from(byte(at + 1)? & !3);
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_interrupts_are_found_in_the_list_of_capabilities() {
        let mut config = vec![0; 256];
        assert_eq!(messages(&config), Some(false), "no capabilities");
        config[STATUS.0] = STATUS.1;
        config[FIRST_CAPABILITY] = 0x40;
        (config[0x40], config[0x41]) = (0x01, 0x50);
        assert_eq!(messages(&config), Some(false));
        (config[0x50], config[0x51]) = (MSI_X, 0);
        assert_eq!(messages(&config), Some(true));
        (config[0x50], config[0x51]) = (0x10, 0x40);
        assert_eq!(messages(&config), Some(false), "a list without an end");
        assert_eq!(messages(&config[..HEADER]), None);
    }
}
