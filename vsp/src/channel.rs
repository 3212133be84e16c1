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
        Ok(Channel {
            reader: RingReader::new(to_host)?.with_longest_packet(LONGEST_PACKET),
            writer: RingWriter::new(to_guest)?,
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
    /// is full.
    pub fn send(&mut self, packet: &Outgoing, parts: &[&[u8]]) -> Result<(), PushError> {
        self.writer.push(packet, parts)
    }

    /// Step 4: makes all completions visible that there is room for. If some have to wait, the guest is asked
    /// to signal when there is room.
    pub fn publish_completions(&mut self) -> Result<(), PushError> {
        self.publish_taken();
        loop {
            let blocked = self.push_backlog()?;
            self.owes_signal |= self.writer.publish();
            match blocked {
                None if self.pending == 0 => return Ok(()),
                None => {
                    self.writer.set_pending_send_size(0);
                    self.pending = 0;
                    return Ok(());
                }
                // Announced before this attempt: the guest will signal.
                Some(needed) if self.pending == needed => return Ok(()),
                Some(needed) => {
                    // The guest may have made room just before it could see this, so one more attempt follows.
                    self.writer.set_pending_send_size(needed);
                    self.pending = needed;
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
mod tests {
    use vmbus::ring::ControlWord;
    use vmbus::ring::testing::TestRing;

    use super::*;

    struct Guest {
        writer: RingWriter<TestRing>,
        reader: RingReader<TestRing>,
        to_host: TestRing,
        to_guest: TestRing,
    }

    fn channel(limit: u32) -> (Guest, Channel<TestRing>) {
        let (to_host, to_guest) = (TestRing::new(1), TestRing::new(1));
        let guest = Guest {
            writer: RingWriter::new(to_host.clone()).unwrap(),
            reader: RingReader::new(to_guest.clone()).unwrap(),
            to_host: to_host.clone(),
            to_guest: to_guest.clone(),
        };
        (guest, Channel::new(to_host, to_guest, limit).unwrap())
    }

    impl Guest {
        fn send(&mut self, id: u64) -> bool {
            self.writer.push(&Outgoing::in_band(id, true), &[b"request!"]).unwrap();
            self.writer.publish()
        }

        fn collect(&mut self) -> Vec<u64> {
            let (mut ids, mut scratch) = (Vec::new(), Vec::new());
            while let Some(header) = self.reader.next(&mut scratch).unwrap() {
                ids.push(header.transaction_id);
            }
            ids
        }
    }

    fn ticket(taken: Taken) -> Ticket {
        let Taken::Packet(_, ticket) = taken else { panic!("{taken:?}") };
        ticket
    }

    #[test]
    fn nothing_is_visible_before_its_step() {
        let (mut guest, mut channel) = channel(8);
        let mut scratch = Vec::new();
        guest.send(7);
        let ticket = ticket(channel.take(&mut scratch));
        assert_eq!(guest.to_host.load(ControlWord::ReadIndex), 0, "taken, not published");
        channel.complete(ticket, b"answer").unwrap();
        assert_eq!(guest.to_guest.load(ControlWord::WriteIndex), 0, "completed, not published");
        channel.publish_completions().unwrap();
        assert_ne!(guest.to_host.load(ControlWord::ReadIndex), 0, "reads are published before completions");
        assert!(channel.take_signal());
        assert!(!channel.take_signal());
        assert_eq!(guest.collect(), [7]);
        assert_eq!(channel.outstanding(), 0);
    }

    #[test]
    fn the_limit_stops_taking_until_something_completes() {
        let (mut guest, mut channel) = channel(2);
        let mut scratch = Vec::new();
        (1..=3).for_each(|id| _ = guest.send(id));
        let first = ticket(channel.take(&mut scratch));
        let second = ticket(channel.take(&mut scratch));
        assert!(matches!(channel.take(&mut scratch), Taken::Wait));
        channel.complete(first, b"").unwrap();
        let third = ticket(channel.take(&mut scratch));
        assert_eq!((second.sequence, third.sequence), (1, 2));
    }

    #[test]
    fn a_full_ring_keeps_completions_and_asks_for_a_signal() {
        let (mut guest, mut channel) = channel(64);
        let mut scratch = Vec::new();
        (0..40).for_each(|id| _ = guest.send(id));
        let tickets: Vec<_> = (0..40).map(|_| ticket(channel.take(&mut scratch))).collect();
        for ticket in tickets {
            channel.complete(ticket, &[0; 184]).unwrap();
        }
        channel.publish_completions().unwrap();
        let pending = guest.to_guest.load(ControlWord::PendingSendSize);
        assert_eq!(pending, 16 + 184 + 8);
        assert!(channel.is_blocked());
        let _ = guest.send(99);
        assert!(matches!(channel.take(&mut scratch), Taken::Wait));

        let mut seen = guest.collect();
        assert!(guest.reader.publish(), "the guest sees that we wait");
        channel.publish_completions().unwrap();
        assert_eq!(guest.to_guest.load(ControlWord::PendingSendSize), pending, "still waiting");
        seen.extend(guest.collect());
        assert!(guest.reader.publish());
        channel.publish_completions().unwrap();
        seen.extend(guest.collect());
        let _ = guest.reader.publish();
        channel.publish_completions().unwrap();
        seen.extend(guest.collect());
        assert_eq!(seen, (0..40).collect::<Vec<_>>(), "each once, in order");
        assert_eq!(guest.to_guest.load(ControlWord::PendingSendSize), 0);
        assert_eq!(channel.outstanding(), 0);
        assert_eq!(ticket(channel.take(&mut scratch)).transaction_id, 99);
    }

    #[test]
    fn a_guest_that_waits_for_room_is_signalled() {
        let (mut guest, mut channel) = channel(1000);
        let mut scratch = Vec::new();
        let mut sent = 0;
        while guest.writer.push(&Outgoing::in_band(sent, true), &[&[0; 40]]).is_ok() {
            sent += 1;
        }
        let _ = guest.writer.publish();
        guest.writer.set_pending_send_size(64);
        for _ in 0..sent {
            let ticket = ticket(channel.take(&mut scratch));
            channel.abandon(ticket);
        }
        channel.publish_taken();
        assert!(channel.take_signal());
    }

    #[test]
    fn jumping_indices_are_failures_not_loops() {
        let (guest, mut channel) = channel(8);
        let mut scratch = Vec::new();
        for index in [3, 4096, u32::MAX] {
            guest.to_host.store(ControlWord::WriteIndex, index);
            assert!(matches!(channel.take(&mut scratch), Taken::Failed(_)), "{index}");
        }
        guest.to_host.store(ControlWord::WriteIndex, 8);
        assert!(matches!(channel.take(&mut scratch), Taken::Failed(RingError::Truncated(8))));
        guest.to_guest.store(ControlWord::ReadIndex, 5);
        let ticket = Ticket { transaction_id: 1, wants_completion: true, sequence: 0 };
        channel.outstanding = 1;
        assert!(matches!(channel.complete(ticket, b""), Err(PushError::Ring(_))));
        assert_eq!(channel.outstanding(), 0);
    }

    #[test]
    fn a_packet_that_wants_no_answer_gets_none() {
        let (mut guest, mut channel) = channel(8);
        let mut scratch = Vec::new();
        guest.writer.push(&Outgoing::in_band(5, false), &[b"note"]).unwrap();
        assert!(guest.writer.publish());
        let ticket = ticket(channel.take(&mut scratch));
        channel.complete(ticket, b"ignored").unwrap();
        channel.publish_completions().unwrap();
        assert!(guest.collect().is_empty());
        assert_eq!(channel.outstanding(), 0);
    }

    #[test]
    fn unmasking_finds_what_came_meanwhile() {
        let (mut guest, mut channel) = channel(8);
        channel.mask();
        assert!(!guest.send(1), "masked: no signal");
        assert!(channel.unmask());
        let mut scratch = Vec::new();
        let ticket = ticket(channel.take(&mut scratch));
        channel.abandon(ticket);
        channel.publish_taken();
        assert!(!channel.unmask());
        assert!(guest.send(2), "unmasked and empty: signal");
    }
}
