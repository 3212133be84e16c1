//! Where things lie in a ledger.
//!
//! ```text
//! 0          header: what never changes, then words that do
//! 2048       a word for each loan, in ledgers of devices that have some
//! 4096       two halves of device state
//! 12288      spines of the slots, 64 bytes each
//! page       for each slot its packet (40 KiB) and its outcome (4 KiB)
//! ```
//!
//! Places and sizes are in the header, so that a later format can move things or give them more room.

use super::{LONGEST_PACKET, LedgerError, LedgerMemory, MAX_LOANS, MAX_SLOTS, seal};
use crate::shm::PAGE;

/// What a ledger begins with: "Bulkhead" in the order of the bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"Bulkhead");

/// Bytes of a slot's spine: a cache line.
pub const SPINE: usize = 64;

/// Bytes of a half of device state, its own header included.
pub const STATE_HALF: usize = PAGE;

/// Where the bytes of a state begin in its half.
pub const STATE: usize = 32;

/// Bytes of a slot's outcome, its own header included.
pub const OUTCOME_AREA: usize = PAGE;

/// Where the bytes of an outcome begin in its area.
pub const OUTCOME: usize = 64;

/// Where a new ledger's words of loans begin: in the header's page, so that a ledger with loans is no longer than one without.
const LOANS: usize = PAGE - MAX_LOANS as usize * 8;

/// Where the header's own words end.
const WORDS_END: u32 = 256;

/// Words that never change, by their place in the header.
const FIXED: [usize; 6] = [0, 8, 16, 24, 32, 40];
const FIXED_CHECKSUM: usize = 48;

/// Oldest reader that understands what this build writes.
const MIN_READER: u32 = 1;

/// The sizes and places that a header declares, checked: all of it lies in the memory, and nothing overlaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Number of slots, 1 to [`MAX_SLOTS`].
    pub slots: u32,
    /// From one slot's packet to the next one's, in bytes.
    pub stride: u32,
    /// Where the state begins.
    pub state_at: u32,
    /// Where the spines begin.
    pub spines_at: u32,
    /// Where the packets begin.
    pub packets_at: u32,
    /// Number of loans, 0 to [`MAX_LOANS`]. Ledgers that were made by builds without loans have none.
    pub loans: u32,
    /// Where the words of loans begin, a multiple of 64 less than 4 MiB; 0 if there are none.
    pub loans_at: u32,
    /// Bytes of data of the guest-to-host ring.
    pub to_host: u32,
    /// Bytes of data of the host-to-guest ring.
    pub to_guest: u32,
}

/// Bytes of a ledger with so many slots (1 to [`MAX_SLOTS`]; anything else is taken for the nearer of the two).
pub fn bytes(slots: u32) -> u64 {
    let layout = Layout::for_slots(slots.clamp(1, MAX_SLOTS), 0, 0);
    u64::from(layout.packets_at) + u64::from(layout.slots) * u64::from(layout.stride)
}

impl Layout {
    fn for_slots(slots: u32, to_host: u32, to_guest: u32) -> Layout {
        let spines_at = PAGE + 2 * STATE_HALF;
        let packets_at = (spines_at + slots as usize * SPINE).next_multiple_of(PAGE);
        let stride = LONGEST_PACKET as usize + OUTCOME_AREA;
        Layout {
            slots,
            stride: stride as u32,
            state_at: PAGE as u32,
            spines_at: spines_at as u32,
            packets_at: packets_at as u32,
            loans: 0,
            loans_at: 0,
            to_host,
            to_guest,
        }
    }

    /// The same with room for as many loans as there can be.
    #[must_use]
    pub fn with_loans(self) -> Layout {
        Layout { loans: MAX_LOANS, loans_at: LOANS as u32, ..self }
    }

    /// As many slots as there is room for in `len` bytes.
    pub fn filling(len: usize, to_host: u32, to_guest: u32) -> Result<Layout, LedgerError> {
        let one = u64::from(LONGEST_PACKET) + (OUTCOME_AREA + SPINE) as u64;
        let mut slots = (len as u64 / one).min(u64::from(MAX_SLOTS)) as u32;
        // Headers and rounding take less than one slot.
        if slots > 0 && bytes(slots) > len as u64 {
            slots -= 1;
        }
        if slots == 0 {
            return Err(LedgerError::TooSmall(len));
        }
        Ok(Layout::for_slots(slots, to_host, to_guest))
    }

    fn words(&self) -> [u64; 6] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        [
            MAGIC,
            pair(super::VERSION, MIN_READER),
            pair(self.slots, self.stride),
            pair(self.state_at, self.spines_at),
            // Builds without loans skip the upper half.
            pair(self.packets_at, self.loans | (self.loans_at / 64) << 16),
            pair(self.to_host, self.to_guest),
        ]
    }

    /// Writes the header's fixed part, its magic number last.
    pub fn store(&self, memory: &impl LedgerMemory) {
        let words = self.words();
        memory.store(FIXED_CHECKSUM, seal::of_words(words));
        for (offset, word) in FIXED.into_iter().zip(words).rev() {
            memory.store(offset, word);
        }
    }

    /// Reads the header's fixed part; `None` if it was never written.
    pub fn load(memory: &impl LedgerMemory) -> Result<Option<Layout>, LedgerError> {
        let len = memory.len();
        if len < PAGE {
            return Err(LedgerError::TooSmall(len));
        }
        let words = FIXED.map(|offset| memory.load(offset));
        match words[0] {
            0 => return Ok(None),
            MAGIC => {}
            _ => return Err(LedgerError::NotALedger),
        }
        let halves = |word: u64| (word as u32, (word >> 32) as u32);
        let sum_is_right = memory.load(FIXED_CHECKSUM) == seal::of_words(words);
        let (_version, needed) = halves(words[1]);
        if !sum_is_right {
            return Err(LedgerError::Layout);
        }
        if needed > super::VERSION {
            return Err(LedgerError::TooNew { needed });
        }
        let ((slots, stride), (state_at, spines_at)) = (halves(words[2]), halves(words[3]));
        let ((packets_at, lending), (to_host, to_guest)) = (halves(words[4]), halves(words[5]));
        let (loans, loans_at) = (lending & 0xffff, (lending >> 16) * 64);
        let layout =
            Layout { slots, stride, state_at, spines_at, packets_at, loans, loans_at, to_host, to_guest };
        if layout.is_sound(len as u64) { Ok(Some(layout)) } else { Err(LedgerError::Layout) }
    }

    fn is_sound(&self, len: u64) -> bool {
        let [state_at, spines_at, packets_at] =
            [self.state_at, self.spines_at, self.packets_at].map(u64::from);
        let (slots, stride) = (u64::from(self.slots), u64::from(self.stride));
        let aligned = [state_at, spines_at, packets_at, stride].iter().all(|place| place.is_multiple_of(64));
        let lends = self.loans > 0
            && self.loans <= MAX_LOANS
            && self.loans_at >= WORDS_END
            && u64::from(self.loans_at) + u64::from(self.loans) * 8 <= state_at;
        let lends_nothing = self.loans == 0 && self.loans_at == 0;
        aligned
            && (lends || lends_nothing)
            && (1..=u64::from(MAX_SLOTS)).contains(&slots)
            && stride >= u64::from(LONGEST_PACKET) + OUTCOME_AREA as u64
            && state_at >= PAGE as u64
            && spines_at >= state_at + 2 * STATE_HALF as u64
            && packets_at >= spines_at + slots * SPINE as u64
            && packets_at + slots * stride <= len
    }

    /// Where a slot's spine begins. Slots beyond the last are a bug of ours.
    #[inline]
    pub fn spine(&self, slot: u32) -> usize {
        debug_assert!(slot < self.slots);
        self.spines_at as usize + slot as usize * SPINE
    }

    /// Where a loan's word lies.
    #[inline]
    pub fn loan(&self, loan: u32) -> usize {
        debug_assert!(loan < self.loans);
        self.loans_at as usize + loan as usize * 8
    }

    /// Where a slot's packet begins.
    #[inline]
    pub fn packet(&self, slot: u32) -> usize {
        debug_assert!(slot < self.slots);
        self.packets_at as usize + slot as usize * self.stride as usize
    }

    /// Where a slot's outcome begins, its header first.
    pub fn outcome(&self, slot: u32) -> usize {
        self.packet(slot) + LONGEST_PACKET as usize
    }

    /// Where the half of the state with this generation begins.
    pub fn state(&self, generation: u64) -> usize {
        self.state_at as usize + (generation % 2) as usize * STATE_HALF
    }
}
