//! Packets: what travels in a ring.
//!
//! A packet is a 16-byte descriptor, a header of its type (lists of guest pages, for some types) and a payload.
//! The parsers work on the scratch buffer that [`crate::ring::RingReader::next`] filled, which is private memory;
//! they copy nothing. The builders make the type header that [`crate::ring::RingWriter::push`] takes as a part.

use alloc::vec::Vec;
use core::fmt;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::PAGE_SIZE;
use crate::gpadl::{Limits, PFN_MAX, RangeError, pages_spanned};

/// Bytes of a packet's descriptor.
pub const DESCRIPTOR_SIZE: u32 = 16;
/// Bytes behind each packet in the ring: the position at which it begins.
pub const TRAILER_SIZE: u32 = 8;
/// Flag: the sender wants a completion.
pub const FLAG_COMPLETION_REQUESTED: u16 = 1;

/// The type of a packet. Values without a name here are possible in what a guest sends.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PacketType(pub u16);

impl PacketType {
    /// A payload and nothing else.
    pub const IN_BAND: Self = Self(6);
    /// A payload, and ranges of a buffer agreed on earlier.
    pub const TRANSFER_PAGES: Self = Self(7);
    /// A payload, and ranges of guest memory.
    pub const GPA_DIRECT: Self = Self(9);
    /// A request is taken back.
    pub const CANCEL: Self = Self(10);
    /// The answer to a packet with the same transaction id.
    pub const COMPLETION: Self = Self(11);
}

impl fmt::Debug for PacketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::IN_BAND => f.write_str("in-band"),
            Self::TRANSFER_PAGES => f.write_str("transfer-pages"),
            Self::GPA_DIRECT => f.write_str("GPA-direct"),
            Self::CANCEL => f.write_str("cancel"),
            Self::COMPLETION => f.write_str("completion"),
            Self(other) => write!(f, "type {other}"),
        }
    }
}

/// The descriptor of a packet that was read, checked: `16 <= data_offset <= len`, both multiples of 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketHeader {
    /// What kind of packet it is.
    pub packet_type: PacketType,
    /// Bits; see [`FLAG_COMPLETION_REQUESTED`].
    pub flags: u16,
    /// The sender's name for the request. Not unique: senders use ids again at once.
    pub transaction_id: u64,
    /// Where in the scratch buffer the payload begins, in bytes.
    pub data_offset: u32,
    /// Bytes of the packet in the scratch buffer, descriptor included.
    pub len: u32,
}

impl PacketHeader {
    /// Reads a descriptor. `None` if its lengths contradict each other.
    #[inline]
    pub(crate) fn parse(raw: &[u8; DESCRIPTOR_SIZE as usize]) -> Option<Self> {
        let raw = u128::from_le_bytes(*raw);
        let header = Self {
            packet_type: PacketType(raw as u16),
            data_offset: u32::from((raw >> 16) as u16) * 8,
            len: u32::from((raw >> 32) as u16) * 8,
            flags: (raw >> 48) as u16,
            transaction_id: (raw >> 64) as u64,
        };
        (header.data_offset >= DESCRIPTOR_SIZE && header.data_offset <= header.len).then_some(header)
    }

    /// The header of a whole packet in private memory, as [`crate::ring::RingReader::next`] leaves it in its scratch
    /// buffer. `None` if its lengths contradict each other or the packet's.
    pub fn of_packet(packet: &[u8]) -> Option<Self> {
        let header = Self::parse(packet.first_chunk()?)?;
        (header.len as usize == packet.len()).then_some(header)
    }

    /// The same of a packet that something else may follow.
    pub fn of_prefix(bytes: &[u8]) -> Option<Self> {
        let header = Self::parse(bytes.first_chunk()?)?;
        (header.len as usize <= bytes.len()).then_some(header)
    }

    /// The header that a descriptor stands for, read once into private memory. `None` if its lengths contradict each other.
    pub fn of_descriptor(descriptor: &[u8; DESCRIPTOR_SIZE as usize]) -> Option<Self> {
        Self::parse(descriptor)
    }

    /// True if the sender wants a completion.
    #[inline]
    pub fn completion_requested(&self) -> bool {
        self.flags & FLAG_COMPLETION_REQUESTED != 0
    }

    /// The payload, padded by the sender to a multiple of 8 bytes. Empty if `scratch` is of another packet.
    #[inline]
    pub fn payload<'a>(&self, scratch: &'a [u8]) -> &'a [u8] {
        scratch.get(self.data_offset as usize..self.len as usize).unwrap_or_default()
    }

    /// The header of the packet's type, between descriptor and payload. Empty if `scratch` is of another packet.
    #[inline]
    pub fn type_header<'a>(&self, scratch: &'a [u8]) -> &'a [u8] {
        scratch.get(DESCRIPTOR_SIZE as usize..self.data_offset as usize).unwrap_or_default()
    }
}

/// The descriptor of a packet to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// What kind of packet it is.
    pub packet_type: PacketType,
    /// Bits; see [`FLAG_COMPLETION_REQUESTED`].
    pub flags: u16,
    /// The sender's name for the request, or that of the request that is completed.
    pub transaction_id: u64,
    /// Bytes at the beginning of the parts that are the header of the packet's type: a multiple of 8.
    pub type_header_len: u32,
}

impl Outgoing {
    /// An in-band packet.
    pub const fn in_band(transaction_id: u64, completion_requested: bool) -> Self {
        let flags = if completion_requested { FLAG_COMPLETION_REQUESTED } else { 0 };
        Self { packet_type: PacketType::IN_BAND, flags, transaction_id, type_header_len: 0 }
    }

    /// The completion of the packet with this id.
    pub const fn completion(transaction_id: u64) -> Self {
        Self { packet_type: PacketType::COMPLETION, flags: 0, transaction_id, type_header_len: 0 }
    }

    /// A GPA-direct packet that wants a completion; its first part is `header`, made by [`gpa_direct_header`] or
    /// [`page_buffer_header`].
    pub const fn gpa_direct(transaction_id: u64, header: &[u8]) -> Self {
        Self {
            packet_type: PacketType::GPA_DIRECT,
            flags: FLAG_COMPLETION_REQUESTED,
            transaction_id,
            type_header_len: header.len() as u32,
        }
    }

    /// A transfer-page packet; its first part is `header`, made by [`transfer_pages_header`].
    pub const fn transfer_pages(transaction_id: u64, completion_requested: bool, header: &[u8]) -> Self {
        let flags = if completion_requested { FLAG_COMPLETION_REQUESTED } else { 0 };
        Self {
            packet_type: PacketType::TRANSFER_PAGES,
            flags,
            transaction_id,
            type_header_len: header.len() as u32,
        }
    }
}

impl Outgoing {
    /// A transfer-page packet that wants a completion; its first parts are the [fixed part](TransferPages::fixed_bytes) of its type
    /// header and the [ranges](TransferPages::range_bytes), so that nothing has to be put together first.
    #[inline]
    pub fn transferring(transaction_id: u64, pages: &TransferPages<'_>) -> Self {
        Self {
            packet_type: PacketType::TRANSFER_PAGES,
            flags: FLAG_COMPLETION_REQUESTED,
            transaction_id,
            type_header_len: pages.header_len(),
        }
    }
}

/// A packet whose type header cannot be. The sender is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Another type of packet was due.
    #[error("a {expected:?} packet was expected, this one is {found:?}")]
    WrongType {
        /// What the caller asked for.
        expected: PacketType,
        /// What it is.
        found: PacketType,
    },
    /// The packet ends before its type header does.
    #[error("the packet's header has {0} bytes, which is too short for its type")]
    ShortHeader(usize),
    /// More ranges than the caller takes.
    #[error("the packet names {0} ranges, more than allowed")]
    TooManyRanges(u32),
    /// Its ranges of guest memory cannot be.
    #[error("{0}")]
    Ranges(#[from] RangeError),
}

impl PacketHeader {
    fn expect(&self, expected: PacketType) -> Result<(), PacketError> {
        if self.packet_type == expected {
            return Ok(());
        }
        Err(PacketError::WrongType { expected, found: self.packet_type })
    }

    /// The ranges of guest memory of a GPA-direct packet (page-buffer packets are GPA-direct packets of one-page
    /// ranges), each one checked, within `limits`. That the pages exist is for the caller to check.
    pub fn gpa_ranges<'a>(&self, scratch: &'a [u8], limits: Limits) -> Result<GpaRanges<'a>, PacketError> {
        self.expect(PacketType::GPA_DIRECT)?;
        let header = self.type_header(scratch);
        let (_reserved, rest) =
            U32::ref_from_prefix(header).map_err(|_| PacketError::ShortHeader(header.len()))?;
        let (count, ranges) =
            U32::ref_from_prefix(rest).map_err(|_| PacketError::ShortHeader(header.len()))?;
        let count = count.get();
        if count == 0 {
            return Err(RangeError::NoRanges.into());
        }
        if count > limits.ranges {
            return Err(PacketError::TooManyRanges(count));
        }
        let checked = GpaRanges { count, bytes: ranges };
        let mut rest = checked;
        let mut pages_left = u64::from(limits.pages);
        for _ in 0..count {
            let range = rest.take_range()?;
            let pages = range.pfns.len() as u64;
            pages_left = pages_left.checked_sub(pages).ok_or(RangeError::TooManyPages(pages))?;
            if let Some(bad) = range.pfns.iter().find(|pfn| pfn.get() > PFN_MAX) {
                return Err(RangeError::BadPfn(bad.get()).into());
            }
        }
        Ok(checked)
    }

    /// The buffer and the ranges in it of a transfer-page packet, at most `most` ranges. That they lie in the
    /// buffer is for the caller to check.
    pub fn transfer_pages<'a>(&self, scratch: &'a [u8], most: u32) -> Result<TransferPages<'a>, PacketError> {
        self.expect(PacketType::TRANSFER_PAGES)?;
        let header = self.type_header(scratch);
        let short = PacketError::ShortHeader(header.len());
        let (fixed, rest) = TransferPagesFixed::ref_from_prefix(header).map_err(|_| short)?;
        let count = fixed.range_count.get();
        if count > most {
            return Err(PacketError::TooManyRanges(count));
        }
        let (ranges, _) =
            <[TransferRange]>::ref_from_prefix_with_elems(rest, count as usize).map_err(|_| short)?;
        Ok(TransferPages { page_set: u16::from_le_bytes(fixed.page_set), ranges })
    }
}

/// A range of guest memory in a packet: `len` bytes from `offset` in the first page on.
///
/// Checked: `len > 0`, `offset` is less than a page, `pfns` are as many as the two imply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpaRange<'a> {
    /// Bytes in the range.
    pub len: u32,
    /// Where it begins in its first page, in bytes.
    pub offset: u32,
    /// Its pages' numbers (guest-physical address / 4096), none of which overflows an address.
    pub pfns: &'a [U64],
}

impl<'a> GpaRange<'a> {
    /// The range as pieces that are contiguous in guest-physical memory, neighbours joined: address and length
    /// in bytes.
    pub fn pieces(self) -> impl Iterator<Item = (u64, u32)> + use<'a> {
        let mut pfns = self.pfns.iter().map(|pfn| pfn.get()).peekable();
        let mut left = self.len;
        let mut offset = self.offset;
        core::iter::from_fn(move || {
            let first = pfns.next()?;
            let mut len = (PAGE_SIZE - offset).min(left);
            left -= len;
            let mut last = first;
            while let Some(next) = pfns.next_if(|&next| next == last.wrapping_add(1)) {
                last = next;
                let more = PAGE_SIZE.min(left);
                left -= more;
                len += more;
            }
            let address = first * u64::from(PAGE_SIZE) + u64::from(offset);
            offset = 0;
            Some((address, len))
        })
    }
}

/// The ranges of a GPA-direct packet, all of them checked already.
#[derive(Debug, Clone, Copy)]
pub struct GpaRanges<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl<'a> GpaRanges<'a> {
    fn take_range(&mut self) -> Result<GpaRange<'a>, RangeError> {
        let (&[len, offset], rest) =
            <[U32; 2]>::ref_from_prefix(self.bytes).map_err(|_| RangeError::Truncated)?;
        let (len, offset) = (len.get(), offset.get());
        let pages = pages_spanned(len, offset)?;
        let (pfns, rest) =
            <[U64]>::ref_from_prefix_with_elems(rest, pages as usize).map_err(|_| RangeError::Truncated)?;
        self.bytes = rest;
        self.count -= 1;
        Ok(GpaRange { len, offset, pfns })
    }
}

impl<'a> Iterator for GpaRanges<'a> {
    type Item = GpaRange<'a>;

    fn next(&mut self) -> Option<GpaRange<'a>> {
        if self.count == 0 {
            return None;
        }
        self.take_range().ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count as usize, Some(self.count as usize))
    }
}

impl ExactSizeIterator for GpaRanges<'_> {}

/// `struct vmtransfer_page_packet_header` of Linux' `include/linux/hyperv.h`, without the descriptor and the ranges.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct TransferPagesFixed {
    page_set: [u8; 2],
    sender_owns_set: u8,
    reserved: u8,
    range_count: U32,
}

/// A range in a transfer-page buffer: `struct vmtransfer_page_range` of Linux' `include/linux/hyperv.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TransferRange {
    /// Bytes in the range.
    pub len: U32,
    /// Where it begins in the buffer, in bytes.
    pub offset: U32,
}

impl TransferRange {
    /// `len` bytes from `offset` in the buffer on.
    #[inline]
    pub const fn new(offset: u32, len: u32) -> Self {
        Self { len: U32::new(len), offset: U32::new(offset) }
    }
}

/// What a transfer-page packet names, or is to name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferPages<'a> {
    /// Which buffer.
    pub page_set: u16,
    /// Which ranges in it.
    pub ranges: &'a [TransferRange],
}

impl TransferPages<'_> {
    /// Bytes of the type header: 8, and 8 for each range.
    #[inline]
    pub fn header_len(&self) -> u32 {
        (size_of::<TransferPagesFixed>() + size_of_val(self.ranges)) as u32
    }

    /// The beginning of the type header, which the ranges follow ([`Self::range_bytes`]): both are parts of a packet that
    /// [`Outgoing::transferring`] describes.
    #[inline]
    pub fn fixed_bytes(&self) -> [u8; 8] {
        let fixed = TransferPagesFixed {
            page_set: self.page_set.to_le_bytes(),
            sender_owns_set: 0,
            reserved: 0,
            range_count: U32::new(self.ranges.len() as u32),
        };
        zerocopy::transmute!(fixed)
    }

    /// The ranges as they are on the wire.
    #[inline]
    pub fn range_bytes(&self) -> &[u8] {
        self.ranges.as_bytes()
    }
}

/// The type header of a GPA-direct packet: per range its offset in the first page, its length in bytes and its
/// page numbers. Nothing is checked, so a test can build what no honest guest would.
pub fn gpa_direct_header(ranges: &[(u32, u32, &[u64])]) -> Vec<u8> {
    let mut header = Vec::with_capacity(8 + ranges.iter().map(|range| 8 + range.2.len() * 8).sum::<usize>());
    header.extend_from_slice(&0u32.to_le_bytes());
    header.extend_from_slice(&(ranges.len() as u32).to_le_bytes());
    for (offset, len, pfns) in ranges {
        header.extend_from_slice(&len.to_le_bytes());
        header.extend_from_slice(&offset.to_le_bytes());
        pfns.iter().for_each(|pfn| header.extend_from_slice(&pfn.to_le_bytes()));
    }
    header
}

/// The type header of a page-buffer packet: per page its offset, its length in bytes and its number.
pub fn page_buffer_header(pages: &[(u32, u32, u64)]) -> Vec<u8> {
    let mut header = Vec::with_capacity(8 + pages.len() * 16);
    header.extend_from_slice(&0u32.to_le_bytes());
    header.extend_from_slice(&(pages.len() as u32).to_le_bytes());
    for (offset, len, pfn) in pages {
        header.extend_from_slice(&len.to_le_bytes());
        header.extend_from_slice(&offset.to_le_bytes());
        header.extend_from_slice(&pfn.to_le_bytes());
    }
    header
}

/// The type header of a transfer-page packet: ranges (offset, length) of the buffer `page_set`.
pub fn transfer_pages_header(page_set: u16, ranges: &[(u32, u32)]) -> Vec<u8> {
    let ranges: Vec<_> = ranges.iter().map(|&(offset, len)| TransferRange::new(offset, len)).collect();
    let pages = TransferPages { page_set, ranges: &ranges };
    [&pages.fixed_bytes(), pages.range_bytes()].concat()
}

#[cfg(test)]
mod tests;
