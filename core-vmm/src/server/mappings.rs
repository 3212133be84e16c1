//! Memory of devices' own that the guest sees: where it may lie, how much of it there may be, how long it stays.
//!
//! It is the device's, not the guest's: what is checked here is that it can be in nobody's way. What it is for is no business of the core's.
//! A mapping belongs to the device and not to the process that has asked for it, as a channel does.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use ipc::{
    message::{MAX_DEVICE_MAPPINGS, MEMORY_VERSION, ToVsp},
    shm::SharedMemory,
    socket::SocketError,
};

use super::{
    Server,
    memory::Ask,
    slot::{Leave, Role},
};
use crate::{
    layout::{PAGE, VMBUS_LOW_MMIO, vmbus_high_mmio},
    memory::device,
    partition::Partition,
};

/// Mappings of a VM at a time, each a descriptor and a memory slot of KVM's: 16 devices with all that one may have.
const MAPPINGS_MAX: usize = 64;

/// What the guest sees of a device's memory.
#[derive(Debug)]
pub(super) struct Mapping {
    /// The device's place among all.
    device: usize,
    gpa: u64,
    bytes: u64,
    memory: SharedMemory,
}

impl Mapping {
    fn overlaps(&self, gpa: u64, bytes: u64) -> bool {
        // Neither sum overflows: both ranges lie in a window.
        self.gpa < gpa + bytes && gpa < self.gpa + self.bytes
    }
}

/// Whether whole pages from `gpa` on lie in one of the windows that the guest gives to VMBus devices. There is no RAM in them.
fn is_in_window(gpa: u64, bytes: u64, ram_end: u64) -> bool {
    let is_whole = bytes > 0 && gpa.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE);
    let Some(last) = bytes.checked_sub(1).and_then(|rest| gpa.checked_add(rest)) else { return false };
    let windows = [VMBUS_LOW_MMIO, vmbus_high_mmio(ram_end)];
    is_whole && windows.iter().any(|&(first, end)| gpa >= first && last <= end)
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
        (gpa, bytes): (u64, u64),
        fds: Vec<OwnedFd>,
    ) -> Result<Option<()>, Leave> {
        if !self.maps(i) {
            return Ok(None);
        }
        let result = self.map(partition, i, (gpa, bytes), fds);
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
        (gpa, bytes): (u64, u64),
        mut fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let most = self.devices[i].device_memory;
        if most == 0 {
            return Err("this device may map no memory".into());
        }
        let primary = self.devices[i].offered.as_ref().map(|offered| offered.relid);
        self.open_live(i, primary.ok_or("the channel is not open")?)?;
        if !is_in_window(gpa, bytes, self.ram.end()) {
            return Err(format!(
                "{bytes:#x} bytes at {gpa:#x} are not whole pages in a window for VMBus devices"
            ));
        }
        let others = || self.mappings.iter().filter(|m| m.device != i || m.gpa != gpa);
        if others().any(|mapping| mapping.overlaps(gpa, bytes)) {
            return Err("something else is mapped there already".into());
        }
        let own = || others().filter(|mapping| mapping.device == i);
        if own().count() >= MAX_DEVICE_MAPPINGS || others().count() >= MAPPINGS_MAX {
            return Err("too much is mapped already".into());
        }
        let left = most.saturating_sub(own().map(|mapping| mapping.bytes).sum());
        if bytes > left {
            return Err(format!("of {most} bytes that this device may map, {left} are left"));
        }
        let (Some(fd), true) = (fds.pop(), fds.is_empty()) else {
            return Err("one descriptor has to come with it".into());
        };
        let memory = SharedMemory::from_fd(fd, bytes).map_err(|e| e.to_string())?;
        if !device::has_small_pages(memory.as_fd()) {
            return Err("memory of large pages can run out after it was mapped".into());
        }
        self.put(partition, Mapping { device: i, gpa, bytes, memory })
    }

    /// Maps it, in the place of what begins there.
    fn put<P: Partition>(&mut self, partition: &P, new: Mapping) -> Result<(), String> {
        let before = self.mappings.iter().position(|mapping| mapping.gpa == new.gpa);
        let is_there =
            |old: &Mapping| old.bytes == new.bytes && old.memory.is_same(&new.memory).unwrap_or(false);
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
            let old = &self.mappings[at];
            if let Err(error) = partition.unmap_device_memory(old.gpa) {
                self.failure = Some(still_seen(&error));
                return Err("what is mapped there cannot be taken back".into());
            }
        }
        let mapped = partition.map_device_memory(new.gpa, new.memory.as_fd(), new.bytes);
        match (mapped, before) {
            (Ok(()), Some(at)) => self.mappings[at] = new,
            (Ok(()), None) => self.mappings.push(new),
            (Err(error), before) => {
                if let Some(at) = before {
                    let Mapping { gpa, bytes, memory, .. } = &self.mappings[at];
                    if let Err(error) = partition.map_device_memory(*gpa, memory.as_fd(), *bytes) {
                        tracing::error!(gpa, %error, "what the guest saw of a device's memory is lost");
                        self.mappings.swap_remove(at);
                    }
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
        for mapping in self.mappings.extract_if(.., |mapping| which(mapping)) {
            if let Err(error) = partition.unmap_device_memory(mapping.gpa) {
                self.failure = Some(still_seen(&error));
            }
        }
    }

    /// Tells the process that begins to serve what its predecessors have mapped. `Err`: it cannot be told, and by whom it is to be left.
    pub(super) fn give_memory(&self, i: usize) -> Result<(), (Role, String)> {
        let Some((role, process)) = self.devices[i].slot.taker() else { return Ok(()) };
        if process.version < MEMORY_VERSION {
            return Ok(());
        }
        for Mapping { gpa, bytes, memory, .. } in self.mappings.iter().filter(|m| m.device == i) {
            let there = ToVsp::Memory { gpa: *gpa, bytes: *bytes };
            match process.peer.send(&there, &[memory.as_fd()]) {
                // If it has gone, its end will be read.
                Ok(()) | Err(SocketError::Closed) => {}
                Err(error) => return Err((role, format!("it cannot be told what is mapped: {error}"))),
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
    use crate::layout::{HIGH_RAM_START, IOAPIC, LOW_RAM_END, VMBUS_HIGH_MMIO_BASE, VMBUS_HIGH_MMIO_LEN};

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
        let is_in = |gpa, bytes| is_in_window(gpa, bytes, 64 << 20);
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
