//! The keyboard: what `vsp-hid --keyboard` and the console say to each other.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::build::{self, Build};
use crate::message::{self, Message, MessageError, flag, put, put_kind};
use crate::socket::Seat;

/// The device's end of a pair.
pub type DeviceEnd = Seat<ToConsole, FromConsole>;
/// The console's end of a pair.
pub type ConsoleEnd = Seat<FromConsole, ToConsole>;

/// What the console says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromConsole {
    /// The console begins, or has lost count: the device is to say everything anew, from [`ToConsole::Hello`] on. Says nothing of keys:
    /// a console that begins says [`FromConsole::ReleaseAll`] as well.
    Ask,
    /// A key went down or up.
    Key(Key),
    /// A character was typed that no key has: one unit of UTF-16, pressed and released.
    Unicode(u16),
    /// No key is held any more.
    ReleaseAll,
}

/// A key's event, as a PC keyboard of scan code set 1 tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The make code without prefix, 1 to 0x7f: 0x1e is `a`, 0x1c with `e0` the keypad's Enter.
    pub scancode: u16,
    /// Prefixed by E0.
    pub e0: bool,
    /// Prefixed by E1, as Pause (0x1d) is.
    pub e1: bool,
    /// Released; else pressed, or repeated while it is held.
    pub up: bool,
}

impl Key {
    /// What is wrong with it, if anything is: the name of a field.
    pub const fn fault(&self) -> Option<&'static str> {
        match self.scancode {
            0 | 0x80.. => Some("scan code"),
            // Released, they would be the prefixes themselves.
            0x60 | 0x61 if !self.e0 && !self.e1 => Some("scan code"),
            _ if self.e0 && self.e1 => Some("prefix"),
            _ => None,
        }
    }
}

/// What the device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToConsole {
    /// A device process begins. It knows which keys are held, or finds it in the socket: there is nothing to repeat. [`ToConsole::Ready`] and
    /// [`ToConsole::Leds`] follow.
    Hello {
        /// Of which build.
        build: Build,
    },
    /// Whether a driver of the guest's listens. While none does, keys are forgotten.
    Ready(bool),
    /// The lamps that the guest wants to be on.
    Leds(Leds),
}

/// Lamps of a keyboard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leds {
    /// Scroll Lock.
    pub scroll: bool,
    /// Num Lock.
    pub num: bool,
    /// Caps Lock.
    pub caps: bool,
}

/// Numbers of the kinds.
mod kind {
    pub const HELLO: u16 = 0x201;
    pub const READY: u16 = 0x202;
    pub const LEDS: u16 = 0x203;
    pub const ASK: u16 = 0x281;
    pub const KEY: u16 = 0x282;
    pub const UNICODE: u16 = 0x283;
    pub const RELEASE_ALL: u16 = 0x284;
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct KeyFields {
    scancode: U16,
    /// [`E0`], [`E1`] and [`UP`].
    flags: U16,
}

const E0: u16 = 1;
const E1: u16 = 2;
const UP: u16 = 4;

impl Message for FromConsole {
    fn encode(&self, into: &mut Vec<u8>) {
        match self {
            FromConsole::Ask => put_kind(into, kind::ASK),
            FromConsole::Key(key) => {
                let bit = |is: bool, bit: u16| if is { bit } else { 0 };
                let flags = bit(key.e0, E0) | bit(key.e1, E1) | bit(key.up, UP);
                put(into, kind::KEY, &KeyFields { scancode: key.scancode.into(), flags: flags.into() });
            }
            FromConsole::Unicode(unit) => put(into, kind::UNICODE, &[U16::new(*unit), U16::ZERO]),
            FromConsole::ReleaseAll => put_kind(into, kind::RELEASE_ALL),
        }
    }

    fn parse(bytes: &[u8]) -> Result<FromConsole, MessageError> {
        let (kind, body) = message::split(bytes)?;
        Ok(match kind {
            kind::ASK => FromConsole::Ask,
            kind::KEY => {
                let (fields, _) = message::fields::<KeyFields>(kind, body)?;
                let (scancode, flags) = (fields.scancode.get(), fields.flags.get());
                let is = |bit| flags & bit != 0;
                let key = Key { scancode, e0: is(E0), e1: is(E1), up: is(UP) };
                match key.fault() {
                    None => FromConsole::Key(key),
                    Some(field) => return Err(MessageError::Senseless { kind, field }),
                }
            }
            kind::UNICODE => {
                let ([unit, _], _) = message::fields::<[U16; 2]>(kind, body)?;
                FromConsole::Unicode(unit.get())
            }
            kind::RELEASE_ALL => FromConsole::ReleaseAll,
            other => return Err(MessageError::Unknown(other)),
        })
    }
}

impl Message for ToConsole {
    fn encode(&self, into: &mut Vec<u8>) {
        match self {
            ToConsole::Hello { build } => put(into, kind::HELLO, &build.wire()),
            ToConsole::Ready(ready) => put(into, kind::READY, &[u8::from(*ready), 0, 0, 0]),
            ToConsole::Leds(leds) => {
                let bits = u8::from(leds.scroll) | u8::from(leds.num) << 1 | u8::from(leds.caps) << 2;
                put(into, kind::LEDS, &[bits, 0, 0, 0]);
            }
        }
    }

    fn parse(bytes: &[u8]) -> Result<ToConsole, MessageError> {
        let (kind, body) = message::split(bytes)?;
        let first = || message::fields::<[u8; 4]>(kind, body).map(|(bytes, _)| bytes[0]);
        Ok(match kind {
            kind::HELLO => {
                let (build, _) = message::fields::<[u8; build::LEN]>(kind, body)?;
                ToConsole::Hello { build: Build::from_wire(build) }
            }
            kind::READY => ToConsole::Ready(flag(first()?)),
            kind::LEDS => {
                let bits = first()?;
                ToConsole::Leds(Leds { scroll: bits & 1 != 0, num: bits & 2 != 0, caps: bits & 4 != 0 })
            }
            other => return Err(MessageError::Unknown(other)),
        })
    }
}
