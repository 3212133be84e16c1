//! What an operator (the supervisor, or `bulkhead device`) and the core say to each other: one JSON datagram a message, on a
//! connection that began with [`crate::message::ToCore::Operator`].
//!
//! The core knows who serves a device; it knows nothing of pids, programs or restarts, which are the supervisor's (or
//! systemd's). This module is data only.

use serde::{Deserialize, Serialize};

use crate::config::DeviceSlot;

/// From an operator to the core. Each is answered by one [`Reply`], in order: while a hand-over or a control is under way, what this
/// operator asks besides waits. An operator that does not read its replies is disconnected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// What is known of every device; answered by [`Reply::Devices`].
    Devices {},
    /// Hand a device over from the process that serves it to the one that stands by; answered by [`Reply::Swapped`] or
    /// [`Reply::Failed`], after which the old process serves as before.
    Swap {
        /// Name of the device slot.
        device: String,
        /// How long to wait for a process to stand by, in milliseconds; a minute at most.
        #[serde(default)]
        wait_ms: u64,
    },
    /// Passes something on to the process that serves a device, unread; answered by [`Reply::Control`], or by [`Reply::Failed`] if no
    /// process has answered it: then it may have been done or not. Descriptors: at most [`crate::message::MAX_CONTROL_FDS`], for
    /// that process.
    Control {
        /// Name of the device slot.
        device: String,
        /// At most [`crate::message::MAX_CONTROL`] bytes.
        payload: String,
    },
    /// The VM is to have one device more, which may attach from now on and is offered to the guest when it does; answered by [`Reply::Added`], or by
    /// [`Reply::Failed`].
    DeviceAdd {
        /// As in the configuration. A user other than root and the core's own has to be one of [`crate::config::CoreConfig::later_uids`].
        slot: DeviceSlot,
    },
    /// A device is to go: its offer is taken back from the guest, for good. Its processes are told to end once its channels are closed, what the core
    /// keeps for it is given up; then [`Reply::Removed`] is the answer. [`Reply::Failed`]: there is none such, or the guest has it open and
    /// `force` is not said, or another operator waits for it already.
    DeviceRemove {
        /// Name of the device slot.
        device: String,
        /// Also if the guest has it open. It loses what it does with the device.
        #[serde(default)]
        force: bool,
    },
}

/// From the core to an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The answer to [`Request::Devices`].
    Devices(Vec<Device>),
    /// The standby process serves now.
    Swapped {
        /// Name of the device slot.
        device: String,
        /// From the moment at which the old process was told to stop until the new one served, in microseconds.
        pause_us: u64,
    },
    /// What the process that serves a device says to a [`Request::Control`].
    Control {
        /// Name of the device slot.
        device: String,
        /// As in [`crate::message::ToCore::ControlDone`]. The process may be in a guest's hands: this is not fit for a terminal as it is.
        result: Result<String, String>,
    },
    /// The answer to [`Request::DeviceAdd`].
    Added {
        /// Name of the device slot.
        device: String,
    },
    /// The answer to [`Request::DeviceRemove`]: the name is free again.
    Removed {
        /// Name of the device slot.
        device: String,
    },
    /// It could not be done; everything is as it was, unless the reason says that both processes are lost.
    Failed {
        /// Name of the device slot.
        device: String,
        /// One sentence.
        reason: String,
    },
    /// Unasked: the core has cut a process off because it broke the protocol or did not answer in time. Whoever can should end it;
    /// until then no successor gets the device. Said again while one that had channels does not end.
    CutOff {
        /// Name of the device slot.
        device: String,
        /// One sentence.
        reason: String,
        /// The process had said that it serves, or is one that was cut off before and has not ended. Else it stood by or waited for its resource, and
        /// whoever serves, or has last served, is not concerned.
        #[serde(default)]
        had_channels: bool,
    },
}

/// What the core knows of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Name of its slot.
    pub name: String,
    /// A process serves it.
    pub serving: bool,
    /// A process stands by.
    pub standby: bool,
    /// Version of the program that serves it.
    pub build: String,
    /// Channels that are open.
    pub channels: u32,
    /// Bytes of guest memory that its process can reach.
    pub exposed_bytes: u64,
    /// Times that a process has taken over from another one since the VM started.
    pub takeovers: u64,
}
