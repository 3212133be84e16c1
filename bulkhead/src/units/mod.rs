//! A VM run by systemd: `bulkhead units` writes its units, `bulkhead device` works with them. The other way to the same thing as
//! [`crate::supervise`].
//!
//! * [`content`]: from a VM to files, pure; [`escape`]: values in them that no path can break out of; [`ids`]: users
//! * `nic`: the units of NICs; `screen`: those of a screen; `pci`: those of PCI devices
//! * [`install`]: writes them, once, and removes them; [`command`]: the command
//! * [`systemctl`]: asks systemd and tells it; [`device`]: `ls` and `restart` with it; `swap`: one process for another without a break; `disks`:
//!   what a device is started with changes
//!
//! systemd is the supervisor: it must never be needed for anything that the core or a device does for the guest, and nothing that
//! has to survive a process is kept in it.

pub mod command;
pub mod content;
pub mod device;
mod disks;
pub mod escape;
pub mod ids;
pub mod install;
mod nic;
mod pci;
mod screen;
mod swap;
pub mod systemctl;

use std::path::{Path, PathBuf};

pub use self::device::{backend, vms};

/// Where units are, below the root directory.
const UNITS: &str = "etc/systemd/system";
/// Where VMs have what is theirs, each in a directory with its name.
const CONFIG: &str = "etc/bulkhead";
/// Where users are declared.
const SYSUSERS: &str = "etc/sysusers.d";

/// What a VM's units, files and sockets are called. Names of VMs and devices are made of `a-z`, `0-9` and `-`, so they can be part
/// of unit names as they are; the colon between them is in neither.
#[derive(Clone, Copy, Debug)]
struct Names<'a> {
    vm: &'a str,
}

impl<'a> Names<'a> {
    fn of(vm: &'a str) -> Self {
        Self { vm }
    }

    fn target(self) -> String {
        format!("bulkhead-vm@{}.target", self.vm)
    }

    fn core(self) -> String {
        format!("bulkhead-core@{}.service", self.vm)
    }

    fn socket(self) -> String {
        format!("bulkhead-core@{}.socket", self.vm)
    }

    /// The two units of a device: one serves, the other one stands by or takes over in a swap, and then they change parts.
    fn device(self, kind: &str, device: &str) -> [String; 2] {
        let vm = self.vm;
        [format!("{kind}@{vm}:{device}.service"), format!("{kind}@{vm}:{device}:b.service")]
    }

    /// The unit that keeps what a NIC is connected to.
    fn holder(self, device: &str) -> String {
        format!("bulkhead-net@{}:{device}.service", self.vm)
    }

    /// The socket on which that gives it to the device's processes: its path, and its unit. A path has room for the name of the VM, but not
    /// for the device's as well: a number.
    fn holder_socket(self, device: &str, position: usize) -> (PathBuf, String) {
        let unit = format!("bulkhead-net@{}:{device}.socket", self.vm);
        (self.runtime().join(format!("net{position}.sock")), unit)
    }

    /// The unit that keeps what lies between the processes of a screen,
    fn seat(self) -> String {
        format!("bulkhead-seat@{}.service", self.vm)
    }

    /// and the one of its sockets.
    fn seat_socket(self) -> String {
        format!("bulkhead-seat@{}.socket", self.vm)
    }

    /// Its runtime directory; not below /run/bulkhead, where `bulkhead run` clears away whatever has no lock.
    fn runtime(self) -> PathBuf {
        format!("/run/bulkhead@{}", self.vm).into()
    }

    fn core_socket(self) -> PathBuf {
        self.runtime().join("core.sock")
    }

    fn console(self) -> PathBuf {
        self.runtime().join("console.sock")
    }

    /// Below the root directory.
    fn configuration(self) -> PathBuf {
        Path::new(CONFIG).join(self.vm)
    }

    fn sysusers(self) -> String {
        format!("bulkhead-{}.conf", self.vm)
    }
}
