//! The user namespace and the ids of a compartment.

use std::io::{self, Read, Write};
use std::{fmt::Write as _, fs};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setgroups, setresgid, setresuid};

use crate::{Done, Error, Ids, sys};

/// Moves the process into a user namespace of its own in which it is who `ids` says (or who it is now), and
/// can tell the users in `recognise` apart. Afterwards it has every capability there, and none outside.
pub(crate) fn enter_user_namespace(ids: Option<Ids>, recognise: &[u32]) -> io::Result<()> {
    let me = ids.unwrap_or_else(current);
    if geteuid().is_root() {
        let mut users = vec![me.uid];
        users.extend(recognise);
        return unshare_as_root(identity_map(&mut users), identity_map(&mut vec![me.gid]));
    }
    // Half a user namespace is worse than none, so try it on a child first.
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

/// Root may map whom it likes, but only from outside: a child stays behind and writes the maps.
fn unshare_as_root(users: String, groups: String) -> io::Result<()> {
    // Our number as /proc knows it, which is not getpid() if we are in a PID namespace of our own.
    let me = fs::canonicalize("/proc/self")?;
    let (mut ready, mut start) = io::pipe()?;
    let helper = {
        let mut own_start = Some(start.try_clone()?);
        sys::this::fork(|| {
            // Our ends of the pipe for writing go first, or we would wait for ourselves.
            drop(own_start.take());
            let _ = nix::unistd::close(std::os::fd::AsRawFd::as_raw_fd(&start));
            let mut byte = [0];
            ready.read_exact(&mut byte)?;
            fs::write(me.join("uid_map"), users)?;
            fs::write(me.join("gid_map"), groups)
        })?
    };
    let unshared = unshare(CloneFlags::CLONE_NEWUSER).map_err(io::Error::from);
    if unshared.is_ok() {
        start.write_all(&[1])?;
    }
    drop(start);
    let mapped = sys::this::wait_for(helper);
    unshared.and(mapped)
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
