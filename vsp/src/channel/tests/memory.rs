//! Memory that a process writes to until it dies.

use std::cell::{Cell, RefCell};
use std::panic::resume_unwind;
use std::rc::Rc;

use ipc::ledger::{self, LedgerMemory};
use vmbus::ring::testing::TestRing;
use vmbus::ring::{ControlWord, RingMemory};

/// What ends a process in place of SIGKILL.
pub struct Died;

pub fn die() -> ! {
    resume_unwind(Box::new(Died))
}

/// How many stores are left, and how many were made.
#[derive(Debug, Default)]
pub struct Fuse {
    pub left: Cell<Option<u32>>,
    pub burnt: Cell<u32>,
}

impl Fuse {
    fn burn(&self) {
        if self.left.get() == Some(0) {
            die();
        }
        self.left.set(self.left.get().map(|left| left - 1));
        self.burnt.set(self.burnt.get() + 1);
    }

    fn copy(&self, from: &[u8], mut store: impl FnMut(usize, &[u8])) {
        let (head, tail) = from.split_at(from.len() / 2);
        self.burn();
        store(0, head);
        self.burn();
        store(head.len(), tail);
    }
}

/// A ring as the host sees it.
#[derive(Clone, Debug)]
pub struct HostRing {
    pub ring: TestRing,
    pub fuse: Rc<Fuse>,
    /// Which of the indices is the host's, and which the guest's.
    pub own: (ControlWord, ControlWord),
}

impl HostRing {
    /// An index only ever moves on, and never past the other end's.
    fn check(&self, value: u32) {
        let len = self.ring.data_len();
        let distance = |from: u32, to: u32| (to + len - from) % len;
        let (old, other) = (self.ring.load(self.own.0), self.ring.load(self.own.1));
        let room = distance(old, other);
        let room = if self.own.0 == ControlWord::WriteIndex && room == 0 { len } else { room };
        assert!(distance(old, value) <= room, "{:?} from {old} to {value}, the other is {other}", self.own.0);
    }
}

impl RingMemory for HostRing {
    fn data_len(&self) -> u32 {
        self.ring.data_len()
    }
    fn load(&self, word: ControlWord) -> u32 {
        self.ring.load(word)
    }
    fn store(&self, word: ControlWord, value: u32) {
        self.fuse.burn();
        if word == self.own.0 {
            self.check(value);
        }
        self.ring.store(word, value);
    }
    fn fence(&self) {
        self.ring.fence();
    }
    fn read(&self, offset: u32, into: &mut [u8]) {
        self.ring.read(offset, into);
    }
    fn write(&self, offset: u32, from: &[u8]) {
        self.fuse.copy(from, |at, part| {
            if !part.is_empty() {
                self.ring.write((offset + at as u32) % self.data_len(), part);
            }
        });
    }
}

/// A ledger in plain memory.
#[derive(Clone, Debug)]
pub struct HostLedger {
    pub bytes: Rc<RefCell<Vec<u8>>>,
    pub fuse: Rc<Fuse>,
}

impl HostLedger {
    pub fn new(slots: u32) -> HostLedger {
        let bytes = vec![0; ledger::bytes(slots) as usize];
        HostLedger { bytes: Rc::new(RefCell::new(bytes)), fuse: Rc::default() }
    }
}

impl HostLedger {
    /// Whoever makes one store too many dies.
    pub fn live_for(&self, stores: u32) {
        self.fuse.left.set(Some(stores));
    }

    /// Takes it back.
    pub fn live_on(&self) {
        self.fuse.left.set(None);
    }
}

impl LedgerMemory for HostLedger {
    fn len(&self) -> usize {
        self.bytes.borrow().len()
    }
    fn load(&self, offset: usize) -> u64 {
        u64::from_le_bytes(*self.bytes.borrow()[offset..].first_chunk().unwrap())
    }
    fn store(&self, offset: usize, value: u64) {
        self.fuse.burn();
        self.bytes.borrow_mut()[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
    fn read(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes.borrow()[offset..offset + into.len()]);
    }
    fn write(&self, offset: usize, from: &[u8]) {
        self.fuse.copy(from, |at, part| {
            self.bytes.borrow_mut()[offset + at..offset + at + part.len()].copy_from_slice(part);
        });
    }
}
