//! What can go wrong on the way into a compartment. Every error leaves the process unfit to go on: the
//! caller says what happened and exits.

use std::io;

use crate::Kind;

/// Why a process could not be put into its compartment, or a child not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller has more than one thread; the others would stay outside.
    #[error("a compartment is entered before any thread is started, and this process has {0}")]
    Threads(usize),
    /// The user or group could not be taken on.
    #[error("cannot become uid {uid} gid {gid}: {source}; start as root, or leave the ids out")]
    Ids {
        /// The user asked for.
        uid: u32,
        /// The group asked for.
        gid: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A namespace that the caller cannot do without is not to be had.
    #[error("no {kind} namespace of its own: {source}; the host's kernel or its administrator forbids it")]
    Namespace {
        /// Which.
        kind: Kind,
        /// What the kernel said.
        source: io::Error,
    },
    /// A step that every Linux allows every process failed.
    #[error("{step}: {source}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process that started this one is gone already.
    #[error("the process that started this one is gone")]
    Orphan,
    /// The seccomp filter was refused.
    #[error("the kernel does not take the seccomp filter {policy}: {source}; seccomp filters are required")]
    Seccomp {
        /// The policy's name.
        policy: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A child could not be started.
    #[error("cannot start {program}: {step}: {source}")]
    Spawn {
        /// The program.
        program: String,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn step(step: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Step { step, source }
    }
}
