//! A request as a linear value: it is completed once, or the test fails.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::channel::Ticket;
use crate::channels::{ChannelId, Channels};

/// A packet that the device has taken and owes an end.
///
/// Every packet has one, whether or not the guest asked for an answer, because the channel can only be closed
/// once all of them have ended. A guest waits for ever for an answer that never comes, so a request
/// that is dropped uncompleted panics in debug builds, and is logged and counted in release builds.
#[must_use = "a request that is dropped hangs the guest: complete it"]
#[derive(Debug)]
pub struct Request {
    channel: ChannelId,
    /// `None` once completed.
    ticket: Option<Ticket>,
}

static LOST: AtomicU64 = AtomicU64::new(0);

impl Request {
    pub(crate) fn new(channel: ChannelId, ticket: Ticket) -> Request {
        Request { channel, ticket: Some(ticket) }
    }

    /// The channel that it came by.
    pub fn channel(&self) -> ChannelId {
        self.channel
    }

    /// The guest's name for it; reused by the guest as soon as it is completed, so no key for anything.
    pub fn transaction_id(&self) -> u64 {
        self.ticket.as_ref().map_or(0, |ticket| ticket.transaction_id)
    }

    /// Whether the guest asked for an answer.
    pub fn wants_completion(&self) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| ticket.wants_completion)
    }

    /// Ends it. If the guest asked for an answer, `payload` is what it gets.
    pub fn complete(mut self, channels: &mut Channels, payload: &[u8]) {
        if let Some(ticket) = self.ticket.take() {
            channels.complete(self.channel, ticket, payload, None);
        }
    }

    /// Ends it like [`Request::complete`], and makes `state` (at most 4,064 bytes) what a successor gets in
    /// [`crate::Device::restore`] for this channel: exactly if the guest sees the answer. Not after
    /// [`Request::record_outcome`].
    pub fn complete_with_state(mut self, channels: &mut Channels, payload: &[u8], state: &[u8]) {
        if let Some(ticket) = self.ticket.take() {
            channels.complete(self.channel, ticket, payload, Some(state));
        }
    }

    /// Ends it, and answers it with in-band packets of the device's own (with transaction id 0), behind the completion if the guest asked for one: for protocols in which
    /// an answer is a message like the question. Exactly once, as a completion is: all of them, the completion and `state` become visible together, or none
    /// does and a successor gets the request again. `state` is as in [`Request::complete_with_state`]; `None` leaves the one that there is.
    ///
    /// Together they have to fit into the ring; if they cannot, the request ends without an answer and the state is not kept.
    pub fn reply(mut self, channels: &mut Channels, packets: &[&[u8]], state: Option<&[u8]>) {
        if let Some(ticket) = self.ticket.take() {
            channels.reply(self.channel, ticket, packets, state);
        }
    }

    /// For a request that has had an effect and whose repetition would have another: if this process dies from now on,
    /// the request is ended with `payload` and not run again. False: it could not be recorded (no ledger, or `payload` is
    /// longer than 4,032 bytes).
    ///
    /// It must then be ended by [`Request::complete`] with the same `payload`, not by [`Request::complete_with_state`]: the
    /// successor would end it without the state. Pass that with another answer, before or after.
    pub fn record_outcome(&self, channels: &mut Channels, payload: &[u8]) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| channels.record_outcome(self.channel, ticket, payload))
    }

    /// For a request that is done in two steps, of which the second must not depend on its own effect (compare, then
    /// write): the first is over, the second begins. If this process dies from now on the request is run again, and
    /// [`Request::has_begun`] there. False: it could not be noted (no ledger).
    pub fn note_begun(&self, channels: &mut Channels) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| channels.note_begun(self.channel, ticket))
    }

    /// Whether a predecessor has noted that this request has begun to have its effect: its first step must not be
    /// repeated, its second has to be.
    pub fn has_begun(&self) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| ticket.begun)
    }

    /// How many requests this process has dropped uncompleted: 0, or there is a bug in the device.
    pub fn lost() -> u64 {
        LOST.load(Ordering::Relaxed)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let Some(ticket) = &self.ticket else { return };
        let lost = LOST.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::error!(id = ticket.transaction_id, lost, "a request was dropped uncompleted");
        if cfg!(debug_assertions) && !std::thread::panicking() {
            panic!("request {:#x} was dropped uncompleted", ticket.transaction_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "was dropped uncompleted")]
    fn a_dropped_request_is_a_failed_test() {
        let ticket = Ticket { transaction_id: 7, wants_completion: true, sequence: 0, slot: 0, begun: false };
        drop(Request::new(ChannelId::for_test(0), ticket));
    }
}
