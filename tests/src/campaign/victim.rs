//! The process that is killed, and how.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::{AsFd, OwnedFd};

/// How a process is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL: at any instruction, and nothing more is done.
    Kill,
    /// SIGSTOP: it shows no sign of life any more until the supervisor's watchdog ends it.
    Stop,
    /// SIGSEGV: it crashes.
    Segv,
    /// SIGSYS: what seccomp does to a process that makes a forbidden call.
    Sys,
}

impl Kind {
    fn signal(self) -> Signal {
        match self {
            Self::Kill => Signal::KILL,
            Self::Stop => Signal::STOP,
            Self::Segv => Signal::SEGV,
            Self::Sys => Signal::SYS,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Segv => "segv",
            Self::Sys => "sys",
        })
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Kill, Self::Stop, Self::Segv, Self::Sys]
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| format!("{text} is no way to end a process: kill, stop, segv, sys"))
    }
}

/// The kernel ends the process (`PF_EXITING` of `include/linux/sched.h`): none of its own code runs any more.
const EXITING: u64 = 0x4;
/// Pause between two looks whether it has come to that.
const LOOK: Duration = Duration::from_micros(20);

/// A process, held so that its number cannot come to mean another one.
#[derive(Debug)]
pub struct Victim {
    process: OwnedFd,
    stat: File,
}

impl Victim {
    /// The process with this id.
    pub fn new(pid: u32) -> anyhow::Result<Self> {
        let stat = File::open(format!("/proc/{pid}/stat"))?;
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")?;
        Ok(Self { process: pidfd_open(pid, PidfdFlags::empty())?, stat })
    }

    /// Ends it; when that was begun. An error if it has ended already.
    pub fn end(&self, kind: Kind) -> anyhow::Result<Instant> {
        let begun = Instant::now();
        pidfd_send_signal(self.process.as_fd(), kind.signal())?;
        Ok(begun)
    }

    /// Waits until it does nothing more. It may be a while then until it is [dead](Self::wait): the kernel takes down what it
    /// had, while its successor is at work already.
    pub fn wait_silent(&self, timeout: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + timeout;
        while self.runs() {
            ensure!(Instant::now() < until, "the process does not die");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn runs(&self) -> bool {
        let mut text = [0; 512];
        // It cannot be read any more once the process has been waited for.
        let Ok(len) = self.stat.read_at(&mut text, 0) else { return false };
        let text = String::from_utf8_lossy(&text[..len]);
        // Fields 3 and 9; the second, the name, may hold anything.
        let mut fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let dead = fields.next().is_none_or(|state| matches!(state, "Z" | "X"));
        let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok());
        !dead && flags.is_some_and(|flags| flags & EXITING == 0)
    }

    /// Waits until it is dead.
    pub fn wait(&self, timeout: Duration) -> anyhow::Result<()> {
        let timeout = PollTimeout::try_from(timeout)?;
        let ended = poll(&mut [PollFd::new(self.process.as_fd(), PollFlags::POLLIN)], timeout)?;
        ensure!(ended == 1, "the process does not die");
        Ok(())
    }
}
