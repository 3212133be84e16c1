//! All open channels of a process: their rings, ledgers, doorbells and what each is waiting for.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use ipc::ledger::{LedgerError, LedgerMapping};
use ipc::message::RingLayout;
use ipc::shm::{EventFlags, RingMapping, ShmError, VMBUS_SINT};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use thiserror::Error;
use vmbus::ring::{PushError, RingError};

use crate::channel::{AdoptError, Channel, Recovery, Ticket};
use crate::prepared::{Pantry, Prepared};
use crate::slot::{Fetch, Interrupt, Next, Pause, Slot, State};
use crate::stamp;

mod gpadls;
mod loans;
mod memory;
mod notices;
mod passthrough;

pub(crate) use gpadls::Ask;
use gpadls::Gpadls;
pub use loans::Lend;
use memory::Orders;
pub(crate) use memory::{Order, Question};
pub use notices::Notify;

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
    /// Not a sub-channel. Not known of one that is only prepared.
    pub is_primary: bool,
    pub ring: RingLayout,
    pub flag: u32,
    pub fds: Vec<OwnedFd>,
    /// A ledger has to be among them.
    pub ledger: bool,
}

/// Why a channel cannot be opened. Rings and ledger are as they were, save with [`OpenError::State`].
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    #[error("this process does not serve the device at the moment")]
    NotServing,
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
    /// It was open already, and the guest has broken it meanwhile.
    #[error("the guest broke it while nobody looked: {0}")]
    Broken(RingError),
    #[error("its ledger cannot be used: {0}")]
    Ledger(#[from] LedgerError),
    /// The device does not understand the state in the ledger. The ledger is taken over by then, which changes nothing of
    /// what it says: another process, the one before included, finds the same state and the same requests.
    #[error("{0}")]
    State(String),
    #[error(transparent)]
    Stamp(#[from] stamp::StampError),
    #[error("its doorbell does not work: {0}")]
    Doorbell(#[from] io::Error),
}

/// The open channels of a device process; the device's way back to its guest.
#[derive(Debug)]
pub struct Channels {
    slots: Vec<Option<Slot>>,
    pantry: Pantry,
    /// Sub-channels that the device has agreed on with the guest, if the core has still to be told.
    subchannels: Option<u16>,
    /// Answers to operators that the core has still to be told.
    controls: Vec<(u64, Result<String, String>)>,
    gpadls: Gpadls,
    orders: Orders,
}

impl Channels {
    pub(crate) fn new() -> Channels {
        Channels {
            slots: Vec::new(),
            pantry: Pantry::default(),
            subchannels: None,
            controls: Vec::new(),
            gpadls: Gpadls::default(),
            orders: Orders::default(),
        }
    }

    /// Ends a request. Nothing is visible to the guest before the end of the turn.
    pub(crate) fn complete(&mut self, id: ChannelId, ticket: Ticket, payload: &[u8], state: Option<&[u8]>) {
        let waits = self.must_wait(state);
        self.end(id, ticket, |channel, ticket| {
            if waits {
                channel.put_off(ticket, payload, &[], state);
                return Ok(());
            }
            channel.complete(ticket, payload, state)
        });
    }

    /// Whether an answer with this state may have no part of the ring published for its sake: the core has to be told something before.
    fn must_wait(&self, state: Option<&[u8]>) -> bool {
        state.is_some() && self.owes_words()
    }

    fn end(
        &mut self,
        id: ChannelId,
        ticket: Ticket,
        answer: impl FnOnce(&mut Channel<RingMapping, LedgerMapping>, Ticket) -> Result<(), PushError>,
    ) {
        let Some(slot) = self.slot(id) else {
            debug_assert!(false, "a request outlived its channel");
            return;
        };
        slot.with_device = slot.with_device.saturating_sub(1);
        if !slot.answers() {
            slot.channel.abandon(ticket);
            return;
        }
        match answer(&mut slot.channel, ticket) {
            Ok(()) => slot.resume(),
            Err(error) => slot.fail(&error),
        }
    }

    /// Ends a request with packets of the device's own. Nothing is visible to the guest before the end of the turn.
    pub(crate) fn reply(&mut self, id: ChannelId, ticket: Ticket, packets: &[&[u8]], state: Option<&[u8]>) {
        let waits = self.must_wait(state);
        self.end(id, ticket, |channel, ticket| {
            if waits {
                channel.put_off(ticket, &[], packets, state);
                return Ok(());
            }
            channel.reply(ticket, packets, state)
        });
    }

    pub(crate) fn record_outcome(&mut self, id: ChannelId, ticket: &Ticket, payload: &[u8]) -> bool {
        let Some(slot) = self.slot(id).filter(|slot| slot.answers()) else { return false };
        slot.channel.record_outcome(ticket, payload)
    }

    pub(crate) fn note_begun(&mut self, id: ChannelId, ticket: &Ticket) -> bool {
        let Some(slot) = self.slot(id).filter(|slot| slot.answers()) else { return false };
        slot.channel.note_begun(ticket)
    }

    /// The device has agreed with the guest on this many sub-channels: they are offered before the guest sees any answer of
    /// this turn's. Saying it again changes nothing.
    pub fn offer_subchannels(&mut self, count: u16) {
        self.subchannels = Some(count);
    }

    pub(crate) fn take_subchannels(&mut self) -> Option<u16> {
        self.subchannels.take()
    }

    pub(crate) fn answer_control(&mut self, id: u64, result: Result<String, String>) {
        self.controls.push((id, result));
    }

    pub(crate) fn take_controls(&mut self) -> Vec<(u64, Result<String, String>)> {
        std::mem::take(&mut self.controls)
    }

    /// Whether answers on this channel wait for room in the ring, which is the guest's to make. Without it, they are visible
    /// when the runtime next calls the device after [`crate::Device::submit`].
    pub fn is_blocked(&self, id: ChannelId) -> bool {
        self.slots.get(id.slot()).and_then(Option::as_ref).is_some_and(|slot| slot.channel.is_blocked())
    }

    /// Maps a channel that this process may have to take over; an error leaves it to be mapped then.
    pub(crate) fn prepare(&mut self, new: NewChannel) -> Result<(), OpenError> {
        let NewChannel { core_id, ring, fds, ledger, .. } = new;
        self.pantry.take(core_id);
        let prepared = Prepared::new(core_id, ring, fds, ledger)?;
        prepared.touch();
        self.pantry.put(prepared);
        Ok(())
    }

    /// Such a channel is no more.
    pub(crate) fn unprepare(&mut self, core_id: u32) {
        self.pantry.take(core_id);
    }

    /// Takes up a channel: a new one, or what a predecessor has left of it.
    pub(crate) fn open(
        &mut self,
        new: NewChannel,
        depth: u32,
        loans: u32,
    ) -> Result<(ChannelId, Recovery), OpenError> {
        let NewChannel { core_id, is_primary, ring, flag, fds, ledger } = new;
        if !EventFlags::is_valid(VMBUS_SINT, flag) {
            return Err(OpenError::Flag(flag));
        }
        if self.find(core_id).is_some() {
            return Err(OpenError::Twice(core_id));
        }
        let Prepared { to_host, to_guest, kick, interrupt, ledger, .. } = match self.pantry.take(core_id) {
            Some(prepared) if fds.is_empty() => prepared,
            _ => Prepared::new(core_id, ring, fds, ledger)?,
        };
        let has_ledger = ledger.is_some();
        let (channel, recovery, stamp) = match ledger {
            None => {
                let recovery = Recovery { fresh: true, ..Recovery::default() };
                (Channel::new(to_host, to_guest, depth)?.lending(loans), recovery, None)
            }
            Some((mapping, stamp)) => {
                let stamp = stamp::watch(stamp)?;
                let fresh = stamp::is_fresh(&mapping);
                match Channel::adopt_lending(to_host, to_guest, mapping, depth, loans) {
                    Ok((channel, recovery)) => (channel, recovery, Some(stamp)),
                    Err(AdoptError::Ledger(error)) => return Err(error.into()),
                    Err(AdoptError::Ring(error)) if fresh => return Err(error.into()),
                    Err(AdoptError::Ring(error)) => return Err(OpenError::Broken(error)),
                }
            }
        };
        let mut slot = Slot {
            core_id,
            is_primary,
            // Ready, not idle: packets may lie there already.
            state: State::Ready,
            _stamp: stamp,
            channel,
            has_ledger,
            careful: recovery.careful,
            with_device: 0,
            kick,
            interrupt,
            flag,
        };
        slot.channel.mask();
        let free = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[free] = Some(slot);
        Ok((ChannelId::at(free), recovery))
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
        if slot.is_primary {
            self.orders.close();
        }
        self.gpadls.close(id);
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
            slot.as_ref().is_some_and(|slot| slot.state == State::Closing && slot.with_device == 0)
        };
        let place = self.slots.iter().position(drained)?;
        self.let_go(place, registry)
    }

    /// Whether the device has no request any more, and whatever it has answered is in the rings or in the ledgers.
    pub(crate) fn is_idle(&self) -> bool {
        let idle = |slot: &Slot| slot.with_device == 0 && (slot.has_ledger || !slot.channel.is_blocked());
        self.slots.iter().flatten().all(idle)
    }

    /// Forgets all channels; somebody else takes them up where they are.
    pub(crate) fn forget_all(&mut self, registry: &Registry) {
        for place in 0..self.slots.len() {
            self.let_go(place, registry);
        }
        self.slots.clear();
        self.subchannels = None;
        self.controls.clear();
        self.gpadls = Gpadls::default();
        self.orders = Orders::default();
    }

    fn let_go(&mut self, place: usize, registry: &Registry) -> Option<u32> {
        let slot = self.slots.get_mut(place)?.take()?;
        self.gpadls.forget(ChannelId::at(place));
        // Closing our descriptor would not do: the eventfd lives on in the core, and with it its place in
        // epoll.
        if let Err(error) = registry.deregister(&mut SourceFd(&slot.kick.as_raw_fd())) {
            tracing::debug!("doorbell: {error}");
        }
        Some(slot.core_id)
    }

    /// Forgets a channel that the device has refused.
    pub(crate) fn remove(&mut self, id: ChannelId, registry: &Registry) {
        self.let_go(id.slot(), registry);
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

    /// Looks into the rings that were empty.
    pub(crate) fn look(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            match slot.state {
                State::Watched if slot.channel.has_arrived() => slot.state = State::Ready,
                // Its doorbell rings besides; that is one kick too many, and no harm.
                State::Idle if slot.channel.has_arrived() => {
                    slot.channel.mask();
                    slot.state = State::Ready;
                }
                _ => {}
            }
        }
    }

    /// Nobody will look any more: has the doorbells ring for what arrives from now on.
    pub(crate) fn rest(&mut self) {
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.state == State::Watched) {
            slot.state = State::Idle;
            if slot.channel.unmask() {
                slot.channel.mask();
                slot.state = State::Ready;
            }
        }
    }

    /// Whether something waits for room, which is the guest's to announce.
    pub(crate) fn any_blocked(&self) -> bool {
        self.slots.iter().flatten().any(|slot| slot.channel.is_blocked() || slot.channel.wants_room())
    }

    /// The channel in this slot, if packets are to be taken from it.
    pub(crate) fn start_batch(&mut self, place: usize) -> Option<ChannelId> {
        if self.awaits_gpadls() || self.alone().is_some_and(|alone| alone != place) {
            return None;
        }
        let id = ChannelId::at(place);
        (self.slot(id)?.state == State::Ready).then_some(id)
    }

    /// Whether a channel has requests of a predecessor's left.
    pub(crate) fn is_recovering(&mut self, id: ChannelId) -> bool {
        self.slot(id).is_some_and(|slot| slot.channel.recovering())
    }

    /// The next piece of work of a channel.
    pub(crate) fn next(&mut self, id: ChannelId, scratch: &mut Vec<u8>, fetch: &mut Fetch<'_>) -> Next {
        match self.slot(id) {
            // A completion may have found the other ring broken.
            Some(slot) if slot.answers() => slot.next(scratch, fetch),
            _ => Next::Stop(Pause::Wait),
        }
    }

    /// The device's code begins on a request: it is to blame if it does not come back.
    pub(crate) fn enter(&mut self, id: ChannelId, ticket: &Ticket) {
        if let Some(slot) = self.slot(id) {
            slot.channel.enter(ticket);
            stamp::enter(id);
        }
    }

    /// The device's code has come back.
    pub(crate) fn leave(&mut self, id: ChannelId) {
        stamp::leave();
        if let Some(slot) = self.slot(id) {
            slot.channel.leave();
        }
    }

    /// Publishes what was taken, and decides what the channel waits for.
    pub(crate) fn end_batch(&mut self, id: ChannelId, pause: Pause) {
        let Some(slot) = self.slot(id) else { return };
        if !slot.answers() {
            return;
        }
        slot.channel.publish_taken();
        match pause {
            Pause::Turn => slot.state = State::Ready,
            Pause::Wait => slot.state = State::Stalled,
            Pause::Failed(error) => slot.fail(&error),
            // Whether the guest has to ring is decided when the loop goes to sleep.
            Pause::Empty => slot.state = State::Watched,
        }
        slot.resume();
    }

    /// Publishes all completions and signals whoever has to be.
    pub(crate) fn flush(&mut self) {
        self.slots.iter_mut().flatten().filter(|slot| slot.answers()).for_each(Slot::flush);
    }

    /// Wakes whoever may sleep on a predecessor's signal.
    pub(crate) fn wake(&mut self) {
        self.slots.iter_mut().flatten().filter(|slot| slot.answers()).for_each(Slot::wake);
    }

    /// Whether a channel may go on with what a predecessor has left: it must not get ahead of what another has begun with.
    pub(crate) fn may_go_on(&self, id: ChannelId) -> bool {
        self.alone().is_none_or(|alone| alone == id.slot())
    }

    /// The first channel that nobody else may work beside: one with a request that a predecessor has begun with, which is to
    /// be the first that the device hears of; or else one that is careful.
    fn alone(&self) -> Option<usize> {
        let begun = |slot: &Option<Slot>| slot.as_ref().is_some_and(Slot::has_begun);
        if let Some(place) = self.slots.iter().position(begun) {
            return Some(place);
        }
        self.slots.iter().position(|slot| slot.as_ref().is_some_and(Slot::is_alone))
    }

    pub(crate) fn any_ready(&self) -> bool {
        if self.awaits_gpadls() {
            return false;
        }
        let ready = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.state == State::Ready);
        match self.alone() {
            Some(place) => ready(&self.slots[place]),
            None => self.slots.iter().any(ready),
        }
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
