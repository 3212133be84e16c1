//! What a device lends to its guest, and the room for it.

use vmbus::packet::TransferPages;
use vmbus::ring::PushError;

use super::{ChannelId, Channels, Slot};
use crate::channel::{LendError, Returned};

/// What became of an attempt to lend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a loan that was not made has to be made later, or forgotten"]
pub enum Lend {
    /// The guest has it, as soon as this turn's packets are visible.
    Lent,
    /// There is no room in the ring now: [`crate::Device::room`] is called when there is.
    Full,
    /// The channel does not answer any more, or the packet can never fit into its ring, or `loan` is not one that can be lent.
    Dead,
}

impl Channels {
    /// Sends a transfer-page packet that lends the guest ranges of a buffer. It is visible at the end of the turn, in the order of all
    /// packets and completions of the channel, and the guest answers it: then [`crate::Device::returned`] is called. Until that the loan
    /// is out, whatever becomes of the process.
    ///
    /// `loan` is less than [`crate::Device::loans`] and not out. The packet's transaction id is `loan`.
    pub fn lend(&mut self, id: ChannelId, loan: u32, pages: &TransferPages<'_>, payload: &[u8]) -> Lend {
        let Some(slot) = self.slot(id).filter(|slot| slot.answers()) else { return Lend::Dead };
        match slot.channel.lend(loan, pages, payload) {
            Ok(()) => Lend::Lent,
            Err(LendError::Push(PushError::Full { .. })) => Lend::Full,
            Err(LendError::Push(error @ PushError::Ring(_))) => {
                slot.fail(&error);
                Lend::Dead
            }
            Err(error) => {
                debug_assert!(!matches!(error, LendError::NotHere(_)), "{error}");
                tracing::error!(channel = slot.core_id, "the device cannot lend: {error}");
                Lend::Dead
            }
        }
    }

    /// Whether so many bytes can be written now, by packets of the sizes that [`Channels::completion_bytes`] and
    /// [`Channels::lend_bytes`] tell. False: [`crate::Device::room`] is called when they can.
    ///
    /// For what has to become visible together: complete first (with the state that says what is lent), lend right after, and look
    /// whether there is room for both before.
    pub fn has_room(&mut self, id: ChannelId, bytes: u32) -> bool {
        // An answer with a state would wait for what the core has to be told, and whatever comes behind it for the answer.
        let waits = self.owes_words();
        let Some(slot) = self.slot(id).filter(|slot| slot.answers()) else { return false };
        match slot.channel.has_room(bytes) {
            Ok(has_room) if has_room && waits => {
                slot.channel.want_room(bytes);
                false
            }
            Ok(has_room) => has_room,
            Err(error) => {
                slot.fail(&error);
                false
            }
        }
    }

    /// Bytes that a completion with a payload of so many takes in a ring.
    pub const fn completion_bytes(payload: usize) -> u32 {
        payload.next_multiple_of(8) as u32 + 24
    }

    /// Bytes that a loan of so many ranges with a payload of so many bytes takes in a ring.
    pub const fn lend_bytes(ranges: usize, payload: usize) -> u32 {
        Channels::completion_bytes(payload) + 8 + ranges as u32 * 8
    }

    /// Makes everything that was completed, sent and lent on a channel visible now, not only at the end of the turn. (If the core has to be told
    /// something first, about sub-channels or GPADLs, it waits for that all the same.)
    pub fn publish(&mut self, id: ChannelId) {
        // What the core has to know first is told at the end of the turn.
        if !self.owes_words() {
            self.slot(id).filter(|slot| slot.answers()).map(Slot::flush);
        }
    }

    /// Whether the core has to be told something before the guest sees anything.
    pub(super) fn owes_words(&self) -> bool {
        self.subchannels.is_some() || self.gpadls.owes_words() || self.orders.owes_words()
    }

    /// The next loan that has come back on a channel, what was said to it included.
    pub(crate) fn take_returned(&mut self, id: ChannelId) -> Option<Returned> {
        self.slot(id).filter(|slot| slot.answers())?.channel.take_returned()
    }

    /// A channel with room that the device has missed before.
    pub(crate) fn take_room(&mut self) -> Option<ChannelId> {
        let had_room =
            |slot: &mut Option<Slot>| slot.as_mut().is_some_and(|s| s.channel.take_room() && s.answers());
        self.slots.iter_mut().position(had_room).map(ChannelId::at)
    }

    /// Whether the device has something to hear that nothing wakes the loop for.
    pub(crate) fn has_news(&self) -> bool {
        self.gpadls.has_refusals()
            || self.orders.has_refusals()
            || self.slots.iter().flatten().any(|slot| slot.channel.made_room())
    }
}
