//! Memory of the device's own that the guest sees: questions to the core and its answers. What passes a host device through is asked in the same way, and answered in
//! `passthrough`.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use ipc::message::{MEMORY_VERSION, PASSTHROUGH_VERSION, ToCore};
use ipc::shm::SharedMemory;

use super::{Runtime, RuntimeError};
use crate::channels::{Order, Question};
use crate::device::{Access, Device};

/// What the core can do with a device's memory.
#[derive(Debug, Default)]
pub(super) struct Mapper {
    /// It can map it.
    is_offered: bool,
    /// It can do what passes a host device through.
    passes: bool,
    /// Accesses of the guest that came before the device could be asked.
    pub accesses: VecDeque<Access>,
    /// Channels that the guest has closed while nobody served: to be answered once the device has been told that there are no more.
    pub closes: Vec<u32>,
}

impl Mapper {
    pub fn welcomed(&mut self, version: u32) {
        self.is_offered = version >= MEMORY_VERSION;
        self.passes = version >= PASSTHROUGH_VERSION;
    }

    /// Whoever serves next is told of them again.
    pub fn forget(&mut self) {
        self.accesses.clear();
        self.closes.clear();
    }
}

impl<D: Device> Runtime<D> {
    /// Tells the core what the device wants to have mapped.
    pub(super) fn report_orders(&mut self) -> Result<(), RuntimeError> {
        for order in self.channels.take_orders() {
            let is_offered = match order {
                Order::Map { .. } | Order::Unmap { .. } => self.mapper.is_offered,
                _ => self.mapper.passes,
            };
            match order.question() {
                _ if is_offered => self.give_order(order)?,
                Some(question) => self.channels.refuse_order(question),
                None => {
                    if let Order::Keep { key, .. } = order {
                        tracing::warn!(
                            key,
                            "this VM's core is too old to keep anything for the next process"
                        );
                    }
                }
            }
        }
        Ok(())
    }

    fn give_order(&mut self, order: Order) -> Result<(), RuntimeError> {
        match order {
            Order::Map { gpa, memory, bytes } => {
                self.tell_with(&ToCore::MapMemory { gpa, bytes }, &[memory.as_fd()])
            }
            Order::Unmap { gpa } => self.tell(&ToCore::UnmapMemory { gpa }),
            Order::Keep { key, note, fds } => {
                let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
                self.tell_with(&ToCore::Keep { key, note }, &fds)
            }
            Order::Region { gpa, bytes, offset, file } => {
                self.tell_with(&ToCore::MapRegion { gpa, bytes, offset }, &[file.as_fd()])
            }
            Order::Trap { gpa, bytes } => self.tell(&ToCore::Trap { gpa, bytes }),
            Order::Untrap { gpa } => self.tell(&ToCore::Untrap { gpa }),
            Order::Access { id, value } => self.tell(&ToCore::AccessDone { id, value }),
            Order::Interrupt { id, vector, vp, bell } => {
                self.tell_with(&ToCore::Interrupt { id, vector, vp }, &[bell.as_fd()])
            }
            Order::NoInterrupt { id } => self.tell(&ToCore::InterruptDelete { id }),
        }
    }

    /// Answers in place of a core that is too old to be asked.
    pub(super) fn refuse_orders(&mut self) {
        while let Some(question) = self.channels.take_refused_order() {
            let why = Err("this VM's core is too old for what this device needs".to_owned());
            match question {
                Question::Map(gpa) => self.memory_mapped(gpa, why),
                Question::Trap(gpa) => self.trapped(gpa, why),
                Question::Interrupt(id) => self.interrupt_ready(id, why),
            }
        }
    }

    /// The core has answered. What was asked for a channel that has closed meanwhile is void, and must not be taken for an answer to
    /// what is asked for the next one.
    pub(super) fn memory_mapped(&mut self, gpa: u64, result: Result<(), String>) {
        if self.channels.order_answered(Question::Map(gpa)) {
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
