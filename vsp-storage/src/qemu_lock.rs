//! The locks by which QEMU's programs tell each other what they do with an image, honoured and held.
//!
//! Each program holds one byte for everything it does to the image and another one for everything that others must
//! not do meanwhile; who comes later looks at the bytes of the others. All are read locks of an open file description,
//! so that many can hold the same byte: a lock by itself is in nobody's way, what counts is who looks.
//!
//! Where the bytes lie and what they mean is QEMU's convention (`block/file-posix.c`, QEMU 2.10 and later; its `locking`
//! option is on where the host has such locks). It is the second look only: whose a disk is among Bulkhead's own
//! processes is decided by [`crate::fence`], whose locks are taken first.
//!
//! Nothing here waits, and nothing here moves data.

use std::fmt;
use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// First of the bytes that say what is done.
const DONE: i64 = 100;
/// First of the bytes that say what others must not do.
const DENIED: i64 = 200;
/// Bytes from the first one that can be ours to behind the last.
const ALL: i64 = DENIED + RESIZE + 1 - DONE;

/// Reads that expect to find what was written.
const READ: i64 = 0;
/// Writes.
const WRITE: i64 = 1;
/// Changes of the size.
const RESIZE: i64 = 3;

/// What a guest's disk does not let others do, whether the guest may write or not: what QEMU's own devices do not.
const WE_DENY: [i64; 2] = [WRITE, RESIZE];

/// What a program of QEMU's that has the image open does or forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// It writes to the image or changes its size, which a guest's disk cannot bear.
    Writes,
    /// It lets nobody read the image.
    DeniesReading,
    /// It lets nobody write to the image.
    DeniesWriting,
    /// It has locked one of the bytes as no version of QEMU that we know does.
    Unknown,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Conflict::Writes => "a QEMU program has it open and writes to it",
            Conflict::DeniesReading => "a QEMU program has it open and lets nobody read it",
            Conflict::DeniesWriting => "a QEMU program has it open and lets nobody write to it",
            Conflict::Unknown => "another program has locked it the way QEMU does",
        })
    }
}

/// Holds the bytes of a guest's disk, unless somebody is in the way.
pub fn take(file: &File, read_only: bool) -> io::Result<Option<Conflict>> {
    // First ours, then a look at theirs: of two that come at the same time at least one sees the other.
    let conflict = if hold(file, read_only)? { look(file, read_only)? } else { Some(Conflict::Unknown) };
    if conflict.is_some() {
        release(file)?;
    }
    Ok(conflict)
}

/// Lets go of all of them.
pub fn release(file: &File) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock(libc::F_UNLCK, DONE, ALL)))?;
    Ok(())
}

/// Who is in the way of a guest's disk.
fn look(file: &File, read_only: bool) -> io::Result<Option<Conflict>> {
    for what in WE_DENY {
        if is_held(file, DONE + what)? {
            return Ok(Some(Conflict::Writes));
        }
    }
    if is_held(file, DENIED + READ)? {
        return Ok(Some(Conflict::DeniesReading));
    }
    if !read_only && is_held(file, DENIED + WRITE)? {
        return Ok(Some(Conflict::DeniesWriting));
    }
    Ok(None)
}

/// Holds our bytes; false if that cannot be, because somebody has one of them all for himself.
fn hold(file: &File, read_only: bool) -> io::Result<bool> {
    let done = if read_only { READ..=READ } else { READ..=WRITE };
    let done = lock(libc::F_RDLCK, DONE + done.start(), done.end() - done.start() + 1);
    for lock in [done].into_iter().chain(WE_DENY.map(|what| lock(libc::F_RDLCK, DENIED + what, 1))) {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Whether another description has a lock on this byte.
fn is_held(file: &File, byte: i64) -> io::Result<bool> {
    // Asked as a writer, who would be in the way of every reader but himself.
    let mut found = lock(libc::F_WRLCK, byte, 1);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    // A network file system shows `flock` of other hosts as a lock of the whole file, which is none of these.
    let is_whole_file = (found.l_start, found.l_len) == (0, 0);
    Ok(i32::from(found.l_type) != libc::F_UNLCK && !is_whole_file)
}

fn lock(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn image(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("bulkhead-qemu-lock-{}-{name}", std::process::id()));
        File::create(&path).unwrap().set_len(4096).unwrap();
        path
    }

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    /// What another program does (100 and on) or forbids (200 and on), by its bytes.
    fn program(path: &Path, bytes: &[i64]) -> File {
        let file = open(path);
        for byte in bytes {
            fcntl(&file, FcntlArg::F_OFD_SETLK(&lock(libc::F_RDLCK, *byte, 1))).unwrap();
        }
        file
    }

    #[test]
    fn what_others_do_is_in_the_way_of_a_guest_that_cannot_bear_it() {
        let path = image("others");
        for (bytes, writer, reader) in [
            (&[100][..], None, None),
            (&[101], Some(Conflict::Writes), Some(Conflict::Writes)),
            (&[103], Some(Conflict::Writes), Some(Conflict::Writes)),
            (&[100, 201, 203], Some(Conflict::DeniesWriting), None),
            (&[200], Some(Conflict::DeniesReading), Some(Conflict::DeniesReading)),
        ] {
            let _program = program(&path, bytes);
            let ours = open(&path);
            assert_eq!(take(&ours, false).unwrap(), writer, "{bytes:?}");
            release(&ours).unwrap();
            assert_eq!(take(&ours, true).unwrap(), reader, "{bytes:?}");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn nothing_is_held_after_a_refusal_or_a_release() {
        let path = image("after");
        let (ours, looking) = (open(&path), open(&path));
        let held = |file: &File| (100..210).filter(|byte| is_held(file, *byte).unwrap()).collect::<Vec<_>>();
        assert_eq!(take(&ours, false).unwrap(), None);
        assert_eq!(held(&looking), [100, 101, 201, 203]);
        release(&ours).unwrap();
        assert!(held(&looking).is_empty());
        assert_eq!(take(&ours, true).unwrap(), None);
        assert_eq!(held(&looking), [100, 201, 203]);
        release(&ours).unwrap();
        let program = program(&path, &[101]);
        assert!(take(&ours, false).unwrap().is_some());
        drop(program);
        assert!(held(&looking).is_empty());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_byte_that_somebody_has_for_himself_is_in_the_way() {
        let path = image("alone");
        let (ours, theirs) = (open(&path), open(&path));
        fcntl(&theirs, FcntlArg::F_OFD_SETLK(&lock(libc::F_WRLCK, 201, 1))).unwrap();
        assert_eq!(take(&ours, false).unwrap(), Some(Conflict::Unknown));
        std::fs::remove_file(path).unwrap();
    }
}
