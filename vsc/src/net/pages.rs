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
        let address = match self.free.pop() {
            Some(address) => address,
            None => platform.allocate(PIECE).map_err(Error::Platform)?,
        };
        let mut at = address + u64::from(OFFSET);
        let page = u64::from(PAGE_SIZE);
        let mut ranges = Vec::with_capacity(parts.len());
        for part in parts.iter().filter(|part| !part.is_empty()) {
            platform.write(at, part);
            let end = at + part.len() as u64;
            let pfns: Vec<u64> = (at / page..end.div_ceil(page)).collect();
            ranges.push(((at % page) as u32, part.len() as u32, pfns));
            at = end;
        }
        let ranges: Vec<(u32, u32, &[u64])> =
            ranges.iter().map(|(offset, len, pfns)| (*offset, *len, &pfns[..])).collect();
        Ok((address, gpa_direct_header(&ranges)))
    }

    pub fn release(&mut self, address: u64) {
        self.free.push(address);
    }

    /// Frees the pieces that are not in use.
    pub fn free<P: Platform>(&self, platform: &P) {
        self.free.iter().for_each(|&address| platform.release(address, PIECE));
    }
}
