//! What the console has still to be told.
//!
//! Everything but what has been drawn is a value of which only the newest counts, so a console that does not read costs no memory:
//! what it has missed is told once there is room. Drawn rectangles are told at once or, if there is no room, as "everything".

use std::sync::Arc;
use std::time::{Duration, Instant};

use seat::shape::Shape;
use seat::video::{DeviceEnd, FromConsole, Rect, Rects, Surface, ToConsole};
use seat::{Build, SeatError, Sent};
use vsp::SharedMemory;

/// A console that does not read is tried again after this long at first: what it takes one that is busy with a large update.
const FIRST_RETRY: Duration = Duration::from_millis(4);
/// And after this long at most: one that stands still costs ten tries a second.
const LAST_RETRY: Duration = Duration::from_millis(100);
/// What the console is told of this program.
const BUILD: Build = Build::new(concat!("vsp-video ", env!("CARGO_PKG_VERSION")));

/// The way to the console.
#[derive(Debug)]
pub struct Console {
    seat: DeviceEnd,
    /// The socket does not work any more.
    broken: bool,
    /// The picture, and the memory it is in.
    picture: Option<(Surface, Arc<SharedMemory>)>,
    shape: Option<Shape>,
    /// Tells shapes apart.
    serial: u32,
    position: Position,
    owes: Owes,
    /// There was no room: when to try again.
    retry: Option<Instant>,
    patience: Duration,
}

/// Where the pointer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// From the left.
    pub x: i32,
    /// From the top.
    pub y: i32,
    /// To be seen.
    pub visible: bool,
}

/// What has changed since the console was told.
#[derive(Debug, Default)]
struct Owes {
    hello: bool,
    picture: bool,
    /// From which byte on.
    shape: Option<usize>,
    position: bool,
    dirt: Dirt,
}

/// What has been drawn.
#[derive(Debug, Default)]
enum Dirt {
    #[default]
    None,
    Some(Rects),
    All,
}

impl Console {
    /// At this end of a pair, which is not used yet.
    pub fn new(seat: DeviceEnd) -> Console {
        Console {
            seat,
            broken: false,
            picture: None,
            shape: None,
            serial: 0,
            position: Position::default(),
            owes: Owes::default(),
            retry: None,
            patience: FIRST_RETRY,
        }
    }

    /// The socket.
    pub fn seat(&self) -> &DeviceEnd {
        &self.seat
    }

    /// This process begins to serve: the console knows nothing of it.
    pub fn begin(&mut self) {
        (self.picture, self.shape, self.position) = (None, None, Position::default());
        // The position is told also if it is none: the console may have one of a predecessor's.
        self.owes = Owes { hello: true, picture: true, position: true, ..Owes::default() };
    }

    /// The console wants to be told everything anew.
    pub fn say_all(&mut self) {
        self.owes = Owes {
            hello: true,
            picture: true,
            shape: self.shape.is_some().then_some(0),
            position: true,
            dirt: Dirt::None,
        };
    }

    /// The picture is this one now, in this memory, or there is none.
    pub fn set_picture(&mut self, picture: Option<(Surface, Arc<SharedMemory>)>) {
        let same = match (&self.picture, &picture) {
            (Some((old, before)), Some((new, now))) => old == new && Arc::ptr_eq(before, now),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.owes.picture = true;
            self.picture = picture;
        }
    }

    /// Whether there is a picture.
    pub fn has_picture(&self) -> bool {
        self.picture.is_some()
    }

    /// The pointer looks like this now.
    pub fn set_shape(&mut self, shape: Shape) {
        if self.shape.as_ref() != Some(&shape) {
            self.serial = self.serial.wrapping_add(1);
            self.shape = Some(shape);
            self.owes.shape = Some(0);
        }
    }

    /// The pointer is here now.
    pub fn set_position(&mut self, position: Position) {
        self.owes.position |= self.position != position;
        self.position = position;
    }

    /// The guest has no pointer any more.
    pub fn forget_pointer(&mut self) {
        (self.shape, self.owes.shape) = (None, None);
        self.set_position(Position::default());
    }

    /// The guest has drawn here.
    pub fn draw(&mut self, rect: Rect) {
        let Some((surface, _)) = &self.picture else { return };
        let Some(rect) = rect.within(surface.width, surface.height) else { return };
        match &mut self.owes.dirt {
            Dirt::All => {}
            Dirt::Some(rects) => {
                if !rects.push(rect) {
                    self.draw_all();
                }
            }
            none @ Dirt::None => {
                let mut rects = Rects::NONE;
                *none = if rects.push(rect) { Dirt::Some(rects) } else { Dirt::All };
            }
        }
    }

    /// The guest may have drawn anywhere.
    pub fn draw_all(&mut self) {
        if self.picture.is_some() {
            self.owes.dirt = Dirt::All;
        }
    }

    /// Tells what there is room for, unless there was none a moment ago.
    pub fn tell(&mut self, now: Instant) {
        if self.broken || self.retry.is_some_and(|then| now < then) {
            return;
        }
        match self.tell_all() {
            Ok(Sent::Whole) => (self.retry, self.patience) = (None, FIRST_RETRY),
            Ok(Sent::Full) => {
                self.retry = Some(now + self.patience);
                self.patience = (self.patience * 2).min(LAST_RETRY);
                if matches!(self.owes.dirt, Dirt::Some(_)) {
                    self.owes.dirt = Dirt::All;
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    /// When to try again, if there was no room.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry.filter(|_| !self.broken)
    }

    fn tell_all(&mut self) -> Result<Sent, SeatError> {
        if self.owes.hello {
            if self.seat.send(&ToConsole::Hello { build: BUILD }, None)? == Sent::Full {
                return Ok(Sent::Full);
            }
            self.owes.hello = false;
        }
        if self.owes.picture {
            let sent = match &self.picture {
                Some((surface, memory)) => self.seat.send(&ToConsole::Surface(*surface), Some(memory))?,
                None => self.seat.send(&ToConsole::NoSurface, None)?,
            };
            if sent == Sent::Full {
                return Ok(Sent::Full);
            }
            self.owes.picture = false;
            // All of a new picture is new, and nothing of none.
            self.owes.dirt = Dirt::None;
        }
        while let Some(offset) = self.owes.shape {
            let Some(part) = self.shape.as_ref().and_then(|shape| shape.part(self.serial, offset)) else {
                self.owes.shape = None;
                break;
            };
            let next = offset + part.bytes.len();
            if self.seat.send(&ToConsole::PointerShape(part), None)? == Sent::Full {
                return Ok(Sent::Full);
            }
            self.owes.shape = Some(next);
        }
        if self.owes.position {
            let Position { x, y, visible } = self.position;
            if self.seat.send(&ToConsole::PointerPosition { x, y, visible }, None)? == Sent::Full {
                return Ok(Sent::Full);
            }
            self.owes.position = false;
        }
        let dirt = match std::mem::take(&mut self.owes.dirt) {
            Dirt::None => return Ok(Sent::Whole),
            Dirt::Some(rects) => ToConsole::Dirty(rects),
            Dirt::All => ToConsole::AllDirty,
        };
        let sent = self.seat.send(&dirt, None)?;
        if sent == Sent::Full {
            self.owes.dirt = Dirt::All;
        }
        Ok(sent)
    }

    /// When to hear again without having been rung; see [`seat::Seat::look_again`].
    pub fn look_again(&self) -> Option<Instant> {
        self.seat.look_again().filter(|_| !self.broken)
    }

    /// What the console says next; `None`: nothing now. What is no message is skipped, and counts as one.
    pub fn hear(&mut self) -> Heard {
        if self.broken {
            return Heard::Nothing;
        }
        match self.seat.receive() {
            Ok(Some(received)) => Heard::Message(received.message),
            Ok(None) => Heard::Nothing,
            Err(error) if error.is_peers_fault() => Heard::Nonsense(error),
            Err(error) => {
                self.fail(&error);
                Heard::Nothing
            }
        }
    }

    fn fail(&mut self, error: &SeatError) {
        // The guest's screen goes on without anybody who looks.
        tracing::error!("nothing can be shown any more: {error}");
        self.broken = true;
    }
}

/// What the console says.
#[derive(Debug)]
pub enum Heard {
    /// This.
    Message(FromConsole),
    /// Something that makes no sense.
    Nonsense(SeatError),
    /// Nothing at the moment.
    Nothing,
}
