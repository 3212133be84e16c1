//! Memory that stays where it is: a device that reaches all guest memory by itself has it pinned, for its process.

use std::fs::File;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;

use crate::spec::size::Bytes;

/// Who may open this has devices by an iommufd, where they have nodes of their own.
const IOMMU: &str = "/dev/iommu";
/// What a process may pin besides: rings, and what an IOMMU driver counts.
const MORE: u64 = 64 << 20;

/// Has every process that is started from now on be allowed to pin what `devices` of them need for a VM with so many bytes; why not, as a sentence.
pub(crate) fn allow(memory: u64, devices: usize) -> Result<(), String> {
    // By a group what a process pins is counted for that process; by an iommufd for its user, and without root that is one for all.
    let is_of_user = !geteuid().is_root() && File::options().read(true).write(true).open(IOMMU).is_ok();
    let together = if is_of_user { devices.max(1) as u64 } else { 1 };
    let wanted = memory.saturating_add(MORE).saturating_mul(together);
    let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)
        .map_err(|error| format!("cannot see the limit of pinned memory: {error}"))?;
    let hard = if geteuid().is_root() && hard != RLIM_INFINITY { hard.max(wanted) } else { hard };
    if hard < wanted {
        let each = if together > 1 { format!(" ({together} of them)") } else { String::new() };
        return Err(format!(
            "a PCI device needs all of the VM's memory pinned, {}{each}, and you may pin {}: run as root, or raise the limit (\"memlock\" in \
             /etc/security/limits.d, LimitMEMLOCK= of a service)",
            Bytes(wanted),
            Bytes(hard)
        ));
    }
    setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard)
        .map_err(|error| format!("cannot raise the limit of pinned memory: {error}"))
}
