//! What a guest draws: pixels into video memory, and the same ones into a picture of the test's own.

use std::time::Duration;

use vsc::video::{Rect, Situation, Video};

use super::picture::{Area, Picture, texture};
use crate::SoftPlatform;
use crate::steps::Dice;

/// A guest's screen.
pub struct Canvas {
    /// Its driver.
    pub video: Video<SoftPlatform>,
    /// What is on it.
    pub picture: Picture,
}

impl Canvas {
    /// The mode is set and the screen is black.
    pub fn new(mut video: Video<SoftPlatform>, situation: Situation) -> anyhow::Result<Self> {
        video.present(situation)?;
        video.settle()?;
        let picture = Picture::new(situation.width, situation.height);
        let mut canvas = Self { video, picture };
        let all = canvas.whole();
        canvas.paint(all, &vec![0; all.pixels()])?;
        Ok(canvas)
    }

    /// Another mode, and a black screen.
    pub fn change(self, situation: Situation) -> anyhow::Result<Self> {
        Self::new(self.video, situation)
    }

    /// The whole screen.
    pub fn whole(&self) -> Area {
        Area { x: 0, y: 0, width: self.picture.width, height: self.picture.height }
    }

    /// Draws, and says so if the device wants to know.
    pub fn paint(&mut self, area: Area, pixels: &[u32]) -> anyhow::Result<()> {
        self.paint_silently(area, pixels)?;
        self.tell(&[area])
    }

    /// Draws and says nothing.
    pub fn paint_silently(&mut self, area: Area, pixels: &[u32]) -> anyhow::Result<()> {
        let depth = self.video.situation().map_or(32, |situation| situation.depth);
        let bytes: Vec<u8> = match depth {
            16 => pixels.iter().flat_map(|&pixel| rgb565(pixel).to_le_bytes()).collect(),
            // What is in the fourth byte is nobody's business.
            _ => pixels.iter().flat_map(|&pixel| (pixel | 0xa500_0000).to_le_bytes()).collect(),
        };
        self.video.draw(area.x, area.y, area.width, &bytes)?;
        self.picture.put(area, pixels);
        Ok(())
    }

    /// Says what has been drawn, if the device wants to know. Takes what the device has said first.
    pub fn tell(&mut self, areas: &[Area]) -> anyhow::Result<()> {
        self.listen()?;
        let rect = |area: &Area| Rect {
            x1: area.x as i32,
            y1: area.y as i32,
            x2: (area.x + area.width) as i32,
            y2: (area.y + area.height) as i32,
        };
        self.video.damage(&areas.iter().map(rect).collect::<Vec<_>>())?;
        Ok(())
    }

    /// Takes what the device has said, as a driver's interrupt does.
    pub fn listen(&mut self) -> anyhow::Result<()> {
        while self.video.handle(Duration::ZERO)?.is_some() {}
        Ok(())
    }

    /// Draws something somewhere.
    pub fn scribble(&mut self, dice: &mut Dice) -> anyhow::Result<Area> {
        let area = Area::random(dice, self.picture.width, self.picture.height);
        let pixels = texture(dice, area);
        self.paint(area, &pixels)?;
        Ok(area)
    }
}

/// 5, 6 and 5 bits.
pub fn rgb565(pixel: u32) -> u16 {
    ((pixel >> 8 & 0xf800) | (pixel >> 5 & 0x07e0) | (pixel >> 3 & 0x1f)) as u16
}
