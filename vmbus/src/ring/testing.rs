//! A ring in plain memory, for tests. Clones are the same ring, so one can be given to each end.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};

use super::{ControlWord, RingMemory};

/// A ring in plain memory.
#[derive(Debug, Clone)]
pub struct TestRing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    control: [AtomicU32; 5],
    data: Vec<AtomicU8>,
}

impl TestRing {
    /// An empty ring of `pages` data pages, as a guest makes it.
    pub fn new(pages: u32) -> Self {
        let data = (0..pages * crate::PAGE_SIZE).map(|_| AtomicU8::new(0)).collect();
        let ring = Self(Arc::new(Inner { control: Default::default(), data }));
        super::initialize(&ring);
        ring
    }

    fn word(&self, word: ControlWord) -> &AtomicU32 {
        &self.0.control[match word {
            ControlWord::WriteIndex => 0,
            ControlWord::ReadIndex => 1,
            ControlWord::InterruptMask => 2,
            ControlWord::PendingSendSize => 3,
            ControlWord::FeatureBits => 4,
        }]
    }

    /// The bytes from `offset` on, around the end, as the double mapping shows them.
    fn bytes(&self, offset: u32, len: usize) -> impl Iterator<Item = &AtomicU8> {
        let data = &self.0.data;
        let offset = offset as usize;
        assert!(
            offset < data.len() && offset + len <= 2 * data.len(),
            "access outside of the double mapping"
        );
        data[offset..].iter().chain(data.iter()).take(len)
    }
}

impl RingMemory for TestRing {
    fn data_len(&self) -> u32 {
        self.0.data.len() as u32
    }

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
        let bytes = self.bytes(offset, into.len());
        into.iter_mut().zip(bytes).for_each(|(to, from)| *to = from.load(Ordering::Relaxed));
    }

    fn write(&self, offset: u32, from: &[u8]) {
        let bytes = self.bytes(offset, from.len());
        from.iter().zip(bytes).for_each(|(&from, to)| to.store(from, Ordering::Relaxed));
    }
}
