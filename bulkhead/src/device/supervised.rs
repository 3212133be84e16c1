//! A VM under `bulkhead run`: the questions go to its supervisor's socket.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use ipc::socket::{Peer, SocketError};

use super::core::{CoreError, Operator};
use super::protocol::{Reply, Request, Row};
use super::{Backend, Error};
use crate::disk::words::Change;
use crate::disk::{Told, shown};
use crate::pci::Address;
use crate::runtime_dir::CORE_SOCKET;

/// Nobody can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// Nobody listens.
    Nobody,
    /// We may not ask.
    Forbidden,
}

/// The supervisor of one VM.
#[derive(Debug)]
pub(super) struct Supervised {
    vm: String,
    socket: PathBuf,
    /// The supervisor's user.
    owner: u32,
    /// The connection for the first request.
    peer: Option<Peer>,
}

impl Supervised {
    pub(super) fn connect(socket: &Path, vm: &str) -> Result<Self, NoAnswer> {
        match Peer::connect(socket) {
            Ok(peer) => {
                let owner = peer.credentials().map_or(0, |found| found.uid);
                Ok(Self { vm: vm.to_owned(), socket: socket.to_owned(), owner, peer: Some(peer) })
            }
            Err(SocketError::Io(error)) if error.kind() == ErrorKind::PermissionDenied => {
                Err(NoAnswer::Forbidden)
            }
            Err(_) => Err(NoAnswer::Nobody),
        }
    }

    fn ask(&mut self, request: &Request, device: &str) -> Result<Reply, Error> {
        self.ask_with(request, Vec::new(), device)
    }

    fn ask_with(&mut self, request: &Request, fds: Vec<OwnedFd>, device: &str) -> Result<Reply, Error> {
        let failed = |error| match error {
            // It hangs up on strangers without a word, and at its own end.
            SocketError::Closed => Error::Failed(format!(
                "the supervisor of VM {} hung up: the VM has ended, or you may not manage it (that is for root and for the user \
                 who runs it)",
                self.vm
            )),
            error => Error::Connection { vm: self.vm.clone(), error },
        };
        let peer = match self.peer.take() {
            Some(peer) => peer,
            None => Peer::connect(&self.socket).map_err(failed)?,
        };
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        peer.send(request, &borrowed).map_err(failed)?;
        drop(fds);
        match peer.recv().map_err(failed)?.0 {
            Reply::Failed { reason } => Err(Error::Failed(reason)),
            Reply::NoSuchDevice { known } => {
                Err(Error::NoSuchDevice { vm: self.vm.clone(), device: device.to_owned(), known })
            }
            reply => Ok(reply),
        }
    }

    fn done(&mut self, request: &Request, device: &str) -> Result<String, Error> {
        match self.ask(request, device)? {
            Reply::Done { what } => Ok(what),
            _ => Err(self.strange()),
        }
    }

    fn strange(&self) -> Error {
        Error::Failed(format!(
            "the supervisor of VM {} answered something else than was asked; is bulkhead of the same release?",
            self.vm
        ))
    }
}

impl Backend for Supervised {
    fn list(&mut self) -> Result<Vec<Row>, Error> {
        match self.ask(&Request::List {}, "")? {
            Reply::Devices(rows) => Ok(rows),
            _ => Err(self.strange()),
        }
    }

    fn restart(&mut self, device: &str) -> Result<String, Error> {
        self.done(&Request::Restart { device: device.to_owned() }, device)
    }

    fn swap(&mut self, device: &str, binary: Option<&Path>) -> Result<String, Error> {
        let binary = binary.map(Path::to_owned);
        self.done(&Request::Swap { device: device.to_owned(), binary }, device)
    }

    fn disks(&mut self, device: &str) -> Result<Vec<String>, Error> {
        match self.ask(&Request::Disks { device: device.to_owned() }, device)? {
            Reply::Disks(words) => Ok(words),
            _ => Err(self.strange()),
        }
    }

    fn change(
        &mut self,
        device: &str,
        change: &Change,
        payload: &str,
        fds: Vec<OwnedFd>,
    ) -> Result<Told, Error> {
        let (change, payload) = (change.clone(), payload.to_owned());
        let request = Request::Change { device: device.to_owned(), change, payload };
        match self.ask_with(&request, fds, device)? {
            Reply::Told { answer } => Ok(Told::Done(answer)),
            Reply::Again { reason } => Ok(Told::Again(reason)),
            _ => Err(self.strange()),
        }
    }

    fn attach(&mut self, address: Address, name: Option<&str>, spare: bool) -> Result<String, Error> {
        let (address, name) = (address.to_string(), name.map(str::to_owned));
        self.done(&Request::Attach { address, name, spare }, "")
    }

    fn detach(&mut self, device: &str, force: bool) -> Result<String, Error> {
        self.done(&Request::Detach { device: device.to_owned(), force }, device)
    }

    /// The core is asked without a detour: nothing changes for the supervisor.
    fn tell(&mut self, device: &str, payload: &str) -> Result<Told, Error> {
        tell(&self.socket.with_file_name(CORE_SOCKET), device, payload, Vec::new())
    }

    fn opener(&self) -> u32 {
        self.owner
    }

    fn runtime(&self) -> PathBuf {
        self.socket.parent().unwrap_or(Path::new("/")).to_owned()
    }
}

/// Says something to the process that serves `device` of the core that listens at `core`.
pub(crate) fn tell(core: &Path, device: &str, payload: &str, fds: Vec<OwnedFd>) -> Result<Told, Error> {
    let told = Operator::connect(core).and_then(|mut operator| operator.control(device, payload, fds));
    match told {
        Ok(Ok(answer)) => Ok(Told::Done(answer)),
        Ok(Err(why)) => Ok(Told::Refused(format!("{device}: {}", shown(&why)))),
        Err(CoreError::Failed(why)) => Ok(Told::Again(format!("{device}: {why}"))),
        Err(error) => Err(Error::Failed(error.to_string())),
    }
}
