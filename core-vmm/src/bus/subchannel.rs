//! Sub-channels: further channels of a device, which it agrees on with its driver over the primary channel.
//!
//! To Linux they are offers with the class and instance of the primary channel and an index of their own
//! (`sub_channel_index`; `vmbus_process_offer`), opened and closed each by itself. A driver closes them before the primary channel
//! and waits for the host to rescind them (`vmbus_onoffer_rescind`); it asks for new ones when it opens the device anew.

use super::{Bus, Channel, Relid, State};

impl Bus {
    /// Offers sub-channels 1 to `count` of `primary`, those that are not offered yet. False when relids have run out.
    ///
    /// Nothing happens if the channel is not open: its guest has closed it since the device agreed.
    pub fn offer_subchannels(&mut self, primary: Relid, count: u16) -> bool {
        let Some(channel) = self.channels.get(&primary) else { return true };
        if channel.primary.is_some() || !matches!(channel.state, State::Open { .. }) {
            return true;
        }
        let template = channel.offer;
        for index in 1..=count {
            if self.channels.values().any(|c| c.serves_as(primary, index)) {
                continue;
            }
            let Some(relid) = self.free_relid() else { return false };
            let mut offer = template;
            offer.relid = relid;
            offer.connection_id = Self::connection_id(relid);
            offer.sub_channel_index = index;
            self.insert(relid, Channel::sub(offer, primary));
        }
        true
    }

    /// The channel that `relid` is a sub-channel of, or itself; `None` if there is no such channel.
    pub fn primary_of(&self, relid: Relid) -> Option<Relid> {
        self.channels.get(&relid).map(|c| c.primary.unwrap_or(relid))
    }

    /// The primary channel closes: what its sub-channels have left is closed, and the offers end.
    pub(super) fn rescind_subchannels(&mut self, primary: Relid) {
        // One that the guest has released while it was open is closed like the others, without a word.
        let left = |c: &Channel| c.primary == Some(primary) && !(c.rescinded && c.known);
        let subs = self.channels.iter().filter(|(_, c)| left(c));
        let relids: Vec<Relid> = subs.map(|(&relid, _)| relid).collect();
        for relid in relids {
            self.rescind(relid);
        }
    }
}
