//! The consumer of SCSI controllers: what `hv_storvsc` is in a kernel, with the checks of a test.
//!
//! [`Storage`] connects to a controller and moves requests; [`scsi`] has the commands as methods of it; [`wire`] is
//! the format of the packets.

mod requests;
pub mod scsi;
#[cfg(test)]
mod tests;
pub mod wire;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmbus::PAGE_SIZE;
use vmbus::message::Offer;
use vmbus::packet::{Outgoing, PacketType, gpa_direct_header};
use zerocopy::{FromBytes, IntoBytes};

use crate::channel::{Channel, Packet};
use crate::client::{Client, OpenOptions};
use crate::error::Error;
use crate::platform::Platform;
use requests::Requests;
use wire::{
    ChannelProperties, Direction, OPERATION_COMPLETE_IO, PROTOCOL_WIN8, PROTOCOL_WIN8_1, PROTOCOL_WIN10,
    ScsiRequest, StoragePacket,
};

pub use requests::RequestId;

/// Transaction id of the packets that are no SCSI requests, as Linux uses it.
const CONTROL_ID: u64 = u64::MAX - 2;

/// How to use a controller.
#[derive(Debug, Clone)]
pub struct StorageOptions {
    /// How to open its channel.
    pub open: OpenOptions,
    /// Storage protocol versions to propose, in this order.
    pub versions: Vec<u16>,
    /// Most requests under way. Ids are taken from a table of this size and used again at once, as guests do.
    pub depth: usize,
    /// How long the device may take for an answer.
    pub timeout: Duration,
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self {
            open: OpenOptions::default(),
            versions: vec![PROTOCOL_WIN10, PROTOCOL_WIN8_1, PROTOCOL_WIN8],
            depth: 64,
            timeout: Duration::from_secs(10),
        }
    }
}

/// Guest memory for data, contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address, any.
    pub address: u64,
    /// Bytes.
    pub len: u32,
}

impl Buffer {
    /// No data.
    pub const NONE: Self = Self { address: 0, len: 0 };

    /// `len` bytes from `offset` on; they have to lie in the buffer.
    pub fn part(self, offset: u32, len: u32) -> Self {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "outside of the buffer");
        Self { address: self.address + u64::from(offset), len }
    }

    fn pfns(self) -> Vec<u64> {
        let page = u64::from(PAGE_SIZE);
        (self.address / page..(self.address + u64::from(self.len)).div_ceil(page)).collect()
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The request.
    pub id: RequestId,
    /// First byte of its command.
    pub opcode: u8,
    /// The packet's status; 0 unless the whole packet was refused.
    pub status: u32,
    /// What the device says about the request: statuses, sense data, bytes moved.
    pub request: ScsiRequest,
}

impl Completion {
    /// Bytes that were moved, or why they were not.
    pub fn moved(&self) -> Result<u32, Error> {
        let request = &self.request;
        if request.srb_status & wire::SRB_STATUS_MASK == wire::SRB_STATUS_SUCCESS && request.scsi_status == 0
        {
            return Ok(request.transfer_len);
        }
        Err(Error::Scsi {
            opcode: self.opcode,
            srb: request.srb_status,
            scsi: request.scsi_status,
            sense: request.sense().to_vec(),
        })
    }
}

/// A connection to a SCSI controller.
pub struct Storage<P: Platform> {
    channel: Channel<P>,
    version: u16,
    properties: ChannelProperties,
    requests: Requests,
    /// Completions that came while another one was waited for.
    done: VecDeque<Completion>,
    timeout: Duration,
}

impl<P: Platform> Storage<P> {
    /// Opens a controller and agrees with it on a version.
    pub fn open(client: &mut Client<P>, offer: &Offer, options: &StorageOptions) -> Result<Self, Error> {
        let channel = client.open(offer, &options.open)?;
        Self::start(channel, options)
    }

    /// Agrees on a version over a channel that is open already.
    pub fn start(channel: Channel<P>, options: &StorageOptions) -> Result<Self, Error> {
        let mut storage = Self {
            channel,
            version: 0,
            properties: ChannelProperties::default(),
            requests: Requests::new(options.depth),
            done: VecDeque::new(),
            timeout: options.timeout,
        };
        storage.control_ok(&StoragePacket::new(wire::OPERATION_BEGIN_INITIALIZATION))?;
        storage.version = storage.negotiate(&options.versions)?;
        let answer = storage.control_ok(&StoragePacket::new(wire::OPERATION_QUERY_PROPERTIES))?;
        storage.properties = answer.body();
        storage.control_ok(&StoragePacket::new(wire::OPERATION_END_INITIALIZATION))?;
        Ok(storage)
    }

    fn negotiate(&mut self, versions: &[u16]) -> Result<u16, Error> {
        for &version in versions {
            let mut packet = StoragePacket::new(wire::OPERATION_QUERY_PROTOCOL_VERSION);
            packet.payload[..2].copy_from_slice(&version.to_le_bytes());
            if self.control(&packet)?.status == 0 {
                return Ok(version);
            }
        }
        Err(Error::Protocol("the controller speaks none of the proposed storage versions".into()))
    }

    /// Sends a packet that is no SCSI request, and returns the answer.
    pub fn control(&mut self, packet: &StoragePacket) -> Result<StoragePacket, Error> {
        let timeout = self.timeout;
        let outgoing = Outgoing::in_band(CONTROL_ID, true);
        self.channel.send_waiting(&outgoing, &[packet.as_bytes()], timeout)?;
        let deadline = Instant::now() + timeout;
        loop {
            match self.receive(deadline)?.ok_or(Error::Timeout("answer from the controller"))? {
                (CONTROL_ID, answer) if answer.operation == OPERATION_COMPLETE_IO => return Ok(answer),
                (id, answer) => self.complete(id, &answer)?,
            }
        }
    }

    fn control_ok(&mut self, packet: &StoragePacket) -> Result<StoragePacket, Error> {
        let answer = self.control(packet)?;
        if answer.status != 0 {
            let (operation, status) = (packet.operation, answer.status);
            return Err(Error::Protocol(format!("operation {operation} ended with status {status:#x}")));
        }
        Ok(answer)
    }

    /// Asks for `count` sub-channels and opens them: further queues of the same controller, which need no agreement of
    /// their own. Their interrupts go to the virtual processors in turn.
    pub fn open_sub_channels(
        &mut self,
        client: &mut Client<P>,
        count: u16,
        options: &StorageOptions,
    ) -> Result<Vec<Self>, Error> {
        self.open_sub_channels_as(client, count, |_| options.clone())
    }

    /// The same, with options for each by its index (from 1).
    pub fn open_sub_channels_as(
        &mut self,
        client: &mut Client<P>,
        count: u16,
        options: impl Fn(u16) -> StorageOptions,
    ) -> Result<Vec<Self>, Error> {
        let primary = *self.channel.offer();
        self.create_sub_channels(count)?;
        let offers = client.sub_channel_offers(&primary, count)?;
        let vps = self.platform().vp_count();
        let open = |offer: &Offer| {
            let options = options(offer.sub_channel_index);
            let target_vp = (options.open.target_vp + u32::from(offer.sub_channel_index)) % vps;
            let channel = client.open(offer, &OpenOptions { target_vp, ..options.open })?;
            Ok(Self {
                channel,
                version: self.version,
                properties: self.properties,
                requests: Requests::new(options.depth),
                done: VecDeque::new(),
                timeout: options.timeout,
            })
        };
        offers.iter().map(open).collect()
    }

    /// Asks for `count` sub-channels; their offers arrive at the client.
    pub fn create_sub_channels(&mut self, count: u16) -> Result<(), Error> {
        let mut packet = StoragePacket::new(wire::OPERATION_CREATE_SUB_CHANNELS);
        packet.payload[..2].copy_from_slice(&count.to_le_bytes());
        self.control_ok(&packet).map(drop)
    }

    /// The storage protocol's version: major in the high byte, minor in the low one.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// What the controller said about itself.
    pub fn properties(&self) -> ChannelProperties {
        self.properties
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.requests.in_flight()
    }

    /// True if another request may be started.
    pub fn has_room(&self) -> bool {
        self.requests.has_room()
    }

    /// The channel, for what a test does besides.
    pub fn channel(&mut self) -> &mut Channel<P> {
        &mut self.channel
    }

    /// Allocates guest memory for data.
    pub fn allocate(&self, len: u32) -> Result<Buffer, Error> {
        let address = self.channel.platform().allocate(len.div_ceil(PAGE_SIZE)).map_err(Error::Platform)?;
        Ok(Buffer { address, len })
    }

    /// Frees memory from [`Self::allocate`].
    pub fn release(&self, buffer: Buffer) {
        self.channel.platform().release(buffer.address, buffer.len.div_ceil(PAGE_SIZE));
    }

    /// Starts a request: a command for a unit, and memory that its data comes from or goes to.
    pub fn submit(
        &mut self,
        lun: u8,
        cdb: &[u8],
        direction: Direction,
        data: Buffer,
    ) -> Result<RequestId, Error> {
        let id = self.push(lun, cdb, direction, data)?;
        self.channel.flush()?;
        Ok(id)
    }

    /// Like [`Self::submit`], but shown to the device only at the next [`Self::flush_requests`].
    pub fn push(
        &mut self,
        lun: u8,
        cdb: &[u8],
        direction: Direction,
        data: Buffer,
    ) -> Result<RequestId, Error> {
        let id = self.requests.start(cdb.first().copied().unwrap_or_default())?;
        let packet = StoragePacket::execute(ScsiRequest::new(lun, cdb, direction, data.len));
        let pushed = if data.len == 0 {
            self.channel.push(&Outgoing::in_band(id.0, true), &[packet.as_bytes()])
        } else {
            let offset = (data.address % u64::from(PAGE_SIZE)) as u32;
            let header = gpa_direct_header(&[(offset, data.len, &data.pfns())]);
            self.channel.push(&Outgoing::gpa_direct(id.0, &header), &[&header, packet.as_bytes()])
        };
        if pushed.is_err() {
            self.requests.finish(id.0)?;
        }
        pushed.map(|()| id)
    }

    /// Shows the device what was pushed.
    pub fn flush_requests(&mut self) -> Result<(), Error> {
        self.channel.flush()
    }

    /// The next completion; `None` if there is none in time. One that is for no request is an error.
    pub fn completion(&mut self, timeout: Duration) -> Result<Option<Completion>, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(done) = self.done.pop_front() {
                return Ok(Some(done));
            }
            match self.receive(deadline)? {
                None => return Ok(None),
                Some((id, answer)) => self.complete(id, &answer)?,
            }
        }
    }

    /// The next completion if there is one now, whether or not the host has signalled it: for a driver that polls.
    pub fn poll_completion(&mut self) -> Result<Option<Completion>, Error> {
        loop {
            if let Some(done) = self.done.pop_front() {
                return Ok(Some(done));
            }
            let Some(packet) = self.channel.poll()? else { return Ok(None) };
            let (id, answer) = Self::answer(&packet)?;
            self.complete(id, &answer)?;
        }
    }

    /// Waits for the end of one request; others that end meanwhile are kept for [`Self::completion`].
    pub fn wait(&mut self, id: RequestId) -> Result<Completion, Error> {
        let deadline = Instant::now() + self.timeout;
        loop {
            if let Some(at) = self.done.iter().position(|done| done.id == id)
                && let Some(done) = self.done.remove(at)
            {
                return Ok(done);
            }
            let (id, answer) = self.receive(deadline)?.ok_or(Error::Timeout("completion"))?;
            self.complete(id, &answer)?;
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Option<(u64, StoragePacket)>, Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(packet) = self.channel.receive(left)? else { return Ok(None) };
        Self::answer(&packet).map(Some)
    }

    fn answer(packet: &Packet<'_>) -> Result<(u64, StoragePacket), Error> {
        if !matches!(packet.header.packet_type, PacketType::COMPLETION | PacketType::IN_BAND) {
            return Err(Error::Protocol(format!("unexpected packet {:?}", packet.header)));
        }
        let (answer, _) = StoragePacket::read_from_prefix(packet.payload()).map_err(|_| {
            Error::Protocol(format!("{} bytes are no storage packet", packet.payload().len()))
        })?;
        Ok((packet.header.transaction_id, answer))
    }

    fn complete(&mut self, id: u64, answer: &StoragePacket) -> Result<(), Error> {
        if id == 0 && answer.operation != OPERATION_COMPLETE_IO {
            // An event of the controller's own (units came or went); nobody waits for it.
            return Ok(());
        }
        if answer.operation != OPERATION_COMPLETE_IO {
            return Err(Error::Protocol(format!("operation {} as an answer to {id:#x}", answer.operation)));
        }
        let opcode = self.requests.finish(id)?;
        self.done.push_back(Completion {
            id: RequestId(id),
            opcode,
            status: answer.status,
            request: answer.body(),
        });
        Ok(())
    }

    /// Gives the channel back, to close it. Requests that are still under way are lost, which is an error.
    pub fn into_channel(self) -> Result<Channel<P>, Error> {
        match self.requests.in_flight() {
            0 => Ok(self.channel),
            lost => Err(Error::Lost(lost)),
        }
    }

    /// The machine below.
    pub fn platform(&self) -> &Arc<P> {
        self.channel.platform()
    }
}
