//! A pointer's shape: up to 36 KiB of pixels, in parts.
//!
//! The parts of a shape have one serial number and come in order, the first at byte 0. A part of another shape, or out of
//! order, ends what was begun: a sender that cannot go on begins again with another serial.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::message::{self, MessageError, put};

/// Largest width and height: what synthvid allows (`CURSOR_MAX_X` and `CURSOR_MAX_Y` of Linux' `hyperv_fb.c`).
pub const MAX_SIDE: u16 = 96;
/// Most bytes of a part.
pub const MAX_PART: usize = 4000;

/// A pointer's shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Pixels of a row, 1 to [`MAX_SIDE`].
    pub width: u16,
    /// Rows, 1 to [`MAX_SIDE`].
    pub height: u16,
    /// The pixel that points, from the left; less than `width`.
    pub hot_x: u16,
    /// The same from the top; less than `height`.
    pub hot_y: u16,
    /// Rows from the top, four bytes a pixel: blue, green, red, alpha (not premultiplied).
    pub pixels: Vec<u8>,
}

impl Shape {
    /// What is wrong with it, if anything is: the name of a field.
    pub fn fault(&self) -> Option<&'static str> {
        size_fault(self.width, self.height, self.hot_x, self.hot_y)
            .or((self.pixels.len() != bytes_of(self.width, self.height)).then_some("number of pixels"))
    }

    /// Its part from a byte on; `None`: that was all.
    pub fn part(&self, serial: u32, offset: usize) -> Option<ShapePart> {
        let rest = self.pixels.get(offset..).filter(|rest| !rest.is_empty())?;
        let Shape { width, height, hot_x, hot_y, .. } = *self;
        let bytes = rest[..rest.len().min(MAX_PART)].to_vec();
        Some(ShapePart { serial, width, height, hot_x, hot_y, offset: offset as u32, bytes })
    }
}

/// Bytes of a shape's pixels.
const fn bytes_of(width: u16, height: u16) -> usize {
    width as usize * height as usize * 4
}

fn size_fault(width: u16, height: u16, hot_x: u16, hot_y: u16) -> Option<&'static str> {
    let side = 1..=MAX_SIDE;
    match () {
        () if !side.contains(&width) => Some("width"),
        () if !side.contains(&height) => Some("height"),
        () if hot_x >= width || hot_y >= height => Some("hot spot"),
        () => None,
    }
}

/// A part of a shape. What was parsed is sound: it lies in its shape and is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapePart {
    /// Tells shapes apart.
    pub serial: u32,
    /// The shape's width.
    pub width: u16,
    /// The shape's height.
    pub height: u16,
    /// The shape's hot spot.
    pub hot_x: u16,
    /// The shape's hot spot.
    pub hot_y: u16,
    /// At which byte of the pixels this part begins.
    pub offset: u32,
    /// The bytes, at most [`MAX_PART`].
    pub bytes: Vec<u8>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PartFields {
    serial: U32,
    width: U16,
    height: U16,
    hot_x: U16,
    hot_y: U16,
    offset: U32,
    len: U32,
}

pub(crate) fn put_part(into: &mut Vec<u8>, kind: u16, part: &ShapePart) {
    let bytes = &part.bytes[..part.bytes.len().min(MAX_PART)];
    let fields = PartFields {
        serial: part.serial.into(),
        width: part.width.into(),
        height: part.height.into(),
        hot_x: part.hot_x.into(),
        hot_y: part.hot_y.into(),
        offset: part.offset.into(),
        len: (bytes.len() as u32).into(),
    };
    put(into, kind, &fields);
    into.extend_from_slice(bytes);
}

pub(crate) fn part(kind: u16, body: &[u8]) -> Result<ShapePart, MessageError> {
    let senseless = |field| MessageError::Senseless { kind, field };
    let (fields, rest) = message::fields::<PartFields>(kind, body)?;
    let (width, height) = (fields.width.get(), fields.height.get());
    let (hot_x, hot_y) = (fields.hot_x.get(), fields.hot_y.get());
    if let Some(field) = size_fault(width, height, hot_x, hot_y) {
        return Err(senseless(field));
    }
    let (offset, len) = (fields.offset.get(), fields.len.get() as usize);
    let end = (offset as usize).checked_add(len).filter(|end| *end <= bytes_of(width, height));
    if len == 0 || len > MAX_PART || end.is_none() {
        return Err(senseless("part"));
    }
    let bytes = rest.get(..len).ok_or(MessageError::TooShort { kind, have: rest.len(), need: len })?;
    let serial = fields.serial.get();
    Ok(ShapePart { serial, width, height, hot_x, hot_y, offset, bytes: bytes.to_vec() })
}

/// Puts a shape together.
#[derive(Clone, Debug, Default)]
pub struct Assembly {
    begun: Option<(u32, Shape)>,
}

impl Assembly {
    /// Nothing has been received.
    pub fn new() -> Assembly {
        Assembly::default()
    }

    /// A part has been received: the shape, if it was the last one. A part that does not go on where the one before
    /// has ended is forgotten, and what was begun with it.
    pub fn add(&mut self, part: ShapePart) -> Option<Shape> {
        let ShapePart { serial, width, height, hot_x, hot_y, offset, bytes } = part;
        let (_, mut shape) = if offset == 0 {
            let pixels = Vec::with_capacity(bytes_of(width, height));
            (serial, Shape { width, height, hot_x, hot_y, pixels })
        } else {
            self.begun.take().filter(|(begun, shape)| {
                let same = (shape.width, shape.height, shape.hot_x, shape.hot_y);
                *begun == serial
                    && shape.pixels.len() == offset as usize
                    && same == (width, height, hot_x, hot_y)
            })?
        };
        self.begun = None;
        shape.pixels.extend_from_slice(&bytes);
        match shape.pixels.len().cmp(&bytes_of(width, height)) {
            std::cmp::Ordering::Less => {
                self.begun = Some((serial, shape));
                None
            }
            std::cmp::Ordering::Equal => Some(shape),
            // A part that was not parsed but made up.
            std::cmp::Ordering::Greater => None,
        }
    }
}
