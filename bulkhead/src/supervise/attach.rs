//! PCI devices that come and go while the VM runs.
//!
//! A device comes in three steps: the core has a place for it, a process serves it, the guest is offered it (which is the core's affair). It goes in
//! the same ones backwards: the guest lets go of it, which its process has to ask for; the core takes the offer back and gives up what it kept;
//! the processes end, and with them the last that holds the device. Whoever asked is told after that, so that the device is the host's to give then.
//!
//! What fails on the way is undone, and the VM runs on.

use std::time::Instant;

use ipc::config::DeviceSlot;

use super::control::Wish;
use super::fate::Death;
use super::machine::{Event, Wanted};
use super::operator::Answer;
use super::{Slot, Supervisor, memory};
use crate::device::protocol::Reply;
use crate::disk::shown;
use crate::pci::{Address, Host};
use crate::spec::{self, Pci};

/// What the process of a PCI device is told to have the guest let go of it.
pub(crate) const EJECT: &str = r#"{"eject":{}}"#;

/// A device that the core has been told of.
pub(super) struct Coming {
    ticket: u64,
    slot: Slot,
}

/// How far a device has gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Going {
    /// Not at all.
    #[default]
    No,
    /// The guest is asked to let go of it.
    Asked,
    /// The core is asked to give it up.
    Removed,
    /// Its processes are to end.
    Ending,
    /// It is gone.
    Gone,
}

impl Supervisor {
    /// An operator wants the VM to have a device.
    pub(super) fn attach(
        &mut self,
        client: usize,
        address: &str,
        name: Option<String>,
        spare: bool,
        now: Instant,
    ) {
        match self.come(address, name, spare) {
            Ok((ticket, slot)) => {
                if self.operator.add(&slot) {
                    self.control.wait_for(client, Wish::Attach { ticket }, now);
                } else {
                    self.coming.retain(|coming| coming.ticket != ticket);
                    let reason = "the core cannot be asked to take the device just now".to_owned();
                    self.control.answer(client, &Reply::Failed { reason }, now);
                }
            }
            Err(reason) => self.control.answer(client, &Reply::Failed { reason }, now),
        }
    }

    /// Finds out what it takes. An error is a sentence.
    fn come(
        &mut self,
        address: &str,
        name: Option<String>,
        spare: bool,
    ) -> Result<(u64, DeviceSlot), String> {
        let address: Address =
            address.parse().map_err(|error: crate::pci::address::NoAddress| error.to_string())?;
        if let Some(name) = &name {
            spec::device_name(name)?;
        }
        let name = name.unwrap_or_else(|| spec::pci::usual_name(address));
        let there = self.slots.iter().filter(|slot| slot.is_there()).map(|slot| &slot.plan);
        let plans: Vec<_> = there.chain(self.coming.iter().map(|coming| &coming.slot.plan)).collect();
        if plans.iter().any(|plan| plan.name == name) {
            return Err(format!("the VM has a device {name} already: give another --name"));
        }
        if let Some(has) = plans.iter().find(|plan| plan.pci.is_some_and(|pci| pci.address == address)) {
            return Err(format!("the VM has {address} already: it is its device {}", has.name));
        }
        let taken: Vec<usize> = plans.iter().map(|plan| plan.user).collect();
        let passed = plans.iter().filter(|plan| plan.pci.is_some()).count();
        let group = spec::pci::look_up(&Host::this(), address, false)
            .map_err(|(why, fix)| format!("{why}: {fix}"))?;
        memory::allow(self.memory, passed + 1)?;
        let (plan, slot) = self.later.device(&Pci { name, address, group, spare }, &taken)?;
        let new = Slot::new(&plan).map_err(|error| error.to_string())?;
        self.tickets += 1;
        let ticket = self.tickets;
        self.coming.push(Coming { ticket, slot: Slot { ticket: Some(ticket), ..new } });
        Ok((ticket, slot))
    }

    /// The core has a place for it, or not.
    pub(super) fn core_added(&mut self, name: &str, result: Result<(), String>) {
        let Some(place) = self.coming.iter().position(|coming| coming.slot.plan.name == name) else { return };
        let Coming { ticket, slot } = self.coming.swap_remove(place);
        match result {
            Ok(()) => {
                let wanted = Wanted {
                    name: slot.plan.name.clone(),
                    spare: slot.plan.spare,
                    of_core: slot.plan.is_of_core(),
                };
                // Its number is the same in both.
                self.slots.push(slot);
                self.events.push_back(Event::Attached(wanted));
            }
            Err(why) => {
                let reason = format!("{name}: the core does not take it: {}", shown(&why));
                self.control.answer_all(|wish| wish == Wish::Attach { ticket }, &Reply::Failed { reason });
            }
        }
    }

    /// A process serves a device; whoever wanted that is told.
    pub(super) fn answer_attached(&mut self, device: usize, pid: Option<u32>) {
        let slot = &mut self.slots[device];
        let Some(ticket) = slot.ticket.take() else { return };
        let (name, pci) = (&slot.plan.name, slot.plan.pci);
        let address = pci.map(|pci| pci.address.to_string()).unwrap_or_default();
        let who = pid.map_or("a process".to_owned(), |pid| format!("process {pid}"));
        tracing::info!(process = name, address, "attached");
        let what = format!("{name}: {address} is the VM's; {who} serves it");
        self.control.answer_all(|wish| wish == Wish::Attach { ticket }, &Reply::Done { what });
    }

    /// Its process could not open it, and has said why in the log: the core is to forget it.
    pub(super) fn take_back(&mut self, device: usize, death: &Death) {
        let slot = &mut self.slots[device];
        slot.going = Going::Ending;
        let name = slot.plan.name.clone();
        let reason = format!("{name}: it cannot be served: its process {death}, and has said why in the log");
        if let Some(ticket) = slot.ticket.take() {
            self.control.answer_all(|wish| wish == Wish::Attach { ticket }, &Reply::Failed { reason });
        }
        self.operator.remove(&name);
    }

    /// An operator wants the VM to have a device no more.
    pub(super) fn detach(&mut self, client: usize, device: usize, force: bool, now: Instant) {
        let slot = &self.slots[device];
        let name = slot.plan.name.clone();
        let refused = match slot.going {
            _ if slot.plan.pci.is_none() => {
                Some("only PCI devices can be attached and detached; bulkhead disk removes disks")
            }
            Going::No => None,
            Going::Asked if force => None,
            _ => Some("it is being detached already"),
        };
        if let Some(why) = refused {
            let reason = format!("{name}: {why}");
            return self.control.answer(client, &Reply::Failed { reason }, now);
        }
        let asked = match force {
            true => self.remove(device),
            // An answer that comes late must not be taken for that to another question.
            false => !self.operator.has_told(&name) && self.operator.tell(&name, EJECT.to_owned(), &[]),
        };
        if !asked {
            let reason = format!("{name}: it cannot be asked for just now; try again");
            return self.control.answer(client, &Reply::Failed { reason }, now);
        }
        if !force {
            self.slots[device].going = Going::Asked;
        }
        self.control.wait_for(client, Wish::Detach { device }, now);
    }

    /// The core is to give the device up.
    fn remove(&mut self, device: usize) -> bool {
        let slot = &mut self.slots[device];
        if !self.operator.remove(&slot.plan.name) {
            return false;
        }
        slot.going = Going::Removed;
        self.events.push_back(Event::Detaching(device, true));
        true
    }

    /// What the guest has made of it, as the device's process says; `None`: it was not about that.
    pub(super) fn answer_eject(&mut self, device: usize, answer: Answer) -> Option<Answer> {
        let slot = &self.slots[device];
        match slot.going {
            Going::Asked => {}
            // Meanwhile it was taken away.
            Going::Removed | Going::Ending | Going::Gone => return None,
            Going::No => return Some(answer),
        }
        let name = slot.plan.name.clone();
        let why = match answer {
            Answer::Given(Ok(_)) if self.remove(device) => return None,
            Answer::Given(Ok(_)) => "the core cannot be asked to give it up".to_owned(),
            Answer::Given(Err(why)) | Answer::Missing(why) => shown(&why),
        };
        self.stays(device, &format!("{name} was not detached: {why}; --force takes it away all the same"));
        None
    }

    /// The core has given it up, or not.
    pub(super) fn core_removed(&mut self, name: &str, result: Result<(), String>) {
        let is_it =
            |slot: &Slot| slot.plan.name == name && matches!(slot.going, Going::Removed | Going::Ending);
        let Some(device) = self.slots.iter().rposition(is_it) else { return };
        match result {
            Ok(()) => {
                self.slots[device].going = Going::Ending;
                self.events.push_back(Event::Detached(device));
            }
            // It was being taken back after a failure; there is nobody to tell.
            Err(_) if self.slots[device].going == Going::Ending => {}
            Err(why) => {
                self.events.push_back(Event::Detaching(device, false));
                self.stays(device, &format!("{name} was not detached: {}", shown(&why)));
            }
        }
    }

    fn stays(&mut self, device: usize, reason: &str) {
        self.slots[device].going = Going::No;
        tracing::warn!(process = self.slots[device].plan.name, "{reason}");
        let reply = Reply::Failed { reason: reason.to_owned() };
        self.control.answer_all(|wish| wish == Wish::Detach { device }, &reply);
    }

    /// Those that have nobody left are gone.
    pub(super) fn answer_detached(&mut self) {
        for (device, slot) in self.slots.iter_mut().enumerate() {
            if slot.going == Going::Ending && self.vm.has_left(device) {
                slot.going = Going::Gone;
                let address = slot.plan.pci.map(|pci| pci.address.to_string()).unwrap_or_default();
                tracing::info!(process = slot.plan.name, address, "detached");
                let what = format!("{}: {address} is the VM's no more", slot.plan.name);
                self.control.answer_all(|wish| wish == Wish::Detach { device }, &Reply::Done { what });
            }
        }
    }
}
