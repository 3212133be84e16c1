//! What a process maps of a channel. One that stands by does it ahead of time, so that a death or a hand-over costs the guest only what has
//! to be read.
//!
//! Must never believe or write what is in a ring or a ledger: they are another process's until this one serves.

use std::os::fd::OwnedFd;

use ipc::event::Doorbell;
use ipc::ledger::LedgerMapping;
use ipc::message::RingLayout;
use ipc::shm::{PAGE, RingMapping, SharedMemory};

use crate::channels::OpenError;
use crate::slot::Interrupt;
use crate::stamp::Stamp;

/// A channel's memory and doorbells.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub core_id: u32,
    pub to_host: RingMapping,
    pub to_guest: RingMapping,
    pub kick: Doorbell,
    pub interrupt: Interrupt,
    pub ledger: Option<(LedgerMapping, Stamp)>,
}

impl Prepared {
    /// From the descriptors of [`ipc::message::ToVsp::ChannelOpen`]; `ledger`: whether one has to be among them.
    pub fn new(
        core_id: u32,
        ring: RingLayout,
        mut fds: Vec<OwnedFd>,
        ledger: bool,
    ) -> Result<Prepared, OpenError> {
        let count = fds.len();
        let ledger = if ledger { fds.pop() } else { None };
        let fds: [OwnedFd; 4] = fds.try_into().map_err(|_| OpenError::Descriptors(count))?;
        let [memory, kick, bell, flags] = fds;
        if !ring.is_valid() {
            return Err(OpenError::Layout(ring));
        }
        let page = PAGE as u64;
        let memory = SharedMemory::from_fd(memory, u64::from(ring.pages) * page)?;
        let to_host = RingMapping::new(&memory, 0, ring.to_host_pages)?;
        let to_guest =
            RingMapping::new(&memory, u64::from(ring.to_host_pages) * page, ring.to_guest_pages())?;
        let (kick, interrupt) = (Doorbell::from_fd(kick)?, Interrupt::new(bell, flags)?);
        let ledger = match ledger {
            None => None,
            Some(ledger) => {
                let ledger = SharedMemory::from_fd(ledger, 0)?;
                Some((LedgerMapping::new(&ledger)?, Stamp::new(&ledger)?))
            }
        };
        Ok(Prepared { core_id, to_host, to_guest, kick, interrupt, ledger })
    }

    /// Has the kernel map all of it now: a page fault for each page costs a guest that waits a tenth of a millisecond.
    pub fn touch(&self) {
        self.to_host.touch();
        self.to_guest.touch();
        if let Some((ledger, _)) = &self.ledger {
            ledger.touch();
        }
    }
}

/// Those of a process that stands by.
#[derive(Debug, Default)]
pub(crate) struct Pantry(Vec<Prepared>);

impl Pantry {
    /// In place of what there is of the same channel.
    pub fn put(&mut self, prepared: Prepared) {
        self.take(prepared.core_id);
        self.0.push(prepared);
    }

    pub fn take(&mut self, core_id: u32) -> Option<Prepared> {
        let place = self.0.iter().position(|prepared| prepared.core_id == core_id)?;
        Some(self.0.swap_remove(place))
    }
}
