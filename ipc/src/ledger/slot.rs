//! A slot: one request in flight.
//!
//! Its state word says what it is worth; the other words of the spine count only together with a state that says so.

use vmbus::packet::PacketHeader;

use super::seal::{self, seal, unseal};
use super::{LONGEST_OUTCOME, LONGEST_PACKET, Ledger, LedgerError, LedgerMemory, layout};

/// Words of a spine, by their offset in it.
const STATE: usize = 0;
const TRANSACTION: usize = 8;
const READ_AFTER: usize = 16;
const VISIBLE_AT: usize = 24;
const GENERATION: usize = 32;
const SHAPE: usize = 40;
const PACKET_CHECKSUM: usize = 48;
const CHECKSUM: usize = 56;

/// Words ahead of an outcome, by their offset in its area.
const ATTEMPTS: usize = 0;
const OUTCOME_OF: usize = 8;
const OUTCOME_LEN: usize = 16;
const OUTCOME_CHECKSUM: usize = 24;
const BEGUN: usize = 32;

/// Bit of the shape word, above the packet's length: an answer is wanted.
const WANTS_COMPLETION: u64 = 1 << 16;
/// Where the epoch begins in the shape word.
const EPOCH_SHIFT: u32 = 32;

/// Bits of a state word that are the phase; above them is the sequence number, which so has 49.
const PHASE_BITS: u32 = 3;

/// What a slot stands for. None of them is 0: that is a slot that was never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing.
    Free = 1,
    /// A request that the guest has not been answered, if its packet is published as read.
    Taken = 2,
    /// A request whose completion is in the ring: the guest has it if it is published as written.
    Completing = 3,
    /// A request that has ended without a completion, though not without a change of state.
    Ended = 4,
}

/// A slot's state word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// What it stands for.
    pub phase: Phase,
    /// Which request it stands for, or stood for last.
    pub sequence: u64,
}

/// What a slot says of a request besides its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spine {
    /// The request's own name: packets of the channel, counted.
    pub sequence: u64,
    /// The guest's name for it, which is none: guests use them again at once.
    pub transaction_id: u64,
    /// Whether the guest asked for an answer.
    pub wants_completion: bool,
    /// Position in the guest-to-host ring behind the packet, counted without end, in bytes.
    pub read_after: u64,
    /// The ledger's epoch in which it was taken.
    pub epoch: u32,
    /// Bytes of its packet, at most [`LONGEST_PACKET`].
    len: u32,
    packet_checksum: u64,
}

/// What a slot says of its completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completing {
    /// Position in the host-to-guest ring behind the completion, counted without end, in bytes.
    pub visible_at: u64,
    /// Generation of the state that comes with it; 0 if none does.
    pub generation: u64,
}

/// How often a request has killed a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempts {
    /// What is counted for: a sequence number or a position, of which the lower bits have to do.
    name: u64,
    /// How often, up to [`Attempts::MOST`].
    pub count: u32,
    /// Epoch of the last one counted, its lower bits, so that none is counted twice.
    epoch: u64,
}

impl Attempts {
    /// It is counted no further.
    pub const MOST: u32 = 7;
    const NAME: u64 = (1 << 36) - 1;
    const EPOCH: u64 = (1 << 13) - 1;

    /// None so far.
    pub fn none(name: u64) -> Attempts {
        Attempts { name: name & Attempts::NAME, count: 0, epoch: 0 }
    }

    /// What `word` says of `name`: none, if it speaks of another or makes no sense.
    pub fn of(name: u64, word: u64) -> Attempts {
        let Some(value) = unseal(word) else { return Attempts::none(name) };
        let (found, count, epoch) =
            (value >> 16, (value >> 13) as u32 & Attempts::MOST, value & Attempts::EPOCH);
        if found == name & Attempts::NAME {
            Attempts { name: found, count, epoch }
        } else {
            Attempts::none(name)
        }
    }

    /// One more, in this epoch; the same again if that one is counted already.
    #[must_use]
    pub fn another(self, epoch: u64) -> Attempts {
        let epoch = epoch & Attempts::EPOCH;
        if self.count > 0 && self.epoch == epoch {
            return self;
        }
        Attempts { count: (self.count + 1).min(Attempts::MOST), epoch, ..self }
    }

    /// The same, for the same packet under another name.
    #[must_use]
    pub fn under(self, name: u64) -> Attempts {
        Attempts { name: name & Attempts::NAME, ..self }
    }

    /// The word that says it.
    pub fn word(self) -> u64 {
        seal(self.name << 16 | u64::from(self.count) << 13 | self.epoch)
    }
}

/// What a slot remembers of a request that must not run twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: it may run.
    None,
    /// Its completion's payload.
    Is(Vec<u8>),
    /// It had one, which was overwritten.
    Lost,
}

impl<L: LedgerMemory> Ledger<L> {
    /// A slot's state; `None` if it was never used.
    pub fn state(&self, slot: u32) -> Result<Option<State>, LedgerError> {
        let word = self.memory.load(self.layout.spine(slot) + STATE);
        if word == 0 {
            return Ok(None);
        }
        let value = unseal(word).ok_or(LedgerError::Slot(slot))?;
        let phase = match value & ((1 << PHASE_BITS) - 1) {
            1 => Phase::Free,
            2 => Phase::Taken,
            3 => Phase::Completing,
            4 => Phase::Ended,
            _ => return Err(LedgerError::Slot(slot)),
        };
        Ok(Some(State { phase, sequence: value >> PHASE_BITS }))
    }

    /// Writes a slot's state: the store that decides.
    #[inline]
    pub fn set_state(&self, slot: u32, phase: Phase, sequence: u64) {
        let word = seal(sequence << PHASE_BITS | phase as u64);
        self.memory.store(self.layout.spine(slot) + STATE, word);
    }

    /// Writes a request into a free slot, all but its state. At most [`LONGEST_PACKET`] bytes of packet.
    #[inline]
    pub fn write_request(&self, slot: u32, spine: &Spine, packet: &[u8]) {
        self.memory.write(self.layout.packet(slot), packet);
        let shape = spine.shape();
        // All that is behind the state in its cache line. What would be said of a completion is not looked at before there is one.
        let words = [
            spine.transaction_id,
            spine.read_after,
            0,
            0,
            shape,
            spine.packet_checksum,
            spine.checksum(slot, shape),
        ];
        self.memory.store_words(self.layout.spine(slot) + TRANSACTION, &words);
    }

    /// What a slot says of the request that its state names.
    pub fn spine(&self, slot: u32, sequence: u64) -> Result<Spine, LedgerError> {
        let at = self.layout.spine(slot);
        let shape = self.memory.load(at + SHAPE);
        let spine = Spine {
            sequence,
            transaction_id: self.memory.load(at + TRANSACTION),
            wants_completion: shape & WANTS_COMPLETION != 0,
            read_after: self.memory.load(at + READ_AFTER),
            epoch: (shape >> EPOCH_SHIFT) as u32,
            len: shape as u32 & (WANTS_COMPLETION as u32 - 1),
            packet_checksum: self.memory.load(at + PACKET_CHECKSUM),
        };
        let sound = self.memory.load(at + CHECKSUM) == spine.checksum(slot, shape);
        if sound && spine.len <= LONGEST_PACKET { Ok(spine) } else { Err(LedgerError::Slot(slot)) }
    }

    /// Copies a slot's packet into `scratch`; false if it was overwritten.
    pub fn packet(&self, slot: u32, spine: &Spine, scratch: &mut Vec<u8>) -> bool {
        scratch.clear();
        scratch.resize(spine.len.min(LONGEST_PACKET) as usize, 0);
        self.memory.read(self.layout.packet(slot), scratch);
        seal::of_bytes(spine.sequence, scratch) == spine.packet_checksum
    }

    /// Notes where a request's completion lies, which counts once its state says so.
    #[inline]
    pub fn write_completing(&self, slot: u32, completing: Completing) {
        let at = self.layout.spine(slot);
        self.memory
            .store_words(at + VISIBLE_AT, &[seal(completing.visible_at / 8), seal(completing.generation)]);
    }

    /// Where a request's completion lies.
    pub fn completing(&self, slot: u32) -> Result<Completing, LedgerError> {
        let at = self.layout.spine(slot);
        let word = |offset| unseal(self.memory.load(at + offset)).ok_or(LedgerError::Slot(slot));
        Ok(Completing { visible_at: word(VISIBLE_AT)? * 8, generation: word(GENERATION)? })
    }

    /// Attempts counted for the request in a slot.
    pub fn attempts(&self, slot: u32, sequence: u64) -> Attempts {
        Attempts::of(sequence, self.memory.load(self.layout.outcome(slot) + ATTEMPTS))
    }

    /// Notes how often the request in a slot was attempted.
    pub fn set_attempts(&self, slot: u32, attempts: Attempts) {
        self.memory.store(self.layout.outcome(slot) + ATTEMPTS, attempts.word());
    }

    /// Writes what a request's completion will say, all but that it counts. At most [`LONGEST_OUTCOME`] bytes.
    pub fn write_outcome(&self, slot: u32, sequence: u64, payload: &[u8]) {
        let at = self.layout.outcome(slot);
        self.memory.write(at + layout::OUTCOME, payload);
        self.memory.store(at + OUTCOME_LEN, seal(payload.len() as u64));
        self.memory.store(at + OUTCOME_CHECKSUM, seal::of_bytes(sequence, payload));
    }

    /// The store by which a written outcome counts.
    pub fn set_outcome(&self, slot: u32, sequence: u64) {
        self.memory.store(self.layout.outcome(slot) + OUTCOME_OF, seal(sequence));
    }

    /// Notes that the request in a slot has begun to have its effect.
    pub fn set_begun(&self, slot: u32, sequence: u64) {
        self.memory.store(self.layout.outcome(slot) + BEGUN, seal(sequence));
    }

    /// Whether the request in a slot has begun to have its effect.
    pub fn begun(&self, slot: u32, sequence: u64) -> bool {
        self.memory.load(self.layout.outcome(slot) + BEGUN) == seal(sequence)
    }

    /// What is remembered of the request in a slot.
    pub fn outcome(&self, slot: u32, sequence: u64) -> Outcome {
        let at = self.layout.outcome(slot);
        if self.memory.load(at + OUTCOME_OF) != seal(sequence) {
            return Outcome::None;
        }
        let len = unseal(self.memory.load(at + OUTCOME_LEN)).filter(|&len| len <= LONGEST_OUTCOME as u64);
        let Some(len) = len else { return Outcome::Lost };
        let mut payload = vec![0; len as usize];
        self.memory.read(at + layout::OUTCOME, &mut payload);
        let sound = self.memory.load(at + OUTCOME_CHECKSUM) == seal::of_bytes(sequence, &payload);
        if sound { Outcome::Is(payload) } else { Outcome::Lost }
    }
}

impl Spine {
    /// The spine of a packet with this header, which ends at `read_after`.
    #[inline]
    pub fn new(sequence: u64, header: &PacketHeader, packet: &[u8], read_after: u64, epoch: u64) -> Spine {
        Spine {
            sequence,
            transaction_id: header.transaction_id,
            wants_completion: header.completion_requested(),
            read_after,
            epoch: epoch as u32,
            len: packet.len() as u32,
            packet_checksum: seal::of_bytes(sequence, packet),
        }
    }

    /// The spine of what a device says by itself, with a state that changes by it: of no packet of the guest's, and void for as long as the guest
    /// cannot see what is said.
    pub fn notice(sequence: u64, epoch: u64) -> Spine {
        Spine {
            sequence,
            transaction_id: 0,
            wants_completion: false,
            // No ring ever gets there.
            read_after: !7,
            epoch: epoch as u32,
            len: 0,
            packet_checksum: seal::of_bytes(sequence, &[]),
        }
    }

    #[inline]
    fn shape(&self) -> u64 {
        let wants = if self.wants_completion { WANTS_COMPLETION } else { 0 };
        u64::from(self.len) | wants | u64::from(self.epoch) << EPOCH_SHIFT
    }

    /// Over everything that is written when the request is taken, and the slot's number.
    #[inline]
    fn checksum(&self, slot: u32, shape: u64) -> u64 {
        seal::of_words([
            u64::from(slot),
            self.sequence,
            self.transaction_id,
            self.read_after,
            shape,
            self.packet_checksum,
        ])
    }
}
