//! The machine below a guest.

use std::time::Duration;

use vmbus::ring::RingMemory;

/// Any error of a platform's own.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A message that could not be posted.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The hypercall's status (TLFS, "Hypercall status codes").
    #[error("hypercall status {0}")]
    Status(u16),
    /// The platform failed.
    #[error("{0}")]
    Platform(#[from] BoxError),
}

/// Hypercall status: the host has no buffer for the message now; guests try again.
pub const STATUS_INSUFFICIENT_BUFFERS: u16 = 19;

/// The machine below a guest: its virtual processors, its memory, its hypercalls. Shared by all threads of the guest.
///
/// The platform has set up the SynIC on every virtual processor: message page, event-flags page, and the VMBus
/// interrupt source unmasked. Addresses are guest-physical and in bytes.
pub trait Platform: Send + Sync {
    /// A ring in guest memory, as the guest sees it.
    type Ring: RingMemory + Send;

    /// Virtual processors; their indices are `0..vp_count()`.
    fn vp_count(&self) -> u32;

    /// Posts a channel message to a connection (`HvPostMessage`).
    fn post_message(&self, connection: u32, message: &[u8]) -> Result<(), PostError>;

    /// Signals a connection (`HvSignalEvent`).
    fn signal_event(&self, connection: u32) -> Result<(), BoxError>;

    /// A hypercall with its input in memory and no output: the control word, where the input lies, and the status (TLFS, "Hypercall Interface").
    fn hypercall(&self, control: u64, input: u64) -> Result<u64, BoxError> {
        let _ = (control, input);
        Err("this platform has no such hypercalls".into())
    }

    /// How many interrupts a vector of virtual processor `vp` has had so far that are none of the VMBus's: those that a device raises which is
    /// passed through.
    fn vector_interrupts(&self, vp: u32, vector: u8) -> u64 {
        let _ = (vp, vector);
        0
    }

    /// Waits until [`Self::vector_interrupts`] is not `seen` any more, or the time is over.
    fn wait_vector(&self, vp: u32, vector: u8, seen: u64, timeout: Duration) {
        let _ = (vp, vector, seen, timeout);
    }

    /// Reads 1, 2, 4 or 8 bytes at once, as from a register of a device's.
    fn read_mmio(&self, address: u64, bytes: usize) -> u64 {
        let mut value = [0; 8];
        self.read(address, &mut value[..bytes]);
        u64::from_le_bytes(value)
    }

    /// Writes as many.
    fn write_mmio(&self, address: u64, bytes: usize, value: u64) {
        self.write(address, &value.to_le_bytes()[..bytes]);
    }

    /// Takes the payload of the message in the VMBus slot of virtual processor `vp`, if there is one, frees the slot
    /// and tells the host if it asked for that (end of message).
    fn take_message(&self, vp: u32) -> Result<Option<Vec<u8>>, BoxError>;

    /// Clears an event flag of the VMBus source of virtual processor `vp`; true if it was set.
    fn take_event(&self, vp: u32, flag: u32) -> bool;

    /// How many VMBus interrupts virtual processor `vp` has had so far, in no particular unit: it changes with
    /// each one.
    fn interrupts(&self, vp: u32) -> u64;

    /// Waits until [`Self::interrupts`] of `vp` is not `seen` any more, or the time is over. Any number of threads
    /// may wait for the same processor, and all of them wake.
    fn wait_interrupt(&self, vp: u32, seen: u64, timeout: Duration);

    /// Allocates guest pages in a row, zeroed.
    fn allocate(&self, pages: u32) -> Result<u64, BoxError>;

    /// Frees what [`Self::allocate`] returned. The host must not use them any more.
    fn release(&self, address: u64, pages: u32);

    /// Reads the guest's own memory.
    ///
    /// # Panics
    /// If the range is not memory of the guest: an error of the caller's. The same holds for [`Self::write`].
    fn read(&self, address: u64, into: &mut [u8]);

    /// Writes the guest's own memory.
    fn write(&self, address: u64, from: &[u8]);

    /// The ring in `pages` pages from `address` on, the first of which is the control page. Asked for when the
    /// host has taken the pages' GPADL, for it may have moved them in physical memory.
    fn ring(&self, address: u64, pages: u32) -> Result<Self::Ring, BoxError>;
}
