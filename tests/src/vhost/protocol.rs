//! Messages, as bytes. Nothing here checks anything: a test may say what it likes.

/// What a message asks for.
pub mod request {
    #![allow(missing_docs, reason = "the specification's own names")]
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    /// The last one that the specification has today, and some.
    pub const BEYOND: u32 = 60;
}

/// Bits of `GET_PROTOCOL_FEATURES`.
pub mod protocol_feature {
    #![allow(missing_docs, reason = "the specification's own names")]
    pub const MQ: u64 = 1 << 0;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

/// Bits of `GET_FEATURES`.
pub mod feature {
    #![allow(missing_docs, reason = "the specification's own names")]
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

/// Version 1, in the lowest two bits of the flags.
pub const VERSION: u32 = 1;
/// The message is an answer.
pub const REPLY: u32 = 1 << 2;
/// The message wants an answer even if it is of a kind that has none.
pub const NEED_REPLY: u32 = 1 << 3;
/// Bytes of a header.
pub const HEADER: usize = 12;

/// The head of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// One of [`request`].
    pub request: u32,
    /// Version and bits.
    pub flags: u32,
    /// Bytes that follow.
    pub size: u32,
}

impl Header {
    /// On the wire: the host's byte order, which here is little-endian.
    pub fn bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        for (at, word) in bytes.chunks_exact_mut(4).zip([self.request, self.flags, self.size]) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From the wire.
    pub fn parse(bytes: &[u8; HEADER]) -> Self {
        let word = |n: usize| u32::from_le_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]);
        Self { request: word(0), flags: word(4), size: word(8) }
    }
}

/// A number.
pub fn number(value: u64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// A ring and a number.
pub fn vring(index: u32, number: u32) -> Vec<u8> {
    [index, number].iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A ring's addresses, which are the front end's own ("user") ones.
pub fn vring_address(index: u32, flags: u32, descriptors: u64, used: u64, available: u64) -> Vec<u8> {
    let mut bytes = vring(index, flags);
    bytes.extend([descriptors, used, available, 0].iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

/// A piece of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where the guest has it.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Where the front end has it.
    pub user: u64,
    /// Where in the file it begins.
    pub offset: u64,
}

impl Region {
    fn bytes(&self) -> impl Iterator<Item = u8> {
        [self.guest, self.size, self.user, self.offset].into_iter().flat_map(u64::to_le_bytes)
    }
}

/// All regions, for `SET_MEM_TABLE`.
pub fn table(regions: &[Region]) -> Vec<u8> {
    table_of(regions.len() as u32, regions)
}

/// The same with a number of regions that may be a lie.
pub fn table_of(count: u32, regions: &[Region]) -> Vec<u8> {
    let mut bytes = vring(count, 0);
    bytes.extend(regions.iter().flat_map(Region::bytes));
    bytes
}

/// One region, for `ADD_MEM_REG` and `REM_MEM_REG`.
pub fn one_region(region: &Region) -> Vec<u8> {
    let mut bytes = number(0);
    bytes.extend(region.bytes());
    bytes
}

/// A piece of the config space.
pub fn config(offset: u32, size: u32, flags: u32, contents: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = [offset, size, flags].iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend_from_slice(contents);
    bytes
}

/// What is said of the in-flight region; as front ends in C have it, with four bytes of padding at the end.
pub fn inflight(size: u64, offset: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    let mut bytes = number(size);
    bytes.extend(number(offset));
    bytes.extend(queues.to_le_bytes());
    bytes.extend(queue_size.to_le_bytes());
    bytes.extend([0; 4]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_long_as_the_specification_has_them() {
        assert_eq!(vring_address(0, 0, 1, 2, 3).len(), 40);
        let region = Region { guest: 1, size: 2, user: 3, offset: 4 };
        assert_eq!(table(&[region, region]).len(), 8 + 2 * 32);
        assert_eq!(one_region(&region).len(), 40);
        assert_eq!(inflight(1, 2, 3, 4).len(), 24);
        let header = Header { request: 5, flags: 6, size: 7 };
        assert_eq!(Header::parse(&header.bytes()), header);
    }
}
