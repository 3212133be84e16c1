//! What is encoded is decoded by a reader written from the documents, and must be the same picture.

use flate2::{Decompress, FlushDecompress};
use proptest::prelude::*;

use super::*;

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len);
        self.0 = rest;
        head
    }

    fn byte(&mut self) -> usize {
        self.take(1)[0].into()
    }

    /// A pixel of the native format in three bytes, blue first.
    fn cpixel(&mut self) -> u32 {
        let [blue, green, red] = self.take(3).try_into().unwrap();
        u32::from_be_bytes([0, red, green, blue])
    }

    fn tpixel(&mut self) -> u32 {
        self.cpixel().swap_bytes() >> 8
    }

    fn run(&mut self) -> usize {
        let mut len = 1;
        loop {
            let byte = self.byte();
            len += byte;
            if byte != 255 {
                return len;
            }
        }
    }
}

/// All that a part of a stream becomes.
fn inflate(zlib: &mut Decompress, packed: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(1 << 20);
    zlib.decompress_vec(packed, &mut plain, FlushDecompress::Sync).unwrap();
    plain
}

/// The state of a viewer.
struct Decoder {
    zrle: Decompress,
    tight: Vec<Decompress>,
    picture: Vec<u32>,
    width: usize,
}

impl Decoder {
    fn new(width: u32, height: u32) -> Decoder {
        Decoder {
            zrle: Decompress::new(true),
            tight: (0..4).map(|_| Decompress::new(true)).collect(),
            picture: vec![0; (width * height) as usize],
            width: width as usize,
        }
    }

    fn draw(&mut self, x: usize, y: usize, width: usize, pixels: &[u32]) {
        for (row, pixels) in pixels.chunks(width).enumerate() {
            let at = (y + row) * self.width + x;
            self.picture[at..at + width].copy_from_slice(pixels);
        }
    }

    fn rectangle(&mut self, bytes: &[u8]) {
        let mut reader = Reader(bytes);
        let [x, y, width, height] =
            std::array::from_fn(|_| usize::from(u16::from_be_bytes(reader.take(2).try_into().unwrap())));
        match i32::from_be_bytes(reader.take(4).try_into().unwrap()) {
            0 => {
                let words = reader.take(width * height * 4).as_chunks().0;
                let pixels: Vec<_> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
                self.draw(x, y, width, &pixels);
            }
            16 => {
                let len = u32::from_be_bytes(reader.take(4).try_into().unwrap());
                let plain = inflate(&mut self.zrle, reader.take(len as usize));
                let mut tiles = Reader(&plain);
                for top in (0..height).step_by(64) {
                    for left in (0..width).step_by(64) {
                        let columns = 64.min(width - left);
                        let pixels = zrle_tile(&mut tiles, columns, 64.min(height - top));
                        self.draw(x + left, y + top, columns, &pixels);
                    }
                }
                assert!(tiles.0.is_empty());
            }
            7 => {
                let pixels = self.tight(&mut reader, width, height);
                self.draw(x, y, width, &pixels);
            }
            other => panic!("encoding {other}"),
        }
        assert!(reader.0.is_empty(), "{} bytes left", reader.0.len());
    }

    fn tight(&mut self, reader: &mut Reader<'_>, width: usize, height: usize) -> Vec<u32> {
        let control = reader.byte();
        if control == 0x80 {
            return vec![reader.tpixel(); width * height];
        }
        assert_eq!(control & 0x8f, 0);
        let colours: Vec<u32> = if control & 0x40 != 0 {
            assert_eq!(reader.byte(), 1);
            (0..reader.byte() + 1).map(|_| reader.tpixel()).collect()
        } else {
            Vec::new()
        };
        let stride = match colours.len() {
            0 => width * 3,
            1..=2 => width.div_ceil(8),
            _ => width,
        };
        let data = if stride * height < 12 {
            reader.take(stride * height).to_vec()
        } else {
            let mut len = reader.byte();
            if len & 0x80 != 0 {
                let next = reader.byte();
                len = len & 0x7f | (next & 0x7f) << 7;
                len |= if next & 0x80 != 0 { reader.byte() << 14 } else { 0 };
            }
            inflate(&mut self.tight[control >> 4 & 3], reader.take(len))
        };
        assert_eq!(data.len(), stride * height);
        let pixel = |row: &[u8], x: usize| match colours.len() {
            0 => Reader(&row[x * 3..]).tpixel(),
            1..=2 => colours[usize::from(row[x / 8] >> (7 - x % 8) & 1)],
            _ => colours[usize::from(row[x])],
        };
        data.chunks(stride).flat_map(|row| (0..width).map(move |x| pixel(row, x))).collect()
    }
}

fn zrle_tile(reader: &mut Reader<'_>, columns: usize, rows: usize) -> Vec<u32> {
    let kind = reader.byte();
    let mut pixels = Vec::new();
    let colours: Vec<u32> = match kind {
        1..=16 => (0..kind).map(|_| reader.cpixel()).collect(),
        130..=255 => (0..kind - 128).map(|_| reader.cpixel()).collect(),
        _ => Vec::new(),
    };
    match kind {
        0 => pixels.extend((0..columns * rows).map(|_| reader.cpixel())),
        1 => pixels.resize(columns * rows, colours[0]),
        2..=16 => {
            let bits = [1, 2, 4][usize::from(kind > 2) + usize::from(kind > 4)];
            for _ in 0..rows {
                let row = reader.take((columns * bits).div_ceil(8));
                pixels.extend((0..columns).map(|x| {
                    let at = x * bits;
                    colours[usize::from(row[at / 8]) >> (8 - bits - at % 8) & ((1 << bits) - 1)]
                }));
            }
        }
        128 => {
            while pixels.len() < columns * rows {
                let colour = reader.cpixel();
                pixels.extend(std::iter::repeat_n(colour, reader.run()));
            }
        }
        130.. => {
            while pixels.len() < columns * rows {
                let number = reader.byte();
                let run = if number & 0x80 != 0 { reader.run() } else { 1 };
                pixels.extend(std::iter::repeat_n(colours[number & 0x7f], run));
            }
        }
        _ => panic!("subencoding {kind}"),
    }
    assert_eq!(pixels.len(), columns * rows);
    pixels
}

/// A picture with flat parts, parts of few colours and noise.
fn picture(width: u32, height: u32, seed: u32) -> Picture {
    let mut noise = seed;
    let mut next = || {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise >> 8
    };
    let mut pixels = vec![0x12_3456; (width * height) as usize];
    for _ in 0..next() % 12 {
        let (x1, y1) = (next() % width, next() % height);
        let (x2, y2) = (x1 + 1 + next() % (width - x1), y1 + 1 + next() % (height - y1));
        let (colours, run) = (1 + next() % [2, 4, 15, 100, 1 << 24][(next() % 5) as usize], 1 + next() % 400);
        let (mut colour, mut left) = (0, 0);
        for y in y1..y2 {
            for x in x1..x2 {
                if left == 0 {
                    (colour, left) = ((next() % colours).wrapping_mul(0x9e_3779), 1 + next() % run);
                }
                left -= 1;
                pixels[(y * width + x) as usize] = colour & 0xff_ffff;
            }
        }
    }
    Picture::of(width, height, pixels)
}

#[test]
fn what_is_verbatim_is_not_cut() {
    let mut encoder = Encoder::new();
    let rect = Rect { x1: 3, y1: 5, x2: 1003, y2: 135 };
    let mut pieces = Vec::new();
    encoder.cut(rect, Encoding::Raw, true, &mut pieces);
    assert_eq!(pieces, [rect]);
    encoder.cut(rect, Encoding::Zrle, true, &mut pieces);
    encoder.cut(rect, Encoding::Raw, false, &mut pieces);
    assert_eq!(pieces.len(), 1 + 2 * 2 * 3);
    encoder.set_format(PixelFormat { big_endian: true, ..PixelFormat::NATIVE });
    assert!(!encoder.is_verbatim(Encoding::Raw));
}

#[test]
fn every_format_of_pixels_is_encoded() {
    let picture = picture(130, 70, 5);
    let formats = [
        PixelFormat { bits: 8, depth: 8, big_endian: false, max: [7, 7, 3], shift: [0, 3, 6] },
        PixelFormat { bits: 16, depth: 16, big_endian: true, max: [31, 63, 31], shift: [11, 5, 0] },
        PixelFormat { max: [0; 3], ..PixelFormat::NATIVE },
    ];
    for format in formats {
        let mut encoder = Encoder::new();
        encoder.set_format(format);
        for encoding in [Encoding::Raw, Encoding::Zrle, Encoding::Tight] {
            let mut out = Vec::new();
            encoder.encode(Rect { x1: 0, y1: 0, x2: 130, y2: 64 }, encoding, &picture, &mut out);
            assert!(out.len() > 12);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_viewer_sees_the_picture(
        (width, height) in (1u32..700, 1u32..150),
        seeds in prop::collection::vec(any::<u32>(), 1..4),
        level in 0u8..10,
    ) {
        for encoding in [Encoding::Raw, Encoding::Zrle, Encoding::Tight] {
            let mut encoder = Encoder::new();
            encoder.set_level(Some(level));
            let mut decoder = Decoder::new(width, height);
            for seed in &seeds {
                let picture = picture(width, height, *seed);
                let mut pieces = Vec::new();
                encoder.cut(Rect { x1: 0, y1: 0, x2: width, y2: height }, encoding, true, &mut pieces);
                for piece in pieces {
                    let mut out = Vec::new();
                    encoder.encode(piece, encoding, &picture, &mut out);
                    decoder.rectangle(&out);
                }
                prop_assert!(decoder.picture == picture.rows(0, height), "{encoding:?}");
            }
        }
    }
}
