//! The host's side of the SynIC: message pages that we write to and event-flag pages that
//! device processes set bits in.
//!
//! A VP's event-flag page is donated (see [`crate::memory::donation`]): it is one memfd for the life of the VM, laid over
//! whichever page the guest names in `SIEFP`. Messages are the core's alone and go into the guest's own page.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, AsRawFd, RawFd},
};

use ipc::shm::SharedMemory;
use logs::Ration;
use vmbus::synic::{
    MESSAGE_CONNECTION_ID, MESSAGE_FLAG_PENDING, MESSAGE_FLAGS_OFFSET, MESSAGE_SIZE, MESSAGE_TYPE_CHANNEL,
    MESSAGE_TYPE_NONE, encode_message,
};

use crate::{
    layout::PAGE,
    memory::{
        MemoryError, Ram,
        donation::{Donation, DonationError, Donations},
    },
    partition::{Partition, SynicRegisters, VMBUS_SINT},
};

#[cfg(test)]
mod tests;

/// Messages that may wait for one VP. A guest that lets more pile up is told to wait
/// (`HV_STATUS_INSUFFICIENT_BUFFERS`); 2,047 offers fit.
const QUEUE_MAX: usize = 4096;

/// Bit 0 of `SCONTROL`, `SIEFP` and `SIMP`.
const ENABLED: u64 = 1;

#[derive(Debug)]
struct Vp {
    registers: SynicRegisters,
    queue: VecDeque<[u8; MESSAGE_SIZE]>,
    /// Whether end-of-message notifications are asked for.
    watched: bool,
    flags: EventPage,
}

/// A VP's event-flag page: ours alone, or laid over a guest page.
#[derive(Debug)]
enum EventPage {
    Idle(SharedMemory),
    Laid(Donation, u64),
    /// Only while it changes from one to the other, or after the kernel refused to change it.
    Lost,
}

/// Message queues and event-flag pages of all VPs.
#[derive(Debug)]
pub struct Synic {
    vps: Vec<Vp>,
    /// A second handle on each event-flag memfd, for handing out.
    flags: Vec<SharedMemory>,
    complaints: Ration,
    failure: Option<String>,
}

impl Synic {
    /// All VPs with their SynIC switched off.
    pub fn new(vps: u32) -> Result<Self, ipc::shm::ShmError> {
        let flags =
            (0..vps).map(|_| SharedMemory::create("bulkhead-flags", PAGE)).collect::<Result<Vec<_>, _>>()?;
        let vps = flags
            .iter()
            .map(|memory| {
                Ok(Vp {
                    registers: SynicRegisters::default(),
                    queue: VecDeque::new(),
                    watched: false,
                    flags: EventPage::Idle(memory.try_clone()?),
                })
            })
            .collect::<Result<Vec<_>, ipc::shm::ShmError>>()?;
        Ok(Self { vps, flags, complaints: Ration::default(), failure: None })
    }

    /// The event-flag memfd of `vp`.
    pub fn event_flags(&self, vp: u32) -> &SharedMemory {
        &self.flags[vp as usize]
    }

    /// Second descriptors of the same pages, which donations use.
    pub fn own_descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.vps.iter().filter_map(|vp| match &vp.flags {
            EventPage::Idle(memory) => Some(memory.as_fd().as_raw_fd()),
            EventPage::Laid(donation, _) => Some(donation.memory().as_fd().as_raw_fd()),
            EventPage::Lost => None,
        })
    }

    /// Why the VM cannot go on.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Whether a guest that causes further messages should be told to wait.
    pub fn is_congested(&self) -> bool {
        self.vps.iter().any(|vp| vp.queue.len() >= QUEUE_MAX)
    }

    /// Forgets messages that wait.
    pub fn discard(&mut self) {
        self.vps.iter_mut().for_each(|vp| vp.queue.clear());
    }

    /// Queues a channel message for `vp` and delivers what can be delivered.
    pub fn post<P: Partition>(&mut self, partition: &P, ram: &Ram, vp: u32, payload: &[u8]) {
        // The sender is the port; Linux does not look at it.
        let slot = encode_message(MESSAGE_TYPE_CHANNEL, u64::from(MESSAGE_CONNECTION_ID), payload);
        self.vps[vp as usize].queue.push_back(slot);
        self.deliver(partition, ram, vp);
    }

    /// The guest may have freed its message slot.
    pub fn deliver<P: Partition>(&mut self, partition: &P, ram: &Ram, vp: u32) {
        let state = &mut self.vps[vp as usize];
        match state.fill_slot(ram) {
            Ok(Slot::Filled) => partition.message_interrupt(vp),
            Ok(Slot::Busy | Slot::Nothing) => {}
            Err(e) => {
                // A SIMP outside RAM: there is nowhere to deliver to, now or later.
                state.queue.clear();
                if let Some(times) = self.complaints.another() {
                    tracing::warn!(vp, error = %e, times, "guest's message page cannot be written; its messages are dropped");
                }
            }
        }
        let watch = !state.queue.is_empty() && state.is_on();
        if watch != state.watched {
            state.watched = watch;
            partition.watch_end_of_message(vp, watch);
            if watch {
                // The slot may have been freed before the watch began.
                self.deliver(partition, ram, vp);
            }
        }
    }

    /// The guest wrote a SynIC register of `vp`.
    pub fn set_registers<P: Partition>(
        &mut self,
        partition: &P,
        ram: &Ram,
        donations: &mut Donations,
        vp: u32,
        registers: SynicRegisters,
    ) {
        let state = &mut self.vps[vp as usize];
        state.registers = registers;
        let wanted = (registers.event_page & ENABLED != 0).then_some(registers.event_page & !(PAGE - 1));
        let now = match &state.flags {
            EventPage::Laid(_, gpa) => Some(*gpa),
            EventPage::Idle(_) | EventPage::Lost => None,
        };
        if wanted != now {
            let moved = state.move_flags(partition, ram, donations, wanted);
            if let Err(MoveError::Kept(e)) = &moved {
                self.failure = Some(format!("a VP's event-flag page could not be taken back: {e}"));
            }
            if let Err(e) = &moved
                && let Some(times) = self.complaints.another()
            {
                tracing::warn!(vp, error = %e, times, "guest's event-flag page cannot be shared; its device interrupts are lost");
            }
            if matches!(state.flags, EventPage::Lost) {
                state.flags = self.flags[vp as usize].try_clone().map_or(EventPage::Lost, EventPage::Idle);
            }
        }
        self.deliver(partition, ram, vp);
    }

    /// Back to the state before the guest started.
    pub fn reset<P: Partition>(&mut self, partition: &P, ram: &Ram, donations: &mut Donations) {
        for vp in 0..self.vps.len() {
            self.vps[vp].queue.clear();
            self.set_registers(partition, ram, donations, vp as u32, SynicRegisters::default());
        }
    }
}

/// Why a VP's event-flag page did not move.
#[derive(Debug, thiserror::Error)]
enum MoveError {
    /// The guest cannot have it there.
    #[error(transparent)]
    Refused(DonationError),
    /// The old page is still shared with devices.
    #[error(transparent)]
    Kept(MemoryError),
}

#[derive(Debug, PartialEq, Eq)]
enum Slot {
    Nothing,
    Busy,
    Filled,
}

impl Vp {
    fn is_on(&self) -> bool {
        self.registers.control & self.registers.message_page & ENABLED != 0
    }

    /// Puts the first waiting message into the slot if the guest has emptied it. (TLFS, "SynIC message
    /// processing": type first to check, last to write; the pending flag asks for an end-of-message.)
    fn fill_slot(&mut self, ram: &Ram) -> Result<Slot, MemoryError> {
        let Some(message) = self.queue.front() else { return Ok(Slot::Nothing) };
        if !self.is_on() {
            return Ok(Slot::Nothing);
        }
        let page = self.registers.message_page & !(PAGE - 1);
        let slot = page + u64::from(VMBUS_SINT) * MESSAGE_SIZE as u64;
        let flags = slot + MESSAGE_FLAGS_OFFSET as u64;
        if ram.load_u32(slot)? != MESSAGE_TYPE_NONE {
            ram.write(flags, &[MESSAGE_FLAG_PENDING])?;
            // The guest empties the slot first and looks at the flag then: whoever comes second sees the other.
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            if ram.load_u32(slot)? != MESSAGE_TYPE_NONE {
                return Ok(Slot::Busy);
            }
        }
        let mut message = *message;
        if self.queue.len() > 1 {
            // Before the guest can see the message: it looks at the flag once, when it has emptied the slot.
            message[MESSAGE_FLAGS_OFFSET] |= MESSAGE_FLAG_PENDING;
        }
        ram.write(slot + 4, &message[4..])?;
        ram.store_u32(slot, u32::from_le_bytes([message[0], message[1], message[2], message[3]]))?;
        self.queue.pop_front();
        Ok(Slot::Filled)
    }

    fn move_flags<P: Partition>(
        &mut self,
        partition: &P,
        ram: &Ram,
        donations: &mut Donations,
        wanted: Option<u64>,
    ) -> Result<(), MoveError> {
        let memory = match std::mem::replace(&mut self.flags, EventPage::Lost) {
            EventPage::Idle(memory) => memory,
            EventPage::Laid(donation, _) => {
                donations.take_back(ram, donation, partition).map_err(MoveError::Kept)?
            }
            EventPage::Lost => return Ok(()),
        };
        match wanted {
            None => self.flags = EventPage::Idle(memory),
            Some(gpa) => {
                let donation =
                    donations.donate_into(ram, memory, vec![gpa], partition).map_err(MoveError::Refused)?;
                self.flags = EventPage::Laid(donation, gpa);
            }
        }
        Ok(())
    }
}
