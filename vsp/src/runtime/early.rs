//! The first moments of a process that serves, in which a guest waits: what the core orders before the resource is ours, and what can be said later.
//!
//! Orders about channels that come right after the one to serve ([`EARLY_VERSION`](ipc::message::EARLY_VERSION)) are kept until the resource is ours, then
//! carried out in turn: nobody need be asked, and wait for a processor to answer. What is said to people and to the supervisor, who would
//! want a processor too, waits until the first requests are on their way.

use std::os::fd::OwnedFd;

use ipc::message::{STATUS_OK, ToCore, ToVsp};

use super::{Runtime, RuntimeError};
use crate::channel::Recovery;
use crate::channels::NewChannel;
use crate::device::{Device, OpenRequest};
use crate::role::Role;

/// What is put off.
#[derive(Debug, Default)]
pub(super) struct Early {
    /// Orders about channels, the oldest first. The core is trusted with how many there are: one for each channel that the guest has open.
    orders: Vec<(ToVsp, Vec<OwnedFd>)>,
    /// What was found of predecessors, by the core's name for the channel.
    found: Vec<(u32, Recovery)>,
    /// The supervisor does not know that this process serves.
    is_news: bool,
    /// Channels that are open, of which the core has still to be told. It waits for none of them, and would want a processor.
    results: Vec<ToCore>,
}

impl Early {
    /// The device is to be handed over: what was ordered concerns the next one.
    pub fn forget(&mut self) {
        *self = Early::default();
    }

    /// What the core is to be told.
    pub fn take_results(&mut self) -> Vec<ToCore> {
        std::mem::take(&mut self.results)
    }

    /// A channel has been taken over from another process.
    pub fn taken_over(&mut self, channel: u32, recovery: Recovery) {
        self.found.push((channel, recovery));
    }
}

impl<D: Device> Runtime<D> {
    /// An order about a channel: obeyed, or kept until this process serves.
    pub(super) fn ordered(&mut self, order: ToVsp, fds: Vec<OwnedFd>) -> Result<(), RuntimeError> {
        if matches!(self.role, Role::Fencing(_)) {
            self.early.orders.push((order, fds));
            return Ok(());
        }
        self.obey(order, fds)
    }

    /// The resource is ours: does what was ordered meanwhile.
    pub(super) fn catch_up(&mut self) -> Result<(), RuntimeError> {
        self.early.is_news = true;
        std::mem::take(&mut self.early.orders).into_iter().try_for_each(|(order, fds)| self.obey(order, fds))
    }

    /// Says what has been put off.
    pub(super) fn say(&mut self) -> Result<(), RuntimeError> {
        self.early.take_results().into_iter().try_for_each(|result| self.send(&result, &[]))?;
        if std::mem::take(&mut self.early.is_news) {
            self.setting.notifier.status(true, "serving");
        }
        if self.early.found.is_empty() || !self.adoption.lets_take() {
            return Ok(());
        }
        for (channel, recovery) in self.early.found.drain(..) {
            let lent = recovery.lent.len();
            let Recovery { again, done, void, rejected, careful, crash, epoch, .. } = recovery;
            tracing::info!(channel, epoch, again, done, void, rejected, lent, careful, ?crash, "taken over");
        }
        Ok(())
    }

    fn obey(&mut self, order: ToVsp, fds: Vec<OwnedFd>) -> Result<(), RuntimeError> {
        match order {
            ToVsp::ChannelOpen { channel, subchannel, ring, target_vp, flag, user_data } => {
                let request = OpenRequest { subchannel, target_vp, user_data };
                let ledger = self.setting.ledger && self.device.ledger();
                let is_primary = subchannel == 0;
                let new = NewChannel { core_id: channel, is_primary, ring, flag, fds, ledger };
                let (status, reason) = self.open(new, &request);
                let result = ToCore::OpenResult { channel, status, reason };
                match status {
                    STATUS_OK if self.early.is_news => self.early.results.push(result),
                    _ => self.tell(&result)?,
                }
            }
            ToVsp::ChannelClose { channel } => match self.channels.close(channel) {
                Some(id) => {
                    self.device.closing(id);
                    // What was completed before the close is still the guest's, if it looks.
                    self.report_closed()?;
                }
                // A predecessor had it: the device does what is to be done about that in `adopted`.
                None if self.adoption.is_pending() => self.mapper.closes.push(channel),
                // It failed to open, or is closed already: nothing of ours is in flight.
                None => self.tell(&ToCore::Closed { channel })?,
            },
            ToVsp::Retarget { channel, target_vp, .. } => {
                if let Err(error) = self.channels.retarget(channel, fds) {
                    tracing::error!(channel, target_vp, "interrupts cannot be moved: {error}");
                }
            }
            other => tracing::warn!("no order about a channel: {other:?}"),
        }
        Ok(())
    }
}
