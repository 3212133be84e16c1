//! The event loop: one thread, which waits for nothing but events.
//!
//! A turn hears the devices and everybody who is connected, sends keys on their way, looks at the picture if somebody
//! waits for news of it, and tells everybody. While nothing happens it sleeps without a timer.

#[cfg(test)]
mod tests;
mod turns;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use logs::Ration;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use thiserror::Error;

use crate::damage::Damage;
use crate::input::{Keyboard, Mouse};
use crate::listener::Listener;
use crate::peers::Peers;
use crate::rfb::password::{Guard, Password};
use crate::screen::Screen;
use crate::seatside::{KeyboardSide, MouseSide, VideoSide};
use crate::stream::TlsConfig;
use crate::typist::Typist;
use crate::viewer::Pointer;
use crate::web::Web;

/// Least time between two looks at the picture: 125 a second are more than a person sees.
const LOOKS: Duration = Duration::from_millis(8);

/// Tokens of what is watched; listeners and peers count on from theirs.
const VIDEO: usize = 0;
const KEYBOARD: usize = 1;
const MOUSE: usize = 2;
const CONTROL: usize = 3;
const WEB: usize = 4;
const LISTENERS: usize = 8;
const PEERS: usize = 64;
/// Most sockets on which viewers come.
const MAX_LISTENERS: usize = PEERS - LISTENERS;

/// What a console is made of; everything is open.
#[derive(Debug)]
pub struct Setting {
    /// The VM's name, which viewers show.
    pub name: String,
    /// To the video device.
    pub video: seat::video::ConsoleEnd,
    /// To the keyboard.
    pub keyboard: seat::keyboard::ConsoleEnd,
    /// To the mouse.
    pub mouse: seat::mouse::ConsoleEnd,
    /// Where viewers connect.
    pub listeners: Vec<Listener>,
    /// Where commands connect.
    pub control: Option<UnixListener>,
    /// The web page.
    pub web: Option<Web>,
    /// What viewers by TCP have to know.
    pub password: Option<Password>,
    /// What they have to speak besides.
    pub tls: Option<TlsConfig>,
}

/// Why there is no console.
#[derive(Debug, Error)]
pub enum ConsoleError {
    /// The system's fault.
    #[error("the console cannot wait for events: {0}")]
    Poll(#[from] io::Error),
    /// Anybody could come: TLS hides what is said, and asks nobody who he is.
    #[error(
        "a TCP socket for viewers needs a password, with TLS as well: give it one (password_file under [screen])"
    )]
    Open,
    /// Somebody wants too many.
    #[error("a console has at most {MAX_LISTENERS} sockets for viewers")]
    TooMany,
}

/// A console.
#[derive(Debug)]
pub struct Console {
    poll: Poll,
    events: Events,
    name: String,
    video: VideoSide,
    keyboard_side: KeyboardSide,
    mouse_side: MouseSide,
    screen: Screen,
    pointer: Pointer,
    keyboard: Keyboard,
    mouse: Mouse,
    typist: Typist,
    listeners: Vec<Watched<Listener>>,
    control: Option<Watched<UnixListener>>,
    web: Option<Watched<Web>>,
    password: Option<Password>,
    tls: Option<TlsConfig>,
    guard: Guard,
    peers: Peers,
    changed: Damage,
    /// Until then the picture is not looked at again.
    rest: Option<Instant>,
    complaints: Ration,
}

/// Something that may have news.
#[derive(Debug)]
struct Watched<T> {
    it: T,
    woken: bool,
}

impl<T> Watched<T> {
    fn new(it: T) -> Watched<T> {
        Watched { it, woken: true }
    }
}

impl Console {
    /// Puts it together.
    pub fn new(setting: Setting) -> Result<Console, ConsoleError> {
        let Setting { name, video, keyboard, mouse, listeners, control, web, password, tls } = setting;
        if listeners.iter().any(Listener::is_tcp) && password.is_none() {
            return Err(ConsoleError::Open);
        }
        if listeners.len() > MAX_LISTENERS {
            return Err(ConsoleError::TooMany);
        }
        let screen = Screen::new();
        let (width, height) = screen.picture().size();
        let console = Console {
            poll: Poll::new()?,
            events: Events::with_capacity(128),
            name,
            video: VideoSide::new(video),
            keyboard_side: KeyboardSide::new(keyboard),
            mouse_side: MouseSide::new(mouse),
            screen,
            pointer: Pointer::default(),
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
            typist: Typist::new(),
            listeners: listeners.into_iter().map(Watched::new).collect(),
            control: control.map(Watched::new),
            web: web.map(Watched::new),
            password,
            tls,
            guard: Guard::default(),
            peers: Peers::new(),
            changed: Damage::new(width, height),
            rest: None,
            complaints: Ration::new(),
        };
        for (fd, token) in console.sources() {
            console.watch(fd, token)?;
        }
        Ok(console)
    }

    /// All that it goes on with when the door is closed.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let mut all: Vec<_> = self.sources().into_iter().map(|(fd, _)| fd).collect();
        all.push(self.poll.as_raw_fd());
        all
    }

    /// What is watched from the beginning.
    fn sources(&self) -> Vec<(RawFd, usize)> {
        let mut all = vec![
            (self.video.fd(), VIDEO),
            (self.keyboard_side.fd(), KEYBOARD),
            (self.mouse_side.fd(), MOUSE),
        ];
        all.extend(self.control.iter().map(|control| (control.it.as_raw_fd(), CONTROL)));
        all.extend(self.web.iter().map(|web| (web.it.listener(), WEB)));
        all.extend(
            self.listeners.iter().zip(LISTENERS..).map(|(listener, token)| (listener.it.as_raw_fd(), token)),
        );
        all
    }

    /// Whoever goes is forgotten with his descriptor.
    fn watch(&self, fd: RawFd, token: usize) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&fd), Token(token), both)
    }

    /// Waits until something happens, `limit` at most, and does what is to be done.
    pub fn turn(&mut self, limit: Option<Duration>) -> Result<(), ConsoleError> {
        let timeout = if self.is_ready() { Some(Duration::ZERO) } else { self.until_deadline(limit) };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => self.dispatch(),
        }
        self.work();
        Ok(())
    }

    fn is_ready(&self) -> bool {
        let listens = self.listeners.iter().any(|listener| listener.woken)
            || self.control.as_ref().is_some_and(|control| control.woken)
            || self.web.as_ref().is_some_and(|web| web.woken);
        let hears = self.video.is_ready() || self.keyboard_side.is_ready() || self.mouse_side.is_ready();
        listens || hears || self.peers.is_ready()
    }

    fn until_deadline(&self, limit: Option<Duration>) -> Option<Duration> {
        let now = Instant::now();
        let look = self.is_looked_for().then_some(self.rest.unwrap_or(now));
        let devices = [self.video.due(), self.keyboard_side.due(), self.mouse_side.due()];
        let deadlines = [look, self.typist.due(now), self.peers.deadline()].into_iter().chain(devices);
        let until = deadlines.flatten().min().map(|deadline| deadline.saturating_duration_since(now));
        match (until, limit) {
            (Some(until), Some(limit)) => Some(until.min(limit)),
            (until, limit) => until.or(limit),
        }
    }

    /// Whether somebody waits for news, and there may be some.
    fn is_looked_for(&self) -> bool {
        self.screen.is_stale() && self.peers.viewers().any(|viewer| viewer.waits())
    }

    fn dispatch(&mut self) {
        for event in &self.events {
            // Errors and hang-ups are found by reading and writing.
            let ended = event.is_error() || event.is_read_closed() || event.is_write_closed();
            let (readable, writable) = (event.is_readable() || ended, event.is_writable() || ended);
            match event.token().0 {
                VIDEO => self.video.wake(readable, writable),
                KEYBOARD => self.keyboard_side.wake(readable, writable),
                MOUSE => self.mouse_side.wake(readable, writable),
                CONTROL => self.control.iter_mut().for_each(|control| control.woken = true),
                WEB => self.web.iter_mut().for_each(|web| web.woken = true),
                token @ PEERS.. => {
                    self.peers.wake(token - PEERS, readable, writable);
                    // Both directions, that is.
                    if event.is_write_closed() {
                        self.peers.hang_up(token - PEERS);
                    }
                }
                token => {
                    if let Some(listener) = self.listeners.get_mut(token - LISTENERS) {
                        listener.woken = true;
                    }
                }
            }
        }
        self.events.clear();
    }
}
