//! What a channel holds from open to close.

use std::time::Instant;

use ipc::{
    event::Doorbell,
    message::{RingLayout, ToVsp},
    shm::SharedMemory,
};

use super::device::ProcessId;
use crate::{
    bus::{Open, Relid},
    memory::donation::Donation,
};

/// A channel that the guest has open, opens or closes.
#[derive(Debug)]
pub(super) struct Live {
    pub relid: Relid,
    /// The device's place among all.
    pub device: usize,
    pub subchannel: u16,
    pub ring: RingLayout,
    /// The VP that the guest wants interrupted now.
    pub target_vp: u32,
    pub user_data: Vec<u8>,
    /// The ring.
    pub pages: Donation,
    /// Where the device's processes keep what has to outlive them; made when the first one is given the channel.
    pub ledger: Option<SharedMemory>,
    /// The guest rings it.
    pub kick: Doorbell,
    pub wish: Wish,
    pub hold: Hold,
    /// The process that has been given it ahead of time, and the VP that it would interrupt.
    pub prepared: Option<(ProcessId, u32)>,
    /// What the process could not be told, and when to try again. The latest word counts: a channel that is being closed
    /// need not be retargeted any more.
    pub owed: Option<(Word, Instant)>,
}

/// What the guest wants with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// It waits for it to be opened.
    Opening,
    Open,
    /// It waits, or not, for it to be closed.
    Closing,
}

/// What a process has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Nothing.
    Free,
    /// It was told to serve it as soon as it has the device, and to interrupt this VP.
    Early(u32),
    /// It was told to serve it, and has to answer by then.
    Asked(Instant),
    Served,
    /// It was told to let go of it, and has to answer by then.
    Leaving(Instant),
}

/// What a process is told of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// Serve it.
    Open,
    /// Let go of it.
    Close,
    /// Interrupt the VP that it is meant for now.
    Retarget,
}

impl Live {
    pub fn new(open: &Open, device: usize, pages: Donation, kick: Doorbell) -> Self {
        Self {
            relid: open.relid,
            device,
            subchannel: open.subchannel,
            ring: RingLayout { pages: open.pages.len() as u32, to_host_pages: open.to_host_pages },
            target_vp: open.target_vp,
            user_data: open.user_data.clone(),
            pages,
            ledger: None,
            kick,
            wish: Wish::Opening,
            hold: Hold::Free,
            prepared: None,
            owed: None,
        }
    }

    /// The message that goes with this word.
    pub fn message(&self, word: Word) -> ToVsp {
        match word {
            Word::Open => ToVsp::ChannelOpen {
                channel: self.relid,
                subchannel: self.subchannel,
                ring: self.ring,
                target_vp: self.target_vp,
                flag: self.relid,
                user_data: self.user_data.clone(),
            },
            Word::Close => ToVsp::ChannelClose { channel: self.relid },
            Word::Retarget => ToVsp::Retarget { channel: self.relid, target_vp: self.target_vp },
        }
    }

    /// The process that should have it has not been told yet.
    pub fn is_untold(&self) -> bool {
        matches!(self.owed, Some((Word::Open, _)))
    }

    /// When the process has to have answered.
    pub fn answer_by(&self) -> Option<Instant> {
        match self.hold {
            Hold::Asked(by) | Hold::Leaving(by) => Some(by),
            Hold::Free | Hold::Early(_) | Hold::Served => None,
        }
    }

    /// Whether nobody has it whom the guest's close would have to wait for.
    pub fn is_left(&self) -> bool {
        self.wish == Wish::Closing && self.hold == Hold::Free
    }
}
