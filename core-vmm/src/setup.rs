//! From configuration to [`Parts`]: everything is opened here, then the compartment is closed.

use std::{
    fs,
    os::fd::{AsRawFd, RawFd},
    path::Path,
    sync::Arc,
};

use ipc::{
    config::{Console as ConsoleConfig, CoreConfig, DeviceSlot},
    socket::{Listener, SocketError},
};
use sandbox::{Compartment, Ids, Namespaces, Want};

use crate::{
    boot::{BootError, Payload},
    kvm::{
        Host, HostError,
        machine::{Wires, descriptors},
        signal,
    },
    legacy::{
        Platform,
        console::{Console, Overflow},
    },
    memory::{MemoryError, Ram, large},
    runner::Parts,
    server::{Server, ServerError},
    terminal::Terminal,
};

/// VPs at most; the APIC ids of one socket and the ACPI tables have room for them.
pub const MAX_VPS: u32 = 64;
/// The least RAM that a Linux kernel starts in.
pub const MIN_RAM: u64 = 64 << 20;
/// RAM comes in units of a large page.
pub const RAM_UNIT: u64 = 2 << 20;

/// Why the VM cannot be set up on this host.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The configuration cannot be read.
    #[error("cannot read the configuration {path}: {reason}")]
    Config {
        /// Its path.
        path: String,
        /// Why.
        reason: String,
    },
    /// A figure is out of range.
    #[error("{0}")]
    Range(String),
    /// KVM.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initrd, command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Devices.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The listening socket that was inherited.
    #[error("descriptor {fd} is not a listening control socket: {source}")]
    Listener {
        /// Its number.
        fd: RawFd,
        /// What is wrong with it.
        source: SocketError,
    },
    /// Anything that has to be opened.
    #[error("cannot open {what}: {source}")]
    Open {
        /// What.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The compartment.
    #[error("cannot enter the compartment: {0}")]
    Sandbox(#[from] sandbox::Error),
}

/// Reads the configuration; `path` may be `/proc/self/fd/N`.
pub fn read_config(path: &Path) -> Result<CoreConfig, SetupError> {
    let fail = |reason: String| SetupError::Config { path: path.display().to_string(), reason };
    let text = fs::read(path).map_err(|e| fail(e.to_string()))?;
    serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))
}

fn check(config: &CoreConfig) -> Result<(), SetupError> {
    if !(1..=MAX_VPS).contains(&config.vcpus) {
        return Err(SetupError::Range(format!("{} virtual processors; give 1 to {MAX_VPS}", config.vcpus)));
    }
    if config.memory < MIN_RAM || !config.memory.is_multiple_of(RAM_UNIT) {
        return Err(SetupError::Range(format!(
            "{} bytes of guest memory; give at least {MIN_RAM}, in multiples of {RAM_UNIT}",
            config.memory
        )));
    }
    Ok(())
}

/// Opens everything that the VM needs. `listener` is the inherited control socket.
pub fn open(config: &CoreConfig, listener: Option<RawFd>) -> Result<Parts, SetupError> {
    // First, while no descriptor of ours can be taken for it.
    let listener = match listener {
        Some(fd) => Some(Listener::inherited(fd).map_err(|source| SetupError::Listener { fd, source })?),
        None => None,
    };
    check(config)?;
    let host = Host::open(config.vcpus)?;
    signal::install().map_err(|source| SetupError::Open { what: "signal handler".into(), source })?;
    let payload = Payload::open(&config.kernel, config.initrd.as_deref(), &config.cmdline, config.efi)?;
    let ram = Ram::new(config.memory, config.prefault)?;
    let wires =
        Wires::new(config.vcpus).map_err(|source| SetupError::Open { what: "eventfds".into(), source })?;
    let (overflow, terminal) = open_terminal(&config.console)?;
    let console = Console::new(overflow, wires.serial(), Arc::clone(&wires.wake));
    let platform = Platform::new(console);
    let own = nix::unistd::geteuid().as_raw();
    let mut trusted = vec![0, own];
    trusted.extend(config.uid);
    let server = Server::new(&config.name, ram.clone(), config.vcpus, &config.devices, trusted)?;
    Ok(Parts {
        host,
        ram,
        vps: config.vcpus,
        payload,
        wires: Arc::new(wires),
        platform: Arc::new(platform),
        server,
        listener,
        terminal,
        on_crash: config.on_crash,
        prefault: config.prefault,
        large_pages: config.hugepages || large::host_prefers(),
        pins: pins(&config.devices),
        restrict: if config.sandbox { restrict_vp } else { || Ok(()) },
    })
}

/// Whether all of RAM will be pinned for a device of the host's, and so has to be made of large pages before that.
fn pins(devices: &[DeviceSlot]) -> bool {
    devices.iter().any(|device| device.passthrough && device.guest_ram)
}

fn open_terminal(config: &ConsoleConfig) -> Result<(Overflow, Terminal), SetupError> {
    let fail = |what: String| move |source| SetupError::Open { what, source };
    match config {
        ConsoleConfig::Stdio => {
            let terminal = Terminal::stdio().map_err(fail("standard input and output".into()))?;
            Ok((Overflow::Wait, terminal))
        }
        ConsoleConfig::Socket(path) => {
            let what = format!("console socket {}", path.display());
            Ok((Overflow::Drop, Terminal::socket(path).map_err(fail(what))?))
        }
    }
}

fn restrict_vp() -> Result<(), String> {
    sandbox::restrict_thread(policies::VCPU).map_err(|e| e.to_string())
}

/// The namespaces of a core. `own_pids`: whoever started it was to start it in a PID namespace, else that is no gap.
fn namespaces(config: &CoreConfig, own_pids: bool) -> Namespaces {
    let peers = config.devices.iter().filter_map(|d| d.uid).chain(config.later_uids.iter().copied());
    let pid = if own_pids { Want::Try } else { Want::No };
    Namespaces { pid, ..Namespaces::all() }.recognising(peers.chain([0]))
}

/// Closes the door. From here on nothing is opened, and the policy `core-vmm` decides. `own_pids`: a PID namespace is expected.
pub fn close_door(config: &CoreConfig, parts: &Parts, own_pids: bool) -> Result<(), SetupError> {
    let mut keep = descriptors(&parts.host, &parts.wires);
    keep.extend([2, parts.ram.memfd().as_raw_fd()]);
    keep.extend(logs::descriptors());
    keep.extend(parts.payload.descriptors());
    keep.extend(parts.server.descriptors());
    keep.extend(parts.listener.as_ref().map(AsRawFd::as_raw_fd));
    keep.extend(parts.terminal.descriptors());
    let ids = config.uid.map(|uid| Ids { uid, gid: config.gid.unwrap_or(uid) });
    let compartment = Compartment {
        name: "core-vmm",
        ids,
        keep,
        policy: policies::CORE,
        namespaces: namespaces(config, own_pids),
        heir: false,
    };
    let entered = compartment.enter()?;
    if !own_pids {
        tracing::info!("without a PID namespace, as whoever started this intends");
    }
    if entered.is_complete() {
        tracing::debug!("in the compartment: {entered}");
    } else {
        tracing::warn!("the compartment has gaps that this host does not let us close: {entered}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_pinned_for_a_device_of_the_hosts_that_has_all_of_it() {
        let device = |rest: &str| -> DeviceSlot {
            serde_json::from_str(&format!(r#"{{"name":"d","instance":"",{rest}}}"#)).unwrap()
        };
        let (disk, pci) = (device(r#""guest_ram":true"#), device(r#""guest_ram":true,"passthrough":true"#));
        assert!(pins(&[disk.clone(), pci]));
        assert!(!pins(&[disk, device(r#""passthrough":true"#)]));
    }

    #[test]
    fn a_pid_namespace_is_missed_unless_it_is_known_to_be_missing() {
        let text = r#"{"name":"a","vcpus":1,"memory":536870912,"kernel":"/k","devices":[{"name":"d","instance":"","uid":70001}]}"#;
        let config: CoreConfig = serde_json::from_str(text).unwrap();
        let expected = namespaces(&config, true);
        assert_eq!(expected, Namespaces::all().recognising([70001, 0]));
        assert_eq!(namespaces(&config, false), Namespaces { pid: Want::No, ..expected });
    }
}
