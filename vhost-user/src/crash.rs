//! What a process that dies of its own fault leaves for its successor: over which request, if that is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use sandbox::crash::{Registration, Witness, register};

use crate::inflight::Region;

/// The request that the device's code is working on: its queue above its head, plus 1; 0 for none. One thread runs all of them.
static SUSPECTED: AtomicU32 = AtomicU32::new(0);

/// The device's code begins on a request.
pub(crate) fn enter(queue: u16, head: u16) {
    SUSPECTED.store((u32::from(queue) << 16 | u32::from(head)) + 1, Ordering::Relaxed);
}

/// It is done with it for now.
pub(crate) fn leave() {
    SUSPECTED.store(0, Ordering::Relaxed);
}

struct Stamp(Region);

impl Witness for Stamp {
    fn stamp(&self, _signal: i32) {
        match SUSPECTED.load(Ordering::Relaxed).checked_sub(1) {
            Some(suspect) => self.0.blame((suspect >> 16) as u16, suspect as u16),
            None => self.0.crashed(),
        }
    }
}

/// Has this region told of a crash for as long as what is returned is there; `None` if there is no room for more witnesses.
pub(crate) fn watch(region: &Region) -> Option<Registration> {
    register(Arc::new(Stamp(region.clone()))).ok()
}
