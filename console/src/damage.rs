//! Which pixels have changed: for each tile of 64 by 64 pixels the smallest rectangle around them.
//!
//! Its size depends on the picture's alone, whatever is added to it, and pixels far apart never make one large rectangle of
//! what lies between them.

use seat::video::Rect as SeatRect;

/// Side of a tile in pixels.
pub const TILE: u32 = 64;

/// A rectangle inside a picture: columns `x1..x2`, rows `y1..y2`; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// First column.
    pub x1: u32,
    /// First row.
    pub y1: u32,
    /// The column behind the last.
    pub x2: u32,
    /// The row behind the last.
    pub y2: u32,
}

impl Rect {
    /// The part of what a device has said that lies in a picture of this size.
    pub fn within(rect: SeatRect, width: u32, height: u32) -> Option<Rect> {
        let cut = rect.within(width, height)?;
        let [x1, y1, x2, y2] = [cut.x1, cut.y1, cut.x2, cut.y2].map(|value| value.max(0).cast_unsigned());
        Some(Rect { x1, y1, x2, y2 })
    }

    /// All of a picture; `None`: it has no pixels.
    pub fn whole(width: u32, height: u32) -> Option<Rect> {
        (width > 0 && height > 0).then_some(Rect { x1: 0, y1: 0, x2: width, y2: height })
    }

    /// What both have.
    pub fn intersection(self, other: Rect) -> Option<Rect> {
        let cut = Rect {
            x1: self.x1.max(other.x1),
            y1: self.y1.max(other.y1),
            x2: self.x2.min(other.x2),
            y2: self.y2.min(other.y2),
        };
        (cut.x1 < cut.x2 && cut.y1 < cut.y2).then_some(cut)
    }

    /// The smallest one around both.
    pub fn union(self, other: Rect) -> Rect {
        Rect {
            x1: self.x1.min(other.x1),
            y1: self.y1.min(other.y1),
            x2: self.x2.max(other.x2),
            y2: self.y2.max(other.y2),
        }
    }

    /// Columns.
    pub fn width(self) -> u32 {
        self.x2 - self.x1
    }

    /// Rows.
    pub fn height(self) -> u32 {
        self.y2 - self.y1
    }

    /// Pixels.
    pub fn area(self) -> u32 {
        self.width() * self.height()
    }
}

/// A set of pixels of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    width: u32,
    height: u32,
    /// Tiles of a row.
    columns: u32,
    tiles: Vec<Option<Rect>>,
    /// Tiles with something in them.
    count: usize,
    /// Everything is in it: a peer that says so again and again costs nothing.
    full: bool,
}

impl Damage {
    /// None of the pixels of a picture of this size.
    pub fn new(width: u32, height: u32) -> Damage {
        let columns = width.div_ceil(TILE);
        let tiles = vec![None; (columns * height.div_ceil(TILE)) as usize];
        Damage { width, height, columns, tiles, count: 0, full: false }
    }

    /// Whether there is no pixel in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes all pixels out.
    pub fn clear(&mut self) {
        if self.count > 0 {
            self.tiles.fill(None);
            self.count = 0;
            self.full = false;
        }
    }

    /// Adds a rectangle, or what of it lies in the picture.
    pub fn add(&mut self, rect: Rect) {
        let whole = Rect { x1: 0, y1: 0, x2: self.width, y2: self.height };
        let Some(rect) = rect.intersection(whole).filter(|_| !self.full) else { return };
        self.full = rect == whole;
        for row in rect.y1 / TILE..=(rect.y2 - 1) / TILE {
            for column in rect.x1 / TILE..=(rect.x2 - 1) / TILE {
                let (x1, y1) = (column * TILE, row * TILE);
                let tile = Rect { x1, y1, x2: x1 + TILE, y2: y1 + TILE };
                let Some(part) = rect.intersection(tile) else { continue };
                self.add_to_tile((row * self.columns + column) as usize, part);
            }
        }
    }

    /// Adds all pixels.
    pub fn add_all(&mut self) {
        self.add(Rect { x1: 0, y1: 0, x2: self.width, y2: self.height });
    }

    /// Adds what is in another set.
    pub fn add_from(&mut self, other: &Damage) {
        if other.is_empty() {
            return;
        }
        if (self.width, self.height) == (other.width, other.height) {
            for (index, rect) in other.tiles.iter().enumerate() {
                if let Some(rect) = rect {
                    self.add_to_tile(index, *rect);
                }
            }
        } else {
            other.tiles.iter().flatten().for_each(|rect| self.add(*rect));
        }
    }

    /// The same for a rectangle that lies in the picture and in one tile.
    pub fn add_within_tile(&mut self, part: Rect) {
        debug_assert!(part.x1 / TILE == (part.x2 - 1) / TILE && part.y1 / TILE == (part.y2 - 1) / TILE);
        self.add_to_tile((part.y1 / TILE * self.columns + part.x1 / TILE) as usize, part);
    }

    fn add_to_tile(&mut self, index: usize, part: Rect) {
        let tile = &mut self.tiles[index];
        match tile {
            Some(rect) => *rect = rect.union(part),
            None => {
                *tile = Some(part);
                self.count += 1;
            }
        }
    }

    /// Whether a tile that `clip` touches has something in it.
    pub fn touches(&self, clip: Rect) -> bool {
        self.count > 0 && self.touched(clip).any(|index| self.tiles[index].is_some())
    }

    /// Moves what is in the tiles that `clip` touches to `into`, as few rectangles that do not overlap.
    pub fn take(&mut self, clip: Rect, into: &mut Vec<Rect>) {
        into.clear();
        if self.count == 0 {
            return;
        }
        self.full = false;
        // For each column of tiles the rectangle that begins there and might be made longer.
        let mut open = vec![usize::MAX; self.columns as usize];
        let mut run: Option<Rect> = None;
        for index in self.touched(clip) {
            let Some(rect) = self.tiles[index].take() else { continue };
            self.count -= 1;
            match &mut run {
                // Next to each other: nothing but the tile on the left ends where this one begins.
                Some(run) if run.x2 == rect.x1 && (run.y1, run.y2) == (rect.y1, rect.y2) => run.x2 = rect.x2,
                _ => {
                    if let Some(run) = run.replace(rect) {
                        append(run, into, &mut open);
                    }
                }
            }
        }
        if let Some(run) = run {
            append(run, into, &mut open);
        }
    }

    /// Numbers of the tiles that a rectangle touches, row by row.
    fn touched(&self, clip: Rect) -> impl Iterator<Item = usize> + use<> {
        let columns = self.columns;
        let whole = Rect { x1: 0, y1: 0, x2: self.width, y2: self.height };
        let (across, down) = match clip.intersection(whole) {
            Some(clip) => (clip.x1 / TILE..clip.x2.div_ceil(TILE), clip.y1 / TILE..clip.y2.div_ceil(TILE)),
            None => (0..0, 0..0),
        };
        down.flat_map(move |row| across.clone().map(move |column| (row * columns + column) as usize))
    }
}

/// Adds a rectangle below the one that it goes on from, if there is one of the same width.
fn append(run: Rect, into: &mut Vec<Rect>, open: &mut [usize]) {
    let column = &mut open[(run.x1 / TILE) as usize];
    match into.get_mut(*column) {
        Some(above) if above.y2 == run.y1 && (above.x1, above.x2) == (run.x1, run.x2) => above.y2 = run.y2,
        _ => {
            *column = into.len();
            into.push(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rect(x1: u32, y1: u32, x2: u32, y2: u32) -> Rect {
        Rect { x1, y1, x2, y2 }
    }

    fn taken(damage: &mut Damage, clip: Rect) -> Vec<Rect> {
        let mut rects = Vec::new();
        damage.take(clip, &mut rects);
        rects
    }

    #[test]
    fn everything_is_one_rectangle() {
        let mut damage = Damage::new(1920, 1080);
        damage.add_all();
        assert_eq!(taken(&mut damage, rect(0, 0, 1920, 1080)), [rect(0, 0, 1920, 1080)]);
        assert!(damage.is_empty());
        assert_eq!(damage, Damage::new(1920, 1080));
    }

    #[test]
    fn what_is_far_apart_stays_apart() {
        let mut damage = Damage::new(1000, 1000);
        damage.add(rect(3, 3, 5, 4));
        damage.add(rect(990, 990, 2000, 2000));
        assert_eq!(
            taken(&mut damage, rect(0, 0, 1000, 1000)),
            [rect(3, 3, 5, 4), rect(990, 990, 1000, 1000)]
        );
    }

    #[test]
    fn a_clip_takes_whole_tiles_and_leaves_the_others() {
        let mut damage = Damage::new(256, 128);
        damage.add_all();
        assert!(damage.touches(rect(70, 70, 71, 71)));
        assert_eq!(taken(&mut damage, rect(70, 70, 71, 71)), [rect(64, 64, 128, 128)]);
        assert!(!damage.touches(rect(70, 70, 71, 71)));
        assert_eq!(taken(&mut damage, rect(0, 0, 256, 128)).len(), 3);
    }

    #[test]
    fn a_picture_without_pixels_has_no_damage() {
        for (width, height) in [(0, 0), (0, 9), (9, 0)] {
            let mut damage = Damage::new(width, height);
            damage.add_all();
            assert!(damage.is_empty());
            assert!(taken(&mut damage, rect(0, 0, 9, 9)).is_empty());
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_twice(
            (width, height) in (1u32..400, 1u32..300),
            rects in prop::collection::vec((0u32..400, 0u32..300, 1u32..200, 1u32..200), 0..12),
        ) {
            let mut damage = Damage::new(width, height);
            let mut other = Damage::new(width, height);
            let mut wanted = vec![false; (width * height) as usize];
            for (index, (x, y, w, h)) in rects.into_iter().enumerate() {
                let all = rect(x, y, x + w, y + h);
                if index % 2 == 0 { damage.add(all) } else { other.add(all) }
                for y in all.y1..all.y2.min(height) {
                    for x in all.x1..all.x2.min(width) {
                        wanted[(y * width + x) as usize] = true;
                    }
                }
            }
            damage.add_from(&other);
            let mut seen = vec![false; wanted.len()];
            for got in taken(&mut damage, rect(0, 0, width, height)) {
                prop_assert!(got.x2 <= width && got.y2 <= height);
                for y in got.y1..got.y2 {
                    for x in got.x1..got.x2 {
                        prop_assert!(!std::mem::replace(&mut seen[(y * width + x) as usize], true));
                    }
                }
            }
            prop_assert!(wanted.iter().zip(&seen).all(|(wanted, seen)| !wanted || *seen));
            prop_assert!(damage.is_empty());
        }
    }
}
