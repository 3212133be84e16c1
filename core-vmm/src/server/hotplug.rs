//! Devices that come and go while the VM runs, as an operator says.
//!
//! A rescinded offer destroys the guest's device: this is the one way to it, for what is meant to be gone.

use std::time::Instant;

use ipc::{config::DeviceSlot, message::ToVsp, operator::Reply};

use super::{PRIMARIES, Server, TELL_AGAIN, device::Device, slot::OperatorId};
use crate::partition::Partition;

impl Server {
    /// The device of this name.
    pub(super) fn device_named(&self, name: &str) -> Option<usize> {
        self.devices.iter().position(|device| !device.is_vacant() && device.name == name)
    }

    /// An operator wants the VM to have one device more.
    pub(super) fn begin_add(&mut self, id: OperatorId, slot: &DeviceSlot) {
        let device = slot.name.clone();
        let reply = match self.add_device(slot) {
            Ok(()) => {
                tracing::info!(%device, "may attach from now on");
                Reply::Added { device }
            }
            Err(reason) => Reply::Failed { device, reason },
        };
        self.operators.answer(id, &reply);
    }

    fn add_device(&mut self, slot: &DeviceSlot) -> Result<(), String> {
        let new = Device::new(slot).map_err(|error| error.to_string())?;
        let mut others = self.devices.iter().filter(|device| !device.is_vacant());
        if new.is_vacant() {
            return Err("a device needs a name".into());
        }
        if others.clone().count() >= PRIMARIES {
            return Err(format!("a VM has {PRIMARIES} devices at most"));
        }
        if others.any(|device| device.name == new.name || device.instance == new.instance) {
            return Err("this VM has a device of that name or instance already".into());
        }
        match self.devices.iter_mut().find(|device| device.is_vacant()) {
            Some(place) => *place = new,
            None => self.devices.push(new),
        }
        Ok(())
    }

    /// An operator wants a device gone.
    pub(super) fn begin_remove<P: Partition>(
        &mut self,
        partition: &P,
        id: OperatorId,
        name: String,
        force: bool,
    ) {
        match self.remove_device(partition, &name, force) {
            Ok(device) => {
                tracing::info!(device = %name, "is to go");
                self.devices[device].removal = Some(id);
                self.operators.wait(id);
                self.finish_removals(partition);
            }
            Err(reason) => self.operators.answer(id, &Reply::Failed { device: name, reason }),
        }
    }

    fn remove_device<P: Partition>(
        &mut self,
        partition: &P,
        name: &str,
        force: bool,
    ) -> Result<usize, String> {
        let i = self.device_named(name).ok_or("this VM has no such device")?;
        let device = &self.devices[i];
        if device.removal.is_some() {
            return Err("it is about to go already".into());
        }
        if device.slot.is_busy() {
            return Err("a hand-over is under way".into());
        }
        if !force && self.live.iter().any(|live| live.device == i) {
            return Err("the guest uses it".into());
        }
        if let Some(relid) = device.offered.as_ref().map(|offered| offered.relid) {
            self.bus.rescind(relid);
            self.apply(partition);
        }
        Ok(i)
    }

    /// Of a device that is to go nobody may be left who could close its channels. What a device of the host's does by itself ends with the last
    /// descriptor of it: with those that are kept.
    fn let_go<P: Partition>(&mut self, partition: &P, i: usize) {
        let Self { devices, closer, .. } = self;
        let device = &mut devices[i];
        if device.passthrough && device.slot.all().next().is_none() {
            device.kept.let_go(closer);
            self.settle(partition, i);
        }
    }

    /// When to see whether what was held of a device that is to go has been closed. It may have been since it was last looked at: nobody says so.
    pub(super) fn removals_deadline(&self) -> Option<Instant> {
        let is_to_go = |device: &Device| device.removal.is_some() && device.passthrough;
        let is_waited_for = |device: &Device| is_to_go(device) && device.slot.all().next().is_none();
        self.devices.iter().any(is_waited_for).then(|| Instant::now() + TELL_AGAIN)
    }

    /// Forgets devices that are to go and that the guest has nothing of any more.
    pub(super) fn finish_removals<P: Partition>(&mut self, partition: &P) {
        for i in 0..self.devices.len() {
            let Some(operator) = self.devices[i].removal else { continue };
            self.let_go(partition, i);
            if self.live.iter().any(|live| live.device == i) || self.devices[i].kept.is_closing() {
                continue;
            }
            self.lose_controls(i);
            let mut gone = std::mem::replace(&mut self.devices[i], Device::vacant());
            for (_, process) in gone.slot.all() {
                // If it does not listen, it reads the end.
                let _ = process.peer.send(&ToVsp::Retire {}, &[]);
            }
            gone.kept.let_go(&mut self.closer);
            tracing::info!(device = %gone.name, "has gone");
            self.operators.answer(operator, &Reply::Removed { device: gone.name.clone() });
        }
    }
}
