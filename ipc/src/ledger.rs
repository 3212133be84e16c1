//! The ledger of a channel: what has to outlive the process that serves it, beside the rings.
//!
//! A ledger is a memfd that the core makes, all zero, when a channel is opened. It has a header, two halves of
//! device state, and slots: one for each request in flight, with what is needed to run it again; and a word for each loan,
//! if the device lends its guest something. This module says how it is laid out and whether a field makes sense. It must never decide in which order things are written, what a crash
//! between two stores means, or what happens to a request: that is `vsp::channel`.
//!
//! One process at a time uses a ledger, and the next one only after that has ended; the guest cannot see it. What has
//! to be expected in it all the same is whatever a process wrote in its last moments: every word is sealed (it carries a
//! check of itself, which zero does not pass), every slot and every longer piece has a checksum, and nothing here panics,
//! loops or allocates by what it reads.
//!
//! Stores become visible to a successor in the order of the program: what ends a process ends it between two
//! instructions, and what it had stored by then is in memory for whoever is told of its death.

mod header;
mod layout;
mod loan;
mod mapping;
mod seal;
mod slot;
mod state;
#[cfg(test)]
mod tests;

use thiserror::Error;

pub use header::{Found, Ledger, Rings, Word};
pub use layout::bytes;
pub use loan::Loan;
pub use mapping::LedgerMapping;
pub use slot::{Attempts, Completing, Outcome, Phase, Spine, State};

/// The format that this build writes.
pub const VERSION: u32 = 1;

/// Longest packet that a slot takes, in bytes, descriptor included. Enough for the page list of a 16 MiB transfer, 30
/// times what Linux sends.
pub const LONGEST_PACKET: u32 = 40 * 1024;

/// Longest outcome that a slot takes, in bytes: SCSI's, with its sense data, has less than 100.
pub const LONGEST_OUTCOME: usize = layout::OUTCOME_AREA - layout::OUTCOME;

/// Longest device state, in bytes: what a guest negotiated, not what it transferred.
pub const LONGEST_STATE: usize = layout::STATE_HALF - layout::STATE;

/// Most slots of a ledger, four times the depth of a device by default. Bounds what a damaged one can make a successor
/// do; all of them fit into [`crate::message::MAX_LEDGER`].
pub const MAX_SLOTS: u32 = 1024;

/// Most loans of a channel: twice as many blocks of 128 KiB as the largest receive buffer of Linux' netvsc has.
pub const MAX_LOANS: u32 = 256;

/// Where the word lies, in bytes, that a dying process leaves the signal's number in.
pub const CRASH_AT: usize = Word::Crash.offset();

/// Where the word lies, in bytes, that is not 0 while a request is in the device's hands.
pub const SUSPECT_AT: usize = Word::Suspect.offset();

/// Added to the signal's number in a ledger without a suspect if another ledger of the process names one: the culprit
/// is known, and it is none of this channel's requests.
pub const CRASH_ELSEWHERE: u64 = 1 << 32;

/// The memory under a ledger.
///
/// An implementation has to keep the order of stores as the program has it (for a compiler; the processor does).
/// Offsets are in bytes; those of words are multiples of 8. An access outside is a bug of ours, and may panic.
pub trait LedgerMemory {
    /// Length in bytes. Never changes.
    fn len(&self) -> usize;
    /// Never true of a ledger that is of any use.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Reads a word (at least `Acquire`).
    fn load(&self, offset: usize) -> u64;
    /// Writes a word (at least `Release`).
    fn store(&self, offset: usize, value: u64);
    /// Writes words that lie one behind the other, in this order.
    #[inline]
    fn store_words(&self, offset: usize, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            self.store(offset + index * 8, *word);
        }
    }
    /// Copies bytes out.
    fn read(&self, offset: usize, into: &mut [u8]);
    /// Copies bytes in: behind all stores before it, ahead of all after it.
    fn write(&self, offset: usize, from: &[u8]);
}

impl<L: LedgerMemory + ?Sized> LedgerMemory for &L {
    fn len(&self) -> usize {
        (**self).len()
    }
    fn load(&self, offset: usize) -> u64 {
        (**self).load(offset)
    }
    fn store(&self, offset: usize, value: u64) {
        (**self).store(offset, value);
    }
    fn store_words(&self, offset: usize, words: &[u64]) {
        (**self).store_words(offset, words);
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        (**self).read(offset, into);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        (**self).write(offset, from);
    }
}

/// A ledger that this build cannot use. Whoever finds it leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// There is no room for a single slot.
    #[error("a ledger of {0} bytes is too small")]
    TooSmall(usize),
    /// The first word is not the one that every ledger begins with, or is missing although slots are in use.
    #[error("it is no ledger, or its beginning was overwritten")]
    NotALedger,
    /// A newer build wrote it, in a way that this one must not guess at.
    #[error("its format asks for a reader of version {needed} at least, this build reads {VERSION}")]
    TooNew {
        /// What it asks for.
        needed: u32,
    },
    /// What never changes in a header contradicts itself or its checksum.
    #[error("its header was overwritten, or describes what cannot be")]
    Layout,
    /// It belongs to rings of other sizes.
    #[error("it belongs to rings of {found:?}, not of {expected:?}")]
    OtherRings {
        /// The channel's rings.
        expected: Rings,
        /// Those that it was made for.
        found: Rings,
    },
    /// A word of the header was overwritten.
    #[error("its word {0:?} was overwritten")]
    Word(Word),
    /// A slot was overwritten, so that nobody can tell which request it stood for.
    #[error("its slot {0} was overwritten")]
    Slot(u32),
    /// The word of a loan was overwritten.
    #[error("its loan {0} was overwritten")]
    Loan(u32),
    /// The process that made it knew no loans, or fewer.
    #[error("it has no room for the loans that this build of the device makes")]
    NoLoans,
    /// The device state was overwritten.
    #[error("the device state in it was overwritten")]
    State,
}
