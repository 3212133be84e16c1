//! What can go wrong for a guest.

use vmbus::message::MessageError;
use vmbus::ring::{PushError, RingError};

use crate::platform::BoxError;

/// What can go wrong for a guest. Most of these are the host's fault, and a test that meets one fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine below the guest failed, not the host that is tested.
    #[error("the platform failed: {0}")]
    Platform(#[source] BoxError),
    /// The hypercall that posts a message was refused.
    #[error("posting a message was refused with hypercall status {0}")]
    PostRefused(u16),
    /// The host did not answer in time.
    #[error("the host gave no {0} in time")]
    Timeout(&'static str),
    /// The host sent bytes that are no message.
    #[error("the host sent nonsense: {0}")]
    Message(#[from] MessageError),
    /// The host speaks none of the proposed versions.
    #[error("the host speaks none of the proposed protocol versions")]
    NoVersion,
    /// The host does not share a list of pages.
    #[error("the host refused GPADL {gpadl} with status {status:#x}")]
    GpadlRefused {
        /// Our name for it.
        gpadl: u32,
        /// The host's reason.
        status: u32,
    },
    /// The host does not open a channel.
    #[error("the host refused to open channel {relid} with status {status:#x}")]
    OpenRefused {
        /// The channel.
        relid: u32,
        /// The host's reason.
        status: u32,
    },
    /// The host does not move a channel's interrupt.
    #[error("the host refused to retarget channel {relid} with status {status:#x}")]
    RetargetRefused {
        /// The channel.
        relid: u32,
        /// The host's reason.
        status: u32,
    },
    /// The device broke its ring.
    #[error("the device broke its ring: {0}")]
    Ring(#[from] RingError),
    /// A packet cannot be sent.
    #[error("a packet cannot be sent: {0}")]
    Push(#[from] PushError),
    /// The device sent something else than its protocol allows here.
    #[error("the device broke its protocol: {0}")]
    Protocol(String),
    /// A completion for a request that is not under way: invented, or completed twice.
    #[error("request {0:#x} was completed but is not under way")]
    UnknownCompletion(u64),
    /// Requests that were never completed.
    #[error("{0} requests were never completed")]
    Lost(usize),
    /// A SCSI command failed.
    #[error(
        "SCSI command {opcode:#04x} failed: SRB status {srb:#04x}, SCSI status {scsi:#04x}, sense {sense:02x?}"
    )]
    Scsi {
        /// First byte of the command.
        opcode: u8,
        /// Status of the request block.
        srb: u8,
        /// Status of the command.
        scsi: u8,
        /// Sense data, if there is any.
        sense: Vec<u8>,
    },
}
