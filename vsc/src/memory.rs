//! A ring over guest pages that are mapped only once.
//!
//! Guests map a ring's data twice in a row so that packets never wrap. Where a platform cannot, [`Wrapping`] splits
//! each access that runs over the end.

use std::sync::atomic::{Ordering, fence};

use vmbus::PAGE_SIZE;
use vmbus::ring::{ControlWord, RingMemory};

/// Pages of guest memory that belong to a ring, offsets in bytes from the first of them.
pub trait Pages {
    /// Bytes: a multiple of 4096, at least two pages.
    fn len(&self) -> u32;
    /// True if there is nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Reads the 32-bit word at `offset`, a multiple of 4 (`Acquire`).
    fn load(&self, offset: usize) -> u32;
    /// Writes the 32-bit word at `offset`, a multiple of 4 (`Release`).
    fn store(&self, offset: usize, value: u32);
    /// Copies bytes out.
    fn read(&self, offset: usize, into: &mut [u8]);
    /// Copies bytes in.
    fn write(&self, offset: usize, from: &[u8]);
}

/// A ring over [`Pages`] that are mapped once.
#[derive(Debug)]
pub struct Wrapping<P>(pub P);

impl<P: Pages> Wrapping<P> {
    /// Bytes from ring offset `offset` to the end of the data, at most `len`.
    fn before_end(&self, offset: u32, len: usize) -> usize {
        len.min((self.data_len() - offset) as usize)
    }
}

impl<P: Pages> RingMemory for Wrapping<P> {
    fn data_len(&self) -> u32 {
        self.0.len() - PAGE_SIZE
    }

    fn load(&self, word: ControlWord) -> u32 {
        self.0.load(word.offset())
    }

    fn store(&self, word: ControlWord, value: u32) {
        self.0.store(word.offset(), value);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }

    fn read(&self, offset: u32, into: &mut [u8]) {
        let (first, second) = into.split_at_mut(self.before_end(offset, into.len()));
        self.0.read((PAGE_SIZE + offset) as usize, first);
        self.0.read(PAGE_SIZE as usize, second);
    }

    fn write(&self, offset: u32, from: &[u8]) {
        let (first, second) = from.split_at(self.before_end(offset, from.len()));
        self.0.write((PAGE_SIZE + offset) as usize, first);
        self.0.write(PAGE_SIZE as usize, second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use vmbus::packet::Outgoing;
    use vmbus::ring::{RingReader, RingWriter, initialize};

    struct Plain(RefCell<Vec<u8>>);

    impl Pages for Plain {
        fn len(&self) -> u32 {
            self.0.borrow().len() as u32
        }
        fn load(&self, offset: usize) -> u32 {
            let mut word = [0; 4];
            self.read(offset, &mut word);
            u32::from_le_bytes(word)
        }
        fn store(&self, offset: usize, value: u32) {
            self.write(offset, &value.to_le_bytes());
        }
        fn read(&self, offset: usize, into: &mut [u8]) {
            into.copy_from_slice(&self.0.borrow()[offset..][..into.len()]);
        }
        fn write(&self, offset: usize, from: &[u8]) {
            self.0.borrow_mut()[offset..][..from.len()].copy_from_slice(from);
        }
    }

    #[test]
    fn packets_run_over_the_end() {
        let ring = Wrapping(Plain(RefCell::new(vec![0; 8192])));
        initialize(&ring);
        let mut writer = RingWriter::new(&ring).expect("good");
        let mut reader = RingReader::new(&ring).expect("good");
        let mut scratch = Vec::new();
        for id in 0..100u64 {
            let payload: Vec<u8> = (0..1504).map(|i| (i + id) as u8).collect();
            writer.push(&Outgoing::in_band(id, false), &[&payload]).expect("room");
            assert!(writer.publish());
            let header = reader.next(&mut scratch).expect("good").expect("a packet");
            assert_eq!((header.transaction_id, header.payload(&scratch)), (id, &payload[..]));
            let _ = reader.publish();
        }
    }
}
