//! A ledger in shared memory.

use std::sync::atomic::{Ordering, compiler_fence};

use super::LedgerMemory;
use crate::shm::{Mapping, PAGE, SharedMemory, ShmError};

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
