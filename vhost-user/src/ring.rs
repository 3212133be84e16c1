//! The split ring (virtio 1.2, 2.7): which requests are available, and which have been used.
//!
//! The driver writes descriptors and the available part whenever it likes; each field is read once, checked, and used as it was then. What was used
//! is written to its place at once and becomes visible with [`Ring::publish`], many together.

use std::sync::atomic::{Ordering, fence};

use ipc::shm::GuestRam;
use thiserror::Error;

use crate::chain::{Chain, MAX_CHAIN, Piece};
use crate::memory::{Area, Memory};
use crate::wire::RingAddress;

/// Largest queue that is taken. QEMU's and Linux' largest; the specification allows 32768, which would only cost memory.
pub const MAX_ENTRIES: u16 = 1024;

const DESCRIPTOR: usize = 16;
const USED: usize = 8;
/// Flags and index before the entries of both parts.
const HEAD: usize = 4;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// A flag of either part: no signal is wanted.
const QUIET: u16 = 1;

/// A ring that makes no sense. Which side is at fault is in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RingError {
    /// The front end has said nonsense.
    #[error("a ring of {0} entries: a power of two up to {MAX_ENTRIES} is needed")]
    Entries(u32),
    /// A part does not lie in memory.
    #[error("the ring's {part} at {address:#x} does not lie in one region of memory, or lies askew")]
    Place {
        /// Which.
        part: &'static str,
        /// Where.
        address: u64,
    },
    /// The guest's index is further ahead than there are entries.
    #[error("the guest says that {0} requests are available, more than the ring has entries")]
    Overrun(u16),
    /// The guest has named a descriptor that there is not.
    #[error("the guest has named the descriptor {0}, which there is not")]
    Descriptor(u16),
    /// The guest has sent a request twice.
    #[error("the guest has made the descriptor {0} available, which is in flight")]
    Twice(u16),
    /// A chain that is too long, or a loop.
    #[error("a request has more than {MAX_CHAIN} descriptors, or they are a loop")]
    TooLong,
    /// A table of descriptors that is none.
    #[error("a request's indirect descriptors make no sense")]
    Indirect,
    /// One that lies in no memory.
    #[error("a request's {len} bytes of indirect descriptors at {gpa:#x} are not in memory")]
    NoTable {
        /// Where.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// What is read lies behind what is written.
    #[error("a request's descriptors are out of order: what is written comes last")]
    Order,
}

/// One ring.
#[derive(Debug)]
pub struct Ring {
    entries: u16,
    descriptors: Area,
    available: Area,
    used: Area,
    event_index: bool,
    /// The next request to be taken.
    next_available: u16,
    /// Where the next one that was used goes.
    next_used: u16,
    /// So far they are visible.
    published: u16,
    /// The driver has been told that it need not ring.
    quiet: bool,
    /// An indirect table.
    table: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Descriptor {
    gpa: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Ring {
    /// A ring in this memory. It begins where its used part says; what is taken next is for the caller to set.
    pub(crate) fn new(
        memory: &Memory,
        address: RingAddress,
        entries: u32,
        event_index: bool,
    ) -> Result<Ring, RingError> {
        let size = u16::try_from(entries).ok().filter(|n| n.is_power_of_two() && *n <= MAX_ENTRIES);
        let size = size.ok_or(RingError::Entries(entries))?;
        let bytes = |each: usize| HEAD + each * usize::from(size) + 2;
        let place = |part, address: u64, len: usize, align: u64| {
            let area = memory.area(address, len as u64).filter(|area| (area.at as u64).is_multiple_of(align));
            area.ok_or(RingError::Place { part, address })
        };
        let descriptors = address.descriptors;
        let mut ring = Ring {
            entries: size,
            descriptors: place("descriptors", descriptors, DESCRIPTOR * usize::from(size), 16)?,
            available: place("available part", address.available, bytes(2), 2)?,
            used: place("used part", address.used, bytes(USED), 4)?,
            event_index,
            next_available: 0,
            next_used: 0,
            published: 0,
            quiet: false,
            table: Vec::new(),
        };
        let used = ring.used.mapping.half(ring.used.at + 2).load(Ordering::Acquire);
        (ring.next_available, ring.next_used, ring.published) = (used, used, used);
        Ok(ring)
    }

    /// Number of entries.
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// The index up to which requests are visible as used.
    pub fn used(&self) -> u16 {
        self.published
    }

    /// The index of the request that is taken next.
    pub fn position(&self) -> u16 {
        self.next_available
    }

    /// Sets it.
    pub fn set_position(&mut self, position: u16) {
        self.next_available = position;
    }

    /// Has the indices of another one, which is the same ring at another place. Nothing of that may be unpublished.
    pub fn go_on_from(&mut self, other: &Ring) {
        (self.next_available, self.next_used) = (other.next_available, other.next_used);
        self.published = other.published;
    }

    /// How many requests can be taken.
    #[inline]
    pub fn available(&self) -> Result<u16, RingError> {
        let index = self.available.mapping.half(self.available.at + 2).load(Ordering::Acquire);
        match index.wrapping_sub(self.next_available) {
            count if count <= self.entries => Ok(count),
            count => Err(RingError::Overrun(count)),
        }
    }

    /// The head of the next one; the caller knows that there is one.
    pub fn head(&self) -> Result<u16, RingError> {
        let place = usize::from(self.next_available & (self.entries - 1));
        let at = self.available.at + HEAD + 2 * place;
        let head = self.available.mapping.half(at).load(Ordering::Relaxed);
        if head < self.entries { Ok(head) } else { Err(RingError::Descriptor(head)) }
    }

    /// It is taken.
    pub fn take(&mut self) {
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// What was taken last has not been.
    pub fn untake(&mut self) {
        self.next_available = self.next_available.wrapping_sub(1);
    }

    /// The pieces of the request with this head.
    pub fn read(&mut self, head: u16, ram: &GuestRam, chain: &mut Chain) -> Result<(), RingError> {
        chain.clear();
        let mut index = head;
        // A loop is longer than the ring.
        for _ in 0..self.entries {
            if index >= self.entries {
                return Err(RingError::Descriptor(index));
            }
            let mut bytes = [0; DESCRIPTOR];
            self.descriptors.mapping.read(self.descriptors.at + DESCRIPTOR * usize::from(index), &mut bytes);
            let descriptor = Descriptor::parse(&bytes);
            if descriptor.flags & INDIRECT != 0 {
                if descriptor.flags & NEXT != 0 {
                    return Err(RingError::Indirect);
                }
                return self.read_table(descriptor, ram, chain);
            }
            add(chain, descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(RingError::TooLong)
    }

    fn read_table(&mut self, table: Descriptor, ram: &GuestRam, chain: &mut Chain) -> Result<(), RingError> {
        let len = table.len as usize;
        if len == 0 || !len.is_multiple_of(DESCRIPTOR) {
            return Err(RingError::Indirect);
        }
        if len > MAX_CHAIN * DESCRIPTOR {
            return Err(RingError::TooLong);
        }
        // Grows to the longest that there was, and then no more.
        if self.table.len() < len {
            self.table.resize(len, 0);
        }
        let missing = |_| RingError::NoTable { gpa: table.gpa, len: len as u64 };
        ram.read(table.gpa, &mut self.table[..len]).map_err(missing)?;
        let (all, _) = self.table[..len].as_chunks::<DESCRIPTOR>();
        let mut index = 0;
        for _ in 0..all.len() {
            let descriptor = Descriptor::parse(all.get(usize::from(index)).ok_or(RingError::Indirect)?);
            if descriptor.flags & INDIRECT != 0 {
                return Err(RingError::Indirect);
            }
            add(chain, descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(RingError::TooLong)
    }

    /// Writes that a request was used, `len` bytes of it written. Not visible yet.
    pub fn write_used(&mut self, head: u16, len: u32) {
        let place = usize::from(self.next_used & (self.entries - 1));
        let at = self.used.at + HEAD + USED * place;
        self.used.mapping.word(at).store(head.into(), Ordering::Relaxed);
        self.used.mapping.word(at + 4).store(len, Ordering::Relaxed);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// How many are written and not visible.
    #[inline]
    pub fn unpublished(&self) -> u16 {
        self.next_used.wrapping_sub(self.published)
    }

    /// Makes visible what was written. True: the driver wants to be told.
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        self.used.mapping.half(self.used.at + 2).store(new, Ordering::Release);
        self.published = new;
        // The driver writes what it wants to be told before it looks at the index: one of us sees the other (2.7.7.2).
        fence(Ordering::SeqCst);
        if self.event_index {
            let at = self.available.at + HEAD + 2 * usize::from(self.entries);
            let event = self.available.mapping.half(at).load(Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.available.mapping.half(self.available.at).load(Ordering::Relaxed) & QUIET == 0
        }
    }

    /// The driver need not tell us of new requests: we look.
    #[inline]
    pub fn look(&mut self) {
        if self.quiet {
            return;
        }
        self.quiet = true;
        // With event indices it tells us once more, when it comes by the one that was asked for last.
        if !self.event_index {
            self.used.mapping.half(self.used.at).store(QUIET, Ordering::Relaxed);
        }
    }

    /// The driver has to tell us of the next request. What it has sent before has to be looked for after this.
    pub fn rest(&mut self) {
        self.quiet = false;
        if self.event_index {
            let at = self.used.at + HEAD + USED * usize::from(self.entries);
            self.used.mapping.half(at).store(self.next_available, Ordering::Relaxed);
        } else {
            self.used.mapping.half(self.used.at).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }
}

fn add(chain: &mut Chain, descriptor: Descriptor) -> Result<(), RingError> {
    let piece = Piece { gpa: descriptor.gpa, len: descriptor.len };
    if chain.push(piece, descriptor.flags & WRITE != 0) {
        return Ok(());
    }
    let full = chain.readable().len() + chain.writable().len() == MAX_CHAIN;
    Err(if full { RingError::TooLong } else { RingError::Order })
}

impl Descriptor {
    fn parse(bytes: &[u8; DESCRIPTOR]) -> Descriptor {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
        Descriptor {
            gpa: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([i, j, k, l]),
            flags: u16::from_le_bytes([m, n]),
            next: u16::from_le_bytes([o, p]),
        }
    }
}
