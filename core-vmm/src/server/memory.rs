//! Guest memory that a device asks for besides its rings: the pages of GPADLs, and copies of what a packet names.
//!
//! GPADLs are donated as rings are, and taken back as soon as the guest wants them back, whatever the process is doing. Copies go into a
//! memfd of the core's own. Neither knows what the memory is for.

use std::{os::fd::AsFd, time::Instant};

use ipc::{
    message::{GPADL_VERSION, MAX_FETCH, MAX_SHARED_GPADLS, ToVsp},
    shm::SharedMemory,
    socket::SocketError,
};
use vmbus::{
    gpadl::Limits,
    packet::{DESCRIPTOR_SIZE, PacketHeader, TRAILER_SIZE},
    ring::ControlWord,
};

use super::{
    Server, TELL_AGAIN,
    live::{Hold, Live, Wish},
    slot::Leave,
};
use crate::{bus::Relid, layout::PAGE, memory::donation::Donation, partition::Partition};

/// GPADLs shared at a time in a VM, each a descriptor: 32 NICs' worth.
pub(super) const SHARED_MAX: usize = 64;
/// Questions that one process may have unanswered. More means that it asks and does not listen.
const OWED_MAX: usize = 16;
/// What a packet that is fetched for may name at most: as many ranges and pages as 128 KiB can be scattered over, byte by byte a page.
const LIMITS: Limits = Limits { ranges: 1024, pages: 4096 };

/// A GPADL whose pages a device has.
#[derive(Debug)]
pub(super) struct Shared {
    gpadl: u32,
    /// The primary channel of its device.
    primary: Relid,
    pages: Donation,
}

/// What a process wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    Share {
        channel: Relid,
        gpadl: u32,
    },
    Fetch {
        channel: Relid,
        offset: u32,
        len: u32,
    },
    /// What became of its memory; it has been tried.
    Mapped {
        gpa: u64,
        result: Result<(), String>,
    },
    /// What became of its trap.
    Trapped {
        gpa: u64,
        result: Result<(), String>,
    },
    /// What became of its interrupt.
    Ready {
        id: u32,
        result: Result<(), String>,
    },
    /// Not a question: it has to know.
    Lost {
        gpa: u64,
    },
}

/// What is between the core and the process that has a device.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// Not answered yet, the oldest first: there was no room in the socket.
    owed: Vec<Ask>,
    /// When to try again.
    due: Option<Instant>,
    /// Where what is fetched goes. This process's alone: the one before may still look at its own.
    fetched: Option<SharedMemory>,
    /// It has it.
    is_given: bool,
}

impl Server {
    /// The process that has device `i` asks. `Err`: it must not go on.
    pub(super) fn asked<P: Partition>(
        &mut self,
        partition: &P,
        i: usize,
        ask: Ask,
    ) -> Result<Option<()>, Leave> {
        if self.devices[i].slot.holder().is_none_or(|(_, process)| process.version < GPADL_VERSION) {
            return Ok(None);
        }
        let owed = &mut self.devices[i].desk.owed;
        if owed.len() >= OWED_MAX {
            return Err(Leave::CutOff("it asks and does not listen".into()));
        }
        owed.push(ask);
        self.answer(partition, i);
        Ok(Some(()))
    }

    /// Answers what the process of a device has asked, as far as it listens.
    fn answer<P: Partition>(&mut self, partition: &P, i: usize) {
        while let Some(ask) = self.devices[i].desk.owed.first().cloned() {
            let sent = match ask {
                Ask::Share { channel, gpadl } => self.answer_share(partition, i, channel, gpadl),
                Ask::Fetch { channel, offset, len } => self.answer_fetch(i, channel, offset, len),
                Ask::Mapped { gpa, result } => self.say(i, &ToVsp::MemoryMapped { gpa, result }),
                Ask::Trapped { gpa, result } => self.say(i, &ToVsp::Trapped { gpa, result }),
                Ask::Ready { id, result } => self.say(i, &ToVsp::InterruptReady { id, result }),
                Ask::Lost { gpa } => self.say(i, &ToVsp::RegionLost { gpa }),
            };
            let desk = &mut self.devices[i].desk;
            // If it has gone, its end will be read.
            if !matches!(sent, Ok(()) | Err(SocketError::Closed)) {
                desk.due = Some(Instant::now() + TELL_AGAIN);
                return;
            }
            desk.owed.remove(0);
        }
        self.devices[i].desk.due = None;
    }

    fn say(&self, i: usize, message: &ToVsp) -> Result<(), SocketError> {
        self.devices[i].slot.holder().map_or(Ok(()), |(_, process)| process.peer.send(message, &[]))
    }

    /// Tells the process that has device `i` something; one that comes later finds it as it is. There is no more of it than the device has mapped.
    pub(super) fn inform<P: Partition>(&mut self, partition: &P, i: usize, word: Ask) {
        if self.devices[i].slot.holder().is_some() {
            self.devices[i].desk.owed.push(word);
            self.answer(partition, i);
        }
    }

    /// When [`Self::tick_asks`] has to be called at the latest.
    pub(super) fn asks_deadline(&self) -> Option<Instant> {
        self.devices.iter().filter_map(|d| d.desk.due).min()
    }

    /// Answers what could not be answered.
    pub(super) fn tick_asks<P: Partition>(&mut self, partition: &P, now: Instant) {
        for i in 0..self.devices.len() {
            if self.devices[i].desk.due.is_some_and(|due| due <= now) {
                self.answer(partition, i);
            }
        }
    }

    /// A channel of device `i` that the guest has open and the process has.
    pub(super) fn open_live(&self, i: usize, channel: Relid) -> Result<&Live, String> {
        let live = self.live.iter().find(|l| l.relid == channel && l.device == i);
        live.filter(|l| l.wish == Wish::Open && matches!(l.hold, Hold::Asked(_) | Hold::Served))
            .ok_or_else(|| "the channel is not open".into())
    }

    fn answer_share<P: Partition>(
        &mut self,
        partition: &P,
        i: usize,
        channel: Relid,
        gpadl: u32,
    ) -> Result<(), SocketError> {
        let shared = self.share(partition, i, channel, gpadl);
        let Some((_, process)) = self.devices[i].slot.holder() else { return Ok(()) };
        let (result, pages) = match shared {
            Ok(at) => {
                let memory = self.shared[at].pages.memory();
                (Ok(memory.len()), Some(memory.as_fd()))
            }
            Err(reason) => (Err(reason), None),
        };
        let fds: Vec<_> = pages.into_iter().collect();
        process.peer.send(&ToVsp::GpadlShared { channel, gpadl, result }, &fds)
    }

    /// Shares a GPADL, if it is not shared already: its place among those that are.
    fn share<P: Partition>(
        &mut self,
        partition: &P,
        i: usize,
        channel: Relid,
        gpadl: u32,
    ) -> Result<usize, String> {
        self.open_live(i, channel)?;
        let primary = self.bus.primary_of(channel).ok_or("there is no such channel")?;
        let is_it = |shared: &Shared| shared.gpadl == gpadl && shared.primary == primary;
        if let Some(at) = self.shared.iter().position(is_it) {
            return Ok(at);
        }
        let own = self.shared.iter().filter(|shared| shared.primary == primary).count();
        if own >= MAX_SHARED_GPADLS || self.shared.len() >= SHARED_MAX {
            return Err("too many GPADLs are shared already".into());
        }
        let pages = self.bus.share_gpadl(primary, gpadl)?;
        match self.donations.donate(&self.ram, "bulkhead-gpadl", pages, partition) {
            Ok(pages) => {
                self.shared.push(Shared { gpadl, primary, pages });
                Ok(self.shared.len() - 1)
            }
            Err(error) => {
                self.bus.unshare_gpadl(primary, gpadl);
                Err(error.to_string())
            }
        }
    }

    /// A device is done with a GPADL.
    pub(super) fn return_gpadl<P: Partition>(&mut self, partition: &P, channel: Relid, gpadl: u32) {
        let Some(primary) = self.bus.primary_of(channel) else { return };
        if self.shared.iter().any(|shared| shared.gpadl == gpadl && shared.primary == primary) {
            self.bus.unshare_gpadl(primary, gpadl);
            self.unshare(partition, gpadl);
        }
    }

    /// The pages of a GPADL are the guest's alone again. Its number is unique on the bus.
    pub(super) fn unshare<P: Partition>(&mut self, partition: &P, gpadl: u32) {
        if let Some(at) = self.shared.iter().position(|shared| shared.gpadl == gpadl) {
            let Shared { pages, .. } = self.shared.swap_remove(at);
            self.take_back(partition, pages);
        }
    }

    /// Bytes of GPADLs that device `i` can reach.
    pub(super) fn shared_bytes(&self, i: usize) -> u64 {
        let own = self.shared.iter().filter(|shared| self.devices[i].is_primary(shared.primary));
        own.map(|shared| shared.pages.memory().len()).sum()
    }

    fn answer_fetch(&mut self, i: usize, channel: Relid, offset: u32, len: u32) -> Result<(), SocketError> {
        let result = self.fetch(i, channel, offset, len);
        let device = &self.devices[i];
        let Some((_, process)) = device.slot.holder() else { return Ok(()) };
        let due = result.is_ok() && !device.desk.is_given;
        let fds: Vec<_> = device.desk.fetched.iter().filter(|_| due).map(AsFd::as_fd).collect();
        let sent = process.peer.send(&ToVsp::Fetched { channel, result }, &fds);
        self.devices[i].desk.is_given |= due && sent.is_ok();
        sent
    }

    /// Copies what the packet at `offset` names, at most `len` bytes; how many there are.
    fn fetch(&mut self, i: usize, channel: Relid, offset: u32, len: u32) -> Result<u32, String> {
        if !self.devices[i].may_fetch {
            return Err("this device may not fetch".into());
        }
        let live = self.open_live(i, channel)?;
        let packet = self.packet_in_ring(live, offset)?;
        let header = PacketHeader::of_prefix(&packet).ok_or("it is no packet")?;
        let ranges = header.gpa_ranges(&packet, LIMITS).map_err(|e| e.to_string())?;
        let mut bytes = Vec::new();
        for (gpa, piece) in ranges.flat_map(|range| range.pieces()) {
            let done = bytes.len();
            let more = (piece as usize).min(len.min(MAX_FETCH) as usize - done);
            if more == 0 {
                break;
            }
            bytes.resize(done + more, 0);
            self.ram.read(gpa, &mut bytes[done..]).map_err(|e| e.to_string())?;
        }
        let desk = &mut self.devices[i].desk;
        let memory = match &mut desk.fetched {
            Some(memory) => memory,
            none => {
                let memory = SharedMemory::create("bulkhead-fetch", u64::from(MAX_FETCH));
                none.insert(memory.map_err(|e| e.to_string())?)
            }
        };
        match nix::sys::uio::pwrite(&*memory, &bytes, 0) {
            Ok(written) if written == bytes.len() => Ok(written as u32),
            Ok(_) => Err("there is no memory for it".into()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// A private copy of the packet that begins at `offset` of the guest-to-host ring's data, if it lies whole between read and write
    /// index. Whoever can write to the ring can change it meanwhile: only the copy is looked at.
    fn packet_in_ring(&self, live: &Live, offset: u32) -> Result<Vec<u8>, String> {
        let size = live.ring.to_host_pages.saturating_sub(1).saturating_mul(PAGE as u32);
        let ring = |at: u64, into: &mut [u8]| live.pages.read(&self.ram, at, into).map_err(|e| e.to_string());
        let index = |word: ControlWord| {
            let mut bytes = [0; 4];
            ring(word.offset() as u64, &mut bytes).map(|()| u32::from_le_bytes(bytes))
        };
        let (read, write) = (index(ControlWord::ReadIndex)?, index(ControlWord::WriteIndex)?);
        if [read, write, offset].iter().any(|at| *at >= size || !at.is_multiple_of(8)) {
            return Err("it is no position in the ring".into());
        }
        let distance = |from: u32, to: u32| if to >= from { to - from } else { size - from + to };
        let left = distance(read, write).saturating_sub(distance(read, offset));
        let data = |from: u32, into: &mut [u8]| {
            let (first, rest) = into.split_at_mut(into.len().min((size - from) as usize));
            ring(PAGE + u64::from(from), first).and_then(|()| ring(PAGE, rest))
        };
        let mut descriptor = [0; DESCRIPTOR_SIZE as usize];
        if left < DESCRIPTOR_SIZE + TRAILER_SIZE {
            return Err("no packet lies there".into());
        }
        data(offset, &mut descriptor)?;
        let header = PacketHeader::of_descriptor(&descriptor).ok_or("no packet lies there")?;
        if header.len + TRAILER_SIZE > left {
            return Err("the packet is longer than what lies in the ring".into());
        }
        let mut packet = vec![0; header.len as usize];
        data(offset, &mut packet)?;
        // It may have changed between the two looks; what was checked is what counts.
        packet[..descriptor.len()].copy_from_slice(&descriptor);
        Ok(packet)
    }
}
