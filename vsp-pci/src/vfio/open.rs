//! How a function is opened, before the compartment closes.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::{Dma, Function, sys};

/// How long others may look at the function before it is given up, and how often to try.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// The same for those who look whether somebody has the group.
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
    let opened = unless_busy(LOOKING, || node(CONTAINER), || node(&group_path))?;
    let Some(group_file) = opened.map(OwnedFd::from) else { return Ok(Opening::Busy) };
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

/// Opens a group, which the kernel lets be opened once; `None`: somebody has it. `bulkhead pci ls` opens it for a moment to see that, and has the container's node locked
/// meanwhile: who only looks is waited for. A process that follows another one, whose guest waits, waits for nobody.
fn unless_busy<T>(
    patience: Duration,
    container: impl FnOnce() -> Result<File, OpenError>,
    mut open: impl FnMut() -> Result<T, OpenError>,
) -> Result<Option<T>, OpenError> {
    let is_busy = |error: &OpenError| matches!(error, OpenError::Node { error, .. } if error.kind() == io::ErrorKind::ResourceBusy);
    match open() {
        Err(error) if is_busy(&error) => {}
        result => return result.map(Some),
    }
    let container = container()?;
    // A lock that is not to be had keeps nobody from trying. With the file's end it is let go of.
    let is_locked = |error: &TryLockError| matches!(error, TryLockError::WouldBlock);
    let _ = insist((patience, AGAIN), is_locked, || container.try_lock());
    match open() {
        Err(error) if is_busy(&error) => Ok(None),
        result => result.map(Some),
    }
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

    #[test]
    fn who_only_looks_at_a_group_does_not_have_it() {
        let path = std::env::temp_dir().join(format!("bulkhead-container-{}", std::process::id()));
        let container = || OpenOptions::new().create(true).truncate(false).write(true).open(&path).unwrap();
        let busy = || OpenError::Node { path: String::new(), error: io::ErrorKind::ResourceBusy.into() };
        let long = Duration::from_secs(20);
        // Somebody has it: that is certain as soon as nobody is looking.
        let mut times = 0;
        let attempt = || {
            times += 1;
            Err::<(), _>(busy())
        };
        let opened = unless_busy(long, || Ok(container()), attempt);
        assert!(matches!(opened, Ok(None)));
        assert_eq!(times, 2);
        // Somebody looks, and stops when it was found out that the group is busy: who has the lock then is not the looker any more.
        let looker = container();
        looker.lock().unwrap();
        let (looks, mut is_first) = (&looker, true);
        let opened = std::thread::scope(|scope| {
            let attempt = || {
                if std::mem::take(&mut is_first) {
                    scope.spawn(|| looks.unlock().unwrap());
                    return Err(busy());
                }
                looks.try_lock().map_or_else(|_| Ok(()), |()| Err(busy()))
            };
            unless_busy(long, || Ok(container()), attempt)
        });
        assert!(matches!(opened, Ok(Some(()))));
        // And never stops.
        looker.lock().unwrap();
        assert!(matches!(unless_busy(Duration::ZERO, || Ok(container()), || Err::<(), _>(busy())), Ok(None)));
        looker.unlock().unwrap();
        container().try_lock().unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
