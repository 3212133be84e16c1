//! What a channel writes into its ledger, and when.
//!
//! The steps' order among themselves and with the rings is the caller's ([`super::Channel`]); here is what one step
//! stores, in which order.

use std::collections::VecDeque;

use ipc::ledger::{Attempts, Completing, LONGEST_OUTCOME, Ledger, LedgerMemory, Outcome, Phase, Spine, Word};
use vmbus::packet::PacketHeader;

use super::{KillPoint, Rerun, Ticket};

/// A request that kills this many processes is not tried again. Two could be chance (a device that was unplugged, a
/// bug elsewhere); a third time costs the guest another pause of milliseconds and settles it.
pub const MAX_ATTEMPTS: u32 = 3;

/// A position in a ring, counted without end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Track {
    len: u32,
    index: u32,
    /// Always `index` plus a multiple of `len`, unless the ledger said otherwise.
    pub at: u64,
}

impl Track {
    /// The position that a ring's index means, given one that it had less than a round ago.
    pub fn resume(len: u32, base: u64, index: u32) -> Track {
        let mut track = Track { len, index: (base % u64::from(len)) as u32, at: base };
        track.follow(index);
        track
    }

    /// Follows the ring's index by less than a round; the position it means.
    #[inline]
    pub fn follow(&mut self, index: u32) -> u64 {
        let distance = if index >= self.index { index - self.index } else { index + (self.len - self.index) };
        self.index = index;
        self.at += u64::from(distance);
        self.at
    }
}

/// A slot and the request in it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    slot: u32,
    sequence: u64,
}

impl From<&Ticket> for Entry {
    fn from(ticket: &Ticket) -> Entry {
        Entry { slot: ticket.slot, sequence: ticket.sequence }
    }
}

/// A request of a predecessor's that is to be run again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Again {
    pub slot: u32,
    pub spine: Spine,
    pub attempts: u32,
    /// It had begun to have its effect.
    pub begun: bool,
}

/// Whether a predecessor's requests run one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Careful {
    No,
    /// The next one may run.
    Ready,
    /// This one runs, the suspect until its end is published: what it makes of the process may come to light only then.
    Running(u64),
}

/// A ledger in use.
#[derive(Debug)]
pub(super) struct Book<L> {
    pub ledger: Ledger<L>,
    pub epoch: u64,
    /// Free slots, the one used last on top: its memory is warm.
    pub free: Vec<u32>,
    pub read: Track,
    pub write: Track,
    /// Requests whose completion is in the ring and not published.
    completing: Vec<Entry>,
    /// Generation of the device's state.
    pub generation: u64,
    /// The generation that comes with a completion in the ring that is not published. There is at most one: its half is
    /// the only one to spare.
    coming: Option<u64>,
    pub reruns: VecDeque<Again>,
    pub careful: Careful,
    /// The header's word of the attempts of a packet that is in the ring again.
    pub carried: Option<u64>,
    /// That packet has a slot, and its attempts are in it: the header's word is void once the packet is published as read.
    carried_over: bool,
}

impl<L: LedgerMemory> Book<L> {
    pub fn new(ledger: Ledger<L>, read: Track, write: Track) -> Book<L> {
        let slots = ledger.slots();
        Book {
            ledger,
            epoch: 1,
            free: (0..slots).rev().collect(),
            read,
            write,
            completing: Vec::with_capacity(slots as usize),
            generation: 0,
            coming: None,
            reruns: VecDeque::new(),
            careful: Careful::No,
            carried: None,
            carried_over: false,
        }
    }

    /// Records a packet (and what was fetched for it, behind it) that ends at the ring's index `index`: its slot, and how often it was attempted. `None` if there is
    /// no slot.
    #[inline]
    pub fn take(
        &mut self,
        header: &PacketHeader,
        packet: &[u8],
        sequence: u64,
        index: u32,
    ) -> Option<(u32, u32)> {
        let slot = self.free.pop()?;
        let read_after = self.read.follow(index);
        let spine = Spine::new(sequence, header, packet, read_after, self.epoch);
        self.ledger.write_request(slot, &spine, packet);
        let attempts = self.carried.map_or(0, |word| self.carry(word, read_after, slot, sequence));
        KillPoint::TakeDue.reached();
        self.ledger.set_state(slot, Phase::Taken, sequence);
        KillPoint::Taken.reached();
        Some((slot, attempts))
    }

    /// Gives a packet that is read again the attempts that were counted for it.
    #[cold]
    fn carry(&mut self, word: u64, read_after: u64, slot: u32, sequence: u64) -> u32 {
        let attempts = Attempts::of(read_after / 8, word);
        if attempts.count > 0 {
            self.ledger.set_attempts(slot, attempts.under(sequence));
            self.carried = None;
            self.carried_over = true;
        }
        attempts.count
    }

    /// The read index is published, all packets taken included.
    #[inline]
    pub fn read_published(&mut self) {
        self.ledger.set_position(Word::ReadBase, self.read.at);
        KillPoint::ReadNoted.reached();
        // Not before: a packet that is in the ring still would lose them with its slot.
        if std::mem::take(&mut self.carried_over) {
            self.ledger.set_plain(Word::Carried, 0);
        }
    }

    /// Whether a state has been written that is not the device's yet.
    pub fn has_state_coming(&self) -> bool {
        self.coming.is_some()
    }

    /// A request's completion is in the ring, up to the index `index`.
    #[inline]
    pub fn completing(&mut self, ticket: &Ticket, index: u32, state: Option<&[u8]>) {
        KillPoint::CompletionWritten.reached();
        let generation = state.map_or(0, |state| self.write_state(state));
        let visible_at = self.write.follow(index);
        self.ledger.write_completing(ticket.slot, Completing { visible_at, generation });
        self.ledger.set_state(ticket.slot, Phase::Completing, ticket.sequence);
        KillPoint::Completing.reached();
        self.completing.push(ticket.into());
    }

    fn write_state(&mut self, state: &[u8]) -> u64 {
        debug_assert!(self.coming.is_none(), "the other half is in use");
        let generation = self.generation + 1;
        self.ledger.write_state(generation, state);
        KillPoint::StateWritten.reached();
        self.coming = Some(generation);
        generation
    }

    /// A request has ended without a completion. With a state, its packet is published as read; without one it need not
    /// be: a packet in the ring and no slot for it is a packet that has not been taken.
    pub fn ended(&mut self, ticket: &Ticket, state: Option<&[u8]>) {
        if let Some(state) = state {
            let generation = self.write_state(state);
            self.ledger.write_completing(ticket.slot, Completing { visible_at: 0, generation });
            self.ledger.set_state(ticket.slot, Phase::Ended, ticket.sequence);
            KillPoint::Ended.reached();
            self.commit_state();
        }
        self.release(ticket.into());
    }

    /// The write index is published, all completions in the ring included, and so is the read index.
    #[inline]
    pub fn write_published(&mut self) {
        self.ledger.set_position(Word::WriteBase, self.write.at);
        KillPoint::WriteNoted.reached();
        self.commit_state();
        while let Some(entry) = self.completing.pop() {
            self.release(entry);
        }
    }

    /// A packet of the device's own is in the ring, up to the index `index`, and a state comes with it. There is a free slot, and a spare half.
    pub fn notice(&mut self, sequence: u64, index: u32, state: &[u8]) {
        let Some(slot) = self.free.pop() else { return debug_assert!(false, "a slot is free") };
        self.ledger.write_request(slot, &Spine::notice(sequence, self.epoch), &[]);
        let ticket = Ticket { transaction_id: 0, wants_completion: false, sequence, slot, begun: false };
        self.completing(&ticket, index, Some(state));
    }

    /// Makes a state the device's without an answer. Nothing that brings one may be in the ring unpublished.
    pub fn save_state(&mut self, state: &[u8]) {
        self.write_state(state);
        self.commit_state();
    }

    fn commit_state(&mut self) {
        if let Some(generation) = self.coming.take() {
            self.ledger.set(Word::StateGeneration, generation);
            self.generation = generation;
            KillPoint::StateNoted.reached();
        }
    }

    #[inline]
    fn release(&mut self, entry: Entry) {
        self.ledger.set_state(entry.slot, Phase::Free, entry.sequence);
        KillPoint::Freed.reached();
        self.free.push(entry.slot);
        self.survived(entry.sequence);
    }

    /// What is in the ring and not published never will be.
    pub fn abandon_completing(&mut self) {
        if let Careful::Running(watched) = self.careful
            && self.completing.iter().any(|entry| entry.sequence == watched)
        {
            self.survived(watched);
        }
    }

    /// Notes what a request's completion will say; false if it is too long.
    pub fn outcome(&mut self, ticket: &Ticket, payload: &[u8]) -> bool {
        if payload.len() > LONGEST_OUTCOME {
            return false;
        }
        self.ledger.write_outcome(ticket.slot, ticket.sequence, payload);
        KillPoint::OutcomeDue.reached();
        self.ledger.set_outcome(ticket.slot, ticket.sequence);
        KillPoint::OutcomeNoted.reached();
        true
    }

    /// Notes that a request has begun to have its effect.
    pub fn begin(&mut self, ticket: &Ticket) {
        self.ledger.set_begun(ticket.slot, ticket.sequence);
        KillPoint::Begun.reached();
    }

    /// A request is in the device's hands.
    #[inline]
    pub fn enter(&mut self, sequence: u64) {
        self.ledger.set(Word::Suspect, sequence + 1);
    }

    /// No request is in the device's hands, save one that is watched until its end is published.
    #[inline]
    pub fn leave(&mut self) {
        if !matches!(self.careful, Careful::Running(_)) {
            self.ledger.set_plain(Word::Suspect, 0);
        }
    }

    /// A request has ended: the guest has its answer, or will never have one.
    #[inline]
    pub fn survived(&mut self, sequence: u64) {
        if self.careful == Careful::Running(sequence) {
            self.ledger.set_plain(Word::Suspect, 0);
            self.careful = Careful::Ready;
            self.calm_down();
        }
    }

    /// Ends careful recovery if everything has survived it.
    pub fn calm_down(&mut self) {
        if self.careful == Careful::Ready && self.reruns.is_empty() {
            self.ledger.set_plain(Word::Doubtful, 0);
            self.careful = Careful::No;
        }
    }

    /// Whether requests of a predecessor's are left, or one is watched.
    #[inline]
    pub fn is_recovering(&self) -> bool {
        !self.reruns.is_empty() || self.careful != Careful::No
    }

    /// Whether the next request to run again had begun to have its effect.
    #[inline]
    pub fn has_begun(&self) -> bool {
        self.reruns.front().is_some_and(|again| again.begun)
    }

    /// Whether there is a request to run again, or else a slot for a new one.
    #[inline]
    pub fn may_take(&self) -> bool {
        match self.careful {
            Careful::Running(_) => false,
            _ => !self.reruns.is_empty() || !self.free.is_empty(),
        }
    }

    /// The next request to run again.
    pub fn rerun(&mut self, scratch: &mut Vec<u8>) -> Rerun {
        if let Careful::Running(_) = self.careful {
            return Rerun::Wait;
        }
        let Some(Again { slot, spine, attempts, begun }) = self.reruns.pop_front() else {
            return Rerun::None;
        };
        let ticket = Ticket {
            transaction_id: spine.transaction_id,
            wants_completion: spine.wants_completion,
            sequence: spine.sequence,
            slot,
            begun,
        };
        if self.careful == Careful::Ready {
            self.enter(spine.sequence);
            self.careful = Careful::Running(spine.sequence);
        }
        match self.ledger.outcome(slot, spine.sequence) {
            Outcome::Is(payload) => {
                *scratch = payload;
                return Rerun::Outcome(ticket);
            }
            Outcome::Lost => return Rerun::Unreadable(ticket),
            Outcome::None => {}
        }
        let whole = self.ledger.packet(slot, &spine, scratch);
        match PacketHeader::of_prefix(scratch).filter(|_| whole) {
            None => Rerun::Unreadable(ticket),
            Some(header) if attempts >= MAX_ATTEMPTS => Rerun::Reject(header, ticket, attempts),
            Some(header) => Rerun::Packet(header, ticket),
        }
    }
}
