//! Memory of the device's own that the guest is to see; and the line on which the core is asked for it and for what
//! [passes a host device through](super::passthrough).

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ipc::shm::SharedMemory;

use super::Channels;

/// What the core is to be told.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// The guest is to see the first so many bytes of it there.
    Map { gpa: u64, memory: Arc<SharedMemory>, bytes: u64 },
    /// The guest is not to see any more what is there.
    Unmap { gpa: u64 },
    /// The core is to hold these, or nothing, under a key.
    Keep { key: u32, note: String, fds: Vec<Arc<OwnedFd>> },
    /// The guest is to see a part of a file there.
    Region { gpa: u64, bytes: u64, offset: u64, file: Arc<OwnedFd> },
    /// The device answers the guest's accesses.
    Trap { gpa: u64, bytes: u64 },
    /// It does not any more.
    Untrap { gpa: u64 },
    /// The answer to an access.
    Access { id: u64, value: u64 },
    /// An eventfd raises an interrupt.
    Interrupt { id: u32, vector: u8, vp: u32, bell: Arc<OwnedFd> },
    /// It does not any more.
    NoInterrupt { id: u32 },
}

impl Order {
    /// What the core answers, if it does.
    pub fn question(&self) -> Option<Question> {
        match self {
            Order::Map { gpa, .. } | Order::Region { gpa, .. } => Some(Question::Map(*gpa)),
            Order::Trap { gpa, .. } => Some(Question::Trap(*gpa)),
            Order::Interrupt { id, .. } => Some(Question::Interrupt(*id)),
            Order::Unmap { .. }
            | Order::Keep { .. }
            | Order::Untrap { .. }
            | Order::Access { .. }
            | Order::NoInterrupt { .. } => None,
        }
    }
}

/// What the core is asked, named as in its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    Map(u64),
    Trap(u64),
    Interrupt(u32),
}

/// A question to the core, which answers each of them, in order.
#[derive(Debug)]
struct Asked {
    question: Question,
    /// The primary channel has closed meanwhile: what was mapped is not any more, and nobody wants the answer.
    is_stale: bool,
}

/// Orders of this process.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// What the core has still to be told, in order.
    words: Vec<Order>,
    /// Questions whose answers are due, in their order.
    asked: VecDeque<Asked>,
    /// Questions of which nobody will answer that they are refused.
    refused: Vec<Question>,
}

impl Orders {
    pub fn owes_words(&self) -> bool {
        !self.words.is_empty()
    }

    pub fn has_refusals(&self) -> bool {
        !self.refused.is_empty()
    }

    /// The primary channel closes.
    pub fn close(&mut self) {
        self.asked.iter_mut().for_each(|asked| asked.is_stale = true);
    }
}

impl Channels {
    /// Asks the core to have the guest see the first `bytes` bytes of `memory` from the guest-physical address `gpa` on. The core decides whether
    /// that may be: it has to lie in a window for MMIO that the guest gives to VMBus devices, and the primary channel has to be open.
    /// [`crate::Device::memory_mapped`] is the answer, in a later turn; packets may come before it.
    ///
    /// What this device has at `gpa` already is replaced. It stays, beyond this process too, until the guest closes the primary channel or begins
    /// anew, or until [`Channels::unmap_memory`]: a successor gets it by [`crate::Device::memory`].
    pub fn map_memory(&mut self, gpa: u64, memory: &Arc<SharedMemory>, bytes: u64) {
        self.order(Order::Map { gpa, memory: Arc::clone(memory), bytes });
    }

    /// Something that the core is to be told before the guest sees any answer of this turn's.
    pub(super) fn order(&mut self, order: Order) {
        if let Some(question) = order.question() {
            self.orders.asked.push_back(Asked { question, is_stale: false });
        }
        self.orders.words.push(order);
    }

    /// The guest is not to see any more what this device has mapped at `gpa`: the core is told before the guest sees any answer of
    /// this turn's. It does so at once and does not say when it has.
    pub fn unmap_memory(&mut self, gpa: u64) {
        self.order(Order::Unmap { gpa });
    }

    /// What the core has to be told.
    pub(crate) fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders.words)
    }

    /// The core cannot be asked for this one.
    pub(crate) fn refuse_order(&mut self, question: Question) {
        self.orders.refused.push(question);
    }

    /// One that was refused so.
    pub(crate) fn take_refused_order(&mut self) -> Option<Question> {
        self.orders.refused.pop()
    }

    /// The core has answered, or is answered for: whether anybody wants to know.
    pub(crate) fn order_answered(&mut self, question: Question) -> bool {
        let asked = &mut self.orders.asked;
        let place = asked.iter().position(|asked| asked.question == question);
        place.and_then(|place| asked.remove(place)).is_some_and(|asked| !asked.is_stale)
    }
}
