//! Tight (`rfbproto`, 7.7.4): rectangles of one colour, of a palette, or as they are, in one of four zlib streams. JPEG is
//! nothing that this viewer asks for.

use anyhow::{Context, bail, ensure};

use super::picture::{Area, Format};
use super::wire::Wire;
use super::zrle::Inflate;

/// Fewer bytes are sent as they are.
const SHORT: usize = 12;
/// Widest rectangle.
const WIDEST: u32 = 2048;

/// The streams of a connection.
#[derive(Debug, Default)]
pub struct Streams([Inflate; 4]);

/// How pixels are sent: red, green and blue if there are 8 bits of each in 32.
struct Compact(Format);

impl Compact {
    fn is_three(&self) -> bool {
        self.0.bits == 32 && self.0.depth == 24 && self.0.max == [255; 3]
    }

    fn len(&self) -> usize {
        if self.is_three() { 3 } else { self.0.bytes() }
    }

    fn pixel(&self, bytes: &[u8]) -> u32 {
        if !self.is_three() {
            return self.0.value(bytes);
        }
        bytes.iter().zip(self.0.shift).fold(0, |pixel, (&byte, shift)| pixel | u32::from(byte) << shift)
    }

    fn pixels(&self, bytes: &[u8]) -> Vec<u32> {
        bytes.chunks_exact(self.len()).map(|pixel| self.pixel(pixel)).collect()
    }
}

impl Streams {
    /// Reads a rectangle; its pixels in the viewer's format.
    pub fn decode(&mut self, wire: &mut Wire, format: Format, area: Area) -> anyhow::Result<Vec<u32>> {
        ensure!(area.width <= WIDEST, "it is too wide");
        let compact = Compact(format);
        let control = wire.u8()?;
        for (n, stream) in self.0.iter_mut().enumerate() {
            if control >> n & 1 != 0 {
                *stream = Inflate::default();
            }
        }
        let kind = control >> 4;
        match kind {
            8 => {
                let colour = compact.pixel(&wire.vec(compact.len())?);
                return Ok(vec![colour; area.pixels()]);
            }
            0..=7 => {}
            other => bail!("nobody asked for compression {other}"),
        }
        let stream = usize::from(kind & 3);
        match if kind & 4 != 0 { wire.u8()? } else { 0 } {
            0 => {
                let bytes = self.bytes(wire, stream, area.pixels() * compact.len())?;
                Ok(compact.pixels(&bytes))
            }
            1 => {
                let count = usize::from(wire.u8()?) + 1;
                ensure!(count >= 2, "a palette of {count}");
                let palette = compact.pixels(&wire.vec(count * compact.len())?);
                self.indexed(wire, stream, &palette, area)
            }
            other => bail!("nobody asked for filter {other}"),
        }
    }

    fn indexed(
        &mut self,
        wire: &mut Wire,
        stream: usize,
        palette: &[u32],
        area: Area,
    ) -> anyhow::Result<Vec<u32>> {
        let colour = |index: usize| palette.get(index).copied().context("a colour that is not there");
        if palette.len() > 2 {
            let bytes = self.bytes(wire, stream, area.pixels())?;
            return bytes.iter().map(|&index| colour(index.into())).collect();
        }
        let (width, row) = (area.width as usize, area.width.div_ceil(8) as usize);
        let bytes = self.bytes(wire, stream, row * area.height as usize)?;
        let bit = |line: &[u8], x: usize| usize::from(line[x / 8] >> (7 - x % 8) & 1);
        bytes.chunks_exact(row).flat_map(|line| (0..width).map(move |x| colour(bit(line, x)))).collect()
    }

    /// So many bytes, unpacked.
    fn bytes(&mut self, wire: &mut Wire, stream: usize, len: usize) -> anyhow::Result<Vec<u8>> {
        if len < SHORT {
            return wire.vec(len);
        }
        let mut packed = 0;
        for n in 0..3 {
            let byte = wire.u8()?;
            let bits = if n == 2 { byte } else { byte & 0x7f };
            packed |= usize::from(bits) << (7 * n);
            if byte & 0x80 == 0 {
                break;
            }
        }
        let bytes = self.0[stream].unpack(&wire.vec(packed)?)?;
        ensure!(bytes.len() == len, "{} bytes and not {len}", bytes.len());
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn decoded(bytes: &[u8], format: Format, width: u32, height: u32) -> anyhow::Result<Vec<u32>> {
        let (mut ours, theirs) = UnixStream::pair()?;
        ours.write_all(bytes)?;
        drop(ours);
        let area = Area { x: 0, y: 0, width, height };
        Streams::default().decode(&mut Wire::new(theirs), format, area)
    }

    #[test]
    fn short_rectangles() -> anyhow::Result<()> {
        let rgb = Format::RGB32;
        assert_eq!(decoded(&[0x80, 1, 2, 3], rgb, 2, 1)?, [0x01_0203; 2]);
        assert_eq!(decoded(&[0, 1, 2, 3, 4, 5, 6], rgb, 2, 1)?, [0x01_0203, 0x04_0506]);
        assert_eq!(decoded(&[0x40, 1, 1, 0, 0, 0, 0, 0, 9, 0b0100_0000], rgb, 3, 1)?, [0, 9, 0]);
        assert_eq!(decoded(&[0x40, 1, 2, 0, 0, 0, 0, 0, 9, 0, 0, 7, 2, 1, 0], rgb, 3, 1)?, [7, 9, 0]);
        assert_eq!(decoded(&[0x80, 0x34, 0x12], Format::RGB565, 1, 1)?, [0x1234]);
        for bad in [&[0x90, 0][..], &[0x40, 2], &[0x40, 1, 0, 1, 1, 1], &[0x80, 1]] {
            assert!(decoded(bad, rgb, 1, 1).is_err(), "{bad:?}");
        }
        Ok(())
    }
}
