//! NVSP, the protocol of the network's VMBus channels: versions, buffers, and the envelopes of RNDIS messages.
//!
//! A message is a 32-bit type and a body. [`guest::GuestMessage`] goes from the guest to the host, [`host::HostMessage`] the other
//! way; both parse and encode, so that tests can play either side. Nothing here keeps state, or decides whether a message is due.
//!
//! Source of types and layouts: `drivers/net/hyperv/hyperv_net.h` of Linux; what a guest makes of the answers:
//! `drivers/net/hyperv/netvsc.c`. Windows pads as Linux does: a driver of version 6.1 sends and expects 40 bytes, older ones 28.

pub mod guest;
pub mod host;

pub use guest::{Capabilities, GuestMessage, RndisPacket, Section};
pub use host::{HostMessage, ReceiveSection, SEND_TABLE_LEN};

/// Types of message, as they stand in the first word.
pub mod kind {
    /// Guest to host: a proposal of a version.
    pub const INIT: u32 = 1;
    /// Host to guest: what became of it.
    pub const INIT_COMPLETE: u32 = 2;
    /// Guest to host: the version of its NDIS.
    pub const SEND_NDIS_VERSION: u32 = 100;
    /// Guest to host: the receive buffer.
    pub const SEND_RECEIVE_BUFFER: u32 = 101;
    /// Host to guest: how it is divided.
    pub const SEND_RECEIVE_BUFFER_COMPLETE: u32 = 102;
    /// Guest to host: the receive buffer goes.
    pub const REVOKE_RECEIVE_BUFFER: u32 = 103;
    /// Guest to host: the send buffer.
    pub const SEND_SEND_BUFFER: u32 = 104;
    /// Host to guest: how it is divided.
    pub const SEND_SEND_BUFFER_COMPLETE: u32 = 105;
    /// Guest to host: the send buffer goes.
    pub const REVOKE_SEND_BUFFER: u32 = 106;
    /// Both ways: an RNDIS message.
    pub const SEND_RNDIS_PACKET: u32 = 107;
    /// Both ways: what became of it.
    pub const SEND_RNDIS_PACKET_COMPLETE: u32 = 108;
    /// Guest to host, from version 2 on: MTU and capabilities.
    pub const SEND_NDIS_CONFIG: u32 = 125;
    /// Guest to host, from version 4 on: traffic goes by this path or by that of a virtual function.
    pub const SWITCH_DATA_PATH: u32 = 129;
    /// Both ways, from version 5 on: more channels are asked for, and promised.
    pub const SUBCHANNEL: u32 = 133;
    /// Host to guest, from version 5 on: which channel to send by.
    pub const SEND_INDIRECTION_TABLE: u32 = 134;
}

/// Bytes of a message up to version 6.
const OLD_LEN: usize = 28;
/// Bytes of a message from version 6.1 on; and of Linux's messages in any version (`struct nvsp_message`).
const MESSAGE_LEN: usize = 40;

/// Section index of a message that has no bytes in the send buffer.
pub const NO_SECTION: u32 = 0xffff_ffff;
/// The receive buffer's id that Linux chooses (`NETVSC_RECEIVE_BUFFER_ID`); transfer-page packets name it.
pub const RECEIVE_BUFFER_ID: u16 = 0xcafe;

/// Versions of the protocol, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// Windows Server 2008.
    V1,
    /// Windows Server 2008 R2: MTU and capabilities.
    V2,
    /// Windows Server 2012: virtual functions.
    V4,
    /// Windows Server 2012 R2: sub-channels.
    V5,
    /// Windows Server 2016: PacketDirect, which nobody asks for.
    V6,
    /// Windows Server 2019: coalescing of received segments.
    V61,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Version; 6] =
        [Version::V1, Version::V2, Version::V4, Version::V5, Version::V6, Version::V61];

    /// The version that a number means; `None` if there is no such.
    pub fn from_wire(number: u32) -> Option<Version> {
        Version::ALL.into_iter().find(|version| version.wire() == number)
    }

    /// Its number.
    pub fn wire(self) -> u32 {
        match self {
            Version::V1 => 2,
            Version::V2 => 0x3_0002,
            Version::V4 => 0x4_0000,
            Version::V5 => 0x5_0000,
            Version::V6 => 0x6_0000,
            Version::V61 => 0x6_0001,
        }
    }

    /// Bytes that the host's messages have at least.
    pub fn packet_len(self) -> usize {
        if self >= Version::V61 { MESSAGE_LEN } else { OLD_LEN }
    }

    /// What a guest that proposes `min..=max` gets: the newest of ours in it, or why not.
    ///
    /// Linux proposes one version at a time, newest first; Windows may propose a range.
    pub fn choose(min: u32, max: u32) -> Result<Version, Status> {
        let fits = |version: &Version| (min..=max).contains(&version.wire());
        match Version::ALL.into_iter().rev().find(fits) {
            Some(version) => Ok(version),
            None if min > Version::V61.wire() => Err(Status::TooNew),
            None if max < Version::V1.wire() => Err(Status::TooOld),
            None => Err(Status::Unsupported),
        }
    }
}

/// Outcomes (`NVSP_STAT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Success = 1,
    /// Failed.
    Fail = 2,
    /// The proposed version is too new.
    TooNew = 3,
    /// The proposed version is too old.
    TooOld = 4,
    /// The RNDIS message makes no sense.
    InvalidRndisPacket = 5,
    /// Not now.
    Busy = 6,
    /// There is no such version.
    Unsupported = 7,
}

impl Status {
    /// Its number.
    pub fn wire(self) -> u32 {
        self as u32
    }

    /// The status that a number means; anything unknown is a failure.
    pub fn from_wire(number: u32) -> Status {
        use Status::*;
        let all = [Success, Fail, TooNew, TooOld, InvalidRndisPacket, Busy, Unsupported];
        all.into_iter().find(|status| status.wire() == number).unwrap_or(Fail)
    }
}

/// What an RNDIS message is about (`RMC_DATA`, `RMC_CONTROL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelType {
    /// Frames.
    Data,
    /// Control messages.
    Control,
}

impl ChannelType {
    fn from_wire(number: u32) -> Result<ChannelType, NvspError> {
        match number {
            0 => Ok(ChannelType::Data),
            1 => Ok(ChannelType::Control),
            other => Err(NvspError::ChannelType(other)),
        }
    }

    fn wire(self) -> u32 {
        match self {
            ChannelType::Data => 0,
            ChannelType::Control => 1,
        }
    }
}

/// Bytes that are no message of their direction. The sender is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NvspError {
    /// The bytes end before the message does.
    #[error("NVSP message of type {kind} has {have} bytes, it needs {need}")]
    TooShort {
        /// Type in the first word; 0 if not even that was there.
        kind: u32,
        /// Bytes received.
        have: usize,
        /// Bytes that a message of this type has at least.
        need: usize,
    },
    /// An RNDIS message is for neither data nor control.
    #[error("RNDIS message for the unknown channel type {0}")]
    ChannelType(u32),
    /// A type that the host never sends.
    #[error("NVSP message of the unknown type {0}")]
    UnknownKind(u32),
    /// A table of another size than the protocol's, or outside of its message.
    #[error("send indirection table of {count} entries at offset {offset}")]
    Table {
        /// Entries.
        count: u32,
        /// Where the first is.
        offset: u32,
    },
}

/// Most bytes of a message of ours: that with the send indirection table.
const MOST: usize = host::TABLE_OFFSET + SEND_TABLE_LEN * 4;

/// An encoded message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    bytes: [u8; MOST],
    len: usize,
}

impl Encoded {
    /// Type and words; zeroes up to `len` bytes.
    fn new(kind: u32, words: &[u32], len: usize) -> Encoded {
        let mut bytes = [0; MOST];
        let all = std::iter::once(&kind).chain(words);
        for (place, word) in bytes.chunks_exact_mut(4).zip(all) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let used = 4 + words.len() * 4;
        debug_assert!(used <= MOST && len <= MOST, "a message that does not fit");
        Encoded { bytes, len: used.max(len).min(MOST) }
    }
}

impl std::ops::Deref for Encoded {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl std::fmt::Debug for Encoded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Encoded").field(&&**self).finish()
    }
}

/// Reads the words of a message.
#[derive(Clone, Copy)]
struct Words<'a> {
    kind: u32,
    bytes: &'a [u8],
}

impl<'a> Words<'a> {
    fn of(bytes: &'a [u8]) -> Result<Words<'a>, NvspError> {
        let words = Words { kind: 0, bytes };
        let kind = words.need(4)?.at(0);
        Ok(Words { kind, bytes })
    }

    /// Checks that the message has so many bytes, its type included.
    fn need(self, need: usize) -> Result<Words<'a>, NvspError> {
        match self.bytes.len() {
            have if have < need => Err(NvspError::TooShort { kind: self.kind, have, need }),
            _ => Ok(self),
        }
    }

    /// The word at a byte offset; 0 past the end, which [`Words::need`] excludes.
    fn at(self, offset: usize) -> u32 {
        let word = self.bytes.get(offset..).and_then(|rest| rest.first_chunk::<4>());
        word.map_or(0, |word| u32::from_le_bytes(*word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_chosen_as_linux_and_windows_propose_them() {
        for version in Version::ALL {
            assert_eq!(Version::choose(version.wire(), version.wire()), Ok(version));
            assert_eq!(Version::from_wire(version.wire()), Some(version));
        }
        assert_eq!(Version::choose(2, u32::MAX), Ok(Version::V61));
        assert_eq!(Version::choose(2, 0x4_ffff), Ok(Version::V4));
        assert_eq!(Version::choose(0x7_0000, 0x7_0000), Err(Status::TooNew));
        assert_eq!(Version::choose(0, 1), Err(Status::TooOld));
        assert_eq!(Version::choose(3, 4), Err(Status::Unsupported));
        assert_eq!(Version::choose(9, 3), Err(Status::Unsupported));
        assert!(Version::V4 < Version::V5 && Version::V6 < Version::V61);
    }

    #[test]
    fn messages_grow_with_the_version() {
        assert_eq!(Version::V1.packet_len(), 28);
        assert_eq!(Version::V6.packet_len(), 28);
        assert_eq!(Version::V61.packet_len(), 40);
    }

    #[test]
    fn statuses_have_the_drivers_numbers() {
        assert_eq!(Status::Success.wire(), 1);
        assert_eq!(Status::Unsupported.wire(), 7);
        assert_eq!(Status::from_wire(6), Status::Busy);
        assert_eq!(Status::from_wire(0), Status::Fail);
        assert_eq!(Status::from_wire(99), Status::Fail);
    }
}
