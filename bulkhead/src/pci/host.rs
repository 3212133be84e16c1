//! The kernel's files, below a root directory that in tests is another one, and what files cannot do.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::ifaddrs::getifaddrs;

/// What the kernel is asked and told besides reading its files. In tests a fake one answers.
pub trait Kernel {
    /// Writes to a file of sysfs, at `path` below the root.
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
    /// Whether a network interface has an address by which somebody may know the host: any but IPv6's own of each link.
    fn has_address(&self, interface: &str) -> bool;
    /// Whether the VFIO group with this node is somebody's. One that we may not open is taken for nobody's.
    fn is_open(&self, node: &Path) -> bool;
    /// Loads a module.
    fn load(&self, module: &str) -> io::Result<()>;
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
        // The kernel has one user of a group at a time. Opened and closed again, it is as it was.
        let tried = fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(node);
        tried.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
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
