//! How a viewer wants its pixels (RFC 6143, 7.4).

use super::Fault;

/// A viewer's pixel format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelFormat {
    /// 8, 16 or 32.
    pub bits: u8,
    /// How many of them count.
    pub depth: u8,
    /// Highest byte first.
    pub big_endian: bool,
    /// Highest values of red, green and blue.
    pub max: [u16; 3],
    /// Their lowest bits.
    pub shift: [u8; 3],
}

impl PixelFormat {
    /// Bytes on the wire.
    pub const BYTES: usize = 16;

    /// The one in which the picture is kept, and which is offered to every viewer.
    pub const NATIVE: PixelFormat =
        PixelFormat { bits: 32, depth: 24, big_endian: false, max: [255; 3], shift: [16, 8, 0] };

    /// Reads one. Palettes are refused: nothing that is still alive asks for them.
    pub fn parse(bytes: &[u8; PixelFormat::BYTES]) -> Result<PixelFormat, Fault> {
        let [bits, depth, big_endian, true_colour, r1, r0, g1, g0, b1, b0, red, green, blue, _, _, _] =
            *bytes;
        let max = [[r1, r0], [g1, g0], [b1, b0]].map(u16::from_be_bytes);
        let shift = [red, green, blue];
        // Nothing else is looked at before the number of bits is known to be one.
        if true_colour == 0 || !matches!(bits, 8 | 16 | 32) || depth > bits {
            return Err(Fault::PixelFormat);
        }
        let fits = |(max, shift): (&u16, u8)| shift < bits && u64::from(*max) << shift < 1u64 << bits;
        if !max.iter().zip(shift).all(fits) {
            return Err(Fault::PixelFormat);
        }
        Ok(PixelFormat { bits, depth, big_endian: big_endian != 0, max, shift })
    }

    /// As it goes over the wire.
    pub fn wire(&self) -> [u8; PixelFormat::BYTES] {
        let [[r1, r0], [g1, g0], [b1, b0]] = self.max.map(u16::to_be_bytes);
        let [red, green, blue] = self.shift;
        let big_endian = self.big_endian.into();
        [self.bits, self.depth, big_endian, 1, r1, r0, g1, g0, b1, b0, red, green, blue, 0, 0, 0]
    }

    /// Whether the picture's bytes can go to the viewer as they are.
    pub fn is_native(&self) -> bool {
        let PixelFormat { bits, max, shift, .. } = PixelFormat::NATIVE;
        self.bits == bits && self.max == max && self.shift == shift && !self.big_endian
    }
}

/// Turns pixels of the picture into a viewer's bytes.
#[derive(Debug)]
pub struct Translator {
    format: PixelFormat,
    /// What each of 256 values of red, green and blue is in a viewer's pixel.
    tables: Box<[[u32; 256]; 3]>,
    /// ZRLE's pixels: which bytes of a pixel are sent.
    compact: Bytes,
}

/// A range of the bytes of a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bytes {
    from: usize,
    len: usize,
}

impl Translator {
    /// For this format.
    pub fn new(format: PixelFormat) -> Translator {
        let mut tables = Box::new([[0; 256]; 3]);
        for (table, (max, shift)) in tables.iter_mut().zip(format.max.into_iter().zip(format.shift)) {
            for (value, entry) in (0u32..).zip(table.iter_mut()) {
                *entry = ((value * u32::from(max) + 127) / 255) << shift;
            }
        }
        Translator { format, tables, compact: compact(&format) }
    }

    /// The format.
    pub fn format(&self) -> &PixelFormat {
        &self.format
    }

    fn value(&self, pixel: u32) -> u32 {
        let [_, red, green, blue] = pixel.to_be_bytes();
        let [reds, greens, blues] = &*self.tables;
        reds[usize::from(red)] | greens[usize::from(green)] | blues[usize::from(blue)]
    }

    fn bytes(&self, pixel: u32) -> [u8; 4] {
        let value = self.value(pixel);
        // The bytes of a pixel come first in both orders.
        if self.format.big_endian {
            (value << (32 - u32::from(self.format.bits))).to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    }

    /// Appends pixels as the format says (PIXEL).
    pub fn put(&self, pixels: &[u32], into: &mut Vec<u8>) {
        let len = usize::from(self.format.bits / 8);
        into.reserve(pixels.len() * len);
        for pixel in pixels {
            into.extend_from_slice(&self.bytes(*pixel)[..len]);
        }
    }

    /// Appends pixels as ZRLE wants them (CPIXEL, RFC 6143, 7.7.5): three bytes if these say all.
    pub fn put_compact(&self, pixels: &[u32], into: &mut Vec<u8>) {
        let Bytes { from, len } = self.compact;
        into.reserve(pixels.len() * len);
        for pixel in pixels {
            into.extend_from_slice(&self.bytes(*pixel)[from..from + len]);
        }
    }

    /// Bytes of a pixel of [`Translator::put_compact`].
    pub fn compact_len(&self) -> usize {
        self.compact.len
    }

    /// Appends pixels as Tight wants them (TPIXEL): red, green, blue if the format has eight bits of each and nothing else.
    pub fn put_tight(&self, pixels: &[u32], into: &mut Vec<u8>) {
        if !self.is_tight() {
            return self.put(pixels, into);
        }
        into.reserve(pixels.len() * 3);
        for pixel in pixels {
            into.extend_from_slice(&pixel.to_be_bytes()[1..]);
        }
    }

    /// Bytes of a pixel of [`Translator::put_tight`].
    pub fn tight_len(&self) -> usize {
        if self.is_tight() { 3 } else { usize::from(self.format.bits / 8) }
    }

    fn is_tight(&self) -> bool {
        self.format.bits == 32 && self.format.depth == 24 && self.format.max == [255; 3]
    }
}

fn compact(format: &PixelFormat) -> Bytes {
    let all = Bytes { from: 0, len: usize::from(format.bits / 8) };
    if format.bits != 32 || format.depth > 24 {
        return all;
    }
    let used =
        format.max.iter().zip(format.shift).fold(0, |used, (max, shift)| used | u32::from(*max) << shift);
    match (used >> 24 == 0, used & 0xff == 0, format.big_endian) {
        (true, _, false) | (false, true, true) => Bytes { from: 0, len: 3 },
        (true, _, true) | (false, true, false) => Bytes { from: 1, len: 3 },
        (false, false, _) => all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RGB565: PixelFormat =
        PixelFormat { bits: 16, depth: 16, big_endian: true, max: [31, 63, 31], shift: [11, 5, 0] };
    const BGR233: PixelFormat =
        PixelFormat { bits: 8, depth: 8, big_endian: false, max: [7, 7, 3], shift: [0, 3, 6] };

    fn put(format: PixelFormat, pixel: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        Translator::new(format).put(&[pixel], &mut bytes);
        bytes
    }

    fn put_compact(format: PixelFormat, pixel: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        Translator::new(format).put_compact(&[pixel], &mut bytes);
        bytes
    }

    #[test]
    fn formats_go_over_the_wire_and_back() {
        for format in [PixelFormat::NATIVE, RGB565, BGR233] {
            assert_eq!(PixelFormat::parse(&format.wire()).unwrap(), format);
        }
    }

    #[test]
    fn senseless_formats_are_refused() {
        let good = PixelFormat::NATIVE.wire();
        for (at, value) in
            [(0, 24), (0, 0), (0, 64), (0, 255), (1, 33), (3, 0), (10, 32), (10, 25), (12, 255)]
        {
            let mut bad = good;
            bad[at] = value;
            assert!(PixelFormat::parse(&bad).is_err(), "{at} {value}");
        }
        assert!(PixelFormat::parse(&[255; PixelFormat::BYTES]).is_err());
    }

    #[test]
    fn pixels_become_a_viewers() {
        assert_eq!(put(PixelFormat::NATIVE, 0xff11_2233), [0x33, 0x22, 0x11, 0]);
        assert_eq!(put(RGB565, 0xff_00ff), (0xf81f_u16).to_be_bytes());
        assert_eq!(put(BGR233, 0xff_ff00), [0x3f]);
        let high = PixelFormat { shift: [24, 16, 8], ..PixelFormat::NATIVE };
        assert_eq!(put(high, 0x11_2233), [0, 0x33, 0x22, 0x11]);
        let big = PixelFormat { big_endian: true, ..PixelFormat::NATIVE };
        assert_eq!(put(big, 0x11_2233), [0, 0x11, 0x22, 0x33]);
    }

    #[test]
    fn three_bytes_say_all_where_they_can() {
        let native = PixelFormat::NATIVE;
        let high = PixelFormat { shift: [24, 16, 8], ..native };
        assert_eq!(put_compact(native, 0x11_2233), [0x33, 0x22, 0x11]);
        assert_eq!(put_compact(PixelFormat { big_endian: true, ..native }, 0x11_2233), [0x11, 0x22, 0x33]);
        assert_eq!(put_compact(high, 0x11_2233), [0x33, 0x22, 0x11]);
        assert_eq!(put_compact(PixelFormat { big_endian: true, ..high }, 0x11_2233), [0x11, 0x22, 0x33]);
        assert_eq!(put_compact(PixelFormat { depth: 32, ..native }, 0x11_2233).len(), 4);
        let wide = PixelFormat { max: [1023, 255, 255], shift: [16, 8, 0], ..native };
        assert_eq!(put_compact(wide, 0).len(), 4);
        assert_eq!(put_compact(RGB565, 0).len(), 2);
    }
}
