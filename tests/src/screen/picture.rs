//! Pixels, as a guest draws them and as a viewer has them.

use crate::steps::Dice;

/// A rectangle inside a picture: `x2` and `y2` are outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Left.
    pub x: u32,
    /// Top.
    pub y: u32,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Area {
    /// Any that is inside, often small, sometimes all of it.
    pub fn random(dice: &mut Dice, width: u32, height: u32) -> Self {
        let mut side = |whole: u32| match dice.roll(8) {
            0 => (0, whole),
            1 => (dice.roll(whole), 1),
            2..=4 => {
                let len = 1 + dice.roll(whole.min(70));
                (dice.roll(whole - len + 1), len)
            }
            _ => {
                let len = 1 + dice.roll(whole);
                (dice.roll(whole - len + 1), len)
            }
        };
        let ((x, width), (y, height)) = (side(width), side(height));
        Self { x, y, width, height }
    }

    /// Pixels.
    pub fn pixels(&self) -> usize {
        self.width as usize * self.height as usize
    }
}

/// A picture of 24 bits a pixel: `0x00RRGGBB`.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    pixels: Vec<u32>,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{} pixels", self.width, self.height)
    }
}

impl Picture {
    /// A black one.
    pub fn new(width: u32, height: u32) -> Self {
        Self { width, height, pixels: vec![0; width as usize * height as usize] }
    }

    fn row(&self, x: u32, y: u32, width: u32) -> std::ops::Range<usize> {
        let start = y as usize * self.width as usize + x as usize;
        start..start + width as usize
    }

    /// Puts pixels.
    pub fn put(&mut self, area: Area, pixels: &[u32]) {
        for (y, line) in (area.y..).zip(pixels.chunks_exact(area.width as usize)) {
            let row = self.row(area.x, y, area.width);
            self.pixels[row].copy_from_slice(line);
        }
    }

    /// One pixel.
    pub fn at(&self, x: u32, y: u32) -> u32 {
        self.pixels[self.row(x, y, 1).start]
    }

    /// The pixels of a part.
    pub fn part(&self, area: Area) -> Vec<u32> {
        (area.y..area.y + area.height)
            .flat_map(|y| self.pixels[self.row(area.x, y, area.width)].iter().copied())
            .collect()
    }

    /// The same with fewer bits.
    pub fn masked(mut self, mask: u32) -> Self {
        self.pixels.iter_mut().for_each(|pixel| *pixel &= mask);
        self
    }

    /// Where they differ by more than `slack` in a colour, if they do: in how many pixels, and the first of them.
    pub fn difference(&self, other: &Self, slack: u8) -> Option<String> {
        if (self.width, self.height) != (other.width, other.height) {
            return Some(format!("{self:?} are not {other:?}"));
        }
        let close = |a: u32, b: u32| {
            let bytes = a.to_le_bytes().into_iter().zip(b.to_le_bytes()).take(3);
            bytes.into_iter().all(|(a, b)| a.abs_diff(b) <= slack)
        };
        // Most rows are the same, which is seen at once.
        let width = (self.width as usize).max(1);
        let rows = self.pixels.chunks_exact(width).zip(other.pixels.chunks_exact(width));
        let rows = rows.enumerate().filter(|(_, (ours, theirs))| ours != theirs);
        let mut differ = rows.flat_map(|(y, (ours, theirs))| {
            let pairs = ours.iter().zip(theirs).enumerate();
            pairs.filter(|(_, (a, b))| a != b && !close(**a, **b)).map(move |(x, pair)| (x, y, pair))
        });
        let (x, y, (ours, theirs)) = differ.next()?;
        Some(format!("{} pixels differ, first {ours:06x} and {theirs:06x} at ({x}, {y})", 1 + differ.count()))
    }
}

/// Pixels that are one of the things that screens show: one colour, text, a gradient, noise.
pub fn texture(dice: &mut Dice, area: Area) -> Vec<u32> {
    let mut colour = || dice.number() as u32 & 0xff_ffff;
    let (one, other) = (colour(), colour());
    let kind = dice.roll(6);
    let palette: Vec<u32> = (0..3 + dice.roll(30)).map(|_| dice.number() as u32 & 0xff_ffff).collect();
    let mut run = (0, one);
    (0..area.pixels() as u32)
        .map(|n| {
            let (x, y) = (n % area.width, n / area.width);
            match kind {
                0 => one,
                1 if dice.roll(3) == 0 => one,
                1 => other,
                2 => palette[dice.roll(palette.len() as u32) as usize],
                3 => (x & 0xff) << 16 | (y & 0xff) << 8 | (x + y) & 0xff,
                4 => {
                    if run.0 == 0 {
                        run = (1 + dice.roll(400), palette[dice.roll(palette.len() as u32) as usize]);
                    }
                    run.0 -= 1;
                    run.1
                }
                _ => dice.number() as u32 & 0xff_ffff,
            }
        })
        .collect()
}

/// How a viewer wants its pixels (RFC 6143, 7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Bits of a pixel: 8, 16 or 32.
    pub bits: u8,
    /// Bits that say something.
    pub depth: u8,
    /// Most significant byte first.
    pub big: bool,
    /// Largest red, green and blue.
    pub max: [u16; 3],
    /// Where they begin.
    pub shift: [u8; 3],
}

impl Format {
    /// 32 bits: a zero, red, green, blue.
    pub const RGB32: Self = Self { bits: 32, depth: 24, big: false, max: [255; 3], shift: [16, 8, 0] };
    /// The other way round, and the most significant byte first.
    pub const BGR32_BIG: Self = Self { big: true, shift: [0, 8, 16], ..Self::RGB32 };
    /// What colours there are is in the upper three bytes.
    pub const RGB32_HIGH: Self = Self { shift: [24, 16, 8], ..Self::RGB32 };
    /// 16 bits.
    pub const RGB565: Self = Self { bits: 16, depth: 16, big: false, max: [31, 63, 31], shift: [11, 5, 0] };
    /// The same, most significant byte first.
    pub const RGB565_BIG: Self = Self { big: true, ..Self::RGB565 };
    /// 8 bits.
    pub const RGB332: Self = Self { bits: 8, depth: 8, big: false, max: [7, 7, 3], shift: [5, 2, 0] };

    /// Bytes of a pixel.
    pub fn bytes(&self) -> usize {
        usize::from(self.bits / 8)
    }

    /// As it is sent.
    pub fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[self.bits, self.depth, self.big.into(), 1]);
        for (n, max) in self.max.iter().enumerate() {
            bytes[4 + 2 * n..6 + 2 * n].copy_from_slice(&max.to_be_bytes());
        }
        bytes[10..13].copy_from_slice(&self.shift);
        bytes
    }

    /// As it is received; only true colour.
    pub fn decode(bytes: &[u8; 16]) -> Option<Self> {
        let max = [4, 6, 8].map(|at| u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        let [bits, depth, big, true_colour, ..] = *bytes;
        let good = matches!(bits, 8 | 16 | 32) && true_colour != 0;
        good.then_some(Self { bits, depth, big: big != 0, max, shift: [bytes[10], bytes[11], bytes[12]] })
    }

    /// A pixel from its bytes.
    pub fn value(&self, bytes: &[u8]) -> u32 {
        let each = bytes.iter().map(|&byte| u32::from(byte));
        if self.big {
            each.fold(0, |all, byte| all << 8 | byte)
        } else {
            each.rev().fold(0, |all, byte| all << 8 | byte)
        }
    }

    /// The colour of a pixel.
    pub fn colour(&self, value: u32) -> u32 {
        if *self == Self::RGB32 {
            return value & 0xff_ffff;
        }
        (0..3).fold(0, |colour, n| {
            let max = u32::from(self.max[n]).max(1);
            let part = value.checked_shr(self.shift[n].into()).unwrap_or(0) & max;
            (colour << 8) | ((part * 255 + max / 2) / max)
        })
    }

    /// How far a colour may be from what was drawn: one step of the coarsest.
    pub fn slack(&self) -> u8 {
        let coarsest = self.max.iter().min().copied().unwrap_or(1).max(1);
        if coarsest >= 255 { 0 } else { (255 / coarsest) as u8 + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read_as_they_are_written() {
        for format in [Format::RGB32, Format::BGR32_BIG, Format::RGB565, Format::RGB332] {
            assert_eq!(Format::decode(&format.encode()), Some(format));
        }
        assert_eq!(Format::RGB32.colour(Format::RGB32.value(&[3, 2, 1, 9])), 0x01_0203);
        assert_eq!(Format::BGR32_BIG.colour(Format::BGR32_BIG.value(&[9, 3, 2, 1])), 0x01_0203);
        assert_eq!(Format::RGB565.colour(0xf800), 0xff_0000);
        assert_eq!(Format::RGB332.colour(0x1c), 0x00_ff00);
    }

    #[test]
    fn differences_are_found() {
        let (mut one, other) = (Picture::new(20, 10), Picture::new(20, 10));
        assert_eq!(one.difference(&other, 0), None);
        one.put(Area { x: 19, y: 9, width: 1, height: 1 }, &[0x10]);
        assert!(one.difference(&other, 0).expect("one").contains("1 pixels differ"));
        assert_eq!(one.difference(&other, 16), None);
        assert_eq!(one.at(19, 9), 0x10);
    }

    #[test]
    fn areas_are_inside() {
        let mut dice = Dice(3);
        for _ in 0..2000 {
            let area = Area::random(&mut dice, 100, 3);
            assert!(area.x + area.width <= 100 && area.y + area.height <= 3 && area.pixels() > 0, "{area:?}");
            assert_eq!(texture(&mut dice, area).len(), area.pixels());
        }
    }
}
