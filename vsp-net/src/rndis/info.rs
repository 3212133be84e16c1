//! What travels with a frame.
//!
//! Each piece has a size, a type, the offset of its value, and a value, a word here; `struct rndis_per_packet_info` and the bit fields
//! behind it in `drivers/net/hyperv/hyperv_net.h`. Of one type only the first counts, as in Linux.

use super::{RndisError, word};

/// Types of per-packet information (`enum ndis_per_pkt_info_type`).
mod kind {
    pub const CHECKSUM: u32 = 0;
    pub const LARGE_SEND: u32 = 2;
    pub const VLAN: u32 = 6;
    pub const HASH: u32 = 8;
    /// Flag: the driver's own, of a numbering apart.
    pub const INTERNAL: u32 = 1 << 31;
}

/// Bytes in front of a value.
const HEAD_LEN: usize = 12;
/// Bytes of a piece whose value is a word.
pub(super) const PIECE_LEN: usize = HEAD_LEN + 4;

/// The transport protocol whose checksum is to be filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Checksums that the guest leaves to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitChecksum {
    /// TCP's or UDP's; the sum of the pseudo-header is in its place already.
    pub transport: Option<Transport>,
    /// That of the IPv4 header; Linux never asks for it.
    pub ip_header: bool,
    /// Where the transport header begins, from the start of the frame; 0 if the guest does not say.
    pub offset: u16,
}

impl TransmitChecksum {
    fn from_wire(value: u32) -> Result<TransmitChecksum, RndisError> {
        let transport = match (value >> 2 & 1, value >> 3 & 1) {
            (0, 0) => None,
            (1, 0) => Some(Transport::Tcp),
            (0, _) => Some(Transport::Udp),
            _ => return Err(RndisError::Info { kind: kind::CHECKSUM }),
        };
        let offset = (value >> 16 & 0x3ff) as u16;
        Ok(TransmitChecksum { transport, ip_header: value & 1 << 4 != 0, offset })
    }

    /// As a guest writes it; which IP it is does not matter to us, and counts as version 4.
    fn wire(self) -> u32 {
        let transport = match self.transport {
            None => 0,
            Some(Transport::Tcp) => 1 << 2,
            Some(Transport::Udp) => 1 << 3,
        };
        1 | transport | u32::from(self.ip_header) << 4 | u32::from(self.offset & 0x3ff) << 16
    }
}

/// TCP data that the guest leaves to us to divide into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lso {
    /// Bytes of data in a segment.
    pub mss: u32,
    /// Where the TCP header begins, from the start of the frame; 0 if the guest does not say.
    pub offset: u16,
    /// IP version of the frame, and of the offload.
    pub version: LsoVersion,
}

/// Versions of large send offload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LsoVersion {
    /// The first: IPv4 only. Not offered.
    V1,
    /// The second, of IPv4.
    V2Ip4,
    /// The second, of IPv6.
    V2Ip6,
}

impl Lso {
    fn from_wire(value: u32) -> Lso {
        let version = match value >> 30 {
            0b00 | 0b10 => LsoVersion::V1,
            0b01 => LsoVersion::V2Ip4,
            _ => LsoVersion::V2Ip6,
        };
        Lso { mss: value & 0xf_ffff, offset: (value >> 20 & 0x3ff) as u16, version }
    }

    fn wire(self) -> u32 {
        let version = match self.version {
            LsoVersion::V1 => 0,
            LsoVersion::V2Ip4 => 0b01,
            LsoVersion::V2Ip6 => 0b11,
        };
        self.mss & 0xf_ffff | u32::from(self.offset & 0x3ff) << 20 | version << 30
    }
}

/// An 802.1Q tag that is not in the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vlan {
    /// Priority, 0 to 7.
    pub priority: u8,
    /// The bit between priority and id: "canonical format", "drop eligible".
    pub cfi: bool,
    /// The network, 12 bits.
    pub id: u16,
}

impl Vlan {
    /// The tag as it stands in a frame, behind the EtherType.
    pub fn tci(self) -> u16 {
        u16::from(self.priority & 7) << 13 | u16::from(self.cfi) << 12 | self.id & 0xfff
    }

    /// The tag that stands in a frame.
    pub fn from_tci(tci: u16) -> Vlan {
        Vlan { priority: (tci >> 13) as u8, cfi: tci & 1 << 12 != 0, id: tci & 0xfff }
    }

    fn from_wire(value: u32) -> Vlan {
        Vlan { priority: (value & 7) as u8, cfi: value & 1 << 3 != 0, id: (value >> 4 & 0xfff) as u16 }
    }

    fn wire(self) -> u32 {
        u32::from(self.priority & 7) | u32::from(self.cfi) << 3 | u32::from(self.id & 0xfff) << 4
    }
}

bitflags::bitflags! {
    /// What we know about a received frame's checksums (`struct ndis_tcp_ip_checksum_info`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ReceiveChecksum: u32 {
        /// TCP's is wrong.
        const TCP_FAILED = 1;
        /// UDP's is wrong.
        const UDP_FAILED = 1 << 1;
        /// The IPv4 header's is wrong.
        const IP_FAILED = 1 << 2;
        /// TCP's is right.
        const TCP_SUCCEEDED = 1 << 3;
        /// UDP's is right.
        const UDP_SUCCEEDED = 1 << 4;
        /// The IPv4 header's is right.
        const IP_SUCCEEDED = 1 << 5;
        /// The frame is the guest's own.
        const LOOPBACK = 1 << 6;
        /// TCP's is known to be right, though the frame's bytes do not say so.
        const TCP_VALUE_INVALID = 1 << 7;
        /// The IPv4 header's is known to be right, though its bytes do not say so: Linux computes it.
        const IP_VALUE_INVALID = 1 << 8;
    }
}

/// What a guest says about its frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitInfo {
    /// Checksums to fill in.
    pub checksum: Option<TransmitChecksum>,
    /// Segments to make.
    pub lso: Option<Lso>,
    /// A tag to put in.
    pub vlan: Option<Vlan>,
    /// Hash of the flow: Linux's own of a kind that nobody knows, of use only to tell flows apart.
    pub hash: Option<u32>,
}

/// What the host says about a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiveInfo {
    /// What is known of its checksums.
    pub checksum: Option<ReceiveChecksum>,
    /// A tag that was taken out.
    pub vlan: Option<Vlan>,
    /// Its Toeplitz hash.
    pub hash: Option<u32>,
}

impl TransmitInfo {
    /// Reads a frame's pieces.
    pub(super) fn parse(bytes: &[u8]) -> Result<TransmitInfo, RndisError> {
        let mut info = TransmitInfo::default();
        for piece in Pieces(bytes) {
            let (kind, value) = piece?;
            match kind {
                kind::CHECKSUM if info.checksum.is_none() => {
                    info.checksum = Some(TransmitChecksum::from_wire(value)?);
                }
                kind::LARGE_SEND if info.lso.is_none() => info.lso = Some(Lso::from_wire(value)),
                kind::VLAN if info.vlan.is_none() => info.vlan = Some(Vlan::from_wire(value)),
                kind::HASH if info.hash.is_none() => info.hash = Some(value),
                _ => {}
            }
        }
        Ok(info)
    }

    /// Its pieces, in the order of Linux.
    pub(super) fn pieces(&self) -> impl Iterator<Item = [u8; PIECE_LEN]> {
        let hash = self.hash.map(|hash| (kind::HASH, hash));
        let vlan = self.vlan.map(|vlan| (kind::VLAN, vlan.wire()));
        let lso = self.lso.map(|lso| (kind::LARGE_SEND, lso.wire()));
        let checksum = self.checksum.map(|checksum| (kind::CHECKSUM, checksum.wire()));
        [hash, vlan, lso, checksum].into_iter().flatten().map(piece)
    }
}

impl ReceiveInfo {
    /// Most pieces that it makes.
    pub(super) const MOST: usize = 3;

    /// Its pieces.
    pub(super) fn pieces(&self) -> impl Iterator<Item = [u8; PIECE_LEN]> {
        let vlan = self.vlan.map(|vlan| (kind::VLAN, vlan.wire()));
        let checksum = self.checksum.map(|checksum| (kind::CHECKSUM, checksum.bits()));
        let hash = self.hash.map(|hash| (kind::HASH, hash));
        [vlan, checksum, hash].into_iter().flatten().map(piece)
    }

    /// Reads a frame's pieces, as a guest does.
    pub(super) fn parse(bytes: &[u8]) -> Result<ReceiveInfo, RndisError> {
        let mut info = ReceiveInfo::default();
        for piece in Pieces(bytes) {
            let (kind, value) = piece?;
            match kind {
                kind::CHECKSUM => {
                    info.checksum = info.checksum.or(Some(ReceiveChecksum::from_bits_retain(value)));
                }
                kind::VLAN => info.vlan = info.vlan.or(Some(Vlan::from_wire(value))),
                kind::HASH => info.hash = info.hash.or(Some(value)),
                _ => {}
            }
        }
        Ok(info)
    }
}

fn piece((kind, value): (u32, u32)) -> [u8; PIECE_LEN] {
    let mut bytes = [0; PIECE_LEN];
    let words = [PIECE_LEN as u32, kind, HEAD_LEN as u32, value];
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Types and values of pieces. One of a type that we do not know may have a value of any length; it is skipped as 0.
struct Pieces<'a>(&'a [u8]);

impl Iterator for Pieces<'_> {
    type Item = Result<(u32, u32), RndisError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let (size, kind, offset) = (word(self.0, 0) as usize, word(self.0, 4), word(self.0, 8) as usize);
        let piece = self.0.get(..size).filter(|piece| piece.len() >= HEAD_LEN);
        let known = matches!(kind, kind::CHECKSUM | kind::LARGE_SEND | kind::VLAN | kind::HASH);
        let value = piece.and_then(|piece| piece.get(offset..)?.first_chunk::<4>());
        let error = Err(RndisError::Info { kind: kind & !kind::INTERNAL });
        let (Some(_), true) = (piece, !known || (value.is_some() && offset >= HEAD_LEN)) else {
            self.0 = &[];
            return Some(error);
        };
        self.0 = &self.0[size..];
        Some(Ok((kind, value.map_or(0, |value| u32::from_le_bytes(*value)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> TransmitInfo {
        TransmitInfo {
            checksum: Some(TransmitChecksum { transport: Some(Transport::Udp), ip_header: true, offset: 34 }),
            lso: Some(Lso { mss: 1460, offset: 34, version: LsoVersion::V2Ip4 }),
            vlan: Some(Vlan { priority: 5, cfi: true, id: 0xabc }),
            hash: Some(0xdead_beef),
        }
    }

    fn bytes(info: &TransmitInfo) -> Vec<u8> {
        info.pieces().flatten().collect()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let full = everything();
        assert_eq!(TransmitInfo::parse(&bytes(&full)), Ok(full));
        assert_eq!(TransmitInfo::parse(&[]), Ok(TransmitInfo::default()));
        let receive = ReceiveInfo {
            checksum: Some(ReceiveChecksum::TCP_SUCCEEDED | ReceiveChecksum::IP_SUCCEEDED),
            vlan: Some(Vlan { priority: 1, cfi: false, id: 7 }),
            hash: Some(1),
        };
        let bytes: Vec<u8> = receive.pieces().flatten().collect();
        assert_eq!(ReceiveInfo::parse(&bytes), Ok(receive));
        assert_eq!(bytes.len(), ReceiveInfo::MOST * PIECE_LEN);
    }

    #[test]
    fn bits_are_where_the_driver_has_them() {
        // TCP over IPv4 at offset 34, as Linux asks.
        let tcp = TransmitChecksum::from_wire(1 | 1 << 2 | 34 << 16).unwrap();
        assert_eq!(tcp, TransmitChecksum { transport: Some(Transport::Tcp), ip_header: false, offset: 34 });
        // UDP over IPv6 at offset 54.
        let udp = TransmitChecksum::from_wire(1 << 1 | 1 << 3 | 54 << 16).unwrap();
        assert_eq!((udp.transport, udp.offset), (Some(Transport::Udp), 54));
        assert_eq!(TransmitChecksum::from_wire(1 << 2 | 1 << 3), Err(RndisError::Info { kind: 0 }));
        let lso = Lso::from_wire(1448 | 54 << 20 | 1 << 30 | 1 << 31);
        assert_eq!(lso, Lso { mss: 1448, offset: 54, version: LsoVersion::V2Ip6 });
        assert_eq!(Lso::from_wire(1448 | 34 << 20).version, LsoVersion::V1);
        let vlan = Vlan::from_wire(3 | 1 << 3 | 100 << 4);
        assert_eq!(vlan, Vlan { priority: 3, cfi: true, id: 100 });
        assert_eq!(vlan.tci(), 3 << 13 | 1 << 12 | 100);
        assert_eq!(Vlan::from_tci(vlan.tci()), vlan);
        assert_eq!(ReceiveChecksum::TCP_SUCCEEDED.bits(), 8);
        assert_eq!(ReceiveChecksum::IP_VALUE_INVALID.bits(), 256);
    }

    #[test]
    fn the_first_of_a_type_counts_and_others_are_skipped() {
        let vlan = |id: u32| piece((kind::VLAN, id << 4));
        let internal = piece((kind::VLAN | kind::INTERNAL, 9 << 4));
        let unknown = piece((11, 5));
        let bytes = [internal, unknown, vlan(1), vlan(2)].concat();
        let info = TransmitInfo::parse(&bytes).unwrap();
        assert_eq!(
            info,
            TransmitInfo { vlan: Some(Vlan { id: 1, ..Vlan::default() }), ..Default::default() }
        );
        // A piece of no value at all, of a type that we do not know.
        let mut empty = piece((13, 0))[..12].to_vec();
        empty[0] = 12;
        assert_eq!(TransmitInfo::parse(&empty), Ok(TransmitInfo::default()));
    }

    #[test]
    fn pieces_that_lie_are_refused() {
        let good = piece((kind::VLAN, 16));
        let with = |at: usize, value: u32| {
            let mut bytes = good.to_vec();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            TransmitInfo::parse(&bytes)
        };
        // Sizes that do not go forward, or too far.
        for size in [0, 1, 11, 17, u32::MAX] {
            assert_eq!(with(0, size), Err(RndisError::Info { kind: 6 }));
        }
        // Values over the head, or past the end.
        for offset in [0, 11, 13, 16, u32::MAX] {
            assert_eq!(with(8, offset), Err(RndisError::Info { kind: 6 }));
        }
        // A value with fewer bytes than a word.
        assert_eq!(with(0, 15), Err(RndisError::Info { kind: 6 }));
        for len in 1..good.len() {
            assert!(TransmitInfo::parse(&good[..len]).is_err());
        }
    }
}
