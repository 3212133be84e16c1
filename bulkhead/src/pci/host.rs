//! The kernel's files, below a root directory that in tests is another one, and what files cannot do.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;

/// What the kernel is asked and told besides reading its files. In tests a fake one answers.
pub trait Kernel {
    /// Writes to a file of sysfs, at `path` below the root.
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
    /// Whether a network interface has an address by which somebody may know the host: any but IPv6's own of each link.
    fn has_address(&self, interface: &str) -> bool;
    /// Whether the VFIO group with this node is somebody's. One that we may not open is taken for nobody's.
    fn is_open(&self, node: &Path) -> bool;
    /// Whether a process has this node open, as far as we may see that.
    fn is_held(&self, node: &Path) -> bool;
    /// Whether somebody has claimed the block device with this node for himself, by a mount or as a program can. One that we may not open is taken for
    /// nobody's.
    fn is_claimed(&self, node: &Path) -> bool;
    /// Loads a module.
    fn load(&self, module: &str) -> io::Result<()>;
}

/// How long something may be busy because others look at it as we do, and how often to try.
const LOOKING: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_millis(10);

/// The node beside those of the groups that nobody has for himself.
const CONTAINER: &str = "vfio";

/// Does something while `file` is locked; if somebody else does not let go of it, without.
fn locked<T>(file: Option<&fs::File>, patience: Duration, act: impl FnOnce() -> T) -> T {
    let end = Instant::now() + patience;
    while let Some(Err(fs::TryLockError::WouldBlock)) = file.map(fs::File::try_lock)
        && Instant::now() < end
    {
        sleep(AGAIN);
    }
    // With the file's end it is unlocked.
    act()
}

/// Whether opening something fails because it is busy, and not just for a moment.
fn is_busy(patience: Duration, mut open: impl FnMut() -> io::Result<()>) -> bool {
    let end = Instant::now() + patience;
    loop {
        match open() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            _ => return false,
        }
        if Instant::now() >= end {
            return true;
        }
        sleep(AGAIN);
    }
}

/// The kernel that runs.
#[derive(Debug)]
struct Running;

impl Kernel for Running {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        // In one write: each is an order.
        fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
    }

    fn has_address(&self, interface: &str) -> bool {
        let all = getifaddrs().into_iter().flatten().filter(|found| found.interface_name == interface);
        let mut addresses = all.filter_map(|found| found.address);
        addresses.any(|address| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(_), _) => true,
            (_, Some(six)) => !six.ip().is_unicast_link_local(),
            _ => false,
        })
    }

    fn is_open(&self, node: &Path) -> bool {
        // The kernel has one user of a group at a time. Opened and closed again, it is as it was; whoever wants it in this moment sees by the lock that we only
        // look (`vsp-pci`), and so do others who look.
        let open = |path: &Path| {
            fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path)
        };
        let container = open(&node.with_file_name(CONTAINER)).ok();
        locked(container.as_ref(), LOOKING, || is_busy(Duration::ZERO, || open(node).map(drop)))
    }

    fn is_held(&self, node: &Path) -> bool {
        let entries =
            |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut open = entries(Path::new("/proc")).flat_map(|process| entries(&process.join("fd")));
        open.any(|fd| fs::read_link(fd).is_ok_and(|file| file == node))
    }

    fn is_claimed(&self, node: &Path) -> bool {
        // Of a block device O_EXCL without O_CREAT is a claim (open(2)); it is ours for this moment only.
        let flags = libc::O_CLOEXEC | libc::O_EXCL | libc::O_NONBLOCK;
        let open = || fs::OpenOptions::new().read(true).custom_flags(flags).open(node);
        is_busy(LOOKING, || open().map(drop))
    }

    fn load(&self, module: &str) -> io::Result<()> {
        let output = Command::new("modprobe").arg(module).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// A host, as far as its PCI devices are concerned.
pub struct Host {
    root: PathBuf,
    kernel: Box<dyn Kernel>,
}

impl Host {
    /// This one.
    pub fn this() -> Self {
        Self::new("/", Box::new(Running))
    }

    /// The one whose files are below `root`.
    pub fn new(root: impl Into<PathBuf>, kernel: Box<dyn Kernel>) -> Self {
        Self { root: root.into(), kernel }
    }

    /// What asks and tells.
    pub fn kernel(&self) -> &dyn Kernel {
        &*self.kernel
    }

    /// Where a file of the host's is.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    /// A file of one line, or of some.
    pub fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        Some(fs::read_to_string(self.path(path)).ok()?.trim_end().to_owned())
    }

    /// The number in a file, hexadecimal with `0x`.
    pub fn number(&self, path: impl AsRef<Path>) -> Option<u32> {
        let text = self.read(path)?;
        u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
    }

    /// The last part of what a link leads to.
    pub fn link(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// Names in a directory, sorted; none if it is not there.
    pub fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Where the links of a path lead to.
    pub fn real(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        self.path(path).canonicalize().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_only_looks_does_not_keep_anything_busy() {
        let busy = || Err(io::Error::from_raw_os_error(libc::EBUSY));
        let mut times = 0;
        let mut look = |often| {
            times = 0;
            is_busy(Duration::from_secs(20), || {
                times += 1;
                if times <= often { busy() } else { Ok(()) }
            })
        };
        assert!(!look(0) && !look(3));
        assert!(is_busy(Duration::ZERO, busy));
        assert!(!is_busy(Duration::from_secs(20), || Err(io::ErrorKind::PermissionDenied.into())));
    }

    #[test]
    fn what_a_process_has_open_is_held() {
        let path = std::env::temp_dir().join(format!("bulkhead-held-{}", std::process::id()));
        let file = fs::File::create(&path).unwrap();
        assert!(Running.is_held(&path));
        drop(file);
        assert!(!Running.is_held(&path));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn who_looks_says_so_by_a_lock() {
        let path = std::env::temp_dir().join(format!("bulkhead-look-{}", std::process::id()));
        let open = || fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).unwrap();
        let (own, other) = (open(), open());
        assert!(locked(Some(&own), LOOKING, || other.try_lock().is_err()));
        drop(own);
        other.try_lock().unwrap();
        assert!(locked(Some(&open()), Duration::ZERO, || true), "with or without");
        assert!(locked(None, LOOKING, || true));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_no_block_device_is_nobodys() {
        let file = std::env::temp_dir().join(format!("bulkhead-claim-{}", std::process::id()));
        fs::write(&file, "").unwrap();
        assert!(!Running.is_claimed(&file));
        fs::remove_file(&file).unwrap();
        assert!(!Running.is_claimed(&file));
    }
}
