//! The order of steps on a channel: how a packet is consumed and how a completion becomes visible.
//!
//! This is the one place that decides it, for any memory under the rings, with no descriptor and no clock, so
//! that a model checker can run it. The order is the design's:
//!
//! 1. [`Channel::take`] reads a packet into private memory. Nothing is published.
//! 2. [`Channel::publish_taken`] publishes the read index of all packets taken so far.
//! 3. [`Channel::complete`] writes a completion beyond the write index. Nothing is published.
//! 4. [`Channel::publish_completions`] publishes the write index of all completions so far, never before
//!    step 2 has been done for their requests: a completion that the guest sees whose request still lay in the
//!    ring would be a request done twice by a successor.
//!
//! The ledger is written along the way, so that a successor knows of each request how far it came:
//!
//! * In step 1 the packet goes into a slot, and the slot's state says so: *taken*. Until step 2 it is void, since the
//!   packet is in the ring still.
//! * Behind step 2 the ledger's own position follows the read index.
//! * In step 3, with the completion in the ring, a new device state goes into its spare half, and the slot says where the
//!   completion ends: *completing*. Until step 4 it is worth no more than *taken*.
//! * Behind step 4 the ledger's position follows the write index, the new state becomes the device's, and the slots
//!   are freed.
//!
//! A request can be answered by packets of the device's own as well as by a completion ([`Channel::reply`]): the steps are the same.
//! What a device lends to its guest goes the same ways ([`Channel::lend`] is a kind of step 3, and its return one of step 1).
//!
//! Each of steps 2 and 4 is one store, a ring's index, and decides for all its requests at once; what the ledger says is
//! compared with that index. [`Channel::adopt`] does it, in the `recover` module.

mod book;
mod kill;
mod loans;
mod notices;
mod recover;

use std::collections::VecDeque;

use ipc::ledger::{LONGEST_STATE, LedgerMapping, LedgerMemory, MAX_LOANS, Rings};
use vmbus::packet::{Outgoing, PacketHeader, PacketType};
use vmbus::ring::{PushError, RingError, RingMemory, RingReader, RingWriter};

use book::Book;
pub use book::MAX_ATTEMPTS;
pub use ipc::ledger::LONGEST_PACKET;
pub use kill::{KillPoint, arm_kill_point};
pub use loans::{LendError, Returned};
pub use recover::{AdoptError, Recovery};

/// The slot of a request on a channel without a ledger.
pub const NO_SLOT: u32 = u32::MAX;

/// Bytes that are kept of what a guest says when it gives a loan back.
pub const RETURN_PAYLOAD: usize = 64;

/// What is kept of a packet until it is completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The guest's name for the request: payload, no key.
    pub transaction_id: u64,
    /// Whether the guest asked for an answer.
    pub wants_completion: bool,
    /// Counts the packets of the channel from 0, over all processes that serve it: the request's own name. Numbers may
    /// be left out.
    pub sequence: u64,
    /// Its slot in the ledger, or [`NO_SLOT`].
    pub slot: u32,
    /// A predecessor has noted that it has begun to have its effect.
    pub begun: bool,
}

/// What [`Channel::take`] found.
#[derive(Debug)]
pub enum Taken {
    /// A packet.
    Packet(PacketHeader, Ticket),
    /// A packet that has killed so many processes (the number) that it is to be answered without being tried.
    Reject(PacketHeader, Ticket, u32),
    /// A loan has come back, or nothing that was one: see [`Channel::take_returned`].
    Returned,
    /// The ring is empty.
    Empty,
    /// The device has enough to do, or the guest does not collect its completions, or completions have to be published
    /// first, or requests have to be [run again](Channel::next_rerun).
    Wait,
    /// The guest has broken the ring.
    Failed(RingError),
}

/// What [`Channel::next_rerun`] found.
#[derive(Debug)]
pub enum Rerun {
    /// A packet, as [`Channel::take`] would have found it.
    Packet(PacketHeader, Ticket),
    /// A packet that has killed so many processes (the number) that it is to be answered without being tried.
    Reject(PacketHeader, Ticket, u32),
    /// A request whose packet or outcome was overwritten: only the ticket is left to answer it with.
    Unreadable(Ticket),
    /// A request that has been carried out: what is in the scratch buffer completes it.
    Outcome(Ticket),
    /// Not now: something has to complete, or to be published, first.
    Wait,
    /// No more.
    None,
}

/// What ends a request.
#[derive(Clone, Copy, Debug)]
struct Answer<'a> {
    /// Of the completion, if the guest has asked for one.
    payload: &'a [u8],
    /// In-band packets behind it.
    packets: &'a [&'a [u8]],
    /// The device's from then on.
    state: Option<&'a [u8]>,
}

/// An answer for which the ring had no room. Its request's slot still says *taken*.
#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    payload: Box<[u8]>,
    packets: Box<[Box<[u8]>]>,
    state: Option<Box<[u8]>>,
}

impl Waiting {
    fn new(ticket: Ticket, answer: &Answer<'_>) -> Waiting {
        Waiting {
            ticket,
            payload: answer.payload.into(),
            packets: answer.packets.iter().map(|packet| Box::from(*packet)).collect(),
            state: answer.state.map(Box::from),
        }
    }
}

/// The state, unless it is too long. The guest waits for the answer, whatever becomes of the state.
fn fitting(state: Option<&[u8]>) -> Option<&[u8]> {
    let fits = state.is_none_or(|state| state.len() <= LONGEST_STATE);
    if !fits {
        tracing::error!(bytes = state.map_or(0, <[u8]>::len), "a device state is too long and is not kept");
    }
    state.filter(|_| fits)
}

/// Both rings of a channel, its ledger, and the requests between them.
#[derive(Debug)]
pub struct Channel<M, L = LedgerMapping> {
    reader: RingReader<M>,
    writer: RingWriter<M>,
    book: Option<Book<L>>,
    /// Most requests between `take` and their completion's place in the ring.
    limit: u32,
    /// Requests taken whose completion is not in the ring yet. Never more than `limit`, so it bounds
    /// `backlog` too.
    outstanding: u32,
    backlog: VecDeque<Waiting>,
    /// The pending-send-size that the guest sees.
    pending: u32,
    sequence: u64,
    owes_signal: bool,
    /// The guest may sleep on a signal that has died with a predecessor.
    owes_wake: bool,
    loans: loans::Loans,
}

impl<M: RingMemory, L: LedgerMemory> Channel<M, L> {
    /// Takes up a channel without a ledger, wherever its indices stand. `limit` is at least 1.
    ///
    /// Nothing says whether a predecessor has served it, whose wake-ups have died with him, so the guest is owed a signal.
    pub fn new(to_host: M, to_guest: M, limit: u32) -> Result<Self, RingError> {
        let mut channel = Channel {
            reader: RingReader::new(to_host)?.with_longest_packet(LONGEST_PACKET),
            writer: RingWriter::new(to_guest)?,
            book: None,
            limit: limit.max(1),
            outstanding: 0,
            backlog: VecDeque::new(),
            pending: 0,
            sequence: 0,
            owes_signal: false,
            owes_wake: true,
            loans: loans::Loans::default(),
        };
        channel.forget_pending();
        Ok(channel)
    }

    /// Takes up a channel with its ledger: a new one, or a predecessor's. Unless it succeeds nothing is written, neither to
    /// the ledger nor to what the guest waits for.
    ///
    /// With a predecessor's, the guest is owed a signal and the ring a look: wake-ups have died with him.
    /// `limit` is at least 1 and at most the ledger's number of slots.
    pub fn adopt(to_host: M, to_guest: M, ledger: L, limit: u32) -> Result<(Self, Recovery), AdoptError> {
        Channel::adopt_lending(to_host, to_guest, ledger, limit, 0)
    }

    /// The same for a device that makes so many loans.
    pub fn adopt_lending(
        to_host: M,
        to_guest: M,
        ledger: L,
        limit: u32,
        loans: u32,
    ) -> Result<(Self, Recovery), AdoptError> {
        let reader = RingReader::new(to_host)?.with_longest_packet(LONGEST_PACKET);
        let writer = RingWriter::new(to_guest)?;
        let rings = Rings { to_host: reader.memory().data_len(), to_guest: writer.memory().data_len() };
        let (read, write) = (reader.published_position(), writer.published_position());
        let (book, recovery, sequence) = recover::adopt(ledger, rings, (read, write), loans.min(MAX_LOANS))?;
        let mut channel = Channel {
            reader,
            writer,
            limit: limit.clamp(1, book.ledger.slots()),
            book: Some(book),
            outstanding: 0,
            backlog: VecDeque::new(),
            pending: 0,
            sequence,
            owes_signal: false,
            owes_wake: !recovery.fresh,
            loans: loans::Loans::new(loans, &recovery.lent),
        };
        channel.forget_pending();
        Ok((channel, recovery))
    }

    /// Makes a channel without a ledger one whose device makes so many loans.
    #[must_use]
    pub fn lending(mut self, loans: u32) -> Self {
        self.loans = loans::Loans::new(loans, &[]);
        self
    }

    /// Takes back what a predecessor waited for, or what a reused page still says.
    fn forget_pending(&mut self) {
        self.writer.set_pending_send_size(0);
    }

    /// The next request of a predecessor's, its packet copied into `scratch`. In the order in which they were taken, save
    /// that those which had begun to have their effect come first.
    pub fn next_rerun(&mut self, scratch: &mut Vec<u8>) -> Rerun {
        let busy = self.outstanding >= self.limit || !self.backlog.is_empty();
        let Some(book) = self.book.as_mut().filter(|book| book.is_recovering()) else { return Rerun::None };
        if busy {
            return Rerun::Wait;
        }
        let rerun = book.rerun(scratch);
        if !matches!(rerun, Rerun::Wait | Rerun::None) {
            self.outstanding += 1;
        }
        rerun
    }

    /// Whether [`Channel::next_rerun`] has not said yet that there are no more.
    pub fn recovering(&self) -> bool {
        self.book.as_ref().is_some_and(Book::is_recovering)
    }

    /// Whether the next one of them had begun to have its effect. Such come first.
    #[inline]
    pub fn has_begun(&self) -> bool {
        self.book.as_ref().is_some_and(Book::has_begun)
    }

    /// Step 1: the next packet, copied into `scratch`.
    pub fn take(&mut self, scratch: &mut Vec<u8>) -> Taken {
        self.take_fetching(scratch, |_, _, _| {})
    }

    /// The same. `fetch` may add to `scratch`, behind a GPA-direct packet, what it has brought of the memory that the packet names; it
    /// is told where in the ring the packet begins, of which the guest does not know yet that it is being taken. It goes into the
    /// slot with the packet, if there is room for both.
    pub fn take_fetching(
        &mut self,
        scratch: &mut Vec<u8>,
        fetch: impl FnOnce(&PacketHeader, u32, &mut Vec<u8>),
    ) -> Taken {
        if self.recovering() || !self.may_take() {
            return Taken::Wait;
        }
        let header = match self.reader.next(scratch) {
            Ok(None) => return Taken::Empty,
            Err(error) => return Taken::Failed(error),
            Ok(Some(header)) => header,
        };
        let index = self.reader.read_position();
        if header.packet_type == PacketType::COMPLETION && self.loans.are_made() {
            self.note_return(&header, scratch, index);
            return Taken::Returned;
        }
        if header.packet_type == PacketType::GPA_DIRECT {
            fetch(&header, self.reader.start_of_last(header.len), scratch);
        }
        let sequence = self.sequence;
        self.sequence += 1;
        self.outstanding += 1;
        let fits = scratch.len() <= LONGEST_PACKET as usize;
        let kept = if fits { &scratch[..] } else { &scratch[..header.len as usize] };
        let entry = self.book.as_mut().and_then(|book| book.take(&header, kept, sequence, index));
        let (slot, attempts) = entry.unwrap_or((NO_SLOT, 0));
        let ticket = Ticket {
            transaction_id: header.transaction_id,
            wants_completion: header.completion_requested(),
            sequence,
            slot,
            begun: false,
        };
        if attempts >= MAX_ATTEMPTS {
            return Taken::Reject(header, ticket, attempts);
        }
        Taken::Packet(header, ticket)
    }

    /// Step 2: the guest gets the room of all packets taken so far.
    pub fn publish_taken(&mut self) {
        if self.reader.read_position() == self.reader.published_position() {
            return;
        }
        KillPoint::ReadDue.reached();
        self.owes_signal |= self.reader.publish();
        KillPoint::ReadPublished.reached();
        if let Some(book) = &mut self.book {
            book.read_published();
        }
    }

    /// The request is in the device's hands from now on: if the process crashes, it is the suspect.
    #[inline]
    pub fn enter(&mut self, ticket: &Ticket) {
        if let Some(book) = &mut self.book {
            book.enter(ticket.sequence);
        }
    }

    /// No request is in the device's hands any more.
    #[inline]
    pub fn leave(&mut self) {
        if let Some(book) = &mut self.book {
            book.leave();
        }
    }

    /// Step 3: writes the completion, or keeps it until there is room. With it, exactly when it becomes visible, `state`
    /// becomes the device's state (at most [`LONGEST_STATE`] bytes, a longer one is dropped; kept nowhere without a ledger).
    ///
    /// An error means that the guest has broken the ring, or that `payload` can never fit; the request has
    /// ended all the same.
    pub fn complete(
        &mut self,
        ticket: Ticket,
        payload: &[u8],
        state: Option<&[u8]>,
    ) -> Result<(), PushError> {
        self.answer(ticket, Answer { payload, packets: &[], state })
    }

    /// The same for a request that is answered by in-band packets, behind an empty completion if the guest wants one. They become visible
    /// all together.
    pub fn reply(
        &mut self,
        ticket: Ticket,
        packets: &[&[u8]],
        state: Option<&[u8]>,
    ) -> Result<(), PushError> {
        self.answer(ticket, Answer { payload: &[], packets, state })
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer<'_>) -> Result<(), PushError> {
        let state = fitting(answer.state);
        // One that changes the state waits behind those that wait for room: their states are older.
        if !ticket.wants_completion && answer.packets.is_empty() && state.is_none() {
            self.end(&ticket, None);
            return Ok(());
        }
        let answer = Answer { state, ..answer };
        if self.backlog.is_empty() {
            match self.push(&ticket, &answer) {
                Err(PushError::Full { .. }) => {}
                other => return other,
            }
        }
        self.backlog.push_back(Waiting::new(ticket, &answer));
        Ok(())
    }

    /// Like [`Channel::reply`], and [`Channel::complete`] if there are no packets, but nothing at all is published before the next
    /// [`Channel::publish_completions`]: it waits as if there were no room. Of answers with a state, only one fits between two
    /// publications, and the others would not wait for theirs.
    pub fn put_off(&mut self, ticket: Ticket, payload: &[u8], packets: &[&[u8]], state: Option<&[u8]>) {
        let state = fitting(state);
        self.backlog.push_back(Waiting::new(ticket, &Answer { payload, packets, state }));
    }

    /// Ends a request without a completion.
    fn end(&mut self, ticket: &Ticket, state: Option<&[u8]>) {
        if self.book.is_some() && state.is_some() {
            // The packet must not be void any more when it is said to have ended, and the state's half must be spare.
            self.publish_written();
        }
        if let Some(book) = &mut self.book {
            book.ended(ticket, state);
        }
        self.outstanding -= 1;
    }

    /// Writes an answer, if there is one, into the ring and what there is to know about it into the ledger. The request
    /// has ended afterwards, unless there is no room.
    fn push(&mut self, ticket: &Ticket, answer: &Answer<'_>) -> Result<(), PushError> {
        let state = answer.state;
        if !ticket.wants_completion && answer.packets.is_empty() {
            self.end(ticket, state);
            return Ok(());
        }
        if state.is_some() && self.book.as_ref().is_some_and(Book::has_state_coming) {
            // Only one half is spare. What is in the ring so far is published ahead of its time, without this one.
            self.publish_written();
        }
        match self.write(ticket, answer) {
            Err(error @ PushError::Full { .. }) => return Err(error),
            Err(error @ PushError::TooLarge(_)) => {
                self.end(ticket, None);
                return Err(error);
            }
            // The channel is of no use any more. A successor may find it repaired, so the slot is left alone.
            Err(error @ PushError::Ring(_)) => {
                self.abandon(*ticket);
                return Err(error);
            }
            Ok(()) => {}
        }
        if let Some(book) = &mut self.book {
            book.completing(ticket, self.writer.write_position(), state);
        }
        self.outstanding -= 1;
        Ok(())
    }

    /// Writes all packets of an answer into the ring, or none.
    #[inline]
    fn write(&mut self, ticket: &Ticket, answer: &Answer<'_>) -> Result<(), PushError> {
        let completion = Outgoing::completion(ticket.transaction_id);
        if answer.packets.is_empty() {
            return self.writer.push(&completion, &[answer.payload]);
        }
        let ahead = ticket.wants_completion.then_some(answer.payload);
        let sizes = ahead.iter().chain(answer.packets).map(|content| notices::packet_bytes(content.len()));
        let needed: usize = sizes.sum();
        if needed >= self.writer.memory().data_len() as usize {
            return Err(PushError::TooLarge(needed));
        }
        let needed = needed as u32;
        if !self.writer.has_room(needed)? {
            return Err(PushError::Full { needed });
        }
        if let Some(payload) = ahead {
            self.writer.push(&completion, &[payload])?;
        }
        for packet in answer.packets {
            self.writer.push(&Outgoing::in_band(0, false), &[packet])?;
        }
        Ok(())
    }

    /// Notes what will complete a request whose repetition would differ, as soon as it has been carried out: a successor
    /// completes it with that instead of running it again. False: it is longer than
    /// [`ipc::ledger::LONGEST_OUTCOME`], or there is no ledger.
    ///
    /// Not for a request that is completed with a state: the successor would know the outcome and not the state.
    pub fn record_outcome(&mut self, ticket: &Ticket, payload: &[u8]) -> bool {
        // A packet that is still in the ring would be run again for that reason.
        self.publish_taken();
        self.book.as_mut().is_some_and(|book| book.outcome(ticket, payload))
    }

    /// Notes that a request begins to have its effect now: if it runs again, its ticket says so. False: there is no ledger.
    pub fn note_begun(&mut self, ticket: &Ticket) -> bool {
        // A packet that is still in the ring would be run again as one that never ran.
        self.publish_taken();
        self.book.as_mut().map(|book| book.begin(ticket)).is_some()
    }

    /// Ends a request of a channel that is broken or closed: the guest is not told, and the ledger neither.
    pub fn abandon(&mut self, ticket: Ticket) {
        if let Some(book) = &mut self.book {
            book.survived(ticket.sequence);
        }
        self.outstanding -= 1;
    }

    /// Gives up what waits for room, on a channel that is broken or closed.
    pub fn abandon_backlog(&mut self) {
        for waiting in std::mem::take(&mut self.backlog) {
            self.abandon(waiting.ticket);
        }
        if let Some(book) = &mut self.book {
            book.abandon_completing();
        }
    }

    /// Step 4: makes all completions visible that there is room for. If some have to wait, the guest is asked
    /// to signal when there is room.
    pub fn publish_completions(&mut self) -> Result<(), PushError> {
        self.publish_taken();
        loop {
            let (announced, visible) = (self.pending, self.writer.published_position());
            let blocked = match self.push_backlog()? {
                None => self.lacks_room()?,
                blocked => blocked,
            };
            let all_was_visible = self.writer.write_position() == visible;
            self.publish_written();
            match blocked {
                None if self.pending == 0 => return Ok(()),
                None => {
                    self.writer.set_pending_send_size(0);
                    self.pending = 0;
                    return Ok(());
                }
                // The guest signals when it sees too little room become enough. It saw too little only if it
                // knew, before the attempt that failed, what is wanted and everything that lies in the ring.
                Some(needed) if announced == needed && all_was_visible => return Ok(()),
                // Otherwise it may have made the room meanwhile and thought nothing of it: one more attempt.
                Some(needed) => {
                    if announced != needed {
                        self.writer.set_pending_send_size(needed);
                        self.pending = needed;
                        KillPoint::RoomAsked.reached();
                    }
                }
            }
        }
    }

    /// Publishes everything in the ring, its requests' being taken first, and tells the ledger.
    fn publish_written(&mut self) {
        self.publish_taken();
        if self.writer.write_position() == self.writer.published_position() {
            return;
        }
        KillPoint::WriteDue.reached();
        // Whoever sleeps on a signal that was lost must not sleep on over what comes now.
        self.owes_signal |= self.writer.publish() | std::mem::take(&mut self.owes_wake);
        KillPoint::WritePublished.reached();
        if let Some(book) = &mut self.book {
            book.write_published();
        }
    }

    /// Writes waiting completions while there is room; how much the next one needs if there is none.
    fn push_backlog(&mut self) -> Result<Option<u32>, PushError> {
        while let Some(next) = self.backlog.pop_front() {
            let packets: Vec<&[u8]> = next.packets.iter().map(|packet| &**packet).collect();
            let answer = Answer { payload: &next.payload, packets: &packets, state: next.state.as_deref() };
            match self.push(&next.ticket, &answer) {
                Ok(()) => {}
                Err(PushError::Full { needed }) => {
                    self.backlog.push_front(next);
                    return Ok(Some(needed));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Whether the guest has to be signalled for what was published since the last call, or for a predecessor's sake.
    pub fn take_signal(&mut self) -> bool {
        self.take_prompt_signal() | std::mem::take(&mut self.owes_wake)
    }

    /// Whether it has to be signalled for what was published since the last call. What else [`Channel::take_signal`] says can wait until the
    /// first requests are on their way: nothing lies in the ring that is new.
    pub fn take_prompt_signal(&mut self) -> bool {
        std::mem::take(&mut self.owes_signal)
    }

    /// Asks the guest not to signal: the ring is being read anyway.
    pub fn mask(&mut self) {
        self.reader.mask_interrupts();
    }

    /// Asks the guest to signal again. True: something has arrived meanwhile, look again.
    #[must_use = "packets that arrived meanwhile are not signalled"]
    pub fn unmask(&mut self) -> bool {
        self.reader.unmask_interrupts()
    }

    /// Whether the guest has sent something, for whoever does not want to be signalled.
    #[inline]
    pub fn has_arrived(&self) -> bool {
        self.reader.has_arrived()
    }

    /// Requests taken whose completion is not in the ring yet.
    pub fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Whether completions wait for room.
    pub fn is_blocked(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether [`Channel::next_rerun`], or if that has no more [`Channel::take`], would not ask to wait.
    pub fn may_take(&self) -> bool {
        let room = self.outstanding < self.limit && self.backlog.is_empty();
        room && self.book.as_ref().is_none_or(Book::may_take)
    }
}

#[cfg(test)]
mod tests;
