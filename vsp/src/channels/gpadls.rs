//! Guest memory that a device asks for: the pages of a GPADL.
//!
//! Between a question and its answer no packet is taken, so that none meets a device that cannot read it yet.

use super::{ChannelId, Channels};

/// What the core is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// The device wants it.
    Share,
    /// It is done with it.
    Return,
}

/// A GPADL of an open channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    id: ChannelId,
    core_id: u32,
    gpadl: u32,
}

/// Questions of this process.
#[derive(Debug, Default)]
pub(super) struct Gpadls {
    /// What the core has still to be told, in order.
    words: Vec<(Named, Ask)>,
    /// What it has not answered.
    awaited: Vec<Named>,
    /// Those of which nobody will answer that they are refused.
    refused: Vec<Named>,
}

impl Gpadls {
    /// The channel closes: nobody wants an answer any more.
    pub fn close(&mut self, id: ChannelId) {
        self.words.retain(|(named, ask)| named.id != id || *ask == Ask::Return);
        self.awaited.retain(|named| named.id != id);
        self.refused.retain(|named| named.id != id);
    }

    /// There is no such channel any more.
    pub fn forget(&mut self, id: ChannelId) {
        self.words.retain(|(named, _)| named.id != id);
        self.close(id);
    }

    pub fn owes_words(&self) -> bool {
        !self.words.is_empty()
    }

    pub fn has_refusals(&self) -> bool {
        !self.refused.is_empty()
    }
}

impl Channels {
    /// Asks the core for the pages of a GPADL that the guest has made for this channel or its primary channel.
    /// [`crate::Device::gpadl_shared`] is the answer, in a later turn, and no packet of any channel comes before it.
    pub fn share_gpadl(&mut self, id: ChannelId, gpadl: u32) {
        if let Some(named) = self.named(id, gpadl) {
            self.gpadls.words.push((named, Ask::Share));
            self.gpadls.awaited.push(named);
        }
    }

    /// The device is done with a GPADL, and has unmapped its pages: the core is told before the guest sees any answer of this turn's, and
    /// before any later question. The same GPADL is not shared again.
    pub fn return_gpadl(&mut self, id: ChannelId, gpadl: u32) {
        if let Some(named) = self.named(id, gpadl) {
            self.gpadls.words.push((named, Ask::Return));
        }
    }

    fn named(&mut self, id: ChannelId, gpadl: u32) -> Option<Named> {
        let core_id = self.slot(id)?.core_id;
        Some(Named { id, core_id, gpadl })
    }

    /// Whether an answer is due; nothing is taken until it comes.
    #[inline]
    pub(crate) fn awaits_gpadls(&self) -> bool {
        !self.gpadls.awaited.is_empty()
    }

    /// What the core has to be told: channel, GPADL, and what of it.
    pub(crate) fn take_asks(&mut self) -> Vec<(u32, u32, Ask)> {
        self.gpadls.words.drain(..).map(|(named, ask)| (named.core_id, named.gpadl, ask)).collect()
    }

    /// The core cannot be asked for this one.
    pub(crate) fn refuse_gpadl(&mut self, core_id: u32, gpadl: u32) {
        let asked = |named: &&Named| named.core_id == core_id && named.gpadl == gpadl;
        self.gpadls.refused.extend(self.gpadls.awaited.iter().find(asked));
    }

    /// One that was refused so.
    pub(crate) fn take_refused(&mut self) -> Option<(ChannelId, u32)> {
        let named = self.gpadls.refused.pop()?;
        self.gpadl_answered(named.core_id, named.gpadl).map(|id| (id, named.gpadl))
    }

    /// The core has answered: whose question it was, if anybody still wants to know.
    pub(crate) fn gpadl_answered(&mut self, core_id: u32, gpadl: u32) -> Option<ChannelId> {
        let asked = |named: &Named| named.core_id == core_id && named.gpadl == gpadl;
        let place = self.gpadls.awaited.iter().position(asked)?;
        Some(self.gpadls.awaited.remove(place).id)
    }
}
