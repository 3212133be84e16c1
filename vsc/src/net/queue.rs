//! One channel of a device: frames go out, ranges of the receive buffer come in and go back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmbus::packet::{Outgoing, PacketHeader, PacketType};
use vmbus::ring::PushError;

use super::buffers::Buffers;
use super::events::{Delivery, Event, RxFrame, Sent};
use super::pages::{self, FramePages, PagePool};
use super::rndis::{self, TxInfo};
use super::sends::{Pending, SendId, Sends};
use super::wire::{self, Answer};
use crate::channel::Channel;
use crate::error::Error;
use crate::platform::Platform;

/// Most ranges in a transfer-page packet that the driver takes.
const RANGES_MAX: u32 = 562;
/// Bytes of a message that are read at once; headers are rarely longer.
const HEAD: usize = 128;
/// Where a frame begins that is [enclosed](NetQueue::enclose): behind the headers with one info, with room for what its
/// source puts before it.
const FRAME_AT: u32 = 80;

/// A queue of a network device. It belongs to one thread at a time.
pub struct NetQueue<P: Platform> {
    pub(super) channel: Channel<P>,
    pub(super) buffers: Arc<Buffers>,
    pub(super) sends: Sends,
    pub(super) pages: PagePool,
    /// What came while something else was waited for.
    pub(super) events: VecDeque<Event>,
    /// Deliveries that have not gone back, for each transaction id that the device uses.
    out: Vec<u64>,
    /// Control messages are this queue's too.
    primary: bool,
    scratch: Vec<u8>,
}

/// Something of a queue's that is not (yet) sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// It is sent.
    Sent(SendId),
    /// Too many are under way, no section is free, or the ring is full: completions have to be taken first.
    None,
}

impl<P: Platform> NetQueue<P> {
    pub(super) fn new(channel: Channel<P>, buffers: Arc<Buffers>, depth: usize, primary: bool) -> Self {
        let pages = PagePool::default();
        Self {
            channel,
            buffers,
            sends: Sends::new(depth),
            pages,
            events: VecDeque::new(),
            out: Vec::new(),
            primary,
            scratch: Vec::new(),
        }
    }

    /// Takes a section of the send buffer, if one is free.
    pub fn take_section(&mut self) -> Option<super::Section> {
        let index = self.buffers.take_section()?;
        let size = self.buffers.section_size;
        let address = self.buffers.send.address + u64::from(index) * u64::from(size);
        Some(super::Section { index, address, size, used: 0, frames: 0 })
    }

    /// Gives back a section that is not sent after all.
    pub fn drop_section(&mut self, section: super::Section) {
        self.buffers.free_section(section.index);
    }

    /// Adds a frame to a section; false, and nothing done, if there is no room for it in there.
    pub fn add(&mut self, section: &mut super::Section, frame: &[u8], info: &TxInfo) -> bool {
        let Some(at) = self.add_header(section, frame.len() as u32, info) else { return false };
        self.channel.platform().write(at, frame);
        true
    }

    /// Adds the headers of a frame to a section, and returns the address at which its caller puts the frame itself.
    pub fn add_header(&mut self, section: &mut super::Section, len: u32, info: &TxInfo) -> Option<u64> {
        let (bytes, headers) = rndis::packet(info, len, 0);
        self.place(section, bytes, headers, headers, len)
    }

    /// Where the frame goes that comes next in a section, and how many bytes there are for it; none if the section is full. For
    /// a caller that has the frame written there before it knows what to say about it, and then says it with [`Self::enclose`].
    pub fn room_in(&self, section: &super::Section) -> Option<(u64, u32)> {
        let at = section.used + FRAME_AT;
        // What it is padded with has to fit too.
        let room = section.size.checked_sub(at + self.buffers.batch.1)?;
        (section.frames < self.buffers.batch.0).then_some((section.address + u64::from(at), room))
    }

    /// Adds a frame that is in its place already: see [`Self::room_in`].
    pub fn enclose(&mut self, section: &mut super::Section, len: u32, info: &TxInfo) -> bool {
        let (bytes, headers) = rndis::packet_at(FRAME_AT as usize, info, len, 0);
        self.place(section, bytes, headers, rndis::PACKET_HEADER + 16, len).is_some()
    }

    fn place(
        &mut self,
        section: &mut super::Section,
        mut bytes: [u8; rndis::PACKET_HEADER_MAX],
        headers: usize,
        written: usize,
        len: u32,
    ) -> Option<u64> {
        let (most, align) = self.buffers.batch;
        // Every one is padded: whether another follows is not known yet.
        let bare = headers as u32 + len;
        let padded = bare.next_multiple_of(align);
        if section.frames >= most || section.used + padded > section.size {
            return None;
        }
        bytes[4..8].copy_from_slice(&padded.to_le_bytes());
        let at = section.address + u64::from(section.used);
        self.channel.platform().write(at, &bytes[..written]);
        section.used += padded;
        section.frames += 1;
        Some(at + headers as u64)
    }

    /// Sends a section. The device sees it at the next [`Self::flush`].
    pub fn push_section(&mut self, section: super::Section) -> Result<Room, Error> {
        let message = wire::rndis_packet(wire::CHANNEL_DATA, section.index, section.used);
        let pending = Pending::Rndis { section: Some(section.index), pages: None, control: false };
        self.push(PacketType::IN_BAND, &[], &message, pending)
    }

    /// Sends a frame: by section if it fits in one that is free, by its pages otherwise, as the driver does.
    pub fn send(&mut self, frame: &[u8], info: &TxInfo) -> Result<Room, Error> {
        let Some(mut section) = self.take_section() else { return self.send_pages(frame, info) };
        if !self.sends.has_room() || !self.add(&mut section, frame, info) {
            self.drop_section(section);
            return if self.sends.has_room() { self.send_pages(frame, info) } else { Ok(Room::None) };
        }
        let sent = self.push_section(section)?;
        self.channel.flush()?;
        if sent == Room::None {
            self.drop_section(section);
        }
        Ok(sent)
    }

    /// Sends a frame by a list of its pages.
    pub fn send_pages(&mut self, frame: &[u8], info: &TxInfo) -> Result<Room, Error> {
        if !self.sends.has_room() {
            return Ok(Room::None);
        }
        let (headers, len) = rndis::packet(info, frame.len() as u32, 0);
        let parts = [&headers[..len], frame];
        self.send_pages_of(wire::CHANNEL_DATA, &parts)
    }

    /// Pages for a frame that is to be sent by a list of them, and that is written there before it is known what to say about
    /// it: the other half is [`Self::send_frame`].
    pub fn take_pages(&mut self) -> Result<FramePages, Error> {
        let piece = self.pages.take(&**self.channel.platform())?;
        Ok(FramePages::new(piece, FRAME_AT))
    }

    /// Gives back pages that are not sent after all.
    pub fn drop_pages(&mut self, pages: FramePages) {
        self.pages.release(pages.piece);
    }

    /// Sends the frame of `len` bytes that is in these pages, by a list of them; they come back when there is no room for it now.
    /// The device sees it at the next [`Self::flush`].
    pub fn send_frame(
        &mut self,
        pages: FramePages,
        len: u32,
        info: &TxInfo,
    ) -> Result<Result<SendId, FramePages>, Error> {
        let (bytes, headers) = rndis::packet_at(FRAME_AT as usize, info, len, 0);
        let start = pages.address - headers as u64;
        self.channel.platform().write(start, &bytes[..rndis::PACKET_HEADER + 16]);
        // The headers, then the frame. (The driver has a range for each page, or for some that are in a row.)
        let header = pages::header_of(&[(start, headers as u32), (pages.address, len)]);
        let message = wire::rndis_packet(wire::CHANNEL_DATA, wire::NO_SECTION, 0);
        let pending = Pending::Rndis { section: None, pages: Some(pages.piece), control: false };
        Ok(match self.push(PacketType::GPA_DIRECT, &header, &message, pending)? {
            Room::Sent(id) => Ok(id),
            Room::None => Err(pages),
        })
    }

    pub(super) fn send_pages_of(&mut self, channel_type: u32, parts: &[&[u8]]) -> Result<Room, Error> {
        let control = channel_type == wire::CHANNEL_CONTROL;
        let (address, header) = self.pages.fill(&**self.channel.platform(), parts)?;
        let message = wire::rndis_packet(channel_type, wire::NO_SECTION, 0);
        let pending = Pending::Rndis { section: None, pages: Some(address), control };
        let sent = self.push(PacketType::GPA_DIRECT, &header, &message, pending)?;
        self.channel.flush()?;
        if sent == Room::None {
            self.pages.release(address);
        }
        Ok(sent)
    }

    pub(super) fn push(
        &mut self,
        packet_type: PacketType,
        header: &[u8],
        payload: &[u8],
        pending: Pending,
    ) -> Result<Room, Error> {
        let Some(id) = self.sends.start(pending) else { return Ok(Room::None) };
        let type_header_len = header.len() as u32;
        let packet = Outgoing { packet_type, type_header_len, ..Outgoing::in_band(id.0, true) };
        match self.channel.push(&packet, &[header, payload]) {
            Ok(()) => Ok(Room::Sent(id)),
            Err(error) => {
                self.sends.finish(id.0)?;
                match error {
                    Error::Push(PushError::Full { .. }) => Ok(Room::None),
                    error => Err(error),
                }
            }
        }
    }

    /// Shows the device what was pushed.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.channel.flush()
    }

    /// What has come, if anything has now, signalled or not.
    pub fn poll(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let mut scratch = std::mem::take(&mut self.scratch);
            let taken = match self.channel.poll()? {
                None => None,
                Some(packet) => {
                    scratch.clear();
                    scratch.extend_from_slice(packet.bytes);
                    Some(packet.header)
                }
            };
            self.scratch = scratch;
            match taken {
                None => {
                    self.channel.flush()?;
                    return Ok(None);
                }
                Some(header) => self.take(&header)?,
            }
        }
    }

    /// The next thing that comes; `None` if nothing does in time. It waits for the host's signal, as a driver does.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Event>, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            self.channel.flush()?;
            let mut scratch = std::mem::take(&mut self.scratch);
            let taken = self.channel.receive(left)?.map(|packet| {
                scratch.clear();
                scratch.extend_from_slice(packet.bytes);
                packet.header
            });
            self.scratch = scratch;
            match taken {
                None => return Ok(None),
                Some(header) => self.take(&header)?,
            }
        }
    }

    /// Asks the host to interrupt when something comes; true if something is there already. For who waits for other things
    /// besides, and calls [`Self::disarm`] afterwards.
    pub fn arm(&mut self) -> Result<bool, Error> {
        Ok(!self.events.is_empty() || self.channel.arm()?)
    }

    /// Asks the host not to interrupt.
    pub fn disarm(&mut self) {
        self.channel.disarm();
    }

    /// Takes a packet, which is in the scratch buffer, apart into events.
    fn take(&mut self, header: &PacketHeader) -> Result<(), Error> {
        let scratch = std::mem::take(&mut self.scratch);
        let done = match header.packet_type {
            PacketType::COMPLETION => self.complete(header, header.payload(&scratch)),
            PacketType::TRANSFER_PAGES => self.lent(header, &scratch),
            PacketType::IN_BAND => self.told(header.payload(&scratch)),
            _ => Err(Error::Protocol(format!("unexpected packet {header:?}"))),
        };
        self.scratch = scratch;
        done
    }

    fn complete(&mut self, header: &PacketHeader, payload: &[u8]) -> Result<(), Error> {
        let pending = self.sends.finish(header.transaction_id)?;
        let id = SendId(header.transaction_id);
        match pending {
            Pending::Nvsp => self.events.push_back(Event::Nvsp(id, payload.to_vec())),
            Pending::Rndis { section, pages, control } => {
                let answer = Answer::new(payload)?;
                if answer.kind() != wire::RNDIS_PACKET_COMPLETE {
                    return Err(Error::Protocol(format!(
                        "message {} completes an RNDIS packet",
                        answer.kind()
                    )));
                }
                section.into_iter().for_each(|section| self.buffers.free_section(section));
                pages.into_iter().for_each(|address| self.pages.release(address));
                let status = answer.word(0)?;
                self.events.push_back(Event::Sent(Sent { id, status, control }));
            }
        }
        Ok(())
    }

    fn lent(&mut self, header: &PacketHeader, packet: &[u8]) -> Result<(), Error> {
        let wrong = |what: &str| Error::Protocol(format!("{what} in {header:?}"));
        let message = Answer::new(header.payload(packet))?;
        if message.kind() != wire::RNDIS_PACKET || message.word(1)? != wire::NO_SECTION {
            return Err(wrong("no RNDIS packet"));
        }
        let pages = header.transfer_pages(packet, RANGES_MAX).map_err(|error| wrong(&error.to_string()))?;
        if pages.page_set != wire::RECEIVE_BUFFER_ID
            || pages.ranges.is_empty()
            || !header.completion_requested()
        {
            return Err(wrong("another buffer, no ranges, or no wish for a completion"));
        }
        if self.out.contains(&header.transaction_id) {
            return Err(wrong("a transaction id that is out already"));
        }
        self.out.push(header.transaction_id);
        let mut delivery = Delivery {
            id: header.transaction_id,
            frames: Vec::with_capacity(pages.ranges.len()),
            ranges: Vec::with_capacity(pages.ranges.len()),
        };
        for range in pages.ranges {
            let (offset, len) = (range.offset.get(), range.len.get());
            self.buffers.lend(offset, len)?;
            delivery.ranges.push(offset);
            let address = self.buffers.receive.address + u64::from(offset);
            self.received(address, len, &mut delivery.frames)?;
        }
        match delivery.frames.is_empty() {
            // Control messages have been copied.
            true => self.give_back(delivery)?,
            false => self.events.push_back(Event::Delivery(delivery)),
        }
        Ok(())
    }

    /// A range that came: one RNDIS message.
    fn received(&mut self, address: u64, len: u32, frames: &mut Vec<RxFrame>) -> Result<(), Error> {
        let platform = Arc::clone(self.channel.platform());
        let mut head = [0; HEAD];
        let head = &mut head[..HEAD.min(len as usize)];
        platform.read(address, head);
        let kind = wire::word(head, 0);
        if kind == Some(rndis::PACKET) {
            let parsed = match wire::word(head, 8) {
                Some(data) if data as usize + rndis::HEADER > HEAD => {
                    let mut more = vec![0; (data as usize + rndis::HEADER).min(len as usize)];
                    platform.read(address, &mut more);
                    rndis::parse_packet(&more, len)?
                }
                _ => rndis::parse_packet(head, len)?,
            };
            let at = address + u64::from(parsed.offset);
            frames.push(RxFrame { address: at, len: parsed.len, info: parsed.info });
            return Ok(());
        }
        let length = wire::word(head, 4).filter(|&length| (8..=len).contains(&length));
        let length = length.ok_or_else(|| Error::Protocol(format!("an RNDIS message of {head:02x?}")))?;
        if !self.primary {
            return Err(Error::Protocol(format!("a control message on a sub-channel: {head:02x?}")));
        }
        let mut message = vec![0; length as usize];
        platform.read(address, &mut message);
        self.events.push_back(Event::of_control(message)?);
        Ok(())
    }

    fn told(&mut self, payload: &[u8]) -> Result<(), Error> {
        let message = Answer::new(payload)?;
        let event = match message.kind() {
            wire::INDIRECTION_TABLE => Event::SendTable(message.table()?),
            wire::VF_ASSOCIATION => Event::Vf { allocated: message.word(0)? != 0, serial: message.word(1)? },
            other => return Err(Error::Protocol(format!("the device sends NVSP message {other}"))),
        };
        self.events.push_back(event);
        Ok(())
    }

    /// Gives back what a delivery lent. The device sees it when the guest has nothing left to do (or at the next
    /// [`Self::flush`]), for drivers collect completions too.
    pub fn give_back(&mut self, delivery: Delivery) -> Result<(), Error> {
        self.buffers.give_back(delivery.ranges.iter().copied());
        self.out.retain(|&id| id != delivery.id);
        let (packet, payload) = Self::return_of(delivery.id);
        match self.channel.push(&packet, &[&payload]) {
            Err(Error::Push(PushError::Full { .. })) => {
                self.channel.send_waiting(&packet, &[&payload], super::LONG)
            }
            pushed => pushed,
        }
    }

    fn return_of(id: u64) -> (Outgoing, [u8; 8]) {
        let mut payload = [0; 8];
        payload[..4].copy_from_slice(&wire::RNDIS_PACKET_COMPLETE.to_le_bytes());
        payload[4..].copy_from_slice(&wire::STATUS_SUCCESS.to_le_bytes());
        (Outgoing::completion(id), payload)
    }

    /// Sends the completion of a transfer-page packet, out or not: for tests of what a device does about it.
    pub fn give_back_id(&mut self, id: u64) -> Result<(), Error> {
        let (packet, payload) = Self::return_of(id);
        self.channel.send_waiting(&packet, &[&payload], super::LONG)
    }

    /// Copies a frame that came into private memory.
    pub fn read(&self, frame: &RxFrame) -> Vec<u8> {
        let mut bytes = vec![0; frame.len as usize];
        self.channel.platform().read(frame.address, &mut bytes);
        bytes
    }

    /// Sends anything that is completed as an RNDIS packet is: for tests of what a device does about it.
    pub fn push_raw(
        &mut self,
        packet_type: PacketType,
        header: &[u8],
        payload: &[u8],
    ) -> Result<Room, Error> {
        let pending = Pending::Rndis { section: None, pages: None, control: false };
        self.push(packet_type, header, payload, pending)
    }

    /// Sends under way.
    pub fn in_flight(&self) -> usize {
        self.sends.in_flight()
    }

    /// Deliveries that have not gone back.
    pub fn deliveries_out(&self) -> usize {
        self.out.len()
    }

    /// The channel, for what a test does besides.
    pub fn channel(&mut self) -> &mut Channel<P> {
        &mut self.channel
    }

    /// Gives the channel back, to close it. Sends that are still under way are lost, which is an error.
    pub fn into_channel(self) -> Result<Channel<P>, Error> {
        match self.sends.in_flight() {
            0 => {
                self.pages.free(&**self.channel.platform());
                Ok(self.channel)
            }
            lost => Err(Error::Lost(lost)),
        }
    }
}
