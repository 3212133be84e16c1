//! The device's state, twice: one half is the state, the other is where the next one is written.

use super::{LONGEST_STATE, Ledger, LedgerError, LedgerMemory, Word, layout, seal};

/// Words ahead of a state, by their offset in its half.
const GENERATION: usize = 0;
const LEN: usize = 8;
const CHECKSUM: usize = 16;

impl<L: LedgerMemory> Ledger<L> {
    /// Writes a state into the half that its generation names; it counts once [`Word::StateGeneration`], or a
    /// completion that the guest has, says so. At most [`LONGEST_STATE`] bytes.
    pub fn write_state(&self, generation: u64, state: &[u8]) {
        let at = self.layout.state(generation);
        self.memory.store(at + GENERATION, seal::seal(generation));
        self.memory.store(at + LEN, seal::seal(state.len() as u64));
        self.memory.store(at + CHECKSUM, seal::of_bytes(generation, state));
        self.memory.write(at + layout::STATE, state);
    }

    /// The state of this generation; `None` for generation 0.
    pub fn read_state(&self, generation: u64) -> Result<Option<Vec<u8>>, LedgerError> {
        if generation == 0 {
            return Ok(None);
        }
        let at = self.layout.state(generation);
        let word = |offset| seal::unseal(self.memory.load(at + offset)).ok_or(LedgerError::State);
        let (found, len) = (word(GENERATION)?, word(LEN)?);
        if found != generation || len > LONGEST_STATE as u64 {
            return Err(LedgerError::State);
        }
        let mut state = vec![0; len as usize];
        self.memory.read(at + layout::STATE, &mut state);
        let sound = self.memory.load(at + CHECKSUM) == seal::of_bytes(generation, &state);
        if sound { Ok(Some(state)) } else { Err(LedgerError::State) }
    }

    /// The generation of the device's state.
    pub fn state_generation(&self) -> Result<u64, LedgerError> {
        self.get(Word::StateGeneration)
    }
}
