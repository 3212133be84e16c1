//! What a viewer understands: the list of its SetEncodings message (RFC 6143, 7.5.2 and 7.7, and the community's registry).

/// How pixels are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// In tiles, compressed as one stream.
    Zrle,
    /// In rectangles, each compressed by what is in it.
    Tight,
}

impl Encoding {
    /// Its number.
    pub const fn number(self) -> i32 {
        match self {
            Encoding::Raw => 0,
            Encoding::Zrle => 16,
            Encoding::Tight => 7,
        }
    }
}

/// Numbers of what is not about pixels.
pub mod pseudo {
    /// The picture has another size.
    pub const DESKTOP_SIZE: i32 = -223;
    /// The pointer's shape in the viewer's pixels, with a mask.
    pub const CURSOR: i32 = -239;
    /// QEMU's key events with scan codes.
    pub const QEMU_KEY: i32 = -258;
    /// Lamps of the keyboard.
    pub const QEMU_LED_STATE: i32 = -261;
    /// The picture has another size, with reasons and screens.
    pub const EXTENDED_DESKTOP_SIZE: i32 = -308;
    /// Both sides can mark a place in the stream.
    pub const FENCE: i32 = -312;
    /// The pointer's shape in four bytes a pixel.
    pub const CURSOR_WITH_ALPHA: i32 = -314;
    /// Levels of compression 0 to 9.
    pub const COMPRESS_LEVELS: std::ops::RangeInclusive<i32> = -256..=-247;
}

/// What a viewer understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encodings {
    /// How it wants its pixels.
    pub pixels: Encoding,
    /// How hard to compress, 0 to 9, if it says.
    pub level: Option<u8>,
    /// [`pseudo::DESKTOP_SIZE`].
    pub desktop_size: bool,
    /// [`pseudo::EXTENDED_DESKTOP_SIZE`].
    pub extended_desktop_size: bool,
    /// [`pseudo::CURSOR`].
    pub cursor: bool,
    /// [`pseudo::CURSOR_WITH_ALPHA`].
    pub cursor_with_alpha: bool,
    /// [`pseudo::QEMU_KEY`].
    pub qemu_key: bool,
    /// [`pseudo::QEMU_LED_STATE`].
    pub led_state: bool,
    /// [`pseudo::FENCE`].
    pub fence: bool,
}

impl Encodings {
    /// What everybody understands.
    pub const BASIC: Encodings = Encodings {
        pixels: Encoding::Raw,
        level: None,
        desktop_size: false,
        extended_desktop_size: false,
        cursor: false,
        cursor_with_alpha: false,
        qemu_key: false,
        led_state: false,
        fence: false,
    };

    /// What a list says. Of the encodings of pixels the first that is known counts.
    pub fn of(list: &[i32]) -> Encodings {
        let mut found = Encodings::BASIC;
        let known = [Encoding::Raw, Encoding::Zrle, Encoding::Tight];
        let best = list.iter().find_map(|number| known.into_iter().find(|known| known.number() == *number));
        found.pixels = best.unwrap_or(Encoding::Raw);
        for number in list {
            match *number {
                pseudo::DESKTOP_SIZE => found.desktop_size = true,
                pseudo::EXTENDED_DESKTOP_SIZE => found.extended_desktop_size = true,
                pseudo::CURSOR => found.cursor = true,
                pseudo::CURSOR_WITH_ALPHA => found.cursor_with_alpha = true,
                pseudo::QEMU_KEY => found.qemu_key = true,
                pseudo::QEMU_LED_STATE => found.led_state = true,
                pseudo::FENCE => found.fence = true,
                level if pseudo::COMPRESS_LEVELS.contains(&level) => {
                    found.level = u8::try_from(level + 256).ok()
                }
                _ => {}
            }
        }
        found
    }

    /// Whether it can follow a picture that changes its size.
    pub fn can_resize(&self) -> bool {
        self.desktop_size || self.extended_desktop_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_viewers_order_counts() {
        assert_eq!(Encodings::of(&[]), Encodings::BASIC);
        assert_eq!(Encodings::of(&[1, 16, 7, 0]).pixels, Encoding::Zrle);
        assert_eq!(Encodings::of(&[5, 7, 16]).pixels, Encoding::Tight);
        assert_eq!(Encodings::of(&[0, 16]).pixels, Encoding::Raw);
        let found = Encodings::of(&[7, -308, -314, -250, -258]);
        assert!(found.can_resize() && found.cursor_with_alpha && found.qemu_key && !found.cursor);
        assert_eq!(found.level, Some(6));
    }
}
