//! The device's way back to the guest: all queues of the front end that is connected.

use std::sync::Arc;

use ipc::event::Doorbell;
use ipc::shm::GuestRam;
use sandbox::crash::Registration;

use crate::chain::Chain;
use crate::crash;
use crate::face::feature;
use crate::inflight::Region;
use crate::memory::{Memory, MemoryError};
use crate::queue::{Live, Slot, StartError, ring_bell};
use crate::request::Request;
use crate::ring::RingError;

/// All queues, and the memory that they are about.
#[derive(Debug)]
pub struct Queues {
    pub(crate) slots: Vec<Slot>,
    pub(crate) memory: Memory,
    region: Option<Region>,
    /// Has the region told of a crash.
    witness: Option<Registration>,
    features: u64,
    marks: u8,
    session: u32,
    /// Requests of sessions that have ended, which the device still has.
    orphans: u32,
    /// A queue is [careful](Live::careful), and something of it can run: until that has ended, requests of all queues run one by one.
    careful: bool,
}

impl Queues {
    /// So many; `itself` says of which the device takes itself.
    pub(crate) fn new(count: u16, itself: impl Fn(u16) -> bool) -> Result<Queues, MemoryError> {
        Ok(Queues {
            slots: (0..count).map(|queue| Slot { itself: itself(queue), ..Slot::default() }).collect(),
            memory: Memory::new()?,
            region: None,
            witness: None,
            features: 0,
            marks: 0,
            session: 0,
            orphans: 0,
            careful: false,
        })
    }

    /// RAM of the guest as it is now. What was made of it keeps it mapped; ask again for each request.
    #[inline]
    pub fn ram(&self) -> &Arc<GuestRam> {
        self.memory.ram()
    }

    /// Features that the driver uses.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The device's own byte, which a successor finds if the front end keeps requests in flight for us. 0 at first, and again when the guest
    /// has reset the device.
    pub fn marks(&self) -> u8 {
        self.marks
    }

    /// Sets it, at once.
    pub fn set_marks(&mut self, marks: u8) {
        self.marks = marks;
        if let Some(region) = &self.region {
            region.set_marks(marks);
        }
    }

    /// Whether the front end that has sent this has left: nobody hears how it ends.
    pub fn is_orphan(&self, request: &Request) -> bool {
        request.session != self.session
    }

    /// Takes the next request of a queue, if there is one; what it is about is in `chain` then. For devices that
    /// [take themselves](crate::Face::takes_itself).
    pub fn take(&mut self, queue: u16, chain: &mut Chain) -> Option<Request> {
        let waits = self.careful && self.suspects() > 0;
        let memory = &self.memory;
        let slot = self.slots.get_mut(usize::from(queue))?;
        let stopping = slot.live.as_ref().is_some_and(|live| live.stopping);
        if slot.enable == Some(false) && !stopping {
            return None;
        }
        let careful = self.careful && !slot.itself;
        if careful && waits {
            return None;
        }
        let itself = slot.itself;
        let shut = |live: &Live| live.is_shut() || (itself && live.stopping);
        let live = slot.live.as_mut().filter(|live| !shut(live))?;
        match live.take(memory, chain) {
            Ok(Some(taken)) => {
                if careful {
                    crash::enter(queue, taken.head);
                }
                Some(Request::new(queue, taken.head, self.session, taken.position, taken.poisoned))
            }
            Ok(None) => {
                if careful {
                    self.review();
                }
                None
            }
            Err(error) => {
                self.break_queue(queue, error);
                None
            }
        }
    }

    /// Whether there is something to be taken from a queue.
    pub fn has_some(&self, queue: u16) -> bool {
        self.slots.get(usize::from(queue)).is_some_and(Queues::may_take)
    }

    /// Whether a device that takes itself has to be told that there is something; it is not told again before it has found nothing.
    pub(crate) fn feed(&mut self, queue: u16) -> bool {
        let slot = self.slots.get_mut(usize::from(queue)).filter(|slot| Queues::may_take(slot));
        slot.and_then(|slot| slot.live.as_mut()).is_some_and(|live| std::mem::take(&mut live.hungry))
    }

    /// The same without telling it.
    pub(crate) fn is_hungry(&self, queue: u16) -> bool {
        let slot = self.slots.get(usize::from(queue)).filter(|slot| Queues::may_take(slot));
        slot.and_then(|slot| slot.live.as_ref()).is_some_and(|live| live.hungry)
    }

    /// Whether a queue runs.
    pub fn is_live(&self, queue: u16) -> bool {
        self.slots.get(usize::from(queue)).is_some_and(|slot| slot.live.is_some())
    }

    /// Whether a queue that runs is enabled.
    pub fn is_enabled(&self, queue: u16) -> bool {
        self.slots
            .get(usize::from(queue))
            .is_some_and(|slot| slot.live.is_some() && slot.enable != Some(false))
    }

    /// Whether the front end waits for the end of a queue.
    pub fn is_stopping(&self, queue: u16) -> bool {
        let live = self.slots.get(usize::from(queue)).and_then(|slot| slot.live.as_ref());
        live.is_some_and(|live| live.stopping)
    }

    /// Makes visible now what was completed in a queue; else it is at the end of the batch or the turn.
    pub fn publish(&mut self, queue: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(queue))
            && let Some(live) = &mut slot.live
        {
            live.publish(slot.call.as_ref());
        }
    }

    pub(crate) fn publish_all(&mut self) {
        for slot in &mut self.slots {
            if let Some(live) = &mut slot.live {
                live.publish(slot.call.as_ref());
            }
        }
    }

    fn may_take(slot: &Slot) -> bool {
        let some = |live: &Live| live.has_some() && !(slot.itself && live.stopping);
        // What a predecessor has left is run before a queue ends, though it was switched off.
        let open = |live: &Live| slot.enable != Some(false) || live.stopping;
        slot.live.as_ref().is_some_and(|live| some(live) && open(live))
    }

    /// Whether nothing has to be waited for before a queue ends.
    pub(crate) fn is_over(&self, queue: u16) -> bool {
        let slot = self.slots.get(usize::from(queue));
        slot.is_none_or(|slot| slot.live.as_ref().is_none_or(|live| live.is_over(slot.itself)))
    }

    /// Requests that the device has.
    pub(crate) fn under_way(&self) -> u32 {
        let live = self.slots.iter().filter_map(|slot| slot.live.as_ref());
        live.map(|live| live.under_way).sum::<u32>() + self.orphans
    }

    /// The same without those of queues from which the device takes itself: it may hold these for as long as it likes.
    pub(crate) fn suspects(&self) -> u32 {
        let slots = self.slots.iter().filter(|slot| !slot.itself);
        slots.filter_map(|slot| slot.live.as_ref()).map(|live| live.under_way).sum()
    }

    pub(crate) fn completed(&mut self, request: &Request, written: u32) {
        if request.session != self.session {
            self.orphans = self.orphans.saturating_sub(1);
            return;
        }
        if let Some(live) = self.slots.get_mut(usize::from(request.queue)).and_then(|slot| slot.live.as_mut())
        {
            live.completed(request.head, written);
        }
        if self.careful && !self.slots.get(usize::from(request.queue)).is_some_and(|slot| slot.itself) {
            crash::leave();
            self.review();
        }
    }

    /// The front end lets a queue be used, or not.
    pub(crate) fn enable(&mut self, queue: u16, enable: bool) {
        if let Some(slot) = self.slots.get_mut(usize::from(queue)) {
            slot.enable = Some(enable);
            // Who takes itself has missed what came meanwhile.
            if let Some(live) = &mut slot.live {
                live.hungry = true;
            }
        }
        self.review();
    }

    pub(crate) fn given_back(&mut self, request: &Request) -> bool {
        if request.session != self.session {
            self.orphans = self.orphans.saturating_sub(1);
            return true;
        }
        let live = self.slots.get_mut(usize::from(request.queue)).and_then(|slot| slot.live.as_mut());
        let Some(live) = live else { return true };
        let back = live.given_back(request.head, request.position);
        if back && self.careful {
            crash::leave();
            self.review();
        }
        back
    }

    /// Nothing is taken from this queue any more until the front end starts it anew.
    fn break_queue(&mut self, queue: u16, error: RingError) {
        tracing::error!(queue, "this queue is stopped until the guest resets the device: {error}");
        if let Some(slot) = self.slots.get_mut(usize::from(queue)) {
            if let Some(live) = &mut slot.live {
                live.broken = true;
            }
            if let Some(err) = &slot.err {
                ring_bell(err);
            }
        }
        self.review();
    }

    /// A front end has connected: nothing of the one before is left but what the device still has.
    pub(crate) fn begin_session(&mut self) -> Result<(), MemoryError> {
        self.end_session();
        self.memory = Memory::new()?;
        Ok(())
    }

    /// The front end has left. What is in flight is nobody's; a next front end gets the region back and has it run again.
    pub(crate) fn end_session(&mut self) {
        self.orphans = self.under_way();
        self.session = self.session.wrapping_add(1);
        self.slots.iter_mut().for_each(|slot| *slot = Slot { itself: slot.itself, ..Slot::default() });
        (self.witness, self.region) = (None, None);
        (self.features, self.marks, self.careful) = (0, 0, false);
        crash::leave();
    }

    pub(crate) fn set_features(&mut self, features: u64) {
        self.features = features;
    }

    /// The front end gives the memory for what is in flight.
    pub(crate) fn set_region(&mut self, region: Region) {
        self.witness = crash::watch(&region);
        self.marks = region.marks();
        self.region = Some(region);
    }

    /// Whether any queue runs.
    pub(crate) fn any_live(&self) -> bool {
        self.slots.iter().any(|slot| slot.live.is_some())
    }

    /// Starts a queue if all that it needs is known; true if it has been.
    pub(crate) fn try_start(&mut self, queue: u16) -> Result<bool, StartError> {
        let event_index = self.features & feature::EVENT_IDX != 0;
        // Without the feature a ring is enabled from the beginning.
        let enabled = self.features & feature::PROTOCOL_FEATURES == 0;
        let Some(slot) = self.slots.get_mut(usize::from(queue)) else { return Ok(false) };
        let Some(address) = slot.address.filter(|_| slot.live.is_none() && slot.kick.is_some()) else {
            return Ok(false);
        };
        if !slot.enable.unwrap_or(enabled) {
            return Ok(false);
        }
        let live = Live::start(queue, slot, address, &self.memory, self.region.as_ref(), event_index)?;
        slot.live = Some(live);
        self.review();
        Ok(true)
    }

    /// The memory has changed: what waits for some may go on.
    pub(crate) fn memory_has_changed(&mut self) {
        self.slots.iter_mut().filter_map(|slot| slot.live.as_mut()).for_each(|live| live.starved = false);
        self.review();
    }

    /// The memory has changed: rings that run are looked for in it.
    pub(crate) fn move_rings(&mut self) -> Result<(), RingError> {
        let event_index = self.features & feature::EVENT_IDX != 0;
        self.publish_all();
        for slot in &mut self.slots {
            if let (Some(live), Some(address)) = (&mut slot.live, slot.address) {
                live.move_to(address, &self.memory, event_index)?;
            }
        }
        Ok(())
    }

    /// Ends a queue of which nothing is in flight, or that does not run; where it ends, and what need not be watched any more.
    pub(crate) fn stop(&mut self, queue: u16) -> (u16, Option<Doorbell>) {
        let Some(slot) = self.slots.get_mut(usize::from(queue)) else { return (0, None) };
        if let Some(mut live) = slot.live.take() {
            live.publish(slot.call.as_ref());
            slot.base = live.stop();
        }
        // It starts again by another kick descriptor.
        slot.call = None;
        let end = (slot.base, slot.kick.take());
        self.review();
        end
    }

    /// The driver need not ring while the rings are looked at.
    pub(crate) fn look(&mut self) {
        self.slots.iter_mut().filter_map(|slot| slot.live.as_mut()).for_each(|live| live.ring.look());
    }

    /// The driver has to ring from now on; what it has sent before has to be looked for after this.
    pub(crate) fn rest(&mut self) {
        self.slots.iter_mut().filter_map(|slot| slot.live.as_mut()).for_each(|live| live.ring.rest());
    }

    /// Whether there still is something to be careful about. What cannot run (its ring makes no sense, its memory is away, it is switched off) holds
    /// nobody else up; its queue stays careful for when it can.
    fn review(&mut self) {
        let mut careful = false;
        for slot in &mut self.slots {
            let enabled = slot.enable != Some(false);
            if let Some(live) = &mut slot.live {
                let runs = !live.is_shut() && (enabled || live.stopping);
                careful |= live.review() && (runs || live.under_way > 0);
            }
        }
        if self.careful && !careful {
            crash::leave();
        }
        self.careful = careful;
    }

    pub(crate) fn is_careful(&self) -> bool {
        self.careful
    }
}
