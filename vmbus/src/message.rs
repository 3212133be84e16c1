//! Channel messages: what guest and host say to each other outside of the rings.
//!
//! A message is an 8-byte header (type, padding) and a body; at most [`MAX_SIZE`] bytes in all, so a long list of
//! pages spans several ([`crate::gpadl`]). Bytes behind the body that we know are ignored: that is how the
//! protocol grows. Nothing here keeps state: whether a message is due at all is for the reader to judge.
//!
//! [`guest::GuestMessage`] goes from the guest to the host, [`host::HostMessage`] the other way; both parse and
//! encode.

pub mod guest;
pub mod host;

pub use guest::{
    GpadlBody, GpadlHeader, GuestMessage, InitiateContact, ModifyChannel, OpenChannel, TlConnect,
};
pub use host::{GpadlCreated, HostMessage, Offer, OfferFlags, OpenResult, VersionResponse};

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Most bytes of a message, its header included.
pub const MAX_SIZE: usize = crate::synic::MESSAGE_PAYLOAD_SIZE;
/// Bytes of a message's header.
pub const HEADER_SIZE: usize = 8;
/// Bytes that an opener passes to the device, and a device to its driver.
pub const USER_DATA_SIZE: usize = 120;

/// Types of message, as they stand in the header.
pub mod kind {
    /// Host to guest: a channel is offered.
    pub const OFFER: u32 = 1;
    /// Host to guest: an offer is withdrawn.
    pub const RESCIND_OFFER: u32 = 2;
    /// Guest to host: send me the offers.
    pub const REQUEST_OFFERS: u32 = 3;
    /// Host to guest: these were all of them.
    pub const ALL_OFFERS_DELIVERED: u32 = 4;
    /// Guest to host: open a channel.
    pub const OPEN_CHANNEL: u32 = 5;
    /// Host to guest: what became of it.
    pub const OPEN_RESULT: u32 = 6;
    /// Guest to host: close a channel; not answered.
    pub const CLOSE_CHANNEL: u32 = 7;
    /// Guest to host: start of a GPADL.
    pub const GPADL_HEADER: u32 = 8;
    /// Guest to host: more of a GPADL.
    pub const GPADL_BODY: u32 = 9;
    /// Host to guest: what became of a GPADL.
    pub const GPADL_CREATED: u32 = 10;
    /// Guest to host: give a GPADL's pages back.
    pub const GPADL_TEARDOWN: u32 = 11;
    /// Host to guest: its pages are yours alone.
    pub const GPADL_TORNDOWN: u32 = 12;
    /// Guest to host: a rescinded channel's id is free.
    pub const RELID_RELEASED: u32 = 13;
    /// Guest to host: proposal of a protocol version.
    pub const INITIATE_CONTACT: u32 = 14;
    /// Host to guest: yes or no.
    pub const VERSION_RESPONSE: u32 = 15;
    /// Guest to host: end of the connection.
    pub const UNLOAD: u32 = 16;
    /// Host to guest: the connection has ended.
    pub const UNLOAD_RESPONSE: u32 = 17;
    /// Guest to host: connect to a Hyper-V socket.
    pub const TL_CONNECT_REQUEST: u32 = 21;
    /// Guest to host: another virtual processor is to be interrupted.
    pub const MODIFY_CHANNEL: u32 = 22;
    /// Host to guest: a Hyper-V socket could not be connected.
    pub const TL_CONNECT_RESULT: u32 = 23;
    /// Host to guest: what became of the modification.
    pub const MODIFY_CHANNEL_RESPONSE: u32 = 24;
}

/// Bytes that are no message of their direction. The sender is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The bytes end before the message does.
    #[error("channel message of type {kind} has {have} bytes, it needs {need}")]
    TooShort {
        /// Type in the header; 0 if not even that was there.
        kind: u32,
        /// Bytes received.
        have: usize,
        /// Bytes that a message of this type has at least.
        need: usize,
    },
    /// More bytes than a message may have.
    #[error("channel message has {0} bytes, at most 240 are allowed")]
    TooLong(usize),
    /// A type that does not exist, or not in this direction.
    #[error("channel message has the unknown type {0}")]
    UnknownKind(u32),
}

/// An encoded message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    bytes: [u8; MAX_SIZE],
    len: usize,
}

impl Encoded {
    /// Starts a message of type `kind`.
    fn new(kind: u32) -> Self {
        let mut bytes = [0; MAX_SIZE];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        Self { bytes, len: HEADER_SIZE }
    }

    /// Appends as much of `bytes` as fits. Callers pass bodies that fit.
    fn and(mut self, bytes: &[u8]) -> Self {
        let room = &mut self.bytes[self.len..];
        debug_assert!(bytes.len() <= room.len(), "a message body that does not fit");
        let fits = bytes.len().min(room.len());
        room[..fits].copy_from_slice(&bytes[..fits]);
        self.len += fits;
        self
    }

    fn and_struct<T: IntoBytes + Immutable>(self, body: &T) -> Self {
        self.and(body.as_bytes())
    }

    /// The message's bytes, header included.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl core::ops::Deref for Encoded {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl core::fmt::Debug for Encoded {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Encoded").field(&self.as_bytes()).finish()
    }
}

/// Type and body of a message.
fn split(bytes: &[u8]) -> Result<(u32, &[u8]), MessageError> {
    if bytes.len() > MAX_SIZE {
        return Err(MessageError::TooLong(bytes.len()));
    }
    match bytes.split_first_chunk::<HEADER_SIZE>() {
        Some((header, body)) => Ok((u32::from_le_bytes([header[0], header[1], header[2], header[3]]), body)),
        None => Err(MessageError::TooShort { kind: 0, have: bytes.len(), need: HEADER_SIZE }),
    }
}

/// The body of a message of type `kind`, and what follows it.
fn body<T: FromBytes>(kind: u32, bytes: &[u8]) -> Result<(T, &[u8]), MessageError> {
    T::read_from_prefix(bytes).map_err(|_| MessageError::TooShort {
        kind,
        have: bytes.len() + HEADER_SIZE,
        need: size_of::<T>() + HEADER_SIZE,
    })
}

#[cfg(test)]
mod tests;
