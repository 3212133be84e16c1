//! What a device tells its guest without having been asked, and the state that goes with it.

use ipc::ledger::LedgerMapping;
use ipc::shm::RingMapping;
use vmbus::packet::Outgoing;
use vmbus::ring::PushError;

use super::{ChannelId, Channels, Slot};
use crate::channel::Channel;

/// What became of an attempt to notify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what was not sent has to be sent later, or forgotten"]
pub enum Notify {
    /// The guest has it, as soon as this turn's packets are visible.
    Sent,
    /// There is no room in the ring now: [`crate::Device::room`] is called when there is.
    Full,
    /// The channel does not answer any more, or the packet can never fit into its ring.
    Dead,
}

impl Channels {
    /// Sends a packet that the guest does not answer. It is visible at the end of the turn, in the order of all packets and completions of
    /// the channel. No ledger knows of it: if the process dies before it is visible, nobody sends it again but a device that does so by
    /// itself, from its state.
    ///
    /// What answers a request goes by [`crate::Request::reply`], which a successor does not repeat.
    pub fn notify(&mut self, id: ChannelId, packet: &Outgoing, payload: &[u8]) -> Notify {
        self.notify_by(id, |channel| channel.notify(packet, payload))
    }

    /// The same, and `state` (at most 4,064 bytes) becomes what a successor gets in [`crate::Device::restore`] for this channel: exactly if the guest
    /// gets the packet, as with [`crate::Request::complete_with_state`]. For what happens by itself and must happen once.
    ///
    /// It may publish what was sent before it, so it is [`Notify::Full`] while the core has to be told something first, about memory, GPADLs or
    /// sub-channels: until the end of the turn. A device that answers requests late must not have more of them than its
    /// [`depth`](crate::Device::depth) less one, or there is no room in the ledger.
    pub fn notify_with_state(
        &mut self,
        id: ChannelId,
        packet: &Outgoing,
        payload: &[u8],
        state: &[u8],
    ) -> Notify {
        let waits = self.owes_words();
        self.notify_by(id, |channel| {
            if waits {
                return Err(channel.no_room_for(payload));
            }
            channel.notify_with_state(packet, payload, state)
        })
    }

    fn notify_by(
        &mut self,
        id: ChannelId,
        notify: impl FnOnce(&mut Channel<RingMapping, LedgerMapping>) -> Result<(), PushError>,
    ) -> Notify {
        let Some(slot) = self.slot(id).filter(|slot| slot.answers()) else { return Notify::Dead };
        match notify(&mut slot.channel) {
            Ok(()) => Notify::Sent,
            Err(PushError::Full { .. }) => Notify::Full,
            Err(error @ PushError::Ring(_)) => {
                slot.fail(&error);
                Notify::Dead
            }
            Err(error) => {
                tracing::error!(channel = slot.core_id, "the device cannot notify: {error}");
                Notify::Dead
            }
        }
    }

    /// Sends an in-band packet of the device's own, visible at the end of the turn. False: no room, or the
    /// channel does not answer any more. Unlike [`Channels::notify`] it does not ask for room.
    pub fn send(&mut self, id: ChannelId, transaction_id: u64, payload: &[u8]) -> bool {
        let Some(slot) = self.slot(id).filter(|slot| slot.answers()) else { return false };
        match slot.channel.send(&Outgoing::in_band(transaction_id, false), &[payload]) {
            Ok(()) => true,
            Err(PushError::Ring(error)) => {
                slot.fail(&error);
                false
            }
            Err(_) => false,
        }
    }

    /// Makes `state` (at most 4,064 bytes) what a successor gets in [`crate::Device::restore`] for this channel, now, without an answer that
    /// it goes with. Everything sent and completed on the channel so far becomes visible before it, what comes after it later: a state that
    /// has to be known by the time that the guest sees a packet is saved before that packet is sent.
    ///
    /// False: it is not kept (no ledger, too long, or the channel does not answer any more), or not now: answers wait for room, or the core has
    /// to be told something before the guest sees them, as at the end of the turn it is.
    pub fn save_state(&mut self, id: ChannelId, state: &[u8]) -> bool {
        if self.owes_words() {
            return false;
        }
        self.slot(id).filter(|slot| slot.answers()).is_some_and(|slot| Slot::save_state(slot, state))
    }
}
