//! The two buffers that all queues of a device share: sections to send from, and what the device has lent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Error;

/// Guest memory that the device has, in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Name that the host knows it by.
    pub gpadl: u32,
}

/// What the queues of a device share.
#[derive(Debug)]
pub(super) struct Buffers {
    pub receive: Region,
    pub send: Region,
    /// Bytes of a section of the send buffer.
    pub section_size: u32,
    /// Most bytes of a range of the receive buffer.
    pub receive_section_size: u32,
    /// Packets in one section, and what each but the last is padded to.
    pub batch: (u32, u32),
    sections: Vec<AtomicBool>,
    /// Where to look for a free section first.
    next: AtomicUsize,
    /// Ranges that the device has lent and that have not gone back: start to end. Nobody looks if there is no book.
    book: Option<Mutex<BTreeMap<u32, u32>>>,
}

impl Buffers {
    pub fn new(receive: Region, send: Region, strict: bool) -> Self {
        Self {
            receive,
            send,
            section_size: 0,
            receive_section_size: 0,
            batch: (1, 1),
            sections: Vec::new(),
            next: AtomicUsize::new(0),
            book: strict.then(Mutex::default),
        }
    }

    /// The device has chosen the size of the sections.
    pub fn divide(&mut self, section_size: u32) {
        self.section_size = section_size;
        self.sections = (0..self.send.len / section_size).map(|_| AtomicBool::new(false)).collect();
    }

    pub fn section_count(&self) -> u32 {
        self.sections.len() as u32
    }

    pub fn take_section(&self) -> Option<u32> {
        let count = self.sections.len();
        let start = self.next.load(Ordering::Relaxed);
        let free = (0..count).map(|n| (start + n) % count).find(|&n| {
            !self.sections[n].load(Ordering::Relaxed) && !self.sections[n].swap(true, Ordering::Acquire)
        })?;
        Some(free as u32)
    }

    pub fn free_section(&self, section: u32) {
        self.sections[section as usize].store(false, Ordering::Release);
        // Used again at once, as the driver does: what is in it is still in the cache.
        self.next.store(section as usize, Ordering::Relaxed);
    }

    /// Sections in use.
    pub fn sections_taken(&self) -> usize {
        self.sections.iter().filter(|section| section.load(Ordering::Relaxed)).count()
    }

    /// The device lends a range. It must lie in the buffer, and be lent once.
    pub fn lend(&self, offset: u32, len: u32) -> Result<(), Error> {
        let wrong = |what: &str| {
            Error::Protocol(format!(
                "a received range of {len} bytes at {offset} of {} {what}",
                self.receive.len
            ))
        };
        if offset > self.receive.len || len > self.receive.len - offset {
            return Err(wrong("is not in the buffer"));
        }
        if len > self.receive_section_size {
            return Err(wrong("is longer than a section"));
        }
        let Some(book) = &self.book else { return Ok(()) };
        let (start, end) = (offset, offset + len);
        let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
        let before = book.range(..end).next_back();
        if before.is_some_and(|(_, &before)| before > start) {
            return Err(wrong("is lent already"));
        }
        book.insert(start, end);
        Ok(())
    }

    pub fn give_back(&self, ranges: impl Iterator<Item = u32>) {
        let Some(book) = &self.book else { return };
        let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
        for start in ranges {
            book.remove(&start);
        }
    }

    /// Ranges that are lent.
    pub fn lent(&self) -> usize {
        let lock =
            |book: &Mutex<BTreeMap<u32, u32>>| book.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.book.as_ref().map_or(0, lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers() -> Buffers {
        let region = Region { address: 0x1000, len: 10_000, gpadl: 1 };
        let mut buffers = Buffers::new(region, region, true);
        buffers.receive_section_size = 5000;
        buffers.divide(3000);
        buffers
    }

    #[test]
    fn a_range_is_lent_once_and_lies_in_the_buffer() {
        let buffers = buffers();
        buffers.lend(100, 200).expect("free");
        for (offset, len) in [(100, 200), (299, 1), (0, 101), (150, 10), (99, 2)] {
            assert!(buffers.lend(offset, len).is_err(), "{len} at {offset} is lent");
        }
        buffers.lend(300, 50).expect("beside it");
        buffers.lend(0, 100).expect("beside it");
        for (offset, len) in [(9999, 2), (10_001, 0), (5, u32::MAX), (4000, 5001)] {
            assert!(buffers.lend(offset, len).is_err(), "{len} at {offset} cannot be");
        }
        buffers.give_back([100].into_iter());
        buffers.lend(150, 10).expect("free again");
        assert_eq!(buffers.lent(), 3);
    }

    #[test]
    fn sections_are_taken_once() {
        let buffers = buffers();
        let taken: Vec<_> = std::iter::from_fn(|| buffers.take_section()).collect();
        assert_eq!((taken, buffers.sections_taken()), (vec![0, 1, 2], 3));
        buffers.free_section(1);
        assert_eq!(buffers.take_section(), Some(1));
    }
}
