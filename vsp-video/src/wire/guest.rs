//! What the guest says.

use seat::video::Rect;
use zerocopy::little_endian::{I32, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Version, WireError, compose, fields, kind, split};
use crate::state::Situation;

/// What the guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMessage<'a> {
    /// Which version it wants to speak; answered.
    VersionRequest(Version),
    /// Where in guest-physical memory the video memory is to be; answered.
    VramLocation {
        /// Comes back with the answer.
        context: u64,
        /// The address; `None`: nowhere.
        gpa: Option<u64>,
    },
    /// What the picture is; answered.
    SituationUpdate {
        /// Comes back with the answer.
        context: u64,
        /// Of the first screen; `None`: the guest has none.
        situation: Option<Situation>,
    },
    /// Where the pointer is.
    PointerPosition {
        /// To be seen.
        visible: bool,
        /// Of the hot spot, from the left.
        x: i32,
        /// The same from the top.
        y: i32,
    },
    /// A part of the pointer's shape, or all of it.
    PointerShape(PointerPart<'a>),
    /// Where it has drawn.
    Dirt(Dirt<'a>),
    /// Which resolutions there are; answered.
    ResolutionRequest {
        /// Most that it can take.
        most: u8,
    },
}

/// A part of the pointer's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointerPart<'a> {
    /// Number of the part, from 0; [`PointerPart::LAST`] is the last one, or the only one.
    pub index: u8,
    /// Four bytes a pixel (blue, green, red, alpha); else something that no driver is known to send.
    pub is_argb: bool,
    /// Pixels of a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// The pixel that points, from the left.
    pub hot_x: u32,
    /// The same from the top.
    pub hot_y: u32,
    /// Bytes of this part.
    pub bytes: &'a [u8],
}

impl PointerPart<'_> {
    /// Number of the last part (`CURSOR_COMPLETE`).
    pub const LAST: u8 = 0xff;
}

/// Rectangles in which the guest has drawn: anything, perhaps outside of the picture.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Dirt<'a>(&'a [RectFields]);

impl Dirt<'_> {
    /// The rectangles.
    pub fn rects(&self) -> impl Iterator<Item = Rect> {
        self.0.iter().map(|rect| Rect {
            x1: rect.x1.get(),
            y1: rect.y1.get(),
            x2: rect.x2.get(),
            y2: rect.y2.get(),
        })
    }

    /// A guest's message of such rectangles, 255 at most; for tests.
    pub fn message(rects: &[Rect]) -> Vec<u8> {
        let count = rects.len().min(usize::from(u8::MAX));
        let fields = |rect: &Rect| RectFields {
            x1: rect.x1.into(),
            y1: rect.y1.into(),
            x2: rect.x2.into(),
            y2: rect.y2.into(),
        };
        let rects: Vec<_> = rects[..count].iter().map(fields).collect();
        compose(kind::DIRT, &DirtFields { screen: 0, count: count as u8 }, rects.as_bytes())
    }
}

impl std::fmt::Debug for Dirt<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.rects()).finish()
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LocationFields {
    context: U64,
    is_specified: u8,
    gpa: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SituationHead {
    context: U64,
    screens: u8,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SituationFields {
    active: u8,
    vram_offset: U32,
    depth_bits: u8,
    width: U32,
    height: U32,
    pitch: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PositionFields {
    visible: u8,
    screen: u8,
    x: I32,
    y: I32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ShapeFields {
    index: u8,
    is_argb: u8,
    width: U32,
    height: U32,
    hot_x: U32,
    hot_y: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DirtFields {
    screen: u8,
    count: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RectFields {
    x1: I32,
    y1: I32,
    x2: I32,
    y2: I32,
}

impl<'a> GuestMessage<'a> {
    /// What the payload of a packet says.
    pub fn parse(packet: &'a [u8]) -> Result<GuestMessage<'a>, WireError> {
        let (kind, body) = split(packet)?;
        Ok(match kind {
            kind::VERSION_REQUEST => {
                let (version, _) = fields::<U32>(kind, body)?;
                GuestMessage::VersionRequest(Version::from_wire(version.get()))
            }
            kind::VRAM_LOCATION => {
                let (location, _) = fields::<LocationFields>(kind, body)?;
                let gpa = (location.is_specified != 0).then_some(location.gpa.get());
                GuestMessage::VramLocation { context: location.context.get(), gpa }
            }
            kind::SITUATION_UPDATE => {
                let (head, rest) = fields::<SituationHead>(kind, body)?;
                // Of several screens the first is ours.
                let situation = if head.screens == 0 { None } else { Some(situation(kind, rest)?) };
                GuestMessage::SituationUpdate { context: head.context.get(), situation }
            }
            kind::POINTER_POSITION => {
                let (position, _) = fields::<PositionFields>(kind, body)?;
                check_screen(position.screen)?;
                let (x, y) = (position.x.get(), position.y.get());
                GuestMessage::PointerPosition { visible: position.visible != 0, x, y }
            }
            kind::POINTER_SHAPE => {
                let (shape, bytes) = fields::<ShapeFields>(kind, body)?;
                GuestMessage::PointerShape(PointerPart {
                    index: shape.index,
                    is_argb: shape.is_argb != 0,
                    width: shape.width.get(),
                    height: shape.height.get(),
                    hot_x: shape.hot_x.get(),
                    hot_y: shape.hot_y.get(),
                    bytes,
                })
            }
            kind::DIRT => {
                let (head, rest) = fields::<DirtFields>(kind, body)?;
                check_screen(head.screen)?;
                let count = usize::from(head.count);
                let short = WireError::TooShort {
                    kind,
                    have: body.len(),
                    need: size_of::<DirtFields>() + count * size_of::<RectFields>(),
                };
                let (rects, _) =
                    <[RectFields]>::ref_from_prefix_with_elems(rest, count).map_err(|_| short)?;
                GuestMessage::Dirt(Dirt(rects))
            }
            kind::RESOLUTION_REQUEST => {
                let (most, _) = fields::<u8>(kind, body)?;
                GuestMessage::ResolutionRequest { most: *most }
            }
            other => return Err(WireError::UnknownKind(other)),
        })
    }

    /// As a packet's payload; for tests.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            GuestMessage::VersionRequest(version) => {
                compose(kind::VERSION_REQUEST, &U32::new(version.wire()), &[])
            }
            GuestMessage::VramLocation { context, gpa } => {
                let fields = LocationFields {
                    context: (*context).into(),
                    is_specified: gpa.is_some().into(),
                    gpa: gpa.unwrap_or(0).into(),
                };
                compose(kind::VRAM_LOCATION, &fields, &[])
            }
            GuestMessage::SituationUpdate { context, situation } => {
                let screens = situation.is_some().into();
                let screen = situation.map(|situation| SituationFields {
                    active: situation.active.into(),
                    vram_offset: situation.offset.into(),
                    depth_bits: situation.depth_bits,
                    width: situation.width.into(),
                    height: situation.height.into(),
                    pitch: situation.pitch.into(),
                });
                let head = SituationHead { context: (*context).into(), screens };
                compose(kind::SITUATION_UPDATE, &head, screen.as_ref().map_or(&[], IntoBytes::as_bytes))
            }
            GuestMessage::PointerPosition { visible, x, y } => {
                let fields =
                    PositionFields { visible: (*visible).into(), screen: 0, x: (*x).into(), y: (*y).into() };
                compose(kind::POINTER_POSITION, &fields, &[])
            }
            GuestMessage::PointerShape(part) => {
                let fields = ShapeFields {
                    index: part.index,
                    is_argb: part.is_argb.into(),
                    width: part.width.into(),
                    height: part.height.into(),
                    hot_x: part.hot_x.into(),
                    hot_y: part.hot_y.into(),
                };
                compose(kind::POINTER_SHAPE, &fields, part.bytes)
            }
            GuestMessage::Dirt(dirt) => {
                let fields = DirtFields { screen: 0, count: dirt.0.len() as u8 };
                compose(kind::DIRT, &fields, dirt.0.as_bytes())
            }
            GuestMessage::ResolutionRequest { most } => compose(kind::RESOLUTION_REQUEST, most, &[]),
        }
    }
}

fn situation(kind: u32, body: &[u8]) -> Result<Situation, WireError> {
    let (screen, _) = fields::<SituationFields>(kind, body)?;
    Ok(Situation {
        active: screen.active != 0,
        offset: screen.vram_offset.get(),
        depth_bits: screen.depth_bits,
        width: screen.width.get(),
        height: screen.height.get(),
        pitch: screen.pitch.get(),
    })
}

fn check_screen(screen: u8) -> Result<(), WireError> {
    if screen == 0 { Ok(()) } else { Err(WireError::Screen(screen)) }
}
