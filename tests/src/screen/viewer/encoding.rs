//! Encodings and pseudo-encodings.

/// Pixels as they are.
pub const RAW: i32 = 0;
/// From another place of the picture.
pub const COPY_RECT: i32 = 1;
/// Rectangles in several forms and zlib streams.
pub const TIGHT: i32 = 7;
/// Tiles in a zlib stream.
pub const ZRLE: i32 = 16;
/// The picture has another size.
pub const DESKTOP_SIZE: i32 = -223;
/// The number of rectangles is not known beforehand.
pub const LAST_RECT: i32 = -224;
/// The viewer draws the pointer.
pub const CURSOR: i32 = -239;
/// Keys by their codes.
pub const QEMU_KEYS: i32 = -258;
/// Lamps.
pub const LEDS: i32 = -261;
/// The picture's name.
pub const DESKTOP_NAME: i32 = -307;
/// The picture has another size, for a reason.
pub const EXTENDED_DESKTOP_SIZE: i32 = -308;
/// Numbers that come back.
pub const FENCE: i32 = -312;
/// Updates that nobody asks for.
pub const CONTINUOUS: i32 = -313;
/// The same with transparency.
pub const CURSOR_ALPHA: i32 = -314;
/// Everything that this viewer knows, the best first.
pub const ALL: &[i32] = &[
    ZRLE,
    RAW,
    COPY_RECT,
    CURSOR_ALPHA,
    CURSOR,
    EXTENDED_DESKTOP_SIZE,
    DESKTOP_SIZE,
    LAST_RECT,
    QEMU_KEYS,
    LEDS,
    DESKTOP_NAME,
];
