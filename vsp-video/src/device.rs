//! The device: a screen at the end of a synthvid channel.
//!
//! The guest agrees on a version, says where its video memory is to be, what its picture is, and from then on where it draws. What a
//! successor has to know is in [`State`]; what the console has to know, this process says anew whenever it begins to serve.
//!
//! * `location`: the video memory, and where the guest sees it.
//! * `features`: what the guest is to tell, and when the whole picture is looked at in case it has not told all.

mod features;
mod location;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Instant;

use logs::Ration;
use seat::video::{DeviceEnd, FromConsole};
use thiserror::Error;
use vsp::ipc::shm::ShmError;
use vsp::vmbus::guid::class;
use vsp::vmbus::packet::PacketType;
use vsp::{ChannelId, Channels, Device, Offer, OpenRequest, Packet, Refused, Request, SharedMemory};

use self::features::{Refresh, Wanted};
use self::location::Location;
use crate::cli::Setting;
use crate::console::{Console, Heard, Position};
use crate::modes::{self, ModeError};
use crate::pointer::Pointer;
use crate::state::{Situation, State};
use crate::wire::{GuestMessage, HostMessage, Resolution, Version};

/// Most requests at a time. All but those for a place of the video memory end at once.
const DEPTH: u32 = 16;
/// Most messages of the console in one go: it can send as fast as they are taken.
const EARFUL: usize = 64;

/// What guests can have logged as often as they like.
static NEWS: Ration = Ration::new();
static VERSIONS: Ration = Ration::new();

/// Why a screen cannot start.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The resolution is not possible.
    #[error("--resolution: {0}")]
    Mode(#[from] ModeError),
    /// There is no memory for the picture.
    #[error("no video memory: {0}")]
    Memory(#[from] ShmError),
}

/// The screen.
#[derive(Debug)]
pub struct Video {
    vram_megabytes: u16,
    resolutions: Vec<Resolution>,
    console: Console,
    state: State,
    channel: Option<ChannelId>,
    location: Location,
    pointer: Pointer,
    wanted: Wanted,
    refresh: Refresh,
    /// Requests of a channel that has closed meanwhile: they only have to end.
    leftovers: Vec<Request>,
    serving: bool,
    /// It says nothing to the console before it knows whether there is a picture, which may come with a predecessor's channel: the
    /// viewers keep theirs meanwhile.
    silent: bool,
    /// There is something to do though nobody has rung.
    attention: bool,
    /// When to listen to the console without having been rung.
    hear: Option<Instant>,
    /// Messages of the guest that made no sense.
    strange: u64,
    /// The same of the console's.
    nonsense: u64,
}

impl Video {
    /// Makes the screen, and its video memory. Nothing is opened afterwards.
    pub fn open(setting: Setting, seat: DeviceEnd) -> Result<Video, OpenError> {
        let bytes = u64::from(setting.vram_megabytes) << 20;
        let resolutions = modes::list(setting.preferred, bytes)?;
        let memory = SharedMemory::create("vsp-video-vram", bytes)?;
        Ok(Video {
            vram_megabytes: setting.vram_megabytes,
            resolutions,
            console: Console::new(seat),
            state: State::default(),
            channel: None,
            location: Location::new(memory),
            pointer: Pointer::default(),
            wanted: Wanted::default(),
            refresh: Refresh::default(),
            leftovers: Vec::new(),
            serving: false,
            silent: false,
            attention: false,
            hear: None,
            strange: 0,
            nonsense: 0,
        })
    }

    /// What is agreed on with the guest.
    pub fn state(&self) -> State {
        self.state
    }

    fn say(&mut self, message: GuestMessage<'_>, request: Request, channels: &mut Channels) {
        match message {
            GuestMessage::VersionRequest(version) => self.introduce(version, request, channels),
            _ if self.state.version.is_none() => {
                self.refuse(&"it has not asked for a version", request, channels)
            }
            GuestMessage::VramLocation { context, gpa } => {
                self.location.ask(request, context, gpa);
                self.locate(channels);
            }
            GuestMessage::SituationUpdate { context, situation } => {
                self.state.situation = situation;
                self.reply(request, &HostMessage::SituationUpdateAck { context }, channels);
                self.show();
                // hyperv_drm draws all of its picture after this, and does not say so.
                self.refresh.soon(Instant::now());
                self.attention = true;
            }
            GuestMessage::PointerPosition { visible, x, y } => {
                self.console.set_position(Position { x, y, visible });
                request.complete(channels, &[]);
            }
            GuestMessage::PointerShape(part) => {
                if let Some(shape) = self.pointer.add(&part) {
                    self.console.set_shape(shape);
                }
                request.complete(channels, &[]);
            }
            GuestMessage::Dirt(dirt) => {
                // Whoever begins to look looks at everything first.
                if self.wanted.is_watched() {
                    dirt.rects().for_each(|rect| self.console.draw(rect));
                }
                request.complete(channels, &[]);
            }
            GuestMessage::ResolutionRequest { most } => match self.state.version {
                Some(version) if version.has_resolutions() => {
                    let count = self.resolutions.len().min(most.into());
                    let resolutions = self.resolutions[..count].to_vec();
                    let response = HostMessage::ResolutionResponse { resolutions, preferred: 0 };
                    self.reply(request, &response, channels);
                }
                _ => self.refuse(&"its version has no list of resolutions", request, channels),
            },
        }
    }

    fn introduce(&mut self, version: Version, request: Request, channels: &mut Channels) {
        let accepted = version.is_spoken();
        if accepted {
            self.state.version = Some(version);
        }
        if let Some(times) = VERSIONS.another() {
            // If it is not, drivers ask for an older one.
            tracing::info!(%version, accepted, times, "the guest wants to speak synthvid");
        }
        self.reply(request, &HostMessage::VersionResponse { version, accepted }, channels);
    }

    /// Answers with a message, and keeps the state.
    fn reply(&mut self, request: Request, message: &HostMessage, channels: &mut Channels) {
        request.reply(channels, &[&message.encode()], Some(&self.state.encode()));
    }

    /// Ends a request that makes no sense. There is no message for that: the guest's driver waits, and gives up.
    fn refuse(&mut self, why: &dyn std::fmt::Display, request: Request, channels: &mut Channels) {
        self.strange += 1;
        if self.strange.is_power_of_two() {
            tracing::warn!(count = self.strange, "a message of the guest's makes no sense: {why}");
        }
        request.complete(channels, &[]);
    }

    /// Has the console shown what the guest says that its picture is.
    fn show(&mut self) {
        let has_vram = self.state.vram.is_some() && self.state.vram == self.location.mapped();
        let situation = self.state.situation.filter(|_| has_vram);
        let memory = self.location.memory();
        let surface = match situation.map(|situation| (situation, situation.surface(memory.len()))) {
            None => None,
            Some((_, Ok(surface))) => surface,
            Some((situation, Err(fault))) => {
                self.strange += 1;
                if self.strange.is_power_of_two() {
                    let Situation { width, height, depth_bits, pitch, offset, .. } = situation;
                    tracing::warn!(
                        count = self.strange,
                        "the guest's picture cannot be shown, its {fault} is impossible: \
                         {width}x{height} of {depth_bits} bits, {pitch} bytes a row, from byte {offset} on"
                    );
                }
                None
            }
        };
        self.console.set_picture(surface.map(|surface| (surface, memory.clone())));
    }

    fn listen(&mut self, now: Instant) {
        for _ in 0..EARFUL {
            match self.console.hear() {
                Heard::Nothing => {
                    self.hear = self.console.look_again();
                    return;
                }
                Heard::Message(FromConsole::Ask) => self.console.say_all(),
                Heard::Message(FromConsole::Watched(watched)) => {
                    if self.wanted.watch(watched, now) {
                        self.console.draw_all();
                        // What the guest draws before it knows that it has to tell is never told.
                        self.refresh.soon(now);
                    }
                }
                Heard::Nonsense(error) => {
                    self.nonsense += 1;
                    if self.nonsense.is_power_of_two() {
                        tracing::warn!(count = self.nonsense, "{error}");
                    }
                }
            }
        }
        // It may have said more than that.
        self.hear = Some(now);
    }

    /// The guest begins anew, or somebody else serves it.
    fn begin_anew(&mut self) {
        self.state = State::default();
        self.channel = None;
        self.leftovers.extend(self.location.reset());
        self.pointer = Pointer::default();
        self.wanted.reopen();
        self.refresh = Refresh::default();
        self.console.forget_pointer();
        self.show();
        self.attention = true;
    }

    /// The channel, if its guest is at the point where it may be told what it is to tell.
    fn listener(&self) -> Option<ChannelId> {
        self.channel.filter(|_| self.state.situation.is_some())
    }

    fn tell_guest(&mut self, now: Instant, channels: &mut Channels) {
        if let Some(channel) = self.listener() {
            self.wanted.tell(channel, now, channels);
        }
    }
}

impl Device for Video {
    fn offer(&self) -> Offer {
        Offer { class: class::VIDEO.to_string(), mmio_megabytes: self.vram_megabytes, ..Offer::default() }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.console.seat().as_raw_fd(), self.location.memory().as_fd().as_raw_fd()]
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.console.seat().as_raw_fd()]
    }

    fn depth(&self) -> u32 {
        DEPTH
    }

    fn fence(&mut self, predecessor: bool) -> Result<bool, String> {
        (self.serving, self.silent) = (true, predecessor);
        self.console.begin();
        // What was said to a predecessor, or while nobody served.
        self.hear = Some(Instant::now());
        Ok(true)
    }

    fn adopted(&mut self, _channels: &mut Channels) {
        (self.silent, self.attention) = (false, true);
    }

    fn release(&mut self) {
        self.begin_anew();
        self.location.forget();
        (self.serving, self.silent, self.hear) = (false, false, None);
    }

    fn is_idle(&self) -> bool {
        self.leftovers.is_empty()
    }

    fn memory(&mut self, gpa: u64, memory: SharedMemory, bytes: u64) {
        self.location.found(gpa, memory, bytes);
    }

    fn open(&mut self, channel: ChannelId, request: &OpenRequest) -> Result<(), Refused> {
        if request.subchannel != 0 || self.channel.is_some() {
            return Err(Refused::default());
        }
        self.channel = Some(channel);
        self.wanted.opened(Instant::now());
        Ok(())
    }

    fn restore(&mut self, _channel: ChannelId, state: &[u8]) -> Result<(), String> {
        self.state = State::decode(state).map_err(|error| error.to_string())?;
        Ok(())
    }

    fn resumed(&mut self, _channel: ChannelId, channels: &mut Channels) {
        self.location.resume(self.state.vram, channels);
        self.show();
        (self.silent, self.attention) = (false, true);
    }

    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        if packet.header.packet_type != PacketType::IN_BAND {
            return self.refuse(&"it is of another kind than synthvid's packets", request, channels);
        }
        match GuestMessage::parse(packet.header.payload(packet.bytes)) {
            Ok(message) => self.say(message, request, channels),
            Err(error) => self.refuse(&error, request, channels),
        }
    }

    fn memory_mapped(&mut self, gpa: u64, result: Result<(), String>, channels: &mut Channels) {
        self.located(gpa, result, channels);
    }

    fn room(&mut self, _channel: ChannelId, channels: &mut Channels) {
        self.tell_guest(Instant::now(), channels);
    }

    fn ready(&mut self, _source: usize, _channels: &mut Channels) {
        // A process that stands by has the same socket, and hears the same bell.
        if self.serving {
            self.hear = Some(Instant::now());
        }
    }

    fn submit(&mut self, channels: &mut Channels) {
        if !self.serving {
            return;
        }
        self.attention = false;
        for request in std::mem::take(&mut self.leftovers) {
            request.complete(channels, &[]);
        }
        let now = Instant::now();
        if self.hear.is_some_and(|then| then <= now) {
            self.listen(now);
        }
        self.tell_guest(now, channels);
        if self.refresh.is_due(now) && self.wanted.is_watched() {
            self.console.draw_all();
        }
        if !self.silent {
            self.console.tell(now);
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        if !self.serving {
            return None;
        }
        if self.attention || !self.leftovers.is_empty() {
            return Some(Instant::now());
        }
        let console = self.console.retry_at().filter(|_| !self.silent);
        // Nobody can be told without a situation, and with one there is something to do.
        let guest = self.wanted.due().filter(|_| self.listener().is_some());
        [console, guest, self.hear, self.refresh.due()].into_iter().flatten().min()
    }

    fn closing(&mut self, channel: ChannelId) {
        if self.channel == Some(channel) {
            if let Some(times) = NEWS.another() {
                tracing::info!(times, "the guest has no screen any more");
            }
            self.begin_anew();
        }
    }
}
