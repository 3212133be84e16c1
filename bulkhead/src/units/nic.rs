//! The units of a NIC: its processes, and what keeps the other end of its cable (`bulkhead net hold`), with the socket between them.

use std::ffi::OsStr;
use std::path::Path;

use super::content::{HEADER, Sandbox, device_unit, of_core};
use super::escape::{self, Unwritable};
use super::{Names, content};
use crate::net::holder;
use crate::plan::{Device, Network};

/// What a TAP takes: the device file, and to ask the kernel who has it.
const TAP: &str = "DeviceAllow=/dev/net/tun rw\nRestrictAddressFamilies=AF_NETLINK\n";
/// What a macvtap takes: its device file, whose number is another one each time (which the kernel is asked for), and which is root's.
const MACVTAP: &str = "DeviceAllow=char-macvtap rw\nRestrictAddressFamilies=AF_NETLINK\nCapabilityBoundingSet=CAP_DAC_OVERRIDE\nAmbientCapabilities=CAP_DAC_OVERRIDE\n";
/// What `passt` takes: a network; namespaces, which it makes to leave them empty; as many descriptors as it may have, one a
/// connection; what is in /proc about ports.
const PASST: &str = "\
    RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK\nIPAddressDeny=\nRestrictNamespaces=\nRestrictNamespaces=user mnt ipc uts pid\n\
    SystemCallFilter=mount umount2 pivot_root setresuid setresgid setgroups setuid setgid capset seccomp prlimit64 setrlimit\nProcSubset=all\n";

/// A NIC.
pub(super) struct Nic<'a> {
    /// The program.
    pub(super) bulkhead: &'a Path,
    /// Its processes.
    pub(super) device: &'a Device,
    /// What it is connected to.
    pub(super) network: &'a Network,
    /// Of the VM.
    pub(super) names: Names<'a>,
    /// Its number among the VM's devices.
    pub(super) position: usize,
}

impl Nic<'_> {
    /// The drop-in of its processes.
    pub(super) fn device(&self, user: &str) -> Result<String, Unwritable> {
        let name = &self.device.name;
        let (path, unit) = self.names.holder_socket(name, self.position);
        let option = match self.network {
            Network::Tap { .. } | Network::Macvtap { .. } => "--tap-socket",
            Network::Passt { .. } => "--stream-socket",
        };
        let mut sandbox = Sandbox::default();
        sandbox.read(&self.device.program)?;
        let after = format!(" {unit} {}", self.names.holder(name));
        device_unit(self.device, &[OsStr::new(option), path.as_os_str()], self.names, &after, user, &sandbox)
    }

    /// The other units and their drop-ins. `user` is that of the processes, `helper` a second one.
    pub(super) fn others(&self, user: &str, helper: &str) -> Result<[(String, String); 2], Unwritable> {
        let (names, name) = (self.names, &self.device.name);
        let (path, socket) = names.holder_socket(name, self.position);
        let (of_core, core) = (of_core(names), names.core());
        let listen = format!(
            "{HEADER}[Unit]\n{of_core}After={core}\n[Socket]\nListenSequentialPacket={}\n",
            // Names of VMs need no escaping.
            path.display()
        );
        let (who, more, program) = match self.network {
            // A TAP is its owner's, and that is the device.
            Network::Tap { .. } => (user, TAP, None),
            Network::Macvtap { .. } => (user, MACVTAP, None),
            Network::Passt { program, .. } => (helper, PASST, Some(program)),
        };
        let mut sandbox = Sandbox::default();
        for path in std::iter::once(self.bulkhead).chain(program.map(AsRef::as_ref)) {
            sandbox.read(path)?;
        }
        // The device's id is there whenever units are written.
        let words = holder::arguments(name, self.device.id.unwrap_or(0), self.network);
        let command = std::iter::once(self.bulkhead.as_os_str()).chain(words.iter().map(OsStr::new));
        let command = escape::command_line(command)?;
        let [first, second] = names.device(content::kind(self.device), name);
        let service = format!(
            "{HEADER}[Unit]\n{of_core}Requires={socket}\nAfter={core} {socket}\n\
             [Service]\nUser={who}\nExecStart=\nExecStart={command}\n\
             # Its processes have what the last one opened: they get what the next one opens when they are started again.\n\
             ExecStopPost=-+/usr/bin/systemctl kill --signal=KILL {first} {second}\n{more}{}",
            sandbox.text
        );
        Ok([(socket, listen), (names.holder(name), service)])
    }
}
