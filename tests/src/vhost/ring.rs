//! A driver's end of a split ring (VIRTIO 1.2, 2.7).
//!
//! Descriptors are dealt out in equal hands, one for each request that can be under way, so that a completion with a wrong
//! number, or a second one, cannot be taken for another's.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use anyhow::ensure;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::memory::Memory;
use super::protocol::vring_address;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Bytes of a descriptor.
pub const DESCRIPTOR: u64 = 16;
/// The driver wants no interrupts.
const NO_INTERRUPT: u16 = 1;
/// The device wants no kicks.
const NO_NOTIFY: u16 = 1;

/// A piece of memory that a request names.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Where the guest has it.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes to it.
    pub writable: bool,
}

/// Where the parts of a ring are, counted from the beginning of the memory.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its number.
    pub index: u32,
    /// Entries.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
}

impl Place {
    /// Takes memory for a ring.
    pub fn new(memory: &Memory, index: u32, size: u16) -> anyhow::Result<Self> {
        Ok(Self {
            index,
            size,
            descriptors: memory.take(u64::from(size) * DESCRIPTOR)?,
            available: memory.take(6 + 2 * u64::from(size))?,
            used: memory.take(6 + 8 * u64::from(size))?,
        })
    }

    /// What `SET_VRING_ADDR` says.
    pub fn message(&self) -> Vec<u8> {
        let [descriptors, used, available] = [self.descriptors, self.used, self.available].map(Memory::user);
        vring_address(self.index, 0, descriptors, used, available)
    }

    /// How many requests the driver has published.
    pub fn available_index(&self, memory: &Memory) -> anyhow::Result<u16> {
        memory.published(self.available + 2)
    }

    /// How many completions the device has published.
    pub fn used_index(&self, memory: &Memory) -> anyhow::Result<u16> {
        memory.published(self.used + 2)
    }
}

/// The wires of a ring.
#[derive(Clone, Debug)]
pub struct Wires {
    /// To the device.
    pub kick: Arc<EventFd>,
    /// From the device.
    pub call: Arc<EventFd>,
}

impl Wires {
    /// New ones.
    pub fn new() -> anyhow::Result<Self> {
        let wire = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map(Arc::new);
        Ok(Self { kick: wire()?, call: wire()? })
    }
}

/// A ring.
#[derive(Debug)]
pub struct Ring {
    /// Where it is.
    pub place: Place,
    /// How it signals.
    pub wires: Wires,
    memory: Arc<Memory>,
    /// Descriptors of a request.
    hand: u16,
    event_index: bool,
    /// Requests that were made available, published or not.
    made: u16,
    published: u16,
    /// Completions that were taken.
    taken: u16,
    /// Which hands are out.
    out: Vec<bool>,
}

impl Ring {
    /// An empty ring with `hand` descriptors for each request.
    pub fn new(
        memory: &Arc<Memory>,
        index: u32,
        size: u16,
        hand: u16,
        event_index: bool,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            place: Place::new(memory, index, size)?,
            wires: Wires::new()?,
            memory: Arc::clone(memory),
            hand,
            event_index,
            made: 0,
            published: 0,
            taken: 0,
            out: vec![false; usize::from(size / hand)],
        })
    }

    /// Makes a request available in hand number `slot`; `table` is memory for an indirect table of so many descriptors as there are parts.
    /// It is not published yet.
    pub fn push(&mut self, slot: u16, parts: &[Part], table: Option<u64>) -> anyhow::Result<()> {
        ensure!(!self.out[usize::from(slot)], "slot {slot} is out");
        let head = slot * self.hand;
        match table {
            Some(table) => {
                self.descriptors(table, 0, parts)?;
                let bytes = parts.len() as u32 * DESCRIPTOR as u32;
                self.descriptor(self.place.descriptors, head, (Memory::guest(table), bytes, INDIRECT, 0))?;
            }
            None => {
                ensure!(parts.len() <= usize::from(self.hand), "more parts than descriptors");
                self.descriptors(self.place.descriptors, head, parts)?;
            }
        }
        self.out[usize::from(slot)] = true;
        self.make_available(head)
    }

    fn descriptors(&self, table: u64, first: u16, parts: &[Part]) -> anyhow::Result<()> {
        for (n, part) in (0..).zip(parts) {
            let last = usize::from(n) + 1 == parts.len();
            let flags = if part.writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            let next = if last { 0 } else { first + n + 1 };
            self.descriptor(table, first + n, (part.address, part.len, flags, next))?;
        }
        Ok(())
    }

    /// Writes one descriptor as it is: address, length, flags, next.
    pub fn descriptor(
        &self,
        table: u64,
        n: u16,
        (address, len, flags, next): (u64, u32, u16, u16),
    ) -> anyhow::Result<()> {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write(table + u64::from(n) * DESCRIPTOR, &bytes)
    }

    /// Puts a head into the available ring, whatever it is.
    pub fn make_available(&mut self, head: u16) -> anyhow::Result<()> {
        let at = self.place.available + 4 + 2 * u64::from(self.made % self.place.size);
        self.memory.write(at, &head.to_le_bytes())?;
        self.made = self.made.wrapping_add(1);
        Ok(())
    }

    /// Publishes what was made available, and kicks if the device wants to be.
    pub fn submit(&mut self) -> anyhow::Result<()> {
        let old = self.published;
        self.publish(self.made)?;
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let event = self.memory.published(self.place.used + 4 + 8 * u64::from(self.place.size))?;
            needs_event(event, self.made, old)
        } else {
            self.memory.published(self.place.used)? & NO_NOTIFY == 0
        };
        if wanted && self.made != old { self.kick() } else { Ok(()) }
    }

    /// Publishes any index.
    pub fn publish(&mut self, index: u16) -> anyhow::Result<()> {
        self.published = index;
        self.memory.publish(self.place.available + 2, index)
    }

    /// Kicks.
    pub fn kick(&self) -> anyhow::Result<()> {
        self.wires.kick.write(1)?;
        Ok(())
    }

    /// The next completion: the slot and the number of bytes that the device says to have written. One that was not due is an error.
    pub fn take(&mut self) -> anyhow::Result<Option<(u16, u32)>> {
        if self.place.used_index(&self.memory)? == self.taken {
            return Ok(None);
        }
        let at = self.place.used + 4 + 8 * u64::from(self.taken % self.place.size);
        let mut bytes = [0; 8];
        self.memory.read(at, &mut bytes)?;
        let [a, b, c, d, e, f, g, h] = bytes;
        let (id, len) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        self.taken = self.taken.wrapping_add(1);
        let slot = id / u32::from(self.hand);
        let out = self.out.get_mut(slot as usize).filter(|out| **out && id % u32::from(self.hand) == 0);
        let Some(out) = out else { anyhow::bail!("a completion of {id}, which is not under way") };
        *out = false;
        Ok(Some((slot as u16, len)))
    }

    /// Whether interrupts are wanted, of the next completion on. Look at the ring once more afterwards.
    pub fn want_interrupts(&self, wanted: bool) -> anyhow::Result<()> {
        if self.event_index {
            // Half the numbers away is as far as can be.
            let event = if wanted { self.taken } else { self.taken.wrapping_sub(1) ^ 0x8000 };
            self.memory.publish(self.place.available + 4 + 2 * u64::from(self.place.size), event)?;
        } else {
            self.memory.publish(self.place.available, if wanted { 0 } else { NO_INTERRUPT })?;
        }
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// How many requests can be out.
    pub fn slots(&self) -> u16 {
        self.place.size / self.hand
    }

    /// Requests that are out.
    pub fn under_way(&self) -> usize {
        self.out.iter().filter(|out| **out).count()
    }
}

/// Whether somebody who asked for a word at `event` has to be told of the way from `old` to `new` (VIRTIO 1.2, 2.7.7.1).
fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asked_is_told_and_nobody_else() {
        assert!(needs_event(5, 6, 5) && needs_event(5, 9, 2) && needs_event(0xffff, 3, 0xfff0));
        assert!(!needs_event(6, 6, 5) && !needs_event(4, 6, 5) && !needs_event(0, 0, 0));
    }

    #[test]
    fn a_completion_comes_once() -> anyhow::Result<()> {
        let memory = Memory::new(1 << 20)?;
        let mut ring = Ring::new(&memory, 0, 16, 4, false)?;
        let part = Part { address: Memory::guest(0), len: 1, writable: false };
        ring.push(2, &[part; 3], None)?;
        ring.submit()?;
        assert!(ring.take()?.is_none());
        // As a device does, twice.
        for n in 1..=2 {
            memory.write(ring.place.used + 4 + 8 * (n - 1), &[8, 0, 0, 0, 7, 0, 0, 0])?;
            memory.publish(ring.place.used + 2, n as u16)?;
            match n {
                1 => assert_eq!(ring.take()?, Some((2, 7))),
                _ => assert!(ring.take().is_err()),
            }
        }
        Ok(())
    }
}
