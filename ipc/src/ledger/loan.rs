//! A loan: something that the guest has for a while, and gives back.
//!
//! One word says it all: nothing else has to be known of a loan to go on with it.

use super::seal::{seal, unseal};
use super::{Ledger, LedgerError, LedgerMemory};

/// Bits of a word that say what the rest means; above them is a position, in units of 8 bytes. That leaves it 50 bits: at a gigabyte
/// a second through the ring (a loan's packet has some hundred bytes, and stands for as many thousands) for three months.
const PHASE_BITS: u32 = 2;

const FREE: u64 = 1;
const GIVEN: u64 = 2;
const RETURNING: u64 = 3;

/// What a loan's word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loan {
    /// Nobody has it.
    Free,
    /// The guest has it, if its packet is published as written.
    Given {
        /// Position in the host-to-guest ring behind the packet, counted without end, in bytes.
        visible_at: u64,
    },
    /// The guest has given it back, if that is published as read.
    Returning {
        /// Position in the guest-to-host ring behind the packet that gives it back.
        read_after: u64,
    },
}

impl<L: LedgerMemory> Ledger<L> {
    /// How many loans there is room for.
    #[inline]
    pub fn loans(&self) -> u32 {
        self.layout.loans
    }

    /// What a loan's word says.
    pub fn loan(&self, loan: u32) -> Result<Loan, LedgerError> {
        let word = self.memory.load(self.layout.loan(loan));
        if word == 0 {
            return Ok(Loan::Free);
        }
        let value = unseal(word).ok_or(LedgerError::Loan(loan))?;
        let position = (value >> PHASE_BITS) * 8;
        match value & ((1 << PHASE_BITS) - 1) {
            FREE => Ok(Loan::Free),
            GIVEN => Ok(Loan::Given { visible_at: position }),
            RETURNING => Ok(Loan::Returning { read_after: position }),
            _ => Err(LedgerError::Loan(loan)),
        }
    }

    /// Writes a loan's word: the one store that decides.
    #[inline]
    pub fn set_loan(&self, loan: u32, says: Loan) {
        let (phase, position) = match says {
            Loan::Free => (FREE, 0),
            Loan::Given { visible_at } => (GIVEN, visible_at),
            Loan::Returning { read_after } => (RETURNING, read_after),
        };
        self.memory.store(self.layout.loan(loan), seal((position / 8) << PHASE_BITS | phase));
    }
}
