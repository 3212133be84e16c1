//! Addresses at which a device answers the guest itself: which they are, and the VPs that wait for it.
//!
//! A VP waits as long as nobody serves the device, and whoever serves then is asked: the answer is the device's and not its process's, as with requests in a
//! ring. It does not wait beyond the channel. What is read or written is no business of the core's.

use std::time::{Duration, Instant};

use ipc::{
    message::{MAX_TRAPS, PASSTHROUGH_VERSION, ToVsp},
    socket::SocketError,
};

use super::{Server, TELL_AGAIN, mappings::check_window, slot::Leave};
use crate::partition::Partition;

/// What a VP reads where nothing answers: an empty bus floats high.
const NOTHING: u64 = u64::MAX;
/// How long a process may take to answer. A processor of the guest's stands still meanwhile; it asks the host's device, and that is fast or broken.
const ACCESS_GRACE: Duration = Duration::from_secs(10);

/// A range of addresses.
#[derive(Debug)]
struct Trap {
    /// The device's place among all.
    device: usize,
    gpa: u64,
    bytes: u64,
}

impl Trap {
    fn overlaps(&self, gpa: u64, bytes: u64) -> bool {
        // Neither sum overflows: both ranges lie in a window.
        self.gpa < gpa + bytes && gpa < self.gpa + self.bytes
    }
}

/// A VP that waits.
#[derive(Debug)]
struct Access {
    id: u64,
    vp: u32,
    device: usize,
    gpa: u64,
    bytes: u8,
    write: Option<u64>,
    word: Word,
}

/// Whether the process that serves knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// It does not; nor does anybody, or it is told as soon as it may be.
    Due,
    /// Its socket had no room. When to try again, and until when.
    Owed(Instant, Instant),
    /// It has to answer by then.
    Given(Instant),
}

/// All traps, and all who wait at them: one a VP at most.
#[derive(Debug, Default)]
pub(super) struct Traps {
    list: Vec<Trap>,
    waiting: Vec<Access>,
    last: u64,
}

impl Traps {
    pub fn any_overlaps(&self, gpa: u64, bytes: u64) -> bool {
        self.list.iter().any(|trap| trap.overlaps(gpa, bytes))
    }

    /// Those of a device: addresses and lengths.
    pub fn of(&self, device: usize) -> impl Iterator<Item = (u64, u64)> {
        self.list.iter().filter(move |trap| trap.device == device).map(|trap| (trap.gpa, trap.bytes))
    }

    /// When [`Server::tick_traps`] has to be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let due = |access: &Access| match access.word {
            Word::Due => None,
            Word::Owed(when, _) | Word::Given(when) => Some(when),
        };
        self.waiting.iter().filter_map(due).min()
    }

    /// Nobody can be told now.
    fn put_off(&mut self, device: usize) {
        let is_owed = |access: &&mut Access| access.device == device && matches!(access.word, Word::Owed(..));
        self.waiting.iter_mut().filter(is_owed).for_each(|access| access.word = Word::Due);
    }

    /// No process of the device's knows of any access.
    pub fn release(&mut self, device: usize) {
        let own = self.waiting.iter_mut().filter(|access| access.device == device);
        own.for_each(|access| access.word = Word::Due);
    }

    /// Ends these traps; who waits there finds nothing.
    fn end<P: Partition>(&mut self, partition: &P, which: impl Fn(&Trap) -> bool) {
        for trap in self.list.extract_if(.., |trap| which(trap)) {
            let is_there = |access: &mut Access| trap.overlaps(access.gpa, 1);
            for access in self.waiting.extract_if(.., is_there) {
                partition.access_done(access.vp, NOTHING);
            }
        }
    }
}

impl Server {
    /// Device `i` wants to answer what the guest does there.
    pub(super) fn trap(&mut self, i: usize, gpa: u64, bytes: u64) -> Result<(), String> {
        self.open_primary(i)?;
        check_window(gpa, bytes, self.ram.end())?;
        let traps = &mut self.traps;
        if traps.list.iter().any(|trap| (trap.device, trap.gpa, trap.bytes) == (i, gpa, bytes)) {
            return Ok(());
        }
        let is_mapped = self.mappings.iter().any(|mapping| mapping.overlaps(gpa, bytes));
        if is_mapped || traps.any_overlaps(gpa, bytes) {
            return Err("something else is mapped or trapped there already".into());
        }
        if traps.of(i).count() >= MAX_TRAPS {
            return Err("too much is trapped already".into());
        }
        traps.list.push(Trap { device: i, gpa, bytes });
        Ok(())
    }

    /// It does not any more.
    pub(super) fn untrap<P: Partition>(&mut self, partition: &P, i: usize, gpa: u64) {
        self.traps.end(partition, |trap| trap.device == i && trap.gpa == gpa);
    }

    /// The guest has closed the primary channel of device `i`.
    pub(super) fn untrap_all<P: Partition>(&mut self, partition: &P, i: usize) {
        self.traps.end(partition, |trap| trap.device == i);
    }

    /// No VP waits any more: the guest is no more.
    pub(super) fn forget_accesses(&mut self) {
        self.traps.waiting.clear();
    }

    /// VP `vp` reads (`write` is `None`) or writes where it has no memory: `bytes` is 1, 2, 4 or 8, and `gpa` a multiple of it. `Some` is what it
    /// reads; `None`: it waits for [`Partition::access_done`].
    pub fn access<P: Partition>(
        &mut self,
        partition: &P,
        vp: u32,
        gpa: u64,
        bytes: u8,
        write: Option<u64>,
    ) -> Option<u64> {
        let traps = &mut self.traps;
        let Some(trap) = traps.list.iter().find(|trap| trap.gpa <= gpa && gpa - trap.gpa < trap.bytes) else {
            return Some(NOTHING);
        };
        let device = trap.device;
        traps.last += 1;
        let id = traps.last;
        traps.waiting.push(Access { id, vp, device, gpa, bytes, write, word: Word::Due });
        self.tell_accesses(partition, device);
        None
    }

    /// Tells the process that serves of accesses, if it knows all that there is to know before.
    pub(super) fn tell_accesses<P: Partition>(&mut self, partition: &P, i: usize) {
        let device = &self.devices[i];
        let may_be_asked = device.is_adopted && device.owes_adopted.is_none();
        let taker = device.slot.taker().filter(|(_, p)| may_be_asked && p.version >= PASSTHROUGH_VERSION);
        let Some((role, process)) = taker else {
            // Whoever serves next is told then.
            self.traps.put_off(i);
            return;
        };
        let now = Instant::now();
        let mut lost = None;
        let is_due = |access: &&mut Access| access.device == i && !matches!(access.word, Word::Given(_));
        for access in self.traps.waiting.iter_mut().filter(is_due) {
            let Access { id, gpa, bytes, write, .. } = *access;
            let by = match access.word {
                Word::Owed(_, by) => by,
                Word::Due | Word::Given(_) => now + ACCESS_GRACE,
            };
            access.word = match process.peer.send(&ToVsp::Access { id, gpa, bytes, write }, &[]) {
                // If it has gone, its end will be read.
                Ok(()) | Err(SocketError::Closed) => Word::Given(now + ACCESS_GRACE),
                Err(SocketError::WouldBlock) => Word::Owed((now + TELL_AGAIN).min(by), by),
                Err(error) => {
                    lost = Some(error);
                    break;
                }
            };
        }
        if let Some(error) = lost {
            let reason = format!("it cannot be asked for an access: {error}");
            self.leave(partition, i, role, Leave::CutOff(reason));
        }
    }

    /// The process that has device `i` answers. What it says of an access that is over is not heard.
    pub(super) fn answer_access<P: Partition>(&mut self, partition: &P, i: usize, id: u64, value: u64) {
        let is_it =
            |access: &Access| access.id == id && access.device == i && matches!(access.word, Word::Given(_));
        if let Some(place) = self.traps.waiting.iter().position(is_it) {
            let access = self.traps.waiting.swap_remove(place);
            partition.access_done(access.vp, value);
        }
    }

    /// Time goes by.
    pub(super) fn tick_traps<P: Partition>(&mut self, partition: &P, now: Instant) {
        let due = |access: &Access| match access.word {
            Word::Owed(when, _) | Word::Given(when) if when > now => None,
            // Neither answering nor listening.
            Word::Given(_) => Some((access.device, true)),
            Word::Owed(_, by) => Some((access.device, by <= now)),
            Word::Due => None,
        };
        let mut due: Vec<(usize, bool)> = self.traps.waiting.iter().filter_map(due).collect();
        // Once for each device, however many VPs wait: whoever is cut off twice is two.
        due.sort_unstable_by_key(|(i, is_over)| (*i, !*is_over));
        due.dedup_by_key(|(i, _)| *i);
        for (i, is_over) in due {
            if is_over {
                self.traps.release(i);
                let holder = self.devices[i].slot.holder().map(|(role, _)| role);
                if let Some(role) = holder {
                    let reason = "it did not answer the guest's access in time".into();
                    self.leave(partition, i, role, Leave::CutOff(reason));
                }
            } else {
                self.tell_accesses(partition, i);
            }
        }
    }
}
