//! The protocol of virtio-blk (virtio 1.2, 5.2): requests and the configuration space. Parsing is pure.

/// Bytes of a sector: the unit of all positions, whatever the blocks of the disk are (5.2.6).
pub const SECTOR: u64 = 512;
/// Bytes of a request's header.
pub const HEADER: usize = 16;
/// Bytes of an answer to GET_ID.
pub const ID: usize = 20;
/// Bytes of a range to be discarded or zeroed.
pub const RANGE: usize = 16;
/// Bytes of the configuration space that we have.
pub const CONFIG: usize = 60;
/// Where the driver writes whether there is to be a write cache.
pub const WRITEBACK: usize = 32;

/// What a request asks for.
pub mod kind {
    /// Disk to guest.
    pub const IN: u32 = 0;
    /// Guest to disk.
    pub const OUT: u32 = 1;
    /// To stable storage.
    pub const FLUSH: u32 = 4;
    /// The serial number.
    pub const GET_ID: u32 = 8;
    /// These ranges are not needed any more.
    pub const DISCARD: u32 = 11;
    /// These ranges are to read as zeroes.
    pub const WRITE_ZEROES: u32 = 13;
}

/// How it ended.
pub mod status {
    /// Well.
    pub const OK: u8 = 0;
    /// With an error of the device, or of the driver.
    pub const IOERR: u8 = 1;
    /// Not at all: it is not known.
    pub const UNSUPP: u8 = 2;
}

/// Feature bits.
pub mod feature {
    /// VIRTIO_BLK_F_SEG_MAX.
    pub const SEG_MAX: u64 = 1 << 2;
    /// VIRTIO_BLK_F_RO.
    pub const RO: u64 = 1 << 5;
    /// VIRTIO_BLK_F_BLK_SIZE.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// VIRTIO_BLK_F_FLUSH.
    pub const FLUSH: u64 = 1 << 9;
    /// VIRTIO_BLK_F_TOPOLOGY.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// VIRTIO_BLK_F_CONFIG_WCE.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// VIRTIO_BLK_F_MQ.
    pub const MQ: u64 = 1 << 12;
    /// VIRTIO_BLK_F_DISCARD.
    pub const DISCARD: u64 = 1 << 13;
    /// VIRTIO_BLK_F_WRITE_ZEROES.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// The header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it asks for.
    pub kind: u32,
    /// Where.
    pub sector: u64,
}

impl Header {
    /// From the guest's bytes.
    pub fn parse(bytes: &[u8; HEADER]) -> Header {
        let [a, b, c, d, _, _, _, _, rest @ ..] = *bytes;
        Header { kind: u32::from_le_bytes([a, b, c, d]), sector: u64::from_le_bytes(rest) }
    }
}

/// A range to be discarded or zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First sector.
    pub sector: u64,
    /// How many.
    pub sectors: u32,
    /// The driver lets the range be deallocated while it is zeroed.
    pub unmap: bool,
    /// It has flags that are reserved.
    pub odd: bool,
}

impl Range {
    /// From the guest's bytes.
    pub fn parse(bytes: &[u8; RANGE]) -> Range {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
        let flags = u32::from_le_bytes([m, n, o, p]);
        Range {
            sector: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            sectors: u32::from_le_bytes([i, j, k, l]),
            unmap: flags & 1 != 0,
            odd: flags & !1 != 0,
        }
    }
}

/// What the configuration space says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Sectors of the disk.
    pub capacity: u64,
    /// Most pieces of data in a request.
    pub seg_max: u32,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Logical blocks in a physical one, as a power of two.
    pub physical_exponent: u8,
    /// There is a write cache.
    pub write_back: bool,
    /// Queues.
    pub queues: u16,
    /// Most sectors of a range to be discarded; 0: none can be.
    pub max_discard: u32,
    /// Most of such ranges.
    pub max_discard_ranges: u32,
    /// Sectors that such a range should begin at a multiple of.
    pub discard_alignment: u32,
    /// Most sectors of a range to be zeroed.
    pub max_zeroes: u32,
    /// Most of such ranges.
    pub max_zeroes_ranges: u32,
    /// Zeroing may deallocate.
    pub zeroes_may_unmap: bool,
}

impl Config {
    /// As the driver reads it (5.2.4).
    pub fn encode(&self) -> [u8; CONFIG] {
        let mut bytes = [0; CONFIG];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.capacity.to_le_bytes());
        put(12, &self.seg_max.to_le_bytes());
        put(20, &self.block_size.to_le_bytes());
        put(24, &[self.physical_exponent, 0]);
        // Smallest piece that is written well, in logical blocks.
        put(26, &(1u16 << self.physical_exponent.min(15)).to_le_bytes());
        put(WRITEBACK, &[self.write_back.into()]);
        put(34, &self.queues.to_le_bytes());
        put(36, &self.max_discard.to_le_bytes());
        put(40, &self.max_discard_ranges.to_le_bytes());
        put(44, &self.discard_alignment.to_le_bytes());
        put(48, &self.max_zeroes.to_le_bytes());
        put(52, &self.max_zeroes_ranges.to_le_bytes());
        put(56, &[self.zeroes_may_unmap.into()]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_ranges_are_read() {
        let mut bytes = [0; HEADER];
        (bytes[0], bytes[8], bytes[15]) = (13, 7, 1);
        assert_eq!(Header::parse(&bytes), Header { kind: kind::WRITE_ZEROES, sector: 1 << 56 | 7 });
        let mut bytes = [0; RANGE];
        (bytes[0], bytes[8], bytes[12]) = (1, 2, 3);
        assert_eq!(Range::parse(&bytes), Range { sector: 1, sectors: 2, unmap: true, odd: true });
    }

    #[test]
    fn the_configuration_lies_where_drivers_look() {
        let config = Config {
            capacity: 0x0102,
            seg_max: 126,
            block_size: 512,
            physical_exponent: 3,
            write_back: true,
            queues: 16,
            max_discard: 1,
            max_discard_ranges: 2,
            discard_alignment: 8,
            max_zeroes: 4,
            max_zeroes_ranges: 5,
            zeroes_may_unmap: true,
        };
        let bytes = config.encode();
        assert_eq!((bytes[0], bytes[1], bytes[12], bytes[21], bytes[24], bytes[26]), (2, 1, 126, 2, 3, 8));
        assert_eq!((bytes[32], bytes[34], bytes[36], bytes[40], bytes[44]), (1, 16, 1, 2, 8));
        assert_eq!((bytes[48], bytes[52], bytes[56]), (4, 5, 1));
    }
}
