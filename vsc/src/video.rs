//! The consumer of the synthetic video device: what `hyperv_fb` and `hyperv_drm` are in a kernel, with the checks of a
//! test.
//!
//! [`Video`] agrees on a version, asks for resolutions, says where video memory is to be and what of it is shown, and
//! tells what has been drawn. It answers what the device wants as the driver does that it [plays](Driver). An
//! acknowledgement that is invented, repeated or out of order is an error here; so is a completion, since no message asks
//! for one. [`wire`] has the messages.

pub mod wire;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmbus::PAGE_SIZE;
use vmbus::message::Offer;
use vmbus::packet::{Outgoing, PacketType};

use crate::channel::Channel;
use crate::client::{Client, OpenOptions};
use crate::error::Error;
use crate::platform::Platform;
pub use wire::{Features, FromDevice, Rect, Resolutions, Shape, Situation};

/// Bytes of each ring, as both drivers have it.
const RING: u32 = 256 << 10;

/// Which driver is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// `hyperv_fb`: repeats pointer and mode whenever the device changes what it wants.
    Framebuffer,
    /// `hyperv_drm`: repeats the pointer only, and that only if dirt is wanted.
    Drm,
}

/// How to use a device.
#[derive(Debug, Clone)]
pub struct VideoOptions {
    /// How to open its channel.
    pub open: OpenOptions,
    /// Versions to propose, in this order.
    pub versions: Vec<u32>,
    /// Which driver is played.
    pub driver: Driver,
    /// How long the device may take for an answer.
    pub timeout: Duration,
}

impl Default for VideoOptions {
    /// As Linux does it, whose patience is 10 s.
    fn default() -> Self {
        let pages = RING / PAGE_SIZE;
        Self {
            open: OpenOptions { to_host_pages: pages, to_guest_pages: pages, ..OpenOptions::default() },
            versions: vec![wire::VERSION_3_5, wire::VERSION_3_2],
            driver: Driver::Framebuffer,
            timeout: Duration::from_secs(10),
        }
    }
}

/// A video device.
pub struct Video<P: Platform> {
    channel: Channel<P>,
    driver: Driver,
    timeout: Duration,
    next_id: u64,
    version: u32,
    resolutions: Option<Resolutions>,
    vram: Option<u64>,
    situation: Option<Situation>,
    features: Features,
    feature_changes: u64,
    /// Contexts of mode changes that have not been acknowledged.
    unacknowledged: VecDeque<u64>,
}

impl<P: Platform> Video<P> {
    /// Opens a device, agrees on a version and asks what can be shown.
    pub fn open(client: &mut Client<P>, offer: &Offer, options: &VideoOptions) -> Result<Self, Error> {
        let channel = client.open(offer, &options.open)?;
        let mut video = Self::over(channel, options);
        video.agree(&options.versions)?;
        if video.version >= wire::VERSION_3_5 {
            video.ask_resolutions(wire::RESOLUTIONS as u8)?;
        }
        Ok(video)
    }

    /// Takes a channel that is open already, and says nothing.
    pub fn over(channel: Channel<P>, options: &VideoOptions) -> Self {
        Self {
            channel,
            driver: options.driver,
            timeout: options.timeout,
            next_id: 1,
            version: 0,
            resolutions: None,
            vram: None,
            situation: None,
            features: Features::default(),
            feature_changes: 0,
            unacknowledged: VecDeque::new(),
        }
    }

    /// Proposes versions until one is accepted.
    pub fn agree(&mut self, versions: &[u32]) -> Result<(), Error> {
        for &version in versions {
            if self.propose(version)? {
                self.version = version;
                return Ok(());
            }
        }
        Err(Error::Protocol("the device speaks none of the proposed synthvid versions".into()))
    }

    /// Proposes one version; whether it was accepted.
    pub fn propose(&mut self, version: u32) -> Result<bool, Error> {
        self.send(&wire::version_request(version))?;
        match self
            .await_message("version response", |message| matches!(message, FromDevice::Version { .. }))?
        {
            FromDevice::Version { accepted: 0, .. } => Ok(false),
            // One output is all that the drivers know of.
            FromDevice::Version { version: said, outputs: 1, .. } if said == version => Ok(true),
            other => Err(Error::Protocol(format!("version {version:#x} is answered with {other:?}"))),
        }
    }

    /// Asks what can be shown.
    pub fn ask_resolutions(&mut self, most: u8) -> Result<&Resolutions, Error> {
        self.send(&wire::resolution_request(most))?;
        let answer = self
            .await_message("resolution response", |message| matches!(message, FromDevice::Resolutions(_)))?;
        let FromDevice::Resolutions(found) = answer else {
            return Err(Error::Timeout("resolution response"));
        };
        let count = found.modes.len();
        if count == 0 || count > usize::from(most) || usize::from(found.preferred) >= count {
            return Err(Error::Protocol(format!(
                "{count} resolutions, number {} preferred",
                found.preferred
            )));
        }
        Ok(self.resolutions.insert(*found))
    }

    /// Says where video memory is to be, and waits until it is there.
    pub fn place(&mut self, gpa: u64) -> Result<(), Error> {
        match self.locate(gpa, Some(gpa))? {
            context if context == gpa => {
                self.vram = Some(gpa);
                Ok(())
            }
            context => {
                Err(Error::Protocol(format!("video memory at {gpa:#x} is acknowledged as {context:#x}")))
            }
        }
    }

    /// The same with a context that need not be the address, and perhaps without an address; the acknowledged context.
    pub fn locate(&mut self, context: u64, gpa: Option<u64>) -> Result<u64, Error> {
        self.send(&wire::vram_location(context, gpa))?;
        match self.await_message("VRAM location", |message| matches!(message, FromDevice::VramLocation(_)))? {
            FromDevice::VramLocation(context) => Ok(context),
            _ => Err(Error::Timeout("VRAM location")),
        }
    }

    /// Changes the mode as the drivers do, which do not wait for the acknowledgement. See [`Self::settle`].
    pub fn show(&mut self, situation: Situation) -> Result<(), Error> {
        self.situation = Some(situation);
        self.update_situation(0, &[situation])
    }

    /// The drivers' way of hiding the pointer and setting the mode: what they do first, and again when the device asks.
    pub fn present(&mut self, situation: Situation) -> Result<(), Error> {
        self.hide_pointer()?;
        self.show(situation)
    }

    /// Sends a mode change, whatever it says. It has to be acknowledged all the same.
    pub fn update_situation(&mut self, context: u64, situations: &[Situation]) -> Result<(), Error> {
        self.unacknowledged.push_back(context);
        self.send(&wire::situation_update(context, situations))
    }

    /// Waits until every mode change has been acknowledged.
    pub fn settle(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + self.timeout;
        while !self.unacknowledged.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.handle(left)?.is_none() {
                return Err(Error::Timeout("situation acknowledgement"));
            }
        }
        Ok(())
    }

    /// Waits until the device has said what it wants so many times in all.
    pub fn await_features(&mut self, times: u64) -> Result<Features, Error> {
        let deadline = Instant::now() + self.timeout;
        while self.feature_changes < times {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.handle(left)?.is_none() {
                return Err(Error::Timeout("feature change"));
            }
        }
        Ok(self.features)
    }

    /// Hides the pointer as the drivers do.
    pub fn hide_pointer(&mut self) -> Result<(), Error> {
        self.point(true, 0, 0)?;
        self.shape(&Shape::none())
    }

    /// Says where the pointer is.
    pub fn point(&mut self, visible: bool, x: i32, y: i32) -> Result<(), Error> {
        self.send(&wire::pointer_position(visible, x, y))
    }

    /// Says what the pointer looks like.
    pub fn shape(&mut self, shape: &Shape) -> Result<(), Error> {
        shape.messages().iter().try_for_each(|message| self.send(message))
    }

    /// Says what has been drawn, if the device wants to know; whether it does.
    pub fn damage(&mut self, rects: &[Rect]) -> Result<bool, Error> {
        if self.features.dirt {
            self.dirt(rects)?;
        }
        Ok(self.features.dirt)
    }

    /// Says what has been drawn.
    pub fn dirt(&mut self, rects: &[Rect]) -> Result<(), Error> {
        self.send(&wire::dirt(rects))
    }

    /// Writes pixels into video memory: rows of `pixels`, of `width` pixels each, from (`x`, `y`) on. Tells nobody.
    pub fn draw(&self, x: u32, y: u32, width: u32, pixels: &[u8]) -> Result<(), Error> {
        let (Some(vram), Some(situation)) = (self.vram, self.situation) else {
            return Err(Error::Protocol("nothing is shown yet".into()));
        };
        let bytes = u32::from(situation.depth).div_ceil(8);
        let start = vram + u64::from(situation.offset) + u64::from(x) * u64::from(bytes);
        for (row, line) in (u64::from(y)..).zip(pixels.chunks_exact((width * bytes) as usize)) {
            self.channel.platform().write(start + row * u64::from(situation.pitch), line);
        }
        Ok(())
    }

    /// Sends any bytes as a message.
    pub fn send(&mut self, message: &[u8]) -> Result<(), Error> {
        let id = self.next_id;
        self.next_id += 1;
        self.channel.send_waiting(&Outgoing::in_band(id, false), &[message], self.timeout)
    }

    /// Takes a message and does what the driver does for it. `None` if none comes in time.
    pub fn handle(&mut self, timeout: Duration) -> Result<Option<FromDevice>, Error> {
        let Some(packet) = self.channel.receive(timeout)? else { return Ok(None) };
        if packet.header.packet_type != PacketType::IN_BAND {
            return Err(Error::Protocol(format!("a message was due, not {:?}", packet.header)));
        }
        if packet.header.completion_requested() {
            return Err(Error::Protocol("the device wants a completion, which no driver sends".into()));
        }
        let message = FromDevice::parse(packet.payload())?;
        match message {
            FromDevice::Situation(context) => match self.unacknowledged.pop_front() {
                Some(sent) if sent == context => {}
                sent => {
                    return Err(Error::Protocol(format!(
                        "mode change {sent:?} is acknowledged as {context}"
                    )));
                }
            },
            FromDevice::Features(features) => self.features_changed(features)?,
            _ => {}
        }
        Ok(Some(message))
    }

    fn features_changed(&mut self, features: Features) -> Result<(), Error> {
        self.features = features;
        self.feature_changes += 1;
        match (self.driver, self.situation) {
            (Driver::Framebuffer, Some(situation)) => self.present(situation),
            (Driver::Drm, _) if features.dirt => self.hide_pointer(),
            _ => Ok(()),
        }
    }

    /// Waits for a message that `is` picks. Others are handled, but one that answers a question which nobody asked is an error.
    fn await_message(
        &mut self,
        what: &'static str,
        is: impl Fn(&FromDevice) -> bool,
    ) -> Result<FromDevice, Error> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.handle(left)?.ok_or(Error::Timeout(what))? {
                message if is(&message) => return Ok(message),
                FromDevice::Situation(_) | FromDevice::Features(_) => {}
                other => return Err(Error::Protocol(format!("nobody asked for {other:?}"))),
            }
        }
    }

    /// The version that is spoken.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What can be shown, if the device has said.
    pub fn resolutions(&self) -> Option<&Resolutions> {
        self.resolutions.as_ref()
    }

    /// What the device wants to be told.
    pub fn features(&self) -> Features {
        self.features
    }

    /// How often it has said so.
    pub fn feature_changes(&self) -> u64 {
        self.feature_changes
    }

    /// Where video memory is.
    pub fn vram(&self) -> Option<u64> {
        self.vram
    }

    /// What is shown.
    pub fn situation(&self) -> Option<Situation> {
        self.situation
    }

    /// The machine below.
    pub fn platform(&self) -> &Arc<P> {
        self.channel.platform()
    }

    /// The channel, for what a test does besides.
    pub fn channel(&mut self) -> &mut Channel<P> {
        &mut self.channel
    }

    /// The channel, to close it. What has not been acknowledged is lost, as drivers have it.
    pub fn into_channel(self) -> Channel<P> {
        self.channel
    }
}
