//! The device: a channel, one end of a socket to the console, and the order of steps between them.
//!
//! An event of the console's is looked at and stays in its socket. Its packet goes into the ring together with the new state, which has
//! the event's number in it, and is published; then the event is taken from the socket. Whoever comes after a process that died anywhere in between
//! finds the event there again, and knows by the number whether the guest has it. So a key comes once, none stays down, and there is nothing to be
//! released after a death: what the guest knows is in the ledger, and what it does not know yet is in the socket.
//!
//! Events wait in the socket while the ring is full, while the [pace](crate::pace) has to be kept, and while a successor does not know yet which
//! channel there is. While no driver listens they are taken and forgotten: nobody wants keys that were hit minutes ago, when there was no guest.

use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use logs::Ration;
use seat::{Build, Seat, Sent};
use vsp::vmbus::packet::{Outgoing, PacketType};
use vsp::{ChannelId, Channels, Device, Notify, Offer, OpenRequest, Packet, Refused, Request};

use crate::instrument::{Instrument, Phase};
use crate::pace::Pace;
use crate::state;

/// Events looked at in one turn: however fast the console sends, the core and the guest are heard.
const EVENTS: usize = 64;

/// First and longest wait for room in the socket to the console, in whose absence there may be none for hours.
const RETRY: (Duration, Duration) = (Duration::from_millis(4), Duration::from_secs(1));

/// How often the console has sent what makes no sense, and guests have.
static JUNK: Ration = Ration::new();
static FAULTS: Ration = Ration::new();

/// The console's socket, as this end has it.
pub type End<I> = Seat<<I as Instrument>::News, <I as Instrument>::Event>;

/// A keyboard or a mouse.
#[derive(Debug)]
pub struct Hid<I: Instrument> {
    /// As the guest knows it.
    instrument: I,
    seat: End<I>,
    /// The socket does not work any more: nothing is heard or said.
    deaf: bool,
    role: Role,
    channel: Option<ChannelId>,
    /// The last event that the guest knows all about.
    number: Option<u64>,
    pace: Pace,
    /// When to look at the socket without having been told.
    look: Option<Instant>,
    untold: Untold,
}

/// Whether the socket is this process's to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// No: another process serves, or nobody.
    Idle,
    /// It is, but a predecessor may have left a channel that has not come yet: what is in the socket may be for its guest.
    Adopting,
    /// It is.
    Serving,
}

/// What the console has still to be told, in this order.
#[derive(Clone, Copy, Debug, Default)]
struct Untold {
    hello: bool,
    ready: bool,
    remark: bool,
    /// There was no room: when to try again, and how long that was.
    again: Option<(Instant, Duration)>,
}

impl Untold {
    const ALL: Untold = Untold { hello: true, ready: true, remark: true, again: None };
}

/// What became of an event.
enum Fate {
    /// The guest has it, or never will.
    Over,
    /// It stays in the socket; until then, or until there is room in the ring.
    Waits(Option<Instant>),
}

impl<I: Instrument> Hid<I> {
    /// A device that nobody has opened. `each`: the time from one packet to the next when there are many.
    pub fn new(instrument: I, seat: End<I>, each: Duration) -> Hid<I> {
        Hid {
            instrument,
            seat,
            deaf: false,
            role: Role::Idle,
            channel: None,
            number: None,
            pace: Pace::new(each),
            look: None,
            untold: Untold::default(),
        }
    }

    /// As the guest knows it.
    pub fn instrument(&self) -> &I {
        &self.instrument
    }

    fn is_ready(&self) -> bool {
        self.channel.is_some() && self.instrument.phase() == Phase::Ready
    }

    /// The channel is there, or none comes: the socket is this process's to read.
    fn begin(&mut self) {
        if self.role == Role::Adopting {
            self.role = Role::Serving;
            self.look = Some(Instant::now());
        }
    }

    /// What the guest knows is this from now on; the console hears what is new about it.
    fn become_known(&mut self, next: I) {
        let (ready, remark) = (self.is_ready(), self.remark());
        self.instrument = next;
        self.compare(ready, remark);
    }

    fn compare(&mut self, ready: bool, remark: Vec<u8>) {
        self.untold.ready |= ready != self.is_ready();
        self.untold.remark |= remark != self.remark();
    }

    fn remark(&self) -> Vec<u8> {
        use seat::Message;
        let mut bytes = Vec::new();
        if let Some(remark) = self.instrument.remark() {
            remark.encode(&mut bytes);
        }
        bytes
    }

    /// Tells the console what it does not know yet.
    fn tell(&mut self, now: Instant) {
        if self.deaf || self.role != Role::Serving || self.untold.again.is_some_and(|(then, _)| then > now) {
            return;
        }
        loop {
            let news = match self.untold {
                Untold { hello: true, .. } => I::hello(build()),
                Untold { ready: true, .. } => I::ready(self.is_ready()),
                Untold { remark: true, .. } => match self.instrument.remark() {
                    Some(remark) => remark,
                    None => break,
                },
                _ => break,
            };
            match self.seat.send(&news, None) {
                Ok(Sent::Whole) => self.untold.again = None,
                Ok(Sent::Full) => {
                    // Nobody tells of room: a console that stands still, or is being replaced.
                    let wait = self.untold.again.map_or(RETRY.0, |(_, wait)| (wait * 2).min(RETRY.1));
                    self.untold.again = Some((now + wait, wait));
                    return;
                }
                Err(error) => return self.go_deaf(&error),
            }
            match &mut self.untold {
                Untold { hello, .. } if *hello => *hello = false,
                Untold { ready, .. } if *ready => *ready = false,
                rest => rest.remark = false,
            }
        }
        self.untold = Untold::default();
    }

    fn go_deaf(&mut self, error: &dyn std::fmt::Display) {
        tracing::error!("nothing can be heard of the console any more: {error}");
        self.deaf = true;
        self.look = None;
        self.untold = Untold::default();
    }

    /// Looks at what the console has sent, and tells the guest.
    fn pump(&mut self, channels: &mut Channels) {
        let now = Instant::now();
        self.look = None;
        if self.role != Role::Serving || self.deaf {
            return;
        }
        self.tell(now);
        for _ in 0..EVENTS {
            match self.seat.peek() {
                Ok(None) => {
                    self.look = self.seat.look_again();
                    return;
                }
                Ok(Some(event)) if I::is_question(&event.message) => {
                    self.untold = Untold::ALL;
                    self.tell(now);
                }
                Ok(Some(event)) => match self.deliver(event.number, &event.message, now, channels) {
                    Fate::Over => {}
                    Fate::Waits(until) => {
                        self.look = until;
                        return;
                    }
                },
                Err(error) if error.is_peers_fault() => {
                    if let Some(times) = JUNK.another() {
                        tracing::warn!(times, "{error}");
                    }
                }
                Err(error) => return self.go_deaf(&error),
            }
            if let Err(error) = self.seat.skip() {
                return self.go_deaf(&error);
            }
        }
        self.look = Some(now);
    }

    /// Tells the guest of an event, as far as there is room.
    fn deliver(&mut self, number: u64, event: &I::Event, now: Instant, channels: &mut Channels) -> Fate {
        let Some(id) = self.channel.filter(|_| self.is_ready()) else { return Fate::Over };
        // A predecessor told the guest, and did not come to take it.
        if self.number == Some(number) {
            return Fate::Over;
        }
        while let Some(step) = self.instrument.act(event) {
            if let Err(then) = self.pace.may(now) {
                return Fate::Waits(Some(then));
            }
            let known = if step.last { Some(number) } else { self.number };
            let state = state::save(&step.next, known);
            match channels.notify_with_state(id, &Outgoing::in_band(0, false), &step.packet, &state) {
                Notify::Sent => {}
                // `room` follows.
                Notify::Full => return Fate::Waits(None),
                // Nobody will ever hear it.
                Notify::Dead => return Fate::Over,
            }
            // Before the event is taken from the socket.
            channels.publish(id);
            self.pace.went(now);
            self.number = known;
            self.instrument = step.next;
            if step.last {
                break;
            }
        }
        Fate::Over
    }
}

/// The name of this build, for the console's log.
fn build() -> Build {
    Build::new(option_env!("BULKHEAD_BUILD").unwrap_or(env!("CARGO_PKG_VERSION")))
}

impl<I: Instrument> Device for Hid<I> {
    fn offer(&self) -> Offer {
        Offer { class: I::CLASS.to_string(), ..Offer::default() }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.seat.as_raw_fd()]
    }

    fn sources(&self) -> Vec<RawFd> {
        self.descriptors()
    }

    fn depth(&self) -> u32 {
        // A driver has one question at a time; packets of our own need a slot of the ledger as well.
        16
    }

    fn fence(&mut self, predecessor: bool) -> Result<bool, String> {
        self.role = if predecessor { Role::Adopting } else { Role::Serving };
        self.untold = Untold::ALL;
        // What came before is not announced any more.
        self.look = Some(Instant::now());
        Ok(true)
    }

    fn adopted(&mut self, _channels: &mut Channels) {
        self.begin();
    }

    fn quiescing(&mut self) {
        self.role = Role::Idle;
    }

    fn release(&mut self) {
        self.role = Role::Idle;
        self.instrument.reopen();
        (self.channel, self.number, self.look, self.untold) = (None, None, None, Untold::default());
    }

    fn open(&mut self, channel: ChannelId, request: &OpenRequest) -> Result<(), Refused> {
        if request.subchannel != 0 || self.channel.is_some() {
            return Err(Refused::default());
        }
        self.channel = Some(channel);
        self.instrument.reopen();
        // What waits in the socket is not for a driver that has still to introduce itself.
        self.look = Some(Instant::now());
        Ok(())
    }

    fn restore(&mut self, _channel: ChannelId, saved: &[u8]) -> Result<(), String> {
        let (instrument, number) = state::load(&self.instrument, saved).map_err(|error| error.to_string())?;
        (self.instrument, self.number) = (instrument, number);
        Ok(())
    }

    fn resumed(&mut self, _channel: ChannelId, _channels: &mut Channels) {
        // There is no other channel to wait for.
        self.begin();
    }

    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        if packet.header.packet_type != PacketType::IN_BAND {
            return request.complete(channels, &[]);
        }
        match self.instrument.hear(packet.header.payload(packet.bytes)) {
            Ok(heard) => {
                let state = state::save(&heard.next, self.number);
                let packets: Vec<&[u8]> = heard.packets.iter().map(Vec::as_slice).collect();
                request.reply(channels, &packets, Some(&state));
                self.become_known(heard.next);
                self.tell(Instant::now());
            }
            Err(fault) => {
                if let Some(times) = FAULTS.another() {
                    tracing::warn!(times, "the guest has sent {fault}");
                }
                request.complete(channels, &[]);
            }
        }
    }

    fn submit(&mut self, channels: &mut Channels) {
        let now = Instant::now();
        if self.look.is_some_and(|then| then <= now) {
            self.pump(channels);
        } else {
            self.tell(now);
        }
    }

    fn ready(&mut self, _source: usize, channels: &mut Channels) {
        self.pump(channels);
    }

    fn room(&mut self, _channel: ChannelId, channels: &mut Channels) {
        self.pump(channels);
    }

    fn wake_at(&self) -> Option<Instant> {
        let tell = self.untold.again.map(|(then, _)| then);
        [self.look, tell].into_iter().flatten().min().filter(|_| self.role == Role::Serving)
    }

    fn closing(&mut self, channel: ChannelId) {
        if self.channel == Some(channel) {
            let (ready, remark) = (self.is_ready(), self.remark());
            self.channel = None;
            self.instrument.reopen();
            self.compare(ready, remark);
            let now = Instant::now();
            self.tell(now);
            // What waited for room, which nobody makes any more, is not for whoever opens the next channel. The socket may be full of it:
            // then nothing new comes that would announce itself.
            self.look = Some(now);
        }
    }
}

#[cfg(test)]
mod tests;
