//! The way into a compartment, step by step.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::descriptors::Kept;
use crate::heir::Will;
use crate::parent::Parent;
use crate::sys::this;
use crate::{Done, Entered, Error, Kind, Namespaces, Policy, crash, empty_root, identity, landlocked};

/// What Rust's own runtime exits with after a panic in `main`.
const PANIC_EXIT: i32 = 101;

/// Enough for a core with 64 vCPUs, 512 channels with a handful of eventfds and memfds each, and all that it holds for devices of the host's; an
/// attacker who floods a process with descriptors harms that process only.
const DESCRIPTORS: u64 = 4096;

/// A user and a group of a compartment's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What a process is about to become.
#[derive(Clone, Debug)]
pub struct Compartment {
    /// For the log.
    pub name: &'static str,
    /// The user and group to become; needs root. `None`: stay who we are.
    pub ids: Option<Ids>,
    /// Descriptors that stay open. All others are closed; of 0, 1 and 2 those not listed become `/dev/null`.
    pub keep: Vec<RawFd>,
    /// The syscalls that stay.
    pub policy: Policy,
    /// Namespaces of its own.
    pub namespaces: Namespaces,
    /// Whether its descriptors have to go at once when it dies, however much memory it has mapped: see [`crate::heir`].
    pub heir: bool,
}

impl Compartment {
    /// Closes the door behind the calling process. It must have one thread, and must have opened all it needs.
    ///
    /// # Errors
    /// Any error leaves the process half-way: say what happened and exit.
    pub fn enter(self) -> Result<Entered, Error> {
        single_threaded()?;
        let parent = Parent::now();
        // In place of those of Rust's runtime, which need system calls to say "stack overflow".
        crash::install()?;
        this::forget_backtraces();
        if EXIT_ON_PANIC.load(Ordering::Relaxed) == UNSET {
            exit_on_panic(PANIC_EXIT);
        }
        let will = match self.heir {
            true => Some(Will::prepare().map_err(Error::step("make a pipe"))?),
            false => None,
        };
        let mut keep = self.keep;
        keep.extend(will.iter().flat_map(Will::descriptors));
        let kept = Kept::prepare(&keep).map_err(Error::step("sort the descriptors to keep"))?;

        // While we may: a world of our own, with nothing in it.
        let ids = self.ids;
        let user = || identity::enter_user_namespace(ids, &self.namespaces.recognise);
        let namespaces = self.namespaces.enter(user)?;
        let own = is_own(&namespaces, Kind::Mount);
        let empty_root = self.namespaces.mount.attempt(Kind::Mount, || match own {
            true => empty_root::enter(),
            false => Err(io::Error::other("no mount namespace")),
        })?;

        // Give up every privilege, while we still have the one that giving up takes.
        let bounding_set = match this::empty_bounding_set().and_then(|()| this::lock_securebits()) {
            Ok(()) => Done::Yes,
            Err(e) => Done::No(e.to_string()),
        };
        let groups_dropped = identity::drop_groups();
        if let Some(ids) = ids {
            identity::become_ids(ids)?;
        }
        this::drop_capabilities().map_err(Error::step("drop capabilities"))?;
        this::no_new_privileges().map_err(Error::step("set no_new_privs"))?;
        this::undumpable().map_err(Error::step("become undumpable"))?;
        limit_resources()?;
        // Not earlier: a change of ids clears it.
        this::die_with_parent().map_err(Error::step("ask for death with the parent"))?;
        if !parent.is_alive() {
            return Err(Error::Orphan);
        }
        drop(parent);

        let landlock = landlocked::restrict();
        let kept = kept.close_others().map_err(Error::step("close all other descriptors"))?;
        // Inside already, but for the filter: it has a narrower one.
        let kept = match will {
            // Its end of the pipe is closed here.
            Some(will) => will.execute().map(|()| kept - 1).map_err(Error::step("start an heir"))?,
            None => kept,
        };
        let Ids { uid, gid } = identity::current();
        let entered = Entered {
            name: self.name,
            policy: self.policy.name,
            uid,
            gid,
            namespaces,
            empty_root,
            groups_dropped,
            bounding_set,
            landlock,
            kept,
        };
        install(self.policy)?;
        Ok(entered)
    }
}

/// Narrows the calling thread, which is in a compartment already, to `policy` (which should be a subset of the
/// compartment's own: the kernel applies both).
///
/// # Errors
/// [`Error::Seccomp`] if the filter was not installed.
pub fn restrict_thread(policy: Policy) -> Result<(), Error> {
    install(policy)
}

/// From now on a panic tells the witnesses of a [`crash`] (as SIGABRT would) and, once its message is written, ends the process
/// with exit code `code`; a later call changes the code.
///
/// The default, `abort`, needs four more syscalls and is ignored in the first process of a PID namespace.
/// [`Compartment::enter`] sees to a code of 101 unless there is one by then.
pub fn exit_on_panic(code: i32) {
    if EXIT_ON_PANIC.swap(code, Ordering::Relaxed) == UNSET {
        let say = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            crash::stamp(libc::SIGABRT);
            say(info);
            this::exit_now(EXIT_ON_PANIC.load(Ordering::Relaxed));
        }));
    }
}

/// What a panic exits with, once [`exit_on_panic`] has been called.
static EXIT_ON_PANIC: AtomicI32 = AtomicI32::new(UNSET);
/// Not an exit code.
const UNSET: i32 = -1;

fn install(policy: Policy) -> Result<(), Error> {
    let failed = |source| Error::Seccomp { policy: policy.name, source };
    // Refusals first: the allow-list may not allow installing another filter.
    if !policy.refusals.is_empty() {
        this::install_filter(policy.refusals).map_err(failed)?;
    }
    this::install_filter(policy.program).map_err(failed)
}

fn single_threaded() -> Result<(), Error> {
    let threads =
        std::fs::read_dir("/proc/self/task").map_err(Error::step("count threads in /proc/self/task"))?;
    match threads.count() {
        1 => Ok(()),
        more => Err(Error::Threads(more)),
    }
}

fn is_own(namespaces: &[(Kind, Done)], wanted: Kind) -> bool {
    namespaces.iter().any(|(kind, done)| *kind == wanted && done.is_done())
}

/// Lowers limits, and the ceilings with them; a lower one that is there already stays.
fn limit_resources() -> Result<(), Error> {
    for (resource, limit) in [(Resource::RLIMIT_CORE, 0), (Resource::RLIMIT_NOFILE, DESCRIPTORS)] {
        getrlimit(resource)
            .and_then(|(_, hard)| setrlimit(resource, hard.min(limit), hard.min(limit)))
            .map_err(|e| Error::Step { step: "lower resource limits", source: e.into() })?;
    }
    Ok(())
}
