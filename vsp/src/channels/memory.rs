//! Memory of the device's own that the guest is to see.

use std::collections::VecDeque;
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
}

/// A question to the core, which answers each of them, in order.
#[derive(Debug)]
struct Asked {
    gpa: u64,
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
    /// Questions of which nobody will answer that they are refused, by their addresses.
    refused: Vec<u64>,
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
        self.orders.words.push(Order::Map { gpa, memory: Arc::clone(memory), bytes });
        self.orders.asked.push_back(Asked { gpa, is_stale: false });
    }

    /// The guest is not to see any more what this device has mapped at `gpa`: the core is told before the guest sees any answer of
    /// this turn's. It does so at once and does not say when it has.
    pub fn unmap_memory(&mut self, gpa: u64) {
        self.orders.words.push(Order::Unmap { gpa });
    }

    /// What the core has to be told.
    pub(crate) fn take_orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders.words)
    }

    /// The core cannot be asked for this one.
    pub(crate) fn refuse_order(&mut self, gpa: u64) {
        self.orders.refused.push(gpa);
    }

    /// One that was refused so.
    pub(crate) fn take_refused_order(&mut self) -> Option<u64> {
        self.orders.refused.pop()
    }

    /// The core has answered, or is answered for: whether anybody wants to know.
    pub(crate) fn order_answered(&mut self, gpa: u64) -> bool {
        let asked = &mut self.orders.asked;
        let place = asked.iter().position(|asked| asked.gpa == gpa);
        place.and_then(|place| asked.remove(place)).is_some_and(|asked| !asked.is_stale)
    }
}
