//! The device: a SCSI controller at the end of storvsc channels.
//!
//! The guest introduces itself on the primary channel; commands come by that one and by the sub-channels, and all go
//! into one ring to the disks. What a successor has to know is in [`crate::state`]; the commands in flight are the
//! runtime's to remember.
//!
//! * `commands`: from a packet to an answer, or to work
//! * `work`: what the disks are doing, and what comes after

mod commands;
mod work;

use std::os::fd::RawFd;
use std::sync::Arc;

use thiserror::Error;
use vsp::vmbus::guid::class;
use vsp::vmbus::packet::PacketType;
use vsp::{ChannelId, Channels, Device, GuestRam, Offer, OpenRequest, Packet, Refused, Request, Vm};

use self::work::Reset;
use crate::cli::DiskSpec;
use crate::disk::{self, DiskError};
use crate::job::Job;
use crate::lun::Lun;
use crate::scsi::Sense;
use crate::scsi::plan::MAX_TRANSFER;
use crate::state::{Phase, State};
use crate::uring::{Uring, UringError};
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
    /// There is no way to the disks.
    #[error(transparent)]
    Uring(#[from] UringError),
}

/// The controller.
#[derive(Debug)]
pub struct Controller {
    device: String,
    luns: Vec<Lun>,
    /// The numbers of all units, sorted, as REPORT LUNS tells them.
    numbers: Vec<u8>,
    uring: Uring<Job>,
    ram: Option<Arc<GuestRam>>,
    /// Sub-channels that this guest can have.
    max_subchannels: u16,
    primary: Option<ChannelId>,
    state: State,
    /// Open channels whose ledger has another state than this: the next answer changes that.
    stale: Vec<ChannelId>,
    open: Vec<ChannelId>,
    epoch: u64,
    resets: Vec<Reset>,
    /// Page lists that could not be used, for the log.
    bad_lists: u64,
    /// A command that this process dies of; for tests.
    crash_on: Option<u8>,
}

impl Controller {
    /// Opens the disks and the ring. Nothing is opened afterwards; no disk is ours yet.
    pub fn open(device: &str, specs: &[DiskSpec]) -> Result<Controller, OpenError> {
        let disks = disk::open_all(device, specs)?;
        let mut luns = Vec::with_capacity(disks.len());
        let mut files = Vec::with_capacity(disks.len());
        for disk in disks {
            let (lun, blocks, size) = (disk.lun, disk.unit.blocks, disk.unit.block_size);
            tracing::info!(
                lun,
                blocks,
                block_size = size,
                read_only = disk.unit.read_only,
                "{}",
                disk.path.display()
            );
            let (lun, file) = Lun::new(disk);
            luns.push(lun);
            files.push(file);
        }
        let numbers = luns.iter().map(|lun| lun.lun).collect();
        Ok(Controller {
            device: device.to_owned(),
            luns,
            numbers,
            uring: Uring::new(files)?,
            ram: None,
            max_subchannels: 0,
            primary: None,
            state: State::default(),
            stale: Vec::new(),
            open: Vec::new(),
            epoch: 0,
            resets: Vec::new(),
            bad_lists: 0,
            crash_on: None,
        })
    }

    /// Has the process die of a command, as a bug would have it; for tests.
    pub fn crashing_on(self, opcode: Option<u8>) -> Controller {
        Controller { crash_on: opcode, ..self }
    }

    /// Answers a request. If the ledger of its channel has another state than ours, it changes in the same step.
    fn answer(&mut self, request: Request, answer: &[u8], channels: &mut Channels) {
        match self.stale.iter().position(|stale| *stale == request.channel()) {
            None => request.complete(channels, answer),
            Some(index) => {
                self.stale.swap_remove(index);
                request.complete_with_state(channels, answer, &self.state.encode());
            }
        }
    }

    /// What is in the ledgers is not true any more.
    fn state_changed(&mut self) {
        self.stale.clone_from(&self.open);
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
        let mut all = self.uring.descriptors();
        all.extend(self.luns.iter().filter_map(Lun::descriptor));
        all
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.uring.source()]
    }

    fn depth(&self) -> u32 {
        DEPTH
    }

    fn attached(&mut self, vm: Vm) -> Result<(), String> {
        let ram = vm.ram.ok_or("a SCSI controller needs guest RAM: its device slot has to say so")?;
        self.ram = Some(Arc::new(ram));
        self.max_subchannels = vm.vps.saturating_sub(1).min(MAX_SUBCHANNELS.into()) as u16;
        self.luns.iter_mut().for_each(|lun| lun.identify(vm.memory, &self.device));
        Ok(())
    }

    fn resource(&self) -> String {
        let waiting = self.luns.iter().find(|lun| !lun.is_ours());
        waiting.map_or_else(|| "its disks".into(), |lun| lun.path.display().to_string())
    }

    fn fence(&mut self, _predecessor: bool) -> Result<bool, String> {
        for (lun, file) in self.luns.iter_mut().zip(self.uring.files()) {
            if !lun.take(file)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn release(&mut self) {
        self.luns.iter_mut().zip(self.uring.files()).for_each(|(lun, file)| lun.release(file));
        (self.primary, self.state) = (None, State::default());
        self.open.clear();
        self.stale.clear();
    }

    fn is_idle(&self) -> bool {
        self.uring.in_flight() == 0
    }

    fn open(&mut self, channel: ChannelId, request: &OpenRequest) -> Result<(), Refused> {
        match request.subchannel {
            0 => {
                self.primary = Some(channel);
                // The guest begins anew, and with what is on the disk now.
                self.state = State::default();
            }
            number if number <= self.max_subchannels => {}
            _ => return Err(Refused::default()),
        }
        self.open.push(channel);
        if self.state != State::default() {
            self.stale.push(channel);
        }
        Ok(())
    }

    fn restore(&mut self, channel: ChannelId, state: &[u8]) -> Result<(), String> {
        let theirs = State::decode(state)?;
        let lost_writes = self.state.lost_writes.union(theirs.lost_writes);
        let phase = if self.primary == Some(channel) { theirs.phase } else { self.state.phase };
        self.state = State { phase, lost_writes };
        // Whatever each ledger has: with its next answer it has this.
        self.state_changed();
        Ok(())
    }

    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        let Some(message) = Message::parse(payload(packet)) else {
            return self.answer(request, &wire::answer(status::INVALID_PARAMETER), channels);
        };
        let ready = self.state.phase == Phase::Ready;
        match message {
            Message::Execute(srb) if ready => self.execute(srb, packet, request, channels),
            Message::Reset if ready && self.uring.in_flight() > 0 => {
                self.epoch += 1;
                self.resets.push(Reset { request, epoch: self.epoch, waiting: self.uring.in_flight() });
            }
            Message::Reset if ready => self.answer(request, &wire::answer(status::SUCCESS), channels),
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

    fn submit(&mut self, channels: &mut Channels) {
        self.pump(channels);
    }

    fn ready(&mut self, _source: usize, channels: &mut Channels) {
        self.pump(channels);
    }

    fn closing(&mut self, channel: ChannelId) {
        self.open.retain(|open| *open != channel);
        self.stale.retain(|stale| *stale != channel);
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
