//! Descriptors of a disk, for a process that cannot open any more.
//!
//! How a disk is opened (for writing, past the page cache, twice), and what its process has to know of it, only the device's program
//! knows. So that opens it, in a process of ours and with our rights, and hands over what it has: we see descriptors, and a text that we
//! pass on as it is.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use ipc::socket::{Peer, SocketError};
use sandbox::Want;
use sandbox::spawn::Command;

use super::shown;
use crate::device::Error;

/// Number of the socket in the child.
const SOCKET: i32 = 3;
/// How a program ends that does not understand its arguments (clap's code for that).
const USAGE: i32 = 2;

/// Has `program` open a disk of `device`: what to say to its process, and what to give to it.
pub fn disk(program: &Path, device: &str, word: &str) -> Result<(String, Vec<OwnedFd>), Error> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::Failed(format!("{} cannot open the disk: {error}", program.display()))
    };
    let (ours, theirs) = Peer::pair().map_err(|error| failed(&error))?;
    let mut child = Command::new(program)
        .args(["--device", device, "--disk", word, "--open-for", &SOCKET.to_string()])
        .fd(theirs.as_fd(), SOCKET)
        .pid_namespace(Want::No)
        .spawn()
        .map_err(|error| failed(&error))?;
    drop(theirs);
    let said = ours.recv::<Result<String, String>>();
    let ended = child.wait().ok().and_then(|status| status.code());
    match said {
        Ok((Ok(payload), fds)) => Ok((payload, fds)),
        Ok((Err(why), _)) => Err(Error::Failed(shown(&why))),
        // What it does not understand, it has said itself.
        Err(SocketError::Closed) if ended == Some(USAGE) => {
            Err(failed(&"it does not take these options (see above)"))
        }
        Err(SocketError::Closed) => Err(failed(&"it does not know how to; is it of the same release?")),
        Err(error) => Err(failed(&error)),
    }
}
