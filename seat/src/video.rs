//! The screen: what `vsp-video` and the console say to each other.

use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::build::{self, Build};
use crate::message::{self, MAX_MESSAGE, Message, MessageError, flag, put, put_kind};
use crate::shape::{self, ShapePart};
use crate::socket::Seat;

/// The device's end of a pair.
pub type DeviceEnd = Seat<ToConsole, FromConsole>;
/// The console's end of a pair.
pub type ConsoleEnd = Seat<FromConsole, ToConsole>;

/// Most rectangles of one [`ToConsole::Dirty`].
pub const MAX_RECTS: usize = 64;
/// Largest width of a surface.
pub const MAX_WIDTH: u32 = 3840;
/// Largest height of a surface.
pub const MAX_HEIGHT: u32 = 2160;
/// Largest video memory in bytes.
pub const MAX_VRAM: u64 = 256 << 20;

/// What the device says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToConsole {
    /// A device process begins: all that another one has said is void. Surface or its absence, and the pointer, follow.
    Hello {
        /// Of which build.
        build: Build,
    },
    /// There is a picture from now on, and all of it is new. Comes with the video memory, of [`Surface::vram_bytes`] at least: the same as
    /// before, or another.
    Surface(Surface),
    /// There is no picture.
    NoSurface,
    /// These parts of the picture have been drawn.
    Dirty(Rects),
    /// Any part of the picture may have been drawn: the device had more to tell than the socket had room for.
    AllDirty,
    /// A part of the pointer's shape; see [`shape`].
    PointerShape(ShapePart),
    /// Where the pointer's hot spot is on the picture (perhaps outside), and whether it is to be seen.
    PointerPosition {
        /// From the left.
        x: i32,
        /// From the top.
        y: i32,
        /// To be seen.
        visible: bool,
    },
}

/// What the console says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromConsole {
    /// The console begins, or has lost count: the device is to say everything anew, from [`ToConsole::Hello`] on.
    Ask,
    /// Whether anybody looks. Nobody does before the first one.
    Watched(bool),
}

/// A picture in video memory: `height` rows of `width` pixels from the top, each row `stride` bytes after the one before.
///
/// What was parsed is sound: rows do not overlap and all of them lie in `vram_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surface {
    /// Pixels of a row, 1 to [`MAX_WIDTH`].
    pub width: u32,
    /// Rows, 1 to [`MAX_HEIGHT`].
    pub height: u32,
    /// Bytes from row to row.
    pub stride: u32,
    /// How a pixel is stored.
    pub depth: Depth,
    /// Byte of the video memory at which the first row begins.
    pub offset: u64,
    /// Bytes of the video memory, at most [`MAX_VRAM`].
    pub vram_bytes: u64,
}

/// How a pixel is stored, in little-endian order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// 16 bits: five of red (the highest), six of green, five of blue.
    Rgb565,
    /// 32 bits: eight of nothing (the highest), then red, green, blue.
    Xrgb8888,
}

impl Depth {
    /// Bytes of a pixel.
    pub const fn bytes(self) -> u32 {
        self.bits() / 8
    }

    /// Bits of a pixel.
    pub const fn bits(self) -> u32 {
        match self {
            Depth::Rgb565 => 16,
            Depth::Xrgb8888 => 32,
        }
    }

    /// The one of so many bits.
    pub const fn of_bits(bits: u32) -> Option<Depth> {
        match bits {
            16 => Some(Depth::Rgb565),
            32 => Some(Depth::Xrgb8888),
            _ => None,
        }
    }
}

impl Surface {
    /// What is wrong with it, if anything is: the name of a field.
    pub const fn fault(&self) -> Option<&'static str> {
        if self.width == 0 || self.width > MAX_WIDTH {
            return Some("width");
        }
        if self.height == 0 || self.height > MAX_HEIGHT {
            return Some("height");
        }
        if self.vram_bytes > MAX_VRAM {
            return Some("size of video memory");
        }
        if self.stride < self.width * self.depth.bytes() {
            return Some("stride");
        }
        // None of these can overflow: 32 bits times 12 bits, plus less than 64 bits' worth.
        let last =
            self.stride as u64 * (self.height as u64 - 1) + self.width as u64 * self.depth.bytes() as u64;
        match self.offset.checked_add(last) {
            Some(end) if end <= self.vram_bytes => None,
            _ => Some("offset"),
        }
    }

    /// All of the picture.
    pub const fn whole(&self) -> Rect {
        Rect { x1: 0, y1: 0, x2: self.width as i32, y2: self.height as i32 }
    }
}

/// A rectangle: from `(x1, y1)` up to, and without, column `x2` and row `y2`. Perhaps empty, perhaps outside of the picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rect {
    /// First column.
    pub x1: i32,
    /// First row.
    pub y1: i32,
    /// The column behind the last.
    pub x2: i32,
    /// The row behind the last.
    pub y2: i32,
}

impl Rect {
    /// What of it lies in a picture of this size; `None`: nothing.
    pub fn within(&self, width: u32, height: u32) -> Option<Rect> {
        let limit = |value: i32, most: u32| value.clamp(0, i32::try_from(most).unwrap_or(i32::MAX));
        let cut = Rect {
            x1: limit(self.x1, width),
            y1: limit(self.y1, height),
            x2: limit(self.x2, width),
            y2: limit(self.y2, height),
        };
        (cut.x1 < cut.x2 && cut.y1 < cut.y2).then_some(cut)
    }
}

/// Up to [`MAX_RECTS`] rectangles.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Rects(Vec<Rect>);

impl Rects {
    /// None yet.
    pub const NONE: Rects = Rects(Vec::new());

    /// Adds one; false: there are [`MAX_RECTS`] already.
    #[must_use = "a rectangle that finds no place has to be told in another way"]
    pub fn push(&mut self, rect: Rect) -> bool {
        let fits = self.0.len() < MAX_RECTS;
        if fits {
            self.0.push(rect);
        }
        fits
    }
}

impl std::ops::Deref for Rects {
    type Target = [Rect];
    fn deref(&self) -> &[Rect] {
        &self.0
    }
}

impl std::fmt::Debug for Rects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Numbers of the kinds.
mod kind {
    pub const HELLO: u16 = 0x101;
    pub const SURFACE: u16 = 0x102;
    pub const NO_SURFACE: u16 = 0x103;
    pub const DIRTY: u16 = 0x104;
    pub const ALL_DIRTY: u16 = 0x105;
    pub const POINTER_SHAPE: u16 = 0x106;
    pub const POINTER_POSITION: u16 = 0x107;
    pub const ASK: u16 = 0x181;
    pub const WATCHED: u16 = 0x182;
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SurfaceFields {
    width: U32,
    height: U32,
    stride: U32,
    depth: U32,
    offset: U64,
    vram_bytes: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RectFields {
    x1: I32,
    y1: I32,
    x2: I32,
    y2: I32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PositionFields {
    x: I32,
    y: I32,
    visible: u8,
    zero: [u8; 3],
}

const _: () = assert!(16 + 4 + MAX_RECTS * size_of::<RectFields>() <= MAX_MESSAGE);

impl Message for ToConsole {
    fn encode(&self, into: &mut Vec<u8>) {
        match self {
            ToConsole::Hello { build } => put(into, kind::HELLO, &build.wire()),
            ToConsole::Surface(surface) => {
                let fields = SurfaceFields {
                    width: surface.width.into(),
                    height: surface.height.into(),
                    stride: surface.stride.into(),
                    depth: surface.depth.bits().into(),
                    offset: surface.offset.into(),
                    vram_bytes: surface.vram_bytes.into(),
                };
                put(into, kind::SURFACE, &fields);
            }
            ToConsole::NoSurface => put_kind(into, kind::NO_SURFACE),
            ToConsole::Dirty(rects) => {
                put(into, kind::DIRTY, &[U16::new(rects.len() as u16), U16::ZERO]);
                for rect in rects.iter() {
                    let fields = RectFields {
                        x1: rect.x1.into(),
                        y1: rect.y1.into(),
                        x2: rect.x2.into(),
                        y2: rect.y2.into(),
                    };
                    into.extend_from_slice(fields.as_bytes());
                }
            }
            ToConsole::AllDirty => put_kind(into, kind::ALL_DIRTY),
            ToConsole::PointerShape(part) => shape::put_part(into, kind::POINTER_SHAPE, part),
            ToConsole::PointerPosition { x, y, visible } => {
                let fields = PositionFields {
                    x: (*x).into(),
                    y: (*y).into(),
                    visible: (*visible).into(),
                    zero: [0; 3],
                };
                put(into, kind::POINTER_POSITION, &fields);
            }
        }
    }

    fn parse(bytes: &[u8]) -> Result<ToConsole, MessageError> {
        let (kind, body) = message::split(bytes)?;
        Ok(match kind {
            kind::HELLO => {
                let (build, _) = message::fields::<[u8; build::LEN]>(kind, body)?;
                ToConsole::Hello { build: Build::from_wire(build) }
            }
            kind::SURFACE => ToConsole::Surface(surface(kind, body)?),
            kind::NO_SURFACE => ToConsole::NoSurface,
            kind::DIRTY => ToConsole::Dirty(rects(kind, body)?),
            kind::ALL_DIRTY => ToConsole::AllDirty,
            kind::POINTER_SHAPE => ToConsole::PointerShape(shape::part(kind, body)?),
            kind::POINTER_POSITION => {
                let (fields, _) = message::fields::<PositionFields>(kind, body)?;
                ToConsole::PointerPosition {
                    x: fields.x.get(),
                    y: fields.y.get(),
                    visible: flag(fields.visible),
                }
            }
            other => return Err(MessageError::Unknown(other)),
        })
    }

    fn memory(&self) -> Option<u64> {
        match self {
            ToConsole::Surface(surface) => Some(surface.vram_bytes),
            _ => None,
        }
    }
}

fn surface(kind: u16, body: &[u8]) -> Result<Surface, MessageError> {
    let (fields, _) = message::fields::<SurfaceFields>(kind, body)?;
    let depth = Depth::of_bits(fields.depth.get()).ok_or(MessageError::Senseless { kind, field: "depth" })?;
    let surface = Surface {
        width: fields.width.get(),
        height: fields.height.get(),
        stride: fields.stride.get(),
        depth,
        offset: fields.offset.get(),
        vram_bytes: fields.vram_bytes.get(),
    };
    match surface.fault() {
        None => Ok(surface),
        Some(field) => Err(MessageError::Senseless { kind, field }),
    }
}

fn rects(kind: u16, body: &[u8]) -> Result<Rects, MessageError> {
    let ([count, _], mut rest) = message::fields::<[U16; 2]>(kind, body)?;
    let mut rects = Rects::NONE;
    for _ in 0..count.get() {
        let (fields, behind) = message::fields::<RectFields>(kind, rest)?;
        rest = behind;
        let rect =
            Rect { x1: fields.x1.get(), y1: fields.y1.get(), x2: fields.x2.get(), y2: fields.y2.get() };
        if !rects.push(rect) {
            return Err(MessageError::Senseless { kind, field: "number of rectangles" });
        }
    }
    Ok(rects)
}

impl Message for FromConsole {
    fn encode(&self, into: &mut Vec<u8>) {
        match self {
            FromConsole::Ask => put_kind(into, kind::ASK),
            FromConsole::Watched(watched) => put(into, kind::WATCHED, &[u8::from(*watched), 0, 0, 0]),
        }
    }

    fn parse(bytes: &[u8]) -> Result<FromConsole, MessageError> {
        let (kind, body) = message::split(bytes)?;
        Ok(match kind {
            kind::ASK => FromConsole::Ask,
            kind::WATCHED => {
                let ([watched, ..], _) = message::fields::<[u8; 4]>(kind, body)?;
                FromConsole::Watched(flag(watched))
            }
            other => return Err(MessageError::Unknown(other)),
        })
    }
}
