//! Tight (the community's "rfbproto" document, 7.7.6), without its lossy forms: one colour, up to 256 colours by number, or all
//! pixels, in three compressed streams.

use super::{Palette, Stream};
use crate::rfb::pixel::Translator;

/// One colour fills the rectangle.
const FILL: u8 = 0x80;
/// The filter follows.
const FILTERED: u8 = 0x40;
/// The filter: numbers of colours.
const PALETTE: u8 = 1;

/// Streams by what is in them, as others use them too.
const FULL: usize = 0;
const TWO_COLOURS: usize = 1;
const COLOURS: usize = 2;

/// Data shorter than this goes as it is, without a length.
const SHORT: usize = 12;

/// Streams that have begun.
pub(super) type Streams = [Option<Stream>; 3];

/// Appends rectangles.
pub(super) struct Writer<'a> {
    pub translator: &'a Translator,
    pub palette: &'a mut Palette,
    pub streams: &'a mut Streams,
    pub level: u8,
    pub plain: &'a mut Vec<u8>,
}

impl Writer<'_> {
    /// Appends what follows a rectangle's head.
    pub fn put(&mut self, pixels: &[u32], width: usize, out: &mut Vec<u8>) {
        self.plain.clear();
        // Numbers of one byte are no gain over pixels of one byte.
        let most = if self.translator.tight_len() == 1 { 2 } else { 256 };
        let few = self.palette.fill(pixels, most);
        match self.palette.colours() {
            [colour] if few => {
                out.push(FILL);
                self.translator.put_tight(&[*colour], out);
            }
            [first, second] if few => {
                out.extend_from_slice(&[FILTERED | (TWO_COLOURS as u8) << 4, PALETTE, 1]);
                self.translator.put_tight(&[*first, *second], out);
                for row in pixels.chunks(width) {
                    for eight in row.chunks(8) {
                        let bits = eight.iter().zip(0u8..).filter(|(pixel, _)| **pixel == *second);
                        self.plain.push(bits.fold(0, |byte, (_, bit)| byte | 0x80 >> bit));
                    }
                }
                self.put_data(TWO_COLOURS, out);
            }
            colours if few => {
                let last = (colours.len() - 1) as u8;
                out.extend_from_slice(&[FILTERED | (COLOURS as u8) << 4, PALETTE, last]);
                self.translator.put_tight(colours, out);
                self.plain.extend(pixels.iter().map(|pixel| self.palette.number(*pixel)));
                self.put_data(COLOURS, out);
            }
            _ => {
                out.push((FULL as u8) << 4);
                self.translator.put_tight(pixels, self.plain);
                self.put_data(FULL, out);
            }
        }
    }

    fn put_data(&mut self, stream: usize, out: &mut Vec<u8>) {
        if self.plain.len() < SHORT {
            return out.extend_from_slice(self.plain);
        }
        let stream = self.streams[stream].get_or_insert_with(|| Stream::new(self.level));
        // The length comes first, in one to three bytes: three always, so that nothing has to be moved. A piece of 32,768 pixels
        // is far from the four mebibytes that they can say.
        let at = out.len();
        out.extend_from_slice(&[0; 3]);
        stream.compress(self.plain, out);
        let len = out.len() - at - 3;
        let bytes = [len as u8 | 0x80, (len >> 7) as u8 | 0x80, (len >> 14) as u8];
        out[at..at + 3].copy_from_slice(&bytes);
    }
}
