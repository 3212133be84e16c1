//! Host to guest: frames are read from the backend into a block of the receive buffer, each behind the place of its RNDIS
//! message, until the block is full or no frame waits; then the block is lent to the guest in one transfer-page packet.
//!
//! Without a block, or without room in the ring, frames stay in the backend: nothing is dropped here for want of either.
//! What a guest does not want (by its filter, or while its link is down) is read and forgotten.

use vsp::ipc::shm::{HeldSpan, PagesMapping};
use vsp::{Channels, Lend, SharedMemory, TransferPages, TransferRange};

use super::blocks::{Blocks, For};
use super::questions::NVSP_LEN;
use super::spread::Staged;
use super::state::Phase;
use super::{Net, OpenError};
use crate::backend::{self, LONGEST_FRAME, Received, VnetHeader, broken};
use crate::hash::Toeplitz;
use crate::headers::VLAN_LEN;
use crate::nvsp::{ChannelType, HostMessage};
use crate::offload::{self, HEADERS_LEN, Sum};
use crate::oid;
use crate::rndis::ReceiveInfo;
use crate::rndis::frame::{self, RECEIVE_HEADROOM};

/// Most ranges of a transfer-page packet. Linux' driver polls 64 frames at a time.
const RANGES: usize = 32;
/// Room that the next frame of a block must have: nobody knows how long it is before it is there.
const ROOM: usize = RECEIVE_HEADROOM + LONGEST_FRAME;
/// Ranges begin at multiples of this.
const ALIGNMENT: usize = 8;
/// Most blocks that are filled from one queue in a row: then what is filled becomes visible, and others have their turn.
const BLOCKS_A_TURN: usize = 4;
/// A delivery of more than one frame, or of so many bytes, is a stream's rather than somebody's question or answer.
const STREAM: usize = 4 << 10;
/// Most frames that are read in a row and not wanted, or looked at one by one.
pub(super) const FRAMES_A_TURN: usize = 64;

/// A block with frames in it.
#[derive(Debug)]
pub(super) struct Filled {
    block: u32,
    pub used: usize,
    count: usize,
    ranges: [TransferRange; RANGES],
}

impl Filled {
    pub fn block(&self) -> u32 {
        self.block
    }

    pub fn new(block: u32) -> Filled {
        Filled { block, used: 0, count: 0, ranges: [TransferRange::new(0, 0); RANGES] }
    }

    pub fn has_room(&self, block_size: u32, bytes: usize) -> bool {
        self.count < RANGES && self.used + bytes <= block_size as usize
    }

    /// One message more, of so many bytes; `block_size` places the block in the buffer.
    pub fn push(&mut self, block_size: u32, len: usize) {
        if let Some(range) = self.ranges.get_mut(self.count) {
            let offset = self.block * block_size + self.used as u32;
            *range = TransferRange::new(offset, len as u32);
            self.count += 1;
            self.used = (self.used + len).next_multiple_of(ALIGNMENT);
        }
    }
}

/// A frame that the guest wants, and how it gets it.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    /// Bytes by which its data begins later, because a tag was taken out.
    pub shift: usize,
    pub info: ReceiveInfo,
}

/// A queue of the backend's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Queue {
    /// It may have frames.
    pub readable: bool,
    /// It has been said that frames have to wait.
    pub waits: bool,
}

/// The receive buffer, and where frames come from.
#[derive(Debug)]
pub(super) struct Receive {
    /// The buffer, once the core has shared it.
    pub pages: Option<PagesMapping>,
    pub blocks: Blocks,
    pub queues: Vec<Queue>,
    /// Memory of ours for one frame.
    pub staging: PagesMapping,
    pub staged: Option<Staged>,
    /// What spreads frames among channels, if the guest wants that and the backend has one queue.
    pub hash: Option<Toeplitz>,
    /// What was delivered last was a stream's.
    pub streams: bool,
    /// Frames have been delivered that the backend may forget when the guest can see them.
    pub unsettled: bool,
    /// What the backend was last told that it may leave undone.
    offloads: Option<backend::Offloads>,
}

impl Receive {
    pub fn new(queues: usize) -> Result<Receive, OpenError> {
        let staging =
            SharedMemory::create("bulkhead-net-frame", LONGEST_FRAME.next_multiple_of(4096) as u64)?;
        Ok(Receive {
            pages: None,
            blocks: Blocks::default(),
            queues: vec![Queue::default(); queues],
            staging: PagesMapping::new(&staging)?,
            staged: None,
            hash: None,
            streams: false,
            unsettled: false,
            offloads: None,
        })
    }

    /// Frames may have come: to one queue, or (`None`) to any.
    pub fn readable(&mut self, queue: Option<usize>) {
        match queue {
            Some(queue) => {
                if let Some(queue) = self.queues.get_mut(queue) {
                    queue.readable = true;
                }
            }
            None => self.queues.iter_mut().for_each(|queue| queue.readable = true),
        }
    }

    /// The backend has forgotten what it was told, and may have frames.
    pub fn begin(&mut self) {
        self.offloads = None;
        self.readable(None);
    }

    /// Whatever is under way is forgotten.
    pub fn reset(&mut self) {
        self.pages = None;
        self.blocks = Blocks::default();
        (self.staged, self.hash, self.unsettled) = (None, None, false);
    }
}

impl Net {
    /// What was delivered in an earlier turn, the guest can see by now.
    pub(super) fn settle(&mut self) {
        if !self.receive.unsettled || self.ports.any_filled() {
            return;
        }
        self.receive.unsettled = false;
        let settled = match self.receive.staged {
            None => self.backend.settle(),
            Some(_) => self.backend.settle_but_last(),
        };
        if let Err(error) = settled {
            broken(&error);
        }
    }

    /// Delivers what there is, as far as it goes. True: something was done.
    pub(super) fn receive(&mut self, channels: &mut Channels) -> bool {
        if !self.receive.queues.iter().any(|queue| queue.readable) || !self.receives() {
            return false;
        }
        if self.state.nic.filter.is_empty() || !self.state.nic.link_up {
            let mut any = false;
            for queue in 0..self.receive.queues.len() {
                any |= self.discard(queue);
            }
            return any;
        }
        if self.receive.queues.len() == 1 && self.ports.open() > 1 && self.receive.hash.is_some() {
            return self.spread(channels);
        }
        let mut any = false;
        for queue in 0..self.receive.queues.len() {
            let number = self.ports.of_queue(queue);
            any |= self.receive.queues[queue].readable && self.deliver(queue, number, channels);
        }
        any
    }

    /// Whether frames may be read at all.
    fn receives(&self) -> bool {
        let ready = self.state.phase == Phase::Running && self.receive.pages.is_some();
        ready && !self.state.paused && self.hands_over.is_none()
    }

    /// There are frames, and nowhere to put them.
    pub(super) fn wait(&mut self, queue: usize) {
        let queue = &mut self.receive.queues[queue];
        self.stats.rx_waits += u64::from(!queue.waits);
        queue.waits = true;
    }

    /// One queue's frames, to one channel. True: something was done.
    fn deliver(&mut self, queue: usize, number: u16, channels: &mut Channels) -> bool {
        let mut any = false;
        for _ in 0..BLOCKS_A_TURN {
            let Some(block) = self.take_block(number, channels) else {
                self.wait(queue);
                break;
            };
            self.receive.queues[queue].waits = false;
            let mut filled = Filled::new(block);
            let more = self.fill(queue, &mut filled);
            any |= more || filled.count > 0;
            if filled.count > 0 {
                self.receive.streams = filled.count > 1 || filled.used > STREAM;
            }
            if filled.count == 0 {
                self.receive.blocks.give_back(block);
            } else if let Some(port) = self.ports.get_mut(number) {
                port.filled = Some(filled);
                self.lend_filled(number, channels);
            }
            if !more {
                break;
            }
        }
        any
    }

    /// A block for frames, if the channel can have one and there is room in its ring to lend it. What is read in spite of that
    /// would be neither the backend's nor the guest's.
    pub(super) fn take_block(&mut self, number: u16, channels: &mut Channels) -> Option<u32> {
        if !self.lend_filled(number, channels)
            || !self.receive.blocks.can_take(number, For::Frames, self.ports.open())
        {
            return None;
        }
        let port = self.ports.get(number)?;
        if !channels.has_room(port.id, Channels::lend_bytes(RANGES, NVSP_LEN)) {
            return None;
        }
        self.receive.blocks.take(number, For::Frames, self.ports.open())
    }

    /// Reads frames into a block. False: there are no more.
    fn fill(&mut self, queue: usize, filled: &mut Filled) -> bool {
        let size = self.block_size();
        let Some(pages) = self.receive.pages.clone() else { return false };
        for _ in 0..FRAMES_A_TURN {
            if !filled.has_room(size, ROOM) {
                break;
            }
            let at = filled.block as usize * size as usize + filled.used;
            let Ok(message) = pages.span(at, ROOM) else {
                // The buffer has been divided so that this cannot be; but nothing of it is worth a process.
                return false;
            };
            let (head, body) = message.split_at(RECEIVE_HEADROOM);
            let (vnet, len) = match self.backend.receive(queue, [body]) {
                Err(error) => broken(&error),
                Ok(Received::Nothing) => {
                    self.receive.queues[queue].readable = false;
                    return false;
                }
                Ok(Received::Dropped) => {
                    self.state.nic.statistics.receive.errors += 1;
                    continue;
                }
                Ok(Received::Frame { vnet, len }) => (vnet, len.min(LONGEST_FRAME)),
            };
            self.receive.unsettled = true;
            let Some((placed, _)) = self.place(&vnet, body, len) else { continue };
            let data_at = RECEIVE_HEADROOM + placed.shift;
            let header = frame::header_at(data_at, len - placed.shift, &placed.info);
            if head.copy_in(0, &header).is_ok() {
                filled.push(size, RECEIVE_HEADROOM + len);
            }
        }
        true
    }

    /// Looks at a frame: whether the guest wants it, what it has to be told, and which channel it belongs to by its hash. Takes
    /// a tag out, and finishes a checksum, where it lies.
    pub(super) fn place(
        &mut self,
        vnet: &VnetHeader,
        body: HeldSpan<'_>,
        len: usize,
    ) -> Option<(Placed, u16)> {
        let mut head = [0; HEADERS_LEN];
        let head = &mut head[..len.min(HEADERS_LEN)];
        body.copy_out(0, head).ok()?;
        let Some(destination) = head.first_chunk() else {
            self.state.nic.statistics.receive.errors += 1;
            return None;
        };
        if !self.state.nic.accepts(destination) {
            self.stats.rx_filtered += 1;
            return None;
        }
        self.state.nic.statistics.receive.count(destination, len);
        let (number, hash) = self.channel_of(head);
        let offload::Receive { mut info, strip, complete } =
            offload::receive(vnet, head, len, self.state.nic.enabled);
        if let Some(complete) = complete {
            let sum = sum(body, complete.start, len)?;
            body.copy_in(complete.at, &complete.finish(sum)).ok()?;
        }
        info.hash = info.hash.or(hash);
        let shift = if strip { VLAN_LEN } else { 0 };
        if strip {
            // The addresses move over the tag.
            body.copy_in(VLAN_LEN, head.get(..12)?).ok()?;
        }
        Some((Placed { shift, info }, number))
    }

    /// Lends the block that a channel has filled. False: there is no room for it in the ring.
    pub(super) fn lend_filled(&mut self, number: u16, channels: &mut Channels) -> bool {
        let (Some(port), Some(buffer)) = (self.ports.get_mut(number), &self.state.receive) else {
            return true;
        };
        let Some(filled) = port.filled.take() else { return true };
        let pages = TransferPages { page_set: buffer.id, ranges: &filled.ranges[..filled.count] };
        let version = self.state.version.unwrap_or(crate::nvsp::Version::V1);
        let payload = HostMessage::RndisPacket { channel: ChannelType::Data }.encode(version);
        match channels.lend(port.id, filled.block, &pages, &payload) {
            Lend::Lent => {
                self.receive.blocks.lent(number, filled.block);
                self.stats.rx_blocks += 1;
                true
            }
            Lend::Full => {
                port.filled = Some(filled);
                false
            }
            Lend::Dead => {
                self.receive.blocks.give_back(filled.block);
                true
            }
        }
    }

    /// Reads frames that nobody wants. True: there were some.
    fn discard(&mut self, queue: usize) -> bool {
        let staging = self.receive.staging.clone();
        let Ok(body) = staging.span(0, LONGEST_FRAME) else { return false };
        let mut any = false;
        for _ in 0..FRAMES_A_TURN {
            if !self.receive.queues[queue].readable {
                break;
            }
            match self.backend.receive(queue, [body]) {
                Err(error) => broken(&error),
                Ok(Received::Nothing) => self.receive.queues[queue].readable = false,
                Ok(Received::Frame { .. } | Received::Dropped) => {
                    (any, self.receive.unsettled) = (true, true);
                    self.stats.rx_filtered += 1;
                }
            }
        }
        any
    }

    pub(super) fn block_size(&self) -> u32 {
        self.state.receive.map_or(0, |buffer| buffer.size)
    }

    /// What the backend may leave to the guest is what the guest has said last.
    pub(super) fn renew_offloads(&mut self) {
        let wanted = receivable(self.state.nic.enabled);
        if self.receive.offloads != Some(wanted) {
            self.receive.offloads = Some(wanted);
            if let Err(error) = self.backend.set_offloads(wanted) {
                broken(&error);
            }
        }
    }
}

/// What a backend may leave undone for a guest that has these switched on. A long frame comes without its checksum, always, and
/// only to a guest that forwards nothing (Linux switches coalescing off where it forwards). One that forwards gets frames that
/// are whole: what it passes on must not lack a checksum.
fn receivable(enabled: oid::Offloads) -> backend::Offloads {
    let (tso4, tso6) = (enabled.contains(oid::Offloads::RSC4), enabled.contains(oid::Offloads::RSC6));
    backend::Offloads { checksum: tso4 || tso6, tso4, tso6, ecn: tso4 || tso6 }
}

/// The sum of a frame's bytes from `start` on.
fn sum(body: HeldSpan<'_>, start: usize, len: usize) -> Option<Sum> {
    let mut sum = Sum::new();
    let mut bytes = [0; 2048];
    for from in (start..len).step_by(bytes.len()) {
        let part = &mut bytes[..(len - from).min(2048)];
        body.copy_out(from, part).ok()?;
        sum = sum.add(part);
    }
    Some(sum)
}
