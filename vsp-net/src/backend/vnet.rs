//! What is left to do to a frame: `struct virtio_net_hdr` (virtio 1.2, 5.1.6; `linux/virtio_net.h`).

/// What is left to do to a frame, as TAP interfaces say it: ten bytes, numbers in the host's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`VnetHeader::NEEDS_CSUM`], [`VnetHeader::DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_` constants, perhaps with [`VnetHeader::GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of the headers of a long frame.
    pub hdr_len: u16,
    /// Bytes of payload of each frame that it is to be cut into.
    pub gso_size: u16,
    /// Where the bytes begin that the checksum is of.
    pub csum_start: u16,
    /// Where the checksum goes, from there.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Length in bytes.
    pub const LEN: usize = 10;
    /// The checksum is to be finished: there is one of the pseudo-header.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum has been found right.
    pub const DATA_VALID: u8 = 2;
    /// Not a long frame.
    pub const GSO_NONE: u8 = 0;
    /// A long frame of TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// A long frame of TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// The first of the frames carries the congestion flag.
    pub const GSO_ECN: u8 = 0x80;

    /// As the interface takes it.
    pub fn to_bytes(self) -> [u8; VnetHeader::LEN] {
        let mut bytes = [0; VnetHeader::LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        for (place, number) in bytes[2..].chunks_exact_mut(2).zip([
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
        ]) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    /// From what the interface gave.
    pub fn from_bytes(bytes: &[u8; VnetHeader::LEN]) -> VnetHeader {
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        VnetHeader {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: number(2),
            gso_size: number(4),
            csum_start: number(6),
            csum_offset: number(8),
        }
    }
}
