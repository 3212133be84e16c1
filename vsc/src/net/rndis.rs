//! RNDIS: what travels inside of NVSP (Linux `include/linux/rndis.h` and `drivers/net/hyperv/hyperv_net.h`).
//!
//! Offsets in messages count from behind the 8 bytes of type and length.

use super::wire::word;
use crate::error::Error;

/// One frame; more may follow in the same buffer.
pub const PACKET: u32 = 1;
/// Begin.
pub const INITIALIZE: u32 = 2;
/// End. Not answered.
pub const HALT: u32 = 3;
/// Ask for an object.
pub const QUERY: u32 = 4;
/// Change an object.
pub const SET: u32 = 5;
/// Start over.
pub const RESET: u32 = 6;
/// The device tells something.
pub const INDICATE: u32 = 7;
/// Are you there?
pub const KEEPALIVE: u32 = 8;
/// Bit of the answer to each of these.
pub const COMPLETION: u32 = 0x8000_0000;

/// Status: done.
pub const STATUS_SUCCESS: u32 = 0;
/// Indication: the link is up.
pub const STATUS_MEDIA_CONNECT: u32 = 0x4001_000b;
/// Indication: the link is down.
pub const STATUS_MEDIA_DISCONNECT: u32 = 0x4001_000c;
/// Indication: the network is another one.
pub const STATUS_NETWORK_CHANGE: u32 = 0x4001_0018;

/// Bytes of a message's type and length.
pub const HEADER: usize = 8;
/// Bytes of a packet message before per-packet info and frame.
pub const PACKET_HEADER: usize = 44;
/// Longest that the headers of a packet get that we send: four infos of 16 bytes.
pub const PACKET_HEADER_MAX: usize = PACKET_HEADER + 4 * 16;

const INFO_CHECKSUM: u32 = 0;
const INFO_LSO: u32 = 2;
const INFO_VLAN: u32 = 6;
const INFO_HASH: u32 = 9;
const INFO_INTERNAL: u32 = 0x8000_0000;
/// Bytes of an info before its value.
const INFO_HEADER: u32 = 12;

/// An 802.1Q tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vlan {
    /// Number of the network.
    pub id: u16,
    /// Priority, 0 to 7.
    pub priority: u8,
    /// Canonical format bit.
    pub cfi: bool,
}

impl Vlan {
    fn word(self) -> u32 {
        u32::from(self.priority & 7) | u32::from(self.cfi) << 3 | u32::from(self.id & 0xfff) << 4
    }

    fn of(word: u32) -> Self {
        Self { id: (word >> 4 & 0xfff) as u16, priority: (word & 7) as u8, cfi: word & 8 != 0 }
    }
}

/// What the device is to do with a frame that we send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxInfo {
    /// A tag to put into it.
    pub vlan: Option<Vlan>,
    /// Checksum or segmentation.
    pub offload: Offload,
    /// The flow's hash.
    pub hash: Option<u32>,
}

/// Work on a frame that is left to the device. Offsets are those of the TCP or UDP header in the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// None.
    #[default]
    None,
    /// The TCP or UDP checksum.
    Checksum {
        /// IPv6, not IPv4.
        ipv6: bool,
        /// UDP, not TCP.
        udp: bool,
        /// Where the header is.
        header: u16,
    },
    /// Segmentation of TCP (version 2), checksums included.
    Segment {
        /// IPv6, not IPv4.
        ipv6: bool,
        /// Bytes of payload in each segment.
        mss: u32,
        /// Where the TCP header is.
        header: u16,
    },
}

/// The headers of a packet message for a frame of `len` bytes, `padding` bytes of zeroes behind the frame included in the
/// message's length. The frame follows at once.
pub fn packet(info: &TxInfo, len: u32, padding: u32) -> ([u8; PACKET_HEADER_MAX], usize) {
    packet_at(0, info, len, padding)
}

/// The same for a frame that begins `at` bytes behind the message's beginning, or later if the headers need it.
pub fn packet_at(at: usize, info: &TxInfo, len: u32, padding: u32) -> ([u8; PACKET_HEADER_MAX], usize) {
    let frame_at = at;
    let mut bytes = [0; PACKET_HEADER_MAX];
    let mut at = PACKET_HEADER;
    let mut put = |kind: u32, value: u32| {
        for (n, word) in [16, kind, INFO_HEADER, value].into_iter().enumerate() {
            bytes[at + 4 * n..][..4].copy_from_slice(&word.to_le_bytes());
        }
        at += 16;
    };
    // In the driver's order.
    if let Some(hash) = info.hash {
        put(INFO_HASH, hash);
    }
    if let Some(vlan) = info.vlan {
        put(INFO_VLAN, vlan.word());
    }
    match info.offload {
        Offload::None => {}
        Offload::Checksum { ipv6, udp, header } => {
            let family = if ipv6 { 2 } else { 1 };
            let protocol = if udp { 8 } else { 4 };
            put(INFO_CHECKSUM, family | protocol | u32::from(header & 0x3ff) << 16);
        }
        Offload::Segment { ipv6, mss, header } => {
            let version_2 = 1 << 30;
            put(
                INFO_LSO,
                mss & 0xf_ffff | u32::from(header & 0x3ff) << 20 | version_2 | u32::from(ipv6) << 31,
            );
        }
    }
    let infos = (at - PACKET_HEADER) as u32;
    let at = at.max(frame_at);
    let offset = (at - HEADER) as u32;
    // The frame's offset and length, no out-of-band data, the infos' offset and length.
    let words = [PACKET, at as u32 + len + padding, offset, len, 0, 0, 0, 36, infos];
    for (into, word) in bytes.chunks_exact_mut(4).zip(words) {
        into.copy_from_slice(&word.to_le_bytes());
    }
    (bytes, at)
}

/// What the device says about a frame that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RxInfo {
    /// The tag that was taken out of it.
    pub vlan: Option<Vlan>,
    /// What is known of its checksums.
    pub checksum: Option<RxChecksum>,
    /// The flow's hash.
    pub hash: Option<u32>,
}

/// What is known of a frame's checksums, in the bits of NDIS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RxChecksum(pub u32);

impl RxChecksum {
    /// The TCP or UDP checksum is right, or would be if it were there.
    pub fn transport_is_good(self) -> bool {
        self.0 & (1 << 3 | 1 << 4) != 0
    }

    /// A checksum is wrong.
    pub fn is_bad(self) -> bool {
        self.0 & 7 != 0
    }
}

/// A packet message that came, checked: where its frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed {
    /// Where the frame begins in the message.
    pub offset: u32,
    /// Bytes of the frame.
    pub len: u32,
    /// What is said about it.
    pub info: RxInfo,
}

/// Reads the headers of a packet message that has `room` bytes; `head` are its first ones, all headers included.
pub fn parse_packet(head: &[u8], room: u32) -> Result<Parsed, Error> {
    let bad =
        |what: &str| Error::Protocol(format!("a received RNDIS packet {what}: {head:02x?} of {room} bytes"));
    let field = |n: usize| word(head, 4 * n).ok_or_else(|| bad("is too short"));
    let (kind, length) = (field(0)?, field(1)?);
    let (data, len) = (field(2)?, field(3)?);
    let (infos, infos_len) = (field(7)?, field(8)?);
    if kind != PACKET || length > room || (length as usize) < PACKET_HEADER {
        return Err(bad("lies about its length"));
    }
    let body = length - HEADER as u32;
    if data < 36 || data >= body || len > body - data || len < 14 {
        return Err(bad("has its frame elsewhere"));
    }
    let mut info = RxInfo::default();
    if infos_len > 0 {
        if infos < 36 || infos > body || infos_len > body - infos {
            return Err(bad("has its infos elsewhere"));
        }
        let at = HEADER + infos as usize;
        let all = head.get(at..at + infos_len as usize).ok_or_else(|| bad("has too many infos"))?;
        parse_infos(all, &mut info).ok_or_else(|| bad("has an info that cannot be"))?;
    }
    Ok(Parsed { offset: HEADER as u32 + data, len, info })
}

fn parse_infos(mut all: &[u8], info: &mut RxInfo) -> Option<()> {
    while !all.is_empty() {
        let (size, kind, offset) = (word(all, 0)? as usize, word(all, 4)?, word(all, 8)? as usize);
        if size < INFO_HEADER as usize || size > all.len() || offset >= size || !size.is_multiple_of(4) {
            return None;
        }
        let (this, rest) = all.split_at(size);
        match kind {
            INFO_CHECKSUM => info.checksum = Some(RxChecksum(word(this, offset)?)),
            INFO_VLAN => info.vlan = Some(Vlan::of(word(this, offset)?)),
            INFO_HASH => info.hash = Some(word(this, offset)?),
            kind if kind & INFO_INTERNAL != 0 => {}
            _ => return None,
        }
        all = rest;
    }
    Some(())
}

/// A control message: type, length, words, then bytes.
pub fn control(kind: u32, words: &[u32], data: &[u8]) -> Vec<u8> {
    let len = HEADER + words.len() * 4 + data.len();
    let mut bytes = Vec::with_capacity(len);
    for word in [kind, len as u32].iter().chain(words) {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(data);
    bytes
}

/// What an answer to a query carries, checked as the driver checks it.
pub fn queried(answer: &[u8]) -> Option<&[u8]> {
    let (len, offset) = (word(answer, 16)? as usize, word(answer, 20)? as usize);
    if len == 0 {
        return Some(&[]);
    }
    answer.get(HEADER + offset..)?.get(..len).filter(|_| offset >= 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_where_the_frame_is() {
        let info = TxInfo {
            vlan: Some(Vlan { id: 100, priority: 3, cfi: false }),
            offload: Offload::Segment { ipv6: false, mss: 1448, header: 34 },
            hash: Some(7),
        };
        let (bytes, len) = packet(&info, 5000, 4);
        assert_eq!(len, 44 + 48);
        assert_eq!(word(&bytes, 4), Some(92 + 5004));
        assert_eq!(word(&bytes, 8), Some(92 - 8));
        assert_eq!(word(&bytes, 44 + 16 + 12), Some(100 << 4 | 3));
        assert_eq!(word(&bytes, 44 + 32 + 12), Some(1448 | 34 << 20 | 1 << 30));
    }

    #[test]
    fn what_came_is_checked() {
        let mut bytes = packet(&TxInfo { hash: Some(9), ..TxInfo::default() }, 60, 0).0[..60].to_vec();
        bytes.resize(120, 0);
        let parsed = parse_packet(&bytes, 120).expect("good");
        assert_eq!((parsed.offset, parsed.len, parsed.info.hash), (60, 60, Some(9)));
        assert!(parse_packet(&bytes, 119).is_err(), "longer than its range");
        for (at, value) in [(0, 2u32), (8, 200), (12, 61), (28, 35), (32, 200), (44, 0), (44, 17), (52, 16)] {
            let mut wrong = bytes.clone();
            wrong[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert!(parse_packet(&wrong, 120).is_err(), "{value} at {at}");
        }
    }

    #[test]
    fn an_answer_is_taken_from_where_it_is() {
        let answer = control(QUERY | COMPLETION, &[1, 0, 4, 16], &[1, 2, 3, 4]);
        assert_eq!(queried(&answer), Some(&[1, 2, 3, 4][..]));
        assert_eq!(queried(&control(QUERY | COMPLETION, &[1, 0, 4, 17], &[1, 2, 3, 4])), None);
        assert_eq!(queried(&control(QUERY | COMPLETION, &[1, 0, 4, 8], &[1, 2, 3, 4])), None);
    }
}
