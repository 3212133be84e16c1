//! One person who looks: a connection, what its viewer wants and has been told, and the keys that it holds.
//!
//! A viewer is hostile. It can make this process do work of its own connection's, bounded each turn, and nothing else.

mod end;
mod keys;
mod news;
mod sender;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use seat::keyboard::Leds;
use seat::shape::Shape;

pub use end::End;
pub use sender::Sent;

use self::keys::Keys;
use self::sender::Sender;
use crate::damage::{Damage, Rect};
use crate::encode::Encoder;
use crate::input::{Holder, Keyboard, Mouse};
use crate::rfb::encodings::Encodings;
use crate::rfb::handshake::{Access, Handshake, Step, World};
use crate::rfb::message::{self, ClientMessage};
use crate::rfb::password::CHALLENGE;
use crate::rfb::pixel::PixelFormat;
use crate::rfb::{Fault, reply};
use crate::screen::Picture;
use crate::stream::{Stream, TlsConfig};

/// Bytes that are read at once, and how often before others get their turn.
const CHUNK: usize = 16 << 10;
const READS: usize = 4;
/// How long a handshake may take until it is agreed how a viewer shows who it is: that is between programs.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// How much longer where a person may be asked: viewers ask for passwords and about certificates while they are connected.
const PEOPLE: Duration = Duration::from_secs(120);
/// Bytes of answers that may wait; who asks on without reading them is cut off.
const MAX_ANSWERS: usize = 64 << 10;

/// What the guest's pointer looks like.
#[derive(Clone, Debug, Default)]
pub struct Pointer {
    /// `None`: no guest has said.
    pub shape: Option<Shape>,
    /// It is to be seen.
    pub visible: bool,
    /// Another one after each change.
    pub version: u64,
}

/// What all viewers share.
#[derive(Debug)]
pub struct Room<'a> {
    /// The guest's.
    pub keyboard: &'a mut Keyboard,
    /// The guest's.
    pub mouse: &'a mut Mouse,
    /// The guest's picture.
    pub picture: &'a Picture,
    /// It is as new as can be. One that is not will be in a moment, and updates wait for that.
    pub fresh: bool,
    /// The guest's pointer.
    pub pointer: &'a Pointer,
    /// For handshakes.
    pub world: World<'a>,
    /// For those who want it.
    pub tls: Option<&'a TlsConfig>,
    /// The VM's name.
    pub name: &'a str,
    /// There are as many viewers as there may be.
    pub full: bool,
}

/// Where a connection is.
#[derive(Debug)]
enum Phase {
    Handshake(Box<Handshake>),
    /// TLS begins as soon as everything has been sent.
    StartTls(Box<Handshake>),
    Running,
}

/// One viewer.
#[derive(Debug)]
pub struct Viewer {
    holder: Holder,
    /// Whoever it is had shown that he may look before he came.
    is_private: bool,
    stream: Option<Stream>,
    fd: RawFd,
    phase: Phase,
    begun: Instant,
    input: Vec<u8>,
    /// Bytes of the viewer's that are read over.
    skip: usize,
    readable: bool,
    sender: Sender,
    /// To be sent when no update is under way.
    answers: Vec<u8>,
    encoder: Encoder,
    encodings: Encodings,
    /// To be used from the next update on.
    next_format: Option<PixelFormat>,
    /// The picture's size as the viewer knows it.
    size: (u32, u32),
    damage: Damage,
    /// It waits for an update of this part,
    request: Option<Rect>,
    /// and of this part's pixels even if they have not changed.
    refresh: Option<Rect>,
    told: Told,
    keys: Keys,
}

/// What the viewer has been told besides pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    pointer: Option<u64>,
    leds: Option<Leds>,
    qemu_key: bool,
    screens: bool,
    /// It has asked for another size and has to be told that it cannot have it.
    owes_refusal: bool,
}

impl Viewer {
    /// Begins to speak with whoever has come.
    pub fn new(
        stream: Stream,
        access: Access,
        challenge: [u8; CHALLENGE],
        holder: Holder,
        now: Instant,
    ) -> Viewer {
        let mut sender = Sender::new();
        let handshake = Handshake::new(access, challenge, sender.out());
        Viewer {
            holder,
            is_private: stream.is_private(),
            fd: stream.as_raw_fd(),
            stream: Some(stream),
            phase: Phase::Handshake(Box::new(handshake)),
            begun: now,
            input: Vec::new(),
            skip: 0,
            readable: true,
            sender,
            answers: Vec::new(),
            encoder: Encoder::new(),
            encodings: Encodings::BASIC,
            next_format: None,
            size: (0, 0),
            damage: Damage::new(0, 0),
            request: None,
            refresh: None,
            told: Told::default(),
            keys: Keys::default(),
        }
    }

    /// The descriptor to watch.
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// Until when it has to have come further.
    pub fn deadline(&self) -> Option<Instant> {
        let asks = match &self.phase {
            Phase::Handshake(handshake) => handshake.may_ask_people(),
            Phase::StartTls(_) => true,
            Phase::Running => return None,
        };
        Some(self.begun + HANDSHAKE + if asks { PEOPLE } else { Duration::ZERO })
    }

    /// Whether it looks at the picture.
    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// Whether it has still to show that it may look.
    pub fn is_stranger(&self) -> bool {
        !self.is_private && !self.is_running()
    }

    /// Something happened on its descriptor.
    pub fn wake(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        // A TLS handshake that cannot write may wait for something to read.
        if readable || writable {
            self.sender.unblock();
        }
    }

    /// Whether it waits for news of the picture.
    pub fn waits(&self) -> bool {
        self.is_running() && self.request.is_some() && !self.sender.is_updating()
    }

    /// Whether it has something to do without an event.
    pub fn is_ready(&self) -> bool {
        self.readable || self.sender.is_ready()
    }

    /// Something of the picture has changed.
    pub fn changed(&mut self, damage: &Damage) {
        if self.is_running() {
            self.damage.add_from(damage);
        }
    }

    /// The picture has another size. Who cannot follow sees what fits.
    pub fn resized(&mut self) {
        self.damage.add_all();
    }

    /// Lets go of all it holds.
    pub fn release(&mut self, keyboard: &mut Keyboard, mouse: &mut Mouse) {
        self.keys.release_all(self.holder, keyboard);
        mouse.release_all(self.holder);
    }

    /// Reads and obeys, as far as is fair.
    pub fn hear(&mut self, room: &mut Room<'_>) -> Result<(), End> {
        if self.deadline().is_some_and(|deadline| room.world.now >= deadline) {
            return Err(End::Late);
        }
        for _ in 0..READS {
            if !self.readable {
                break;
            }
            let result = self.read(room);
            if matches!(result, Err(End::Fault(_) | End::Full)) {
                // It is told why if it listens.
                let _ = self.pump(room.picture);
            }
            result?;
        }
        Ok(())
    }

    /// Answers, and sends news of the picture, as far as is fair.
    pub fn speak(&mut self, room: &Room<'_>) -> Result<(), End> {
        // The first time an update may end that the next one has waited for.
        for _ in 0..2 {
            if self.sender.is_idle() {
                self.sender.out().append(&mut self.answers);
            }
            self.compose(room);
            if self.sender.is_ready() && self.pump(room.picture)? != Sent::All {
                return Ok(());
            }
        }
        if matches!(self.phase, Phase::StartTls(_)) && self.sender.is_idle() {
            self.start_tls(room)?;
        }
        Ok(())
    }

    fn pump(&mut self, picture: &Picture) -> Result<Sent, End> {
        let stream = self.stream.as_mut().ok_or(End::Closed)?;
        Ok(self.sender.pump(stream, &mut self.encoder, picture)?)
    }

    fn start_tls(&mut self, room: &Room<'_>) -> Result<(), End> {
        let Phase::StartTls(handshake) = &mut self.phase else { return Ok(()) };
        let config = room.tls.ok_or(Fault::Security)?;
        let stream = self.stream.take().ok_or(End::Closed)?;
        self.stream = Some(stream.into_tls(config, &self.input)?);
        self.input.clear();
        handshake.begin_inside(self.sender.out());
        let handshake = handshake.clone();
        self.phase = Phase::Handshake(handshake);
        self.readable = true;
        Ok(())
    }

    fn read(&mut self, room: &mut Room<'_>) -> Result<(), End> {
        // What comes now is TLS', which begins when everything has been sent.
        if matches!(self.phase, Phase::StartTls(_)) {
            return Ok(());
        }
        let stream = self.stream.as_mut().ok_or(End::Closed)?;
        let mut chunk = [0; CHUNK];
        match stream.read(&mut chunk) {
            Ok(0) => Err(End::Closed),
            Ok(len) => self.receive(&chunk[..len], room),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The viewer has said this.
    fn receive(&mut self, bytes: &[u8], room: &mut Room<'_>) -> Result<(), End> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(&bytes[skipped..]);
        let mut at = 0;
        let result = loop {
            match self.receive_one(&input[at..], room) {
                Ok(0) => break Ok(()),
                Ok(taken) => at += taken.min(input.len() - at),
                Err(end) => break Err(end),
            }
        };
        input.drain(..at);
        self.input = input;
        result
    }

    /// Takes one message, or a step of the handshake: how many bytes that were; 0: none.
    fn receive_one(&mut self, bytes: &[u8], room: &mut Room<'_>) -> Result<usize, End> {
        match &mut self.phase {
            Phase::StartTls(_) => Ok(0),
            Phase::Handshake(handshake) => {
                match handshake.receive(bytes, &mut room.world, self.sender.out())? {
                    Step::More => Ok(0),
                    Step::Taken(taken) => Ok(taken),
                    Step::StartTls(taken) => {
                        self.phase = Phase::StartTls(handshake.clone());
                        Ok(taken)
                    }
                    Step::Done { taken, alone: _ } => {
                        if room.full {
                            return Err(End::Full);
                        }
                        self.size = room.picture.size();
                        self.damage = Damage::new(self.size.0, self.size.1);
                        reply::server_init(self.size, room.name, self.sender.out());
                        self.phase = Phase::Running;
                        Ok(taken)
                    }
                }
            }
            Phase::Running => match message::parse(bytes)? {
                None => Ok(0),
                Some((ClientMessage::CutText(len), taken)) => {
                    let skipped = (len as usize).min(bytes.len() - taken);
                    self.skip = len as usize - skipped;
                    Ok(taken + skipped)
                }
                Some((message, taken)) => {
                    self.obey(message, room)?;
                    Ok(taken)
                }
            },
        }
    }

    fn obey(&mut self, message: ClientMessage, room: &mut Room<'_>) -> Result<(), End> {
        match message {
            // An update that is under way goes on as it began.
            ClientMessage::SetPixelFormat(format) => {
                self.next_format = Some(format);
                // A pointer is made of pixels as well.
                self.told.pointer = None;
            }
            ClientMessage::SetEncodings(list) => {
                self.encodings = Encodings::of(&list);
                self.encoder.set_level(self.encodings.level);
                self.told = Told { owes_refusal: self.told.owes_refusal, ..Told::default() };
            }
            ClientMessage::UpdateRequest { incremental, x, y, width, height } => {
                let [x, y, width, height] = [x, y, width, height].map(u32::from);
                let asked = Rect { x1: x, y1: y, x2: x + width, y2: y + height };
                // Nothing of the picture is still a request for all that is no pixel.
                let clip = Rect::whole(self.size.0, self.size.1).and_then(|whole| whole.intersection(asked));
                let clip = clip.unwrap_or(Rect { x1: 0, y1: 0, x2: 1, y2: 1 });
                if !incremental {
                    self.refresh = Some(self.refresh.map_or(clip, |before| before.union(clip)));
                }
                self.request = Some(self.request.map_or(clip, |before| before.union(clip)));
            }
            ClientMessage::Key { down, keysym, code } => {
                self.keys.event(self.holder, room.keyboard, down, keysym, code);
            }
            ClientMessage::Pointer { buttons, x, y } => {
                // Who cannot follow another size sees what fits of the picture, pixel by pixel.
                let size = if self.encodings.can_resize() { self.size } else { room.picture.size() };
                room.mouse.pointer(self.holder, (x, y), size, buttons);
            }
            ClientMessage::SetDesktopSize => self.told.owes_refusal = true,
            ClientMessage::Fence { flags, payload } => {
                const REQUEST: u32 = 1 << 31;
                const KNOWN: u32 = 7;
                if flags & REQUEST != 0 {
                    reply::fence(flags & KNOWN, &payload, &mut self.answers);
                }
            }
            ClientMessage::CutText(_) => {}
        }
        if self.answers.len() > MAX_ANSWERS { Err(End::Deaf) } else { Ok(()) }
    }
}
