//! Guest pages for packets that are sent by a list of their pages.

use vmbus::PAGE_SIZE;
use vmbus::packet::gpa_direct_header;

use crate::error::Error;
use crate::platform::Platform;

/// Pages of each piece: the longest frame with its headers, and one for where it begins.
const PIECE: u32 = 18;
/// Where the first byte goes: not at a page's beginning, as it is for a driver.
const OFFSET: u32 = 0x40;

/// Pieces of guest memory that are used again.
#[derive(Debug, Default)]
pub(super) struct PagePool {
    free: Vec<u64>,
}

impl PagePool {
    /// Puts `parts` into a free piece, each as a range of its own; returns its address and the packet's header.
    pub fn fill<P: Platform>(&mut self, platform: &P, parts: &[&[u8]]) -> Result<(u64, Vec<u8>), Error> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len > (PIECE * PAGE_SIZE - OFFSET) as usize {
            return Err(Error::Protocol(format!("{len} bytes are too long for a list of pages")));
        }
        let address = self.take(platform)?;
        let mut at = address + u64::from(OFFSET);
        let mut ranges = Vec::with_capacity(parts.len());
        for part in parts.iter().filter(|part| !part.is_empty()) {
            platform.write(at, part);
            ranges.push((at, part.len() as u32));
            at += part.len() as u64;
        }
        Ok((address, header_of(&ranges)))
    }

    /// A piece that is free.
    pub fn take<P: Platform>(&mut self, platform: &P) -> Result<u64, Error> {
        match self.free.pop() {
            Some(address) => Ok(address),
            None => platform.allocate(PIECE).map_err(Error::Platform),
        }
    }

    pub fn release(&mut self, address: u64) {
        self.free.push(address);
    }

    /// Frees the pieces that are not in use.
    pub fn free<P: Platform>(&self, platform: &P) {
        self.free.iter().for_each(|&address| platform.release(address, PIECE));
    }
}

/// The header of a packet that names these stretches of guest memory, each an address and bytes.
pub(super) fn header_of(stretches: &[(u64, u32)]) -> Vec<u8> {
    let page = u64::from(PAGE_SIZE);
    let pages: Vec<Vec<u64>> = stretches
        .iter()
        .map(|&(at, len)| (at / page..(at + u64::from(len)).div_ceil(page)).collect())
        .collect();
    let ranges: Vec<(u32, u32, &[u64])> =
        stretches.iter().zip(&pages).map(|(&(at, len), pfns)| ((at % page) as u32, len, &pfns[..])).collect();
    gpa_direct_header(&ranges)
}

/// A piece of guest memory for one frame, whose source writes it there before anybody knows what to say about it.
#[derive(Debug)]
pub struct FramePages {
    /// Where the frame goes.
    pub address: u64,
    /// How long it may be.
    pub room: u32,
    /// The first page of the piece.
    pub(super) piece: u64,
}

impl FramePages {
    /// Bytes in front of the frame, for its headers and for what its source puts before it.
    pub(super) fn new(piece: u64, front: u32) -> Self {
        let address = piece + u64::from(OFFSET + front);
        FramePages { address, room: PIECE * PAGE_SIZE - OFFSET - front, piece }
    }
}
