//! The mouse: what `vsp-hid --mouse` and the console say to each other.

use zerocopy::little_endian::{I16, U16};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::build::{self, Build};
use crate::message::{self, Message, MessageError, flag, put, put_kind};
use crate::socket::Seat;

/// The device's end of a pair.
pub type DeviceEnd = Seat<ToConsole, FromConsole>;
/// The console's end of a pair.
pub type ConsoleEnd = Seat<FromConsole, ToConsole>;

/// The right and the lower edge of the picture, in the pointer's coordinates.
pub const MAX_POSITION: u16 = 32767;
/// The buttons that there are.
pub const ALL_BUTTONS: u8 = 0x1f;

/// What the console says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromConsole {
    /// The console begins, or has lost count: the device is to say everything anew, from [`ToConsole::Hello`] on. Says nothing of buttons:
    /// a console that begins says [`FromConsole::ReleaseAll`] as well.
    Ask,
    /// The pointer is here: 0 is the left and the upper edge, [`MAX_POSITION`] the right and the lower one, whatever the resolution.
    Motion {
        /// From the left.
        x: u16,
        /// From the top.
        y: u16,
    },
    /// These buttons are held, and no others: bit 0 is the left one, 1 the right one, 2 the middle one, 3 and 4 those at the side.
    Buttons(u8),
    /// The wheels were turned by so many notches: away from the hand and to the right are positive.
    Wheel {
        /// The wheel.
        vertical: i16,
        /// The other one.
        horizontal: i16,
    },
    /// No button is held any more.
    ReleaseAll,
}

/// What the device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToConsole {
    /// A device process begins. It knows which buttons are held, or finds it in the socket: there is nothing to repeat.
    /// [`ToConsole::Ready`] follows.
    Hello {
        /// Of which build.
        build: Build,
    },
    /// Whether a driver of the guest's listens. While none does, events are forgotten.
    Ready(bool),
}

/// Numbers of the kinds.
mod kind {
    pub const HELLO: u16 = 0x301;
    pub const READY: u16 = 0x302;
    pub const ASK: u16 = 0x381;
    pub const MOTION: u16 = 0x382;
    pub const BUTTONS: u16 = 0x383;
    pub const WHEEL: u16 = 0x384;
    pub const RELEASE_ALL: u16 = 0x385;
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WheelFields {
    vertical: I16,
    horizontal: I16,
}

impl Message for FromConsole {
    fn encode(&self, into: &mut Vec<u8>) {
        match self {
            FromConsole::Ask => put_kind(into, kind::ASK),
            FromConsole::Motion { x, y } => put(into, kind::MOTION, &[U16::new(*x), U16::new(*y)]),
            FromConsole::Buttons(held) => put(into, kind::BUTTONS, &[*held, 0, 0, 0]),
            FromConsole::Wheel { vertical, horizontal } => {
                let fields = WheelFields { vertical: (*vertical).into(), horizontal: (*horizontal).into() };
                put(into, kind::WHEEL, &fields);
            }
            FromConsole::ReleaseAll => put_kind(into, kind::RELEASE_ALL),
        }
    }

    fn parse(bytes: &[u8]) -> Result<FromConsole, MessageError> {
        let (kind, body) = message::split(bytes)?;
        Ok(match kind {
            kind::ASK => FromConsole::Ask,
            kind::MOTION => {
                let ([x, y], _) = message::fields::<[U16; 2]>(kind, body)?;
                let (x, y) = (x.get(), y.get());
                if x > MAX_POSITION || y > MAX_POSITION {
                    return Err(MessageError::Senseless { kind, field: "position" });
                }
                FromConsole::Motion { x, y }
            }
            kind::BUTTONS => {
                let ([held, ..], _) = message::fields::<[u8; 4]>(kind, body)?;
                FromConsole::Buttons(held & ALL_BUTTONS)
            }
            kind::WHEEL => {
                let (fields, _) = message::fields::<WheelFields>(kind, body)?;
                FromConsole::Wheel { vertical: fields.vertical.get(), horizontal: fields.horizontal.get() }
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
        }
    }

    fn parse(bytes: &[u8]) -> Result<ToConsole, MessageError> {
        let (kind, body) = message::split(bytes)?;
        Ok(match kind {
            kind::HELLO => {
                let (build, _) = message::fields::<[u8; build::LEN]>(kind, body)?;
                ToConsole::Hello { build: Build::from_wire(build) }
            }
            kind::READY => {
                let ([ready, ..], _) = message::fields::<[u8; 4]>(kind, body)?;
                ToConsole::Ready(flag(ready))
            }
            other => return Err(MessageError::Unknown(other)),
        })
    }
}
