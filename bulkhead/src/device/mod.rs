//! `bulkhead device`: what an operator sees of a running VM's device processes and does about them.
//!
//! Whoever supervises the processes does the work: `bulkhead run` ([`supervised`]) or systemd ([`crate::units`]), each behind
//! [`Backend`]. This module must never kill or start a process itself.

pub mod command;
pub mod core;
pub mod protocol;
pub mod stats;
pub(crate) mod supervised;
mod table;

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::disk::Told;
use crate::disk::words::Change;
use crate::pci::Address;
use crate::runtime_dir::SUPERVISOR_SOCKET;

pub use self::protocol::{Row, State};
pub use self::table::table;

/// Whoever supervises the devices of one VM.
pub trait Backend {
    /// Every device, in the order of the spec.
    fn list(&mut self) -> Result<Vec<Row>, Error>;
    /// Ends the process that serves `device`; another one takes over. What was done, as a sentence.
    fn restart(&mut self, device: &str) -> Result<String, Error>;
    /// Hands `device` over to a new process, of `binary` or of the program that it has, without a break in service. What was done, as a
    /// sentence.
    fn swap(&mut self, device: &str, binary: Option<&Path>) -> Result<String, Error>;
    /// The disks that processes of `device` are started with, each as `--disk` takes it.
    fn disks(&mut self, device: &str) -> Result<Vec<String>, Error>;
    /// Changes the disks of `device`: of all later processes, and, by telling it `payload`, of the one that serves. `fds` are closed as soon
    /// as they are on their way: a lock that the process takes on one would outlive it with our copy.
    fn change(
        &mut self,
        device: &str,
        change: &Change,
        payload: &str,
        fds: Vec<OwnedFd>,
    ) -> Result<Told, Error>;
    /// Says something to the process that serves `device`.
    fn tell(&mut self, device: &str, payload: &str) -> Result<Told, Error>;
    /// Gives the VM a PCI device of the host, called `name` or as its place, with a second process that stands by if `spare`. What was done, as a
    /// sentence.
    fn attach(&mut self, address: Address, name: Option<&str>, spare: bool) -> Result<String, Error>;
    /// Takes a PCI device from the VM; with `force` without asking the guest. What was done, as a sentence.
    fn detach(&mut self, device: &str, force: bool) -> Result<String, Error>;
    /// The user whose processes open the disks.
    fn opener(&self) -> u32;
    /// The directory with the VM's sockets.
    fn runtime(&self) -> PathBuf;
}

/// Why it could not be done. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is known of such a VM.
    #[error("no VM called {vm} runs here (looked in {}); `bulkhead device ls` shows those that do", .base.display())]
    NoSuchVm {
        /// What it was called.
        vm: String,
        /// Where VMs have their directories.
        base: PathBuf,
    },
    /// Its directory is there, its supervisor is not.
    #[error("VM {vm} is not running: what its last run left in {} is cleared away by the next `bulkhead run`", .path.display())]
    NotRunning {
        /// The VM.
        vm: String,
        /// Its directory.
        path: PathBuf,
    },
    /// It belongs to somebody else.
    #[error("you may not manage VM {vm}: that is for root and for the user who runs it (try sudo)")]
    Forbidden {
        /// The VM.
        vm: String,
    },
    /// The VM has no such device.
    #[error("VM {vm} has no device called {device}; it has {}", list(known))]
    NoSuchDevice {
        /// The VM.
        vm: String,
        /// What it was called.
        device: String,
        /// Those that it has.
        known: Vec<String>,
    },
    /// The program of a swap.
    #[error("{} {problem}", .path.display())]
    Binary {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: &'static str,
    },
    /// Whoever supervises it says no, in a sentence.
    #[error("{0}")]
    Failed(String),
    /// The connection does not work.
    #[error("cannot talk to whoever supervises VM {vm}: {error}; is bulkhead of the same release?")]
    Connection {
        /// The VM.
        vm: String,
        /// What went wrong.
        error: ipc::socket::SocketError,
    },
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    }
}

/// Finds out who supervises the VM `vm`, whose directory is in `base`.
pub fn find(base: &Path, vm: &str) -> Result<Box<dyn Backend>, Error> {
    let directory = base.join(vm);
    // A name is no path: nobody's sockets elsewhere are opened.
    let is_name = !vm.is_empty() && !vm.starts_with('.') && !vm.contains('/');
    let found =
        if is_name { directory.symlink_metadata().map_err(|e| e.kind()) } else { Err(ErrorKind::NotFound) };
    match found {
        Err(ErrorKind::PermissionDenied) => return Err(Error::Forbidden { vm: vm.to_owned() }),
        Ok(_) => match supervised::Supervised::connect(&directory.join(SUPERVISOR_SOCKET), vm) {
            Ok(supervised) => return Ok(Box::new(supervised)),
            Err(supervised::NoAnswer::Forbidden) => return Err(Error::Forbidden { vm: vm.to_owned() }),
            Err(supervised::NoAnswer::Nobody) => {}
        },
        Err(_) => {}
    }
    if let Some(backend) = crate::units::backend(base, vm) {
        return Ok(backend);
    }
    match found {
        Ok(_) => Err(Error::NotRunning { vm: vm.to_owned(), path: directory }),
        Err(_) => Err(Error::NoSuchVm { vm: vm.to_owned(), base: base.to_owned() }),
    }
}

/// Names of the VMs that run, sorted.
pub fn running(base: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().join(SUPERVISOR_SOCKET).exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .chain(crate::units::vms(base))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The program of a swap, as an absolute path, if it is one.
pub fn check_binary(path: &Path) -> Result<PathBuf, Error> {
    let wrong = |problem| Error::Binary { path: path.to_owned(), problem };
    let path = std::path::absolute(path).map_err(|_| wrong("is no path: give the path of a program"))?;
    match path.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(wrong("does not exist: give --binary the path of a program"))
        }
        Err(_) => Err(wrong("cannot be looked at: give yourself the right to")),
        Ok(found) if !found.is_file() => Err(wrong("is not a file: give --binary the path of a program")),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => {
            Err(wrong("is not executable: chmod +x, or give --binary the path of a program"))
        }
        Ok(_) => Ok(path),
    }
}
