//! What a successor has to know: which requests are in flight, in memory that the front end keeps while there is no process.
//!
//! The layout and the order of the stores are those of the specification ("Inflight I/O tracking", split virtqueue), so another back end
//! can take over from this one and the reverse:
//!
//! ```text
//! queue region: features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16, then of each descriptor
//!               inflight u8, 5 bytes of padding, next u16, counter u64
//! ```
//!
//! * *Take a request:* its counter, then `inflight = 1`. That byte decides: before it the request is still in the ring.
//! * *Complete some:* the used part's entry, the link to the one before, `last_batch_head`; then, for all of them, the used index, which
//!   decides; then `inflight = 0` of each, and `used_idx`.
//! * *Recover:* if `used_idx` is not the ring's used index, the last batch was published: it is as long as the difference, and linked from
//!   `last_batch_head` on. What is in flight after that runs again, in the order of the counters.
//!
//! **The first completion.** A region of zeroes says `used_idx = 0`, and a ring need not begin at 0 (it was stopped and started, or
//! migrated): a back end that believes it takes requests for completed that never were, as others do. Here a region whose version is 0
//! says nothing; it is filled in from the ring, and its version, stored last, makes it count. A ring that was stopped with nothing in flight
//! leaves a region that says nothing again, so it can be used for whatever ring comes next.
//!
//! **Padding.** The first byte of each descriptor's padding counts the processes that have crashed over it (`crash`); of the first descriptor,
//! the second says that a process has crashed and nobody knows why, and the third is the device's own ([`crate::Queues::set_marks`]).
//! Other back ends leave zeroes there.
//!
//! **Long rings.** A front end asks for room for rings as long as it has been told of, and a guest may be told otherwise: then other back ends
//! keep nothing of what is in flight. Here so much is offered that each queue has a second region behind all of the first ones, for a ring of
//! any length. It is used for rings for which the first has no room, so nobody else would look for anything there.
//!
//! The front end can write to this memory at any moment. Whatever is read here is checked; what makes no sense is refused.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ipc::shm::{Foreign, Mapping};
use thiserror::Error;

use crate::kill::KillPoint;
use crate::ring::{MAX_ENTRIES, Ring};
use crate::wire::InflightLayout;

const HEADER: usize = 16;
const STATE: usize = 16;
/// Of each queue's region; what libvhost-user and DPDK have.
const ALIGNMENT: usize = 64;

const VERSION: u16 = 1;
const AT_VERSION: usize = 8;
const AT_ENTRIES: usize = 10;
const AT_LAST_BATCH_HEAD: usize = 12;
const AT_USED: usize = 14;
/// In a descriptor's state.
const AT_INFLIGHT: usize = 0;
const AT_TRIES: usize = 1;
const AT_CRASHED: usize = 2;
const AT_MARKS: usize = 3;
const AT_NEXT: usize = 6;
const AT_COUNTER: usize = 8;

/// So many processes may crash over a request before it is failed.
pub const MAX_TRIES: u8 = 3;

/// A region that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InflightError {
    /// It is too short for what it should hold, or lies askew.
    #[error("the region of requests in flight ({size} bytes) has no room for {queues} queues of {entries}")]
    Layout {
        /// Its length.
        size: u64,
        /// Queues.
        queues: u16,
        /// Entries of each.
        entries: u16,
    },
    /// The ring is larger than the region was made for.
    #[error("a ring of {0} entries, and a region of requests in flight that was made for less")]
    Entries(u16),
    /// Another version of it.
    #[error("the region of requests in flight has the version {0}, not {VERSION}")]
    Version(u16),
    /// It was written over, or is another ring's.
    #[error("the region of requests in flight makes no sense: {0}")]
    Damaged(&'static str),
}

fn queue_bytes(entries: u16) -> usize {
    (HEADER + STATE * usize::from(entries)).next_multiple_of(ALIGNMENT)
}

/// Bytes that are offered for so many queues: with room for rings that are longer than that.
pub fn bytes_offered(queues: u16, entries: u16) -> Option<u64> {
    Some(bytes(queues, entries)? + bytes(queues, MAX_ENTRIES)?)
}

/// Bytes that so many queues need; `None` if nobody needs that.
pub fn bytes(queues: u16, entries: u16) -> Option<u64> {
    let fits = queues > 0 && (1..=MAX_ENTRIES).contains(&entries);
    fits.then(|| usize::from(queues) as u64 * queue_bytes(entries) as u64)
}

/// All of it, mapped.
#[derive(Clone, Debug)]
pub struct Region {
    memory: Foreign,
    layout: InflightLayout,
}

impl Region {
    /// What the front end has given back.
    pub fn new(memory: Foreign, layout: InflightLayout) -> Result<Region, InflightError> {
        let InflightLayout { size, queues, entries, .. } = layout;
        let fits = bytes(queues, entries).is_some_and(|needed| needed <= size);
        let (_, skip, len) = memory.place();
        if !fits || len < size || !skip.is_multiple_of(8) {
            return Err(InflightError::Layout { size, queues, entries });
        }
        Ok(Region { memory, layout })
    }

    /// Most entries of a queue.
    pub fn entries(&self) -> u16 {
        if self.has_second() { MAX_ENTRIES } else { self.layout.entries }
    }

    /// Whether there is room for long rings.
    fn has_second(&self) -> bool {
        let InflightLayout { size, queues, entries, .. } = self.layout;
        bytes_offered(queues, entries).is_some_and(|needed| needed <= size)
    }

    /// Number of queues in it.
    pub fn queues(&self) -> u16 {
        self.layout.queues
    }

    fn queue(&self, queue: u16) -> Option<Place> {
        let (mapping, skip, _) = self.memory.place();
        let InflightLayout { queues, entries, .. } = self.layout;
        let at = skip + usize::from(queue) * queue_bytes(entries);
        (queue < queues).then(|| Place { mapping: Arc::clone(mapping), at, entries })
    }

    /// Where it is if its ring is a long one.
    fn second(&self, queue: u16) -> Option<Place> {
        let (mapping, skip, _) = self.memory.place();
        let InflightLayout { queues, entries, .. } = self.layout;
        let first = usize::from(queues) * queue_bytes(entries);
        let at = skip + first + usize::from(queue) * queue_bytes(MAX_ENTRIES);
        let place = || Place { mapping: Arc::clone(mapping), at, entries: MAX_ENTRIES };
        (queue < queues && self.has_second()).then(place)
    }

    /// Where it is for a ring of so many entries.
    fn queue_of(&self, queue: u16, entries: u16) -> Option<Place> {
        let place = if entries <= self.layout.entries { self.queue(queue) } else { self.second(queue) };
        place.filter(|place| entries <= place.entries)
    }

    /// All that there are.
    fn all(&self) -> impl Iterator<Item = Place> {
        (0..self.layout.queues).flat_map(|queue| [self.queue(queue), self.second(queue)]).flatten()
    }

    /// One more process has crashed, and this request is to blame. Plain stores: this is for handlers of signals.
    pub(crate) fn blame(&self, queue: u16, head: u16) {
        let counts = |place: &Place| place.half(AT_VERSION).load(Ordering::Relaxed) != 0;
        let place = self.second(queue).filter(counts).or_else(|| self.queue(queue));
        if let Some(place) = place.filter(|place| head < place.entries) {
            let tries = place.byte(head, AT_TRIES);
            tries.store(tries.load(Ordering::Relaxed).saturating_add(1), Ordering::Release);
        }
    }

    /// One more process has crashed, and nobody knows over what.
    pub(crate) fn crashed(&self) {
        self.all().for_each(|place| place.byte(0, AT_CRASHED).store(1, Ordering::Release));
    }

    /// The device's own byte.
    pub(crate) fn marks(&self) -> u8 {
        self.queue(0).map_or(0, |place| place.byte(0, AT_MARKS).load(Ordering::Acquire))
    }

    /// Sets it.
    pub(crate) fn set_marks(&self, marks: u8) {
        if let Some(place) = self.queue(0) {
            place.byte(0, AT_MARKS).store(marks, Ordering::Release);
        }
    }
}

#[derive(Debug)]
struct Place {
    mapping: Arc<Mapping>,
    at: usize,
    /// Descriptors that it has room for.
    entries: u16,
}

impl Place {
    fn half(&self, at: usize) -> &std::sync::atomic::AtomicU16 {
        self.mapping.half(self.at + at)
    }

    #[inline]
    fn state(&self, head: u16) -> usize {
        self.at + HEADER + STATE * usize::from(head)
    }

    #[inline]
    fn byte(&self, head: u16, at: usize) -> &std::sync::atomic::AtomicU8 {
        self.mapping.byte(self.state(head) + at)
    }
}

/// A queue's region while its ring is used.
#[derive(Debug)]
pub struct Book {
    place: Place,
    entries: u16,
    counter: u64,
    last_batch_head: u16,
    /// Completed and not published.
    batch: Vec<u16>,
}

/// What a predecessor has left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// To be run again, in this order.
    pub again: Vec<u16>,
    /// Published by it and not noted.
    pub settled: u16,
    /// The region said nothing: there was no predecessor.
    pub fresh: bool,
}

impl Book {
    /// Opens a queue's region for this ring, whose position is set to the request that comes next.
    pub fn open(region: &Region, queue: u16, ring: &mut Ring) -> Result<(Book, Recovery), InflightError> {
        let entries = ring.entries();
        let place = region.queue_of(queue, entries).ok_or(InflightError::Entries(entries))?;
        let mut book = Book {
            place,
            entries,
            counter: 0,
            last_batch_head: 0,
            batch: Vec::with_capacity(entries.into()),
        };
        let recovery = match book.place.half(AT_VERSION).load(Ordering::Acquire) {
            0 => {
                book.initialise(ring);
                ring.set_position(ring.used());
                Recovery { fresh: true, ..Recovery::default() }
            }
            VERSION => book.recover(ring)?,
            version => return Err(InflightError::Version(version)),
        };
        Ok((book, recovery))
    }

    fn initialise(&mut self, ring: &Ring) {
        let entries = self.place.entries;
        for head in 0..entries {
            self.place.byte(head, AT_INFLIGHT).store(0, Ordering::Relaxed);
            self.place.byte(head, AT_TRIES).store(0, Ordering::Relaxed);
        }
        self.place.half(AT_ENTRIES).store(entries, Ordering::Relaxed);
        self.place.half(AT_LAST_BATCH_HEAD).store(0, Ordering::Relaxed);
        self.place.half(AT_USED).store(ring.used(), Ordering::Relaxed);
        KillPoint::InitDue.reached();
        self.place.half(AT_VERSION).store(VERSION, Ordering::Release);
        KillPoint::Initialised.reached();
    }

    fn recover(&mut self, ring: &mut Ring) -> Result<Recovery, InflightError> {
        let damaged = InflightError::Damaged;
        let used = ring.used();
        let noted = self.place.half(AT_USED).load(Ordering::Acquire);
        let settled = used.wrapping_sub(noted);
        if settled > self.entries {
            return Err(damaged("it is of another life of the ring"));
        }
        let mut head = self.place.half(AT_LAST_BATCH_HEAD).load(Ordering::Relaxed);
        // Looked at as a whole before anything is changed.
        let mut batch = Vec::with_capacity(settled.into());
        for _ in 0..settled {
            if head >= self.entries {
                return Err(damaged("its last batch has descriptors that there are not"));
            }
            batch.push(head);
            head = self.place.mapping.half(self.place.state(head) + AT_NEXT).load(Ordering::Relaxed);
        }
        for head in batch {
            self.place.byte(head, AT_TRIES).store(0, Ordering::Relaxed);
            self.place.byte(head, AT_INFLIGHT).store(0, Ordering::Release);
            KillPoint::Settled.reached();
        }
        self.place.half(AT_USED).store(used, Ordering::Release);
        KillPoint::Recovered.reached();
        let mut again: Vec<(u64, u16)> = (0..self.entries)
            .filter(|head| self.place.byte(*head, AT_INFLIGHT).load(Ordering::Acquire) != 0)
            .map(|head| {
                (self.place.mapping.long(self.place.state(head) + AT_COUNTER).load(Ordering::Relaxed), head)
            })
            .collect();
        again.sort_unstable();
        self.counter = again.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        self.last_batch_head = self.place.half(AT_LAST_BATCH_HEAD).load(Ordering::Relaxed);
        // Each that was taken was either used or is in flight (there are no more than entries).
        ring.set_position(used.wrapping_add(again.len() as u16));
        Ok(Recovery { again: again.into_iter().map(|(_, head)| head).collect(), settled, fresh: false })
    }

    /// A request is taken from the ring.
    #[inline]
    pub fn take(&mut self, head: u16) {
        KillPoint::TakeDue.reached();
        let at = self.place.state(head);
        self.place.mapping.long(at + AT_COUNTER).store(self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        KillPoint::Numbered.reached();
        self.place.byte(head, AT_INFLIGHT).store(1, Ordering::Release);
        KillPoint::Taken.reached();
    }

    /// It is in the ring again: nothing has been done about it.
    pub fn untake(&mut self, head: u16) {
        self.place.byte(head, AT_INFLIGHT).store(0, Ordering::Release);
    }

    /// How many processes have crashed over it.
    pub fn tries(&self, head: u16) -> u8 {
        self.place.byte(head, AT_TRIES).load(Ordering::Relaxed)
    }

    /// Whether a process has crashed, nobody knows over what, since this queue's were last forgiven.
    pub(crate) fn has_crashed(&self) -> bool {
        self.place.byte(0, AT_CRASHED).load(Ordering::Acquire) != 0
    }

    /// What was left undone then has been done.
    pub(crate) fn forgive(&self) {
        self.place.byte(0, AT_CRASHED).store(0, Ordering::Release);
    }

    /// It is in the used part, and not visible.
    #[inline]
    pub fn completed(&mut self, head: u16) {
        KillPoint::UsedWritten.reached();
        let at = self.place.state(head);
        self.place.mapping.half(at + AT_NEXT).store(self.last_batch_head, Ordering::Relaxed);
        KillPoint::Linked.reached();
        self.last_batch_head = head;
        self.place.half(AT_LAST_BATCH_HEAD).store(head, Ordering::Release);
        self.batch.push(head);
        KillPoint::Headed.reached();
    }

    /// What was completed is visible, up to this index.
    pub fn published(&mut self, used: u16) {
        KillPoint::Published.reached();
        for head in self.batch.drain(..) {
            self.place.byte(head, AT_TRIES).store(0, Ordering::Relaxed);
            self.place.byte(head, AT_INFLIGHT).store(0, Ordering::Release);
            KillPoint::Cleared.reached();
        }
        self.place.half(AT_USED).store(used, Ordering::Release);
        KillPoint::Followed.reached();
    }

    /// The ring is stopped, nothing is in flight: the region says nothing any more.
    pub fn stop(&mut self) {
        KillPoint::StopDue.reached();
        self.place.half(AT_VERSION).store(0, Ordering::Release);
        KillPoint::Stopped.reached();
    }
}
