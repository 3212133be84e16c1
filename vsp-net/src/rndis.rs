//! RNDIS: control messages, and the frames between guest and host.
//!
//! A message is two words, its type and its whole length, and a body; offsets in a body count from the body's start. Everything here
//! reads private copies: whoever calls has copied a guest's bytes once, and nothing looks at the guest's own again.
//!
//! * [`control`]: what a guest asks; [`reply`]: what the host answers, and says unasked.
//! * [`frame`]: frames in messages, several in a row from the guest ([`frame::Frames`]), one by one to it.
//! * [`info`]: what travels with a frame: checksums, segmentation, VLAN tag, hash.
//! * [`mod@status`], outcomes.
//!
//! Source of numbers and layouts: `include/linux/rndis.h`, `drivers/net/hyperv/{hyperv_net.h,rndis_filter.c}` of Linux, and Microsoft's
//! \[MS-RNDIS\].

pub mod control;
pub mod frame;
pub mod info;
pub mod reply;
pub mod status;

pub use frame::{Frame, Frames};
pub use info::{Lso, ReceiveChecksum, ReceiveInfo, TransmitChecksum, TransmitInfo, Vlan};
pub use reply::{Indication, Reply};
pub use status::RndisStatus;

/// Types of message, as they stand in the first word.
pub mod kind {
    /// Both ways: a frame.
    pub const PACKET: u32 = 1;
    /// Guest to host: the first message.
    pub const INITIALIZE: u32 = 2;
    /// Guest to host: the last message. Not answered.
    pub const HALT: u32 = 3;
    /// Guest to host: what is the value of an object?
    pub const QUERY: u32 = 4;
    /// Guest to host: let the value of an object be this.
    pub const SET: u32 = 5;
    /// Guest to host: forget what is under way.
    pub const RESET: u32 = 6;
    /// Host to guest: something has happened.
    pub const INDICATE: u32 = 7;
    /// Either way: are you there?
    pub const KEEPALIVE: u32 = 8;
    /// Added to the type of a question for that of its answer.
    pub const COMPLETION: u32 = 0x8000_0000;
}

/// Bytes of a message's type and length.
pub const HEADER_LEN: usize = 8;

/// A message that cannot be one. The sender is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RndisError {
    /// The bytes end before the message does.
    #[error("RNDIS message of type {kind:#x} has {have} bytes, it needs {need}")]
    TooShort {
        /// Type in the first word; 0 if not even that was there.
        kind: u32,
        /// Bytes that are there.
        have: usize,
        /// Bytes that a message of this type has at least.
        need: usize,
    },
    /// The message says that it is longer than what was sent, or shorter than its own fields.
    #[error("RNDIS message says that it has {says} bytes, of {have} sent")]
    Length {
        /// The length in its header.
        says: u32,
        /// Bytes that are there.
        have: usize,
    },
    /// A part of the message is not inside of it.
    #[error("RNDIS message of {message} bytes has {length} bytes at offset {offset}")]
    Outside {
        /// Where the part is said to be.
        offset: u32,
        /// How long the part is said to be.
        length: u32,
        /// The message's length.
        message: usize,
    },
    /// The per-packet information cannot be taken apart, or contradicts itself.
    #[error("per-packet information of type {kind} makes no sense")]
    Info {
        /// Its type.
        kind: u32,
    },
    /// More frames than one message may have.
    #[error("more than {} frames in one message", frame::MAX_FRAMES)]
    TooMany,
    /// A type that does not exist, or not here.
    #[error("RNDIS message of the unknown type {0:#x}")]
    UnknownKind(u32),
    /// The sender's memory cannot be read where the message should be.
    #[error("RNDIS message is not where it should be")]
    Unreadable,
}

/// A message whose length has been checked against what is there.
#[derive(Clone, Copy)]
struct Message<'a> {
    kind: u32,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads type and length; what follows the message is padding.
    fn of(bytes: &'a [u8]) -> Result<Message<'a>, RndisError> {
        let have = bytes.len();
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(RndisError::TooShort { kind: 0, have, need: HEADER_LEN });
        };
        let (kind, says) = (word(header, 0), word(header, 4));
        match bytes.get(HEADER_LEN..says as usize) {
            Some(body) => Ok(Message { kind, body }),
            None => Err(RndisError::Length { says, have }),
        }
    }

    /// Checks that the body has so many bytes.
    fn need(self, need: usize) -> Result<Message<'a>, RndisError> {
        match self.body.len() {
            have if have < need => {
                let [have, need] = [have, need].map(|len| len + HEADER_LEN);
                Err(RndisError::TooShort { kind: self.kind, have, need })
            }
            _ => Ok(self),
        }
    }

    /// A word of the body; 0 past the end, which [`Message::need`] excludes.
    fn at(self, offset: usize) -> u32 {
        word(self.body, offset)
    }

    /// A part of the body behind its first `fixed` bytes; an empty one may claim to be anywhere.
    fn part(self, offset: u32, length: u32, fixed: usize) -> Result<&'a [u8], RndisError> {
        if length == 0 {
            return Ok(&[]);
        }
        let start = offset as usize;
        let part = self.body.get(start..).and_then(|rest| rest.get(..length as usize));
        let message = self.body.len() + HEADER_LEN;
        part.filter(|_| start >= fixed).ok_or(RndisError::Outside { offset, length, message })
    }
}

/// The word at an offset; 0 past the end.
fn word(bytes: &[u8], offset: usize) -> u32 {
    let word = bytes.get(offset..).and_then(|rest| rest.first_chunk::<4>());
    word.map_or(0, |word| u32::from_le_bytes(*word))
}

/// Appends a message: its type, its length, words, bytes.
fn append(out: &mut Vec<u8>, kind: u32, words: &[u32], bytes: &[u8]) {
    let len = HEADER_LEN + words.len() * 4 + bytes.len();
    for word in [kind, len as u32].iter().chain(words) {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(bytes);
}
