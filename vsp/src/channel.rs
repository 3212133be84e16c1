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
//! A ledger slot is written between 1 and 2, and marked as completing between 3 and 4.

use std::collections::VecDeque;

use vmbus::packet::{Outgoing, PacketHeader};
use vmbus::ring::{PushError, RingError, RingMemory, RingReader, RingWriter};

/// Longest packet that is taken from a guest, in bytes; bounds the private copy. Enough for the page
/// list of a 16 MiB transfer, 30 times what Linux sends.
pub const LONGEST_PACKET: u32 = 40 * 1024;

/// What is kept of a packet until it is completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The guest's name for the request: payload, no key.
    pub transaction_id: u64,
    /// Whether the guest asked for an answer.
    pub wants_completion: bool,
    /// Counts the packets of the channel from 0: the request's own name.
    pub sequence: u64,
}

/// What [`Channel::take`] found.
#[derive(Debug)]
pub enum Taken {
    /// A packet.
    Packet(PacketHeader, Ticket),
    /// The ring is empty.
    Empty,
    /// The device has enough to do, or the guest does not collect its completions.
    Wait,
    /// The guest has broken the ring.
    Failed(RingError),
}

/// A completion for which the ring had no room.
#[derive(Debug)]
struct Waiting {
    transaction_id: u64,
    payload: Box<[u8]>,
}

/// Both rings of a channel, and the requests between them.
#[derive(Debug)]
pub struct Channel<M> {
    reader: RingReader<M>,
    writer: RingWriter<M>,
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
}

impl<M: RingMemory> Channel<M> {
    /// Takes up a channel wherever its indices stand. `limit` is at least 1.
    pub fn new(to_host: M, to_guest: M, limit: u32) -> Result<Channel<M>, RingError> {
        let mut writer = RingWriter::new(to_guest)?;
        // What a predecessor waited for, or what a reused page still says.
        writer.set_pending_send_size(0);
        Ok(Channel {
            reader: RingReader::new(to_host)?.with_longest_packet(LONGEST_PACKET),
            writer,
            limit: limit.max(1),
            outstanding: 0,
            backlog: VecDeque::new(),
            pending: 0,
            sequence: 0,
            owes_signal: false,
        })
    }

    /// Step 1: the next packet, copied into `scratch`.
    pub fn take(&mut self, scratch: &mut Vec<u8>) -> Taken {
        if self.outstanding >= self.limit || !self.backlog.is_empty() {
            return Taken::Wait;
        }
        match self.reader.next(scratch) {
            Ok(None) => Taken::Empty,
            Err(error) => Taken::Failed(error),
            Ok(Some(header)) => {
                let ticket = Ticket {
                    transaction_id: header.transaction_id,
                    wants_completion: header.completion_requested(),
                    sequence: self.sequence,
                };
                self.sequence += 1;
                self.outstanding += 1;
                Taken::Packet(header, ticket)
            }
        }
    }

    /// Step 2: the guest gets the room of all packets taken so far.
    pub fn publish_taken(&mut self) {
        self.owes_signal |= self.reader.publish();
    }

    /// Step 3: writes the completion, or keeps it until there is room.
    ///
    /// An error means that the guest has broken the ring, or that `payload` can never fit; the request has
    /// ended all the same.
    pub fn complete(&mut self, ticket: Ticket, payload: &[u8]) -> Result<(), PushError> {
        if !ticket.wants_completion {
            self.outstanding -= 1;
            return Ok(());
        }
        if self.backlog.is_empty() {
            match self.writer.push(&Outgoing::completion(ticket.transaction_id), &[payload]) {
                Err(PushError::Full { .. }) => {}
                other => {
                    self.outstanding -= 1;
                    return other;
                }
            }
        }
        self.backlog.push_back(Waiting { transaction_id: ticket.transaction_id, payload: payload.into() });
        Ok(())
    }

    /// Ends a request of a channel that is broken or closed: the guest is not told.
    pub fn abandon(&mut self, _ticket: Ticket) {
        self.outstanding -= 1;
    }

    /// Gives up what waits for room, on a channel that is broken or closed.
    pub fn abandon_backlog(&mut self) {
        self.outstanding -= self.backlog.len() as u32;
        self.backlog = VecDeque::new();
    }

    /// Writes a packet of the device's own, behind the completions so far. There is no queue for them: full
    /// is full, and a packet never overtakes a completion that waits for room.
    pub fn send(&mut self, packet: &Outgoing, parts: &[&[u8]]) -> Result<(), PushError> {
        if !self.backlog.is_empty() {
            return Err(PushError::Full { needed: self.pending });
        }
        self.writer.push(packet, parts)
    }

    /// Step 4: makes all completions visible that there is room for. If some have to wait, the guest is asked
    /// to signal when there is room.
    pub fn publish_completions(&mut self) -> Result<(), PushError> {
        self.publish_taken();
        loop {
            let (announced, visible) = (self.pending, self.writer.published_position());
            let blocked = self.push_backlog()?;
            let all_was_visible = self.writer.write_position() == visible;
            self.owes_signal |= self.writer.publish();
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
                    }
                }
            }
        }
    }

    /// Writes waiting completions while there is room; how much the next one needs if there is none.
    fn push_backlog(&mut self) -> Result<Option<u32>, PushError> {
        while let Some(next) = self.backlog.front() {
            match self.writer.push(&Outgoing::completion(next.transaction_id), &[&next.payload]) {
                Ok(()) => {}
                Err(PushError::Full { needed }) => return Ok(Some(needed)),
                Err(error) => return Err(error),
            }
            self.backlog.pop_front();
            self.outstanding -= 1;
        }
        Ok(None)
    }

    /// Whether the guest has to be signalled for what was published since the last call.
    pub fn take_signal(&mut self) -> bool {
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

    /// Requests taken whose completion is not in the ring yet.
    pub fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Whether completions wait for room.
    pub fn is_blocked(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether [`Channel::take`] would not answer [`Taken::Wait`].
    pub fn may_take(&self) -> bool {
        self.outstanding < self.limit && self.backlog.is_empty()
    }
}

#[cfg(test)]
mod tests;
