//! From configuration to [`Parts`]: everything is opened here, then the compartment is closed.

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    path::Path,
    sync::Arc,
};

use ipc::{
    config::{Console as ConsoleConfig, CoreConfig, OnCrash},
    socket::{Listener, SocketError},
};
use sandbox::{Compartment, Ids, Namespaces};

use crate::{
    boot::{BootError, Payload},
    kvm::{
        Host, HostError,
        machine::{Wires, descriptors},
        signal,
    },
    legacy::{
        Platform,
        console::{Console, Sink},
    },
    memory::{MemoryError, Ram},
    runner::{Input, Parts},
    server::{Server, ServerError},
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
    check(config)?;
    let host = Host::open(config.vcpus)?;
    signal::install().map_err(|source| SetupError::Open { what: "signal handler".into(), source })?;
    let payload = Payload::open(&config.kernel, config.initrd.as_deref(), &config.cmdline)?;
    let ram = Ram::new(config.memory, config.hugepages, config.prefault)?;
    let wires =
        Wires::new(config.vcpus).map_err(|source| SetupError::Open { what: "eventfds".into(), source })?;
    let listener = listener.map(inherit_listener).transpose()?;
    let (sink, input) = open_console(&config.console)?;
    let console = Console::new(sink, wires.serial());
    let platform = Platform::new(console, config.on_crash == OnCrash::Exit);
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
        input,
        on_crash: config.on_crash,
        restrict: if config.sandbox { restrict_vp } else { || Ok(()) },
    })
}

fn inherit_listener(fd: RawFd) -> Result<Listener, SetupError> {
    let owned = crate::memory::inherit(fd)
        .map_err(|source| SetupError::Open { what: format!("descriptor {fd}"), source })?;
    Listener::from_fd(owned).map_err(|source| SetupError::Listener { fd, source })
}

fn open_console(config: &ConsoleConfig) -> Result<(Sink, Input), SetupError> {
    let fail = |what: &str| {
        let what = what.to_owned();
        move |source| SetupError::Open { what, source }
    };
    match config {
        ConsoleConfig::Stdio => {
            let dup = |fd: &dyn AsFdDyn| fd.dup();
            let output = dup(&std::io::stdout()).map_err(fail("standard output"))?;
            let input = dup(&std::io::stdin()).map_err(fail("standard input"))?;
            Ok((Sink::File(output), Input::File(Some(input))))
        }
        ConsoleConfig::Socket(path) => {
            let what = format!("console socket {}", path.display());
            let listener = UnixListener::bind(path).map_err(fail(&what))?;
            listener.set_nonblocking(true).map_err(fail(&what))?;
            Ok((Sink::Client(None), Input::Socket(listener, None)))
        }
    }
}

/// `AsFd` as a trait object.
trait AsFdDyn {
    fn dup(&self) -> std::io::Result<OwnedFd>;
}

impl<T: AsFd> AsFdDyn for T {
    fn dup(&self) -> std::io::Result<OwnedFd> {
        self.as_fd().try_clone_to_owned()
    }
}

fn restrict_vp() -> Result<(), String> {
    sandbox::restrict_thread(policies::VCPU).map_err(|e| e.to_string())
}

/// Closes the door. From here on nothing is opened, and the policy `core-vmm` decides.
pub fn close_door(config: &CoreConfig, parts: &Parts) -> Result<(), SetupError> {
    let mut keep = descriptors(&parts.host, &parts.wires);
    keep.extend([2, parts.ram.memfd().as_raw_fd()]);
    keep.extend(parts.payload.descriptors());
    keep.extend(parts.server.descriptors());
    keep.extend(parts.platform.console().descriptor());
    keep.extend(parts.listener.as_ref().map(AsRawFd::as_raw_fd));
    match &parts.input {
        Input::File(fd) => keep.extend(fd.as_ref().map(AsRawFd::as_raw_fd)),
        Input::Socket(listener, _) => keep.push(listener.as_raw_fd()),
    }
    let ids = config.uid.map(|uid| Ids { uid, gid: config.gid.unwrap_or(uid) });
    let peers = config.devices.iter().filter_map(|d| d.uid);
    let compartment = Compartment {
        name: "core-vmm",
        ids,
        keep,
        policy: policies::CORE,
        namespaces: Namespaces::all().recognising(peers.chain([0])),
    };
    let entered = compartment.enter()?;
    tracing::debug!(?entered, "compartment closed");
    Ok(())
}
