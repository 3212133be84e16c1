//! The device: a NIC at the end of netvsc channels.
//!
//! The guest introduces itself and asks its questions on the primary channel; frames come and go by that one and by the
//! sub-channels. What a successor has to know is in [`state`]; requests in flight, and which blocks the guest has, are the
//! runtime's to remember. Frames that were read from the backend and not lent yet are lost with the process, as on any
//! wire; everything else is exact.
//!
//! * `state`: what is agreed on; `introduce`: how; `questions`: RNDIS control messages.
//! * `blocks`: the receive buffer; `receive`: from the backend to the guest; `spread`: to which of its channels.
//! * `source`: the bytes of a message; `transmit`: which messages, and when; `send`: from their bytes to the backend.
//! * `ports`: open channels; `operator`: what is wanted of the NIC from the host's side; `stats`: what it has done.

mod blocks;
mod bytes;
mod introduce;
mod operator;
mod ports;
mod questions;
mod receive;
mod send;
mod source;
mod spread;
mod state;
mod stats;
#[cfg(test)]
mod tests;
mod transmit;

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use vsp::ipc::ledger::MAX_LOANS;
use vsp::ipc::message::{MAX_FETCH, MAX_SUBCHANNELS};
use vsp::ipc::shm::ShmError;
use vsp::vmbus::guid::class;
use vsp::vmbus::packet::{PacketHeader, PacketType};
use vsp::{
    ChannelId, Channels, Control, Device, GuestRam, Offer, OpenRequest, Packet, Refused, Request,
    SharedMemory, Vm,
};

use self::introduce::Sharing;
use self::ports::Ports;
use self::questions::Question;
use self::receive::Receive;
use self::state::State;
use self::stats::Stats;
use self::transmit::Transmit;
use crate::backend::Backend;
use crate::cli::{Memory, Setting};
use crate::nvsp::{ChannelType, GuestMessage, NvspError, Status, kind};
use crate::oid;

/// Most requests of a channel: more than the large frames that fit into the send buffer. Whatever waits does so for the backend, and a
/// backend that makes frames wait takes none sooner for having more of them.
const DEPTH: u32 = 128;
/// Messages that are sent in one go: half of what the guest of a confined NIC can have under way, since Linux' usual send buffer has 16 sections of the
/// size that we give it there. With all of them, the guest and this process worked by turns (430 against 560 thousand small frames a second).
const BATCH: usize = 8;
/// How long frames go on waiting for the backend while their process is to hand over: a network may lose frames, and
/// whoever waits for the hand-over is sure to lose patience.
const LAST_TRIES: Duration = Duration::from_millis(200);
/// Speed of the link that guests are told, in bits a second: what a TAP says of itself.
const SPEED: u64 = 10_000_000_000;

/// Why a NIC cannot start.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is no memory for frames.
    #[error("no memory for frames: {0}")]
    Memory(#[from] ShmError),
}

/// The NIC.
#[derive(Debug)]
pub struct Net {
    setting: Setting,
    backend: Backend,
    /// Guest memory, if this process sees it.
    ram: Option<Arc<GuestRam>>,
    /// Sub-channels that this guest can have.
    max_subchannels: u16,
    state: State,
    /// The ledger of the primary channel has another state than this: the next answer there changes that.
    stale: bool,
    ports: Ports,
    receive: Receive,
    transmit: Transmit,
    /// Buffers that the core has been asked for.
    sharing: Vec<Sharing>,
    questions: VecDeque<Question>,
    /// Requests of channels that have closed meanwhile: they only have to end.
    leftovers: Vec<Request>,
    /// The guest is to be told of its link.
    owes_link: bool,
    /// The guest is to be told by which channels to send.
    owes_table: bool,
    /// Nothing new is begun, and what waits for the backend does so until then.
    hands_over: Option<Instant>,
    stats: Stats,
}

impl Net {
    /// Makes the NIC of a backend that is not used yet. Nothing is opened afterwards.
    pub fn open(setting: Setting, backend: Backend) -> Result<Net, OpenError> {
        let receive = Receive::new(backend.queues())?;
        let state = State::new(nic(&setting, &backend, 1));
        Ok(Net {
            setting,
            backend,
            ram: None,
            max_subchannels: 0,
            state,
            stale: false,
            ports: Ports::default(),
            receive,
            transmit: Transmit::default(),
            sharing: Vec::new(),
            questions: VecDeque::new(),
            leftovers: Vec::new(),
            owes_link: false,
            owes_table: false,
            hands_over: None,
            stats: Stats::default(),
        })
    }

    /// Ends a request. If the state has changed, it changes in the ledger with the next answer on the primary channel.
    fn answer(&mut self, request: Request, payload: &[u8], channels: &mut Channels) {
        if self.stale && self.ports.primary() == Some(request.channel()) {
            self.stale = false;
            request.complete_with_state(channels, payload, &self.state.encode());
        } else {
            request.complete(channels, payload);
        }
    }

    /// Forgets what belongs to a guest's session.
    fn begin_anew(&mut self) {
        self.state.reopen();
        self.receive.reset();
        self.transmit = Transmit::default();
        (self.stale, self.owes_link, self.owes_table) = (false, false, false);
    }
}

/// What a guest of so many channels may ask, before it has said anything.
fn nic(setting: &Setting, backend: &Backend, queues: u16) -> oid::State {
    let able = backend.offloads();
    let mut nic = oid::State::new(oid::Config {
        mac: setting.mac.0,
        mtu: setting.mtu.into(),
        speed: SPEED,
        queues,
        offloads: if able.checksum { oid::Offloads::TAP } else { oid::Offloads::NONE },
        mac_locked: setting.antispoof,
        name: setting.device.clone(),
    });
    nic.link_up = setting.link_up;
    nic
}

impl Device for Net {
    fn offer(&self) -> Offer {
        Offer { class: class::NETWORK.to_string(), max_subchannels: MAX_SUBCHANNELS, ..Offer::default() }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        self.backend.fds()
    }

    fn sources(&self) -> Vec<RawFd> {
        self.backend.fds()
    }

    fn batch(&self) -> usize {
        BATCH
    }

    fn depth(&self) -> u32 {
        DEPTH
    }

    fn loans(&self) -> u32 {
        MAX_LOANS
    }

    fn attached(&mut self, vm: Vm) -> Result<(), String> {
        self.ram = match (self.setting.memory, vm.ram) {
            (Memory::Full, None) => {
                return Err("--memory full needs guest RAM: the device's slot has to say so".into());
            }
            (Memory::Full, Some(ram)) => Some(Arc::new(ram)),
            (Memory::Confined, _) => None,
        };
        let channels = vm.vps.min(self.setting.queues.into()).min(u32::from(MAX_SUBCHANNELS) + 1);
        self.max_subchannels = channels.saturating_sub(1) as u16;
        self.state = State::new(nic(&self.setting, &self.backend, self.max_subchannels + 1));
        Ok(())
    }

    fn resource(&self) -> String {
        "its network backend".into()
    }

    fn fence(&mut self, _predecessor: bool) -> Result<bool, String> {
        self.backend.start().map_err(|error| format!("the network backend cannot be used: {error}"))?;
        self.receive.begin();
        self.renew();
        Ok(true)
    }

    fn release(&mut self) {
        self.settle();
        self.backend.stop();
        self.begin_anew();
        self.state.paused = false;
        self.ports.clear();
        self.hands_over = None;
    }

    fn is_idle(&self) -> bool {
        self.leftovers.is_empty() && !self.ports.any_held()
    }

    fn quiescing(&mut self) {
        self.hands_over = Some(Instant::now() + LAST_TRIES);
    }

    fn open(&mut self, channel: ChannelId, request: &OpenRequest) -> Result<(), Refused> {
        match request.subchannel {
            0 => {
                self.begin_anew();
                self.stale = self.state.paused;
                // Frames that have come for nobody are old, and there is no filter that wants them.
                self.receive.readable(None);
                self.renew();
            }
            number if number <= self.state.subchannels => self.owes_table = true,
            _ => return Err(Refused::default()),
        }
        self.ports.insert(request.subchannel, channel);
        Ok(())
    }

    fn lent(&mut self, channel: ChannelId, loan: u32) {
        if let Some(number) = self.ports.number(channel) {
            self.receive.blocks.lent(number, loan);
        }
    }

    fn restore(&mut self, channel: ChannelId, state: &[u8]) -> Result<(), String> {
        if self.ports.primary() != Some(channel) {
            return Err("a sub-channel has a state, and this build gives it none".into());
        }
        let link_up = self.setting.link_up;
        self.state.decode(state)?;
        if self.state.nic.link_up != link_up {
            // The guest knows what was true when its last answer came.
            self.state.nic.link_up = link_up;
            (self.owes_link, self.stale) = (true, true);
        }
        self.renew();
        Ok(())
    }

    fn resumed(&mut self, channel: ChannelId, channels: &mut Channels) {
        if self.ports.primary() == Some(channel) {
            self.share_again(channel, channels);
        }
    }

    fn gpadl_shared(
        &mut self,
        channel: ChannelId,
        gpadl: u32,
        pages: Result<SharedMemory, String>,
        channels: &mut Channels,
    ) {
        self.shared(channel, gpadl, pages, channels);
        self.answer_questions(channels);
    }

    fn fetches(&self, header: &PacketHeader, packet: &[u8]) -> u32 {
        if self.ram.is_some() || header.packet_type != PacketType::GPA_DIRECT {
            return 0;
        }
        let Ok(ranges) = header.gpa_ranges(packet, transmit::LIMITS) else { return 0 };
        let bytes: u64 = ranges.map(|range| u64::from(range.len)).sum();
        u32::try_from(bytes).ok().filter(|&bytes| bytes <= MAX_FETCH).unwrap_or(0)
    }

    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        let known = matches!(packet.header.packet_type, PacketType::IN_BAND | PacketType::GPA_DIRECT);
        let message = GuestMessage::parse(packet.header.payload(packet.bytes));
        let primary = self.ports.primary() == Some(request.channel());
        match message {
            Ok(GuestMessage::RndisPacket(envelope)) if known => match envelope.channel {
                ChannelType::Data => self.transmit(envelope.section, packet, request, channels),
                ChannelType::Control if primary => {
                    self.question(envelope.section, packet, request, channels);
                }
                ChannelType::Control => self.sent(request, Status::Fail, channels),
            },
            Ok(message) if known && primary => self.introduce(message, request, channels),
            // A driver frees what it has sent when it hears that it has been dealt with, well or not.
            Err(NvspError::ChannelType(_) | NvspError::TooShort { kind: kind::SEND_RNDIS_PACKET, .. })
            | Ok(GuestMessage::RndisPacket(_)) => {
                self.stats.malformed += 1;
                self.sent(request, Status::InvalidRndisPacket, channels);
            }
            _ => {
                self.stats.malformed += 1;
                self.answer(request, &[], channels);
            }
        }
    }

    fn reject(&mut self, packet: Option<Packet<'_>>, request: Request, channels: &mut Channels) {
        let message = packet.map(|packet| GuestMessage::parse(packet.header.payload(packet.bytes)));
        match (message, packet) {
            (Some(Ok(GuestMessage::RndisPacket(envelope))), Some(packet))
                if envelope.channel == ChannelType::Control =>
            {
                self.refuse_question(packet, request, channels);
            }
            _ => self.sent(request, Status::Fail, channels),
        }
    }

    fn returned(&mut self, channel: ChannelId, loan: u32, _payload: &[u8], _channels: &mut Channels) {
        // What waits for a block goes on in the next turn ([`Device::poll`]).
        if let Some(number) = self.ports.number(channel) {
            self.receive.blocks.returned(number, loan);
        }
    }

    fn room(&mut self, channel: ChannelId, channels: &mut Channels) {
        if let Some(number) = self.ports.number(channel) {
            self.lend_filled(number, channels);
        }
        self.answer_questions(channels);
    }

    fn submit(&mut self, channels: &mut Channels) {
        self.retry(false, channels);
    }

    fn wake_at(&self) -> Option<Instant> {
        self.transmit.again
    }

    fn ready(&mut self, source: usize, channels: &mut Channels) {
        self.receive.readable(Some(source));
        self.retry(true, channels);
        self.receive(channels);
    }

    fn poll(&mut self, channels: &mut Channels) -> bool {
        // What was delivered before this turn is visible by now.
        self.settle();
        let mut any = !self.leftovers.is_empty();
        for request in std::mem::take(&mut self.leftovers) {
            request.complete(channels, &[]);
        }
        self.tell_table(channels);
        if self.owes_link {
            self.answer_questions(channels);
        }
        any |= self.transmit.again.is_some() && self.retry(false, channels);
        // Between two sleeps nobody says that a frame has come: it is asked for, or it would wait as long as the guest is looked for.
        // In a stream of large ones it waits for others: what comes together is delivered together.
        if !self.receive.streams {
            self.receive.readable(None);
        }
        self.receive(channels) || any
    }

    fn control(&mut self, control: Control, channels: &mut Channels) {
        self.wanted(control, channels);
    }

    fn closing(&mut self, channel: ChannelId) {
        let Some((number, port)) = self.ports.remove(channel) else { return };
        self.receive.blocks.closing(number);
        self.forget_held(port.held);
        if let Some(filled) = port.filled {
            self.receive.blocks.give_back(filled.block());
        }
        if number == 0 {
            self.leftovers.extend(self.questions.drain(..).map(|question| question.request));
            self.leftovers.extend(self.sharing.drain(..).filter_map(|sharing| sharing.request));
            // Nothing of the guest's is touched any more.
            self.begin_anew();
            self.renew();
        }
    }
}
