//! Which namespaces a compartment gets for itself.

use std::{fmt, io};

use nix::sched::{CloneFlags, unshare};

use crate::{Done, Error};

/// A kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// User and group ids, capabilities.
    User,
    /// The file system.
    Mount,
    /// Processes. Only a *new* process can be in a new one: `spawn` makes it, `enter` reports it.
    Pid,
    /// Network devices, addresses, abstract sockets.
    Net,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// The view of control groups.
    Cgroup,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::User => "user",
            Kind::Mount => "mount",
            Kind::Pid => "pid",
            Kind::Net => "net",
            Kind::Ipc => "ipc",
            Kind::Uts => "uts",
            Kind::Cgroup => "cgroup",
        })
    }
}

/// How much a namespace is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Leave it as it is.
    No,
    /// Have it if the host allows, and report if not.
    Try,
    /// Fail without it.
    Require,
}

/// Which namespaces a compartment gets for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespaces {
    /// See [`Kind::User`].
    pub user: Want,
    /// See [`Kind::Mount`]. Without it the root directory stays what it was.
    pub mount: Want,
    /// See [`Kind::Pid`].
    pub pid: Want,
    /// See [`Kind::Net`].
    pub net: Want,
    /// See [`Kind::Ipc`].
    pub ipc: Want,
    /// See [`Kind::Uts`].
    pub uts: Want,
    /// See [`Kind::Cgroup`].
    pub cgroup: Want,
    /// Other users that the process must still be able to tell apart in `SO_PEERCRED`: inside a user
    /// namespace every user that is not mapped looks like 65534. Only root can map any.
    pub recognise: Vec<u32>,
}

impl Namespaces {
    /// All of them, as far as the host allows.
    pub fn all() -> Namespaces {
        Namespaces::each(Want::Try)
    }

    /// All of them, or failure. The PID namespace has to come from [`crate::spawn`].
    pub fn required() -> Namespaces {
        Namespaces::each(Want::Require)
    }

    /// None.
    pub fn none() -> Namespaces {
        Namespaces::each(Want::No)
    }

    /// The same, able to tell these users apart (see [`Namespaces::recognise`]).
    pub fn recognising(mut self, uids: impl IntoIterator<Item = u32>) -> Namespaces {
        self.recognise.extend(uids);
        self
    }

    fn each(want: Want) -> Namespaces {
        Namespaces {
            user: want,
            mount: want,
            pid: want,
            net: want,
            ipc: want,
            uts: want,
            cgroup: want,
            recognise: Vec::new(),
        }
    }

    /// Those that a process moves itself into, in order, without user (first of all) and PID (from birth).
    fn own(&self) -> [(Kind, Want, CloneFlags); 5] {
        [
            (Kind::Mount, self.mount, CloneFlags::CLONE_NEWNS),
            (Kind::Net, self.net, CloneFlags::CLONE_NEWNET),
            (Kind::Ipc, self.ipc, CloneFlags::CLONE_NEWIPC),
            (Kind::Uts, self.uts, CloneFlags::CLONE_NEWUTS),
            (Kind::Cgroup, self.cgroup, CloneFlags::CLONE_NEWCGROUP),
        ]
    }

    /// Moves the process into all that are wanted. `user` moves it into the user namespace.
    pub(crate) fn enter(&self, user: impl FnOnce() -> io::Result<()>) -> Result<Vec<(Kind, Done)>, Error> {
        let mut done = vec![(Kind::User, self.user.attempt(Kind::User, user)?)];
        for (kind, want, flag) in self.own() {
            done.push((kind, want.attempt(kind, || Ok(unshare(flag)?))?));
        }
        done.push((Kind::Pid, self.pid.attempt(Kind::Pid, born_in_pid_namespace)?));
        Ok(done)
    }
}

impl Want {
    /// Does `act` if it is wanted; a failure is an error only if it is required.
    pub(crate) fn attempt(self, kind: Kind, act: impl FnOnce() -> io::Result<()>) -> Result<Done, Error> {
        if self == Want::No {
            return Ok(Done::NotAsked);
        }
        match act() {
            Ok(()) => Ok(Done::Yes),
            Err(source) if self == Want::Require => Err(Error::Namespace { kind, source }),
            Err(e) => Ok(Done::No(e.to_string())),
        }
    }
}

/// Only the first process of a PID namespace can be sure that it is alone there.
fn born_in_pid_namespace() -> io::Result<()> {
    if nix::unistd::getpid().as_raw() == 1 {
        return Ok(());
    }
    Err(io::Error::other("not started in one"))
}
