//! What the host says: answers, and indications that nobody asked for.

use super::{Message, RndisError, RndisStatus, append, kind};

/// An RNDIS device that knows no connections (`RNDIS_DF_CONNECTIONLESS`).
const CONNECTIONLESS: u32 = 1;
/// Ethernet (`RNDIS_MEDIUM_802_3`).
const ETHERNET: u32 = 0;
/// Where a value begins in the body of a query's answer.
const INFO_OFFSET: u32 = 16;
/// Where a value begins in the body of an indication.
const INDICATE_OFFSET: u32 = 12;

/// Events of an indication (`RNDIS_STATUS_*`).
mod event {
    pub const CONNECT: u32 = 0x4001_000B;
    pub const DISCONNECT: u32 = 0x4001_000C;
    pub const LINK_SPEED_CHANGE: u32 = 0x4001_0013;
    pub const NETWORK_CHANGE: u32 = 0x4001_0018;
    /// NDIS 6 only.
    pub const OFFLOAD_CURRENT_CONFIG: u32 = 0x4002_0006;
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indication<'a> {
    /// The link is up.
    Connect,
    /// The link is down.
    Disconnect,
    /// Another speed, in units of 100 bit/s (as everywhere in RNDIS).
    LinkSpeed(u32),
    /// Another network: Linux takes the link down and up, so that addresses are asked for anew.
    NetworkChange,
    /// Other offloads are in force than the guest wanted: an `NDIS_OFFLOAD` ([`crate::oid::offloads::object`]).
    Offloads(&'a [u8]),
}

/// A message of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// Answer to `Initialize`.
    InitializeComplete {
        /// The question's.
        id: u32,
        /// Outcome.
        status: RndisStatus,
        /// Most frames in one message of the guest's.
        max_packets: u32,
        /// Longest message that we take.
        max_transfer: u32,
        /// Frames begin at multiples of two to this power.
        alignment_shift: u32,
    },
    /// Answer to `Query`.
    QueryComplete {
        /// The question's.
        id: u32,
        /// Outcome.
        status: RndisStatus,
        /// The value; empty if there is none. Linux looks at nothing else to tell whether a query failed.
        info: &'a [u8],
    },
    /// Answer to `Set`.
    SetComplete {
        /// The question's.
        id: u32,
        /// Outcome.
        status: RndisStatus,
    },
    /// Answer to `Reset`.
    ResetComplete {
        /// Outcome.
        status: RndisStatus,
    },
    /// Answer to `KeepAlive`.
    KeepAliveComplete {
        /// The question's.
        id: u32,
        /// Outcome.
        status: RndisStatus,
    },
    /// Something has happened.
    Indicate(Indication<'a>),
}

impl<'a> Reply<'a> {
    /// Appends the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let answer = |to: u32| to | kind::COMPLETION;
        match *self {
            Reply::InitializeComplete { id, status, max_packets, max_transfer, alignment_shift } => {
                let version = [1, 0];
                let device = [CONNECTIONLESS, ETHERNET];
                let words = [
                    id,
                    status.0,
                    version[0],
                    version[1],
                    device[0],
                    device[1],
                    max_packets,
                    max_transfer,
                    alignment_shift,
                    0,
                    0,
                ];
                append(out, answer(kind::INITIALIZE), &words, &[]);
            }
            Reply::QueryComplete { id, status, info } => {
                // Offset 0 says that there is no value; Linux takes any other for success.
                let offset = if info.is_empty() { 0 } else { INFO_OFFSET };
                append(out, answer(kind::QUERY), &[id, status.0, info.len() as u32, offset], info);
            }
            Reply::SetComplete { id, status } => append(out, answer(kind::SET), &[id, status.0], &[]),
            // Nothing that the guest has set is lost by a reset, so it need not be told again.
            Reply::ResetComplete { status } => append(out, answer(kind::RESET), &[status.0, 0], &[]),
            Reply::KeepAliveComplete { id, status } => {
                append(out, answer(kind::KEEPALIVE), &[id, status.0], &[]);
            }
            Reply::Indicate(indication) => indicate(out, indication),
        }
    }

    /// Reads a host's message, as a guest does.
    pub fn parse(bytes: &'a [u8]) -> Result<Reply<'a>, RndisError> {
        let raw = Message::of(bytes)?;
        let status = |offset| RndisStatus(raw.at(offset));
        if raw.kind == kind::INDICATE {
            return parse_indication(raw).map(Reply::Indicate);
        }
        Ok(match raw.kind ^ kind::COMPLETION {
            kind::INITIALIZE => {
                raw.need(44)?;
                let [max_packets, max_transfer, alignment_shift] = [24, 28, 32].map(|offset| raw.at(offset));
                let (id, status) = (raw.at(0), status(4));
                Reply::InitializeComplete { id, status, max_packets, max_transfer, alignment_shift }
            }
            kind::QUERY => {
                raw.need(INFO_OFFSET as usize)?;
                let info = raw.part(raw.at(12), raw.at(8), INFO_OFFSET as usize)?;
                Reply::QueryComplete { id: raw.at(0), status: status(4), info }
            }
            kind::SET => {
                raw.need(8)?;
                Reply::SetComplete { id: raw.at(0), status: status(4) }
            }
            kind::RESET => {
                raw.need(8)?;
                Reply::ResetComplete { status: status(0) }
            }
            kind::KEEPALIVE => {
                raw.need(8)?;
                Reply::KeepAliveComplete { id: raw.at(0), status: status(4) }
            }
            _ => return Err(RndisError::UnknownKind(raw.kind)),
        })
    }
}

fn indicate(out: &mut Vec<u8>, indication: Indication<'_>) {
    let speed;
    let (event, value): (u32, &[u8]) = match indication {
        Indication::Connect => (event::CONNECT, &[]),
        Indication::Disconnect => (event::DISCONNECT, &[]),
        Indication::NetworkChange => (event::NETWORK_CHANGE, &[]),
        Indication::LinkSpeed(hundreds) => {
            speed = hundreds.to_le_bytes();
            (event::LINK_SPEED_CHANGE, &speed)
        }
        Indication::Offloads(object) => (event::OFFLOAD_CURRENT_CONFIG, object),
    };
    let offset = if value.is_empty() { 0 } else { INDICATE_OFFSET };
    append(out, kind::INDICATE, &[event, value.len() as u32, offset], value);
}

fn parse_indication(raw: Message<'_>) -> Result<Indication<'_>, RndisError> {
    raw.need(INDICATE_OFFSET as usize)?;
    let value = raw.part(raw.at(8), raw.at(4), INDICATE_OFFSET as usize)?;
    Ok(match raw.at(0) {
        event::CONNECT => Indication::Connect,
        event::DISCONNECT => Indication::Disconnect,
        event::NETWORK_CHANGE => Indication::NetworkChange,
        event::OFFLOAD_CURRENT_CONFIG => Indication::Offloads(value),
        event::LINK_SPEED_CHANGE if value.len() >= 4 => Indication::LinkSpeed(super::word(value, 0)),
        other => return Err(RndisError::UnknownKind(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Reply<'static>> {
        let (id, status) = (7, RndisStatus::SUCCESS);
        vec![
            Reply::InitializeComplete {
                id,
                status,
                max_packets: 8,
                max_transfer: 0x1_0000,
                alignment_shift: 3,
            },
            Reply::QueryComplete { id, status, info: &[1, 2, 3, 4] },
            Reply::QueryComplete { id, status: RndisStatus::NOT_SUPPORTED, info: &[] },
            Reply::SetComplete { id, status: RndisStatus::INVALID_DATA },
            Reply::ResetComplete { status },
            Reply::KeepAliveComplete { id, status },
            Reply::Indicate(Indication::Connect),
            Reply::Indicate(Indication::Disconnect),
            Reply::Indicate(Indication::NetworkChange),
            Reply::Indicate(Indication::LinkSpeed(100_000_000)),
            Reply::Indicate(Indication::Offloads(&[0xa7, 1, 112, 0])),
        ]
    }

    fn bytes(reply: Reply<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        reply.encode(&mut bytes);
        bytes
    }

    fn words(bytes: &[u8]) -> Vec<u32> {
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn what_is_encoded_is_read_again() {
        for reply in all() {
            let bytes = bytes(reply);
            assert_eq!(Reply::parse(&bytes), Ok(reply));
            for len in 0..bytes.len() {
                assert!(Reply::parse(&bytes[..len]).is_err());
            }
        }
    }

    #[test]
    fn the_layouts_are_those_that_linux_reads() {
        assert_eq!(words(&bytes(all()[0])), [0x8000_0002, 52, 7, 0, 1, 0, 1, 0, 8, 0x1_0000, 3, 0, 0]);
        assert_eq!(words(&bytes(all()[1])), [0x8000_0004, 28, 7, 0, 4, 16, 0x0403_0201]);
        assert_eq!(words(&bytes(all()[2])), [0x8000_0004, 24, 7, 0xC000_00BB, 0, 0]);
        assert_eq!(words(&bytes(all()[3])), [0x8000_0005, 16, 7, 0xC001_0015]);
        assert_eq!(words(&bytes(all()[6])), [7, 20, 0x4001_000B, 0, 0]);
        assert_eq!(words(&bytes(all()[9])), [7, 24, 0x4001_0013, 4, 12, 100_000_000]);
    }

    #[test]
    fn several_messages_follow_each_other() {
        let mut bytes = Vec::new();
        all()[0].encode(&mut bytes);
        let first = bytes.len();
        all()[3].encode(&mut bytes);
        assert_eq!(Reply::parse(&bytes), Ok(all()[0]));
        assert_eq!(Reply::parse(&bytes[first..]), Ok(all()[3]));
    }

    #[test]
    fn questions_are_no_answers() {
        for kind in [1, 2, 4, 0x8000_0001, 0x8000_0003, 0x8000_0007] {
            let mut bytes = bytes(all()[0]);
            bytes[..4].copy_from_slice(&u32::to_le_bytes(kind));
            assert_eq!(Reply::parse(&bytes), Err(RndisError::UnknownKind(kind)));
        }
    }
}
