//! The core as an operator asks it: who serves which device, and to hand one over.
//!
//! For whoever can wait for the answer. (`bulkhead run` cannot, and has a connection of its own.)

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use ipc::config::DeviceSlot;
use ipc::message::{ToCore, VERSIONS};
use ipc::operator::{Device, Reply, Request};
use ipc::socket::{Peer, SocketError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::supervise::machine::policy::SWAP_PATIENCE;

/// How long the core may take to say what it knows: its main thread answers between two events.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// How long a device may take to do what an operator wants. The core gives it 30 s, and answers then.
pub const CONTROL_PATIENCE: Duration = Duration::from_secs(35);
/// How long an operator waits until a device is gone: longer than the core gives its process to let guest memory go, which is a minute.
pub const REMOVAL_PATIENCE: Duration = Duration::from_secs(75);

/// Why the core did not answer, or said no.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// The connection does not work.
    #[error("cannot talk to the core: {0}")]
    Socket(#[from] SocketError),
    /// It takes too long.
    #[error("the core does not answer")]
    Silent,
    /// It has answered something else.
    #[error("the core answered something else than was asked")]
    Strange,
    /// It could not be done; a sentence.
    #[error("{0}")]
    Failed(String),
}

/// A connection to a core.
#[derive(Debug)]
pub struct Operator {
    peer: Peer,
}

impl Operator {
    /// Connects to the core's socket.
    pub fn connect(socket: &Path) -> Result<Self, CoreError> {
        let peer = Peer::connect(socket)?;
        peer.send(&ToCore::Operator { versions: VERSIONS }, &[])?;
        Ok(Self { peer })
    }

    /// What the core knows of every device.
    pub fn devices(&mut self) -> Result<Vec<Device>, CoreError> {
        match self.ask(&Request::Devices {}, PATIENCE)? {
            Reply::Devices(devices) => Ok(devices),
            _ => Err(CoreError::Strange),
        }
    }

    /// Hands `device` over to the process that stands by, which has `wait` to appear. How long nobody served.
    pub fn swap(&mut self, device: &str, wait: Duration) -> Result<Duration, CoreError> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        match self.ask(&Request::Swap { device: device.to_owned(), wait_ms }, wait + SWAP_PATIENCE)? {
            Reply::Swapped { pause_us, .. } => Ok(Duration::from_micros(pause_us)),
            Reply::Failed { reason, .. } => Err(CoreError::Failed(reason)),
            _ => Err(CoreError::Strange),
        }
    }

    /// Has the VM have one device more.
    pub fn add(&mut self, slot: &DeviceSlot) -> Result<(), CoreError> {
        match self.ask(&Request::DeviceAdd { slot: slot.clone() }, PATIENCE)? {
            Reply::Added { .. } => Ok(()),
            Reply::Failed { reason, .. } => Err(CoreError::Failed(reason)),
            _ => Err(CoreError::Strange),
        }
    }

    /// Has the guest lose a device, whatever it does with it.
    pub fn remove(&mut self, device: &str) -> Result<(), CoreError> {
        let request = Request::DeviceRemove { device: device.to_owned(), force: true };
        match self.ask(&request, REMOVAL_PATIENCE)? {
            Reply::Removed { .. } => Ok(()),
            Reply::Failed { reason, .. } => Err(CoreError::Failed(reason)),
            _ => Err(CoreError::Strange),
        }
    }

    /// Says something to the process that serves `device`. The outer error: nobody has answered.
    pub fn control(
        &mut self,
        device: &str,
        payload: &str,
        fds: Vec<OwnedFd>,
    ) -> Result<Result<String, String>, CoreError> {
        let request = Request::Control { device: device.to_owned(), payload: payload.to_owned() };
        match self.ask_with(&request, fds, CONTROL_PATIENCE)? {
            Reply::Control { result, .. } => Ok(result),
            Reply::Failed { reason, .. } => Err(CoreError::Failed(reason)),
            _ => Err(CoreError::Strange),
        }
    }

    fn ask(&mut self, request: &Request, patience: Duration) -> Result<Reply, CoreError> {
        self.ask_with(request, Vec::new(), patience)
    }

    fn ask_with(
        &mut self,
        request: &Request,
        fds: Vec<OwnedFd>,
        patience: Duration,
    ) -> Result<Reply, CoreError> {
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.peer.send(request, &borrowed)?;
        drop(fds);
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CoreError::Silent);
            }
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.peer.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(SocketError::from(error).into()),
            }
            match self.peer.try_recv() {
                Ok((Reply::CutOff { .. }, _)) | Err(SocketError::WouldBlock) => {}
                Ok((reply, _)) => return Ok(reply),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
