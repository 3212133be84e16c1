//! A viewer: a client of the RFB protocol (RFC 6143, and the extensions of the community's `rfbproto`), written apart from
//! the server that it tests. What it has decoded is a [`Picture`].

pub mod encoding;
mod rects;
mod security;

use std::cell::RefCell;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::picture::{Area, Format, Picture};
use super::tight;
use super::wire::{Stream, Wire};
use super::zrle::Inflate;
use crate::steps::LIMIT;

/// How a viewer begins.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// What it knows.
    pub encodings: &'a [i32],
    /// How it wants its pixels.
    pub format: Format,
    /// Its password, if it has one.
    pub password: Option<&'a str>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { encodings: encoding::ALL, format: Format::RGB32, password: None }
    }
}

/// A pointer that a viewer draws.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Which pixel points.
    pub hot: (u32, u32),
    /// Red, green, blue, opacity; what is not seen at all is four zeroes.
    pub pixels: Vec<[u8; 4]>,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A part of the picture, in so many rectangles.
    Update(usize),
    /// A bell.
    Bell,
    /// Text.
    Cut(Vec<u8>),
    /// A number that comes back, or wants to.
    Fence(u32, Vec<u8>),
    /// Updates are asked for again.
    EndOfContinuous,
}

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Updates.
    pub updates: u64,
    /// Rectangles with pixels.
    pub rects: u64,
    /// Pixels.
    pub pixels: u64,
    /// Times that the size was told.
    pub sizes: u64,
}

/// A connected viewer.
#[derive(Debug)]
pub struct Viewer {
    wire: Wire,
    format: Format,
    /// Pixels in the viewer's format.
    bytes: Vec<u8>,
    width: u32,
    height: u32,
    inflate: Inflate,
    tight: tight::Streams,
    /// The picture's name.
    pub name: String,
    /// The pointer, if there is one.
    pub cursor: Option<Cursor>,
    /// Lamps: scroll lock, num lock, caps lock.
    pub leds: Option<u8>,
    /// The server takes keys by their codes.
    pub takes_codes: bool,
    /// The server said that it may send updates that nobody asks for.
    pub continuous: bool,
    /// What has happened.
    pub counts: Counts,
    /// It has asked for a whole picture once.
    asked: bool,
    /// What was decoded last, and from what.
    known: RefCell<(Vec<u8>, Picture)>,
}

impl Viewer {
    /// Connects to a Unix socket.
    pub fn connect(socket: &Path, options: &Options<'_>) -> anyhow::Result<Self> {
        let stream = std::os::unix::net::UnixStream::connect(socket)
            .with_context(|| format!("nobody listens at {}", socket.display()))?;
        Self::over(stream, options)
    }

    /// Shakes hands.
    pub fn over(stream: impl Stream + 'static, options: &Options<'_>) -> anyhow::Result<Self> {
        let mut wire = Wire::new(stream);
        let offered = security::greet(&mut wire)?;
        security::authenticate(&mut wire, &offered, options.password)?;
        // Others may stay.
        wire.send(&[1])?;
        let (width, height) = (wire.u16()?.into(), wire.u16()?.into());
        let format = Format::decode(&wire.array()?).context("the server's own pixel format")?;
        let len = wire.u32()? as usize;
        let name = String::from_utf8(wire.vec(len)?)?;
        let mut viewer = Self {
            wire,
            format,
            bytes: Vec::new(),
            width: 0,
            height: 0,
            inflate: Inflate::default(),
            tight: tight::Streams::default(),
            name,
            cursor: None,
            leds: None,
            takes_codes: false,
            continuous: false,
            counts: Counts::default(),
            asked: false,
            known: RefCell::new((Vec::new(), Picture::new(0, 0))),
        };
        viewer.resize(width, height)?;
        viewer.set_format(options.format)?;
        viewer.set_encodings(options.encodings)?;
        Ok(viewer)
    }

    fn resize(&mut self, width: u32, height: u32) -> anyhow::Result<()> {
        ensure!(width > 0 && height > 0, "a picture of {width}x{height}");
        (self.width, self.height) = (width, height);
        self.bytes = vec![0; width as usize * height as usize * self.format.bytes()];
        // Zeroes are black in every format.
        self.known = RefCell::new((self.bytes.clone(), Picture::new(width, height)));
        Ok(())
    }

    /// Asks for other pixels. What has come before is forgotten.
    pub fn set_format(&mut self, format: Format) -> anyhow::Result<()> {
        self.format = format;
        self.asked = false;
        self.wire.send(&[&[0, 0, 0, 0][..], &format.encode()].concat())?;
        self.resize(self.width, self.height)
    }

    /// Says what it knows.
    pub fn set_encodings(&mut self, encodings: &[i32]) -> anyhow::Result<()> {
        let mut message = vec![2, 0];
        message.extend_from_slice(&(encodings.len() as u16).to_be_bytes());
        encodings.iter().for_each(|encoding| message.extend_from_slice(&encoding.to_be_bytes()));
        self.wire.send(&message)
    }

    /// Asks for a part of the picture: what has changed of it, or all.
    pub fn request(&mut self, incremental: bool, area: Area) -> anyhow::Result<()> {
        let mut message = vec![3, incremental.into()];
        for side in [area.x, area.y, area.width, area.height] {
            message.extend_from_slice(&(side as u16).to_be_bytes());
        }
        self.wire.send(&message)
    }

    /// Asks for the whole picture, or what has changed of it.
    pub fn refresh(&mut self, incremental: bool) -> anyhow::Result<()> {
        self.asked |= !incremental;
        self.request(incremental, self.whole())
    }

    /// The whole picture.
    pub fn whole(&self) -> Area {
        Area { x: 0, y: 0, width: self.width, height: self.height }
    }

    /// Presses or releases a key by its name.
    pub fn key(&mut self, down: bool, keysym: u32) -> anyhow::Result<()> {
        self.wire.send(&[&[4, down.into(), 0, 0][..], &keysym.to_be_bytes()].concat())
    }

    /// Presses or releases a key by its code too.
    pub fn key_code(&mut self, down: bool, keysym: u32, code: u32) -> anyhow::Result<()> {
        let head = [255, 0, 0, down.into()];
        self.wire.send(&[&head[..], &keysym.to_be_bytes(), &code.to_be_bytes()].concat())
    }

    /// Moves the pointer, with these buttons held: left, middle, right, wheel up, down, left, right.
    pub fn pointer(&mut self, buttons: u8, x: u16, y: u16) -> anyhow::Result<()> {
        self.wire.send(&[&[5, buttons][..], &x.to_be_bytes(), &y.to_be_bytes()].concat())
    }

    /// Switches updates that nobody asks for on or off.
    pub fn enable_continuous(&mut self, on: bool, area: Area) -> anyhow::Result<()> {
        let mut message = vec![150, on.into()];
        for side in [area.x, area.y, area.width, area.height] {
            message.extend_from_slice(&(side as u16).to_be_bytes());
        }
        self.wire.send(&message)
    }

    /// Sends a fence.
    pub fn fence(&mut self, flags: u32, payload: &[u8]) -> anyhow::Result<()> {
        let head = [&[248, 0, 0, 0][..], &flags.to_be_bytes(), &[payload.len() as u8]].concat();
        self.wire.send(&[&head[..], payload].concat())
    }

    /// Sends any bytes.
    pub fn raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.wire.send(bytes)
    }

    /// The connection.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// The next message; `None` if none begins in time.
    pub fn receive(&mut self, timeout: Duration) -> anyhow::Result<Option<Event>> {
        if !self.wire.readable(timeout)? {
            return Ok(None);
        }
        Ok(Some(match self.wire.u8()? {
            0 => self.update()?,
            1 => bail!("a colour map, which nobody wants"),
            2 => Event::Bell,
            3 => {
                self.wire.array::<3>()?;
                let len = self.wire.u32()?;
                Event::Cut(self.wire.vec(len as usize)?)
            }
            150 => {
                self.continuous = true;
                Event::EndOfContinuous
            }
            248 => {
                self.wire.array::<3>()?;
                let (flags, len) = (self.wire.u32()?, self.wire.u8()?);
                ensure!(len <= 64, "a fence of {len} bytes");
                Event::Fence(flags, self.wire.vec(len.into())?)
            }
            other => bail!("message {other}"),
        }))
    }

    /// Receives until the next update; whatever else comes is passed over.
    pub fn next_update(&mut self, limit: Duration) -> anyhow::Result<usize> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)?.context("no update comes")? {
                Event::Update(rects) => return Ok(rects),
                _ => ensure!(!left.is_zero(), "no update comes"),
            }
        }
    }

    /// Asks for what changes until the picture is as it should be. The first time it asks for all.
    pub fn until(&mut self, mut is: impl FnMut(&Self) -> bool) -> anyhow::Result<()> {
        let (begun, before) = (Instant::now(), self.counts.updates);
        while !is(self) {
            let left = LIMIT.saturating_sub(begun.elapsed());
            ensure!(!left.is_zero(), "not after {} updates", self.counts.updates - before);
            self.refresh(self.asked)?;
            self.next_update(left)
                .with_context(|| format!("after {} updates", self.counts.updates - before))?;
        }
        Ok(())
    }

    /// Asks for what changes until the picture is this one.
    pub fn until_same(&mut self, wanted: &Picture) -> anyhow::Result<()> {
        let slack = self.format.slack();
        let mut why = None;
        let same = self.until(|viewer| {
            why = viewer.picture().difference(wanted, slack);
            why.is_none()
        });
        same.with_context(|| format!("the viewer's picture and what was drawn: {why:?}"))
    }

    /// What has been decoded.
    pub fn picture(&self) -> Picture {
        let mut known = self.known.borrow_mut();
        let (bytes, picture) = &mut *known;
        // Tests look after every update, and most of the rows are as they were.
        for y in 0..self.height {
            let row = Area { y, height: 1, ..self.whole() };
            let range = self.row(row, 0);
            if bytes[range.clone()] != self.bytes[range.clone()] {
                let pixels = self.bytes[range.clone()].chunks_exact(self.format.bytes());
                let pixels: Vec<u32> =
                    pixels.map(|pixel| self.format.colour(self.format.value(pixel))).collect();
                picture.put(row, &pixels);
                bytes[range.clone()].copy_from_slice(&self.bytes[range]);
            }
        }
        picture.clone()
    }

    /// The picture's size.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// The bytes of a pixel in the viewer's format.
    pub fn pixel(&self, x: u32, y: u32) -> &[u8] {
        &self.bytes[self.row(Area { x, y, width: 1, height: 1 }, 0)]
    }
}
