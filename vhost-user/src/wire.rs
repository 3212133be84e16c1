//! The messages of vhost-user: a header, a payload, perhaps descriptors. Parsing is pure: what came in, a [`Message`] or what is wrong
//! with it out.
//!
//! Every number in a message is the front end's word. Here its form is checked; what it means is `session`'s to check.

mod parser;

use std::os::fd::OwnedFd;

use thiserror::Error;

use self::parser::Parser;

/// Bytes of a header: request, flags, length of the payload.
pub const HEADER: usize = 12;
/// Longest payload that is taken. The longest that there is is a memory table ([`MAX_TABLE`]).
pub const MAX_PAYLOAD: usize = 8 + 32 * MAX_TABLE;
/// Most regions of a memory table. QEMU sends eight and adds more one by one; Cloud Hypervisor sends all that it has: those of boot, and one each time
/// that memory was added.
pub const MAX_TABLE: usize = 16;
/// Bytes of a configuration space.
pub const CONFIG_SPACE: usize = 256;

const VERSION_MASK: u32 = 0x3;
const VERSION: u32 = 0x1;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;
/// In the number of a ring that comes with a descriptor: there is none.
const NO_DESCRIPTOR: u64 = 1 << 8;
const RING_MASK: u64 = 0xFF;

/// Protocol features, by their bits.
pub mod protocol {
    /// More than one queue.
    pub const MQ: u64 = 1 << 0;
    /// Any message can be acknowledged.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The configuration space is ours.
    pub const CONFIG: u64 = 1 << 9;
    /// What is in flight is kept by the front end.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// Memory comes and goes piece by piece.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

/// What a front end can ask for.
pub mod request {
    /// Which virtio features there are.
    pub const GET_FEATURES: u32 = 1;
    /// Which of them are used.
    pub const SET_FEATURES: u32 = 2;
    /// Begins a session.
    pub const SET_OWNER: u32 = 3;
    /// Not used any more.
    pub const RESET_OWNER: u32 = 4;
    /// All memory.
    pub const SET_MEM_TABLE: u32 = 5;
    /// Size of a ring.
    pub const SET_VRING_NUM: u32 = 8;
    /// Place of a ring.
    pub const SET_VRING_ADDR: u32 = 9;
    /// Where to begin in a ring.
    pub const SET_VRING_BASE: u32 = 10;
    /// Stops a ring.
    pub const GET_VRING_BASE: u32 = 11;
    /// By what the guest tells us.
    pub const SET_VRING_KICK: u32 = 12;
    /// By what we tell the guest.
    pub const SET_VRING_CALL: u32 = 13;
    /// By what we tell the front end that a ring makes no sense.
    pub const SET_VRING_ERR: u32 = 14;
    /// Which features of the protocol there are.
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    /// Which of them are used.
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    /// How many queues there can be.
    pub const GET_QUEUE_NUM: u32 = 17;
    /// Lets a ring be used, or not.
    pub const SET_VRING_ENABLE: u32 = 18;
    /// Reads the configuration space.
    pub const GET_CONFIG: u32 = 24;
    /// Writes it.
    pub const SET_CONFIG: u32 = 25;
    /// Asks for memory for what is in flight.
    pub const GET_INFLIGHT_FD: u32 = 31;
    /// Gives it.
    pub const SET_INFLIGHT_FD: u32 = 32;
    /// How many pieces of memory there can be.
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    /// One more piece of memory.
    pub const ADD_MEM_REG: u32 = 37;
    /// One less.
    pub const REM_MEM_REG: u32 = 38;
}

/// A message that cannot be understood. The front end is at fault.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// Another version of the protocol, or an answer.
    #[error("flags {0:#x}: they are not those of a request of version 1")]
    Flags(u32),
    /// Nobody sends that much.
    #[error("a payload of {0} bytes: the longest that there is has less than {MAX_PAYLOAD}")]
    TooLong(u32),
    /// Not what this request has.
    #[error("request {request} has {len} bytes")]
    Length {
        /// Its number.
        request: u32,
        /// What it has.
        len: usize,
    },
    /// Too few descriptors, or too many.
    #[error("request {request} has {fds} descriptors, not {wanted}")]
    Descriptors {
        /// Its number.
        request: u32,
        /// What it has.
        fds: usize,
        /// What it should have.
        wanted: usize,
    },
    /// A field that makes no sense by itself.
    #[error("request {0} has fields that make no sense")]
    Field(u32),
    /// A ring that nobody writes to.
    #[error("request {0} says that a ring has to be polled, which is not supported: give an eventfd")]
    Polled(u32),
    /// What we do not know, and have not offered.
    #[error("request {0} is not known, or was not offered")]
    Unknown(u32),
}

/// The header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is asked for.
    pub request: u32,
    /// Whether an answer is wanted to what has none of its own.
    pub need_reply: bool,
    /// Bytes that follow.
    pub len: usize,
}

impl Header {
    /// From the front end's bytes.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Header, WireError> {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (request, flags, len) = (word(0), word(4), word(8));
        if flags & VERSION_MASK != VERSION || flags & REPLY != 0 {
            return Err(WireError::Flags(flags));
        }
        if len as usize > MAX_PAYLOAD {
            return Err(WireError::TooLong(len));
        }
        Ok(Header { request, need_reply: flags & NEED_REPLY != 0, len: len as usize })
    }
}

/// Memory as a front end describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where the front end has it; rings are named by such addresses.
    pub user: u64,
    /// Where it begins in the file.
    pub offset: u64,
}

/// Addresses of the parts of a ring, in the front end's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddress {
    /// Descriptors.
    pub descriptors: u64,
    /// What was used.
    pub used: u64,
    /// What is available.
    pub available: u64,
}

/// The region of requests in flight, as both sides describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflightLayout {
    /// Length in bytes.
    pub size: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// Number of queues.
    pub queues: u16,
    /// Entries of each.
    pub entries: u16,
}

impl InflightLayout {
    /// As it is sent. Padded as C does it.
    pub fn encode(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.size.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[16..18].copy_from_slice(&self.queues.to_ne_bytes());
        bytes[18..20].copy_from_slice(&self.entries.to_ne_bytes());
        bytes
    }
}

/// What a front end wants.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Message {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(Region, OwnedFd)>),
    SetVringNum { ring: u32, num: u32 },
    SetVringAddr { ring: u32, address: RingAddress },
    SetVringBase { ring: u32, base: u32 },
    GetVringBase { ring: u32 },
    SetVringKick { ring: u32, fd: OwnedFd },
    SetVringCall { ring: u32, fd: Option<OwnedFd> },
    SetVringErr { ring: u32, fd: Option<OwnedFd> },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable { ring: u32, enable: bool },
    GetConfig { offset: u32, len: u32, flags: u32 },
    SetConfig { offset: u32, flags: u32, bytes: Vec<u8> },
    GetInflightFd(InflightLayout),
    SetInflightFd(InflightLayout, OwnedFd),
    GetMaxMemSlots,
    AddMemReg(Region, OwnedFd),
    RemMemReg(Region),
}

impl Message {
    /// From a payload and the descriptors that came with it.
    pub fn parse(request: u32, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Message, WireError> {
        Parser::new(request, payload, fds).parse()
    }

    /// Whether it has an answer of its own.
    pub fn is_question(&self) -> bool {
        matches!(
            self,
            Message::GetFeatures
                | Message::GetProtocolFeatures
                | Message::GetQueueNum
                | Message::GetConfig { .. }
                | Message::GetInflightFd(_)
                | Message::GetMaxMemSlots
                | Message::GetVringBase { .. }
        )
    }
}

/// An answer, header and all.
pub fn answer(request: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&request.to_ne_bytes());
    bytes.extend_from_slice(&(VERSION | REPLY).to_ne_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fds(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect()
    }

    fn longs(values: &[u64]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_ne_bytes()).collect()
    }

    fn header(request: u32, flags: u32, len: u32) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..].copy_from_slice(&len.to_ne_bytes());
        bytes
    }

    #[test]
    fn headers_are_checked() {
        let parsed = Header::parse(&header(5, 0x9, 8)).unwrap();
        assert_eq!(parsed, Header { request: 5, need_reply: true, len: 8 });
        for flags in [0, 2, 3, 0x5] {
            assert_eq!(Header::parse(&header(5, flags, 8)), Err(WireError::Flags(flags)));
        }
        assert_eq!(Header::parse(&header(5, 1, u32::MAX)), Err(WireError::TooLong(u32::MAX)));
    }

    #[test]
    fn a_message_has_exactly_what_it_needs() {
        assert!(matches!(Message::parse(2, &longs(&[7]), fds(0)), Ok(Message::SetFeatures(7))));
        assert!(matches!(Message::parse(2, &[0; 7], fds(0)), Err(WireError::Length { len: 7, .. })));
        assert!(matches!(Message::parse(2, &[0; 9], fds(0)), Err(WireError::Length { len: 9, .. })));
        let extra = Message::parse(2, &longs(&[7]), fds(1));
        assert!(matches!(extra, Err(WireError::Descriptors { fds: 1, wanted: 0, .. })));
        assert!(matches!(Message::parse(99, &[], fds(0)), Err(WireError::Unknown(99))));
    }

    #[test]
    fn rings_have_descriptors_or_say_that_they_have_none() {
        let kick = |word: u64, count| Message::parse(request::SET_VRING_KICK, &longs(&[word]), fds(count));
        assert!(matches!(kick(3, 1), Ok(Message::SetVringKick { ring: 3, .. })));
        assert!(matches!(kick(3, 0), Err(WireError::Descriptors { fds: 0, wanted: 1, .. })));
        assert!(matches!(kick(3, 2), Err(WireError::Descriptors { fds: 2, wanted: 1, .. })));
        assert!(matches!(kick(0x103, 0), Err(WireError::Polled(_))));
        assert!(matches!(kick(0x200, 1), Err(WireError::Field(_))));
        let call = Message::parse(request::SET_VRING_CALL, &longs(&[0x101]), fds(0));
        assert!(matches!(call, Ok(Message::SetVringCall { ring: 1, fd: None })));
    }

    #[test]
    fn memory_tables_have_a_descriptor_a_region() {
        let region = [0x1000, 0x2000, 0x7000_0000, 0];
        let table = |count: u64, regions: usize, descriptors| {
            let mut payload = longs(&[count]);
            (0..regions).for_each(|_| payload.extend(longs(&region)));
            Message::parse(request::SET_MEM_TABLE, &payload, fds(descriptors))
        };
        let Ok(Message::SetMemTable(found)) = table(2, 2, 2) else { panic!("it is right") };
        assert_eq!(found[1].0, Region { gpa: 0x1000, len: 0x2000, user: 0x7000_0000, offset: 0 });
        assert!(matches!(table(2, 2, 1), Err(WireError::Descriptors { .. })));
        assert!(matches!(table(3, 2, 3), Err(WireError::Length { .. })));
        let most = MAX_TABLE as u64;
        assert!(
            matches!(table(most, MAX_TABLE, MAX_TABLE), Ok(Message::SetMemTable(all)) if all.len() == MAX_TABLE)
        );
        assert!(matches!(table(most + 1, MAX_TABLE + 1, MAX_TABLE), Err(WireError::Field(_))));
        for odd in [[0, 0, 0, 0], [u64::MAX, 2, 0, 0], [0, 2, u64::MAX, 0], [0, 2, 0, u64::MAX]] {
            let payload = [longs(&[1]), longs(&odd)].concat();
            let refused = Message::parse(request::SET_MEM_TABLE, &payload, fds(1));
            assert!(matches!(refused, Err(WireError::Field(_))), "{odd:?}");
        }
    }

    #[test]
    fn layouts_come_back_as_they_were() {
        let layout = InflightLayout { size: 0x1234, offset: 0x1000, queues: 3, entries: 128 };
        for payload in [&layout.encode()[..], &layout.encode()[..20]] {
            let parsed = Message::parse(request::SET_INFLIGHT_FD, payload, fds(1));
            assert!(matches!(parsed, Ok(Message::SetInflightFd(found, _)) if found == layout));
        }
    }

    #[test]
    fn nothing_beyond_the_configuration_space_is_named() {
        let get = |offset: u32, len: u32| {
            let mut payload: Vec<u8> = [offset, len, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
            payload.resize(12 + len.min(400) as usize, 0);
            Message::parse(request::GET_CONFIG, &payload, fds(0))
        };
        assert!(matches!(get(0, 256), Ok(Message::GetConfig { offset: 0, len: 256, .. })));
        for (offset, len) in [(0, 257), (256, 1), (u32::MAX, 2), (4, 0)] {
            assert!(matches!(get(offset, len), Err(WireError::Field(_))), "{offset} {len}");
        }
    }
}
