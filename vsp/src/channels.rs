//! All open channels of a process: their rings, doorbells and what each is waiting for.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use ipc::event::Doorbell;
use ipc::message::RingLayout;
use ipc::shm::{EventFlags, PAGE, RingMapping, SharedMemory, ShmError, VMBUS_SINT};
use logs::Ration;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use thiserror::Error;
use vmbus::packet::Outgoing;
use vmbus::ring::{PushError, RingError};

use crate::channel::{Channel, Taken, Ticket};

/// How often guests have broken channels, or opened what is none.
pub(crate) static BROKEN: Ration = Ration::new();

/// Names an open channel inside the process. Used again after the channel has closed, which is after all its
/// requests have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(u32);

impl ChannelId {
    pub(crate) fn at(slot: usize) -> ChannelId {
        ChannelId(slot as u32)
    }

    pub(crate) fn slot(self) -> usize {
        self.0 as usize
    }

    #[cfg(test)]
    pub(crate) fn for_test(slot: u32) -> ChannelId {
        ChannelId(slot)
    }
}

/// A channel that the core hands over.
#[derive(Debug)]
pub(crate) struct NewChannel {
    pub core_id: u32,
    pub ring: RingLayout,
    pub flag: u32,
    pub fds: Vec<OwnedFd>,
}

/// Why a channel cannot be opened. The guest or the core is at fault; the channel is refused.
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    #[error("it came with {0} descriptors instead of the right number")]
    Descriptors(usize),
    #[error("its rings of {0:?} are no rings")]
    Layout(RingLayout),
    #[error("event flag {0} does not exist")]
    Flag(u32),
    #[error("channel {0} is open already")]
    Twice(u32),
    #[error("no open channel has the number {0}")]
    Unknown(u32),
    #[error(transparent)]
    Memory(#[from] ShmError),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("its doorbell does not work: {0}")]
    Doorbell(#[from] io::Error),
}

/// What a channel is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The ring was empty; the guest will ring the doorbell.
    Idle,
    /// The ring is to be looked at in this turn. Interrupts are masked.
    Ready,
    /// Nothing is taken until completions have left. Interrupts are masked.
    Stalled,
    /// The guest broke the ring: nothing is taken, nothing is answered, until it closes the channel.
    Failed,
    /// The guest closed the channel; requests are in flight still.
    Closing,
}

/// How the guest is signalled.
#[derive(Debug)]
struct Interrupt {
    bell: Doorbell,
    flags: EventFlags,
}

impl Interrupt {
    fn new(bell: OwnedFd, flags: OwnedFd) -> Result<Interrupt, OpenError> {
        let page = SharedMemory::from_fd(flags, PAGE as u64)?;
        Ok(Interrupt { bell: Doorbell::from_fd(bell)?, flags: EventFlags::new(&page)? })
    }

    /// Sets the channel's flag and interrupts the VP. The eventfd is written even if the flag was set:
    /// whoever set it may have died before the interrupt.
    fn signal(&self, flag: u32) {
        self.flags.set(VMBUS_SINT, flag);
        if let Err(error) = self.bell.signal() {
            tracing::error!("the guest cannot be interrupted: {error}");
        }
    }
}

#[derive(Debug)]
struct Slot {
    core_id: u32,
    state: State,
    channel: Channel<RingMapping>,
    kick: Doorbell,
    interrupt: Interrupt,
    flag: u32,
}

impl Slot {
    fn answers(&self) -> bool {
        matches!(self.state, State::Idle | State::Ready | State::Stalled)
    }

    /// The guest broke the ring: says so, once.
    fn fail(&mut self, error: &dyn std::fmt::Display) {
        if self.answers() {
            if let Some(times) = BROKEN.another() {
                tracing::error!(
                    channel = self.core_id,
                    times,
                    "the guest broke this channel, it is not served any more: {error}"
                );
            }
            self.state = State::Failed;
            self.channel.abandon_backlog();
        }
    }

    /// Lets taking go on if it was paused and need not be any more.
    fn resume(&mut self) {
        if self.state == State::Stalled && self.channel.may_take() {
            self.state = State::Ready;
        }
    }
}

/// The open channels of a device process; the device's way back to its guest.
#[derive(Debug)]
pub struct Channels {
    slots: Vec<Option<Slot>>,
}

impl Channels {
    pub(crate) fn new() -> Channels {
        Channels { slots: Vec::new() }
    }

    /// Ends a request. Nothing is visible to the guest before the end of the turn.
    pub(crate) fn complete(&mut self, id: ChannelId, ticket: Ticket, payload: &[u8]) {
        let Some(slot) = self.slot(id) else {
            debug_assert!(false, "a request outlived its channel");
            return;
        };
        if !slot.answers() {
            slot.channel.abandon(ticket);
            return;
        }
        match slot.channel.complete(ticket, payload) {
            Ok(()) => slot.resume(),
            Err(error) => slot.fail(&error),
        }
    }

    /// Sends an in-band packet of the device's own, visible at the end of the turn. False: no room, or the
    /// channel does not answer any more.
    pub fn send(&mut self, id: ChannelId, transaction_id: u64, payload: &[u8]) -> bool {
        let Some(slot) = self.slot(id).filter(|slot| slot.answers()) else { return false };
        match slot.channel.send(&Outgoing::in_band(transaction_id, false), &[payload]) {
            Ok(()) => true,
            Err(PushError::Ring(error)) => {
                slot.fail(&error);
                false
            }
            Err(_) => false,
        }
    }

    pub(crate) fn open(&mut self, new: NewChannel, depth: u32) -> Result<ChannelId, OpenError> {
        let NewChannel { core_id, ring, flag, fds } = new;
        let count = fds.len();
        let fds: [OwnedFd; 4] = fds.try_into().map_err(|_| OpenError::Descriptors(count))?;
        let [memory, kick, bell, flags] = fds;
        if !ring.is_valid() {
            return Err(OpenError::Layout(ring));
        }
        if !EventFlags::is_valid(VMBUS_SINT, flag) {
            return Err(OpenError::Flag(flag));
        }
        if self.find(core_id).is_some() {
            return Err(OpenError::Twice(core_id));
        }
        let page = PAGE as u64;
        let memory = SharedMemory::from_fd(memory, u64::from(ring.pages) * page)?;
        let to_host = RingMapping::new(&memory, 0, ring.to_host_pages)?;
        let to_guest =
            RingMapping::new(&memory, u64::from(ring.to_host_pages) * page, ring.to_guest_pages())?;
        let mut channel = Channel::new(to_host, to_guest, depth)?;
        channel.mask();
        // Ready, not idle: packets may lie there already.
        let state = State::Ready;
        let interrupt = Interrupt::new(bell, flags)?;
        let slot = Slot { core_id, state, channel, kick: Doorbell::from_fd(kick)?, interrupt, flag };
        let free = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[free] = Some(slot);
        Ok(ChannelId::at(free))
    }

    /// Has the doorbell of a channel reported under `token`.
    pub(crate) fn watch(&mut self, id: ChannelId, registry: &Registry, token: Token) -> io::Result<()> {
        match self.slot(id) {
            Some(slot) => registry.register(&mut SourceFd(&slot.kick.as_raw_fd()), token, Interest::READABLE),
            None => Ok(()),
        }
    }

    /// The guest closes a channel; `None` if there is none such.
    pub(crate) fn close(&mut self, core_id: u32) -> Option<ChannelId> {
        let id = self.find(core_id)?;
        let slot = self.slot(id)?;
        slot.state = State::Closing;
        slot.channel.abandon_backlog();
        Some(id)
    }

    /// Interrupts of a channel go elsewhere from now on.
    pub(crate) fn retarget(&mut self, core_id: u32, fds: Vec<OwnedFd>) -> Result<(), OpenError> {
        let count = fds.len();
        let fds: [OwnedFd; 2] = fds.try_into().map_err(|_| OpenError::Descriptors(count))?;
        let [bell, flags] = fds;
        let interrupt = Interrupt::new(bell, flags)?;
        let slot = self.find(core_id).and_then(|id| self.slot(id)).ok_or(OpenError::Unknown(core_id))?;
        slot.interrupt = interrupt;
        // Whatever was signalled on the way is signalled again: one too many is harmless, one too few is not.
        slot.interrupt.signal(slot.flag);
        Ok(())
    }

    /// Takes one closed channel that has nothing in flight any more, and says which it was.
    pub(crate) fn reap(&mut self, registry: &Registry) -> Option<u32> {
        let drained = |slot: &Option<Slot>| {
            slot.as_ref().is_some_and(|slot| slot.state == State::Closing && slot.channel.outstanding() == 0)
        };
        let place = self.slots.iter().position(drained)?;
        let slot = self.slots[place].take()?;
        // Closing our descriptor would not do: the eventfd lives on in the core, and with it its place in
        // epoll.
        if let Err(error) = registry.deregister(&mut SourceFd(&slot.kick.as_raw_fd())) {
            tracing::debug!("doorbell: {error}");
        }
        Some(slot.core_id)
    }

    /// Forgets a channel that the device has refused.
    pub(crate) fn remove(&mut self, id: ChannelId) {
        if let Some(place) = self.slots.get_mut(id.slot()) {
            *place = None;
        }
    }

    /// The doorbell of a channel rang.
    pub(crate) fn kicked(&mut self, slot: usize) {
        // A stalled channel is looked at in `flush` anyway: the doorbell also says that there is room.
        if let Some(Some(slot)) = self.slots.get_mut(slot)
            && slot.state == State::Idle
        {
            slot.channel.mask();
            slot.state = State::Ready;
        }
    }

    /// The channel in this slot, if packets are to be taken from it.
    pub(crate) fn start_batch(&mut self, slot: usize) -> Option<ChannelId> {
        let id = ChannelId::at(slot);
        (self.slot(id)?.state == State::Ready).then_some(id)
    }

    pub(crate) fn take(&mut self, id: ChannelId, scratch: &mut Vec<u8>) -> Taken {
        match self.slot(id) {
            // A completion may have found the other ring broken.
            Some(slot) if slot.answers() => slot.channel.take(scratch),
            _ => Taken::Wait,
        }
    }

    /// Publishes what was taken, and decides what the channel waits for.
    pub(crate) fn end_batch(&mut self, id: ChannelId, last: Taken) {
        let Some(slot) = self.slot(id) else { return };
        if !slot.answers() {
            return;
        }
        slot.channel.publish_taken();
        match last {
            Taken::Packet(..) => slot.state = State::Ready,
            Taken::Wait => slot.state = State::Stalled,
            Taken::Failed(error) => slot.fail(&error),
            Taken::Empty => {
                if slot.channel.unmask() {
                    slot.channel.mask();
                    slot.state = State::Ready;
                } else {
                    slot.state = State::Idle;
                }
            }
        }
        slot.resume();
    }

    /// Publishes all completions and signals whoever has to be.
    pub(crate) fn flush(&mut self) {
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.answers()) {
            match slot.channel.publish_completions() {
                Ok(()) => slot.resume(),
                Err(error) => slot.fail(&error),
            }
            if slot.channel.take_signal() {
                slot.interrupt.signal(slot.flag);
            }
        }
    }

    pub(crate) fn any_ready(&self) -> bool {
        self.slots.iter().flatten().any(|slot| slot.state == State::Ready)
    }

    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn is_used(&self, id: ChannelId) -> bool {
        self.slots.get(id.slot()).is_some_and(Option::is_some)
    }

    fn find(&self, core_id: u32) -> Option<ChannelId> {
        let matches = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.core_id == core_id);
        self.slots.iter().position(matches).map(ChannelId::at)
    }

    fn slot(&mut self, id: ChannelId) -> Option<&mut Slot> {
        self.slots.get_mut(id.slot())?.as_mut()
    }
}
