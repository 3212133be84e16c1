//! Interrupts that a device of the host's raises in the guest by an eventfd, without anybody in between: which there are, and where they go.
//!
//! A process of the device's has them made; from then on the guest moves them, by a hypercall, and no process is asked.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use ipc::message::{MAX_INTERRUPTS, MIN_VECTOR};

use super::Server;
use crate::{
    hypercall::{Retarget, device_id},
    partition::{HvStatus, Partition, Target},
};

/// Interrupts of a VM at a time, each a descriptor and a route of KVM's, which takes 4,096 in all.
const INTERRUPTS_MAX: usize = 512;

/// One of them.
#[derive(Debug)]
pub(super) struct Interrupt {
    /// The device's place among all.
    device: usize,
    /// The device's number of it.
    id: u32,
    /// The partition's.
    route: u32,
    to: Target,
    bell: OwnedFd,
}

impl Server {
    /// Device `i` wants an interrupt, or another one in the place of the one with this number, which is no more in any case.
    pub(super) fn interrupt<P: Partition>(
        &mut self,
        partition: &P,
        i: usize,
        (id, vector, vp): (u32, u8, u32),
        mut fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        self.delete_interrupt(partition, i, id);
        self.open_primary(i)?;
        let to = self.target(vp, u32::from(vector)).ok_or("there is no such vector or processor")?;
        let own = self.interrupts.iter().filter(|interrupt| interrupt.device == i).count();
        if own >= MAX_INTERRUPTS || self.interrupts.len() >= INTERRUPTS_MAX {
            return Err("there are too many interrupts already".into());
        }
        let (Some(bell), true) = (fds.pop(), fds.is_empty()) else {
            return Err("one descriptor has to come with it".into());
        };
        let is_free = |route: &u32| self.interrupts.iter().all(|interrupt| interrupt.route != *route);
        let route = (0..INTERRUPTS_MAX as u32).find(is_free).ok_or("no number is left for it")?;
        // Refused, and not cut off: how often an honest device asks may be the guest's doing. Whatever is deleted was made once, so this limits both.
        if !self.devices[i].routings.take(Instant::now()) {
            return Err("interrupts are asked for too often".into());
        }
        partition.route_interrupt(route, to, bell.as_fd()).map_err(|error| error.to_string())?;
        self.interrupts.push(Interrupt { device: i, id, route, to, bell });
        Ok(())
    }

    fn target(&self, vp: u32, vector: u32) -> Option<Target> {
        let vector = u8::try_from(vector).ok().filter(|vector| *vector >= MIN_VECTOR)?;
        (vp < self.vps).then_some(Target { vp, vector })
    }

    /// An interrupt is no more.
    pub(super) fn delete_interrupt<P: Partition>(&mut self, partition: &P, i: usize, id: u32) {
        self.end_interrupts(partition, |interrupt| interrupt.device == i && interrupt.id == id);
    }

    /// The guest has closed the primary channel of device `i`.
    pub(super) fn delete_interrupts<P: Partition>(&mut self, partition: &P, i: usize) {
        self.end_interrupts(partition, |interrupt| interrupt.device == i);
    }

    fn end_interrupts<P: Partition>(&mut self, partition: &P, which: impl Fn(&Interrupt) -> bool) {
        for interrupt in self.interrupts.extract_if(.., |interrupt| which(interrupt)) {
            partition.end_interrupt(interrupt.route, interrupt.bell.as_fd());
        }
    }

    /// The guest wants an interrupt raised elsewhere.
    pub fn retarget_interrupt<P: Partition>(&mut self, partition: &P, wanted: &Retarget) -> HvStatus {
        let Some(to) = self.target(wanted.vp, wanted.vector) else { return HvStatus::InvalidParameter };
        // The lowest bits number a device's functions, of which ours have one.
        let is_named = |i: usize| {
            let device = &self.devices[i];
            device.passthrough && device_id(device.instance.to_wire()) == wanted.device & !7
        };
        let found = self.interrupts.iter_mut().find(|one| one.id == wanted.data && is_named(one.device));
        match found {
            Some(interrupt) if interrupt.to == to => HvStatus::Success,
            Some(interrupt) => match partition.move_interrupt(interrupt.route, to) {
                Ok(()) => {
                    interrupt.to = to;
                    HvStatus::Success
                }
                Err(error) => {
                    if let Some(times) = self.complaints.another() {
                        tracing::warn!(%error, times, "an interrupt cannot be moved");
                    }
                    HvStatus::InsufficientBuffers
                }
            },
            None => HvStatus::InvalidParameter,
        }
    }
}
