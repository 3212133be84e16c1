//! Can this host run this VM? Asked before anything starts; each answer is one sentence.

use std::io::ErrorKind;

use kvm_ioctls::{Cap, Kvm};

use crate::spec::Machine;
use crate::spec::size::Bytes;

/// What the core and the device processes need besides guest memory: a few mebibytes each, rounded up.
const OVERHEAD: u64 = 32 << 20;

/// Why this host cannot run the VM. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// There is no `/dev/kvm`.
    #[error(
        "this host has no /dev/kvm: load kvm_intel or kvm_amd (sudo modprobe kvm_intel), and enable virtualization \
         (VT-x, AMD-V) in its firmware or, inside a VM, nested virtualization"
    )]
    NoKvm,
    /// `/dev/kvm` is there for others.
    #[error(
        "you may not open /dev/kvm: join the group kvm (sudo usermod -aG kvm $USER) and log in again, or run as root"
    )]
    Forbidden,
    /// `/dev/kvm` is there, the processor's part is not.
    #[error(
        "this host's /dev/kvm does not work ({0}): enable virtualization (VT-x, AMD-V) in its firmware or, inside \
         a VM, nested virtualization"
    )]
    Broken(std::io::Error),
    /// KVM without the Hyper-V interrupt controller.
    #[error(
        "this host's KVM has no Hyper-V interrupt controller (KVM_CAP_HYPERV_SYNIC2): it needs Linux 4.14 or later \
         on x86-64 with an APIC virtualized in the kernel"
    )]
    NoSynic,
    /// Not enough memory is free.
    #[error("the VM's memory is {} but only {} is free on this host: stop something, give the VM less, or use --overcommit",
            Bytes(*.needed), Bytes(*.free))]
    NoMemory {
        /// Bytes of guest memory.
        needed: u64,
        /// Bytes that the host can give without swapping.
        free: u64,
    },
}

/// Memory of this host in bytes (`MemTotal`); `None` where `/proc` cannot be read.
pub fn total_memory() -> Option<u64> {
    MemInfo::read()?.bytes("MemTotal")
}

/// Checks everything that starting `machine` needs. With `overcommit`, the amount of free memory is not looked at.
pub fn check(machine: &Machine, overcommit: bool) -> Result<(), Unfit> {
    check_kvm()?;
    match MemInfo::read() {
        Some(info) => check_memory(machine, overcommit, &info),
        None => Ok(()), // Unknown is not too little.
    }
}

/// `/dev/kvm` is there, may be opened, and has the SynIC that VMBus is built on.
pub fn check_kvm() -> Result<(), Unfit> {
    let kvm = Kvm::new().map_err(|error| {
        let error = std::io::Error::from_raw_os_error(error.errno());
        match error.kind() {
            ErrorKind::NotFound => Unfit::NoKvm,
            ErrorKind::PermissionDenied => Unfit::Forbidden,
            _ => Unfit::Broken(error),
        }
    })?;
    if kvm.check_extension_int(Cap::HypervSynic2) > 0 { Ok(()) } else { Err(Unfit::NoSynic) }
}

fn check_memory(machine: &Machine, overcommit: bool, info: &MemInfo) -> Result<(), Unfit> {
    match info.bytes("MemAvailable") {
        Some(free) if !overcommit && free < machine.memory.saturating_add(OVERHEAD) => {
            Err(Unfit::NoMemory { needed: machine.memory, free })
        }
        _ => Ok(()),
    }
}

/// `/proc/meminfo`.
struct MemInfo(String);

impl MemInfo {
    fn read() -> Option<Self> {
        std::fs::read_to_string("/proc/meminfo").ok().map(Self)
    }

    /// The number of a line such as `MemTotal:  16384 kB`, without its unit.
    fn number(&self, name: &str) -> Option<u64> {
        let value = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.split_whitespace().next()?.parse().ok()
    }

    fn bytes(&self, name: &str) -> Option<u64> {
        self.number(name)?.checked_mul(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "MemTotal:        4194304 kB\nMemFree: 1 kB\nMemAvailable:    1048576 kB\n\
                        HugePages_Free:      100\nHugepagesize:       2048 kB\n";

    fn machine(memory: u64, hugepages: bool) -> Machine {
        Machine { vcpus: 1, memory, hugepages, prefault: false }
    }

    fn told(machine: &Machine, overcommit: bool) -> String {
        match check_memory(machine, overcommit, &MemInfo(INFO.to_owned())) {
            Ok(()) => "fits".to_owned(),
            Err(unfit) => unfit.to_string(),
        }
    }

    #[test]
    fn memory_must_be_free_unless_overcommitted() {
        assert_eq!(told(&machine(512 << 20, false), false), "fits");
        assert_eq!(
            told(&machine(2 << 30, false), false),
            "the VM's memory is 2 GiB but only 1 GiB is free on this host: stop something, give the VM less, or use \
             --overcommit"
        );
        assert_eq!(told(&machine(2 << 30, false), true), "fits");
    }

    #[test]
    fn huge_pages_are_ordinary_memory() {
        assert_eq!(told(&machine(512 << 20, true), false), "fits");
        assert_ne!(told(&machine(2 << 30, true), false), "fits");
    }
}
