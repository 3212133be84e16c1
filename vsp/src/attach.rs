//! Joining a VM: find the core's socket, say hello, be welcomed.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use ipc::message::{RamRegion, ToCore, VERSIONS};
use ipc::shm::{GuestRam, RamError, SharedMemory, ShmError};
use ipc::socket::{Peer, SocketError};
use thiserror::Error;

use crate::cli::Common;
use crate::device::{Device, Vm};

/// Why a device process could not join a VM.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Neither `--core` nor `--core-fd`.
    #[error("nothing to attach to: give --core PATH or --core-fd FD")]
    Nowhere,
    /// The socket does not work.
    #[error("cannot talk to the core: {0}")]
    Socket(#[from] SocketError),
    /// The core said no.
    #[error("the core refuses this device: {0}")]
    Refused(String),
    /// The core spoke out of turn.
    #[error("the core answered a hello with something else")]
    NotWelcome,
    /// A protocol version that we did not offer.
    #[error("the core chose version {0} of the control protocol, which this build does not speak")]
    Version(u32),
    /// The RAM memfd cannot be used.
    #[error("guest RAM: {0}")]
    Ram(#[from] RamError),
    /// The RAM memfd is missing or not what it should be.
    #[error("guest RAM: {0}")]
    Memory(#[from] ShmError),
    /// The RAM memfd cannot be looked at.
    #[error("guest RAM: {0}")]
    Identity(#[source] std::io::Error),
    /// No descriptor came with the RAM regions.
    #[error("guest RAM was announced but did not come")]
    NoRam,
}

/// Connects as the command line says. The socket waits on sends and never on [`Peer::try_recv`].
///
/// A core that is not there yet is waited for only where somebody listens in its place (systemd does); a socket that is not
/// there is an error.
pub(crate) fn connect(common: &Common) -> Result<Peer, AttachError> {
    match (common.core_fd, &common.core) {
        (Some(number), _) => Ok(Peer::inherited(number)?),
        (None, Some(path)) => Ok(Peer::connect(path)?),
        (None, None) => Err(AttachError::Nowhere),
    }
}

/// What the device says of itself. `ledger`: it is to have one if it wants one.
pub(crate) fn hello(name: &str, device: &impl Device, ledger: bool) -> ToCore {
    let ledger = ledger && device.ledger();
    ToCore::Hello {
        versions: VERSIONS,
        device: name.to_owned(),
        offer: device.offer(),
        ledger: if ledger { ipc::ledger::bytes(device.depth()) } else { 0 },
        build: option_env!("BULKHEAD_BUILD").unwrap_or(env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// The VM that the core's welcome is about.
pub(crate) fn join(
    version: u32,
    name: String,
    vps: u32,
    ram: Option<Vec<RamRegion>>,
    mut fds: Vec<OwnedFd>,
) -> Result<Vm, AttachError> {
    if !(VERSIONS.min..=VERSIONS.max).contains(&version) {
        return Err(AttachError::Version(version));
    }
    let Some(regions) = ram else { return Ok(Vm { name, vps, memory: 0, ram: None }) };
    let file = File::from(fds.pop().ok_or(AttachError::NoRam)?);
    let memory = file.metadata().map_err(AttachError::Identity)?.ino();
    let ram = GuestRam::new(&SharedMemory::from_fd(file.into(), 0)?, &regions)?;
    Ok(Vm { name, vps, memory, ram: Some(ram) })
}
