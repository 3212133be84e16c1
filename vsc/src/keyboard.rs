//! The consumer of the synthetic keyboard: what `hyperv-keyboard` is in a kernel (Linux
//! `drivers/input/serio/hyperv-keyboard.c`), with the checks of a test.
//!
//! Messages are in-band packets with nothing around them. The driver asks for a completion of its proposal as well as for
//! the answer to it; both have to come, once. What the guest believes to be pressed is in [`Keyboard::held`].

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use vmbus::PAGE_SIZE;
use vmbus::message::Offer;
use vmbus::packet::{Outgoing, PacketType};

use crate::channel::Channel;
use crate::client::{Client, OpenOptions};
use crate::error::Error;
use crate::platform::Platform;

/// The only version: 1.0.
pub const VERSION_1_0: u32 = 1 << 16;
/// To the device: proposal of a version.
pub const PROTOCOL_REQUEST: u32 = 1;
/// From the device: its answer. Bit 0: accepted.
pub const PROTOCOL_RESPONSE: u32 = 2;
/// From the device: a key.
pub const EVENT: u32 = 3;
/// To the device: lamps, 16 bits. Linux never sends it.
pub const LED_INDICATORS: u32 = 4;
/// Bits of a key's event: the code is a character, not a scan code.
pub const IS_UNICODE: u32 = 1;
/// The key is released.
pub const IS_BREAK: u32 = 2;
/// `0xe0` comes before the scan code.
pub const IS_E0: u32 = 4;
/// `0xe1` comes before the scan code.
pub const IS_E1: u32 = 8;
/// Pages of each ring: room for 36 KiB, and the control page.
const RING_PAGES: u32 = (36 << 10) / PAGE_SIZE + 1;
/// How long the device may take for an answer, as in the driver.
const PATIENCE: Duration = Duration::from_secs(10);

/// The rings as the driver makes them.
pub fn rings() -> OpenOptions {
    OpenOptions { to_host_pages: RING_PAGES, to_guest_pages: RING_PAGES, ..OpenOptions::default() }
}

/// A message to the device.
pub fn message(kind: u32, body: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], body].concat()
}

/// A key, as the device says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Scan code (set 1, without the bit that says "released"), or a UTF-16 unit.
    pub code: u16,
    /// It is the latter.
    pub unicode: bool,
    /// `0xe0` comes first.
    pub e0: bool,
    /// `0xe1` comes first.
    pub e1: bool,
}

impl Key {
    /// A key of the main block.
    pub const fn plain(code: u16) -> Self {
        Self { code, unicode: false, e0: false, e1: false }
    }

    /// One that begins with `0xe0`.
    pub const fn extended(code: u16) -> Self {
        Self { code, unicode: false, e0: true, e1: false }
    }
}

/// Something happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stroke {
    /// Which one.
    pub key: Key,
    /// It was released, not pressed.
    pub up: bool,
}

/// A keyboard.
pub struct Keyboard<P: Platform> {
    channel: Channel<P>,
    held: BTreeSet<Key>,
    /// Ids of messages whose completion is due.
    due: BTreeSet<u64>,
    next_id: u64,
}

impl<P: Platform> Keyboard<P> {
    /// Opens a device and agrees on the version.
    pub fn open(client: &mut Client<P>, offer: &Offer) -> Result<Self, Error> {
        let channel = client.open(offer, &rings())?;
        let mut keyboard = Self::over(channel);
        if !keyboard.propose(VERSION_1_0)? {
            return Err(Error::Protocol("the keyboard does not speak version 1.0".into()));
        }
        Ok(keyboard)
    }

    /// Takes a channel that is open already, and says nothing.
    pub fn over(channel: Channel<P>) -> Self {
        Self { channel, held: BTreeSet::new(), due: BTreeSet::new(), next_id: 1 }
    }

    /// Proposes a version; whether it was accepted. Waits for the answer and for the completion.
    pub fn propose(&mut self, version: u32) -> Result<bool, Error> {
        self.send(&message(PROTOCOL_REQUEST, &version.to_le_bytes()), true)?;
        let deadline = Instant::now() + PATIENCE;
        let mut answer = None;
        while answer.is_none() || !self.due.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)?.ok_or(Error::Timeout("protocol response"))? {
                Received::Completion => {}
                Received::Response(status) if answer.is_none() && status < 2 => answer = Some(status == 1),
                other => {
                    return Err(Error::Protocol(format!("version {version:#x} is answered with {other:?}")));
                }
            }
        }
        Ok(answer == Some(true))
    }

    /// The next stroke; `None` if none comes in time.
    pub fn stroke(&mut self, timeout: Duration) -> Result<Option<Stroke>, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)? {
                None => return Ok(None),
                Some(Received::Completion) => {}
                Some(Received::Stroke(stroke)) => return Ok(Some(stroke)),
                Some(other) => return Err(Error::Protocol(format!("nobody asked for {other:?}"))),
            }
        }
    }

    /// Switches lamps: scroll lock, num lock and caps lock are the bits 0 to 2.
    pub fn set_leds(&mut self, leds: u16) -> Result<(), Error> {
        self.send(&message(LED_INDICATORS, &leds.to_le_bytes()), false)
    }

    /// Sends any bytes as a message.
    pub fn send(&mut self, message: &[u8], completion: bool) -> Result<(), Error> {
        let id = self.next_id;
        self.next_id += 1;
        if completion {
            self.due.insert(id);
        }
        self.channel.send_waiting(&Outgoing::in_band(id, completion), &[message], PATIENCE)
    }

    /// Keys that have been pressed and not released, as the guest sees it. Characters are not keys.
    pub fn held(&self) -> &BTreeSet<Key> {
        &self.held
    }

    /// How many completions have not come.
    pub fn completions_due(&self) -> usize {
        self.due.len()
    }

    /// The channel, for what a test does besides.
    pub fn channel(&mut self) -> &mut Channel<P> {
        &mut self.channel
    }

    /// The channel, to close it.
    pub fn into_channel(self) -> Channel<P> {
        self.channel
    }

    fn receive(&mut self, timeout: Duration) -> Result<Option<Received>, Error> {
        let Some(packet) = self.channel.receive(timeout)? else { return Ok(None) };
        let (header, payload) = (packet.header, packet.payload());
        match header.packet_type {
            PacketType::COMPLETION => match self.due.remove(&header.transaction_id) {
                true => Ok(Some(Received::Completion)),
                false => Err(Error::UnknownCompletion(header.transaction_id)),
            },
            PacketType::IN_BAND if !header.completion_requested() => {
                let received = parse(payload)?;
                if let Received::Stroke(Stroke { key, up }) = received
                    && !key.unicode
                {
                    if up {
                        self.held.remove(&key)
                    } else {
                        self.held.insert(key)
                    };
                }
                Ok(Some(received))
            }
            _ => Err(Error::Protocol(format!("a message was due, not {header:?}"))),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Received {
    Completion,
    Response(u32),
    Stroke(Stroke),
}

/// Reads the payload of a packet, which is padded to 8 bytes. The driver tells the messages' lengths from the packet's.
fn parse(payload: &[u8]) -> Result<Received, Error> {
    let word = |at: usize| payload.get(at..at + 4).and_then(|w| Some(u32::from_le_bytes(*w.first_chunk()?)));
    let broken =
        || Error::Protocol(format!("no message of a keyboard: {:02x?}", &payload[..payload.len().min(64)]));
    match (word(0).ok_or_else(broken)?, payload.len()) {
        (PROTOCOL_RESPONSE, 8) => Ok(Received::Response(word(4).ok_or_else(broken)?)),
        // Make code, two bytes of nothing, bits; padded from 12 to 16.
        (EVENT, 16) => {
            let (code, info) = (word(4).ok_or_else(broken)?, word(8).ok_or_else(broken)?);
            let is = |bit: u32| info & bit != 0;
            let (e0, e1, unicode) = (is(IS_E0), is(IS_E1), is(IS_UNICODE));
            // Of a scan code the driver takes 7 bits; a bit more would be read as "released".
            if code > 0xffff
                || info > 0xf
                || (e0 && e1)
                || (unicode && (e0 || e1))
                || (!unicode && code > 0x7f)
            {
                return Err(broken());
            }
            let key = Key { code: code as u16, unicode, e0, e1 };
            Ok(Received::Stroke(Stroke { key, up: is(IS_BREAK) }))
        }
        _ => Err(broken()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(code: u16, info: u32) -> Vec<u8> {
        let mut bytes = message(EVENT, &u32::from(code).to_le_bytes());
        bytes.extend_from_slice(&info.to_le_bytes());
        bytes.resize(16, 0);
        bytes
    }

    #[test]
    fn strokes_are_read() {
        let pressed = Stroke { key: Key::plain(0x1e), up: false };
        assert_eq!(parse(&event(0x1e, 0)).expect("good"), Received::Stroke(pressed));
        let released = Stroke { key: Key::extended(0x48), up: true };
        assert_eq!(parse(&event(0x48, IS_E0 | IS_BREAK)).expect("good"), Received::Stroke(released));
        let Received::Stroke(typed) = parse(&event(0x20ac, IS_UNICODE)).expect("good") else {
            panic!("kind")
        };
        assert!(typed.key.unicode && typed.key.code == 0x20ac);
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(parse(&[]).is_err());
        assert!(parse(&event(0x9e, 0)).is_err(), "the driver would take it for a release");
        assert!(parse(&event(1, 0x10)).is_err());
        assert!(parse(&event(1, IS_E0 | IS_E1)).is_err());
        assert!(parse(&event(1, 0)[..8]).is_err());
        assert!(parse(&message(9, &[0; 4])).is_err());
    }
}
