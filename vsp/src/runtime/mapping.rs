//! Memory of the device's own that the guest sees: questions to the core and its answers.

use std::os::fd::{AsFd, OwnedFd};

use ipc::message::{MEMORY_VERSION, ToCore};
use ipc::shm::SharedMemory;

use super::{Runtime, RuntimeError};
use crate::channels::Order;
use crate::device::Device;

/// What the core can do with a device's memory.
#[derive(Debug, Default)]
pub(super) struct Mapper {
    /// It can map it.
    is_offered: bool,
}

impl Mapper {
    pub fn welcomed(&mut self, version: u32) {
        self.is_offered = version >= MEMORY_VERSION;
    }
}

impl<D: Device> Runtime<D> {
    /// Tells the core what the device wants to have mapped.
    pub(super) fn report_orders(&mut self) -> Result<(), RuntimeError> {
        for order in self.channels.take_orders() {
            match order {
                Order::Map { gpa, memory, bytes } if self.mapper.is_offered => {
                    self.tell_with(&ToCore::MapMemory { gpa, bytes }, &[memory.as_fd()])?;
                }
                Order::Map { gpa, .. } => self.channels.refuse_order(gpa),
                Order::Unmap { gpa } if self.mapper.is_offered => {
                    self.tell(&ToCore::UnmapMemory { gpa })?;
                }
                Order::Unmap { .. } => {}
            }
        }
        Ok(())
    }

    /// Answers in place of a core that is too old to be asked.
    pub(super) fn refuse_orders(&mut self) {
        while let Some(gpa) = self.channels.take_refused_order() {
            self.memory_mapped(gpa, Err("this VM's core is too old to map a device's memory".to_owned()));
        }
    }

    /// The core has answered. What was asked for a channel that has closed meanwhile is void, and must not be taken for an answer to
    /// what is asked for the next one.
    pub(super) fn memory_mapped(&mut self, gpa: u64, result: Result<(), String>) {
        if self.channels.order_answered(gpa) {
            self.device.memory_mapped(gpa, result, &mut self.channels);
        }
    }

    /// A predecessor has mapped this.
    pub(super) fn memory_found(&mut self, gpa: u64, bytes: u64, mut fds: Vec<OwnedFd>) {
        let memory = fds.pop().ok_or_else(|| "no descriptor came with it".to_owned());
        match memory.and_then(|fd| SharedMemory::from_fd(fd, bytes).map_err(|error| error.to_string())) {
            Ok(memory) => self.device.memory(gpa, memory, bytes),
            Err(error) => {
                tracing::error!(gpa, bytes, "what the guest sees of the device's memory is lost: {error}")
            }
        }
    }
}
