//! What the guest's processors do where the core has set a trap.

use vsp::{Access, Channels};

use super::{Pci, Waiting};
use crate::function::NOTHING;

impl Pci {
    /// One of them waits.
    pub(super) fn access_by_guest(&mut self, access: Access, channels: &mut Channels) {
        let Access { id, gpa, bytes, write } = access;
        let value = match self.function.as_mut().filter(|_| self.channel.is_some()) {
            Some(function) => function.access(id, gpa, bytes, write),
            None => {
                // All traps have ended, and with them whoever has met them.
                channels.access_done(id, NOTHING);
                return;
            }
        };
        self.waiting.push_back(Waiting { id, value });
        self.settle(channels);
    }
}
