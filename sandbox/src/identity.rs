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
    let unshare = || match geteuid().is_root() {
        true => {
            let mut users = recognise.to_vec();
            users.push(me.uid);
            unshare_as_root(identity_map(&mut users), identity_map(&mut vec![me.gid]))
        }
        false => unshare_as_user(me),
    };
    // Half a user namespace, in which we are nobody, is worse than none: try it on a child first.
    sys::this::succeeds_in_child(unshare)?;
    unshare()
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
    let (mut ready, start) = io::pipe()?;
    let mut start = Some(start);
    let helper = sys::this::fork(|| {
        // The helper's copy of the end for writing: with it, it would wait for itself.
        drop(start.take());
        ready.read_exact(&mut [0])?;
        fs::write(me.join("uid_map"), users)?;
        fs::write(me.join("gid_map"), groups)
    })?;
    let unshared = unshare(CloneFlags::CLONE_NEWUSER).map_err(io::Error::from);
    if let (Ok(()), Some(start)) = (&unshared, &mut start) {
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
