//! How a message becomes bytes: a header of a kind, a version and a number, then fields of a fixed size.
//!
//! A later version adds fields at the end and leaves those before as they are; a receiver looks at those that it knows. A kind
//! that it does not know it skips.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest message in bytes.
pub const MAX_MESSAGE: usize = 4096;
/// Version of the messages that this build sends.
pub const VERSION: u16 = 1;

/// What can be said in one direction.
pub trait Message: Sized {
    /// Appends the message to `into`, which is empty.
    fn encode(&self, into: &mut Vec<u8>);

    /// What these bytes say.
    fn parse(bytes: &[u8]) -> Result<Self, MessageError>;

    /// Bytes of shared memory that come with the message; `None`: it comes alone.
    fn memory(&self) -> Option<u64> {
        None
    }
}

/// Bytes that are no message of this build's. Skip them: the next message may be sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// A newer build may know it.
    #[error("a message is of kind {0}, which this build does not know")]
    Unknown(u16),
    /// More bytes or descriptors than any message has.
    #[error("a message is longer than {MAX_MESSAGE} bytes, or came with too many descriptors")]
    TooLong,
    /// Nothing at all. The end of a socket whose other end is gone reads the same.
    #[error("a message is empty")]
    Empty,
    /// Not even a header, or less than a message of this kind needs.
    #[error("a message of kind {kind} has {have} bytes, it needs {need}")]
    TooShort {
        /// Its kind; 0 without a header.
        kind: u16,
        /// Bytes received.
        have: usize,
        /// Bytes that it needs.
        need: usize,
    },
    /// A field that no sound sender sends.
    #[error("a message of kind {kind} has a senseless {field}")]
    Senseless {
        /// Its kind.
        kind: u16,
        /// Which field.
        field: &'static str,
    },
    /// Descriptors where there should be none, or none, or other than sealed memory, where there should be one.
    #[error("a message came with the wrong descriptors, or with memory that is not what it says")]
    Memory,
}

/// In front of each message.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    kind: U16,
    version: U16,
    zero: U32,
    number: U64,
}

/// Where in a message its number is.
const NUMBER: usize = 8;

/// A message's kind and what follows the header.
pub(crate) fn split(bytes: &[u8]) -> Result<(u16, &[u8]), MessageError> {
    let need = size_of::<Header>();
    let short = MessageError::TooShort { kind: 0, have: bytes.len(), need };
    let (header, body) = Header::ref_from_prefix(bytes).map_err(|_| short)?;
    // Version 0 never was: its fields could be any.
    if header.version.get() == 0 {
        return Err(MessageError::Senseless { kind: header.kind.get(), field: "version" });
    }
    Ok((header.kind.get(), body))
}

/// The fields of a message, and what follows them.
pub(crate) fn fields<F>(kind: u16, body: &[u8]) -> Result<(F, &[u8]), MessageError>
where
    F: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let need = size_of::<Header>() + size_of::<F>();
    let short = MessageError::TooShort { kind, have: body.len() + size_of::<Header>(), need };
    F::read_from_prefix(body).map_err(|_| short)
}

/// Appends a message that is nothing but its kind.
pub(crate) fn put_kind(into: &mut Vec<u8>, kind: u16) {
    let (zero, number) = (U32::ZERO, U64::ZERO);
    into.extend_from_slice(Header { kind: kind.into(), version: VERSION.into(), zero, number }.as_bytes());
}

/// The number of a message that was parsed.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    Header::ref_from_prefix(bytes).map_or(0, |(header, _)| header.number.get())
}

/// Gives a message that was encoded its number.
pub(crate) fn set_number(bytes: &mut [u8], number: u64) {
    if let Some(place) = bytes.get_mut(NUMBER..NUMBER + 8) {
        place.copy_from_slice(&number.to_le_bytes());
    }
}

/// Appends a message of these fields.
pub(crate) fn put(into: &mut Vec<u8>, kind: u16, fields: &(impl IntoBytes + Immutable)) {
    put_kind(into, kind);
    into.extend_from_slice(fields.as_bytes());
}

/// A byte that says yes or no; anything but 0 is yes.
pub(crate) fn flag(byte: u8) -> bool {
    byte != 0
}
