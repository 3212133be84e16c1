//! What a process that dies of its own fault leaves in its ledgers: that it did, and whether it is known of which request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ipc::ledger::{CRASH_AT, CRASH_ELSEWHERE, LedgerMapping, LedgerMemory, SUSPECT_AT};
use ipc::shm::{SharedMemory, ShmError};
use sandbox::crash::{Full, Registration, Witness, register};
use thiserror::Error;

use crate::channels::ChannelId;

/// The channel whose request the device's code is working on, plus 1; 0 for none. One thread runs all of them.
static SUSPECTED: AtomicU32 = AtomicU32::new(0);

/// Why a ledger would not be told of a crash.
#[derive(Debug, Error)]
pub(crate) enum StampError {
    #[error(transparent)]
    Memory(#[from] ShmError),
    #[error(transparent)]
    Full(#[from] Full),
}

/// A mapping of the ledger's header, for the moment of a crash.
#[derive(Debug)]
pub(crate) struct Stamp(LedgerMapping);

impl Stamp {
    pub fn new(memory: &SharedMemory) -> Result<Stamp, ShmError> {
        Ok(Stamp(LedgerMapping::of_header(memory)?))
    }
}

impl Witness for Stamp {
    fn stamp(&self, signal: i32) {
        // The first cause counts.
        if self.0.load(CRASH_AT) != 0 {
            return;
        }
        let elsewhere = self.0.load(SUSPECT_AT) == 0 && SUSPECTED.load(Ordering::Relaxed) != 0;
        let signal = u64::from(signal.unsigned_abs());
        self.0.store(CRASH_AT, if elsewhere { signal | CRASH_ELSEWHERE } else { signal });
    }
}

/// Has a ledger told of a crash for as long as what is returned is there.
pub(crate) fn watch(stamp: Stamp) -> Result<Registration, StampError> {
    Ok(register(Arc::new(stamp))?)
}

/// Whether no process has used this ledger yet.
pub(crate) fn is_fresh(ledger: &LedgerMapping) -> bool {
    ledger.load(0) == 0
}

/// The device's code begins on a request of this channel.
pub(crate) fn enter(channel: ChannelId) {
    SUSPECTED.store(channel.slot() as u32 + 1, Ordering::Relaxed);
}

/// It is done with it for now.
pub(crate) fn leave() {
    SUSPECTED.store(0, Ordering::Relaxed);
}
