//! NVSP: the messages around RNDIS, versions 1 to 6.1, as `hv_netvsc` sends and takes them
//! (Linux `drivers/net/hyperv/hyperv_net.h`).

use crate::error::Error;

/// Version 1.
pub const VERSION_1: u32 = 2;
/// Version 2.
pub const VERSION_2: u32 = 0x3_0002;
/// Version 4.
pub const VERSION_4: u32 = 0x4_0000;
/// Version 5.
pub const VERSION_5: u32 = 0x5_0000;
/// Version 6.
pub const VERSION_6: u32 = 0x6_0000;
/// Version 6.1.
pub const VERSION_6_1: u32 = 0x6_0001;

/// To the device: proposal of a version.
pub const INIT: u32 = 1;
/// From the device: its answer.
pub const INIT_COMPLETE: u32 = 2;
/// To the device: which NDIS we speak. Not answered.
pub const NDIS_VERSION: u32 = 100;
/// To the device: here is a buffer for what we receive.
pub const SEND_RECEIVE_BUFFER: u32 = 101;
/// From the device: its answer, with the sections.
pub const SEND_RECEIVE_BUFFER_COMPLETE: u32 = 102;
/// To the device: the buffer is taken back. Not answered.
pub const REVOKE_RECEIVE_BUFFER: u32 = 103;
/// To the device: here is a buffer that we send from.
pub const SEND_SEND_BUFFER: u32 = 104;
/// From the device: its answer, with the size of a section.
pub const SEND_SEND_BUFFER_COMPLETE: u32 = 105;
/// To the device: the buffer is taken back. Not answered.
pub const REVOKE_SEND_BUFFER: u32 = 106;
/// Both ways: an RNDIS message.
pub const RNDIS_PACKET: u32 = 107;
/// Both ways: the message was taken.
pub const RNDIS_PACKET_COMPLETE: u32 = 108;
/// To the device: MTU and capabilities. Not answered.
pub const NDIS_CONFIG: u32 = 125;
/// From the device: a virtual function comes or goes.
pub const VF_ASSOCIATION: u32 = 128;
/// To the device: which way packets go.
pub const SWITCH_DATA_PATH: u32 = 129;
/// Both ways: sub-channels are wanted; so many there will be.
pub const SUBCHANNEL: u32 = 133;
/// From the device: which channel to send a hash's packets on.
pub const INDIRECTION_TABLE: u32 = 134;

/// Status: done.
pub const STATUS_SUCCESS: u32 = 1;
/// Status: failed.
pub const STATUS_FAIL: u32 = 2;
/// Status: that RNDIS packet cannot be.
pub const STATUS_INVALID_RNDIS_PACKET: u32 = 5;

/// What the guest calls its receive buffer; transfer-page packets name it.
pub const RECEIVE_BUFFER_ID: u16 = 0xcafe;
/// What the guest calls its send buffer.
pub const SEND_BUFFER_ID: u16 = 0;
/// Section index of a packet that does not use the send buffer.
pub const NO_SECTION: u32 = u32::MAX;
/// Kind of RNDIS packet: data.
pub const CHANNEL_DATA: u32 = 0;
/// Kind of RNDIS packet: control.
pub const CHANNEL_CONTROL: u32 = 1;
/// Operation of a sub-channel request: allocate.
pub const SUBCHANNEL_ALLOCATE: u32 = 1;

/// Capability: VLAN tags beside the packet.
pub const CAPABILITY_8021Q: u64 = 1 << 3;
/// Capability: virtual functions.
pub const CAPABILITY_SRIOV: u64 = 1 << 2;
/// Capability: link speed updates.
pub const CAPABILITY_TEAMING: u64 = 1 << 5;
/// Capability: received segments that were put together.
pub const CAPABILITY_RSC: u64 = 1 << 7;

/// Bytes of every message that the guest sends: the longest one's, as Linux does it.
pub const MESSAGE_SIZE: usize = 40;

/// A message: its type and its fields, in words.
pub fn message(kind: u32, words: &[u32]) -> [u8; MESSAGE_SIZE] {
    let mut bytes = [0; MESSAGE_SIZE];
    let fields = std::iter::once(kind).chain(words.iter().copied());
    for (into, word) in bytes.chunks_exact_mut(4).zip(fields) {
        into.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The message about an RNDIS packet: data or control, and where it is in the send buffer.
pub fn rndis_packet(channel_type: u32, section: u32, size: u32) -> [u8; MESSAGE_SIZE] {
    message(RNDIS_PACKET, &[channel_type, section, size])
}

/// The NDIS configuration; `mtu` counts the Ethernet header too, as Linux has it.
pub fn ndis_config(mtu: u32, capabilities: u64) -> [u8; MESSAGE_SIZE] {
    message(NDIS_CONFIG, &[mtu, 0, capabilities as u32, (capabilities >> 32) as u32])
}

/// A message from the device, in private memory.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a>(&'a [u8]);

impl<'a> Answer<'a> {
    /// Takes a payload that is at least a message's type.
    pub fn new(payload: &'a [u8]) -> Result<Self, Error> {
        if payload.len() < 4 {
            return Err(Error::Protocol(format!("{} bytes are no NVSP message", payload.len())));
        }
        Ok(Self(payload))
    }

    /// The message's type.
    pub fn kind(self) -> u32 {
        u32::from_le_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }

    /// Field number `n`, in words, after the type.
    pub fn word(self, n: usize) -> Result<u32, Error> {
        word(self.0, 4 + 4 * n).ok_or_else(|| {
            Error::Protocol(format!("NVSP message {} is too short: {:02x?}", self.kind(), self.0))
        })
    }

    /// The send indirection table that the message has. Its place is in the message; the driver knows no other size
    /// than 16 entries.
    pub fn table(self) -> Result<Vec<u32>, Error> {
        let (count, offset) = (self.word(0)?, self.word(1)? as usize);
        let entries = (0..16).map(|n| word(self.0, offset + 4 * n)).collect::<Option<Vec<u32>>>();
        match entries {
            Some(entries) if count == 16 => Ok(entries),
            _ => Err(Error::Protocol(format!("an indirection table of {count} entries at {offset}"))),
        }
    }
}

/// The little-endian word at an offset, if the bytes reach that far.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_words_in_order() {
        let bytes = rndis_packet(CHANNEL_CONTROL, NO_SECTION, 0);
        let answer = Answer::new(&bytes).expect("long enough");
        assert_eq!(answer.kind(), RNDIS_PACKET);
        assert_eq!([0, 1, 2].map(|n| answer.word(n).expect("there")), [1, u32::MAX, 0]);
        assert!(Answer::new(&bytes[..3]).is_err());
        assert!(Answer::new(&bytes[..8]).expect("long enough").word(1).is_err());
    }

    #[test]
    fn a_table_lies_where_the_message_says() {
        let mut bytes = message(INDIRECTION_TABLE, &[16, 40]).to_vec();
        (0..16u32).for_each(|n| bytes.extend_from_slice(&(n % 3).to_le_bytes()));
        let table = Answer::new(&bytes).expect("long enough").table().expect("a table");
        assert_eq!((table.len(), table[4]), (16, 1));
        assert!(Answer::new(&bytes[..100]).expect("long enough").table().is_err());
    }
}
