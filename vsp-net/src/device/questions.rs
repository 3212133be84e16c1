//! RNDIS control messages: what the guest asks and sets, and what it is told unasked.
//!
//! A question is answered by a block of the receive buffer; what the answer says, what it changes, and that the question has
//! been dealt with become visible to the guest and to a successor by one store. So an answer is never lost, and never given twice.

use vsp::{Channels, Lend, Packet, Request, TransferPages, TransferRange};

use super::Net;
use super::blocks::For;
use super::source::{Piece, Source};
use super::state::Phase;
use crate::nvsp::{ChannelType, HostMessage, Section, Status};
use crate::oid::{self, Effect};
use crate::rndis::control::{MAX_LEN, Message};
use crate::rndis::frame::TOLD_FRAMES;
use crate::rndis::{Indication, Reply, RndisStatus};

/// Frames that a guest puts into one section begin at multiples of two to this power.
const ALIGNMENT_SHIFT: u32 = 3;
/// Bytes of an NVSP message; both that end a question and that announce an answer.
pub(super) const NVSP_LEN: usize = 40;

/// A question that waits for room in the ring.
#[derive(Debug)]
pub(super) struct Question {
    pub request: Request,
    bytes: Vec<u8>,
}

impl Net {
    /// A control message.
    pub(super) fn question(
        &mut self,
        section: Option<Section>,
        packet: Packet<'_>,
        request: Request,
        channels: &mut Channels,
    ) {
        let bytes = self.control_bytes(section, packet);
        if bytes.is_empty() {
            self.stats.malformed += 1;
            return self.sent(request, Status::InvalidRndisPacket, channels);
        }
        // In the order in which they came.
        self.questions.push_back(Question { request, bytes });
        self.answer_questions(channels);
    }

    /// A private copy of the message; empty if it cannot be had.
    fn control_bytes(&mut self, section: Option<Section>, packet: Packet<'_>) -> Vec<u8> {
        let Ok(guest) = self.guest_pages(packet) else { return Vec::new() };
        let mut pieces = Vec::new();
        if let Some(Section { index, size }) = section {
            let buffer = self.state.send.filter(|buffer| index < buffer.count && size <= buffer.size);
            let span = buffer.zip(self.transmit.pages.as_ref()).and_then(|(buffer, pages)| {
                pages.span(index as usize * buffer.size as usize, size as usize).ok()
            });
            pieces.extend(span.map(Piece::Shared));
        }
        match &guest {
            Some(buffer) => pieces.extend(buffer.held().iter().copied().map(Piece::Shared)),
            None => pieces.push(Piece::Private(packet.fetched)),
        }
        let source = Source::new(&pieces);
        let mut bytes = vec![0; source.len().min(MAX_LEN)];
        if !source.copy_out(0, &mut bytes) {
            bytes.clear();
        }
        bytes
    }

    /// Answers what has been asked, as far as there is room; then says what nobody has asked.
    pub(super) fn answer_questions(&mut self, channels: &mut Channels) {
        let Some(primary) = self.ports.primary() else { return };
        let needed = Channels::completion_bytes(NVSP_LEN) + Channels::lend_bytes(1, NVSP_LEN);
        while let Some(question) = self.questions.pop_front() {
            if !channels.has_room(primary, needed) {
                self.questions.push_front(question);
                return;
            }
            let mut reply = Vec::new();
            let status = match Message::parse(&question.bytes) {
                Ok(message) => {
                    self.reply(message, &mut reply);
                    Status::Success
                }
                Err(error) => {
                    tracing::debug!("a question makes no sense: {error}");
                    self.stats.malformed += 1;
                    Status::InvalidRndisPacket
                }
            };
            let block = self.place_reply(&reply);
            self.sent(question.request, status, channels);
            if let Some(block) = block {
                self.lend_reply(block, reply.len(), channels);
            }
        }
        if self.owes_link && self.state.phase == Phase::Running && channels.has_room(primary, needed) {
            let mut reply = Vec::new();
            let up = self.state.nic.link_up;
            Reply::Indicate(if up { Indication::Connect } else { Indication::Disconnect }).encode(&mut reply);
            if let Some(block) = self.place_reply(&reply) {
                self.owes_link = false;
                self.lend_reply(block, reply.len(), channels);
            }
        }
    }

    /// Puts an answer into a block. `None`: there is none to be given, or the guest has all blocks.
    fn place_reply(&mut self, reply: &[u8]) -> Option<u32> {
        if reply.is_empty() {
            return None;
        }
        let (pages, buffer) = (self.receive.pages.as_ref()?, self.state.receive?);
        let Some(block) = self.receive.blocks.take(0, For::Answer, 1) else {
            // It must not wait: blocks come back behind the very requests that would be waiting.
            self.stats.answers_lost += 1;
            return None;
        };
        let at = block as usize * buffer.size as usize;
        if reply.len() > buffer.size as usize || pages.copy_in(at, reply).is_err() {
            self.receive.blocks.give_back(block);
            return None;
        }
        Some(block)
    }

    fn lend_reply(&mut self, block: u32, len: usize, channels: &mut Channels) {
        let (Some(buffer), Some(primary)) = (self.state.receive, self.ports.primary()) else { return };
        let ranges = [TransferRange::new(block * buffer.size, len as u32)];
        let pages = TransferPages { page_set: buffer.id, ranges: &ranges };
        let payload = HostMessage::RndisPacket { channel: ChannelType::Control }.encode(self.version());
        match channels.lend(primary, block, &pages, &payload) {
            Lend::Lent => self.receive.blocks.lent(0, block),
            // There was room a moment ago; the ring is broken, then.
            Lend::Full | Lend::Dead => self.receive.blocks.give_back(block),
        }
    }

    /// What a message is answered with; nothing to those that want none.
    fn reply(&mut self, message: Message<'_>, reply: &mut Vec<u8>) {
        let running = self.state.phase == Phase::Running;
        match message {
            Message::Initialize { id, major, .. } => {
                let ready = self.state.phase >= Phase::Versioned && self.receive.pages.is_some();
                let status = match (ready, major) {
                    (true, 1) => RndisStatus::SUCCESS,
                    (true, _) => RndisStatus::BAD_VERSION,
                    (false, _) => RndisStatus::ADAPTER_NOT_READY,
                };
                if status == RndisStatus::SUCCESS {
                    self.begin();
                }
                let max_transfer = self.state.send.map_or(0, |buffer| buffer.size).max(MAX_LEN as u32);
                let (max_packets, alignment_shift) = (TOLD_FRAMES, ALIGNMENT_SHIFT);
                Reply::InitializeComplete { id, status, max_packets, max_transfer, alignment_shift }
                    .encode(reply);
            }
            Message::Halt { .. } => self.halt(),
            Message::Query { id, oid, info } => {
                let mut value = Vec::new();
                let asked = if running {
                    oid::query(&self.state.nic, oid, info, &mut value)
                } else {
                    Err(RndisStatus::ADAPTER_NOT_READY)
                };
                let status = asked.err().unwrap_or(RndisStatus::SUCCESS);
                let info: &[u8] = if status == RndisStatus::SUCCESS { &value } else { &[] };
                Reply::QueryComplete { id, status, info }.encode(reply);
            }
            Message::Set { id, oid, info } => {
                let set = if running {
                    oid::set(&mut self.state.nic, oid, info)
                } else {
                    Err(RndisStatus::ADAPTER_NOT_READY)
                };
                let status = set.err().unwrap_or(RndisStatus::SUCCESS);
                if let Ok(effect) = set {
                    self.has_set(effect);
                }
                Reply::SetComplete { id, status }.encode(reply);
            }
            Message::Reset => Reply::ResetComplete { status: RndisStatus::SUCCESS }.encode(reply),
            Message::KeepAlive { id } => {
                Reply::KeepAliveComplete { id, status: RndisStatus::SUCCESS }.encode(reply);
            }
        }
    }

    /// RNDIS begins, perhaps anew.
    fn begin(&mut self) {
        self.state.nic.halt();
        (self.state.phase, self.stale) = (Phase::Running, true);
        // It asks for the link's state itself.
        self.owes_link = false;
        self.renew();
    }

    /// RNDIS ends. What has been agreed on stays.
    fn halt(&mut self) {
        self.state.nic.halt();
        if self.state.phase == Phase::Running {
            self.state.phase = Phase::Versioned;
        }
        self.stale = true;
        self.renew();
    }

    /// What the guest has set takes effect.
    fn has_set(&mut self, effect: Effect) {
        self.stale = true;
        match effect {
            // What came before it is not what the guest wants now, but harmless.
            Effect::None | Effect::Filter | Effect::Mac => {}
            Effect::Offloads => self.renew_offloads(),
            Effect::Rss => self.renew_hash(),
        }
    }

    /// Whatever follows from the state, follows from this one.
    pub(super) fn renew(&mut self) {
        self.renew_hash();
        self.renew_offloads();
    }

    /// Something that nobody dares to look into is answered as if the device were broken. The guest waits for the
    /// answer to a question, so it gets one if the question's first words can be had.
    pub(super) fn refuse_question(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        let mut reply = Vec::new();
        let status = RndisStatus::FAILURE;
        match Message::parse(&packet.fetched[..packet.fetched.len().min(MAX_LEN)]) {
            Ok(Message::Query { id, .. }) => {
                Reply::QueryComplete { id, status, info: &[] }.encode(&mut reply)
            }
            Ok(Message::Set { id, .. }) => Reply::SetComplete { id, status }.encode(&mut reply),
            Ok(Message::KeepAlive { id }) => Reply::KeepAliveComplete { id, status }.encode(&mut reply),
            _ => {}
        }
        let needed = Channels::completion_bytes(NVSP_LEN) + Channels::lend_bytes(1, NVSP_LEN);
        let room = self.ports.primary().is_some_and(|primary| channels.has_room(primary, needed));
        let block = if room { self.place_reply(&reply) } else { None };
        self.sent(request, Status::Fail, channels);
        if let Some(block) = block {
            self.lend_reply(block, reply.len(), channels);
        }
    }
}
