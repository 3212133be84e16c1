//! How a function is opened, before the compartment closes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::{Dma, Function, sys};

/// How long others may look at the function before it is given up, and how often to try.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// The same for a group that somebody has open: `bulkhead pci ls` opens it for a moment to see whether somebody has.
const LOOKING: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_millis(10);

/// The container's node.
const CONTAINER: &str = "/dev/vfio/vfio";

/// Why a function cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Not even the node.
    #[error("cannot open {path}: {error}{hint}", hint = hint(error))]
    Node {
        /// Which.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// It speaks another language.
    #[error("this kernel's VFIO has no IOMMU of type 1, version 2")]
    NoIommu,
    /// Others have devices of the group.
    #[error(
        "group {0} is not viable: other devices of it are used by the host; `bulkhead pci ls` says which"
    )]
    NotViable(u32),
    /// The group cannot be put into the container.
    #[error("the group cannot be used: {0}")]
    Group(io::Error),
    /// The function is not the group's, or not bound to vfio-pci.
    #[error("{address} cannot be opened: {error}; is it bound to vfio-pci, and of this group?")]
    Function {
        /// Which.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// It does not say what it is.
    #[error("the function does not say {what}: {error}")]
    Ask {
        /// What was asked.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// It is something else.
    #[error("this is no PCI function")]
    NotPci,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => " (no IOMMU, or not bound to vfio-pci)",
        io::ErrorKind::PermissionDenied => " (the node's owner decides who may)",
        _ => "",
    }
}

/// What opening comes to.
#[derive(Debug)]
pub enum Opening {
    /// It is ours.
    Open(Box<Function>),
    /// Somebody has it: a process that this one may have to follow.
    Busy,
}

/// Opens a function of a group.
pub fn open(address: &str, group: u32) -> Result<Opening, OpenError> {
    let group_path = format!("/dev/vfio/{group}");
    let is_busy = |error: &OpenError| matches!(error, OpenError::Node { error, .. } if error.kind() == io::ErrorKind::ResourceBusy);
    let group_file: OwnedFd = match insist((LOOKING, AGAIN), is_busy, || node(&group_path)) {
        Ok(file) => file.into(),
        // The kernel lets a group be opened once.
        Err(error) if is_busy(&error) => return Ok(Opening::Busy),
        Err(error) => return Err(error),
    };
    let container: OwnedFd = node(CONTAINER)?.into();
    if !sys::speaks_type1v2(container.as_fd()) {
        return Err(OpenError::NoIommu);
    }
    if !sys::is_viable(group_file.as_fd()).map_err(OpenError::Group)? {
        return Err(OpenError::NotViable(group));
    }
    sys::set_container(group_file.as_fd(), container.as_fd()).map_err(OpenError::Group)?;
    sys::set_iommu(container.as_fd()).map_err(OpenError::Group)?;
    let device = function(group_file.as_fd(), address)
        .map_err(|error| OpenError::Function { address: address.to_owned(), error })?;
    let dma = Dma::Group { container: Arc::new(container), group: Arc::new(group_file) };
    Ok(Opening::Open(Box::new(Function::from_open(dma, Arc::new(device))?)))
}

/// The function itself. The kernel tries to reset it, and says "again" while somebody else looks at it in sysfs, as udev does after it was bound.
fn function(group: BorrowedFd<'_>, address: &str) -> io::Result<OwnedFd> {
    let is_looked_at = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
    insist((PATIENCE, PAUSE), is_looked_at, || sys::device(group, address))
}

/// Tries something, so long and with such pauses, as long as what keeps it from being done may pass.
fn insist<T, E>(
    (patience, pause): (Duration, Duration),
    may_pass: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let end = Instant::now() + patience;
    loop {
        match attempt() {
            Err(error) if may_pass(&error) && Instant::now() < end => std::thread::sleep(pause),
            result => return result,
        }
    }
}

fn node(path: &str) -> Result<File, OpenError> {
    let open = OpenOptions::new().read(true).write(true).open(path);
    open.map_err(|error| OpenError::Node { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_waited_for_and_nothing_else() {
        let patience = (Duration::from_secs(20), Duration::from_millis(1));
        let busy = || io::Error::from(io::ErrorKind::ResourceBusy);
        let is_busy = |error: &io::Error| error.kind() == io::ErrorKind::ResourceBusy;
        let mut times = 0;
        let opened = insist(patience, is_busy, || {
            times += 1;
            if times < 4 { Err(busy()) } else { Ok(times) }
        });
        assert_eq!(opened.unwrap(), 4);
        let refused = insist(patience, is_busy, || Err::<(), _>(io::ErrorKind::NotFound.into()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::NotFound);
        let stays = insist((Duration::ZERO, Duration::ZERO), is_busy, || Err::<(), _>(busy()));
        assert!(is_busy(&stays.unwrap_err()));
    }
}
