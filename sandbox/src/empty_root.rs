//! An empty, read-only directory in place of the file system.

use std::io;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

/// Directories that any Linux has one of; the new root is mounted over it, in our own mount namespace.
const PLACES: [&str; 5] = ["/tmp", "/run", "/dev", "/proc", "/sys"];

/// One inode: the directory itself. Nothing can be made in it even before it is read-only.
const OPTIONS: &str = "size=4k,nr_inodes=1,mode=0555";

/// Replaces the root directory. The caller has a mount namespace of its own and may mount in it.
pub(crate) fn enter() -> io::Result<()> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let mut outcome = Err(nix::Error::ENOENT);
    for place in PLACES {
        outcome = mount(Some("none"), place, Some("tmpfs"), quiet, Some(OPTIONS)).and_then(|()| chdir(place));
        if outcome.is_ok() {
            break;
        }
    }
    outcome?;
    // The old root ends up on top of the new one, and is then taken away with everything below it.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | quiet;
    mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>)?;
    Ok(())
}
