//! A guest of the tests: what a netvsc driver does, one step at a time.

use std::time::Instant;

use vsp::SharedMemory;
use vsp::ipc::message::{ToCore, ToVsp};
use vsp::ipc::shm::PagesMapping;
use vsp::testing::{Bench, GuestEnd, PATIENCE};
use vsp::vmbus::packet::{Outgoing, PacketHeader, PacketType, TransferRange, page_buffer_header};

pub use crate::backend::wire::{Wire, frame};
use crate::cli::{Mac, Memory, Setting};
use crate::device::Net;
use crate::nvsp::{ChannelType, GuestMessage, HostMessage, RndisPacket, Section, Status, Version};
use crate::rndis::control::Message;
use crate::rndis::frame::{self, Received};
use crate::rndis::{Reply, TransmitInfo};

/// The NIC's address.
pub const MAC: [u8; 6] = [2, 0, 0x5e, 0x10, 0, 1];
/// Somebody else's.
pub const PEER: [u8; 6] = [2, 0, 0x5e, 0x10, 0, 2];
/// The guest's names for its buffers.
pub const RECEIVE: u32 = 0xe1e10;
pub const SEND: u32 = 0xe1e11;
/// Id of its receive buffer, as Linux has it.
pub const PAGE_SET: u16 = 0xcafe;
/// Bytes of guest RAM.
pub const RAM: u64 = 1 << 20;
/// Directed, broadcast and all multicast: what Linux sets when it is brought up.
pub const FILTER: u32 = 0xd;
const OID_FILTER: u32 = 0x0001_010e;

/// How the NIC is started.
pub fn setting() -> Setting {
    Setting {
        device: "net0".into(),
        mac: Mac(MAC),
        mtu: 1500,
        memory: Memory::Full,
        antispoof: false,
        link_up: true,
        queues: 1,
    }
}

/// The world of a test: a NIC, its guest's memory, and the wire.
pub struct World {
    pub bench: Bench<Net>,
    gpadls: [(u32, SharedMemory); 2],
    /// Open channels, the primary one first.
    pub channels: Vec<GuestEnd>,
    pub receive: PagesMapping,
    pub send: PagesMapping,
    /// The other end of the stream; what is not a whole frame yet.
    pub wire: Wire,
    next_id: u32,
    /// The process does not see guest RAM.
    confined: bool,
}

impl World {
    /// A NIC whose primary channel is open.
    pub fn new(setting: Setting) -> World {
        World::with(setting, 1, 16 << 20)
    }

    /// The same with several VPs, and a receive buffer of some size.
    pub fn with(setting: Setting, vps: u32, receive: u64) -> World {
        let wire = Wire::new();
        let confined = setting.memory == Memory::Confined;
        let net = Net::open(setting, wire.backend()).unwrap();
        let mut bench = Bench::with_vps(net, RAM, vps);
        let primary = bench.open(1, 16);
        let [receive, send] =
            [receive, 1 << 20].map(|bytes| SharedMemory::create("test-buffer", bytes).unwrap());
        let [receive_pages, send_pages] = [&receive, &send].map(|memory| PagesMapping::new(memory).unwrap());
        let gpadls = [(RECEIVE, receive), (SEND, send)];
        let channels = vec![primary];
        let world = World {
            bench,
            channels,
            gpadls,
            receive: receive_pages,
            send: send_pages,
            wire,
            next_id: 1,
            confined,
        };
        world.make_gpadls();
        world
    }

    /// The guest makes its buffers known.
    fn make_gpadls(&self) {
        for (gpadl, memory) in &self.gpadls {
            self.bench.core.tear_down(*gpadl);
            self.bench.core.has_gpadl(*gpadl, memory.try_clone().unwrap());
        }
    }

    /// One turn of the device.
    pub fn turn(&mut self, milliseconds: u64) {
        self.bench.turn(milliseconds);
    }

    /// Some turns.
    pub fn settle(&mut self) {
        (0..4).for_each(|_| self.turn(0));
    }

    /// The next packet of a channel's.
    pub fn wait(&mut self, channel: usize) -> (PacketHeader, Vec<u8>) {
        self.bench.wait(&mut self.channels[channel])
    }

    /// A NIC that has been brought up as Linux does it.
    pub fn up(setting: Setting) -> World {
        let mut world = World::new(setting);
        world.bring_up();
        world
    }

    /// The primary channel is opened again, with the same buffers.
    pub fn reopen(&mut self) {
        self.channels = vec![self.bench.open(1, 16)];
        self.make_gpadls();
    }

    /// Brings the NIC up as Linux does it.
    pub fn bring_up(&mut self) {
        self.agree();
        self.ask(&Message::Initialize { id: 1, major: 1, minor: 0, max_transfer: 0x4000 });
        self.set(OID_FILTER, &FILTER.to_le_bytes());
    }

    /// Version and buffers.
    pub fn agree(&mut self) {
        let version = Version::V61.wire();
        let answer = self.say(&GuestMessage::Init { min: version, max: version });
        assert_eq!(answer, Some(HostMessage::InitComplete { status: Status::Success }));
        let capabilities = crate::nvsp::Capabilities::default();
        let mtu = u32::from(self.bench.runtime.device().setting.mtu) + 14;
        self.tell(&GuestMessage::NdisConfig { mtu, capabilities });
        self.tell(&GuestMessage::NdisVersion { major: 6, minor: 30 });
        let answer = self.say(&GuestMessage::SendReceiveBuffer { gpadl: RECEIVE, id: PAGE_SET });
        assert!(matches!(answer, Some(HostMessage::ReceiveBufferComplete { status: Status::Success, .. })));
        let answer = self.say(&GuestMessage::SendSendBuffer { gpadl: SEND, id: 0 });
        assert!(matches!(answer, Some(HostMessage::SendBufferComplete { status: Status::Success, .. })));
    }

    /// Sub-channels.
    pub fn add_channels(&mut self, count: u32) {
        let answer = self.say(&GuestMessage::Subchannel { operation: 1, count });
        assert_eq!(answer, Some(HostMessage::SubchannelComplete { status: Status::Success, count }));
        assert_eq!(self.bench.answer(), ToCore::OfferSubchannels { count: count as u16 });
        for number in 1..=count {
            self.channels.push(self.bench.open_subchannel(1 + number, number as u16, 16));
        }
    }

    /// Sends a message that wants no answer.
    pub fn tell(&mut self, message: &GuestMessage) {
        assert!(self.channels[0].send(&Outgoing::in_band(0, false), &[&message.encode()]));
        self.settle();
    }

    /// Sends a message and waits for its answer; `None` if that has no bytes.
    pub fn say(&mut self, message: &GuestMessage) -> Option<HostMessage> {
        assert!(self.channels[0].send(&Outgoing::in_band(77, true), &[&message.encode()]));
        let (header, payload) = self.wait(0);
        assert_eq!((header.packet_type, header.transaction_id), (PacketType::COMPLETION, 77));
        (!payload.is_empty()).then(|| HostMessage::parse(&payload).unwrap())
    }

    /// Asks something by a page list, and gives the block with the answer back; the answer.
    pub fn ask(&mut self, message: &Message<'_>) -> Vec<u8> {
        self.send_question(message);
        let status = self.completion(0);
        assert_eq!(status, Status::Success);
        let (loan, mut answers) = self.transfer(0);
        self.give_back(0, loan);
        assert_eq!(answers.len(), 1);
        answers.remove(0)
    }

    /// Puts a question into guest RAM and names it.
    pub fn send_question(&mut self, message: &Message<'_>) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.send_pages(0, ChannelType::Control, None, &bytes);
    }

    /// Sends bytes by a page list, in two pieces.
    pub fn send_pages(&mut self, channel: usize, kind: ChannelType, section: Option<Section>, bytes: &[u8]) {
        let at = 0x4ff0;
        if self.confined {
            // Nothing waits for it: it ends when the device has asked.
            drop(self.bench.core.answer_fetch(bytes.to_vec()));
        }
        self.bench.core.ram.as_ref().unwrap().write(at, bytes).unwrap();
        let first = bytes.len().min(16);
        let mut pages = vec![(0xff0, first as u32, 4)];
        let mut left = &bytes[first..];
        let mut page = 5;
        while !left.is_empty() {
            let len = left.len().min(4096);
            pages.push((0, len as u32, page));
            (left, page) = (&left[len..], page + 1);
        }
        let header = page_buffer_header(&pages);
        let message = GuestMessage::RndisPacket(RndisPacket { channel: kind, section }).encode();
        assert!(self.channels[channel].send(&Outgoing::gpa_direct(78, &header), &[&header, &message]));
    }

    /// Sends bytes by a section of the send buffer.
    pub fn send_section(&mut self, channel: usize, index: u32, bytes: &[u8]) {
        let size = self.section_size();
        self.send.copy_in(index as usize * size as usize, bytes).unwrap();
        let section = Some(Section { index, size: bytes.len() as u32 });
        let message = GuestMessage::RndisPacket(RndisPacket { channel: ChannelType::Data, section }).encode();
        assert!(self.channels[channel].send(&Outgoing::in_band(78, true), &[&message]));
    }

    pub fn section_size(&self) -> u32 {
        self.bench.runtime.device().state.send.unwrap().size
    }

    /// Sends frames by a section, and waits until they have been sent.
    pub fn send_frames(&mut self, frames: &[&[u8]]) {
        let mut bytes = Vec::new();
        for one in frames {
            message(&TransmitInfo::default(), one, &mut bytes);
        }
        self.send_section(0, 3, &bytes);
        assert_eq!(self.completion(0), Status::Success);
    }

    /// Waits for a completion of an RNDIS message.
    pub fn completion(&mut self, channel: usize) -> Status {
        let (header, payload) = self.wait(channel);
        assert_eq!((header.packet_type, header.transaction_id), (PacketType::COMPLETION, 78));
        match HostMessage::parse(&payload).unwrap() {
            HostMessage::RndisPacketComplete { status } => status,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for a block; its number, and what its ranges hold.
    pub fn transfer(&mut self, channel: usize) -> (u64, Vec<Vec<u8>>) {
        let start = Instant::now();
        loop {
            if let Some(transfer) = self.poll_transfer(channel) {
                return transfer;
            }
            assert!(start.elapsed() < PATIENCE, "no block came");
            self.turn(1);
        }
    }

    /// The next block, if there is one.
    pub fn poll_transfer(&mut self, channel: usize) -> Option<(u64, Vec<Vec<u8>>)> {
        let (end, mut scratch) = (&mut self.channels[channel], Vec::new());
        let header = end.reader.next(&mut scratch).unwrap()?;
        if end.reader.publish() {
            end.kick.signal().unwrap();
        }
        let pages = header.transfer_pages(&scratch, 64).unwrap();
        assert_eq!(pages.page_set, PAGE_SET);
        assert!(header.completion_requested());
        assert!(matches!(HostMessage::parse(header.payload(&scratch)), Ok(HostMessage::RndisPacket { .. })));
        let range = |range: &TransferRange| {
            let mut bytes = vec![0; range.len.get() as usize];
            self.receive.copy_out(range.offset.get() as usize, &mut bytes).unwrap();
            bytes
        };
        Some((header.transaction_id, pages.ranges.iter().map(range).collect()))
    }

    /// Waits for frames, and gives their blocks back.
    pub fn frames(&mut self, channel: usize, count: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while frames.len() < count {
            let (loan, messages) = self.transfer(channel);
            frames.extend(messages.iter().map(|message| Received::parse(message).unwrap().data.to_vec()));
            self.give_back(channel, loan);
        }
        frames
    }

    /// Gives a block back.
    pub fn give_back(&mut self, channel: usize, loan: u64) {
        let answer = GuestMessage::RndisPacketComplete { status: Status::Success }.encode();
        assert!(self.channels[channel].send(&Outgoing::completion(loan), &[&answer[..8]]));
        self.settle();
    }

    pub fn set(&mut self, oid: u32, info: &[u8]) {
        let answer = self.ask(&Message::Set { id: 5, oid, info });
        let Reply::SetComplete { status, .. } = Reply::parse(&answer).unwrap() else { panic!("{answer:?}") };
        assert_eq!(status, crate::rndis::RndisStatus::SUCCESS);
    }

    /// Whatever an operator wants.
    pub fn control(&mut self, payload: &str) -> Result<String, String> {
        self.next_id += 1;
        let id = self.next_id.into();
        self.bench.core.send(&ToVsp::Control { id, payload: payload.into() });
        match self.bench.answer() {
            ToCore::ControlDone { id: of, result } if of == id => result,
            other => panic!("{other:?}"),
        }
    }

    /// The process dies, and another takes over; the wire and the guest know nothing of it.
    pub fn die(self, setting: Setting) -> World {
        let core = self.bench.kill();
        let net = Net::open(setting, self.wire.backend()).unwrap();
        World { bench: Bench::take_over(core, net), ..self }
    }
}

/// Appends the message of a frame, padded as Linux does it.
pub fn message(info: &TransmitInfo, data: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    frame::compose(info, data.len(), out);
    out.extend_from_slice(data);
    let padded = out.len().next_multiple_of(8);
    out.resize(padded, 0);
    let len = (padded - start) as u32;
    out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
}
