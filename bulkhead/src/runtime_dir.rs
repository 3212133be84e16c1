//! The directory of a running VM: `/run/bulkhead/NAME`.
//!
//! It exists while the VM runs, is locked by `bulkhead run`, and holds the core's socket and the supervisor's. The lock is the truth: a
//! directory without one was left by a supervisor that was killed, and the next one clears it away. It must never
//! remove what a living VM uses.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::plan;

/// The file in a VM's directory that says which block of user ids it has.
const ID_BLOCK: &str = "id-block";
/// The socket that the core listens on.
pub const CORE_SOCKET: &str = "core.sock";
/// The socket that `bulkhead run` listens on, for `bulkhead device`.
pub const SUPERVISOR_SOCKET: &str = "supervisor.sock";
/// The socket on which the console speaks VNC.
pub const VNC_SOCKET: &str = "vnc.sock";
/// The socket on which the console does what `bulkhead screenshot` and its like want.
pub const SCREEN_SOCKET: &str = "screen.sock";
/// The file by which a browser is told where the web page is.
pub const WEB_PAGE: &str = "web.html";

/// Why there is no runtime directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VM runs already.
    #[error("{name} is running already (its runtime directory {} is locked)", .path.display())]
    Running {
        /// The VM.
        name: String,
        /// Its directory.
        path: PathBuf,
    },
    /// The directory belongs to somebody else: what is in it cannot be trusted.
    #[error("{} belongs to user {owner}, not to you: remove it, or set XDG_RUNTIME_DIR to a directory of your own", .path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
    },
    /// All user ids are taken.
    #[error("{} VMs run on this host as root: there are no user ids for another one", plan::ID_BLOCKS)]
    NoIds,
    /// The operating system refused.
    #[error("cannot use the runtime directory {}: {error}", .path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// Where the directories of all VMs are: what is given, or `/run/bulkhead` for root, `$XDG_RUNTIME_DIR/bulkhead` for others,
/// `/tmp/bulkhead-UID` without that.
pub fn base(given: Option<&Path>) -> PathBuf {
    if let Some(given) = given {
        return given.to_owned();
    }
    if geteuid().is_root() {
        return "/run/bulkhead".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(directory) if !directory.is_empty() => PathBuf::from(directory).join("bulkhead"),
        _ => std::env::temp_dir().join(format!("bulkhead-{}", geteuid())),
    }
}

/// A VM's directory, locked. Dropping it removes it.
#[derive(Debug)]
pub struct RuntimeDir {
    base: PathBuf,
    path: PathBuf,
    /// The first user id of the VM's block, for root.
    first_id: Option<u32>,
    /// The open directory that carries the lock.
    _lock: File,
}

impl RuntimeDir {
    /// Makes the directory of the VM `name` under `base` and locks it; as root, also finds a block of user ids that no running
    /// VM has.
    pub fn claim(base: &Path, name: &str) -> Result<Self, Error> {
        let base = std::path::absolute(base).map_err(|error| Error::Io { path: base.to_owned(), error })?;
        let path = base.join(name);
        let failed = |error| Error::Io { path: path.clone(), error };
        // Held while this function runs: no other VM starts or is removed meanwhile.
        let _others = lock_base(&base)?;
        match fs::symlink_metadata(&path) {
            Ok(_) => {
                let ours = owned(&path)?;
                match ours.try_lock() {
                    Ok(()) => clear(&path).map_err(failed)?,
                    Err(TryLockError::WouldBlock) => {
                        return Err(Error::Running { name: name.to_owned(), path });
                    }
                    Err(TryLockError::Error(error)) => return Err(failed(error)),
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let block =
            if geteuid().is_root() { Some(free_block(&base, name).ok_or(Error::NoIds)?) } else { None };
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let lock = File::open(&path).map_err(failed)?;
        lock.lock().map_err(failed)?;
        if let Some(block) = block {
            fs::write(path.join(ID_BLOCK), block.to_string()).map_err(failed)?;
        }
        let first_id = block.map(|block| plan::FIRST_ID + block * plan::IDS_PER_VM);
        Ok(Self { base, path, first_id, _lock: lock })
    }

    /// Where the core listens for its devices.
    pub fn core_socket(&self) -> PathBuf {
        self.path.join(CORE_SOCKET)
    }

    /// Where the supervisor listens for operators.
    pub fn supervisor_socket(&self) -> PathBuf {
        self.path.join(SUPERVISOR_SOCKET)
    }

    /// Where the console speaks VNC.
    pub fn vnc_socket(&self) -> PathBuf {
        self.path.join(VNC_SOCKET)
    }

    /// Where the console does what operators want of a screen.
    pub fn screen_socket(&self) -> PathBuf {
        self.path.join(SCREEN_SOCKET)
    }

    /// The first user id of this VM's block; `None` without root's rights.
    pub fn first_id(&self) -> Option<u32> {
        self.first_id
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        // Whatever fails here is found and cleared by the next VM of this name.
        let _others = lock_base(&self.base);
        let _ = clear(&self.path);
        // The last one turns off the light; fails, as it should, while other VMs have directories in it.
        let _ = fs::remove_dir(&self.base);
    }
}

/// Makes `base` if it is not there, and locks it against other starts and ends.
fn lock_base(base: &Path) -> Result<File, Error> {
    let failed = |error| Error::Io { path: base.to_owned(), error };
    loop {
        DirBuilder::new().recursive(true).mode(0o700).create(base).map_err(failed)?;
        let file = match owned(base) {
            Err(Error::Io { error, .. }) if error.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        file.lock().map_err(failed)?;
        // The last VM of the host may have removed it between our opening and our locking it.
        let is_still_there = match (file.metadata(), fs::symlink_metadata(base)) {
            (Ok(locked), Ok(named)) => (locked.dev(), locked.ino()) == (named.dev(), named.ino()),
            _ => false,
        };
        if is_still_there {
            return Ok(file);
        }
    }
}

/// Removes a VM's directory and the files that belong in it; fails if there are others, which nobody of ours made.
fn clear(path: &Path) -> io::Result<()> {
    for name in [ID_BLOCK, CORE_SOCKET, SUPERVISOR_SOCKET, VNC_SOCKET, SCREEN_SOCKET, WEB_PAGE] {
        match fs::remove_file(path.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::remove_dir(path)
}

/// Opens a directory and makes sure that it is ours, and no link that leads elsewhere: `/tmp` is shared.
fn owned(path: &Path) -> Result<File, Error> {
    let failed = |error| Error::Io { path: path.to_owned(), error };
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let owner = file.metadata().map_err(failed)?.uid();
    if owner == geteuid().as_raw() { Ok(file) } else { Err(Error::NotOurs { path: path.to_owned(), owner }) }
}

/// A block of user ids that no VM's directory names, the one that `name` prefers if possible.
fn free_block(base: &Path, name: &str) -> Option<u32> {
    let taken: Vec<u32> = fs::read_dir(base)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join(ID_BLOCK)).ok()?.trim().parse().ok())
        .collect();
    let preferred = plan::preferred_id_block(name);
    (0..plan::ID_BLOCKS).map(|n| (preferred + n) % plan::ID_BLOCKS).find(|block| !taken.contains(block))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A base directory of this test alone.
    fn scratch(test: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("bulkhead-test-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn a_vm_runs_once_and_leaves_nothing() {
        let base = scratch("once");
        let first = RuntimeDir::claim(&base, "debian").unwrap();
        let second = RuntimeDir::claim(&base, "debian").unwrap_err();
        assert!(second.to_string().starts_with("debian is running already"), "{second}");
        let other = RuntimeDir::claim(&base, "other").unwrap();
        drop(first);
        assert!(!base.join("debian").exists() && base.join("other").exists());
        drop(other);
        assert!(!base.exists());
    }

    #[test]
    fn what_a_killed_supervisor_left_is_cleared_away() {
        let base = scratch("stale");
        fs::create_dir_all(base.join("debian")).unwrap();
        fs::write(base.join("debian/core.sock"), "").unwrap();
        let claimed = RuntimeDir::claim(&base, "debian").unwrap();
        assert!(!claimed.core_socket().exists());
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let base = scratch("foreign");
        fs::create_dir_all(base.join("letters")).unwrap();
        fs::write(base.join("letters/to-mother"), "dear").unwrap();
        assert!(matches!(RuntimeDir::claim(&base, "letters"), Err(Error::Io { .. })));
        assert!(base.join("letters/to-mother").exists());
        std::os::unix::fs::symlink(base.join("letters"), base.join("link")).unwrap();
        assert!(matches!(RuntimeDir::claim(&base.join("link"), "vm"), Err(Error::Io { .. })));
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn no_two_vms_share_user_ids() {
        let base = scratch("ids");
        if !geteuid().is_root() {
            return;
        }
        fs::create_dir_all(base.join("squatter")).unwrap();
        fs::write(base.join("squatter").join(ID_BLOCK), plan::preferred_id_block("debian").to_string())
            .unwrap();
        let claimed = RuntimeDir::claim(&base, "debian").unwrap();
        let expected = (plan::preferred_id_block("debian") + 1) % plan::ID_BLOCKS;
        assert_eq!(claimed.first_id(), Some(plan::FIRST_ID + expected * plan::IDS_PER_VM));
        drop(claimed);
        fs::remove_dir_all(&base).unwrap();
    }
}
