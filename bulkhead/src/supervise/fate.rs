//! How processes end, and what that makes of the VM.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;

/// How one process ended. Displays as the rest of a sentence that starts with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Death {
    /// It exited, with this code.
    Exited(i32),
    /// A signal killed it.
    Killed(Signal),
    /// It made this system call, which its policy forbids: `NAME(NUMBER)` as it said itself.
    Forbidden(String),
    /// We ended it, because it had given no sign of life for this long.
    Hung(Duration),
    /// We ended it, because the core had cut it off for this reason.
    CutOff(String),
    /// We ended it, because an operator wanted that.
    Restarted,
    /// We ended it, because what it was connected to had been replaced.
    Recabled,
    /// We ended it, because its VM ended.
    EndedWithVm,
    /// It was not even started.
    NotStarted(String),
    /// It was not even started, because nobody listens for the core: that ends, or has ended.
    CoreGone,
    /// It ended in a way that this build does not know; the raw wait status.
    Unknown(i32),
}

impl Death {
    /// Whether the process itself is to blame. SIGKILL comes from outside: an operator, a test, the kernel when memory runs out.
    pub fn is_crash(&self) -> bool {
        match self {
            Self::Exited(code) => *code != 0,
            Self::Killed(signal) => *signal != Signal::SIGKILL,
            Self::Forbidden(_) | Self::Hung(_) | Self::CutOff(_) | Self::Unknown(_) => true,
            Self::Restarted | Self::Recabled | Self::EndedWithVm | Self::NotStarted(_) | Self::CoreGone => {
                false
            }
        }
    }
}

impl From<ExitStatus> for Death {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal().and_then(|signal| Signal::try_from(signal).ok())) {
            (Some(code), _) => Self::Exited(code),
            (None, Some(signal)) => Self::Killed(signal),
            (None, None) => Self::Unknown(status.into_raw()),
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Killed(Signal::SIGSYS) => f.write_str(
                "was killed for a seccomp violation (SIGSYS): it made a system call that its policy forbids",
            ),
            Self::Killed(signal) => write!(f, "was killed by {signal}"),
            Self::Forbidden(call) => write!(
                f,
                "was killed for a seccomp violation (SIGSYS): it called {call}, which its policy forbids"
            ),
            Self::Hung(silence) => {
                write!(f, "hung and was killed: no sign of life for {}", Seconds(*silence))
            }
            Self::CutOff(reason) => write!(f, "was cut off by the core and killed: {reason}"),
            Self::Restarted => f.write_str("was restarted by an operator"),
            Self::Recabled => f.write_str("was restarted for a new connection, as its passt had died"),
            Self::EndedWithVm => f.write_str("was ended with its VM"),
            Self::NotStarted(why) => write!(f, "could not be started: {why}"),
            Self::CoreGone => f.write_str("could not be started: the core listens no more"),
            Self::Unknown(status) => write!(f, "ended with the wait status {status:#x}"),
        }
    }
}

/// A time as people say it: `3 s`, `250 ms`.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.as_millis(), self.0.subsec_millis()) {
            (_, 0) => write!(f, "{} s", self.0.as_secs()),
            (total, part) if total >= 1000 => write!(f, "{}.{:03} s", self.0.as_secs(), part),
            (total, _) => write!(f, "{total} ms"),
        }
    }
}

/// How the VM ended. Displays as the rest of a sentence that starts with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The guest powered itself off.
    PoweredOff,
    /// The core found that it cannot run here, and has said why.
    Refused,
    /// The guest's kernel crashed.
    Crashed,
    /// The core failed.
    CoreFailed(Death),
    /// A device process ended before the device had ever been served: the VM cannot start.
    DeviceFailed {
        /// The device.
        name: String,
        /// How.
        death: Death,
    },
    /// A process could not be started.
    NotStarted(String),
    /// The supervisor itself cannot go on.
    SupervisorFailed(String),
    /// The operator ended it from the console.
    Quit,
    /// A signal ended it.
    Signalled(Signal),
}

impl Fate {
    /// What the end of the core means.
    pub fn of_core(death: Death) -> Self {
        match death {
            Death::Exited(0) => Self::PoweredOff,
            Death::Exited(1) => Self::Refused,
            Death::Exited(3) => Self::Crashed,
            // The terminal sends its signals to every process of the foreground: the core was merely faster.
            Death::Killed(signal @ (Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT)) => {
                Self::Signalled(signal)
            }
            other => Self::CoreFailed(other),
        }
    }

    /// The exit code of `bulkhead run`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PoweredOff | Self::Quit => 0,
            Self::Refused | Self::NotStarted(_) => 1,
            Self::Crashed => 3,
            Self::CoreFailed(_) | Self::DeviceFailed { .. } | Self::SupervisorFailed(_) => 4,
            // As a shell shows the death of a process.
            Self::Signalled(signal) => 128_u8.saturating_add(*signal as u8),
        }
    }

    /// Whether something went wrong.
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::PoweredOff | Self::Quit | Self::Signalled(_))
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Refused => f.write_str("core-vmm could not start the guest; its reason is above"),
            Self::Crashed => f.write_str("the guest's kernel crashed"),
            Self::CoreFailed(death) => write!(f, "core-vmm failed: it {death}"),
            Self::DeviceFailed { name, death } => {
                write!(f, "could not start, because its device {name} {death}")
            }
            Self::NotStarted(why) => write!(f, "could not be started: {why}"),
            Self::SupervisorFailed(why) => write!(f, "ended, because bulkhead itself failed: {why}"),
            Self::Quit => f.write_str("ended from the console"),
            Self::Signalled(signal) => write!(f, "ended by {signal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_become_deaths() {
        assert_eq!(Death::from(ExitStatus::from_raw(0x0300)), Death::Exited(3));
        assert_eq!(Death::from(ExitStatus::from_raw(9)), Death::Killed(Signal::SIGKILL));
        assert_eq!(Death::from(ExitStatus::from_raw(0x80 | 31)), Death::Killed(Signal::SIGSYS));
        assert_eq!(Death::from(ExitStatus::from_raw(40)), Death::Unknown(40));
    }

    #[test]
    fn the_core_decides_the_exit_code() {
        let code = |death| Fate::of_core(death).exit_code();
        assert_eq!([0, 1, 3, 4, 101].map(|exit| code(Death::Exited(exit))), [0, 1, 3, 4, 4]);
        assert_eq!(code(Death::Killed(Signal::SIGSEGV)), 4);
        assert_eq!(code(Death::Killed(Signal::SIGINT)), 130);
    }

    #[test]
    fn deaths_are_told_in_words() {
        let fate = Fate::DeviceFailed { name: "disk0".to_owned(), death: Death::Exited(1) };
        assert_eq!(fate.to_string(), "could not start, because its device disk0 exited with code 1");
        for (death, text) in [
            (
                Death::Forbidden("socket(41)".to_owned()),
                "was killed for a seccomp violation (SIGSYS): it called socket(41), which its policy forbids",
            ),
            (Death::Hung(Duration::from_secs(3)), "hung and was killed: no sign of life for 3 s"),
            (Death::Hung(Duration::from_millis(1500)), "hung and was killed: no sign of life for 1.500 s"),
            (Death::Hung(Duration::from_millis(90)), "hung and was killed: no sign of life for 90 ms"),
        ] {
            assert_eq!(death.to_string(), text);
        }
        assert_eq!(
            Fate::CoreFailed(Death::Killed(Signal::SIGSEGV)).to_string(),
            "core-vmm failed: it was killed by SIGSEGV"
        );
    }
}
