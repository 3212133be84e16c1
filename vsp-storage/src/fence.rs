//! Whose a disk is: locks that the kernel frees only when the last I/O of a dead process has ended.
//!
//! A lock hangs on an open file description, and so does each request in flight: what holds the one is what the
//! other waits for. Two locks of ours, because a disk that is only read may have many users, and those of QEMU:
//!
//! * `flock` keeps strangers away: exclusive for writers, shared for readers.
//! * On a read-only disk, a read lock on one byte far behind the end of any file, whose place is made from the VM's
//!   memory, the device and the LUN (an OFD lock: of the description, as `flock` is). A successor waits until nobody
//!   else has *this* byte: a read that a dead predecessor left behind would otherwise land in the guest's memory
//!   after the guest has got its buffer back.
//! * The bytes of [`crate::qemu_lock`], last: what is found there cannot be a predecessor's, who has gone with his `flock`, and
//!   so is QEMU's. QEMU knows nothing of the other two.
//!
//! The kernel drops a request of a dead process some clock ticks after it has ended (8 ms, where a tick is 4 ms): a lock on
//! the description of the requests is exact and late. Where a request cannot outlive its process at all (`disk` decides) the
//! locks hang on a second description of the same file, which is closed with the process's other files: after the last of
//! its threads has left the kernel, and at once.
//!
//! Nothing here waits, and nothing here moves data.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::disk::hash;
use crate::qemu_lock::{self, Conflict};

/// Where the bytes begin that read-only disks are told apart by. File systems and other programs keep locks near the
/// beginning of a file.
const FIRST_BYTE: u64 = 1 << 62;

/// The right to a disk, had or not.
#[derive(Debug)]
pub struct Fence {
    read_only: bool,
    /// Offset of the byte; `None`: it is not known yet for whom.
    byte: Option<i64>,
    held: Result<(), Obstacle>,
}

/// Why a disk is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Nobody has tried to take it.
    NotTried,
    /// Another process has locked it, or a dead one's requests are under way.
    Locked,
    /// A predecessor's reads may be under way.
    Reads,
    /// A program of QEMU's has it open.
    Qemu(Conflict),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::NotTried => f.write_str("it has not been taken yet"),
            Obstacle::Locked => f.write_str("another process has it locked"),
            Obstacle::Reads => f.write_str("reads of a process before this one may be under way"),
            Obstacle::Qemu(conflict) => conflict.fmt(f),
        }
    }
}

impl Fence {
    /// For a disk that is only read, or not.
    pub fn new(read_only: bool) -> Fence {
        Fence { read_only, byte: None, held: Err(Obstacle::NotTried) }
    }

    /// For whom: the VM (its memory, not its name), the device and its LUN.
    pub fn identify(&mut self, memory: u64, device: &str, lun: u8) {
        let mut name = memory.to_le_bytes().to_vec();
        name.push(lun);
        name.extend(device.bytes());
        self.byte = Some((FIRST_BYTE | (hash(&name) & (FIRST_BYTE - 2))) as i64);
    }

    /// Whether the disk is ours.
    pub fn is_held(&self) -> bool {
        self.held.is_ok()
    }

    /// What was in the way when it was last tried.
    pub fn obstacle(&self) -> Option<Obstacle> {
        self.held.err()
    }

    /// Takes the disk if nobody else has it and nothing of a predecessor's is in flight; whether it is ours.
    pub fn take(&mut self, file: &File) -> io::Result<bool> {
        if self.held.is_err() {
            self.held = self.attempt(file)?;
        }
        Ok(self.is_held())
    }

    fn attempt(&self, file: &File) -> io::Result<Result<(), Obstacle>> {
        let attempt = if self.read_only { file.try_lock_shared() } else { file.try_lock() };
        match attempt {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Err(Obstacle::Locked)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if let Some(byte) = self.byte.filter(|_| self.read_only)
            && !take_byte(file, byte)?
        {
            // The `flock` stays: it is shared, and in nobody's way who waits for the same.
            return Ok(Err(Obstacle::Reads));
        }
        let Some(conflict) = qemu_lock::take(file, self.read_only)? else { return Ok(Ok(())) };
        // Whoever has it open may come to an end only when it can take our locks.
        self.unlock(file)?;
        Ok(Err(Obstacle::Qemu(conflict)))
    }

    /// Gives the disk up; nothing of ours is in flight.
    pub fn release(&mut self, file: &File) -> io::Result<()> {
        self.held = Err(Obstacle::NotTried);
        qemu_lock::release(file)?;
        self.unlock(file)
    }

    fn unlock(&self, file: &File) -> io::Result<()> {
        if let Some(byte) = self.byte.filter(|_| self.read_only) {
            fcntl(file, FcntlArg::F_OFD_SETLK(&lock(libc::F_UNLCK, byte)))?;
        }
        file.unlock()
    }
}

/// Takes the byte for reading if nobody else has.
fn take_byte(file: &File, byte: i64) -> io::Result<bool> {
    // Asked as a writer, who would be in the way of every reader but himself. The kernel answers that for a file that
    // is open for reading only, too.
    let mut found = lock(libc::F_WRLCK, byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    // A network file system shows `flock` of other hosts as a lock of the whole file: no predecessor of ours.
    let exactly = (found.l_start, found.l_len) == (byte, 1);
    if i32::from(found.l_type) != libc::F_UNLCK && exactly {
        return Ok(false);
    }
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock(libc::F_RDLCK, byte))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn lock(kind: i32, byte: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: byte, l_len: 1, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("bulkhead-fence-{}-{name}", std::process::id()));
        File::create(&path).unwrap().set_len(4096).unwrap();
        path
    }

    fn reader(memory: u64) -> Fence {
        let mut fence = Fence::new(true);
        fence.identify(memory, "disk0", 3);
        fence
    }

    #[test]
    fn a_writer_is_alone() {
        let path = path("writer");
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let (a, b) = (open(), open());
        let (mut first, mut second, mut third) = (Fence::new(false), Fence::new(false), reader(1));
        assert!(first.take(&a).unwrap() && first.take(&a).unwrap());
        assert!(!second.take(&b).unwrap() && !third.take(&b).unwrap());
        assert_eq!(second.obstacle(), Some(Obstacle::Locked));
        first.release(&a).unwrap();
        assert!(second.take(&b).unwrap());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn readers_share_with_everybody_but_a_predecessor() {
        let path = path("readers");
        let open = || File::open(&path).unwrap();
        let (dead, successor, stranger) = (open(), open(), open());
        let (mut first, mut second, mut third) = (reader(1), reader(1), reader(2));
        assert!(first.take(&dead).unwrap());
        assert!(third.take(&stranger).unwrap(), "another VM reads the same image");
        assert!(!second.take(&successor).unwrap(), "what the dead one reads may still land");
        assert_eq!(second.obstacle(), Some(Obstacle::Reads));
        // Its last request in flight has its description still.
        let in_flight = dead.try_clone().unwrap();
        drop(dead);
        assert!(!second.take(&successor).unwrap());
        drop(in_flight);
        assert!(second.take(&successor).unwrap() && second.is_held());
        second.release(&successor).unwrap();
        assert!(reader(1).take(&open()).unwrap(), "handed over");
        std::fs::remove_file(path).unwrap();
    }

    /// A successor finds its predecessor's QEMU bytes never: they go with the lock that it waits for.
    #[test]
    fn what_a_dead_writer_held_for_qemu_is_no_obstacle_of_its_own() {
        let path = path("bytes");
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let (dead, successor) = (open(), open());
        assert!(Fence::new(false).take(&dead).unwrap());
        let in_flight = dead.try_clone().unwrap();
        drop(dead);
        let mut fence = Fence::new(false);
        assert!(!fence.take(&successor).unwrap());
        assert_eq!(fence.obstacle(), Some(Obstacle::Locked));
        drop(in_flight);
        assert!(fence.take(&successor).unwrap());
        std::fs::remove_file(path).unwrap();
    }
}
