//! The device: a SCSI controller at the end of storvsc channels.
//!
//! The guest introduces itself on the primary channel; commands come by that one and by the sub-channels, and all go
//! into one ring to the disks. What a successor has to know is in [`crate::state`]; the commands in flight are the
//! runtime's to remember.
//!
//! * `commands`: from a packet to an answer, or to work
//! * `remember`: what outlives the process
//! * `hotplug`: disks that come, go and grow meanwhile
//! * `work`: what the disks are doing, and what comes after

mod commands;
mod hotplug;
mod remember;
mod work;

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;
use vsp::vmbus::guid::class;
use vsp::vmbus::packet::PacketType;
use vsp::{ChannelId, Channels, Control, Device, GuestRam, Offer, OpenRequest, Packet, Refused, Request, Vm};

use self::hotplug::Removal;
use self::remember::News;
use self::work::{Command, Reset};
use crate::cli::DiskSpec;
use crate::disk::{self, DiskError};
use crate::engine::Engine;
use crate::identity::Identity;
use crate::scsi::Sense;
use crate::scsi::plan::MAX_TRANSFER;
use crate::state::{Phase, State};
use crate::uring::UringError;
use crate::wire::{self, Message, Outcome, Properties, status};

/// Channels besides the primary one: Linux wants one a VP but for the first, and a VM has at most 64.
const MAX_SUBCHANNELS: u16 = 63;
/// Most requests of a channel: twice what Linux has in flight in a ring of its usual size. The ring to the disks takes
/// those of 32 channels without detours ([`crate::uring`]).
const DEPTH: u32 = 128;

/// Why a controller cannot start.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A disk cannot be served.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A block device is one disk.
    #[error("with --vhost-user there is exactly one --disk, not {0}: start one process a disk")]
    OneDisk(usize),
    /// There is no way to the disks.
    #[error(transparent)]
    Uring(#[from] UringError),
}

/// The controller.
#[derive(Debug)]
pub struct Controller {
    device: String,
    engine: Engine<Command>,
    /// The numbers of all units, sorted, as REPORT LUNS tells them.
    numbers: Vec<u8>,
    ram: Option<Arc<GuestRam>>,
    /// Sub-channels that this guest can have.
    max_subchannels: u16,
    primary: Option<ChannelId>,
    state: State,
    /// Open channels whose ledger has another state than this: the next answer changes that.
    stale: Vec<ChannelId>,
    /// What one ledger has and the others have not.
    news: Option<News>,
    open: Vec<ChannelId>,
    epoch: u64,
    resets: Vec<Reset>,
    /// Counts what the runtime was told to publish.
    round: u64,
    /// The guest has the answers of all rounds before this one.
    answered: u64,
    /// When to look whether it has, if it had no room.
    ask_again: Instant,
    /// What is under way has to end, whether or not the guest takes its answers.
    hands_over: bool,
    /// Who waits for units to be gone.
    removals: Vec<Removal>,
    /// The guest is to look what units there are, and has not been told.
    owes_notice: bool,
    /// The guest has sent this process a command.
    has_looked: bool,
    /// No file that is written to may be larger, in bytes.
    file_limit: u64,
    /// Tells the VM apart from others.
    memory: u64,
    /// Page lists that could not be used, for the log.
    bad_lists: u64,
    /// A command that this process dies of; for tests.
    crash_on: Option<u8>,
}

impl Controller {
    /// Opens the disks and the ring. Nothing is opened afterwards; no disk is ours yet.
    pub fn open(device: &str, specs: &[DiskSpec]) -> Result<Controller, OpenError> {
        let disks = disk::open_all(device, specs)?;
        for disk in &disks {
            let (lun, blocks, size) = (disk.lun, disk.unit.blocks, disk.unit.block_size);
            tracing::info!(
                lun,
                blocks,
                block_size = size,
                read_only = disk.unit.read_only,
                "{}",
                disk.path.display()
            );
        }
        let engine = Engine::new(disks)?;
        let numbers = engine.luns.iter().map(|lun| lun.lun).collect();
        Ok(Controller {
            device: device.to_owned(),
            engine,
            numbers,
            ram: None,
            max_subchannels: 0,
            primary: None,
            state: State::default(),
            stale: Vec::new(),
            news: None,
            open: Vec::new(),
            epoch: 0,
            resets: Vec::new(),
            round: 0,
            answered: 0,
            ask_again: Instant::now(),
            hands_over: false,
            removals: Vec::new(),
            owes_notice: false,
            has_looked: false,
            file_limit: disk::file_limit()?,
            memory: 0,
            bad_lists: 0,
            crash_on: None,
        })
    }

    /// Has the process die of a command, as a bug would have it; for tests.
    pub fn crashing_on(self, opcode: Option<u8>) -> Controller {
        Controller { crash_on: opcode, ..self }
    }

    /// What a packet other than a command is answered with.
    fn introduce(&mut self, message: &Message, channels: &mut Channels) -> [u8; wire::PACKET_LEN] {
        let phase = self.state.phase;
        let (phase, answer) = match (message, phase) {
            (Message::Begin, _) => (Phase::Begun, wire::answer(status::SUCCESS)),
            (Message::Version(version), Phase::Begun) if wire::VERSIONS.contains(version) => {
                (Phase::Versioned, wire::answer(status::SUCCESS))
            }
            (Message::Version(_), Phase::Begun) => (Phase::Begun, wire::answer(status::REVISION_MISMATCH)),
            (Message::Properties, Phase::Versioned | Phase::Ready) => {
                let properties =
                    Properties { max_subchannels: self.max_subchannels, max_transfer_bytes: MAX_TRANSFER };
                (phase, wire::answer_properties(properties))
            }
            (Message::SubChannels(_), _) if self.max_subchannels == 0 => {
                (phase, wire::answer(status::NOT_SUPPORTED))
            }
            (Message::SubChannels(count), Phase::Ready) if *count > self.max_subchannels => {
                (phase, wire::answer(status::INVALID_PARAMETER))
            }
            (Message::SubChannels(count), Phase::Ready) => {
                // Again, if a predecessor has done it: those that are offered already stay as they are.
                channels.offer_subchannels(*count);
                (phase, wire::answer(status::SUCCESS))
            }
            (Message::End, Phase::Versioned) => (Phase::Ready, wire::answer(status::SUCCESS)),
            (Message::FibreChannel, phase) => (phase, wire::answer(status::NOT_SUPPORTED)),
            (Message::Unknown(_), phase) => (phase, wire::answer(status::INVALID_PARAMETER)),
            (_, phase) => (phase, wire::answer(status::INVALID_DEVICE_STATE)),
        };
        if phase != self.state.phase {
            self.state.phase = phase;
            self.state_changed();
        }
        answer
    }
}

impl Device for Controller {
    fn offer(&self) -> Offer {
        Offer { class: class::SCSI.to_string(), max_subchannels: MAX_SUBCHANNELS, ..Offer::default() }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        self.engine.descriptors()
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.engine.uring.source()]
    }

    fn depth(&self) -> u32 {
        DEPTH
    }

    fn attached(&mut self, vm: Vm) -> Result<(), String> {
        let ram = vm.ram.ok_or("a SCSI controller needs guest RAM: its device slot has to say so")?;
        self.ram = Some(Arc::new(ram));
        self.max_subchannels = vm.vps.saturating_sub(1).min(MAX_SUBCHANNELS.into()) as u16;
        self.memory = vm.memory;
        self.engine.identify(vm.memory, &self.device);
        Ok(())
    }

    fn resource(&self) -> String {
        self.engine.resource()
    }

    fn fence(&mut self, _predecessor: bool) -> Result<bool, String> {
        self.engine.fence()
    }

    fn release(&mut self) {
        self.engine.release();
        self.hands_over = false;
        (self.primary, self.state) = (None, State::default());
        self.open.clear();
        self.stale.clear();
        self.news = None;
    }

    fn is_idle(&self) -> bool {
        self.engine.under_way == 0
    }

    fn quiescing(&mut self) {
        self.hands_over = true;
        self.engine.hurry_all(|_| true);
    }

    fn wake_at(&self) -> Option<Instant> {
        let held = self.engine.awaits_answers().then_some(self.ask_again);
        self.engine.wake_at().into_iter().chain(held).min()
    }

    fn open(&mut self, channel: ChannelId, request: &OpenRequest) -> Result<(), Refused> {
        match request.subchannel {
            0 => {
                self.primary = Some(channel);
                self.has_looked = false;
                // The guest begins anew, and with what is on the disk now. That is a loss of power to its units.
                self.state = State::default();
                self.news = None;
                for lun in self.engine.luns.iter_mut().filter(|lun| !lun.gone) {
                    lun.begin_anew();
                    self.state.identities.set(lun.lun, lun.identity);
                }
            }
            number if number <= self.max_subchannels => {}
            _ => return Err(Refused::default()),
        }
        self.open.push(channel);
        self.stale.push(channel);
        Ok(())
    }

    fn restore(&mut self, channel: ChannelId, state: &[u8]) -> Result<(), String> {
        let theirs = State::decode(state)?;
        if self.primary == Some(channel) {
            self.state.phase = theirs.phase;
        }
        self.state.renew(theirs);
        for lun in self.engine.luns.iter_mut().filter(|lun| !lun.gone) {
            // What the guest knows is true, until it begins anew.
            let known = self.state.identities.of(lun.lun);
            lun.recognise(known);
            if known == Identity::UNKNOWN {
                self.state.identities.set(lun.lun, lun.identity);
            }
        }
        // Whether its driver has got further than the introduction, no ledger says: its next command does.
        // Whatever each ledger has: with its next answer it has this.
        self.state_changed();
        Ok(())
    }

    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        self.spread_news(channels);
        self.note_answered(channels);
        let Some(message) = Message::parse(payload(packet)) else {
            return self.answer(request, &wire::answer(status::INVALID_PARAMETER), channels);
        };
        let ready = self.state.phase == Phase::Ready;
        match message {
            Message::Execute(srb) if ready => self.execute(srb, packet, request, channels),
            Message::Reset(address) if ready => self.reset(address, request, channels),
            _ if self.primary != Some(request.channel()) => {
                self.answer(request, &wire::answer(status::INVALID_DEVICE_STATE), channels);
            }
            other => {
                let answer = self.introduce(&other, channels);
                self.answer(request, &answer, channels);
            }
        }
    }

    fn reject(&mut self, packet: Option<Packet<'_>>, request: Request, channels: &mut Channels) {
        let sense = Sense::INTERNAL_FAILURE.to_fixed();
        let answer = match packet.map(|packet| Message::parse(payload(packet))) {
            Some(Some(Message::Execute(srb))) => wire::answer_command(&srb, Outcome::Check(&sense)),
            Some(_) => wire::answer(status::UNSUCCESSFUL),
            None => wire::answer_unknown(&sense),
        };
        self.answer(request, &answer, channels);
    }

    fn batch(&self) -> usize {
        self.engine.batch()
    }

    fn submit(&mut self, channels: &mut Channels) {
        self.spread_news(channels);
        self.note_answered(channels);
        self.pump(channels);
        self.submit_news();
        self.round += 1;
    }

    fn ready(&mut self, _source: usize, channels: &mut Channels) {
        self.pump(channels);
    }

    fn poll(&mut self, channels: &mut Channels) -> bool {
        let ended = self.engine.uring.has_ended();
        if ended {
            self.pump(channels);
        }
        ended
    }

    fn control(&mut self, control: Control, channels: &mut Channels) {
        self.obey(control, channels);
    }

    fn closing(&mut self, channel: ChannelId) {
        self.open.retain(|open| *open != channel);
        self.stale.retain(|stale| *stale != channel);
        self.engine.hurry_all(|command| command.request.channel() == channel);
        if self.primary == Some(channel) {
            (self.primary, self.state.phase) = (None, Phase::Opened);
        }
    }
}

/// The part of a packet that the protocol is about.
fn payload(packet: Packet<'_>) -> &[u8] {
    match packet.header.packet_type {
        PacketType::IN_BAND | PacketType::GPA_DIRECT => packet.header.payload(packet.bytes),
        _ => &[],
    }
}
