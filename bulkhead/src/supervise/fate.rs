//! How processes end, and what that makes of the VM.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::signal::Signal;

/// How one process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// It exited, with this code.
    Exited(i32),
    /// A signal killed it.
    Killed(Signal),
    /// It ended in a way that this build does not know; the raw wait status.
    Unknown(i32),
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
            Self::Killed(Signal::SIGSYS) => {
                write!(
                    f,
                    "was killed for a seccomp violation (SIGSYS): it made a system call that its policy forbids"
                )
            }
            Self::Killed(signal) => write!(f, "was killed by {signal}"),
            Self::Unknown(status) => write!(f, "ended with the wait status {status:#x}"),
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
    /// A device process ended.
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
            Self::DeviceFailed { name, death } => write!(f, "ended, because its device {name} {death}"),
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
        let fate = Fate::DeviceFailed { name: "disk0".to_owned(), death: Death::Killed(Signal::SIGSYS) };
        assert_eq!(
            fate.to_string(),
            "ended, because its device disk0 was killed for a seccomp violation (SIGSYS): it made a system call that \
             its policy forbids"
        );
        assert_eq!(
            Fate::CoreFailed(Death::Killed(Signal::SIGSEGV)).to_string(),
            "core-vmm failed: it was killed by SIGSEGV"
        );
    }
}
