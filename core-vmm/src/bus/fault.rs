//! What a guest can do wrong on the bus. None of it harms anybody but the guest.

use vmbus::message::MessageError;

use super::Relid;

/// What the guest did wrong; for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestFault {
    /// Not a message of the protocol.
    #[error("malformed message: {0}")]
    Malformed(MessageError),
    /// Only an initiate-contact message is welcome before there is a connection.
    #[error("message of type {0} without a connection")]
    NotConnected(u32),
    /// No such channel.
    #[error("message of type {kind} for unknown channel {relid}")]
    UnknownChannel {
        /// Message type.
        kind: u32,
        /// The channel it names.
        relid: Relid,
    },
    /// No such GPADL, or in a state in which this cannot be.
    #[error("message of type {kind} for GPADL {gpadl:#x}, which is not in a state for it")]
    BadGpadl {
        /// Message type.
        kind: u32,
        /// The GPADL it names.
        gpadl: u32,
    },
    /// The channel is in a state in which this cannot be.
    #[error("message of type {kind} for channel {relid}, which is not in a state for it")]
    BadState {
        /// Message type.
        kind: u32,
        /// The channel it names.
        relid: Relid,
    },
    /// No such VP.
    #[error("message of type {kind} names VP {vp}, which does not exist")]
    BadVp {
        /// Message type.
        kind: u32,
        /// The VP it names.
        vp: u32,
    },
    /// A request was understood and refused.
    #[error("channel {relid} cannot be opened: {reason}")]
    OpenRefused {
        /// The channel.
        relid: Relid,
        /// Why.
        reason: &'static str,
    },
    /// GPADL refused.
    #[error("GPADL {gpadl:#x} refused: {reason}")]
    GpadlRefused {
        /// Its number.
        gpadl: u32,
        /// Why.
        reason: String,
    },
}
