//! What passes a host device through: what the device has kept, mapped, trapped and routed, as the core has it, and the guest's accesses.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use ipc::message::{ToCore, ToVsp};

use super::{Bench, FakeCore, PATIENCE};
use crate::device::Device;

/// Where an interrupt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The vector.
    pub vector: u8,
    /// Index of the VP.
    pub vp: u32,
}

/// All that the core has of it.
#[derive(Debug, Default)]
pub(super) struct Passed {
    kept: RefCell<BTreeMap<u32, (String, Vec<OwnedFd>)>>,
    /// By address: length and offset.
    regions: RefCell<BTreeMap<u64, (u64, u64)>>,
    traps: RefCell<BTreeMap<u64, u64>>,
    interrupts: RefCell<BTreeMap<u32, (Target, OwnedFd)>>,
    accesses: Cell<u64>,
}

impl FakeCore {
    /// What is kept for the device's next process: keys, notes and how many descriptors.
    pub fn kept(&self) -> Vec<(u32, String, usize)> {
        let kept = self.passed.kept.borrow();
        kept.iter().map(|(key, (note, fds))| (*key, note.clone(), fds.len())).collect()
    }

    /// What the guest sees of the host's device: addresses, lengths and offsets.
    pub fn regions(&self) -> Vec<(u64, u64, u64)> {
        let regions = self.passed.regions.borrow();
        regions.iter().map(|(gpa, (bytes, offset))| (*gpa, *bytes, *offset)).collect()
    }

    /// What is trapped: addresses and lengths.
    pub fn traps(&self) -> Vec<(u64, u64)> {
        self.passed.traps.borrow().iter().map(|(gpa, bytes)| (*gpa, *bytes)).collect()
    }

    /// Which interrupts there are, and where they go.
    pub fn interrupts(&self) -> Vec<(u32, Target)> {
        self.passed.interrupts.borrow().iter().map(|(id, (target, _))| (*id, *target)).collect()
    }

    /// The eventfd of one of them.
    pub fn interrupt_bell(&self, id: u32) -> Option<OwnedFd> {
        let interrupts = self.passed.interrupts.borrow();
        Some(interrupts.get(&id)?.1.try_clone().expect("duplicated"))
    }

    /// The guest has met a region that does not answer.
    pub fn lose_region(&self, gpa: u64) {
        if self.passed.regions.borrow_mut().remove(&gpa).is_some() {
            self.peer.send(&ToVsp::RegionLost { gpa }, &[]).expect("sent");
        }
    }

    /// A VP reads (`write` is `None`) or writes where the device has a trap; the number by which the answer
    /// [`ToCore::AccessDone`] names it. A successor can be asked again by [`FakeCore::send`].
    pub fn access(&self, gpa: u64, bytes: u8, write: Option<u64>) -> u64 {
        let is_trapped = |(start, len): (&u64, &u64)| gpa >= *start && gpa - start < *len;
        assert!(self.passed.traps.borrow().iter().any(is_trapped), "{gpa:#x} is not trapped");
        let id = self.passed.accesses.get() + 1;
        self.passed.accesses.set(id);
        // A process that has gone is followed by one that is asked again.
        let _ = self.peer.send(&ToVsp::Access { id, gpa, bytes, write }, &[]);
        id
    }

    /// The channel has closed: all that hangs on it ends.
    pub(super) fn end_passed(&self) {
        self.passed.regions.borrow_mut().clear();
        self.passed.traps.borrow_mut().clear();
        self.passed.interrupts.borrow_mut().clear();
    }

    /// The device asks; `Some`: for something else. What may not be, the real core knows.
    pub(super) fn pass(&self, message: ToCore, mut fds: Vec<OwnedFd>) -> Option<ToCore> {
        let Passed { kept, regions, traps, interrupts, .. } = &self.passed;
        let is_open = self.channels.borrow().iter().any(|held| held.subchannel == 0);
        let closed = (!is_open).then(|| "the channel is not open".to_owned());
        let mut result = self.refusal.borrow().clone().or(closed).map_or(Ok(()), Err);
        let answer = match message {
            ToCore::Keep { key, note } => {
                match fds.is_empty() {
                    true => kept.borrow_mut().remove(&key),
                    false => kept.borrow_mut().insert(key, (note, fds)),
                };
                return None;
            }
            ToCore::MapRegion { gpa, bytes, offset } => {
                assert_eq!(fds.len(), 1, "a region comes with its file");
                if result.is_ok() {
                    regions.borrow_mut().insert(gpa, (bytes, offset));
                }
                ToVsp::MemoryMapped { gpa, result }
            }
            ToCore::Trap { gpa, bytes } => {
                if result.is_ok() {
                    traps.borrow_mut().insert(gpa, bytes);
                }
                ToVsp::Trapped { gpa, result }
            }
            ToCore::Untrap { gpa } => {
                traps.borrow_mut().remove(&gpa);
                return None;
            }
            ToCore::Interrupt { id, vector, vp } => {
                match fds.pop() {
                    Some(bell) if result.is_ok() => {
                        interrupts.borrow_mut().insert(id, (Target { vector, vp }, bell));
                    }
                    Some(_) => {}
                    None => result = Err("no descriptor came".into()),
                }
                ToVsp::InterruptReady { id, result }
            }
            ToCore::InterruptDelete { id } => {
                interrupts.borrow_mut().remove(&id);
                return None;
            }
            other => return Some(other),
        };
        // A process that has gone need not know.
        let _ = self.peer.send(&answer, &[]);
        None
    }

    pub(super) fn unmap_region(&self, gpa: u64) {
        self.passed.regions.borrow_mut().remove(&gpa);
    }

    /// The process that is about to serve is told what is kept.
    pub(super) fn give_kept(&self) {
        for (key, (note, fds)) in &*self.passed.kept.borrow() {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            self.peer.send(&ToVsp::Kept { key: *key, note: note.clone() }, &fds).expect("sent");
        }
    }

    /// Whether there is anything of a device of the host's.
    pub(super) fn has_passed(&self) -> bool {
        !self.passed.kept.borrow().is_empty() || !self.regions().is_empty() || !self.traps().is_empty()
    }

    /// The process that has begun to serve is told what there is.
    pub(super) fn give_passed(&self) {
        for (gpa, bytes, offset) in self.regions() {
            self.peer.send(&ToVsp::Region { gpa, bytes, offset }, &[]).expect("sent");
        }
        for (gpa, bytes) in self.traps() {
            self.peer.send(&ToVsp::TrapThere { gpa, bytes }, &[]).expect("sent");
        }
    }
}

impl<D: Device> Bench<D> {
    /// What the guest reads where the device has a trap, taking turns until the device has answered.
    pub fn read_trap(&mut self, gpa: u64, bytes: u8) -> u64 {
        let id = self.core.access(gpa, bytes, None);
        self.access_answer(id)
    }

    /// The guest writes where the device has a trap.
    pub fn write_trap(&mut self, gpa: u64, bytes: u8, value: u64) {
        let id = self.core.access(gpa, bytes, Some(value));
        self.access_answer(id);
    }

    fn access_answer(&mut self, access: u64) -> u64 {
        let start = Instant::now();
        loop {
            match self.core.try_answer() {
                Some(ToCore::AccessDone { id, value }) if id == access => return value,
                Some(other) => panic!("{other:?}"),
                None => self.turn(1),
            }
            assert!(start.elapsed() < PATIENCE, "the access has no answer");
        }
    }
}
