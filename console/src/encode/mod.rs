//! Pixels as a viewer wants them: one rectangle at a time, from a picture to the bytes that follow the rectangle's head.
//!
//! An encoder belongs to one viewer: the compressed streams go on from rectangle to rectangle. It must never hold more than
//! one piece's worth of bytes besides them.

mod palette;
mod stream;
mod tight;
mod zrle;

use crate::damage::Rect;
use crate::rfb::encodings::Encoding;
use crate::rfb::pixel::{PixelFormat, Translator};
use crate::rfb::reply;
use crate::screen::Picture;

pub use palette::Palette;
pub use stream::Stream;

/// Largest piece that is encoded in one go: 32,768 pixels, a few milliseconds at most, so that nobody waits for long for one
/// who wants his pixels compressed. Tight's rectangles may not be wider than 2,048, and ZRLE's tiles have 64 rows.
const PIECE: (u32, u32) = (512, 64);

/// Levels of compression that are worth the time of all who wait; viewers ask for up to 9.
const LEVELS: std::ops::RangeInclusive<u8> = 1..=3;

/// Encodes for one viewer.
#[derive(Debug)]
pub struct Encoder {
    translator: Translator,
    level: u8,
    zrle: Option<Stream>,
    tight: tight::Streams,
    pixels: Vec<u32>,
    plain: Vec<u8>,
    palette: Palette,
}

impl Default for Encoder {
    fn default() -> Encoder {
        Encoder::new()
    }
}

impl Encoder {
    /// For a viewer that has not said what it wants.
    pub fn new() -> Encoder {
        Encoder {
            translator: Translator::new(PixelFormat::NATIVE),
            level: *LEVELS.start(),
            zrle: None,
            tight: tight::Streams::default(),
            pixels: Vec::new(),
            plain: Vec::new(),
            palette: Palette::new(),
        }
    }

    /// The viewer's pixels.
    pub fn translator(&self) -> &Translator {
        &self.translator
    }

    /// The viewer wants this format from now on.
    pub fn set_format(&mut self, format: PixelFormat) {
        if *self.translator.format() != format {
            self.translator = Translator::new(format);
        }
    }

    /// How hard to compress. A stream that has begun goes on as it was.
    pub fn set_level(&mut self, level: Option<u8>) {
        self.level = level.unwrap_or(*LEVELS.start()).clamp(*LEVELS.start(), *LEVELS.end());
    }

    /// Whether the picture's bytes are what the viewer gets.
    pub fn is_verbatim(&self, encoding: Encoding) -> bool {
        encoding == Encoding::Raw && self.translator.format().is_native()
    }

    /// Cuts a rectangle into pieces that [`Encoder::encode`] takes; one that is verbatim and `inside` the picture stays whole.
    pub fn cut(&self, rect: Rect, encoding: Encoding, inside: bool, into: &mut Vec<Rect>) {
        if inside && self.is_verbatim(encoding) {
            return into.push(rect);
        }
        for y1 in (rect.y1..rect.y2).step_by(PIECE.1 as usize) {
            for x1 in (rect.x1..rect.x2).step_by(PIECE.0 as usize) {
                into.push(Rect { x1, y1, x2: rect.x2.min(x1 + PIECE.0), y2: rect.y2.min(y1 + PIECE.1) });
            }
        }
    }

    /// Appends a piece: its head and its pixels.
    pub fn encode(&mut self, piece: Rect, encoding: Encoding, picture: &Picture, out: &mut Vec<u8>) {
        picture.copy(piece, &mut self.pixels);
        // The highest eight bits mean nothing; pixels that differ in them are the same.
        self.pixels.iter_mut().for_each(|pixel| *pixel &= 0xff_ffff);
        reply::rectangle(piece, encoding, out);
        match encoding {
            Encoding::Raw => self.translator.put(&self.pixels, out),
            Encoding::Zrle => {
                let stream = self.zrle.get_or_insert_with(|| Stream::new(self.level));
                self.plain.clear();
                let mut tiles = zrle::Tiles {
                    translator: &self.translator,
                    palette: &mut self.palette,
                    out: &mut self.plain,
                };
                tiles.put(&self.pixels, piece.width() as usize);
                let at = out.len();
                out.extend_from_slice(&[0; 4]);
                stream.compress(&self.plain, out);
                let len = (out.len() - at - 4) as u32;
                out[at..at + 4].copy_from_slice(&len.to_be_bytes());
            }
            Encoding::Tight => {
                let mut writer = tight::Writer {
                    translator: &self.translator,
                    palette: &mut self.palette,
                    streams: &mut self.tight,
                    level: self.level,
                    plain: &mut self.plain,
                };
                writer.put(&self.pixels, piece.width() as usize, out);
            }
        }
    }
}

#[cfg(test)]
mod tests;
