//! A virtual processor's page of synthetic event flags (TLFS 11.8.3, `HV_SYNIC_EVENT_FLAGS_PAGE`):
//! for each of 16 interrupt sources 2048 flags.

use std::sync::atomic::Ordering;

use super::{Mapping, PAGE, SharedMemory, ShmError};

/// The interrupt source that VMBus uses (`VMBUS_MESSAGE_SINT`).
pub const VMBUS_SINT: u32 = 2;

const SINTS: u32 = 16;
const FLAGS_A_SINT: u32 = 2048;

/// One VP's event flags.
#[derive(Debug)]
pub struct EventFlags {
    page: Mapping,
}

impl EventFlags {
    /// Maps the page from the start of its memfd.
    pub fn new(memory: &SharedMemory) -> Result<EventFlags, ShmError> {
        Ok(EventFlags { page: Mapping::new(memory, 0, PAGE as u64)? })
    }

    /// Whether there is such a flag.
    pub fn is_valid(sint: u32, flag: u32) -> bool {
        sint < SINTS && flag < FLAGS_A_SINT
    }

    /// Sets a flag atomically; true if it was clear. Panics if there is no such flag: see
    /// [`EventFlags::is_valid`].
    pub fn set(&self, sint: u32, flag: u32) -> bool {
        let (word, bit) = EventFlags::place(sint, flag);
        self.page.word(word).fetch_or(bit, Ordering::SeqCst) & bit == 0
    }

    /// Clears a flag atomically, as a guest does; true if it was set.
    pub fn clear(&self, sint: u32, flag: u32) -> bool {
        let (word, bit) = EventFlags::place(sint, flag);
        self.page.word(word).fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    fn place(sint: u32, flag: u32) -> (usize, u32) {
        assert!(EventFlags::is_valid(sint, flag), "no flag {flag} at SINT {sint}");
        ((sint * FLAGS_A_SINT / 8 + flag / 32 * 4) as usize, 1 << (flag % 32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_lies_where_the_guest_looks() {
        let memory = SharedMemory::create("flags", 4096).unwrap();
        let flags = EventFlags::new(&memory).unwrap();
        let raw = Mapping::new(&memory, 0, 4096).unwrap();
        assert!(flags.set(VMBUS_SINT, 41));
        assert!(!flags.set(VMBUS_SINT, 41));
        let mut byte = [0];
        raw.read(2 * 256 + 5, &mut byte);
        assert_eq!(byte[0], 1 << 1);
        assert!(flags.clear(VMBUS_SINT, 41));
        assert!(!flags.clear(VMBUS_SINT, 41));
        assert!(flags.set(15, 2047));
        assert!(!EventFlags::is_valid(2, 2048));
    }
}
