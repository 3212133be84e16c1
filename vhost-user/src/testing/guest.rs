//! The driver's side of a split ring.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use ipc::shm::Mapping;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A piece of a request: guest-physical address, length.
pub type Part = (u64, u32);

/// Where descriptors, available and used part of a ring at `at` are.
pub(super) fn places(at: u64, entries: u16) -> (u64, u64, u64) {
    let available = at + 16 * u64::from(entries);
    let used = (available + 6 + 2 * u64::from(entries)).next_multiple_of(4);
    (at, available, used)
}

/// A ring as its driver uses it. Descriptors are given out in order and come back when their request was used.
#[derive(Debug)]
pub struct GuestRing {
    memory: Arc<Mapping>,
    entries: u16,
    descriptors: usize,
    available: usize,
    used: usize,
    event_index: bool,
    /// Descriptors that are free.
    free: Vec<u16>,
    /// Those of each request, by its head.
    chains: Vec<Vec<u16>>,
    next_available: u16,
    seen: u16,
}

impl GuestRing {
    pub(super) fn new(memory: Arc<Mapping>, at: u64, entries: u16, event_index: bool) -> GuestRing {
        let (descriptors, available, used) = places(at, entries);
        GuestRing {
            memory,
            entries,
            descriptors: descriptors as usize,
            available: available as usize,
            used: used as usize,
            event_index,
            free: (0..entries).rev().collect(),
            chains: vec![Vec::new(); entries.into()],
            next_available: 0,
            seen: 0,
        }
    }

    /// Begins at another index than 0, as a ring does that was stopped and started.
    pub fn begin_at(&mut self, index: u16) {
        (self.next_available, self.seen) = (index, index);
        self.memory.half(self.available + 2).store(index, Ordering::Release);
        self.memory.half(self.used + 2).store(index, Ordering::Release);
    }

    /// How many descriptors are free.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Writes a descriptor as it stands.
    pub fn write_descriptor(&self, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        self.memory.write(self.descriptors + 16 * usize::from(index), &descriptor(gpa, len, flags, next));
    }

    /// Makes a request of these pieces available; its head. The driver has to ring afterwards.
    pub fn send(&mut self, readable: &[Part], writable: &[Part]) -> u16 {
        let parts: Vec<_> =
            readable.iter().map(|part| (part, 0)).chain(writable.iter().map(|part| (part, WRITE))).collect();
        let chain: Vec<u16> = parts.iter().map(|_| self.free.pop().expect("a free descriptor")).collect();
        for (place, ((gpa, len), flags)) in parts.iter().enumerate() {
            let next = chain.get(place + 1).copied();
            let flags = flags | if next.is_some() { NEXT } else { 0 };
            self.write_descriptor(chain[place], *gpa, *len, flags, next.unwrap_or(0));
        }
        let head = chain[0];
        self.chains[usize::from(head)] = chain;
        self.offer(head);
        head
    }

    /// The same by a table at `table`.
    pub fn send_indirect(&mut self, table: u64, readable: &[Part], writable: &[Part]) -> u16 {
        let parts = readable.iter().map(|part| (part, 0)).chain(writable.iter().map(|part| (part, WRITE)));
        let count = (readable.len() + writable.len()) as u16;
        for (place, ((gpa, len), flags)) in parts.enumerate() {
            let place = place as u16;
            let flags = flags | if place + 1 < count { NEXT } else { 0 };
            let at = table as usize + 16 * usize::from(place);
            self.memory.write(at, &descriptor(*gpa, *len, flags, place + 1));
        }
        let head = self.free.pop().expect("a free descriptor");
        self.write_descriptor(head, table, u32::from(count) * 16, INDIRECT, 0);
        self.chains[usize::from(head)] = vec![head];
        self.offer(head);
        head
    }

    /// Puts any head into the available part.
    pub fn offer(&mut self, head: u16) {
        let place = usize::from(self.next_available % self.entries);
        self.memory.half(self.available + 4 + 2 * place).store(head, Ordering::Relaxed);
        self.next_available = self.next_available.wrapping_add(1);
        self.memory.half(self.available + 2).store(self.next_available, Ordering::Release);
    }

    /// Says that requests up to this index are available, whatever there is.
    pub fn set_available(&mut self, index: u16) {
        self.next_available = index;
        self.memory.half(self.available + 2).store(index, Ordering::Release);
    }

    /// What was used since this was asked last: heads, and bytes that were written. A head that was not sent is a failed test.
    pub fn used(&mut self) -> Vec<(u16, u32)> {
        let index = self.memory.half(self.used + 2).load(Ordering::Acquire);
        let mut all = Vec::new();
        while self.seen != index {
            let at = self.used + 4 + 8 * usize::from(self.seen % self.entries);
            let (head, len) = (self.memory.word(at), self.memory.word(at + 4));
            let (head, len) = (head.load(Ordering::Relaxed) as u16, len.load(Ordering::Relaxed));
            self.seen = self.seen.wrapping_add(1);
            let chain = self.chains.get_mut(usize::from(head)).expect("a head");
            assert!(!chain.is_empty(), "the request {head} was used without being in flight");
            self.free.append(chain);
            all.push((head, len));
        }
        // Tell us of the next one.
        if self.event_index {
            let at = self.available + 4 + 2 * usize::from(self.entries);
            self.memory.half(at).store(self.seen, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
        all
    }

    /// How many requests are with the device.
    pub fn in_flight(&self) -> usize {
        self.chains.iter().filter(|chain| !chain.is_empty()).count()
    }
}

fn descriptor(gpa: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&gpa.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
