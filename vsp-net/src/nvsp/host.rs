//! What the host says.

use super::{ChannelType, Encoded, NO_SECTION, NvspError, Status, Version, Words, kind};

/// Entries of the send indirection table (`VRSS_SEND_TAB_SIZE`); Linux takes no other number.
pub const SEND_TABLE_LEN: usize = 16;
/// Where the send indirection table is. Hosts up to version 6 named another offset than they used; Linux knows the place by heart
/// then, and it is this one. So nobody can be mistaken.
pub(super) const TABLE_OFFSET: usize = 40;

/// How the receive buffer is divided. Linux takes exactly one such part, and it must begin at 0.
///
/// It refuses a part that is larger than its buffer, and allocates `len` bytes for each channel that there could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveSection {
    /// Where the part begins.
    pub offset: u32,
    /// Bytes of a sub-allocation: no range of a transfer-page packet may be longer.
    pub len: u32,
    /// Sub-allocations: no more transfer-page packets may be unanswered.
    pub count: u32,
    /// Where the part ends.
    pub end: u32,
}

/// A message of the host's. All but the indirection table and RNDIS messages are payloads of completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMessage {
    /// The version is that which was proposed, or not.
    InitComplete {
        /// Yes or no.
        status: Status,
    },
    /// What became of the receive buffer.
    ReceiveBufferComplete {
        /// Yes or no.
        status: Status,
        /// How it is divided.
        section: Option<ReceiveSection>,
    },
    /// What became of the send buffer.
    SendBufferComplete {
        /// Yes or no.
        status: Status,
        /// Bytes of a section; whatever does not fit into one comes by pages.
        section_size: u32,
    },
    /// The payload of a transfer-page packet: each of its ranges is an RNDIS message.
    RndisPacket {
        /// Data or control.
        channel: ChannelType,
    },
    /// What became of an RNDIS message: its bytes are the guest's again.
    RndisPacketComplete {
        /// Linux logs anything but success, and frees the frame.
        status: Status,
    },
    /// What became of the request for channels.
    SubchannelComplete {
        /// Yes or no.
        status: Status,
        /// How many are going to be offered. Linux waits until as many are open.
        count: u32,
    },
    /// Channel to send by, by the low bits of a flow's hash. In-band, and not answered.
    IndirectionTable([u32; SEND_TABLE_LEN]),
}

impl HostMessage {
    /// The message, padded to what a driver of this version expects.
    pub fn encode(&self, version: Version) -> Encoded {
        let len = version.packet_len();
        match *self {
            // Windows Server 2008 told the version here; later ones tell the oldest, and how many pieces a frame may have.
            HostMessage::InitComplete { status } => {
                Encoded::new(kind::INIT_COMPLETE, &[Version::V1.wire(), MAX_PIECES, status.wire()], len)
            }
            HostMessage::ReceiveBufferComplete { status, section } => {
                let mut words = [status.wire(), 0, 0, 0, 0, 0];
                if let Some(ReceiveSection { offset, len, count, end }) = section {
                    words[1..].copy_from_slice(&[1, offset, len, count, end]);
                }
                Encoded::new(kind::SEND_RECEIVE_BUFFER_COMPLETE, &words, len)
            }
            HostMessage::SendBufferComplete { status, section_size } => {
                Encoded::new(kind::SEND_SEND_BUFFER_COMPLETE, &[status.wire(), section_size], len)
            }
            HostMessage::RndisPacket { channel } => {
                Encoded::new(kind::SEND_RNDIS_PACKET, &[channel.wire(), NO_SECTION, 0], len)
            }
            HostMessage::RndisPacketComplete { status } => {
                Encoded::new(kind::SEND_RNDIS_PACKET_COMPLETE, &[status.wire()], len)
            }
            HostMessage::SubchannelComplete { status, count } => {
                Encoded::new(kind::SUBCHANNEL, &[status.wire(), count], len)
            }
            HostMessage::IndirectionTable(table) => {
                let mut words = [0; TABLE_OFFSET / 4 - 1 + SEND_TABLE_LEN];
                words[0] = SEND_TABLE_LEN as u32;
                words[1] = TABLE_OFFSET as u32;
                words[TABLE_OFFSET / 4 - 1..].copy_from_slice(&table);
                Encoded::new(kind::SEND_INDIRECTION_TABLE, &words, len)
            }
        }
    }

    /// Reads a host's message, as a guest does.
    pub fn parse(payload: &[u8]) -> Result<HostMessage, NvspError> {
        let words = Words::of(payload)?;
        let status = |words: Words<'_>, offset| Status::from_wire(words.at(offset));
        Ok(match words.kind {
            kind::INIT_COMPLETE => HostMessage::InitComplete { status: status(words.need(16)?, 12) },
            kind::SEND_RECEIVE_BUFFER_COMPLETE => {
                let words = words.need(12)?;
                let section = match words.at(8) {
                    0 => None,
                    _ => {
                        let words = words.need(28)?;
                        let [offset, len, count, end] = [12, 16, 20, 24].map(|offset| words.at(offset));
                        Some(ReceiveSection { offset, len, count, end })
                    }
                };
                HostMessage::ReceiveBufferComplete { status: status(words, 4), section }
            }
            kind::SEND_SEND_BUFFER_COMPLETE => {
                let words = words.need(12)?;
                HostMessage::SendBufferComplete { status: status(words, 4), section_size: words.at(8) }
            }
            kind::SEND_RNDIS_PACKET => {
                HostMessage::RndisPacket { channel: ChannelType::from_wire(words.need(16)?.at(4))? }
            }
            kind::SEND_RNDIS_PACKET_COMPLETE => {
                HostMessage::RndisPacketComplete { status: status(words.need(8)?, 4) }
            }
            kind::SUBCHANNEL => {
                let words = words.need(12)?;
                HostMessage::SubchannelComplete { status: status(words, 4), count: words.at(8) }
            }
            kind::SEND_INDIRECTION_TABLE => {
                let words = words.need(12)?;
                let (count, offset) = (words.at(4), words.at(8));
                let bytes = payload.get(offset as usize..).and_then(|rest| rest.get(..SEND_TABLE_LEN * 4));
                let Some(_) = bytes.filter(|_| count as usize == SEND_TABLE_LEN) else {
                    return Err(NvspError::Table { count, offset });
                };
                HostMessage::IndirectionTable(std::array::from_fn(|entry| {
                    words.at(offset as usize + entry * 4)
                }))
            }
            other => return Err(NvspError::UnknownKind(other)),
        })
    }
}

/// Most pieces of a frame, as Hyper-V's switch tells it; no driver that we know looks.
const MAX_PIECES: u32 = 34;

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<HostMessage> {
        let section = ReceiveSection { offset: 0, len: 0x2_0000, count: 128, end: 0x100_0000 };
        vec![
            HostMessage::InitComplete { status: Status::Success },
            HostMessage::InitComplete { status: Status::TooNew },
            HostMessage::ReceiveBufferComplete { status: Status::Success, section: Some(section) },
            HostMessage::ReceiveBufferComplete { status: Status::Fail, section: None },
            HostMessage::SendBufferComplete { status: Status::Success, section_size: 66_048 },
            HostMessage::RndisPacket { channel: ChannelType::Control },
            HostMessage::RndisPacketComplete { status: Status::InvalidRndisPacket },
            HostMessage::SubchannelComplete { status: Status::Success, count: 3 },
            HostMessage::IndirectionTable(std::array::from_fn(|entry| entry as u32 % 4)),
        ]
    }

    #[test]
    fn what_is_encoded_is_read_again() {
        for version in Version::ALL {
            for message in all() {
                let bytes = message.encode(version);
                assert_eq!(HostMessage::parse(&bytes), Ok(message));
                assert!(bytes.len() >= version.packet_len());
            }
        }
    }

    #[test]
    fn truncations_never_pass_for_messages() {
        for message in all() {
            let bytes = message.encode(Version::V1);
            for len in 0..8 {
                assert!(HostMessage::parse(&bytes[..len]).is_err());
            }
            for len in 8..bytes.len() {
                // Shorter ones are refused, or lose padding only.
                assert!(
                    HostMessage::parse(&bytes[..len]).is_err_and(|_| true) || {
                        HostMessage::parse(&bytes[..len]) == Ok(message)
                    }
                );
            }
        }
    }

    #[test]
    fn the_layouts_are_those_that_the_driver_reads() {
        let section = Some(ReceiveSection { offset: 0, len: 4096, count: 3, end: 12_288 });
        let bytes =
            HostMessage::ReceiveBufferComplete { status: Status::Success, section }.encode(Version::V61);
        let words: Vec<u32> =
            bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [102, 1, 1, 0, 4096, 3, 12_288, 0, 0, 0]);
        let bytes = HostMessage::InitComplete { status: Status::Success }.encode(Version::V5);
        assert_eq!((bytes.len(), bytes[0], bytes[12]), (28, 2, 1));
        let bytes = HostMessage::IndirectionTable([7; 16]).encode(Version::V5);
        assert_eq!((bytes.len(), bytes[4], bytes[8], bytes[40], bytes[100]), (104, 16, 40, 7, 7));
    }

    #[test]
    fn a_table_that_lies_is_refused() {
        let mut bytes = HostMessage::IndirectionTable([0; 16]).encode(Version::V61).to_vec();
        bytes[8] = 41;
        assert_eq!(HostMessage::parse(&bytes), Err(NvspError::Table { count: 16, offset: 41 }));
        (bytes[8], bytes[4]) = (40, 15);
        assert_eq!(HostMessage::parse(&bytes), Err(NvspError::Table { count: 15, offset: 40 }));
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        bytes[4] = 16;
        assert!(HostMessage::parse(&bytes).is_err());
    }
}
