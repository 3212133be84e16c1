//! ZRLE (RFC 6143, 7.7.6): tiles of 64 by 64 pixels, each in the shortest of six forms; the stream around them is the caller's.

use super::Palette;
use crate::rfb::pixel::Translator;

const SIDE: usize = 64;
/// Most colours of a tile with packed numbers.
const MAX_PACKED: usize = 16;
/// Most colours of a tile with runs of numbers.
const MAX_COLOURS: usize = 127;

/// Subencodings.
const RAW: u8 = 0;
const SOLID: u8 = 1;
const PLAIN_RUNS: u8 = 128;

/// Appends tiles.
pub(super) struct Tiles<'a> {
    pub translator: &'a Translator,
    pub palette: &'a mut Palette,
    pub out: &'a mut Vec<u8>,
}

/// Lengths of a tile's runs, added up as they would be sent.
#[derive(Default)]
struct Runs {
    /// How many.
    count: usize,
    /// Bytes for the lengths of all.
    lengths: usize,
    /// Bytes for the lengths of those of more than one pixel.
    long: usize,
}

impl Tiles<'_> {
    /// Appends the tiles of a piece, row by row.
    pub fn put(&mut self, pixels: &[u32], width: usize) {
        let mut tile = Vec::with_capacity(SIDE * SIDE);
        for band in pixels.chunks(width * SIDE) {
            for x in (0..width).step_by(SIDE) {
                let columns = SIDE.min(width - x);
                tile.clear();
                for row in band.chunks(width) {
                    tile.extend_from_slice(&row[x..x + columns]);
                }
                self.put_tile(&tile, columns);
            }
        }
    }

    fn put_tile(&mut self, tile: &[u32], columns: usize) {
        let pixel = self.translator.compact_len();
        let mut runs = Runs::default();
        for run in tile.chunk_by(|a, b| a == b) {
            let bytes = 1 + (run.len() - 1) / 255;
            runs.count += 1;
            runs.lengths += bytes;
            runs.long += if run.len() > 1 { bytes } else { 0 };
        }
        let raw = tile.len() * pixel;
        let plain = runs.count * pixel + runs.lengths;
        if self.palette.fill(tile, MAX_COLOURS) {
            let colours = self.palette.colours().len();
            let numbered = colours * pixel + runs.count + runs.long;
            let packed = match bits(colours) {
                Some(bits) => colours * pixel + tile.len() / columns * (columns * bits).div_ceil(8),
                None => usize::MAX,
            };
            let best = raw.min(plain).min(numbered).min(packed);
            match () {
                () if colours == 1 => {
                    self.out.push(SOLID);
                    return self.translator.put_compact(&tile[..1], self.out);
                }
                () if best == packed => return self.put_packed(tile, columns),
                () if best == numbered => return self.put_numbered_runs(tile),
                () => {}
            }
        }
        if plain < raw {
            self.out.push(PLAIN_RUNS);
            for run in tile.chunk_by(|a, b| a == b) {
                self.translator.put_compact(&run[..1], self.out);
                put_length(run.len(), self.out);
            }
        } else {
            self.out.push(RAW);
            self.translator.put_compact(tile, self.out);
        }
    }

    fn put_packed(&mut self, tile: &[u32], columns: usize) {
        let colours = self.palette.colours();
        self.out.push(colours.len() as u8);
        self.translator.put_compact(colours, self.out);
        let bits = bits(colours.len()).unwrap_or(8);
        for row in tile.chunks(columns) {
            for byte in row.chunks(8 / bits) {
                let mut packed = 0;
                for (index, pixel) in byte.iter().enumerate() {
                    packed |= self.palette.number(*pixel) << (8 - bits * (index + 1));
                }
                self.out.push(packed);
            }
        }
    }

    fn put_numbered_runs(&mut self, tile: &[u32]) {
        let colours = self.palette.colours();
        self.out.push(PLAIN_RUNS + colours.len() as u8);
        self.translator.put_compact(colours, self.out);
        for run in tile.chunk_by(|a, b| a == b) {
            let number = self.palette.number(run[0]);
            match run.len() {
                1 => self.out.push(number),
                len => {
                    self.out.push(number | 0x80);
                    put_length(len, self.out);
                }
            }
        }
    }
}

/// Bits of a packed number.
fn bits(colours: usize) -> Option<usize> {
    match colours {
        ..=2 => Some(1),
        3..=4 => Some(2),
        5..=MAX_PACKED => Some(4),
        _ => None,
    }
}

/// The length less one, as bytes that are added up; all but the last are 255.
fn put_length(len: usize, out: &mut Vec<u8>) {
    let rest = len - 1;
    out.extend(std::iter::repeat_n(255, rest / 255));
    out.push((rest % 255) as u8);
}
