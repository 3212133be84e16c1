//! The disks of a device, while it is served.
//!
//! They are what processes of the device are started with. A change of that comes first, a process that stands by with the old ones is
//! replaced, and then the one that serves is told, in words that only it understands. The supervisor must never have a disk open itself, and
//! whoever is given the descriptors of one has it: they are passed on and closed.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::Supervisor;
use super::control::Wish;
use super::machine::Event;
use super::operator::Answer;
use crate::device::protocol::Reply;
use crate::disk::shown;
use crate::disk::words::{self, Change};

impl Supervisor {
    /// The disks that processes of a device are started with.
    pub(super) fn disks(&self, device: usize) -> Reply {
        Reply::Disks(words::list(&self.slots[device].plan.args))
    }

    /// An operator wants the disks of a device changed.
    pub(super) fn change_disks(
        &mut self,
        client: usize,
        device: usize,
        change: Change,
        payload: String,
        fds: &[OwnedFd],
        now: Instant,
    ) {
        let name = self.slots[device].plan.name.clone();
        let is_busy = self.is_swapping(&name) || self.control.is_wished(Wish::Change { device });
        let changed = match is_busy {
            true => Err("it is being changed or swapped already; wait for the end of that".to_owned()),
            false => words::changed(&self.slots[device].plan.args, &change),
        };
        match changed {
            Err(why) => {
                return self.control.answer(client, &Reply::Failed { reason: format!("{name}: {why}") }, now);
            }
            Ok(Some(args)) => {
                self.slots[device].plan.args = args;
                // One that has been started with the old ones must not come to serve.
                self.events.push_back(Event::Renew(device));
            }
            Ok(None) => {}
        }
        if self.operator.tell(&name, payload, fds) {
            self.slots[device].change = Some(change);
            self.control.wait_for(client, Wish::Change { device }, now);
        } else {
            let reason = format!("{name}: the core cannot be asked just now");
            self.control.answer(client, &Reply::Again { reason }, now);
        }
    }

    /// What has come of it.
    pub(super) fn answer_change(&mut self, device: usize, answer: Answer) {
        let slot = &mut self.slots[device];
        let name = slot.plan.name.clone();
        let reply = match (answer, slot.change.take()) {
            (Answer::Given(Ok(answer)), change) => {
                tracing::info!(process = name, ?change, "its disks have changed");
                Reply::Told { answer }
            }
            (Answer::Given(Err(why)), change) => {
                // What it has not taken, no other process is to take.
                if let Some(Change::Add { disk }) = change
                    && let Some(lun) = words::lun(&disk)
                    && let Ok(Some(args)) = words::changed(&slot.plan.args, &Change::Remove { lun })
                {
                    slot.plan.args = args;
                    self.events.push_back(Event::Renew(device));
                }
                Reply::Failed { reason: format!("{name}: {}", shown(&why)) }
            }
            (Answer::Missing(why), _) => {
                Reply::Again { reason: format!("{name}: {}; its next process has the change", shown(&why)) }
            }
        };
        self.control.answer_all(|wish| wish == Wish::Change { device }, &reply);
    }
}
