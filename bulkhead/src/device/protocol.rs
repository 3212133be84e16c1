//! What `bulkhead device` and `bulkhead run` say to each other: one JSON datagram a message on the supervisor's socket, one request
//! a connection. Data only.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::stats::Unit;
use crate::disk::words::Change;

/// From `bulkhead device`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Every device; answered by [`Reply::Devices`].
    List {},
    /// A new process in place of the one that serves; answered when it does.
    Restart {
        /// The device's name.
        device: String,
    },
    /// Another program, without a break in service; answered when it serves.
    Swap {
        /// The device's name.
        device: String,
        /// The program, absolute; `None`: the one that it has.
        #[serde(default)]
        binary: Option<PathBuf>,
    },
    /// The disks that processes of the device are started with; answered by [`Reply::Disks`].
    Disks {
        /// The device's name.
        device: String,
    },
    /// Another disk, or one less: for every process of the device that is started from now on, and for the one that serves. Answered by
    /// [`Reply::Told`] once that has answered, else by [`Reply::Again`]; asking for it again changes nothing and has that told again.
    Change {
        /// The device's name.
        device: String,
        /// What changes.
        change: Change,
        /// What the process that serves is told. The descriptors beside this message are for it.
        payload: String,
    },
    /// A PCI device of the host for the VM; answered by [`Reply::Done`] when a process serves it.
    Attach {
        /// Where it is.
        address: String,
        /// What it is to be called; `None`: as its place.
        #[serde(default)]
        name: Option<String>,
        /// A second process is to stand by.
        #[serde(default)]
        spare: bool,
    },
    /// A PCI device is to be the VM's no more; answered by [`Reply::Done`] when nobody has it.
    Detach {
        /// The device's name.
        device: String,
        /// Without asking the guest.
        #[serde(default)]
        force: bool,
    },
}

/// From `bulkhead run`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The answer to [`Request::List`].
    Devices(Vec<Row>),
    /// It was done, in a sentence.
    Done {
        /// The sentence.
        what: String,
    },
    /// The answer to [`Request::Disks`]: each as `--disk` takes it.
    Disks(Vec<String>),
    /// What the device's process has answered, as it is.
    Told {
        /// Its words.
        answer: String,
    },
    /// Later processes will be right; nobody serves just now who could have been told.
    Again {
        /// Why, in a sentence.
        reason: String,
    },
    /// It was not done, in a sentence.
    Failed {
        /// The sentence.
        reason: String,
    },
    /// There is no such device.
    NoSuchDevice {
        /// Those that there are.
        known: Vec<String>,
    },
}

/// A device, as an operator sees it; also what `--json` prints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// Its name in the spec.
    pub name: String,
    /// What it does.
    pub state: State,
    /// The process that serves it, or is about to.
    pub pid: Option<u32>,
    /// The process that stands by, or is about to.
    pub spare: Option<u32>,
    /// Whether that could take over now.
    pub spare_ready: bool,
    /// Processes that had to be replaced since the VM was started.
    pub restarts: u64,
    /// For how long the process has been serving, in milliseconds.
    pub uptime_ms: Option<u64>,
    /// How the last process ended that had to be replaced: the rest of a sentence that starts with its name.
    pub last_death: Option<String>,
    /// How long ago, in milliseconds.
    pub last_death_ms: Option<u64>,
    /// The program that the next process is started from.
    pub program: PathBuf,
    /// Version of the program that serves, as it says itself.
    pub build: String,
    /// Channels that are open.
    pub channels: u32,
    /// Bytes of guest memory that its process can reach.
    pub exposed_bytes: u64,
    /// Times that a process has taken over from another one, planned swaps included.
    pub takeovers: u64,
    /// What its disks have done, with `--stats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disks: Option<Vec<Unit>>,
}

/// What a device does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A process serves it.
    Serving,
    /// A process is on its way to serving it.
    #[default]
    Starting,
    /// A process stands by for it and nobody serves it (yet).
    StandingBy,
    /// Its process hangs and is being ended.
    Hung,
    /// Its processes keep dying; the next one is started after a pause.
    BackingOff,
    /// It could not be started, and its VM ends.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Serving => "serving",
            Self::Starting => "starting",
            Self::StandingBy => "standing-by",
            Self::Hung => "hung",
            Self::BackingOff => "backing-off",
            Self::Failed => "failed",
        })
    }
}
