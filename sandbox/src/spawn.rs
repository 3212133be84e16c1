//! Starts a process that will become a compartment: the supervisor's half.
//!
//! The child gets exactly the descriptors listed, at the numbers listed, a minimal environment, a PID namespace
//! of its own where the host allows it, and dies with the *thread* that started it.

use std::ffi::{CString, OsStr, OsString};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::sys::exec::{self, Plan, Step};
use crate::{Error, Want};

/// A process to be started.
#[derive(Debug)]
pub struct Command<'fd> {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    fds: Vec<(BorrowedFd<'fd>, RawFd)>,
    pid_namespace: Want,
}

impl<'fd> Command<'fd> {
    /// A command without arguments, environment, or descriptors other than standard error; standard input
    /// and output are `/dev/null`.
    pub fn new(program: impl Into<PathBuf>) -> Command<'fd> {
        Command {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            fds: Vec::new(),
            pid_namespace: Want::Try,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Adds a variable to the (otherwise empty) environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Gives the child `fd` under the number `number`.
    pub fn fd(mut self, fd: BorrowedFd<'fd>, number: RawFd) -> Self {
        self.fds.push((fd, number));
        self
    }

    /// How much a PID namespace is wanted; [`Want::Try`] unless said otherwise.
    pub fn pid_namespace(mut self, want: Want) -> Self {
        self.pid_namespace = want;
        self
    }

    /// Starts it; returns once the program is executing. Call it on a thread that lives as long as the child
    /// should: the child is killed when that thread ends.
    ///
    /// # Errors
    /// [`Error::Spawn`] with the step that failed; no process is left behind.
    pub fn spawn(self) -> Result<Child, Error> {
        let mut plan = self.plan().map_err(|source| self.failed("prepare it", source))?;
        let mut first = None;
        for &way in Way::list(self.pid_namespace) {
            plan.namespaces = way.flags();
            plan.identity = if way == Way::OwnUser { own_identity() } else { Vec::new() };
            match exec::start(&plan) {
                Ok((pid, pidfd)) => {
                    return Ok(Child { pid, pidfd, own_pid_namespace: way != Way::Plain, status: None });
                }
                // Another way may work where this one is forbidden; if none does, the first refusal counts.
                Err((step @ (Step::Clone | Step::Identity), e)) => {
                    first.get_or_insert((step, e));
                }
                Err((step, e)) => return Err(self.failed(step.text(), e)),
            }
        }
        let (step, e) = first.unwrap_or((Step::Clone, io::ErrorKind::Unsupported.into()));
        Err(self.failed(step.text(), e))
    }

    fn failed(&self, step: &'static str, source: io::Error) -> Error {
        Error::Spawn { program: self.program.display().to_string(), step, source }
    }

    fn plan(&self) -> io::Result<Plan> {
        let program = c_string(self.program.as_os_str())?;
        let mut args = vec![program.clone()];
        for arg in &self.args {
            args.push(c_string(arg)?);
        }
        let mut env = Vec::new();
        for (name, value) in &self.env {
            let mut variable = name.clone();
            variable.push("=");
            variable.push(value);
            env.push(c_string(&variable)?);
        }
        // Sources are duplicated out of the way of all targets, so that no hand-over destroys the next.
        let lowest = Plan::safe_numbers(self.fds.iter().map(|(_, number)| *number));
        let mut fds = Vec::new();
        for (fd, number) in &self.fds {
            fds.push((exec::duplicate_above(fd.as_raw_fd(), lowest)?, *number));
        }
        let given = |number| self.fds.iter().any(|(_, n)| *n == number);
        for number in (0..=2).filter(|n| !given(*n)) {
            let source = match number {
                2 => exec::duplicate_above(2, lowest).or_else(|_| null(lowest))?,
                _ => null(lowest)?,
            };
            fds.push((source, number));
        }
        Ok(Plan { program, args, env, fds, namespaces: 0, identity: Vec::new() })
    }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

fn null(lowest: RawFd) -> io::Result<OwnedFd> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    exec::duplicate_above(null.as_raw_fd(), lowest)
}

/// How a child gets a PID namespace of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Root may just make one.
    Root,
    /// Others make a user namespace first, in which they may.
    OwnUser,
    /// Not at all.
    Plain,
}

impl Way {
    fn list(want: Want) -> &'static [Way] {
        match want {
            Want::No => &[Way::Plain],
            Want::Try => &[Way::Root, Way::OwnUser, Way::Plain],
            Want::Require => &[Way::Root, Way::OwnUser],
        }
    }

    fn flags(self) -> u64 {
        let flags = match self {
            Way::Root => libc::CLONE_NEWPID,
            Way::OwnUser => libc::CLONE_NEWPID | libc::CLONE_NEWUSER,
            Way::Plain => 0,
        };
        flags as u64
    }
}

/// In its user namespace the child is who we are: it needs no capability to enter its compartment, only to be
/// let into another user namespace, and a process that looked like root would be taken for it.
fn own_identity() -> Vec<(CString, CString)> {
    let map = |id: u32| CString::new(format!("{id} {id} 1")).unwrap_or_default();
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    vec![
        (c"/proc/self/setgroups".to_owned(), c"deny".to_owned()),
        (c"/proc/self/uid_map".to_owned(), map(uid)),
        (c"/proc/self/gid_map".to_owned(), map(gid)),
    ]
}

/// A started process. Dropping it does not end the process, and leaves a zombie: call [`Child::wait`].
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: OwnedFd,
    own_pid_namespace: bool,
    /// Known once it has been waited for.
    status: Option<ExitStatus>,
}

impl Child {
    /// Its process id, in the caller's PID namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it is the first process of a PID namespace of its own.
    pub fn own_pid_namespace(&self) -> bool {
        self.own_pid_namespace
    }

    /// Kills it (SIGKILL). No error if it is dead already.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(libc::SIGKILL)
    }

    /// Sends it a signal. No error if it is dead already. The first process of a PID namespace gets only signals that it
    /// handles, SIGKILL and SIGSTOP.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn signal(&self, signal: libc::c_int) -> io::Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        match exec::signal(self.pidfd.as_raw_fd(), signal) {
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => Err(e),
            _ => Ok(()),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.reap(true)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Its exit status if it has ended.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.reap(false)
    }

    fn reap(&mut self, block: bool) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = exec::wait(self.pid, block)?;
        }
        Ok(self.status)
    }
}

impl AsFd for Child {
    /// The pidfd: readable (epoll) once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
