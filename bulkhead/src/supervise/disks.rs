//! The disks of a device, and the cable of a NIC, while it is served.
//!
//! They are what processes of the device are started with. When a disk comes, that changes first, a process that stands by with the old ones
//! is replaced, and then the one that serves is told, in words that only it understands. When a disk goes, the one that serves is told first,
//! and once more when all that has changed ([`Change::Remove`] says why). The supervisor must never have a disk open itself, and whoever is
//! given the descriptors of one has it: they are passed on and closed.

use std::ffi::OsString;
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
            Ok(Some(args)) if !matches!(change, Change::Remove { .. }) => self.start_with(device, args),
            Ok(_) => {}
        }
        if let Change::TakeBack { .. } = change {
            return self.control.answer(client, &Reply::Told { answer: String::new() }, now);
        }
        // An answer that comes late must not be taken for that to another question.
        if !self.operator.has_told(&name) && self.operator.tell(&name, payload.clone(), fds) {
            self.slots[device].change = Some((change, payload));
            self.control.wait_for(client, Wish::Change { device }, now);
        } else {
            let reason = format!("{name}: its process cannot be told just now");
            self.control.answer(client, &Reply::Again { reason }, now);
        }
    }

    /// What every process of the device has from now on.
    fn start_with(&mut self, device: usize, args: Vec<OsString>) {
        self.slots[device].plan.args = args;
        // One that has been started with the old ones must not come to serve.
        self.events.push_back(Event::Renew(device));
    }

    /// What has come of it.
    pub(super) fn answer_change(&mut self, device: usize, answer: Answer) {
        let slot = &mut self.slots[device];
        let name = slot.plan.name.clone();
        let reply = match (answer, slot.change.take()) {
            (Answer::Given(Ok(answer)), Some((change @ Change::Remove { .. }, payload))) => {
                if let Ok(Some(args)) = words::changed(&slot.plan.args, &change) {
                    self.start_with(device, args);
                    // It may have died since, and been followed by one that was started with the disk.
                    if self.operator.tell(&name, payload.clone(), &[]) {
                        self.slots[device].change = Some((change, payload));
                        return;
                    }
                    Reply::Again { reason: format!("{name}: its process cannot be told just now") }
                } else {
                    tracing::info!(process = name, ?change, "it has changed");
                    Reply::Told { answer }
                }
            }
            (Answer::Given(Ok(answer)), change) => {
                let change = change.map(|(change, _)| change);
                tracing::info!(process = name, ?change, "it has changed");
                Reply::Told { answer }
            }
            (Answer::Given(Err(why)), change) => {
                // What it has not taken, no other process is to take.
                let back = match change {
                    Some((Change::Add { disk }, _)) => Some(Change::TakeBack { disk }),
                    Some((Change::Link { up }, _)) => Some(Change::Link { up: !up }),
                    _ => None,
                };
                if let Some(back) = back
                    && let Ok(Some(args)) = words::changed(&slot.plan.args, &back)
                {
                    self.start_with(device, args);
                }
                Reply::Failed { reason: format!("{name}: {}", shown(&why)) }
            }
            (Answer::Missing(why), Some((Change::Add { .. } | Change::Link { .. }, _))) => {
                Reply::Again { reason: format!("{name}: {}; its next process has the change", shown(&why)) }
            }
            (Answer::Missing(why), _) => Reply::Again { reason: format!("{name}: {}", shown(&why)) },
        };
        self.control.answer_all(|wish| wish == Wish::Change { device }, &reply);
    }
}
