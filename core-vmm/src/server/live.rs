//! What a channel holds from open to close.

use std::time::Instant;

use ipc::{
    event::Doorbell,
    message::{RingLayout, ToVsp},
};

use crate::{
    bus::{Open, Relid},
    memory::donation::Donation,
};

/// An open channel, or one that is being opened or closed.
#[derive(Debug)]
pub(super) struct Live {
    pub relid: Relid,
    /// The ring.
    pub pages: Donation,
    /// The guest rings it.
    pub kick: Doorbell,
    /// The device has not answered the open request, and has until then.
    pub open_by: Option<Instant>,
    /// The device was told to close, and has until then.
    pub close_by: Option<Instant>,
    /// What the device could not be told, and when to try again. The latest word counts: a channel that is being closed
    /// need not be retargeted any more.
    pub owed: Option<(Word, Instant)>,
}

/// What a device is told of an open channel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Word {
    /// Let go of it.
    Close,
    /// Interrupt this VP from now on.
    Retarget(u32),
}

/// The message for the device.
pub(super) fn open_message(open: &Open) -> ToVsp {
    ToVsp::ChannelOpen {
        channel: open.relid,
        subchannel: 0,
        ring: RingLayout { pages: open.pages.len() as u32, to_host_pages: open.to_host_pages },
        target_vp: open.target_vp,
        flag: open.relid,
        user_data: open.user_data.clone(),
    }
}
