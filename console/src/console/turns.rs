//! What a turn of the event loop does.

use std::time::Instant;

use crate::console::{Console, LOOKS, PEERS};
use crate::control::{self, Answer, Request, State};
use crate::damage::Damage;
use crate::input::Holder;
use crate::listener;
use crate::peers::{Kind, MAX_VIEWERS, Peer};
use crate::rfb::handshake::{Access, World};
use crate::rfb::password::CHALLENGE;
use crate::screen::Screen;
use crate::stream::Stream;
use crate::typist::TypeError;
use crate::viewer::{End, Room, Viewer};
use crate::web::{Invitation, Turn};

/// Connections of one kind that are taken before others get their turn.
const HELPING: usize = 16;

impl Console {
    pub(super) fn work(&mut self) {
        let now = Instant::now();
        if self.video.receive(&mut self.screen, &mut self.pointer) {
            self.resized();
        }
        self.keyboard_side.receive(&mut self.keyboard);
        self.mouse_side.receive();
        // Who has gone makes room for who comes.
        self.hear_all(now);
        if self.accept(now) {
            self.hear_all(now);
        }
        self.typist.turn(&mut self.keyboard, now);
        self.keyboard_side.send(&mut self.keyboard);
        self.tell_typed();
        self.mouse_side.send(&mut self.mouse);
        self.video.send(self.peers.looking() > 0);
        if self.is_looked_for() && self.rest.is_none_or(|rest| now >= rest) {
            self.look();
            // At most half of the time goes into looking, whatever the guest does.
            let spent = now.elapsed();
            self.rest = Some(now + LOOKS.max(spent * 2));
        }
        for place in self.peers.places() {
            self.speak(place, now);
        }
    }

    fn hear_all(&mut self, now: Instant) {
        for place in self.peers.places() {
            match self.peers.get_mut(place) {
                Some(Peer::Viewer(_)) => self.hear(place, now),
                Some(Peer::Command(_)) => self.serve_command(place, now),
                Some(Peer::Browser(_)) => self.serve_browser(place, now),
                None => {}
            }
        }
    }

    /// The picture has another size.
    fn resized(&mut self) {
        let (width, height) = self.screen.picture().size();
        self.changed = Damage::new(width, height);
        self.peers.viewers_mut().for_each(Viewer::resized);
    }

    /// Brings the picture up to date, and notes for everybody what is new.
    fn look(&mut self) {
        self.screen.look(&mut self.changed);
        if !self.changed.is_empty() {
            self.peers.viewers_mut().for_each(|viewer| viewer.changed(&self.changed));
            self.changed.clear();
        }
    }

    /// Takes who has come; whether somebody has.
    fn accept(&mut self, now: Instant) -> bool {
        let mut came = false;
        for index in 0..self.listeners.len() {
            for _ in 0..HELPING {
                let listener = &mut self.listeners[index];
                if !listener.woken {
                    break;
                }
                match listener.it.accept() {
                    Ok(Some(stream)) => {
                        came = true;
                        self.welcome(stream, now);
                    }
                    Ok(None) => listener.woken = false,
                    Err(error) => {
                        listener.woken = false;
                        self.complain("cannot take a viewer's connection", &error);
                    }
                }
            }
        }
        for _ in 0..HELPING {
            let Some(control) = self.control.as_mut().filter(|control| control.woken) else { break };
            match listener::accept_command(&control.it) {
                Ok(Some(stream)) => {
                    came = true;
                    let place = self.room_for(Kind::Command);
                    let mut connection = control::Connection::new(stream);
                    if place.is_none() {
                        connection.refuse();
                    }
                    self.seat(place, Peer::Command(Box::new(connection)));
                }
                Ok(None) => control.woken = false,
                Err(error) => {
                    control.woken = false;
                    self.complain("cannot take a command's connection", &error);
                }
            }
        }
        for _ in 0..HELPING {
            let Some(web) = self.web.as_mut().filter(|web| web.woken) else { break };
            match web.it.accept_next(now) {
                Ok(Some(connection)) => {
                    came = true;
                    let place = self.room_for(Kind::Browser);
                    self.seat(place, Peer::Browser(Box::new(connection)));
                }
                Ok(None) => web.woken = false,
                Err(error) => {
                    web.woken = false;
                    self.complain("cannot take a browser's connection", &error);
                }
            }
        }
        came
    }

    fn complain(&self, what: &str, error: &dyn std::fmt::Display) {
        if let Some(times) = self.complaints.another() {
            tracing::warn!(times, "{what}: {error}");
        }
    }

    /// A place for one more. Of those whom nobody knows the oldest gives way: were the newcomer refused, a handful of them could lock everybody out.
    fn room_for(&mut self, kind: Kind) -> Option<usize> {
        if !self.peers.has_room(kind) {
            let oldest = self.peers.oldest_stranger(kind)?;
            match kind {
                Kind::Browser => drop(self.peers.take(oldest)),
                Kind::Viewer | Kind::Stranger | Kind::Command => self.farewell(oldest, &End::Crowded),
            }
        }
        Some(self.peers.free_place())
    }

    /// Gives somebody a place and watches him; without a place he is let go.
    fn seat(&mut self, place: Option<usize>, peer: Peer) {
        let Some(place) = place else {
            self.complain("a connection is refused", &"there are too many of its kind");
            return;
        };
        match self.watch(peer.fd(), PEERS + place) {
            Ok(()) => self.peers.put(place, peer),
            Err(error) => self.complain("cannot watch a connection", &error),
        }
    }

    /// Somebody wants to look.
    fn welcome(&mut self, stream: Stream, now: Instant) {
        let place = self.room_for(if stream.is_private() { Kind::Viewer } else { Kind::Stranger });
        if let Some(viewer) = self.viewer(stream, place.unwrap_or_default(), now) {
            self.seat(place, Peer::Viewer(viewer));
        }
    }

    fn viewer(&mut self, stream: Stream, place: usize, now: Instant) -> Option<Box<Viewer>> {
        let access = if stream.is_private() {
            Access::default()
        } else {
            Access { password: self.password.clone(), tls: self.tls.is_some() }
        };
        let mut challenge = [0; CHALLENGE];
        if access.password.is_some()
            && let Err(error) = getrandom::fill(&mut challenge)
        {
            // Whoever could foretell the challenge could answer it.
            self.complain("a viewer is refused: there is no randomness", &error);
            return None;
        }
        Some(Box::new(Viewer::new(stream, access, challenge, Holder::viewer(place), now)))
    }

    fn hear(&mut self, place: usize, now: Instant) {
        let full = self.peers.looking() >= MAX_VIEWERS;
        let Some(Peer::Viewer(viewer)) = self.peers.get_mut(place) else { return };
        let looked = viewer.is_running();
        let mut room = Room {
            keyboard: &mut self.keyboard,
            mouse: &mut self.mouse,
            picture: self.screen.picture(),
            fresh: !self.screen.is_stale(),
            pointer: &self.pointer,
            world: World { guard: &mut self.guard, now },
            tls: self.tls.as_ref(),
            name: &self.name,
            full,
        };
        let result = viewer.hear(&mut room);
        if !looked && viewer.is_running() {
            // While nobody looked the guest may have drawn without a word.
            self.screen.all_dirty();
            tracing::info!(place, "a viewer has come");
        }
        if let Err(end) = result {
            self.farewell(place, &end);
        }
    }

    fn speak(&mut self, place: usize, now: Instant) {
        let Some(Peer::Viewer(viewer)) = self.peers.get_mut(place) else { return };
        let room = Room {
            keyboard: &mut self.keyboard,
            mouse: &mut self.mouse,
            picture: self.screen.picture(),
            fresh: !self.screen.is_stale(),
            pointer: &self.pointer,
            world: World { guard: &mut self.guard, now },
            tls: self.tls.as_ref(),
            name: &self.name,
            full: false,
        };
        if let Err(end) = viewer.speak(&room) {
            self.farewell(place, &end);
        }
    }

    /// A viewer goes, and lets go of what it holds.
    fn farewell(&mut self, place: usize, end: &End) {
        let Some(Peer::Viewer(mut viewer)) = self.peers.take(place) else { return };
        viewer.release(&mut self.keyboard, &mut self.mouse);
        if viewer.is_running() {
            tracing::info!(place, "a viewer has gone: {end}");
        } else {
            self.complain("a viewer did not get far", end);
        }
        // What it has let go of is told now.
        self.keyboard_side.send(&mut self.keyboard);
        self.mouse_side.send(&mut self.mouse);
        self.video.send(self.peers.looking() > 0);
    }

    fn serve_browser(&mut self, place: usize, now: Instant) {
        if !self.peers.is_woken(place, now) {
            return;
        }
        let (Some(web), Some(Peer::Browser(connection))) = (&mut self.web, self.peers.get_mut(place)) else {
            return;
        };
        match web.it.turn(connection, now) {
            Turn::Wait => {}
            Turn::Again => self.peers.again(place),
            Turn::Close => drop(self.peers.take(place)),
            Turn::Viewer(stream) => {
                // The same descriptor, so it is watched already.
                self.peers.take(place);
                let free = self.peers.has_room(Kind::Viewer);
                match self.viewer(stream, place, now) {
                    Some(viewer) if free => self.peers.put(place, Peer::Viewer(viewer)),
                    _ => self.complain("a browser is refused", &"there are too many viewers"),
                }
            }
        }
    }

    fn serve_command(&mut self, place: usize, now: Instant) {
        let Some(Peer::Command(connection)) = self.peers.get_mut(place) else { return };
        let request = match connection.turn() {
            Ok(None) => return,
            Err(end) => {
                tracing::debug!("a command's connection: {end}");
                if let Some(ticket) = connection.ticket() {
                    self.typist.cancel(ticket, &mut self.keyboard);
                }
                drop(self.peers.take(place));
                return;
            }
            Ok(Some(request)) => request,
        };
        let mut file = Vec::new();
        let answer = match request {
            Err(error) => Answer::Error(error),
            Ok(Request::Screenshot {}) => {
                self.screen.all_dirty();
                self.look();
                match control::png(self.screen.picture()) {
                    Ok(png) => {
                        file = png;
                        Answer::Png(file.len())
                    }
                    Err(error) => Answer::Error(error.to_string()),
                }
            }
            Ok(Request::Type(text)) => match self.heard().and_then(|()| self.typist.text(&text)) {
                Ok(ticket) => return self.wait_for(place, ticket),
                Err(error) => Answer::Error(error.to_string()),
            },
            Ok(Request::Key(name)) => match self.heard().and_then(|()| self.typist.keys(&name)) {
                Ok(ticket) => return self.wait_for(place, ticket),
                Err(error) => Answer::Error(error.to_string()),
            },
            Ok(Request::Token {}) => match &mut self.web {
                Some(web) => match web.it.token(now) {
                    Ok(invitation) => {
                        // From now on it listens, of which no event tells.
                        web.woken = true;
                        Answer::Token(invitation)
                    }
                    Err(error) => Answer::Error(error),
                },
                None => Answer::Error("this VM's console has no web page".to_owned()),
            },
            Ok(Request::State {}) => Answer::State(self.state()),
        };
        if let Some(Peer::Command(connection)) = self.peers.get_mut(place) {
            connection.answer::<Invitation>(&answer, &file);
        }
    }

    fn heard(&self) -> Result<(), TypeError> {
        if self.keyboard_side.is_heard() { Ok(()) } else { Err(TypeError::Unheard) }
    }

    fn wait_for(&mut self, place: usize, ticket: u64) {
        if let Some(Peer::Command(connection)) = self.peers.get_mut(place) {
            connection.wait_for(ticket);
        }
    }

    /// What goes on.
    pub fn state(&self) -> State {
        let screen: &Screen = &self.screen;
        let (width, height) = screen.picture().size();
        State {
            width,
            height,
            on: screen.is_on(),
            viewers: self.peers.looking(),
            video: self.video.is_there(),
            keyboard: self.keyboard_side.is_heard(),
            mouse: self.mouse_side.is_heard(),
        }
    }

    /// Tells whoever has had something typed that the keyboard has all of it.
    fn tell_typed(&mut self) {
        while let Some(ticket) = self.typist.done(&self.keyboard) {
            for place in self.peers.places() {
                if let Some(Peer::Command(connection)) = self.peers.get_mut(place) {
                    connection.typed(ticket);
                }
            }
        }
    }
}
