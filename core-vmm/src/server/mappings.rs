//! Memory of devices that the guest sees, be it of their own making or a part of a device of the host's: where it may lie, how much of it there may be, how
//! long it stays.
//!
//! It is the device's, not the guest's: what is checked here is that it can be in nobody's way. What it is for is no business of the core's.
//! A mapping belongs to the device and not to the process that has asked for it, as a channel does.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use ipc::{
    message::{MAX_DEVICE_MAPPINGS, MAX_REGIONS, MEMORY_VERSION, PASSTHROUGH_VERSION, ToVsp},
    shm::SharedMemory,
    socket::SocketError,
};

use super::{
    Server,
    memory::Ask,
    slot::{Leave, Role},
};
use crate::{
    layout::{PAGE, is_in_window},
    memory::device,
    partition::Partition,
};

/// Mappings of a VM at a time, each a descriptor and a memory slot of KVM's: 8 devices with all that one may have.
const MAPPINGS_MAX: usize = 128;
/// Bytes of regions that a device may have mapped of regular files, which are memory of the host's, or on its way to be: no device of the host's is one. Beyond
/// the VM's own memory a process that somebody has taken over gets the host to spend as much, for each file that it has, and no more. Tests have devices that are made of memory; theirs are small.
const MEMORY_REGIONS_MAX: u64 = 16 << 20;

/// What the guest sees of a device's memory.
#[derive(Debug)]
pub(super) struct Mapping {
    /// The device's place among all.
    device: usize,
    gpa: u64,
    bytes: u64,
    backing: Backing,
}

/// What is behind a mapping.
#[derive(Debug)]
enum Backing {
    /// Memory that the device has made.
    Own(SharedMemory),
    /// A file from an offset on, of which nothing is known.
    Region { file: File, offset: u64, is_memory: bool },
}

/// Which of them is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Own,
    /// From this offset on.
    Region(u64),
}

impl Mapping {
    pub fn overlaps(&self, gpa: u64, bytes: u64) -> bool {
        // Neither sum overflows: both ranges lie in a window.
        self.gpa < gpa + bytes && gpa < self.gpa + self.bytes
    }

    fn contains(&self, gpa: u64) -> bool {
        gpa.checked_sub(self.gpa).is_some_and(|at| at < self.bytes)
    }

    fn is_region(&self) -> bool {
        matches!(self.backing, Backing::Region { .. })
    }

    /// Bytes of the host's memory that a region may cost.
    fn memory(&self) -> u64 {
        match self.backing {
            Backing::Region { is_memory: true, .. } => self.bytes,
            Backing::Region { .. } | Backing::Own(_) => 0,
        }
    }

    fn show<P: Partition>(&self, partition: &P) -> std::io::Result<()> {
        let (file, offset) = match &self.backing {
            Backing::Own(memory) => (memory.as_fd(), 0),
            Backing::Region { file, offset, .. } => (file.as_fd(), *offset),
        };
        partition.map_device_memory(self.gpa, file, offset, self.bytes)
    }
}

/// Whether these are whole pages in one of the windows that the guest gives to VMBus devices; a sentence if not.
pub(super) fn check_window(gpa: u64, bytes: u64, ram_end: u64) -> Result<(), String> {
    let is_whole = gpa.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE);
    if is_whole && is_in_window(gpa, bytes, ram_end) {
        return Ok(());
    }
    Err(format!("{bytes:#x} bytes at {gpa:#x} are not whole pages in a window for VMBus devices"))
}

/// Why the VM cannot go on: the guest, or the next one, would share memory with a device that it has taken leave of.
fn still_seen(error: &std::io::Error) -> String {
    format!("a device's memory could not be taken back from the guest: {error}")
}

impl Server {
    /// The process that has device `i` wants memory mapped. `None`: it may not even ask.
    pub(super) fn map_asked<P: Partition>(
        &mut self,
        partition: &P,
        i: usize,
        (gpa, bytes, kind): (u64, u64, Kind),
        fds: Vec<OwnedFd>,
    ) -> Result<Option<()>, Leave> {
        if !self.maps(i) {
            return Ok(None);
        }
        let result = self.map(partition, i, (gpa, bytes, kind), fds);
        if let Err(reason) = &result {
            tracing::debug!(device = %self.devices[i].name, gpa, bytes, %reason, "its memory is not mapped");
        }
        self.asked(partition, i, Ask::Mapped { gpa, result })
    }

    /// The process that has device `i` takes memory back. `None`: it may not.
    pub(super) fn unmap_asked<P: Partition>(&mut self, partition: &P, i: usize, gpa: u64) -> Option<()> {
        if !self.maps(i) {
            return None;
        }
        self.unmap_where(partition, |mapping| mapping.device == i && mapping.gpa == gpa);
        Some(())
    }

    /// Whether the process that has device `i` speaks of mappings at all.
    fn maps(&self, i: usize) -> bool {
        self.devices[i].slot.holder().is_some_and(|(_, process)| process.version >= MEMORY_VERSION)
    }

    fn map<P: Partition>(
        &mut self,
        partition: &P,
        i: usize,
        (gpa, bytes, kind): (u64, u64, Kind),
        mut fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let most = self.devices[i].device_memory;
        if kind == Kind::Own && most == 0 {
            return Err("this device may map no memory".into());
        }
        self.open_primary(i)?;
        check_window(gpa, bytes, self.ram.end())?;
        let others = || self.mappings.iter().filter(|m| m.device != i || m.gpa != gpa);
        if others().any(|mapping| mapping.overlaps(gpa, bytes)) || self.traps.any_overlaps(gpa, bytes) {
            return Err("something else is mapped or trapped there already".into());
        }
        let own = || others().filter(|m| m.device == i && m.is_region() == (kind != Kind::Own));
        let is_full = own().count() >= if kind == Kind::Own { MAX_DEVICE_MAPPINGS } else { MAX_REGIONS };
        if is_full || others().count() >= MAPPINGS_MAX {
            return Err("too much is mapped already".into());
        }
        let (Some(fd), true) = (fds.pop(), fds.is_empty()) else {
            return Err("one descriptor has to come with it".into());
        };
        let backing = match kind {
            Kind::Own => {
                let left = most.saturating_sub(own().map(|mapping| mapping.bytes).sum());
                if bytes > left {
                    return Err(format!("of {most} bytes that this device may map, {left} are left"));
                }
                let memory = SharedMemory::from_fd(fd, bytes).map_err(|e| e.to_string())?;
                if !device::has_small_pages(memory.as_fd()) {
                    return Err("memory of large pages can run out after it was mapped".into());
                }
                Backing::Own(memory)
            }
            Kind::Region(offset) => {
                let end = offset.checked_add(bytes).and_then(|end| i64::try_from(end).ok());
                if !offset.is_multiple_of(PAGE) || end.is_none() {
                    return Err("a region begins with a page of its file".into());
                }
                let file = File::from(fd);
                let is_memory = file.metadata().map_err(|error| error.to_string())?.is_file();
                let used: u64 = own().map(Mapping::memory).sum();
                if is_memory && bytes > MEMORY_REGIONS_MAX.saturating_sub(used) {
                    return Err(format!(
                        "a region is a part of a device; of memory {MEMORY_REGIONS_MAX} bytes are the most"
                    ));
                }
                Backing::Region { file, offset, is_memory }
            }
        };
        self.put(partition, Mapping { device: i, gpa, bytes, backing })
    }

    /// Whether the guest has the primary channel of device `i` open, and the process has it.
    pub(super) fn open_primary(&self, i: usize) -> Result<(), String> {
        let primary = self.devices[i].offered.as_ref().map(|offered| offered.relid);
        self.open_live(i, primary.ok_or("the channel is not open")?).map(|_| ())
    }

    /// Maps it, in the place of what begins there.
    fn put<P: Partition>(&mut self, partition: &P, new: Mapping) -> Result<(), String> {
        let before = self.mappings.iter().position(|mapping| mapping.gpa == new.gpa);
        let is_there = |old: &Mapping| match (&old.backing, &new.backing) {
            (Backing::Own(old_memory), Backing::Own(memory)) => {
                old.bytes == new.bytes && old_memory.is_same(memory).unwrap_or(false)
            }
            _ => false,
        };
        // A successor that asks again for what is there must not make the guest miss it for a moment.
        if before.is_some_and(|at| is_there(&self.mappings[at])) {
            return Ok(());
        }
        // Refused, and not cut off: how often an honest device asks may be the guest's doing. Whatever is taken back was mapped once, so this limits
        // both.
        if !self.devices[new.device].allowance.take(Instant::now()) {
            return Err("it is mapped and taken back too often".into());
        }
        if let Some(at) = before {
            self.unmapped += 1;
            let old = &self.mappings[at];
            if let Err(error) = partition.unmap_device_memory(old.gpa) {
                self.failure = Some(still_seen(&error));
                return Err("what is mapped there cannot be taken back".into());
            }
        }
        match (new.show(partition), before) {
            (Ok(()), Some(at)) => self.mappings[at] = new,
            (Ok(()), None) => self.mappings.push(new),
            (Err(error), before) => {
                if let Some(at) = before
                    && let Err(error) = self.mappings[at].show(partition)
                {
                    let lost = self.mappings.swap_remove(at);
                    tracing::error!(lost.gpa, %error, "what the guest saw of a device's memory is lost");
                }
                return Err(error.to_string());
            }
        }
        Ok(())
    }

    /// The guest has closed the primary channel of device `i`.
    pub(super) fn unmap_all<P: Partition>(&mut self, partition: &P, i: usize) {
        self.unmap_where(partition, |mapping| mapping.device == i);
    }

    fn unmap_where<P: Partition>(&mut self, partition: &P, which: impl Fn(&Mapping) -> bool) {
        let gone: Vec<Mapping> = self.mappings.extract_if(.., |mapping| which(mapping)).collect();
        for mapping in gone {
            self.unmapped += 1;
            if let Err(error) = partition.unmap_device_memory(mapping.gpa) {
                self.failure = Some(still_seen(&error));
            }
            if let Backing::Region { file, .. } = mapping.backing {
                let Self { devices, closer, .. } = self;
                devices[mapping.device].kept.close(closer, vec![file.into()]);
            }
        }
    }

    /// VP `vp` has met memory that does not answer; where, if that is known. It may be a region: a device of the host's can stop answering whenever it
    /// likes. What may be concerned is taken back. False: it is something else, and the VM cannot go on.
    pub fn region_fault<P: Partition>(&mut self, partition: &P, vp: u32, gpa: Option<u64>) -> bool {
        let concerned = |m: &Mapping| m.is_region() && gpa.is_none_or(|gpa| m.contains(gpa));
        let lost: Vec<(usize, u64)> =
            self.mappings.iter().filter(|m| concerned(m)).map(|m| (m.device, m.gpa)).collect();
        for (i, gpa) in &lost {
            if let Some(times) = self.complaints.another() {
                let device = &self.devices[*i].name;
                tracing::warn!(%device, gpa, times, "a region does not answer; the guest does not see it any more");
            }
        }
        self.unmap_where(partition, |m| lost.contains(&(m.device, m.gpa)));
        for (i, gpa) in lost {
            self.inform(partition, i, Ask::Lost { gpa });
        }
        // Another one may have been taken back while the VP was on its way here. If none has, not since the last time, trying again is no use.
        let Some(seen) = self.faults.get_mut(vp as usize) else { return false };
        std::mem::replace(seen, self.unmapped) != self.unmapped
    }

    /// Tells the process that begins to serve what its predecessors have mapped. `Err`: it cannot be told, and by whom it is to be left.
    pub(super) fn give_memory(&self, i: usize) -> Result<(), (Role, String)> {
        let Some((role, process)) = self.devices[i].slot.taker() else { return Ok(()) };
        if process.version < MEMORY_VERSION {
            return Ok(());
        }
        let said = |sent| match sent {
            // If it has gone, its end will be read.
            Ok(()) | Err(SocketError::Closed) => Ok(()),
            Err(error) => Err((role, format!("it cannot be told what is mapped: {error}"))),
        };
        for Mapping { gpa, bytes, backing, .. } in self.mappings.iter().filter(|m| m.device == i) {
            let (gpa, bytes) = (*gpa, *bytes);
            said(match backing {
                Backing::Own(memory) => process.peer.send(&ToVsp::Memory { gpa, bytes }, &[memory.as_fd()]),
                Backing::Region { offset, .. } => {
                    process.peer.send(&ToVsp::Region { gpa, bytes, offset: *offset }, &[])
                }
            })?;
        }
        if process.version >= PASSTHROUGH_VERSION {
            for (gpa, bytes) in self.traps.of(i) {
                said(process.peer.send(&ToVsp::TrapThere { gpa, bytes }, &[]))?;
            }
        }
        Ok(())
    }

    /// The same; one that cannot be told is of no use. False: it has been cut off.
    pub(super) fn has_memory<P: Partition>(&mut self, partition: &P, i: usize) -> bool {
        let given = self.give_memory(i);
        if let Err((role, reason)) = given {
            self.leave(partition, i, role, Leave::CutOff(reason));
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{
        HIGH_RAM_START, IOAPIC, LOW_RAM_END, VMBUS_HIGH_MMIO_BASE, VMBUS_HIGH_MMIO_LEN, VMBUS_LOW_MMIO,
        vmbus_high_mmio,
    };

    #[test]
    fn windows_are_where_no_ram_is() {
        assert!(VMBUS_LOW_MMIO.0 >= LOW_RAM_END && VMBUS_LOW_MMIO.1 < u64::from(IOAPIC));
        for ram_end in [64 << 20, HIGH_RAM_START, VMBUS_HIGH_MMIO_BASE + 1, 200 << 30] {
            assert!(vmbus_high_mmio(ram_end).0 >= ram_end);
        }
    }

    #[test]
    fn only_whole_pages_in_one_window_will_do() {
        let (low, low_last) = VMBUS_LOW_MMIO;
        let len = low_last + 1 - low;
        let is_in = |gpa, bytes| check_window(gpa, bytes, 64 << 20).is_ok();
        assert!(is_in(low, PAGE) && is_in(low, len) && is_in(low_last + 1 - PAGE, PAGE));
        assert!(is_in(VMBUS_HIGH_MMIO_BASE, VMBUS_HIGH_MMIO_LEN));
        let bad = [
            (low, 0),
            (low + 1, PAGE),
            (low, PAGE + 1),
            (low - PAGE, 2 * PAGE),
            (low, len + PAGE),
            (0, PAGE),
            (LOW_RAM_END, PAGE),
            (VMBUS_HIGH_MMIO_BASE - PAGE, PAGE),
            (VMBUS_HIGH_MMIO_BASE, VMBUS_HIGH_MMIO_LEN + PAGE),
            (low, !(PAGE - 1)),
            (!(PAGE - 1), PAGE),
            (low, 0u64.wrapping_sub(low)),
        ];
        for (gpa, bytes) in bad {
            assert!(!is_in(gpa, bytes), "{gpa:#x} {bytes:#x}");
        }
    }
}
