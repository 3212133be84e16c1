//! ZRLE (RFC 6143, 7.7.6): tiles of 64 by 64 pixels in one of several forms, in one zlib stream for the life of a
//! connection.

use anyhow::{Context, bail, ensure};
use flate2::{Decompress, FlushDecompress, Status};

use super::picture::{Area, Format};

/// Pixels of a tile's side.
const TILE: u32 = 64;
/// Most bytes that a rectangle may unpack to.
const LARGEST: usize = 80 << 20;

/// The stream of a connection.
#[derive(Debug)]
pub struct Inflate(Decompress);

impl Default for Inflate {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflate {
    /// Unpacks what has come: all of it, since each rectangle ends with a flush.
    pub fn unpack(&mut self, packed: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut all = Vec::with_capacity(64 << 10);
        let before = self.0.total_in();
        loop {
            let taken = (self.0.total_in() - before) as usize;
            let had = all.len();
            if all.capacity() - had < 32 << 10 {
                all.reserve(had.max(64 << 10));
            }
            let status = self.0.decompress_vec(&packed[taken..], &mut all, FlushDecompress::Sync)?;
            ensure!(status != Status::StreamEnd, "the zlib stream has ended");
            ensure!(all.len() <= LARGEST, "a rectangle of more than {LARGEST} bytes");
            let taken = (self.0.total_in() - before) as usize;
            if taken == packed.len() && all.len() < all.capacity() {
                return Ok(all);
            }
            ensure!(
                all.len() > had || status != Status::BufError || taken < packed.len(),
                "the stream is stuck"
            );
        }
    }
}

/// Bytes of a rectangle.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> anyhow::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len).context("a rectangle ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> anyhow::Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// The length of a run: bytes of 255, and one that is not, and one.
    fn run(&mut self) -> anyhow::Result<usize> {
        let mut len = 1;
        loop {
            let byte = self.byte()?;
            len += usize::from(byte);
            if byte != 255 {
                return Ok(len);
            }
            ensure!(len <= (TILE * TILE) as usize, "a run of more than a tile");
        }
    }
}

/// How pixels are sent: without the byte that says nothing, if there is one.
struct Compact {
    format: Format,
    /// Which bytes of a pixel are sent.
    bytes: std::ops::Range<usize>,
}

impl Compact {
    fn new(format: Format) -> Self {
        let used = (0..3).fold(0u64, |used, n| used | u64::from(format.max[n]) << format.shift[n]);
        let low = used < 1 << 24;
        let high = used & 0xff == 0;
        let bytes = match (format.bits == 32 && format.depth <= 24, low, high) {
            (true, true, _) if format.big => 1..4,
            (true, true, _) => 0..3,
            (true, false, true) if format.big => 0..3,
            (true, false, true) => 1..4,
            _ => 0..format.bytes(),
        };
        Self { format, bytes }
    }

    fn pixel(&self, bytes: &mut Bytes<'_>) -> anyhow::Result<u32> {
        let mut all = [0; 4];
        all[self.bytes.clone()].copy_from_slice(bytes.take(self.bytes.len())?);
        Ok(self.format.value(&all[..self.format.bytes()]))
    }
}

/// Unpacks a rectangle and hands out its tiles: the pixels are values in the viewer's format.
pub fn decode(
    unpacked: &[u8],
    format: Format,
    rect: Area,
    mut put: impl FnMut(Area, &[u32]),
) -> anyhow::Result<()> {
    let compact = Compact::new(format);
    let mut bytes = Bytes(unpacked);
    for y in (0..rect.height).step_by(TILE as usize) {
        for x in (0..rect.width).step_by(TILE as usize) {
            let (width, height) = (TILE.min(rect.width - x), TILE.min(rect.height - y));
            let area = Area { x: rect.x + x, y: rect.y + y, width, height };
            let pixels = tile(&mut bytes, &compact, area).with_context(|| format!("the tile {area:?}"))?;
            put(area, &pixels);
        }
    }
    ensure!(bytes.0.is_empty(), "{} bytes follow a rectangle's tiles", bytes.0.len());
    Ok(())
}

fn tile(bytes: &mut Bytes<'_>, compact: &Compact, area: Area) -> anyhow::Result<Vec<u32>> {
    let kind = bytes.byte()?;
    let count = area.pixels();
    let mut pixels = Vec::with_capacity(count);
    match kind {
        0 => {
            for _ in 0..count {
                pixels.push(compact.pixel(bytes)?);
            }
        }
        1 => pixels.resize(count, compact.pixel(bytes)?),
        2..=16 => {
            let palette = palette(kind, bytes, compact)?;
            packed(bytes, &palette, area, &mut pixels)?;
        }
        128 => {
            while pixels.len() < count {
                let pixel = compact.pixel(bytes)?;
                let run = bytes.run()?;
                pixels.resize(pixels.len() + run, pixel);
            }
        }
        130..=255 => {
            let palette = palette(kind - 128, bytes, compact)?;
            while pixels.len() < count {
                let index = bytes.byte()?;
                let pixel = *palette.get(usize::from(index & 0x7f)).context("a colour that is not there")?;
                let run = if index & 0x80 != 0 { bytes.run()? } else { 1 };
                pixels.resize(pixels.len() + run, pixel);
            }
        }
        other => bail!("no tile is of kind {other}"),
    }
    ensure!(pixels.len() == count, "a run leaves the tile");
    Ok(pixels)
}

fn palette(len: u8, bytes: &mut Bytes<'_>, compact: &Compact) -> anyhow::Result<Vec<u32>> {
    (0..len).map(|_| compact.pixel(bytes)).collect()
}

/// Indices of 1, 2 or 4 bits, the first in the most significant ones; each row begins with a byte of its own.
fn packed(bytes: &mut Bytes<'_>, palette: &[u32], area: Area, pixels: &mut Vec<u32>) -> anyhow::Result<()> {
    let bits = match palette.len() {
        ..=2 => 1,
        3..=4 => 2,
        _ => 4,
    };
    for _ in 0..area.height {
        let row = bytes.take((area.width as usize * bits).div_ceil(8))?;
        for x in 0..area.width as usize {
            let at = x * bits;
            let index = usize::from(row[at / 8] >> (8 - bits - at % 8)) & ((1 << bits) - 1);
            pixels.push(*palette.get(index).context("a colour that is not there")?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    fn decoded(format: Format, bytes: &[u8], width: u32, height: u32) -> anyhow::Result<Vec<u32>> {
        let rect = Area { x: 0, y: 0, width, height };
        let mut all = Vec::new();
        decode(bytes, format, rect, |_, pixels| all.extend_from_slice(pixels))?;
        Ok(all)
    }

    #[test]
    fn every_form_of_a_tile() -> anyhow::Result<()> {
        let rgb = Format::RGB32;
        assert_eq!(decoded(rgb, &[0, 1, 2, 3, 4, 5, 6], 2, 1)?, [0x03_0201, 0x06_0504]);
        assert_eq!(decoded(rgb, &[1, 1, 2, 3], 3, 2)?, [0x03_0201; 6]);
        assert_eq!(decoded(rgb, &[2, 0, 0, 0, 1, 0, 0, 0b0100_0000, 0b1000_0000], 2, 2)?, [0, 1, 1, 0]);
        assert_eq!(decoded(rgb, &[3, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0b0001_1000], 3, 1)?, [0, 1, 2]);
        assert_eq!(decoded(rgb, &[128, 7, 0, 0, 2, 8, 0, 0, 0], 4, 1)?, [7, 7, 7, 8]);
        assert_eq!(decoded(rgb, &[130, 7, 0, 0, 9, 0, 0, 0x80, 1, 1], 3, 1)?, [7, 7, 9]);
        assert_eq!(decoded(Format::RGB565, &[1, 0x34, 0x12], 1, 1)?, [0x1234]);
        assert_eq!(decoded(Format::BGR32_BIG, &[1, 1, 2, 3], 1, 1)?, [0x01_0203]);
        assert_eq!(decoded(Format::RGB32_HIGH, &[1, 1, 2, 3], 1, 1)?, [0x0302_0100]);
        Ok(())
    }

    #[test]
    fn nonsense_is_an_error() {
        for bad in [&[][..], &[0, 1, 2], &[17, 0, 0], &[129, 0, 0], &[1, 1, 2, 3, 4], &[128, 7, 0, 0, 9]] {
            assert!(decoded(Format::RGB32, bad, 2, 1).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_stream_goes_on() -> anyhow::Result<()> {
        let (mut pack, mut unpack) = (Compress::new(Compression::fast(), true), Inflate::default());
        for round in 0..5u8 {
            let text: Vec<u8> = (0..200_000usize).map(|n| (n / 7) as u8 ^ round).collect();
            let mut packed = Vec::with_capacity(400_000);
            pack.compress_vec(&text, &mut packed, FlushCompress::Sync)?;
            assert_eq!(unpack.unpack(&packed)?, text);
        }
        Ok(())
    }
}
