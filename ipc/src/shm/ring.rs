//! A ring's memory: its control page, then its data pages twice in a row, so that no packet wraps.

use std::sync::atomic::{Ordering, fence};

use vmbus::ring::{ControlWord, RingMemory};

use super::{Mapping, PAGE, SharedMemory, ShmError};

/// Mapped memory of one direction of a channel.
#[derive(Debug)]
pub struct RingMapping {
    mapping: Mapping,
    data_len: u32,
}

impl RingMapping {
    /// Maps `pages` pages from byte `offset` of a channel memfd: one control page and at least one data page.
    pub fn new(memory: &SharedMemory, offset: u64, pages: u32) -> Result<RingMapping, ShmError> {
        let page = PAGE as u64;
        let bad = ShmError::BadRange { offset, len: u64::from(pages) * page };
        let data =
            pages.checked_sub(1).and_then(|data| data.checked_mul(PAGE as u32)).filter(|&data| data > 0);
        let (Some(data_len), Some(data_at)) = (data, offset.checked_add(page)) else {
            return Err(bad);
        };
        // Offsets up to twice the data must fit the u32 that the ring counts with.
        if data_len > u32::MAX / 2 {
            return Err(bad);
        }
        let data = (data_at, u64::from(data_len));
        let mapping = Mapping::concatenate(memory, &[(offset, page), data, data])?;
        Ok(RingMapping { mapping, data_len })
    }

    /// Has the kernel map all of it now rather than at the first access. Nothing is made of what is there.
    pub fn touch(&self) {
        // The second mapping of the data is behind the first; a packet that wraps is rare.
        self.mapping.touch(0, PAGE + self.data_len as usize);
    }

    fn word(&self, word: ControlWord) -> &std::sync::atomic::AtomicU32 {
        self.mapping.word(match word {
            ControlWord::WriteIndex => 0,
            ControlWord::ReadIndex => 4,
            ControlWord::InterruptMask => 8,
            ControlWord::PendingSendSize => 12,
            ControlWord::FeatureBits => 64,
        })
    }
}

impl RingMemory for RingMapping {
    #[inline]
    fn data_len(&self) -> u32 {
        self.data_len
    }

    #[inline]
    fn load(&self, word: ControlWord) -> u32 {
        self.word(word).load(Ordering::Acquire)
    }

    fn store(&self, word: ControlWord, value: u32) {
        self.word(word).store(value, Ordering::Release);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }

    fn read(&self, offset: u32, into: &mut [u8]) {
        self.mapping.read(PAGE + offset as usize, into);
    }

    fn write(&self, offset: u32, from: &[u8]) {
        self.mapping.write(PAGE + offset as usize, from);
    }

    #[inline]
    fn read_u64(&self, offset: u32) -> u64 {
        u64::from_le(self.mapping.long(PAGE + offset as usize).load(Ordering::Relaxed))
    }

    #[inline]
    fn write_u64(&self, offset: u32, value: u64) {
        self.mapping.long(PAGE + offset as usize).store(value.to_le(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_does_not_wrap() {
        let memory = SharedMemory::create("ring", 4 * 4096).unwrap();
        let ring = RingMapping::new(&memory, 4096, 3).unwrap();
        assert_eq!(ring.data_len(), 8192);
        ring.write(8190, b"wrap");
        let mut tail = [0; 2];
        ring.read(0, &mut tail);
        assert_eq!(&tail, b"ap");
        let mut whole = [0; 4];
        ring.read(8190, &mut whole);
        assert_eq!(&whole, b"wrap");
        ring.write_u64(8192, 0x0807_0605_0403_0201);
        let mut bytes = [0; 8];
        ring.read(0, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(ring.read_u64(0), 0x0807_0605_0403_0201);
    }

    #[test]
    fn words_lie_where_the_protocol_says() {
        let memory = SharedMemory::create("ring", 2 * 4096).unwrap();
        let ring = RingMapping::new(&memory, 0, 2).unwrap();
        let raw = Mapping::new(&memory, 0, 4096).unwrap();
        let words = [
            (ControlWord::WriteIndex, 0),
            (ControlWord::ReadIndex, 4),
            (ControlWord::InterruptMask, 8),
            (ControlWord::PendingSendSize, 12),
            (ControlWord::FeatureBits, 64),
        ];
        for (index, (word, offset)) in words.into_iter().enumerate() {
            ring.store(word, index as u32 + 1);
            assert_eq!(raw.word(offset).load(Ordering::SeqCst), index as u32 + 1);
            assert_eq!(ring.load(word), index as u32 + 1);
        }
        ring.fence();
    }

    #[test]
    fn sizes_that_are_no_ring_are_refused() {
        let memory = SharedMemory::create("ring", 4 * 4096).unwrap();
        for (offset, pages) in [(0, 0), (0, 1), (0, 5), (12288, 2), (1, 2), (u64::MAX, 2), (0, u32::MAX)] {
            assert!(RingMapping::new(&memory, offset, pages).is_err(), "{offset} {pages}");
        }
    }
}
