//! How a function is opened, before the compartment closes.
//!
//! By its own node (`/dev/vfio/devices/vfioN`) and an iommufd, if the kernel has both and the process may open them; otherwise by its group's node
//! and a container. Whoever has it by one way has it for the other, too: the kernel sees to that.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::space::Space;
use super::sys::iommufd;
use super::{Function, sys};

/// How long others may look at the function before it is given up, and how often to try.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// The same for those who look whether somebody has the group.
const LOOKING: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_millis(10);

/// The container's node,
const CONTAINER: &str = "/dev/vfio/vfio";
/// and that by which an iommufd is had.
const IOMMU: &str = "/dev/iommu";
/// Where functions have nodes of their own.
const NODES: &str = "/dev/vfio/devices";
/// Where the kernel says what a function's is called.
const FUNCTIONS: &str = "/sys/bus/pci/devices";

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
    match by_own_node(Path::new(FUNCTIONS), address) {
        None => by_group(address, group),
        Some(Ok(Opening::Open(function))) => Ok(Opening::Open(function)),
        Some(refused) => rather(refused, by_group(address, group)),
    }
}

/// What it comes to if a function cannot be had by its own node: mostly what its group says, which says more of what stands in the way of both. Unless the group's node is not there for us, and
/// the function's is.
fn rather(own: Result<Opening, OpenError>, group: Result<Opening, OpenError>) -> Result<Opening, OpenError> {
    use io::ErrorKind::{NotFound, PermissionDenied};
    let node_error = |result: &Result<Opening, OpenError>| match result {
        Err(OpenError::Node { error, .. }) => Some(error.kind()),
        _ => None,
    };
    let is_own = match (&own, node_error(&own), node_error(&group)) {
        (_, _, None) => false,
        (Ok(_), _, Some(_)) => true,
        (Err(_), Some(own), Some(NotFound)) => own != NotFound,
        (Err(_), Some(_), Some(_)) => false,
        (Err(_), None, Some(kind)) => matches!(kind, NotFound | PermissionDenied),
    };
    if is_own { own } else { group }
}

/// What the kernel calls a function's own node; none: it is not bound to vfio-pci, or this kernel has no such nodes. Then there is a directory, and no number in it.
fn own_node(functions: &Path, address: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(functions.join(address).join("vfio-dev")).ok()?;
    let mut found = entries.filter_map(Result::ok).filter(|entry| entry.path().join("dev").exists());
    Some(Path::new(NODES).join(found.next()?.file_name()))
}

fn by_own_node(functions: &Path, address: &str) -> Option<Result<Opening, OpenError>> {
    let path = own_node(functions, address)?;
    let node = match Node::open(&path) {
        Ok(node) => node,
        Err(error) => return Some(Err(error)),
    };
    // As long as it is open its name is not given to another function; before that it may have been.
    (own_node(functions, address) == Some(path)).then(|| node.bind(address))
}

/// A function's own node, open and not yet bound to anything, and a new iommufd.
struct Node {
    path: String,
    device: OwnedFd,
    iommufd: OwnedFd,
}

impl Node {
    fn open(path: &Path) -> Result<Self, OpenError> {
        let path = path.display().to_string();
        Ok(Self { device: node(&path)?.into(), iommufd: node(IOMMU)?.into(), path })
    }

    /// Makes the function ours, with an address space of its own.
    fn bind(self, address: &str) -> Result<Opening, OpenError> {
        let about = |error| OpenError::Function { address: address.to_owned(), error };
        let id = iommufd::alloc(self.iommufd.as_fd()).map_err(about)?;
        let bind = || {
            may_be_looked_at(|| sys::bind(self.device.as_fd(), self.iommufd.as_fd())).map_err(|error| {
                // Of one that is open the kernel says that there is nothing to bind.
                match error.raw_os_error() {
                    Some(libc::EINVAL | libc::EBUSY) => {
                        OpenError::Node { path: self.path.clone(), error: io::ErrorKind::ResourceBusy.into() }
                    }
                    _ => about(error),
                }
            })
        };
        if unless_busy(LOOKING, || node(CONTAINER), bind)?.is_none() {
            return Ok(Opening::Busy);
        }
        sys::attach(self.device.as_fd(), id).map_err(about)?;
        let space = Space::Ioas { iommufd: Arc::new(self.iommufd), id };
        Ok(Opening::Open(Box::new(Function::from_open(space, Arc::new(self.device))?)))
    }
}

fn by_group(address: &str, group: u32) -> Result<Opening, OpenError> {
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
    let device = may_be_looked_at(|| sys::device(group_file.as_fd(), address))
        .map_err(|error| OpenError::Function { address: address.to_owned(), error })?;
    let space = Space::Group { container: Arc::new(container), group: Arc::new(group_file) };
    Ok(Opening::Open(Box::new(Function::from_open(space, Arc::new(device))?)))
}

/// Opens the function itself. The kernel tries to reset it, and says "again" while somebody else looks at it in sysfs, as udev does after it was bound.
fn may_be_looked_at<T>(open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let is_looked_at = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
    insist((PATIENCE, PAUSE), is_looked_at, open)
}

/// Opens what the kernel lets be opened once, a group or a function; `None`: somebody has it. `bulkhead pci ls` opens it for a moment to see that, and has the container's node locked
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
    // Without the node nobody says that he only looks. A lock that is not to be had keeps nobody from trying; with the file's end it is let go of.
    let container = container().ok();
    if let Some(container) = &container {
        let is_locked = |error: &TryLockError| matches!(error, TryLockError::WouldBlock);
        let _ = insist((patience, AGAIN), is_locked, || container.try_lock());
    }
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
    fn a_functions_own_node_is_called_as_the_kernel_says() {
        let root = std::env::temp_dir().join(format!("bulkhead-nodes-{}", std::process::id()));
        std::fs::create_dir_all(root.join("0000:03:00.0/vfio-dev/vfio4")).unwrap();
        std::fs::create_dir_all(root.join("0000:04:00.0")).unwrap();
        let node = |address| own_node(&root, address);
        assert_eq!(node("0000:03:00.0"), None, "a kernel that has no nodes has the directory");
        std::fs::write(root.join("0000:03:00.0/vfio-dev/vfio4/dev"), "511:4\n").unwrap();
        assert_eq!(node("0000:03:00.0"), Some(PathBuf::from("/dev/vfio/devices/vfio4")));
        assert_eq!((node("0000:04:00.0"), node("0000:05:00.0")), (None, None));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_says_more_of_two_refusals_counts() {
        use io::ErrorKind::{NotFound, PermissionDenied, ResourceBusy};
        let node = |path: &str, kind: io::ErrorKind| {
            Err(OpenError::Node { path: path.to_owned(), error: kind.into() })
        };
        let function = || Err(OpenError::Function { address: "own".into(), error: PermissionDenied.into() });
        let word = |own, group| match rather(own, group) {
            Ok(Opening::Busy) => "busy".to_owned(),
            Ok(Opening::Open(_)) => unreachable!("nothing was opened"),
            Err(error) => error.to_string(),
        };
        // A successor follows whoever has it, also one that may not see the group.
        for kind in [NotFound, PermissionDenied] {
            assert_eq!(word(Ok(Opening::Busy), node("group", kind)), "busy");
            assert!(word(function(), node("group", kind)).starts_with("own"));
        }
        // A function that only its group can be opened for, and one that neither can be.
        assert_eq!(word(node("own", PermissionDenied), Ok(Opening::Busy)), "busy");
        assert!(word(node("own", PermissionDenied), node("group", NotFound)).contains("own"));
        assert!(word(node("own", NotFound), node("group", NotFound)).contains("group"));
        assert!(word(node("own", NotFound), node("group", PermissionDenied)).contains("group"));
        // The group knows why.
        let says = word(Ok(Opening::Busy), Err(OpenError::NotViable(7)));
        assert!(says.contains("not viable"), "{says}");
        assert_eq!(word(function(), Ok(Opening::Busy)), "busy");
        assert!(word(function(), node("group", ResourceBusy)).contains("group"));
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
