//! The three sockets to the devices. Neither side waits for the other: what a device has no room for waits in [`crate::input`], and what
//! it says is taken in bounded helpings.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use logs::Ration;
use seat::shape::Assembly;
use seat::{Message, Received, Seat, SeatError, Sent, keyboard, mouse, video};

use crate::input::{Keyboard, Mouse};
use crate::screen::Screen;
use crate::viewer::Pointer;

/// Messages of one device that are taken before others get their turn.
const HELPING: usize = 64;

/// One socket, and whether it is worth looking at.
#[derive(Debug)]
struct Line<Out, In> {
    name: &'static str,
    seat: Seat<Out, In>,
    readable: bool,
    writable: bool,
    /// It does not work any more; nothing brings it back but another console.
    broken: bool,
    complaints: Ration,
}

impl<Out: Message, In: Message> Line<Out, In> {
    fn new(name: &'static str, seat: Seat<Out, In>) -> Line<Out, In> {
        Line { name, seat, readable: true, writable: true, broken: false, complaints: Ration::new() }
    }

    fn wake(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// The next message that makes sense, of the `left` that may be taken.
    fn receive(&mut self, left: &mut usize) -> Option<Received<In>> {
        self.readable |= self.seat.look_again().is_some_and(|then| then <= Instant::now());
        while self.readable && !self.broken && *left > 0 {
            *left -= 1;
            match self.seat.receive() {
                Ok(Some(received)) => return Some(received),
                Ok(None) => self.readable = false,
                Err(error) => self.complain(&error),
            }
        }
        None
    }

    /// True: it has been sent.
    fn send(&mut self, message: &Out) -> bool {
        if !self.writable || self.broken {
            return false;
        }
        match self.seat.send(message, None) {
            Ok(Sent::Whole) => true,
            Ok(Sent::Full) => {
                self.writable = false;
                false
            }
            Err(error) => {
                self.complain(&error);
                false
            }
        }
    }

    fn complain(&mut self, error: &SeatError) {
        self.broken |= !error.is_peers_fault();
        if let Some(times) = self.complaints.another() {
            tracing::warn!(device = self.name, times, "{error}");
        }
    }

    fn is_ready(&self) -> bool {
        self.readable && !self.broken
    }

    fn due(&self) -> Option<Instant> {
        self.seat.look_again().filter(|_| !self.broken)
    }
}

/// The screen's.
#[derive(Debug)]
pub struct VideoSide {
    line: Line<video::FromConsole, video::ToConsole>,
    asked: bool,
    /// What the device knows of whether anybody looks.
    told: Option<bool>,
    shape: Assembly,
    is_there: bool,
}

impl VideoSide {
    /// Begins with asking.
    pub fn new(seat: video::ConsoleEnd) -> VideoSide {
        let line = Line::new("video", seat);
        VideoSide { line, asked: false, told: None, shape: Assembly::new(), is_there: false }
    }

    /// The descriptor to watch.
    pub fn fd(&self) -> RawFd {
        self.line.seat.as_raw_fd()
    }

    /// Something happened on it.
    pub fn wake(&mut self, readable: bool, writable: bool) {
        self.line.wake(readable, writable);
    }

    /// Whether there is more to be taken.
    pub fn is_ready(&self) -> bool {
        self.line.is_ready()
    }

    /// When to look without having been rung.
    pub fn due(&self) -> Option<Instant> {
        self.line.due()
    }

    /// Whether a device has said anything.
    pub fn is_there(&self) -> bool {
        self.is_there
    }

    /// Takes what the device says. True: the picture has another size.
    pub fn receive(&mut self, screen: &mut Screen, pointer: &mut Pointer) -> bool {
        use video::ToConsole;
        let (mut left, mut resized) = (HELPING, false);
        while let Some(Received { message, memory, .. }) = self.line.receive(&mut left) {
            self.is_there = true;
            match message {
                ToConsole::Hello { build } => {
                    tracing::debug!("video says hello: {build:?}");
                    self.told = None;
                    self.shape = Assembly::new();
                    // The picture stays until the device shows another one, or none.
                    screen.all_dirty();
                }
                ToConsole::Surface(surface) => {
                    let Some(memory) = memory else { continue };
                    // It is mapped, and makes a new picture: one at a time.
                    left = 0;
                    match screen.show(surface, &memory) {
                        Ok(other_size) => {
                            tracing::debug!(
                                "{}x{}, {} bits",
                                surface.width,
                                surface.height,
                                surface.depth.bits()
                            );
                            resized |= other_size;
                        }
                        Err(error) => {
                            screen.hide();
                            if let Some(times) = self.line.complaints.another() {
                                tracing::warn!(device = self.line.name, times, "{error}");
                            }
                        }
                    }
                }
                ToConsole::NoSurface => screen.hide(),
                ToConsole::Dirty(rects) => screen.dirty(&rects),
                ToConsole::AllDirty => screen.all_dirty(),
                ToConsole::PointerShape(part) => {
                    if let Some(shape) = self.shape.add(part)
                        && pointer.shape.as_ref() != Some(&shape)
                    {
                        pointer.shape = Some(shape);
                        pointer.version += 1;
                    }
                }
                ToConsole::PointerPosition { visible, .. } => {
                    // Where it is the viewers know better; the guest has it from them.
                    if pointer.visible != visible {
                        pointer.visible = visible;
                        pointer.version += 1;
                    }
                }
            }
        }
        resized
    }

    /// Tells the device whether anybody looks, if it does not know.
    pub fn send(&mut self, watched: bool) {
        use video::FromConsole;
        if !self.asked {
            self.asked = self.line.send(&FromConsole::Ask);
        }
        if self.asked && self.told != Some(watched) && self.line.send(&FromConsole::Watched(watched)) {
            self.told = Some(watched);
        }
    }
}

/// The keyboard's.
#[derive(Debug)]
pub struct KeyboardSide {
    line: Line<keyboard::FromConsole, keyboard::ToConsole>,
    asked: bool,
    /// Keys that a console before this one has left pressed are released.
    released: bool,
    ready: bool,
}

impl KeyboardSide {
    /// Begins with asking.
    pub fn new(seat: keyboard::ConsoleEnd) -> KeyboardSide {
        KeyboardSide { line: Line::new("keyboard", seat), asked: false, released: false, ready: false }
    }

    /// The descriptor to watch.
    pub fn fd(&self) -> RawFd {
        self.line.seat.as_raw_fd()
    }

    /// Something happened on it.
    pub fn wake(&mut self, readable: bool, writable: bool) {
        self.line.wake(readable, writable);
    }

    /// Whether there is more to be taken.
    pub fn is_ready(&self) -> bool {
        self.line.is_ready()
    }

    /// When to look without having been rung.
    pub fn due(&self) -> Option<Instant> {
        self.line.due()
    }

    /// Whether a driver in the guest listens.
    pub fn is_heard(&self) -> bool {
        self.ready
    }

    /// Takes what the device says.
    pub fn receive(&mut self, keyboard: &mut Keyboard) {
        use keyboard::ToConsole;
        let mut left = HELPING;
        while let Some(Received { message, .. }) = self.line.receive(&mut left) {
            match message {
                ToConsole::Hello { build } => {
                    tracing::debug!("keyboard says hello: {build:?}");
                    self.ready = false;
                }
                ToConsole::Ready(ready) => self.ready = ready,
                ToConsole::Leds(leds) => keyboard.set_leds(leds),
            }
        }
    }

    /// Sends what waits.
    pub fn send(&mut self, keyboard: &mut Keyboard) {
        use keyboard::FromConsole;
        self.asked = self.asked || self.line.send(&FromConsole::Ask);
        self.released = self.released || self.asked && self.line.send(&FromConsole::ReleaseAll);
        while self.released
            && let Some(event) = keyboard.front()
            && self.line.send(event)
        {
            keyboard.pop();
        }
    }
}

/// The mouse's.
#[derive(Debug)]
pub struct MouseSide {
    line: Line<mouse::FromConsole, mouse::ToConsole>,
    asked: bool,
    released: bool,
    ready: bool,
}

impl MouseSide {
    /// Begins with asking.
    pub fn new(seat: mouse::ConsoleEnd) -> MouseSide {
        MouseSide { line: Line::new("mouse", seat), asked: false, released: false, ready: false }
    }

    /// The descriptor to watch.
    pub fn fd(&self) -> RawFd {
        self.line.seat.as_raw_fd()
    }

    /// Something happened on it.
    pub fn wake(&mut self, readable: bool, writable: bool) {
        self.line.wake(readable, writable);
    }

    /// Whether there is more to be taken.
    pub fn is_ready(&self) -> bool {
        self.line.is_ready()
    }

    /// When to look without having been rung.
    pub fn due(&self) -> Option<Instant> {
        self.line.due()
    }

    /// Whether a driver in the guest listens.
    pub fn is_heard(&self) -> bool {
        self.ready
    }

    /// Takes what the device says.
    pub fn receive(&mut self) {
        use mouse::ToConsole;
        let mut left = HELPING;
        while let Some(Received { message, .. }) = self.line.receive(&mut left) {
            match message {
                ToConsole::Hello { build } => {
                    tracing::debug!("mouse says hello: {build:?}");
                    self.ready = false;
                }
                ToConsole::Ready(ready) => self.ready = ready,
            }
        }
    }

    /// Sends what waits.
    pub fn send(&mut self, mouse: &mut Mouse) {
        use mouse::FromConsole;
        self.asked = self.asked || self.line.send(&FromConsole::Ask);
        self.released = self.released || self.asked && self.line.send(&FromConsole::ReleaseAll);
        while self.released
            && let Some(event) = mouse.front()
            && self.line.send(event)
        {
            mouse.pop();
        }
    }
}
