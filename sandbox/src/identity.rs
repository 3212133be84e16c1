//! The user namespace and the ids of a compartment.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setgroups, setresgid, setresuid};

use crate::{Done, Error, Ids, sys};

/// Moves the process into a user namespace of its own in which it is who `ids` says (or who it is now), and
/// can tell the users in `recognise` apart. Afterwards it has every capability there, and none outside.
pub(crate) fn enter_user_namespace(ids: Option<Ids>, recognise: &[u32]) -> io::Result<()> {
    let me = ids.unwrap_or_else(current);
    // Half a user namespace, in which we are nobody, is worse than none: a child tries it first.
    if geteuid().is_root() {
        let mut users = recognise.to_vec();
        users.push(me.uid);
        return enter_as_root(&identity_map(&mut users), &identity_map(&mut vec![me.gid]));
    }
    sys::this::succeeds_in_child(|| unshare_as_user(me))?;
    unshare_as_user(me)
}

/// Who we are.
pub(crate) fn current() -> Ids {
    Ids { uid: geteuid().as_raw(), gid: getegid().as_raw() }
}

/// Each id stands for itself.
fn identity_map(ids: &mut Vec<u32>) -> String {
    ids.sort_unstable();
    ids.dedup();
    let mut map = String::new();
    for id in ids {
        // Writing to a String cannot fail.
        let _ = writeln!(map, "{id} {id} 1");
    }
    map
}

/// An ordinary user may map itself, and nothing else.
fn unshare_as_user(me: Ids) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", identity_map(&mut vec![me.uid]))?;
    fs::write("/proc/self/gid_map", identity_map(&mut vec![me.gid]))
}

/// Root may map whom it likes, but only from outside: a child makes the namespace, we write its maps, and join it once it is
/// complete. Until then nothing of ours has changed. (The child is the price of one fork; a successor's start is time that a guest waits.)
fn enter_as_root(users: &str, groups: &str) -> io::Result<()> {
    let (mut made, mut says_made) = io::pipe()?;
    let (mut joined, says_joined) = io::pipe()?;
    let mut says_joined = Some(says_joined);
    let child = sys::this::fork(|| {
        // Its copy of our end: with it, it would wait for itself.
        drop(says_joined.take());
        // Its number as /proc knows it, which is not getpid() if we are in a PID namespace of our own.
        let child = fs::canonicalize("/proc/self")?;
        unshare(CloneFlags::CLONE_NEWUSER)?;
        says_made.write_all(child.as_os_str().as_bytes())?;
        drop(says_made);
        // It has to be there until we have joined it. Nothing is ever written: this ends when we close our end, or end.
        joined.read(&mut [0]).map(drop)
    })?;
    let mut join = || {
        let mut path = Vec::new();
        // Nothing comes if it has failed; its exit code says why.
        made.read_to_end(&mut path)?;
        if path.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let path = Path::new(OsStr::from_bytes(&path));
        fs::write(path.join("uid_map"), users)?;
        fs::write(path.join("gid_map"), groups)?;
        Ok(setns(File::open(path.join("ns/user"))?, CloneFlags::CLONE_NEWUSER)?)
    };
    let in_it = join();
    drop(says_joined);
    let child = sys::this::wait_for(child);
    in_it.or_else(|why| child.and(Err(why)))
}

/// Drops all supplementary groups.
pub(crate) fn drop_groups() -> Done {
    match setgroups(&[]) {
        Ok(()) => Done::Yes,
        Err(_) if getgroups().is_ok_and(|groups| groups.is_empty()) => Done::Yes,
        Err(e) => Done::No(e.desc().to_owned()),
    }
}

/// Becomes `ids`, for good.
pub(crate) fn become_ids(ids: Ids) -> Result<(), Error> {
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    setresgid(gid, gid, gid).and_then(|()| setresuid(uid, uid, uid)).map_err(|e| Error::Ids {
        uid: ids.uid,
        gid: ids.gid,
        source: e.into(),
    })
}
