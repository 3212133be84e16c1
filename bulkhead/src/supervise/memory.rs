//! Memory that stays where it is: a device that reaches all guest memory by itself has it pinned, for its process.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::unistd::geteuid;

use crate::spec::size::Bytes;

/// What a process may pin besides: rings, and what an IOMMU driver counts.
const MORE: u64 = 64 << 20;

/// Has every process that is started from now on be allowed to pin `memory` bytes; why not, as a sentence.
pub(crate) fn allow(memory: u64) -> Result<(), String> {
    let wanted = memory.saturating_add(MORE);
    let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)
        .map_err(|error| format!("cannot see the limit of pinned memory: {error}"))?;
    let hard = if geteuid().is_root() && hard != RLIM_INFINITY { hard.max(wanted) } else { hard };
    if hard < wanted {
        return Err(format!(
            "a PCI device needs all of the VM's memory pinned, {}, and you may pin {}: run as root, or raise the limit (\"memlock\" in \
             /etc/security/limits.d, LimitMEMLOCK= of a service)",
            Bytes(wanted),
            Bytes(hard)
        ));
    }
    setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard)
        .map_err(|error| format!("cannot raise the limit of pinned memory: {error}"))
}
