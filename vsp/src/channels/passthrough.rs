//! What a device needs that passes one of the host's through: descriptors that outlive the process, parts of the host's device for the guest to see,
//! accesses that the device answers, interrupts without a process in between.
//!
//! All of it is the core's to grant, and only to devices whose slot says so. The order of the calls is the order in which the core hears of them, before
//! the guest sees any answer of the turn.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Channels;
use super::memory::Order;

impl Channels {
    /// Has the core hold these descriptors for the device's next process, in the place of what it holds under `key`: a successor is given them by
    /// [`crate::Device::kept`], with the note. At most 16 under a key, [`MAX_KEPT`] keys, [`MAX_KEPT_FDS`] in all, 1 KiB of note: a core
    /// cuts a process off that wants more. They end with the core, or with the device's slot.
    ///
    /// Until the end of the turn the process alone has them. With a core that is too old for it, it is alone for good, which is logged.
    ///
    /// [`MAX_KEPT`]: ipc::message::MAX_KEPT
    /// [`MAX_KEPT_FDS`]: ipc::message::MAX_KEPT_FDS
    pub fn keep(&mut self, key: u32, note: &str, fds: &[Arc<OwnedFd>]) {
        self.order(Order::Keep { key, note: note.to_owned(), fds: fds.to_vec() });
    }

    /// The core is to hold nothing any more under this key.
    pub fn forget(&mut self, key: u32) {
        self.order(Order::Keep { key, note: String::new(), fds: Vec::new() });
    }

    /// Asks the core to have the guest see `bytes` bytes of `file` from its byte `offset` on at the guest-physical address `gpa`. As
    /// [`Channels::map_memory`] in everything else: [`crate::Device::memory_mapped`] is the answer, [`Channels::unmap_memory`] takes it back. At most
    /// [`MAX_REGIONS`](ipc::message::MAX_REGIONS) at a time. A successor is told of it by [`crate::Device::region`].
    ///
    /// Should the file not answer when the guest looks at it, the mapping ends: [`crate::Device::region_lost`].
    pub fn map_region(&mut self, gpa: u64, bytes: u64, file: &Arc<OwnedFd>, offset: u64) {
        self.order(Order::Region { gpa, bytes, offset, file: Arc::clone(file) });
    }

    /// Asks the core to pass on what the guest reads and writes at these addresses: [`crate::Device::trapped`] is the answer, [`crate::Device::access`]
    /// what follows. Whole pages in a window for MMIO that the guest gives to VMBus devices, where nothing is mapped or trapped; at most
    /// [`MAX_TRAPS`](ipc::message::MAX_TRAPS) at a time. It stays as a mapping does, and a successor is told of it by [`crate::Device::trap`].
    pub fn trap(&mut self, gpa: u64, bytes: u64) {
        self.order(Order::Trap { gpa, bytes });
    }

    /// Does not want to answer any more what the guest does at the trap that begins at `gpa`: it finds nothing there. Accesses that wait for an answer have
    /// one with that.
    pub fn untrap(&mut self, gpa: u64) {
        self.order(Order::Untrap { gpa });
    }

    /// Answers an [access](crate::Device::access): the VP goes on, at the end of the turn. `value` is what it has read; of a write it says nothing.
    /// Saying it twice, or for an access that is over, does nothing.
    pub fn access_done(&mut self, id: u64, value: u64) {
        self.order(Order::Access { id, value });
    }

    /// Asks the core to have this eventfd raise an interrupt in the guest, in the place of the one with this number:
    /// [`crate::Device::interrupt_ready`] is the answer. A vector of 16 or more, a VP's index. The guest moves it to where it wants it by itself,
    /// and names it by its number, which it takes from the data of an MSI. At most [`MAX_INTERRUPTS`](ipc::message::MAX_INTERRUPTS) at a time. It
    /// stays as a mapping does; a successor knows of it from the device's own state.
    pub fn interrupt(&mut self, id: u32, vector: u8, vp: u32, bell: &Arc<OwnedFd>) {
        self.order(Order::Interrupt { id, vector, vp, bell: Arc::clone(bell) });
    }

    /// The interrupt with this number is no more.
    pub fn delete_interrupt(&mut self, id: u32) {
        self.order(Order::NoInterrupt { id });
    }
}
