//! One queue: what the front end has said of it, and while it runs, its ring and the requests that were taken from it.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;

use ipc::event::Doorbell;

use crate::chain::Chain;
use crate::inflight::{Book, InflightError, MAX_TRIES, Region};
use crate::kill::KillPoint;
use crate::memory::Memory;
use crate::ring::{Ring, RingError};
use crate::wire::RingAddress;

/// What the front end has said of a queue.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub entries: u32,
    pub base: u16,
    pub address: Option<RingAddress>,
    pub kick: Option<Doorbell>,
    pub call: Option<Doorbell>,
    pub err: Option<Doorbell>,
    /// The device takes from it itself.
    pub itself: bool,
    /// `None`: it has not said.
    pub enable: Option<bool>,
    /// Its ring, while it runs.
    pub live: Option<Live>,
}

/// Why a queue cannot run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// What a predecessor has left.
    #[error(transparent)]
    Inflight(#[from] InflightError),
}

/// A queue that runs.
#[derive(Debug)]
pub(crate) struct Live {
    pub ring: Ring,
    book: Option<Book>,
    /// Which heads are in flight. The book's word is the front end's, too.
    taken: Vec<bool>,
    /// Requests that the device has.
    pub under_way: u32,
    /// A predecessor's, to be run again before anything else.
    again: VecDeque<u16>,
    /// The device has been told that there is nothing to be taken: it wants to hear of it when there is.
    pub hungry: bool,
    /// The front end waits for its end: nothing is taken.
    pub stopping: bool,
    /// The ring makes no sense: nothing is taken until the front end starts it anew.
    pub broken: bool,
    /// What comes next lies in memory that the front end has taken away: nothing is taken until it says where that is now.
    pub starved: bool,
    /// How often that was so.
    famines: u64,
    /// A predecessor has crashed, nobody knows over what: what it has left here is run one by one.
    pub careful: bool,
    /// The driver is told whether or not it wants to be: a predecessor may have died before it did so.
    signal_due: bool,
}

/// A request that has been taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub head: u16,
    /// Where it was in the available part; `None`: a predecessor has taken it.
    pub position: Option<u16>,
    pub poisoned: bool,
}

impl Live {
    /// Starts a queue: takes up what a predecessor has left.
    pub fn start(
        number: u16,
        slot: &Slot,
        address: RingAddress,
        memory: &Memory,
        region: Option<&Region>,
        event_index: bool,
    ) -> Result<Live, StartError> {
        let mut ring = Ring::new(memory, address, slot.entries, event_index)?;
        let (book, recovery) = match region {
            // A region that another back end has made, for a ring as long as the front end has been told of. It is gone with the next reset of the
            // device.
            Some(region) if ring.entries() > region.entries() => {
                let (entries, most) = (ring.entries(), region.entries());
                tracing::warn!(
                    queue = number,
                    entries,
                    most,
                    "requests of so long a ring are lost with this process"
                );
                (None, Default::default())
            }
            Some(region) => {
                let (book, recovery) = Book::open(region, number, &mut ring)?;
                (Some(book), recovery)
            }
            None => (None, Default::default()),
        };
        // Where the front end says that the ring begins is not believed: after a death QEMU says how far it was used, Cloud Hypervisor how far it is
        // available, and between the two is what the dead process never took. Whatever was taken is either used or in flight.
        if slot.base != ring.position() {
            tracing::debug!(queue = number, base = slot.base, position = ring.position(), "begins elsewhere");
        }
        // The guest's word against the guest's.
        let broken = ring.available().err();
        if let Some(error) = broken {
            tracing::error!(
                queue = number,
                "this queue stands still until the guest resets the device: {error}"
            );
        }
        let mut taken = vec![false; ring.entries().into()];
        recovery.again.iter().for_each(|head| taken[usize::from(*head)] = true);
        if !recovery.fresh && book.is_some() {
            let (again, settled) = (recovery.again.len(), recovery.settled);
            tracing::info!(queue = number, again, settled, "taken over");
        }
        let careful = !slot.itself && book.as_ref().is_some_and(Book::has_crashed);
        if careful && !recovery.again.is_empty() {
            tracing::warn!(
                queue = number,
                "a process before this one has crashed for no known reason: its requests are run one by one"
            );
        }
        let again = recovery.again.into();
        let mut live = Live {
            ring,
            book,
            taken,
            under_way: 0,
            again,
            hungry: true,
            stopping: false,
            broken: broken.is_some(),
            starved: false,
            famines: 0,
            careful,
            signal_due: true,
        };
        live.ring.rest();
        Ok(live)
    }

    /// The same ring, at the places that the front end's memory has now.
    pub fn move_to(
        &mut self,
        address: RingAddress,
        memory: &Memory,
        event_index: bool,
    ) -> Result<(), RingError> {
        let mut ring = Ring::new(memory, address, self.ring.entries().into(), event_index)?;
        ring.go_on_from(&self.ring);
        self.ring = ring;
        self.ring.rest();
        Ok(())
    }

    /// Whether something can be taken. A ring that makes no sense says so when it is.
    #[inline]
    pub fn has_some(&self) -> bool {
        !self.is_shut() && (!self.again.is_empty() || (!self.stopping && self.ring.available() != Ok(0)))
    }

    /// Whether nothing can be taken, whatever there is.
    pub fn is_shut(&self) -> bool {
        self.broken || self.starved
    }

    /// Whether nothing is left to be waited for before it ends. `itself`: the device takes what it likes, so nothing of a predecessor's has to be run.
    /// Nor is memory waited for: the front end is not heard before the queue has ended.
    pub fn is_over(&self, itself: bool) -> bool {
        self.under_way == 0 && (itself || self.is_shut() || self.again.is_empty())
    }

    /// Whether what a predecessor has left here is run one by one. Notes that it is no more once all has been.
    pub fn review(&mut self) -> bool {
        if self.careful && self.again.is_empty() && self.under_way == 0 {
            self.careful = false;
            self.book.iter().for_each(Book::forgive);
        }
        self.careful
    }

    /// Takes the next request, if there is one, and reads its chain.
    pub fn take(&mut self, memory: &Memory, chain: &mut Chain) -> Result<Option<Taken>, RingError> {
        if let Some(head) = self.again.front().copied() {
            if !self.read(head, memory, chain)? {
                return Ok(None);
            }
            self.again.pop_front();
            let poisoned = self.book.as_ref().is_some_and(|book| book.tries(head) >= MAX_TRIES);
            self.under_way += 1;
            return Ok(Some(Taken { head, position: None, poisoned }));
        }
        if self.stopping || self.ring.available()? == 0 {
            self.hungry = true;
            return Ok(None);
        }
        let head = self.ring.head()?;
        if *self.taken.get(usize::from(head)).ok_or(RingError::Descriptor(head))? {
            return Err(RingError::Twice(head));
        }
        if !self.read(head, memory, chain)? {
            return Ok(None);
        }
        if let Some(book) = &mut self.book {
            book.take(head);
        }
        if let Some(taken) = self.taken.get_mut(usize::from(head)) {
            *taken = true;
        }
        let position = Some(self.ring.position());
        self.ring.take();
        self.under_way += 1;
        Ok(Some(Taken { head, position, poisoned: false }))
    }

    /// Reads a chain. False: some of it lies in memory that was taken away from under the guest, which is not at fault: it waits.
    fn read(&mut self, head: u16, memory: &Memory, chain: &mut Chain) -> Result<bool, RingError> {
        match self.ring.read(head, memory.ram(), chain) {
            Err(RingError::NoTable { gpa, len }) if memory.awaits(gpa, len) => {}
            Err(error) => return Err(error),
            Ok(()) if !memory.awaits_any(chain) => return Ok(true),
            Ok(()) => {}
        }
        (self.starved, self.hungry) = (true, true);
        self.famines += 1;
        if self.famines.is_power_of_two() {
            let so_far = self.famines;
            tracing::warn!(so_far, head, "a request waits for memory that the front end has taken away");
        }
        Ok(false)
    }

    /// A request has been completed.
    #[inline]
    pub fn completed(&mut self, head: u16, written: u32) {
        self.under_way = self.under_way.saturating_sub(1);
        if let Some(taken) = self.taken.get_mut(usize::from(head)) {
            *taken = false;
        }
        self.ring.write_used(head, written);
        if let Some(book) = &mut self.book {
            book.completed(head);
        }
    }

    /// A request comes back untouched; false: others have been taken after it.
    pub fn given_back(&mut self, head: u16, position: Option<u16>) -> bool {
        match position {
            None => self.again.push_front(head),
            Some(position) if position.wrapping_add(1) == self.ring.position() => {
                self.ring.untake();
                if let Some(book) = &mut self.book {
                    book.untake(head);
                }
                if let Some(taken) = self.taken.get_mut(usize::from(head)) {
                    *taken = false;
                }
            }
            Some(_) => return false,
        }
        self.under_way = self.under_way.saturating_sub(1);
        true
    }

    /// Makes visible what was completed, and tells the driver if it wants to know.
    #[inline]
    pub fn publish(&mut self, call: Option<&Doorbell>) {
        let mut wanted = false;
        if self.ring.unpublished() > 0 {
            KillPoint::PublishDue.reached();
            wanted = self.ring.publish();
            if let Some(book) = &mut self.book {
                book.published(self.ring.used());
            }
        }
        if (wanted || self.signal_due)
            && let Some(call) = call
        {
            self.signal_due = false;
            ring_bell(call);
            KillPoint::Signalled.reached();
        }
    }

    /// Ends it. Nothing is in flight; the index of the request that would have been taken next.
    pub fn stop(mut self) -> u16 {
        let position = self.ring.position();
        // With something left to be run again it has to be known to whoever comes next.
        if let Some(book) = self.book.as_mut().filter(|_| self.again.is_empty() && self.under_way == 0) {
            book.stop();
        }
        position
    }
}

impl Slot {
    /// The descriptor that is watched.
    pub fn kick_number(&self) -> Option<i32> {
        self.kick.as_ref().map(AsRawFd::as_raw_fd)
    }
}

/// A bell that cannot be rung is the front end's own.
pub(crate) fn ring_bell(bell: &Doorbell) {
    if let Err(error) = bell.signal() {
        tracing::debug!("an eventfd of the front end's cannot be signalled: {error}");
    }
}
