//! What outlives the process: the state in the ledgers, and what becomes of a unit besides its blocks.
//!
//! Each channel's ledger has a copy. One that an answer changes goes with that answer, on its channel: the two become
//! true in one step. The others follow when that answer is visible and not before, for a successor takes the newest copy
//! and runs again what the guest has had no answer to.

use vsp::{ChannelId, Channels, Request};

use super::Controller;
use crate::identity::Identity;
use crate::scsi::{Attention, Condition, Sense};

/// A change that an answer has brought and that the other channels' ledgers do not have yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct News {
    /// Where the answer is.
    from: ChannelId,
    /// The runtime has been given the answer; it publishes before it calls again.
    submitted: bool,
}

impl Controller {
    /// Answers a request. If the ledger of its channel has another state than ours, it changes in the same step.
    pub(super) fn answer(&mut self, request: Request, answer: &[u8], channels: &mut Channels) {
        let channel = request.channel();
        let early = self.news.is_some_and(|news| news.from != channel);
        match self.stale.iter().position(|stale| *stale == channel) {
            Some(index) if !early => {
                self.stale.swap_remove(index);
                request.complete_with_state(channels, answer, &self.state.encode());
            }
            _ => request.complete(channels, answer),
        }
    }

    /// Answers the request that has just changed the state, exactly if it did.
    pub(super) fn answer_with_change(&mut self, request: Request, answer: &[u8], channels: &mut Channels) {
        let channel = request.channel();
        self.stale.retain(|stale| *stale != channel);
        self.news = Some(News { from: channel, submitted: false });
        request.complete_with_state(channels, answer, &self.state.encode());
    }

    /// What is in the ledgers is not true any more. Not for what an answer changes.
    pub(super) fn state_changed(&mut self) {
        self.stale.clone_from(&self.open);
    }

    /// The runtime calls: what was submitted before is published by now, unless the guest has no room for it.
    pub(super) fn spread_news(&mut self, channels: &Channels) {
        if let Some(news) = self.news.filter(|news| news.submitted && !channels.is_blocked(news.from)) {
            self.news = None;
            for open in &self.open {
                if *open != news.from && !self.stale.contains(open) {
                    self.stale.push(*open);
                }
            }
        }
    }

    /// The runtime publishes next.
    pub(super) fn submit_news(&mut self) {
        if let Some(news) = &mut self.news {
            news.submitted = true;
        }
    }

    /// What a unit's guest has to be told now, with this answer.
    pub(super) fn take_attention(&mut self, lun: u8) -> Option<Sense> {
        if self.state.condition(lun).attentions.is_empty() {
            return None;
        }
        let mut condition = self.state.condition(lun).clone();
        let sense = condition.attentions.take()?;
        self.state.set_condition(lun, condition).then_some(sense)
    }

    /// The guest has been told which units there are, and need not be told that they have changed. True: it would have been.
    pub(super) fn luns_told(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.numbers.len() {
            let lun = self.numbers[index];
            let mut condition = self.state.condition(lun).clone();
            condition.attentions.luns_told();
            if condition != *self.state.condition(lun) {
                any |= self.state.set_condition(lun, condition);
            }
        }
        any
    }

    /// Has a unit's guest be told something, with the next command that may. It outlives this process from the next answer
    /// on, whatever that is.
    pub(crate) fn attend(&mut self, lun: u8, attention: Attention) {
        let mut condition = self.state.condition(lun).clone();
        condition.attentions.raise(attention);
        if self.state.set_condition(lun, condition) {
            self.state_changed();
        }
    }

    /// There is a new unit, with this file.
    pub(crate) fn remember_unit(&mut self, lun: u8, identity: Identity) {
        self.forget_unit(lun);
        self.state.identities.set(lun, identity);
    }

    /// There is no such unit any more: whatever is known of it is over.
    pub(crate) fn forget_unit(&mut self, lun: u8) {
        let forgotten = self.state.set_condition(lun, Condition::default());
        debug_assert!(forgotten, "there is always room for less");
        self.state.lost_writes.remove(lun);
        self.state.identities.set(lun, Identity::UNKNOWN);
        self.state_changed();
    }
}
