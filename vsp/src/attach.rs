//! Joining a VM: find the core's socket, say hello, be welcomed.

use ipc::message::{ToCore, ToVsp, VERSIONS};
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
    /// No descriptor came with the RAM regions.
    #[error("guest RAM was announced but did not come")]
    NoRam,
}

/// Connects as the command line says. The socket waits on sends and never on [`Peer::try_recv`].
pub(crate) fn connect(common: &Common) -> Result<Peer, AttachError> {
    match (common.core_fd, &common.core) {
        (Some(number), _) => Ok(Peer::inherited(number)?),
        (None, Some(path)) => Ok(Peer::connect(path)?),
        (None, None) => Err(AttachError::Nowhere),
    }
}

/// Offers the device and waits for the core's answer.
pub(crate) fn attach(peer: &Peer, name: &str, device: &impl Device) -> Result<Vm, AttachError> {
    let hello = ToCore::Hello {
        versions: VERSIONS,
        device: name.to_owned(),
        offer: device.offer(),
        ledger: 0,
        build: String::new(),
    };
    peer.send(&hello, &[])?;
    let (answer, mut fds) = peer.recv()?;
    match answer {
        ToVsp::Welcome { version, vm, vps, ram, .. } => {
            if !(VERSIONS.min..=VERSIONS.max).contains(&version) {
                return Err(AttachError::Version(version));
            }
            let ram = match ram {
                None => None,
                Some(regions) => {
                    let fd = fds.pop().ok_or(AttachError::NoRam)?;
                    Some(GuestRam::new(&SharedMemory::from_fd(fd, 0)?, &regions)?)
                }
            };
            Ok(Vm { name: vm, vps, ram })
        }
        ToVsp::Refused { reason } => Err(AttachError::Refused(reason)),
        _ => Err(AttachError::NotWelcome),
    }
}
