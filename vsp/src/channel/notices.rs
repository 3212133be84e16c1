//! What a device says without having been asked, and a state that changes by itself.

use ipc::ledger::{LONGEST_STATE, LedgerMemory};
use vmbus::packet::{DESCRIPTOR_SIZE, Outgoing, TRAILER_SIZE};
use vmbus::ring::{PushError, RingMemory};

use super::{Channel, KillPoint};

/// Bytes that a packet with so many bytes behind its descriptor takes in a ring.
pub(super) fn packet_bytes(content: usize) -> usize {
    (content + DESCRIPTOR_SIZE as usize).next_multiple_of(8) + TRAILER_SIZE as usize
}

impl<M: RingMemory, L: LedgerMemory> Channel<M, L> {
    /// Writes a packet of the device's own, behind the completions so far. There is no queue for them: full
    /// is full, and a packet never overtakes a completion that waits for room.
    pub fn send(&mut self, packet: &Outgoing, parts: &[&[u8]]) -> Result<(), PushError> {
        if !self.backlog.is_empty() {
            return Err(PushError::Full { needed: self.pending });
        }
        self.writer.push(packet, parts)?;
        if let Some(book) = &mut self.book {
            book.write.follow(self.writer.write_position());
        }
        KillPoint::Notified.reached();
        Ok(())
    }

    /// The same; if it is [`PushError::Full`], [`Channel::take_room`] says when to try again.
    pub fn notify(&mut self, packet: &Outgoing, payload: &[u8]) -> Result<(), PushError> {
        match self.send(packet, &[payload]) {
            Err(PushError::Full { .. }) => Err(self.no_room_for(payload)),
            sent => sent,
        }
    }

    /// Why a packet is not sent now: as if there were no room, which [`Channel::take_room`] ends with the next publication, or when there is.
    pub fn no_room_for(&mut self, payload: &[u8]) -> PushError {
        let needed = packet_bytes(payload.len());
        // Behind completions that wait, nobody has looked yet whether it can ever fit.
        if needed >= self.writer.memory().data_len() as usize {
            return PushError::TooLarge(needed);
        }
        self.want_room(needed as u32);
        PushError::Full { needed: needed as u32 }
    }

    /// The same, and `state` becomes the device's: exactly if the guest gets the packet. Without a ledger it is kept nowhere.
    ///
    /// It takes a slot, in which there is no request: void while the packet is not published, done from then on. There is none to spare while the
    /// device has as many requests as the ledger has slots.
    pub fn notify_with_state(
        &mut self,
        packet: &Outgoing,
        payload: &[u8],
        state: &[u8],
    ) -> Result<(), PushError> {
        if state.len() > LONGEST_STATE {
            return Err(PushError::TooLarge(state.len()));
        }
        // Only one half is to spare, and a slot is free again when what it stands for is published.
        if self.book.as_ref().is_some_and(|book| book.has_state_coming() || book.free.is_empty()) {
            self.publish_written();
        }
        if self.book.as_ref().is_some_and(|book| book.free.is_empty()) {
            let needed = packet_bytes(payload.len()) as u32;
            self.want_room(needed);
            return Err(PushError::Full { needed });
        }
        self.notify(packet, payload)?;
        let index = self.writer.write_position();
        if let Some(book) = &mut self.book {
            book.notice(self.sequence, index, state);
            self.sequence += 1;
        }
        Ok(())
    }

    /// Makes `state` the device's, by itself. What is in the ring is published before that. False: it is too long, there is no ledger, or
    /// answers wait for room, which may bring older states.
    pub fn save_state(&mut self, state: &[u8]) -> bool {
        if state.len() > LONGEST_STATE || self.book.is_none() || !self.backlog.is_empty() {
            return false;
        }
        // One half is to spare: none is if a state comes with what is not published.
        self.publish_written();
        if let Some(book) = &mut self.book {
            book.save_state(state);
        }
        true
    }
}
