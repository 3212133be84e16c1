//! A VM under `bulkhead run`: the questions go to its supervisor's socket.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ipc::socket::{Peer, SocketError};

use super::protocol::{Reply, Request, Row};
use super::{Backend, Error};

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
    /// The connection for the first request.
    peer: Option<Peer>,
}

impl Supervised {
    pub(super) fn connect(socket: &Path, vm: &str) -> Result<Self, NoAnswer> {
        match Peer::connect(socket) {
            Ok(peer) => Ok(Self { vm: vm.to_owned(), socket: socket.to_owned(), peer: Some(peer) }),
            Err(SocketError::Io(error)) if error.kind() == ErrorKind::PermissionDenied => {
                Err(NoAnswer::Forbidden)
            }
            Err(_) => Err(NoAnswer::Nobody),
        }
    }

    fn ask(&mut self, request: &Request, device: &str) -> Result<Reply, Error> {
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
        peer.send(request, &[]).map_err(failed)?;
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
}
