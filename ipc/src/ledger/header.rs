//! The header: its words, and a ledger as a whole.

use super::layout::Layout;
use super::{LedgerError, LedgerMemory, seal};

/// A word of the header that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Word {
    /// How often the ledger was adopted, its making included.
    Epoch,
    /// Position in the guest-to-host ring up to which packets are published as read, counted without end, in bytes. Its
    /// remainder by the ring's size is the read index, or was one publication ago.
    ReadBase,
    /// The same for what is published as written to the host-to-guest ring.
    WriteBase,
    /// Which state is the device's: 0 is none.
    StateGeneration,
    /// The request in the device's hands: its sequence number + 1. Plain 0 if there is none.
    Suspect,
    /// The number of the signal that the process died of, as [`super::CRASH_ELSEWHERE`] has it. Plain, 0 if none was noted.
    Crash,
    /// Not 0: a request without a name has killed a process, so they run one at a time. Plain.
    Doubtful,
    /// Attempts counted for a packet that is in the ring again. Plain 0 if there is none.
    Carried,
}

impl Word {
    /// Where it lies in the ledger, in bytes.
    pub const fn offset(self) -> usize {
        match self {
            Self::Epoch => 64,
            Self::ReadBase => 72,
            Self::WriteBase => 80,
            Self::StateGeneration => 88,
            Self::Suspect => 96,
            Self::Crash => 104,
            Self::Doubtful => 112,
            Self::Carried => 120,
        }
    }
}

/// Bytes of data of a channel's rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rings {
    /// Guest to host.
    pub to_host: u32,
    /// Host to guest.
    pub to_guest: u32,
}

/// What lies in a ledger's memory.
#[derive(Debug)]
pub enum Found<L> {
    /// Nothing yet: it is to be [made](Ledger::format).
    Blank(Ledger<L>),
    /// A ledger that a process has used.
    Used(Ledger<L>),
}

/// A ledger whose layout makes sense.
#[derive(Debug)]
pub struct Ledger<L> {
    pub(super) memory: L,
    pub(super) layout: Layout,
}

impl<L: LedgerMemory> Ledger<L> {
    /// Looks at a ledger without changing it.
    pub fn open(memory: L, rings: Rings) -> Result<Found<L>, LedgerError> {
        let Some(layout) = Layout::load(&memory)? else {
            let layout = Layout::filling(memory.len(), rings.to_host, rings.to_guest)?;
            let ledger = Ledger { memory, layout };
            // A process may have died while it made the ledger, which comes before it uses any slot.
            let untouched = (0..layout.slots).all(|slot| ledger.memory.load(layout.spine(slot)) == 0);
            return if untouched { Ok(Found::Blank(ledger)) } else { Err(LedgerError::NotALedger) };
        };
        let found = Rings { to_host: layout.to_host, to_guest: layout.to_guest };
        if found != rings {
            return Err(LedgerError::OtherRings { expected: rings, found });
        }
        Ok(Found::Used(Ledger { memory, layout }))
    }

    /// Makes a blank ledger one with nothing in it, whose rings stand at these indices. `due` is called before the first
    /// store by which it is more than blank.
    pub fn format(&self, read: u32, write: u32, due: impl FnOnce()) {
        self.set(Word::Epoch, 1);
        self.set_position(Word::ReadBase, u64::from(read));
        self.set_position(Word::WriteBase, u64::from(write));
        self.set(Word::StateGeneration, 0);
        for word in [Word::Suspect, Word::Crash, Word::Doubtful, Word::Carried] {
            self.set_plain(word, 0);
        }
        due();
        self.layout.store(&self.memory);
    }

    /// A blank ledger that is to have room for loans.
    #[must_use]
    pub fn with_loans(mut self) -> Self {
        self.layout = self.layout.with_loans();
        self
    }

    /// Number of slots.
    #[inline]
    pub fn slots(&self) -> u32 {
        self.layout.slots
    }

    /// A sealed word of the header.
    pub fn get(&self, word: Word) -> Result<u64, LedgerError> {
        seal::unseal(self.get_plain(word)).ok_or(LedgerError::Word(word))
    }

    /// Writes a sealed word of the header.
    #[inline]
    pub fn set(&self, word: Word, value: u64) {
        self.memory.store(word.offset(), seal::seal(value));
    }

    /// A position in a ring, in bytes.
    pub fn position(&self, word: Word) -> Result<u64, LedgerError> {
        Ok(self.get(word)? * 8)
    }

    /// Writes a position in a ring, a multiple of 8 bytes, less than 2^55: a million requests of 300 bytes a second get
    /// there in three years. A ledger is as old as its channel has been open.
    #[inline]
    pub fn set_position(&self, word: Word, bytes: u64) {
        self.set(word, bytes / 8);
    }

    /// A word of the header as it is.
    #[inline]
    pub fn get_plain(&self, word: Word) -> u64 {
        self.memory.load(word.offset())
    }

    /// Writes a word of the header as it is.
    #[inline]
    pub fn set_plain(&self, word: Word, value: u64) {
        self.memory.store(word.offset(), value);
    }
}
