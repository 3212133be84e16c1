//! The processes of PCI devices that a VM has as its own, from the start or later.

use std::ffi::OsString;
use std::path::PathBuf;

use ipc::config::DeviceSlot;

use super::{Device, IDS_PER_VM, Users, fnv1a, slot};
use crate::pci::Address;
use crate::programs::Programs;
use crate::spec::Pci;

/// Devices that a VM can be given while it runs, besides those of its spec, at a time. Each takes a user of the VM's block and a place in the
/// core's user namespace, which has to know them from the start.
pub const MOST_LATER: usize = 8;

/// A device of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Where it is.
    pub address: Address,
    /// The number of its IOMMU group.
    pub group: u32,
}

/// What devices that are attached later are made of.
#[derive(Clone, Debug)]
pub struct Later {
    vm: String,
    /// `vsp-pci`, if it is there.
    program: Option<PathBuf>,
    users: Users,
    /// The number of the first of their users in the VM's block.
    first: usize,
}

impl Later {
    pub(super) fn new(vm: &str, programs: &Programs, users: Users, first: usize) -> Self {
        Self { vm: vm.to_owned(), program: programs.vsp_pci.clone(), users, first }
    }

    /// The numbers of their users, as many as the block has left.
    pub fn numbers(&self) -> std::ops::Range<usize> {
        self.first..(self.first + MOST_LATER).min(IDS_PER_VM as usize)
    }

    /// Their users; none without root's rights.
    pub(super) fn ids(&self) -> Vec<u32> {
        self.numbers().filter_map(|number| self.users.id(number)).collect()
    }

    /// One more, beside those that use the users `taken`; why not, as a sentence.
    pub fn device(&self, pci: &Pci, taken: &[usize]) -> Result<(Device, DeviceSlot), String> {
        let user = self.numbers().find(|number| !taken.contains(number)).ok_or_else(|| {
            format!(
                "the VM has {MOST_LATER} devices that were attached while it runs already: detach one first"
            )
        })?;
        self.device_of(pci, user)
    }

    /// The same, of the user with this number.
    pub fn device_of(&self, pci: &Pci, user: usize) -> Result<(Device, DeviceSlot), String> {
        let program =
            self.program.clone().ok_or("there is no vsp-pci beside core-vmm or in PATH: install it")?;
        let device = device(pci, program, self.users, user);
        let slot = slot_of(&self.vm, &device);
        Ok((device, slot))
    }
}

/// The same of a VM whose users begin with the id `first_id`.
pub fn later(vm: &str, program: Option<PathBuf>, first_id: u32, first: usize) -> Later {
    Later { vm: vm.to_owned(), program, users: Users { first: Some(first_id) }, first }
}

/// The process of one device.
pub(super) fn device(pci: &Pci, program: PathBuf, users: Users, user: usize) -> Device {
    let Pci { name, address, group, spare } = pci;
    let mut args: Vec<OsString> = vec!["--device".into(), name.into()];
    args.extend(["--address".into(), address.to_string().into(), "--group".into(), group.to_string().into()]);
    args.extend(users.words(user));
    Device {
        name: name.clone(),
        program,
        args,
        user,
        id: users.id(user),
        spare: *spare,
        network: None,
        part: None,
        pci: Some(Passed { address: *address, group: *group }),
    }
}

/// Its place at the core: it maps all guest memory for the device, so it has that.
pub(super) fn slot_of(vm: &str, device: &Device) -> DeviceSlot {
    let instance = device.pci.map(|pci| instance_guid(vm, pci.address)).unwrap_or_default();
    DeviceSlot { instance, guest_ram: true, passthrough: true, ..slot(vm, device) }
}

/// The instance GUID of a passed device: the same for the same VM and place for ever, whatever the device is called.
///
/// Linux makes the guest's PCI domain of its bytes 4 and 5, and names the device by bytes 4 to 7 when it has interrupts routed (`pci-hyperv.c`), so
/// these have to differ within a VM: they are the device's place on the host. The guest's domain shows it, too.
fn instance_guid(vm: &str, address: Address) -> String {
    let text = format!("{vm}/pci/{address}");
    let (a, b) = (fnv1a(text.as_bytes(), 0), fnv1a(text.as_bytes(), 1));
    format!(
        "{:08x}-{:04x}-8{:03x}-{:04x}-{:012x}",
        a >> 32,
        address.bdf(),
        // The three lowest bits are not looked at. Nine bits of the domain tell those apart that firmware numbers.
        (address.domain & 0x1ff) << 3,
        0x8000 | (b >> 48 & 0x3fff),
        b & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guid_of_a_place_never_changes_and_says_where_it_is() {
        let guid = |vm: &str, address: &str| instance_guid(vm, address.parse().unwrap());
        let guid_a = guid("debian", "0000:03:00.0");
        assert_eq!(guid_a.len(), 36);
        assert_eq!(&guid_a[8..19], "-0300-8000-");
        assert_eq!(guid_a, guid("debian", "03:00.0"));
        assert_ne!(guid_a[..8], guid("other", "03:00.0")[..8]);
        assert_eq!(&guid("debian", "0001:3a:1f.7")[8..19], "-3aff-8008-");
    }
}
