//! The configuration that the supervisor writes and the core reads, as JSON.
//!
//! It is the machine form of `vm.toml`: paths are absolute, defaults are filled in, storage has
//! become device slots. Unknown fields are ignored so that an older core can be started by a newer
//! supervisor. This module is data only; what a value means is checked where it is used.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One VM as its core sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreConfig {
    /// Name of the VM, `[a-z0-9-]`.
    pub name: String,
    /// Virtual processors, 1 to 64.
    pub vcpus: u32,
    /// Guest RAM in bytes; a multiple of 2 MiB.
    pub memory: u64,
    /// Gather guest RAM into 2 MiB pages, also where the host does not do so by itself.
    #[serde(default)]
    pub hugepages: bool,
    /// Touch all of guest RAM before the guest starts.
    #[serde(default)]
    pub prefault: bool,
    /// bzImage, or ELF with a PVH note.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// Hand over as UEFI firmware would, so that the guest's kernel takes itself for started by one. Some drivers of Hyper-V's devices
    /// ask that, to tell the two kinds of its machines apart.
    #[serde(default, skip_serializing_if = "is_false")]
    pub efi: bool,
    /// Where the guest's serial console goes.
    #[serde(default)]
    pub console: Console,
    /// The devices that may attach, each once.
    #[serde(default)]
    pub devices: Vec<DeviceSlot>,
    /// Users that devices may run as which are added later ([`crate::operator::Request::DeviceAdd`]): the core has to be able to tell them apart
    /// once its compartment is closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later_uids: Vec<u32>,
    /// User that the core becomes once everything is open; `None`: stays what it is.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Group that the core becomes.
    #[serde(default)]
    pub gid: Option<u32>,
    /// What a crash of the guest means.
    #[serde(default)]
    pub on_crash: OnCrash,
    /// Enter the compartment. Only tests and debugging turn it off.
    #[serde(default = "yes")]
    pub sandbox: bool,
}

/// Where the guest's serial console goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Console {
    /// Standard input and output of the core.
    #[default]
    Stdio,
    /// A listening unix stream socket at this path, one client at a time.
    Socket(PathBuf),
}

/// What a crash of the guest means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnCrash {
    /// The core exits with code 3.
    #[default]
    Exit,
    /// The guest goes on, so that its own kdump can run.
    Continue,
}

/// A place that one device process may attach to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSlot {
    /// The name that the process says in its `Hello`.
    pub name: String,
    /// Instance GUID of the offer; stable over restarts of the VM, or the guest renames its devices.
    pub instance: String,
    /// User that the process may run as, besides root and the core's own; `None`: only those.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Whether the process is given guest RAM.
    #[serde(default)]
    pub guest_ram: bool,
    /// Whether the process may have bytes fetched that a packet in its rings names ([`crate::message::ToCore::Fetch`]).
    #[serde(default)]
    pub fetch: bool,
    /// Most bytes of its own memory that the process may have the guest see at a time ([`crate::message::ToCore::MapMemory`]).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub device_memory: u64,
    /// Whether the process passes a device of the host's through: it may have the core keep descriptors, map parts of a device for the guest, trap
    /// accesses and route interrupts ([`crate::message::PASSTHROUGH_VERSION`]).
    #[serde(default, skip_serializing_if = "is_false")]
    pub passthrough: bool,
}

fn yes() -> bool {
    true
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_config_has_safe_defaults() {
        let text = r#"{"name":"a","vcpus":1,"memory":536870912,"kernel":"/k","from_the_future":1}"#;
        let config: CoreConfig = serde_json::from_str(text).unwrap();
        assert!(config.sandbox);
        assert_eq!(config.on_crash, OnCrash::Exit);
        assert_eq!(config.console, Console::Stdio);
        assert!(config.devices.is_empty());
    }

    #[test]
    fn a_config_survives_the_trip() {
        let config = CoreConfig {
            name: "debian".into(),
            vcpus: 2,
            memory: 2 << 30,
            hugepages: false,
            prefault: true,
            kernel: "/boot/vmlinuz".into(),
            initrd: Some("/boot/initrd".into()),
            cmdline: "root=/dev/sda".into(),
            efi: true,
            console: Console::Socket("/run/c.sock".into()),
            devices: vec![DeviceSlot {
                name: "disk0".into(),
                instance: "00000000-0000-0000-0000-000000000001".into(),
                uid: Some(70000),
                guest_ram: true,
                fetch: false,
                device_memory: 32 << 20,
                passthrough: true,
            }],
            later_uids: vec![70009],
            uid: None,
            gid: None,
            on_crash: OnCrash::Continue,
            sandbox: true,
        };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<CoreConfig>(&text).unwrap(), config);
    }
}
