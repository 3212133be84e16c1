//! What keeps a device from being passed through; each is the rest of a sentence that begins with its address, and says what to do.

use super::Address;
use super::function::{Function, has_iommu, has_unsafe_interrupts};
use super::host::Host;
use super::usage;

/// Why a device cannot be passed through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is no such device.
    #[error("is not there: bulkhead pci ls shows what is")]
    Missing,
    /// It is none that a guest could have.
    #[error("is a bridge: what is behind it can be passed through, it cannot")]
    Bridge,
    /// Nothing confines its DMA.
    #[error(
        "could reach all of the host's memory, because the host has no IOMMU or does not use it: switch it on in the firmware (VT-d, AMD-Vi) \
         and, on Intel, with intel_iommu=on on the host's kernel command line"
    )]
    NoIommu,
    /// Nothing confines the DMA of this one.
    #[error("could reach all of the host's memory: no IOMMU is responsible for it")]
    NoGroup,
    /// VFIO's unsafe mode.
    #[error(
        "could reach all of the host's memory: it is in VFIO's no-IOMMU mode, which Bulkhead does not use \
         (switch off enable_unsafe_noiommu_mode of the module vfio)"
    )]
    Unprotected,
    /// VFIO was told to go on without what keeps it from interrupting as it likes.
    #[error(
        "could raise any interrupt of the host: the host does not remap interrupts, and VFIO was told not to mind. \
         Switch interrupt remapping on, in the firmware and on the host's kernel command line (no nointremap, no \
         intremap=off), or have VFIO mind again: \
         echo N > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts (and the same of iommufd), and no such option in /etc/modprobe.d"
    )]
    UnsafeInterrupts,
    /// What it did for one guest it could do to the next.
    #[error("cannot be reset: what one guest leaves in it the next one, or the host, would find")]
    NoReset,
    /// It may be that it is not, though the kernel thinks so. Only of one that is bound: binding mends it.
    #[error(
        "would be reset by its power states, and not every device forgets its last user by those: have the kernel reset it by its bus \
         (sudo bulkhead pci bind {0})"
    )]
    WeakReset(Address),
    /// A Hyper-V PCI bus has none but message interrupts.
    #[error("has neither MSI nor MSI-X, and a Hyper-V PCI bus has no other interrupts")]
    NoMessages,
    /// The host works with it.
    #[error("is in use: {0}")]
    InUse(String),
    /// A VM has it.
    #[error("is in use: a VM has it, or another one of its group {0}")]
    Assigned(u32),
    /// The host works with another one of its group.
    #[error("can only go together with {member} of its group {group}, which is in use: {why}")]
    GroupInUse {
        /// The group.
        group: u32,
        /// The other one.
        member: Address,
        /// How.
        why: String,
    },
    /// The host has another one of its group.
    #[error(
        "can only go together with {member} of its group {group}, which the host has (driver {driver}): bind all of the group \
         (sudo bulkhead pci bind --group {address})"
    )]
    Group {
        /// It.
        address: Address,
        /// Its group.
        group: u32,
        /// The other one.
        member: Address,
        /// Its driver.
        driver: String,
    },
}

impl Problem {
    /// Whether binding all of its group is what is missing, and nothing else.
    pub fn is_group(&self) -> bool {
        matches!(self, Self::Group { .. })
    }

    /// Whether nothing has to be done but to bind it, or its group.
    pub fn is_mended_by_binding(&self) -> bool {
        self.is_group() || matches!(self, Self::WeakReset(_))
    }
}

/// What keeps it from being taken from the host, whatever the rest of its group is; the gravest first.
pub fn of_itself(host: &Host, function: &Function) -> Option<Problem> {
    if function.is_bridge() {
        return Some(Problem::Bridge);
    }
    if function.group.is_none() {
        return Some(if has_iommu(host) { Problem::NoGroup } else { Problem::NoIommu });
    }
    if function.is_unprotected(host) {
        return Some(Problem::Unprotected);
    }
    if has_unsafe_interrupts(host) {
        return Some(Problem::UnsafeInterrupts);
    }
    if !function.resets {
        return Some(Problem::NoReset);
    }
    if function.messages == Some(false) {
        return Some(Problem::NoMessages);
    }
    in_use(host, function).or_else(|| {
        let weak = function.is_bound() && function.better_resets(host).is_some();
        weak.then_some(Problem::WeakReset(function.address))
    })
}

/// Whether somebody works with it.
pub fn in_use(host: &Host, function: &Function) -> Option<Problem> {
    if function.is_bound() {
        let group = function.group.unwrap_or_default();
        return function.is_open(host).then_some(Problem::Assigned(group));
    }
    usage::of(host, function).map(Problem::InUse)
}

/// What the rest of its group keeps it from.
pub fn of_group(host: &Host, function: &Function) -> Option<Problem> {
    let group = function.group?;
    let neighbours = function.neighbours(host);
    let in_use = neighbours.iter().filter(|other| other.hinders().is_some()).find_map(|other| {
        let member = other.address;
        let why = if other.is_bridge() {
            // A bridge with a driver of its own that does DMA: nothing to unbind.
            Some("it is a part of the host's chipset".to_owned())
        } else {
            usage::of(host, other)
        };
        why.map(|why| Problem::GroupInUse { group, member, why })
    });
    let bound = || {
        neighbours.iter().find_map(|other| {
            let driver = other.hinders()?.to_owned();
            Some(Problem::Group { address: function.address, group, member: other.address, driver })
        })
    };
    in_use.or_else(bound)
}

/// Whatever there is; `None`: a VM can have it, once it is bound.
pub fn of(host: &Host, function: &Function) -> Option<Problem> {
    of_itself(host, function).or_else(|| of_group(host, function))
}
