//! The messages of synthvid, the protocol of Hyper-V's video device, versions 3.2 to 3.5.
//!
//! There is no public specification. What is here was taken from what Linux' drivers send and accept: `hyperv_fb.c` and `hyperv_drm_proto.c`
//! (numbers and fields of the messages, all packed and little-endian), and from Hyper-V's behaviour as these describe it. Each
//! message is an in-band packet with two headers: one of a VMBus pipe, and one of synthvid. Pure: bytes in, values out.
//!
//! * [`GuestMessage`]: what the guest says.
//! * [`HostMessage`]: what it is told.

mod guest;
mod host;

pub use guest::{Dirt, GuestMessage, PointerPart};
pub use host::{Features, HostMessage, MAX_RESOLUTIONS, Resolution};

use thiserror::Error;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A version of the protocol: the major number in the low half, the minor one in the high half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(u32);

impl Version {
    /// Of Windows 8 and Server 2012.
    pub const V3_2: Version = Version::new(3, 2);
    /// Of Windows 10: the guest may ask which resolutions there are.
    pub const V3_5: Version = Version::new(3, 5);

    /// A version by its two numbers.
    pub const fn new(major: u16, minor: u16) -> Version {
        Version((minor as u32) << 16 | major as u32)
    }

    /// The one that a guest asks for.
    pub const fn from_wire(word: u32) -> Version {
        Version(word)
    }

    /// As it is on the wire.
    pub const fn wire(self) -> u32 {
        self.0
    }

    /// The major number.
    pub const fn major(self) -> u16 {
        self.0 as u16
    }

    /// The minor number.
    pub const fn minor(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Whether it is one that this device speaks: 3.2 to 3.5.
    pub const fn is_spoken(self) -> bool {
        self.major() == 3 && self.minor() >= 2 && self.minor() <= 5
    }

    /// Whether a guest may ask which resolutions there are.
    pub const fn has_resolutions(self) -> bool {
        self.is_spoken() && self.minor() >= 5
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

/// Bytes that are no message of their direction. The sender is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// Not even the headers.
    #[error("a packet of {0} bytes is no synthvid message")]
    NoHeader(usize),
    /// A packet of the pipe that holds no data.
    #[error("a pipe message of the unknown type {0}")]
    Pipe(u32),
    /// Lengths that disagree.
    #[error("a message says that it has {said} bytes, its packet {have}")]
    Length {
        /// In a header.
        said: u32,
        /// In fact.
        have: usize,
    },
    /// The bytes end before the message does.
    #[error("a message of type {kind} has {have} bytes, it needs {need}")]
    TooShort {
        /// Its type.
        kind: u32,
        /// Bytes behind the headers.
        have: usize,
        /// Bytes that it needs there.
        need: usize,
    },
    /// A type that is never sent in this direction.
    #[error("a message of the unknown type {0}")]
    UnknownKind(u32),
    /// This device has one screen.
    #[error("there is no screen {0}")]
    Screen(u8),
}

/// Types of messages.
mod kind {
    pub const VERSION_REQUEST: u32 = 1;
    pub const VERSION_RESPONSE: u32 = 2;
    pub const VRAM_LOCATION: u32 = 3;
    pub const VRAM_LOCATION_ACK: u32 = 4;
    pub const SITUATION_UPDATE: u32 = 5;
    pub const SITUATION_UPDATE_ACK: u32 = 6;
    pub const POINTER_POSITION: u32 = 7;
    pub const POINTER_SHAPE: u32 = 8;
    pub const FEATURE_CHANGE: u32 = 9;
    pub const DIRT: u32 = 10;
    pub const RESOLUTION_REQUEST: u32 = 13;
    pub const RESOLUTION_RESPONSE: u32 = 14;
}

/// Type of a pipe's message that holds data.
const PIPE_DATA: u32 = 1;

/// Both headers.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Headers {
    /// Of the pipe: [`PIPE_DATA`].
    pipe_type: U32,
    /// Of the pipe: bytes that follow its header.
    pipe_size: U32,
    /// Of synthvid: the type.
    kind: U32,
    /// Of synthvid: bytes of its header and of what follows.
    size: U32,
}

/// Bytes of the pipe's header.
const PIPE_HEADER: usize = 8;
/// Bytes of synthvid's header.
const HEADER: usize = 8;

/// A message's type and what follows the headers. A packet may be longer than its message: rings pad.
fn split(packet: &[u8]) -> Result<(u32, &[u8]), WireError> {
    let (headers, _) = Headers::ref_from_prefix(packet).map_err(|_| WireError::NoHeader(packet.len()))?;
    if headers.pipe_type.get() != PIPE_DATA {
        return Err(WireError::Pipe(headers.pipe_type.get()));
    }
    let after = |bytes: &'_ [u8], at: usize, said: u32| match bytes.get(at..) {
        Some(rest) if said as usize <= rest.len() => Ok(said as usize),
        _ => Err(WireError::Length { said, have: bytes.len() }),
    };
    let piped = after(packet, PIPE_HEADER, headers.pipe_size.get())?;
    let message = &packet[PIPE_HEADER..PIPE_HEADER + piped];
    let said = headers.size.get();
    match message.get(HEADER..said as usize) {
        Some(body) => Ok((headers.kind.get(), body)),
        None => Err(WireError::Length { said, have: message.len() }),
    }
}

/// The fields of a message, and what follows them.
fn fields<F>(kind: u32, body: &[u8]) -> Result<(&F, &[u8]), WireError>
where
    F: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let short = WireError::TooShort { kind, have: body.len(), need: size_of::<F>() };
    F::ref_from_prefix(body).map_err(|_| short)
}

/// A message of these fields, and of what follows them.
fn compose(kind: u32, fields: &(impl IntoBytes + Immutable), rest: &[u8]) -> Vec<u8> {
    let fields = fields.as_bytes();
    let size = U32::new((HEADER + fields.len() + rest.len()) as u32);
    let headers = Headers { pipe_type: PIPE_DATA.into(), pipe_size: size, kind: kind.into(), size };
    [headers.as_bytes(), fields, rest].concat()
}

#[cfg(test)]
mod tests;
