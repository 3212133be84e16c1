//! Who is connected: viewers, browsers on their way to be one, and commands.

use std::os::fd::RawFd;
use std::time::Instant;

use crate::input::Holder;
use crate::viewer::Viewer;
use crate::{control, web};

/// Most viewers that look.
pub const MAX_VIEWERS: usize = 16;
/// Most connections of those who may look, on whatever way they are to it: the same again, which the impatient can have to themselves for the
/// time of a handshake.
const MAX_CONNECTIONS: usize = 2 * MAX_VIEWERS;
/// Most of those of whom it is not known yet whether they may: anybody who reaches a TCP port. They have places of their own, so that they
/// keep nobody out but each other.
const MAX_STRANGERS: usize = 16;
/// Most commands.
pub const MAX_COMMANDS: usize = 8;
/// Most browsers' connections that are no viewers.
const MAX_BROWSERS: usize = 16;

// Strangers who have shown who they are come on top of those who had to show nothing.
const _: () = assert!(
    MAX_CONNECTIONS + MAX_VIEWERS + MAX_STRANGERS + MAX_COMMANDS + MAX_BROWSERS <= Holder::PLACES,
    "each place has a holder of keys of its own"
);

/// Somebody.
#[derive(Debug)]
pub enum Peer {
    /// Who looks, or will.
    Viewer(Box<Viewer>),
    /// Who commands.
    Command(Box<control::Connection>),
    /// Who reads the web page.
    Browser(Box<web::Connection>),
}

impl Peer {
    /// The descriptor to watch.
    pub fn fd(&self) -> RawFd {
        match self {
            Peer::Viewer(viewer) => viewer.fd(),
            Peer::Command(connection) => connection.fd(),
            Peer::Browser(connection) => std::os::fd::AsRawFd::as_raw_fd(&**connection),
        }
    }

    /// Whether it is not known yet whether he may be here.
    fn is_stranger(&self) -> bool {
        match self {
            Peer::Viewer(viewer) => viewer.is_stranger(),
            Peer::Command(_) => false,
            Peer::Browser(connection) => !connection.is_admitted(),
        }
    }
}

/// A place and who is in it.
#[derive(Debug)]
struct Place {
    peer: Peer,
    /// Rises with each who comes.
    number: u64,
    /// Something happened, and it has not had its turn since. (Viewers and commands know for themselves.)
    woken: bool,
}

/// Everybody, by place.
#[derive(Debug, Default)]
pub struct Peers {
    places: Vec<Option<Place>>,
    /// How many have come.
    come: u64,
}

impl Peers {
    /// Nobody.
    pub fn new() -> Peers {
        Peers::default()
    }

    /// Whether there is room for one more of its kind.
    pub fn has_room(&self, like: Kind) -> bool {
        let (kind, most) = match like {
            Kind::Viewer => (Kind::Viewer, MAX_CONNECTIONS),
            Kind::Stranger => (Kind::Stranger, MAX_STRANGERS),
            Kind::Command => (Kind::Command, MAX_COMMANDS),
            Kind::Browser => (Kind::Browser, MAX_BROWSERS),
        };
        self.iter().filter(|peer| Kind::of(peer) == kind).count() < most
    }

    /// The place of that one of a kind who has been a stranger for the longest time.
    pub fn oldest_stranger(&self, kind: Kind) -> Option<usize> {
        let all = self.places.iter().enumerate();
        let all = all.filter_map(|(place, taken)| Some((place, taken.as_ref()?)));
        let strangers = all.filter(|(_, it)| Kind::of(&it.peer) == kind && it.peer.is_stranger());
        strangers.min_by_key(|(_, it)| it.number).map(|(place, _)| place)
    }

    /// A free place: less than the sum of all that there may be.
    pub fn free_place(&mut self) -> usize {
        let free = self.places.iter().position(Option::is_none);
        free.unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        })
    }

    /// Somebody takes a place.
    pub fn put(&mut self, place: usize, peer: Peer) {
        self.come += 1;
        if let Some(free) = self.places.get_mut(place) {
            *free = Some(Place { peer, number: self.come, woken: true });
        }
    }

    /// Somebody goes.
    pub fn take(&mut self, place: usize) -> Option<Peer> {
        self.places.get_mut(place)?.take().map(|place| place.peer)
    }

    /// Places, taken or not.
    pub fn places(&self) -> std::ops::Range<usize> {
        0..self.places.len()
    }

    /// Who is in a place.
    pub fn get_mut(&mut self, place: usize) -> Option<&mut Peer> {
        self.places.get_mut(place)?.as_mut().map(|place| &mut place.peer)
    }

    /// Whether something happened to a browser since that was asked for last, or its time is over.
    pub fn is_woken(&mut self, place: usize, now: Instant) -> bool {
        let Some(Some(place)) = self.places.get_mut(place) else { return false };
        let Peer::Browser(connection) = &place.peer else { return false };
        std::mem::take(&mut place.woken) || connection.deadline().is_some_and(|deadline| now >= deadline)
    }

    /// Something happened to somebody.
    pub fn wake(&mut self, place: usize, readable: bool, writable: bool) {
        let Some(place) = self.places.get_mut(place).and_then(Option::as_mut) else { return };
        place.woken = true;
        match &mut place.peer {
            Peer::Viewer(viewer) => viewer.wake(readable, writable),
            Peer::Command(connection) => connection.wake(readable, writable),
            Peer::Browser(_) => {}
        }
    }

    /// Nobody is at the other end any more. Viewers and browsers find that by reading.
    pub fn hang_up(&mut self, place: usize) {
        if let Some(Peer::Command(connection)) = self.get_mut(place) {
            connection.hang_up();
        }
    }

    /// It has more to do without an event.
    pub fn again(&mut self, place: usize) {
        if let Some(place) = self.places.get_mut(place).and_then(Option::as_mut) {
            place.woken = true;
        }
    }

    /// Everybody.
    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.places.iter().flatten().map(|place| &place.peer)
    }

    /// All viewers.
    pub fn viewers(&self) -> impl Iterator<Item = &Viewer> {
        self.iter().filter_map(|peer| if let Peer::Viewer(viewer) = peer { Some(&**viewer) } else { None })
    }

    /// All viewers.
    pub fn viewers_mut(&mut self) -> impl Iterator<Item = &mut Viewer> {
        self.places.iter_mut().flatten().filter_map(|place| match &mut place.peer {
            Peer::Viewer(viewer) => Some(&mut **viewer),
            _ => None,
        })
    }

    /// Viewers that look.
    pub fn looking(&self) -> usize {
        self.viewers().filter(|viewer| viewer.is_running()).count()
    }

    /// Whether somebody has something to do without an event.
    pub fn is_ready(&self) -> bool {
        self.places.iter().flatten().any(|place| match &place.peer {
            Peer::Viewer(viewer) => viewer.is_ready(),
            Peer::Command(connection) => connection.is_ready(),
            Peer::Browser(_) => place.woken,
        })
    }

    /// When somebody's patience, or ours with him, ends.
    pub fn deadline(&self) -> Option<Instant> {
        let deadlines = self.iter().filter_map(|peer| match peer {
            Peer::Viewer(viewer) => viewer.deadline(),
            Peer::Command(_) => None,
            Peer::Browser(connection) => connection.deadline(),
        });
        deadlines.min()
    }
}

/// What somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Peer::Viewer`] who may look.
    Viewer,
    /// [`Peer::Viewer`] who has to show first that he may.
    Stranger,
    /// [`Peer::Command`].
    Command,
    /// [`Peer::Browser`].
    Browser,
}

impl Kind {
    fn of(peer: &Peer) -> Kind {
        match peer {
            Peer::Viewer(viewer) if viewer.is_stranger() => Kind::Stranger,
            Peer::Viewer(_) => Kind::Viewer,
            Peer::Command(_) => Kind::Command,
            Peer::Browser(_) => Kind::Browser,
        }
    }
}
