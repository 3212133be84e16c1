//! What the core says to a device that passes one of the host's through.

use std::os::fd::OwnedFd;

use ipc::message::ToVsp;

use super::Runtime;
use crate::channels::Question;
use crate::device::{Access, Device};
use crate::role::Role;

impl<D: Device> Runtime<D> {
    /// It says something of that.
    pub(super) fn pass(&mut self, message: ToVsp, fds: Vec<OwnedFd>) {
        match message {
            ToVsp::Kept { key, note } => self.device.kept(key, note, fds),
            ToVsp::Region { gpa, bytes, offset } => self.device.region(gpa, bytes, offset),
            ToVsp::RegionLost { gpa } => self.device.region_lost(gpa, &mut self.channels),
            ToVsp::Trapped { gpa, result } => self.trapped(gpa, result),
            ToVsp::TrapThere { gpa, bytes } => self.device.trap(gpa, bytes),
            ToVsp::Access { id, gpa, bytes, write } => self.accessed(Access { id, gpa, bytes, write }),
            ToVsp::InterruptReady { id, result } => self.interrupt_ready(id, result),
            _ => {}
        }
    }

    /// The core has answered for a trap.
    pub(super) fn trapped(&mut self, gpa: u64, result: Result<(), String>) {
        if self.channels.order_answered(Question::Trap(gpa)) {
            self.device.trapped(gpa, result, &mut self.channels);
        }
    }

    /// The core has answered for an interrupt.
    pub(super) fn interrupt_ready(&mut self, id: u32, result: Result<(), String>) {
        if self.channels.order_answered(Question::Interrupt(id)) {
            self.device.interrupt_ready(id, result, &mut self.channels);
        }
    }

    /// The guest has met a trap. The device is asked in [`Self::deliver_accesses`].
    fn accessed(&mut self, access: Access) {
        // One at a time for each VP: there cannot be many.
        self.mapper.accesses.push_back(access);
    }

    /// Asks the device for what the guest waits for, as soon as it knows all of what its predecessor has left.
    pub(super) fn deliver_accesses(&mut self) {
        if !matches!(self.role, Role::Serving) || !self.adoption.is_over() {
            return;
        }
        while let Some(access) = self.mapper.accesses.pop_front() {
            self.device.access(access, &mut self.channels);
        }
    }
}
