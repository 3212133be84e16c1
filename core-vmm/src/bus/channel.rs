//! One channel's life, from offer to release.

use vmbus::message::Offer;

use super::Relid;

/// Where a channel stands between guest and device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not open.
    Idle,
    /// The device has been asked to open it.
    Opening { open_id: u32, gpadl: u32 },
    /// In use.
    Open { gpadl: u32 },
    /// The device has been asked to let go of it.
    Closing,
}

/// A channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub offer: Offer,
    pub state: State,
    /// Taken away; the guest must not open it again.
    pub rescinded: bool,
    /// The guest has been told of the offer and has not said that it has forgotten it.
    pub known: bool,
    /// The channel that this one is a sub-channel of.
    pub primary: Option<Relid>,
}

impl Channel {
    pub fn new(offer: Offer) -> Self {
        Self { offer, state: State::Idle, rescinded: false, known: false, primary: None }
    }

    /// A sub-channel of `primary` that is offered as `offer`.
    pub fn sub(offer: Offer, primary: Relid) -> Self {
        Self { primary: Some(primary), ..Self::new(offer) }
    }

    /// Whether this is sub-channel `index` of `primary`, and somebody has it or may still open it.
    pub fn serves_as(&self, primary: Relid, index: u16) -> bool {
        self.primary == Some(primary)
            && self.offer.sub_channel_index == index
            && !(self.rescinded && self.state == State::Idle)
    }

    /// The GPADL that holds the ring, while the channel is open or being opened.
    pub fn ring_gpadl(&self) -> Option<u32> {
        match self.state {
            State::Opening { gpadl, .. } | State::Open { gpadl } => Some(gpadl),
            State::Idle | State::Closing => None,
        }
    }

    /// The device's answer. Returns the id of the guest's request if one is waiting for it.
    pub fn opened(&mut self, success: bool) -> Option<u32> {
        let State::Opening { open_id, gpadl } = self.state else { return None };
        self.state = if success { State::Open { gpadl } } else { State::Idle };
        Some(open_id)
    }

    /// Nobody needs it any more.
    pub fn is_over(&self) -> bool {
        self.rescinded && !self.known && self.state == State::Idle
    }

    /// True if the device has to be told.
    pub fn begin_close(&mut self) -> bool {
        let told = matches!(self.state, State::Opening { .. } | State::Open { .. });
        if told {
            self.state = State::Closing;
        }
        told
    }
}
