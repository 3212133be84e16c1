//! Whether the host itself works with a device: by an interface with addresses, by a disk that is mounted.
//!
//! What is found is the rest of a sentence; and nothing found is no proof: a program may have the device open without claiming it.

use std::path::{Path, PathBuf};

use super::function::Function;
use super::host::Host;

/// `IFF_UP` of an interface's flags.
const UP: u32 = 1;

/// What the host does with it.
pub(super) fn of(host: &Host, function: &Function) -> Option<String> {
    if function.boot_screen {
        return Some("it is the host's screen".to_owned());
    }
    if function.virtual_functions > 0 {
        let count = function.virtual_functions;
        let path = host.path(function.directory().join("sriov_numvfs"));
        return Some(format!(
            "it has {count} virtual function{}: remove them (echo 0 > {})",
            if count == 1 { "" } else { "s" },
            path.display()
        ));
    }
    let real = host.real(function.directory())?;
    interface(host, &real).or_else(|| disk(host, &real))
}

fn interface(host: &Host, device: &Path) -> Option<String> {
    let class = Path::new("sys/class/net");
    for name in host.names(class) {
        let at = class.join(&name);
        let is_up = || host.number(at.join("flags")).is_some_and(|flags| flags & UP != 0);
        if !host.real(&at).is_some_and(|real| real.starts_with(device)) || !is_up() {
            continue;
        }
        let has_upper = || host.names(&at).iter().any(|name| name == "master" || name.starts_with("upper_"));
        if host.kernel().has_address(&name) {
            return Some(format!(
                "its interface {name} is up and has addresses: sudo ip link set {name} down"
            ));
        }
        if has_upper() {
            return Some(format!(
                "its interface {name} is up and part of a bridge, a bond or the like: sudo ip link set {name} down"
            ));
        }
    }
    None
}

/// Who has claimed a disk of it, which sysfs does not show: ZFS, Btrfs of the second of its devices, programs. The disk is opened for a moment, and who wants it in that
/// moment is told that it is busy: not for those who only look.
pub(super) fn claimed(host: &Host, function: &Function) -> Option<String> {
    let real = host.real(function.directory())?;
    let nodes = disks(host, &real).map(|(name, _)| node(&name));
    let mut claimed = nodes.filter(|node| host.kernel().is_claimed(&host.path(node)));
    claimed.next().map(|node| {
        let node = Path::new("/").join(node).display().to_string();
        format!("its disk {node} is somebody's (ZFS, Btrfs, a program): lsof {node} may say whose")
    })
}

/// The disks of a device and their partitions: names, and where they are.
fn disks(host: &Host, device: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    let class = Path::new("sys/class/block");
    let all = host.names(class).into_iter().map(move |name| (class.join(&name), name));
    let own = all.filter(|(at, _)| host.real(at).is_some_and(|real| is_of(host, &real, device)));
    own.map(|(at, name)| (name, at))
}

/// The node of a disk, below the root. Where a node lies in a directory, sysfs writes an exclamation mark for the slash.
fn node(name: &str) -> PathBuf {
    Path::new("dev").join(name.replace('!', "/"))
}

fn disk(host: &Host, device: &Path) -> Option<String> {
    let mounts = host.read("proc/self/mountinfo").unwrap_or_default();
    let swaps = host.read("proc/swaps").unwrap_or_default();
    for (name, at) in disks(host, device) {
        let number = host.read(at.join("dev")).unwrap_or_default();
        let node = Path::new("/").join(node(&name)).display().to_string();
        if let Some(place) = mounts.lines().find_map(|line| mounted(line, &number, &node)) {
            return Some(format!("its disk {node} is mounted at {place}"));
        }
        if swaps.lines().any(|line| line.split_whitespace().next() == Some(node.as_str())) {
            return Some(format!("its disk {node} is swap space: sudo swapoff {node}"));
        }
        if let Some(holder) = host.names(at.join("holders")).into_iter().next() {
            return Some(format!("its disk {node} is part of {holder} (LVM, RAID or the like)"));
        }
    }
    None
}

/// Whether a disk is a device's. An NVMe drive's may hang below a subsystem, to which the drive's controller is linked.
fn is_of(host: &Host, disk: &Path, device: &Path) -> bool {
    if disk.starts_with(device) {
        return true;
    }
    let subsystem: Option<PathBuf> = disk
        .ancestors()
        .find(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with("nvme-subsys"))
        })
        .map(Path::to_owned);
    let Some(subsystem) = subsystem else { return false };
    let controllers = host.names(&subsystem).into_iter().filter(|name| name.starts_with("nvme"));
    let mut reals = controllers.filter_map(|name| host.real(subsystem.join(name)));
    reals.any(|real| real.starts_with(device))
}

/// Where a line of `mountinfo` says that the disk is mounted (proc(5)).
fn mounted<'l>(line: &'l str, number: &str, node: &str) -> Option<&'l str> {
    let fields: Vec<&str> = line.split(' ').collect();
    let source = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1));
    // Btrfs has numbers of its own: there only the source says it.
    let is_it = fields.get(2) == Some(&number) && !number.is_empty() || source == Some(node);
    is_it.then(|| fields.get(4).copied()).flatten()
}
