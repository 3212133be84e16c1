//! Starts a process in namespaces of its own: the part between `clone` and `exec`, where a child of a process with
//! several threads may neither allocate nor take a lock. All it needs is prepared in a [`Plan`].

use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr;

use super::check;

/// All that the child needs, made before it exists.
pub(crate) struct Plan {
    pub program: CString,
    pub args: Vec<CString>,
    pub env: Vec<CString>,
    /// Descriptors and the numbers the child gets them under. No source is below [`Plan::safe_numbers`].
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// `CLONE_NEW*` flags.
    pub namespaces: u64,
    /// Files in `/proc/self` and what to write there, if the child is to be in a new user namespace.
    pub identity: Vec<(CString, CString)>,
}

impl Plan {
    /// The lowest number that no descriptor of the child's is to have.
    pub(crate) fn safe_numbers(targets: impl Iterator<Item = RawFd>) -> RawFd {
        targets.max().unwrap_or(0).max(2) + 1
    }
}

/// Where starting a child failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Clone = 0,
    Identity,
    Parent,
    Session,
    Signals,
    Descriptors,
    Exec,
}

impl Step {
    const ALL: [Step; 7] = [
        Step::Clone,
        Step::Identity,
        Step::Parent,
        Step::Session,
        Step::Signals,
        Step::Descriptors,
        Step::Exec,
    ];

    pub(crate) fn text(self) -> &'static str {
        match self {
            Step::Clone => "make a process",
            Step::Identity => "map its user",
            Step::Parent => "tie its life to ours",
            Step::Session => "give it a session of its own",
            Step::Signals => "reset its signals",
            Step::Descriptors => "hand over descriptors",
            Step::Exec => "execute it",
        }
    }
}

/// Starts the child and returns its pid and pidfd once it executes the program.
pub(crate) fn start(plan: &Plan) -> Result<(u32, OwnedFd), (Step, io::Error)> {
    let in_parent = |e| (Step::Clone, e);
    let (mut failed, tell) = io::pipe().map_err(in_parent)?;
    // The child writes here after it has put its descriptors in place: move it out of their way.
    let tell =
        move_up(tell.into(), Plan::safe_numbers(plan.fds.iter().map(|(_, to)| *to))).map_err(in_parent)?;
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&plan.args), pointers(&plan.env));

    let mut pidfd: RawFd = -1;
    let flags = plan.namespaces | (libc::CLONE_PIDFD | libc::SIGCHLD) as u64;
    // SAFETY: without CLONE_VM this is fork: the child runs on a copy of our memory and stack, and from here to exec
    // calls only functions that are safe after a fork of a process with several threads. The kernel writes the pidfd
    // where CLONE_PARENT_SETTID would have the pid.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0u64, &raw mut pidfd, 0u64, 0u64) })
        .map_err(in_parent)?;
    if pid == 0 {
        child(plan, &argv, &envp, failed.as_raw_fd(), tell.as_raw_fd());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    drop(tell);
    let mut report = [0; 5];
    match failed.read_exact(&mut report) {
        // Closed by exec.
        Err(_) => Ok((pid as u32, pidfd)),
        Ok(()) => {
            let _ = wait(pid as u32, true);
            let step = Step::ALL[usize::from(report[0]).min(Step::ALL.len() - 1)];
            let errno = i32::from_ne_bytes([report[1], report[2], report[3], report[4]]);
            Err((step, io::Error::from_raw_os_error(errno)))
        }
    }
}

/// The child's side: never returns, never allocates.
fn child(
    plan: &Plan,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
    failed: RawFd,
    tell: RawFd,
) -> ! {
    let (step, errno) = match prepare(plan, failed, tell) {
        Ok(()) => {
            // SAFETY: null-terminated arrays of null-terminated strings, all alive.
            unsafe { libc::execve(plan.program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
            (Step::Exec, last_errno())
        }
        Err(failure) => failure,
    };
    let [a, b, c, d] = errno.to_ne_bytes();
    let report = [step as u8, a, b, c, d];
    // SAFETY: a live buffer; _exit runs nothing of ours.
    unsafe {
        libc::write(tell, report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
}

type Failure = (Step, i32);

fn prepare(plan: &Plan, failed: RawFd, tell: RawFd) -> Result<(), Failure> {
    for (file, text) in &plan.identity {
        write_file(file, text).map_err(|errno| (Step::Identity, errno))?;
    }
    // SAFETY: numbers only, except for `poll`'s and `sigprocmask`'s arguments, which are alive.
    unsafe {
        expect(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0), Step::Parent)?;
        // If the parent died before that, nobody reads our report any more.
        libc::close(failed);
        let mut report = libc::pollfd { fd: tell, events: 0, revents: 0 };
        if libc::poll(&raw mut report, 1, 0) != 0 {
            return Err((Step::Parent, libc::ESRCH));
        }
        // Ctrl-C on the terminal is for the supervisor.
        expect(libc::setsid(), Step::Session)?;
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        expect(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()), Step::Signals)?;
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        // Whatever the parent has open stays here, except for what is handed over.
        let all = libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        expect(all as i32, Step::Descriptors)?;
        for (from, to) in &plan.fds {
            expect(libc::dup2(from.as_raw_fd(), *to), Step::Descriptors)?;
        }
    }
    Ok(())
}

fn write_file(file: &CStr, text: &CStr) -> Result<(), i32> {
    let bytes = text.to_bytes();
    // SAFETY: null-terminated name, live buffer, a descriptor of our own.
    unsafe {
        let fd = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd < 0 || libc::write(fd, bytes.as_ptr().cast(), bytes.len()) < 0 {
            return Err(last_errno());
        }
        libc::close(fd);
    }
    Ok(())
}

fn expect(result: libc::c_int, step: Step) -> Result<(), Failure> {
    if result < 0 { Err((step, last_errno())) } else { Ok(()) }
}

fn last_errno() -> i32 {
    // SAFETY: errno of this thread.
    unsafe { *libc::__errno_location() }
}

/// A duplicate at or above `lowest`, closed on exec.
pub(crate) fn move_up(fd: OwnedFd, lowest: RawFd) -> io::Result<OwnedFd> {
    duplicate_above(fd.as_raw_fd(), lowest)
}

/// A duplicate at or above `lowest`, closed on exec.
pub(crate) fn duplicate_above(fd: RawFd, lowest: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor, which nobody else knows.
    unsafe {
        let new = check(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, lowest).into())?;
        Ok(OwnedFd::from_raw_fd(new as RawFd))
    }
}

/// The exit status of child `pid`; `None` if it has not ended and `block` is false.
pub(crate) fn wait(pid: u32, block: bool) -> io::Result<Option<ExitStatus>> {
    let mut status = 0;
    let flags = if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: `status` outlives the call.
        match check(unsafe { libc::waitpid(pid as i32, &raw mut status, flags) }.into()) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(ExitStatus::from_raw(status))),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Sends a signal to the process that `pidfd` stands for, never to another that got its number.
pub(crate) fn signal(pidfd: RawFd, signal: libc::c_int) -> io::Result<()> {
    let no_info: *const libc::siginfo_t = ptr::null();
    // SAFETY: no siginfo is passed.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, no_info, 0u32) }).map(drop)
}
