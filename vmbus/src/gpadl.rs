//! GPADLs: lists of guest pages that the guest shares for longer than one packet.
//!
//! A list arrives as one header message and any number of body messages. [`Assembly`] puts them together and
//! takes no more memory than its caller allows. Whether the pages exist, or overlap others, is not known here.

use alloc::vec::Vec;

use crate::PAGE_SIZE;
use crate::message::Encoded;
use crate::message::guest::{
    GPADL_BODY_DATA_MAX, GPADL_HEADER_DATA_MAX, GpadlBody, GpadlHeader, GuestMessage,
};

/// Highest page number that can be: physical addresses of x86-64 have 52 bits at most. Nothing overflows that adds
/// a length to an address below this limit.
pub(crate) const PFN_MAX: u64 = (1 << (52 - 12)) - 1;

/// What a caller is willing to take from one guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most ranges in one GPADL or packet.
    pub ranges: u32,
    /// Most pages in one GPADL or packet, all ranges together.
    pub pages: u32,
}

/// A range of guest memory, contiguous to the guest: `len` bytes from `offset` in the first of `pfns` on.
///
/// Checked: `len > 0`, `offset` is less than a page, and `pfns` are as many as the two imply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpadlRange {
    /// Bytes in the range.
    pub len: u32,
    /// Where it begins in its first page, in bytes.
    pub offset: u32,
    /// Its pages' numbers (guest-physical address / 4096).
    pub pfns: Vec<u64>,
}

/// Ranges that cannot be. The guest is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// No range at all.
    #[error("the list of guest pages is empty")]
    NoRanges,
    /// More ranges than the caller takes.
    #[error("the list has {0} ranges of guest pages, more than allowed")]
    TooManyRanges(u32),
    /// More pages than the caller takes.
    #[error("the list has {0} guest pages or more, more than allowed")]
    TooManyPages(u64),
    /// The ranges go on behind the end of the list.
    #[error("the list of guest pages ends in the middle of a range")]
    Truncated,
    /// Something is behind the last range.
    #[error("the list of guest pages has {0} bytes behind its last range")]
    TrailingBytes(usize),
    /// A range of no bytes.
    #[error("a range of guest memory is empty")]
    Empty,
    /// A range that begins behind its first page.
    #[error("a range of guest memory begins at offset {0} of its first page")]
    BadOffset(u32),
    /// A page number that is no address.
    #[error("page number {0:#x} is beyond all addresses")]
    BadPfn(u64),
}

/// A GPADL that cannot be. The guest is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GpadlError {
    /// The length of the ranges is no multiple of 8.
    #[error("the GPADL's ranges have {0} bytes, which is no multiple of 8")]
    UnevenLength(u16),
    /// A message without a single page number in it.
    #[error("a GPADL message carries no page number")]
    EmptyMessage,
    /// What the messages contain is no list of ranges.
    #[error("{0}")]
    Ranges(#[from] RangeError),
}

/// How many pages a range of `len` bytes at `offset` of its first page touches.
pub(crate) fn pages_spanned(len: u32, offset: u32) -> Result<u64, RangeError> {
    if len == 0 {
        return Err(RangeError::Empty);
    }
    if offset >= PAGE_SIZE {
        return Err(RangeError::BadOffset(offset));
    }
    Ok((u64::from(len) + u64::from(offset)).div_ceil(u64::from(PAGE_SIZE)))
}

/// A GPADL of which messages are still to come.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the next body message has to be added to it"]
pub struct Assembly {
    words: Vec<u64>,
    expected_words: usize,
    range_count: u16,
    limits: Limits,
}

/// A GPADL after one more message.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// More messages have to follow.
    Partial(Assembly),
    /// This was the last one.
    Complete(Vec<GpadlRange>),
}

impl Assembly {
    /// Starts with the header message. What is too much is refused here, before anything is kept.
    pub fn begin(header: &GpadlHeader<'_>, limits: Limits) -> Result<Progress, GpadlError> {
        let count = u32::from(header.range_count);
        if count == 0 {
            return Err(RangeError::NoRanges.into());
        }
        if count > limits.ranges {
            return Err(RangeError::TooManyRanges(count).into());
        }
        if !header.range_buffer_len.is_multiple_of(8) {
            return Err(GpadlError::UnevenLength(header.range_buffer_len));
        }
        let expected_words = usize::from(header.range_buffer_len / 8);
        // Each range is one word and its pages.
        let pages =
            expected_words.checked_sub(usize::from(header.range_count)).ok_or(RangeError::Truncated)? as u64;
        if pages > u64::from(limits.pages) {
            return Err(RangeError::TooManyPages(pages).into());
        }
        let words = Vec::with_capacity(expected_words);
        Self { words, expected_words, range_count: header.range_count, limits }.take(header.data)
    }

    /// Adds a body message.
    pub fn append(self, body: &GpadlBody<'_>) -> Result<Progress, GpadlError> {
        self.take(body.data)
    }

    fn take(mut self, data: &[u8]) -> Result<Progress, GpadlError> {
        let missing = self.expected_words - self.words.len();
        let (chunks, _) = data.as_chunks::<8>();
        if chunks.is_empty() && missing > 0 {
            return Err(GpadlError::EmptyMessage);
        }
        // A guest may post its messages at full length, so what is behind the last word is ignored.
        self.words.extend(chunks.iter().take(missing).map(|&chunk| u64::from_le_bytes(chunk)));
        if self.words.len() < self.expected_words {
            return Ok(Progress::Partial(self));
        }
        Ok(Progress::Complete(self.ranges()?))
    }

    fn ranges(&self) -> Result<Vec<GpadlRange>, RangeError> {
        let mut words = &self.words[..];
        let mut pages_left = u64::from(self.limits.pages);
        let mut ranges = Vec::with_capacity(usize::from(self.range_count));
        for _ in 0..self.range_count {
            let (&head, rest) = words.split_first().ok_or(RangeError::Truncated)?;
            let (len, offset) = (head as u32, (head >> 32) as u32);
            let pages = pages_spanned(len, offset)?;
            pages_left = pages_left.checked_sub(pages).ok_or(RangeError::TooManyPages(pages))?;
            let (pfns, rest) = rest.split_at_checked(pages as usize).ok_or(RangeError::Truncated)?;
            if let Some(&bad) = pfns.iter().find(|&&pfn| pfn > PFN_MAX) {
                return Err(RangeError::BadPfn(bad));
            }
            ranges.push(GpadlRange { len, offset, pfns: pfns.to_vec() });
            words = rest;
        }
        match words.len() {
            0 => Ok(ranges),
            words => Err(RangeError::TrailingBytes(words * 8)),
        }
    }
}

/// Most pages that one range of a GPADL can have: its length in bytes has to fit into 16 bits.
pub const MAX_PAGES: usize = u16::MAX as usize / 8 - 1;

/// The messages, header first, by which a guest shares `pfns` as one range of whole pages.
///
/// # Panics
/// If `pfns` is empty or has more than [`MAX_PAGES`]: an error of the caller's.
pub fn messages(relid: u32, gpadl: u32, pfns: &[u64]) -> Vec<Encoded> {
    assert!((1..=MAX_PAGES).contains(&pfns.len()), "a GPADL has 1 to {MAX_PAGES} pages");
    let len = pfns.len() as u32 * PAGE_SIZE;
    let mut data = Vec::with_capacity(8 + pfns.len() * 8);
    data.extend_from_slice(&u64::from(len).to_le_bytes());
    pfns.iter().for_each(|pfn| data.extend_from_slice(&pfn.to_le_bytes()));

    let (first, rest) = data.split_at(data.len().min(GPADL_HEADER_DATA_MAX));
    let header =
        GpadlHeader { relid, gpadl, range_buffer_len: data.len() as u16, range_count: 1, data: first };
    let mut messages = Vec::with_capacity(1 + rest.len().div_ceil(GPADL_BODY_DATA_MAX));
    messages.push(GuestMessage::GpadlHeader(header).encode());
    for data in rest.chunks(GPADL_BODY_DATA_MAX) {
        messages.push(GuestMessage::GpadlBody(GpadlBody { message_number: 0, gpadl, data }).encode());
    }
    messages
}

#[cfg(test)]
mod tests;
