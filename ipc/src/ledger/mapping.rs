//! A ledger in shared memory.

use std::sync::atomic::{Ordering, compiler_fence};

use super::layout::{Layout, OUTCOME, SPINE, STATE_HALF};
use super::{LONGEST_PACKET, LedgerMemory};
use crate::shm::{Mapping, PAGE, SharedMemory, ShmError};

/// Slots that are mapped ahead: a page of the memory for each, or two, even if the guest never uses them.
const TOUCHED: u32 = 16;

/// A mapped ledger.
#[derive(Debug)]
pub struct LedgerMapping(Mapping);

impl LedgerMapping {
    /// Maps all of `memory`.
    pub fn new(memory: &SharedMemory) -> Result<LedgerMapping, ShmError> {
        Ok(LedgerMapping(Mapping::new(memory, 0, memory.len())?))
    }

    /// Maps the beginning of `memory` only, where a process that dies leaves a note.
    ///
    /// # Errors
    /// The memory cannot be mapped.
    pub fn of_header(memory: &SharedMemory) -> Result<LedgerMapping, ShmError> {
        Ok(LedgerMapping(Mapping::new(memory, 0, memory.len().min(PAGE as u64))?))
    }

    /// Has the kernel map now what a successor reads first: the words, the state, the spines, and the beginnings of as many slots as a
    /// busy guest has in use, which are the first ones. Nothing is made of what is there.
    pub fn touch(&self) {
        let Ok(layout) = Layout::filling(self.len(), 0, 0) else { return };
        self.0.touch(0, layout.state_at as usize + 2 * STATE_HALF + layout.slots as usize * SPINE);
        for slot in 0..layout.slots.min(TOUCHED) {
            self.0.touch(layout.packet(slot), 1);
            self.0.touch(layout.packet(slot) + LONGEST_PACKET as usize, OUTCOME);
        }
    }

    /// The memory itself, for the word that a dying process leaves a note in.
    pub fn mapping(&self) -> &Mapping {
        &self.0
    }
}

impl LedgerMemory for LedgerMapping {
    fn len(&self) -> usize {
        self.0.len()
    }

    #[inline]
    fn load(&self, offset: usize) -> u64 {
        self.0.long(offset).load(Ordering::Acquire)
    }

    #[inline]
    fn store(&self, offset: usize, value: u64) {
        self.0.long(offset).store(value, Ordering::Release);
    }

    #[inline]
    fn store_words(&self, offset: usize, words: &[u64]) {
        for (place, word) in self.0.longs(offset, words.len()).iter().zip(words) {
            place.store(*word, Ordering::Release);
        }
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.0.read(offset, into);
    }

    #[inline]
    fn write(&self, offset: usize, from: &[u8]) {
        // A store that releases keeps what is ahead of it ahead, but lets what is behind it overtake it.
        compiler_fence(Ordering::SeqCst);
        self.0.write(offset, from);
        compiler_fence(Ordering::SeqCst);
    }
}
