//! Control messages of a guest.

use super::{Message as Raw, RndisError, append, kind};

/// Most bytes of a control message that are worth looking at: the longest that a driver sends sets 128 entries of an indirection table
/// and a hash key, or up to 32 addresses; Linux has a page for it.
pub const MAX_LEN: usize = 4096 + 64;

/// Words in front of a query's or a set's value, 4 bytes each.
const REQUEST_WORDS: usize = 5;

/// What a guest asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// The first message.
    Initialize {
        /// Repeated in the answer.
        id: u32,
        /// 1.
        major: u32,
        /// 0.
        minor: u32,
        /// Longest message that the guest takes; Linux says 16 KiB, and takes any.
        max_transfer: u32,
    },
    /// The last message; not answered.
    Halt {
        /// Repeated nowhere.
        id: u32,
    },
    /// What is the value of an object?
    Query {
        /// Repeated in the answer.
        id: u32,
        /// The object.
        oid: u32,
        /// What the guest says of the object that it expects.
        info: &'a [u8],
    },
    /// Let the value of an object be this.
    Set {
        /// Repeated in the answer.
        id: u32,
        /// The object.
        oid: u32,
        /// Its value.
        info: &'a [u8],
    },
    /// Forget what is under way.
    Reset,
    /// Are you there?
    KeepAlive {
        /// Repeated in the answer.
        id: u32,
    },
}

impl<'a> Message<'a> {
    /// Reads a message. What follows it is padding.
    pub fn parse(bytes: &'a [u8]) -> Result<Message<'a>, RndisError> {
        let raw = Raw::of(bytes)?;
        Ok(match raw.kind {
            kind::INITIALIZE => {
                let raw = raw.need(16)?;
                let [id, major, minor, max_transfer] = [0, 4, 8, 12].map(|offset| raw.at(offset));
                Message::Initialize { id, major, minor, max_transfer }
            }
            kind::HALT => Message::Halt { id: raw.need(4)?.at(0) },
            kind::QUERY => {
                let (id, oid, info) = request(raw)?;
                Message::Query { id, oid, info }
            }
            kind::SET => {
                let (id, oid, info) = request(raw)?;
                Message::Set { id, oid, info }
            }
            kind::RESET => Message::Reset,
            kind::KEEPALIVE => Message::KeepAlive { id: raw.need(4)?.at(0) },
            other => return Err(RndisError::UnknownKind(other)),
        })
    }

    /// Appends the message as Linux sends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Message::Initialize { id, major, minor, max_transfer } => {
                append(out, kind::INITIALIZE, &[id, major, minor, max_transfer], &[]);
            }
            Message::Halt { id } => append(out, kind::HALT, &[id], &[]),
            Message::Query { id, oid, info } => append(out, kind::QUERY, &head(id, oid, info), info),
            Message::Set { id, oid, info } => append(out, kind::SET, &head(id, oid, info), info),
            Message::Reset => append(out, kind::RESET, &[0], &[]),
            Message::KeepAlive { id } => append(out, kind::KEEPALIVE, &[id], &[]),
        }
    }
}

/// Id, object and value of a query or a set.
fn request(raw: Raw<'_>) -> Result<(u32, u32, &[u8]), RndisError> {
    let raw = raw.need(REQUEST_WORDS * 4)?;
    let info = raw.part(raw.at(12), raw.at(8), REQUEST_WORDS * 4)?;
    Ok((raw.at(0), raw.at(4), info))
}

fn head(id: u32, oid: u32, info: &[u8]) -> [u32; REQUEST_WORDS] {
    [id, oid, info.len() as u32, REQUEST_WORDS as u32 * 4, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Message<'static>; 8] = [
        Message::Initialize { id: 1, major: 1, minor: 0, max_transfer: 0x4000 },
        Message::Halt { id: 2 },
        Message::Query { id: 3, oid: 0x0001_0106, info: &[] },
        Message::Query { id: 3, oid: 0xfc01_020d, info: &[0xa7, 3, 156, 0] },
        Message::Set { id: 4, oid: 0x0001_010e, info: &[0xb, 0, 0, 0] },
        Message::Set { id: 4, oid: 0x0001_010e, info: &[] },
        Message::Reset,
        Message::KeepAlive { id: 5 },
    ];

    fn bytes(message: &Message<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_encoded_is_read_again() {
        for message in ALL {
            let mut bytes = bytes(&message);
            assert_eq!(Message::parse(&bytes), Ok(message));
            bytes.extend_from_slice(&[0xee; 9]);
            assert_eq!(Message::parse(&bytes), Ok(message));
        }
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        for message in ALL {
            let bytes = bytes(&message);
            for len in 0..bytes.len() {
                assert!(Message::parse(&bytes[..len]).is_err());
            }
            for says in [0, 7, bytes.len() as u32 + 1, u32::MAX] {
                let mut bytes = bytes.clone();
                bytes[4..8].copy_from_slice(&says.to_le_bytes());
                let have = bytes.len();
                assert_eq!(Message::parse(&bytes), Err(RndisError::Length { says, have }));
            }
        }
    }

    #[test]
    fn a_value_outside_of_its_message_is_refused() {
        let message = bytes(&ALL[4]);
        // (length, offset) of the value; the message's body has 24 bytes.
        for (length, offset) in
            [(5, 20), (4, 21), (4, 12), (4, 0), (u32::MAX, 20), (4, u32::MAX), (u32::MAX, u32::MAX), (1, 24)]
        {
            let mut bytes = message.clone();
            bytes[16..20].copy_from_slice(&u32::to_le_bytes(length));
            bytes[20..24].copy_from_slice(&u32::to_le_bytes(offset));
            assert_eq!(Message::parse(&bytes), Err(RndisError::Outside { offset, length, message: 32 }));
        }
        // An empty one may be anywhere.
        let mut bytes = message.clone();
        bytes[16..20].fill(0);
        bytes[20..24].fill(0xff);
        assert!(matches!(Message::parse(&bytes), Ok(Message::Set { info: [], .. })));
    }

    #[test]
    fn answers_and_frames_are_no_questions() {
        for kind in [0, 1, 7, 9, 0x8000_0002, u32::MAX] {
            let mut bytes = bytes(&ALL[0]);
            bytes[..4].copy_from_slice(&kind.to_le_bytes());
            assert_eq!(Message::parse(&bytes), Err(RndisError::UnknownKind(kind)));
        }
    }
}
