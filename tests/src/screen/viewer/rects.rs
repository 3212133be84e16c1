//! What an update consists of.

use anyhow::{Context, bail, ensure};

use super::{Cursor, Event, Viewer, encoding};
use crate::screen::picture::{Area, Format};
use crate::screen::zrle;

impl Viewer {
    /// The rectangles of an update.
    pub(super) fn update(&mut self) -> anyhow::Result<Event> {
        self.wire.u8()?;
        let count = usize::from(self.wire.u16()?);
        self.counts.updates += 1;
        let mut rects = 0;
        while rects < count {
            let area = Area {
                x: self.wire.u16()?.into(),
                y: self.wire.u16()?.into(),
                width: self.wire.u16()?.into(),
                height: self.wire.u16()?.into(),
            };
            let encoding = self.wire.i32()?;
            if encoding == encoding::LAST_RECT {
                return Ok(Event::Update(rects));
            }
            self.rect(area, encoding).with_context(|| format!("{area:?} in encoding {encoding}"))?;
            rects += 1;
        }
        ensure!(count != 0xffff, "an update that does not end");
        Ok(Event::Update(rects))
    }

    fn rect(&mut self, area: Area, encoding: i32) -> anyhow::Result<()> {
        match encoding {
            encoding::DESKTOP_SIZE => {
                self.counts.sizes += 1;
                return self.resize(area.width, area.height);
            }
            encoding::EXTENDED_DESKTOP_SIZE => return self.extended_size(area),
            encoding::CURSOR => return self.plain_cursor(area),
            encoding::CURSOR_ALPHA => return self.alpha_cursor(area),
            encoding::QEMU_KEYS => {
                self.takes_codes = true;
                return Ok(());
            }
            encoding::LEDS => {
                self.leds = Some(self.wire.u8()?);
                return Ok(());
            }
            encoding::DESKTOP_NAME => {
                let len = self.wire.u32()?;
                self.name = String::from_utf8(self.wire.vec(len as usize)?)?;
                return Ok(());
            }
            _ => {}
        }
        ensure!(area.pixels() > 0, "it is empty");
        ensure!(area.x + area.width <= self.width && area.y + area.height <= self.height, "it is outside");
        self.counts.rects += 1;
        self.counts.pixels += area.pixels() as u64;
        match encoding {
            encoding::RAW => self.raw_rect(area),
            encoding::ZRLE => {
                let len = self.wire.u32()?;
                let unpacked = { self.inflate.unpack(&self.wire.vec(len as usize)?)? };
                let (format, width, bytes) = (self.format, self.width, &mut self.bytes);
                zrle::decode(&unpacked, format, area, |area, pixels| put(bytes, width, format, area, pixels))
            }
            encoding::TIGHT => {
                let pixels = self.tight.decode(&mut self.wire, self.format, area)?;
                put(&mut self.bytes, self.width, self.format, area, &pixels);
                Ok(())
            }
            encoding::COPY_RECT => {
                let (x, y) = (self.wire.u16()?.into(), self.wire.u16()?.into());
                let from = Area { x, y, ..area };
                ensure!(x + area.width <= self.width && y + area.height <= self.height, "from outside");
                let rows: Vec<Vec<u8>> =
                    (0..area.height).map(|row| self.bytes[self.row(from, row)].to_vec()).collect();
                for (row, bytes) in (0..area.height).zip(rows) {
                    let range = self.row(area, row);
                    self.bytes[range].copy_from_slice(&bytes);
                }
                Ok(())
            }
            _ => bail!("nobody asked for that encoding"),
        }
    }

    /// Where a row of a part is in the bytes.
    pub(super) fn row(&self, area: Area, row: u32) -> std::ops::Range<usize> {
        let size = self.format.bytes();
        let start = ((area.y + row) as usize * self.width as usize + area.x as usize) * size;
        start..start + area.width as usize * size
    }

    fn raw_rect(&mut self, area: Area) -> anyhow::Result<()> {
        if area.width == self.width {
            let (first, last) = (self.row(area, 0), self.row(area, area.height - 1));
            return self.wire.exactly(&mut self.bytes[first.start..last.end]);
        }
        for row in 0..area.height {
            let range = self.row(area, row);
            self.wire.exactly(&mut self.bytes[range])?;
        }
        Ok(())
    }

    /// Reason and result are where a place would be, then come the screens.
    fn extended_size(&mut self, area: Area) -> anyhow::Result<()> {
        let [screens, _, _, _] = self.wire.array()?;
        ensure!(screens >= 1, "a picture without a screen");
        self.wire.vec(usize::from(screens) * 16)?;
        self.counts.sizes += 1;
        if area.y != 0 || (area.width, area.height) == (self.width, self.height) {
            return Ok(());
        }
        self.resize(area.width, area.height)
    }

    fn plain_cursor(&mut self, area: Area) -> anyhow::Result<()> {
        let size = self.format.bytes();
        let pixels = self.wire.vec(area.pixels() * size)?;
        let stride = area.width.div_ceil(8) as usize;
        let mask = self.wire.vec(stride * area.height as usize)?;
        let seen = |n: usize| {
            let (x, y) = (n % area.width as usize, n / area.width as usize);
            mask[y * stride + x / 8] >> (7 - x % 8) & 1 != 0
        };
        let colour = |bytes: &[u8]| {
            let [blue, green, red, _] = self.format.colour(self.format.value(bytes)).to_le_bytes();
            [red, green, blue, 255]
        };
        let pixels = pixels.chunks_exact(size).enumerate();
        let pixels = pixels.map(|(n, bytes)| if seen(n) { colour(bytes) } else { [0; 4] }).collect();
        self.set_cursor(area, pixels)
    }

    fn alpha_cursor(&mut self, area: Area) -> anyhow::Result<()> {
        let encoding = self.wire.i32()?;
        ensure!(encoding == encoding::RAW, "a pointer in encoding {encoding}");
        let bytes = self.wire.vec(area.pixels() * 4)?;
        let pixels = bytes.chunks_exact(4).map(|pixel| [pixel[0], pixel[1], pixel[2], pixel[3]]).collect();
        self.set_cursor(area, pixels)
    }

    fn set_cursor(&mut self, area: Area, pixels: Vec<[u8; 4]>) -> anyhow::Result<()> {
        ensure!(
            area.pixels() == 0 || (area.x < area.width && area.y < area.height),
            "it points outside itself"
        );
        let hot = (area.x, area.y);
        self.cursor = Some(Cursor { width: area.width, height: area.height, hot, pixels });
        Ok(())
    }
}

fn put(bytes: &mut [u8], width: u32, format: Format, area: Area, pixels: &[u32]) {
    let size = format.bytes();
    for (y, line) in (area.y..).zip(pixels.chunks_exact(area.width as usize)) {
        let start = (y as usize * width as usize + area.x as usize) * size;
        let row = &mut bytes[start..start + line.len() * size];
        for (to, pixel) in row.chunks_exact_mut(size).zip(line) {
            if format.big {
                to.copy_from_slice(&pixel.to_be_bytes()[4 - size..]);
            } else {
                to.copy_from_slice(&pixel.to_le_bytes()[..size]);
            }
        }
    }
}
