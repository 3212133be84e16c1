//! The guest's picture: a private copy, brought up to date where the guest has drawn.
//!
//! The guest draws into its video memory at any time, also while it is read here. So each pixel is read once, into the copy,
//! and everything else (what has changed, what viewers get, screenshots) is about the copy. Nothing is read unless somebody
//! asks for it.

use ipc::shm::{SharedMemory, ShmError, View};
use seat::video::{Depth, MAX_VRAM, Rects, Surface};
use thiserror::Error;
use zerocopy::IntoBytes;

use crate::damage::{Damage, Rect, TILE};

/// Size of the picture before a guest has shown one.
pub const FIRST_SIZE: (u32, u32) = (640, 480);

/// Tiles that may be noted as drawn between two looks. A device that tells of more gets everything looked at, which costs
/// less than listening.
const MAX_EFFORT: u32 = 1 << 16;

/// Why a surface cannot be shown. The device is at fault; the screen stays black.
#[derive(Debug, Error)]
pub enum SurfaceError {
    /// Larger than any.
    #[error("the video memory has {0} bytes, more than any device's")]
    TooLarge(u64),
    /// Not to be mapped.
    #[error("the video memory: {0}")]
    Memory(#[from] ShmError),
}

/// Pixels, row by row: eight bits of nothing, red, green, blue from the highest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<u32>,
}

impl Picture {
    /// A black one.
    pub fn black(width: u32, height: u32) -> Picture {
        Picture { width, height, pixels: vec![0; width as usize * height as usize] }
    }

    /// One of these pixels. Panics if there are not `width` times `height`.
    pub fn of(width: u32, height: u32, pixels: Vec<u32>) -> Picture {
        assert_eq!(pixels.len(), width as usize * height as usize, "a picture is a rectangle");
        Picture { width, height, pixels }
    }

    /// Width and height.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// The pixels from column `x1` to before column `x2` of row `y`, as far as there are any.
    pub fn row(&self, y: u32, x1: u32, x2: u32) -> &[u32] {
        let (x1, x2) = (x1.min(self.width) as usize, x2.min(self.width) as usize);
        if y >= self.height || x1 >= x2 {
            return &[];
        }
        let start = y as usize * self.width as usize;
        &self.pixels[start + x1..start + x2]
    }

    /// The pixels of whole rows `y1..y2`, as far as there are any.
    pub fn rows(&self, y1: u32, y2: u32) -> &[u32] {
        let (y1, y2) = (y1.min(self.height) as usize, y2.min(self.height) as usize);
        &self.pixels[y1.min(y2) * self.width as usize..y2 * self.width as usize]
    }

    /// Copies a rectangle to `into`; what is outside of the picture is black.
    pub fn copy(&self, rect: Rect, into: &mut Vec<u32>) {
        into.clear();
        for y in rect.y1..rect.y2 {
            let row = self.row(y, rect.x1, rect.x2);
            into.extend_from_slice(row);
            into.extend(std::iter::repeat_n(0, rect.width() as usize - row.len()));
        }
    }
}

/// What the video device shows.
#[derive(Debug)]
pub struct Screen {
    source: Option<Source>,
    picture: Picture,
    /// Where the picture may be older than the video memory.
    stale: Damage,
    /// Tiles that were noted since the last look.
    effort: u32,
    rects: Vec<Rect>,
    row: Row,
}

#[derive(Debug)]
struct Source {
    surface: Surface,
    view: View,
}

/// One row of pixels, fresh from the video memory.
#[derive(Debug, Default)]
struct Row {
    pixels: Vec<u32>,
    narrow: Vec<u16>,
}

impl Default for Screen {
    fn default() -> Screen {
        Screen::new()
    }
}

impl Screen {
    /// No device yet: black.
    pub fn new() -> Screen {
        let (width, height) = FIRST_SIZE;
        Screen {
            source: None,
            picture: Picture::black(width, height),
            stale: Damage::new(width, height),
            effort: 0,
            rects: Vec::new(),
            row: Row::default(),
        }
    }

    /// The picture as it was when it was looked at last.
    pub fn picture(&self) -> &Picture {
        &self.picture
    }

    /// Whether a guest shows something.
    pub fn is_on(&self) -> bool {
        self.source.is_some()
    }

    /// Whether the guest may have drawn since the last look.
    pub fn is_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// There is a surface. True: the picture has another size now.
    pub fn show(&mut self, surface: Surface, memory: &SharedMemory) -> Result<bool, SurfaceError> {
        self.source = None;
        // Anything longer would be mapped for nothing. Devices round up to whole pages.
        if memory.len() > MAX_VRAM {
            return Err(SurfaceError::TooLarge(memory.len()));
        }
        let view = View::new(memory)?;
        let resized = self.picture.size() != (surface.width, surface.height);
        if resized {
            self.picture = Picture::black(surface.width, surface.height);
            self.stale = Damage::new(surface.width, surface.height);
        }
        self.source = Some(Source { surface, view });
        self.stale.add_all();
        Ok(resized)
    }

    /// There is no surface any more: the picture turns black at the next look.
    pub fn hide(&mut self) {
        self.source = None;
        self.stale.add_all();
    }

    /// The guest has drawn here.
    pub fn dirty(&mut self, rects: &Rects) {
        let (width, height) = self.picture.size();
        for rect in rects.iter().filter_map(|rect| Rect::within(*rect, width, height)) {
            self.effort = self.effort.saturating_add((rect.width() / TILE + 2) * (rect.height() / TILE + 2));
            if self.effort > MAX_EFFORT {
                return self.stale.add_all();
            }
            self.stale.add(rect);
        }
    }

    /// The guest may have drawn anywhere.
    pub fn all_dirty(&mut self) {
        self.stale.add_all();
    }

    /// Brings the picture up to date where the guest has drawn, and adds what has really changed to `changed`, which is about
    /// a picture of this size.
    pub fn look(&mut self, changed: &mut Damage) {
        let Some(whole) = Rect::whole(self.picture.width, self.picture.height) else { return };
        self.stale.take(whole, &mut self.rects);
        self.effort = 0;
        for rect in &self.rects {
            for y in rect.y1..rect.y2 {
                let new = self.row.fetch(self.source.as_ref(), y, rect.x1, rect.x2);
                let start = y as usize * self.picture.width as usize;
                let old = &mut self.picture.pixels[start + rect.x1 as usize..start + rect.x2 as usize];
                update(old, new, rect.x1, y, changed);
            }
        }
    }
}

impl Row {
    /// Reads pixels of one row, each once.
    fn fetch(&mut self, source: Option<&Source>, y: u32, x1: u32, x2: u32) -> &[u32] {
        self.pixels.resize((x2 - x1) as usize, 0);
        let read = source.is_some_and(|source| {
            let Surface { stride, offset, depth, .. } = source.surface;
            let at = offset + u64::from(y) * u64::from(stride) + u64::from(x1 * depth.bytes());
            let Ok(at) = usize::try_from(at) else { return false };
            match depth {
                Depth::Xrgb8888 => source.view.copy_out(at, self.pixels.as_mut_bytes()).is_ok(),
                Depth::Rgb565 => {
                    self.narrow.resize(self.pixels.len(), 0);
                    let read = source.view.copy_out(at, self.narrow.as_mut_bytes()).is_ok();
                    let pairs = self.pixels.iter_mut().zip(&self.narrow);
                    pairs.for_each(|(wide, narrow)| *wide = widen(*narrow));
                    read
                }
            }
        });
        // A surface lies in its memory (`Surface::fault`), so this is the black of no surface.
        if !read {
            self.pixels.fill(0);
        }
        &self.pixels
    }
}

/// Eight bits a colour from five, six and five; the lowest are copies of the highest, so that white is white.
fn widen(narrow: u16) -> u32 {
    let narrow = u32::from(narrow);
    let (red, green, blue) = (narrow >> 11, narrow >> 5 & 0x3f, narrow & 0x1f);
    (red << 3 | red >> 2) << 16 | (green << 2 | green >> 4) << 8 | blue << 3 | blue >> 2
}

/// Takes over what is new in a part of row `y` that begins at column `x`.
fn update(old: &mut [u32], new: &[u32], x: u32, y: u32, changed: &mut Damage) {
    let (mut at, mut x) = (0, x);
    while at < new.len() {
        let len = ((TILE - x % TILE) as usize).min(new.len() - at);
        let (old, new) = (&mut old[at..at + len], &new[at..at + len]);
        // The whole at once first: most often that is one comparison of memory.
        if old != new {
            let differs = |(old, new): (&u32, &u32)| old != new;
            let first = old.iter().zip(new).position(differs).unwrap_or(0) as u32;
            let last = old.iter().zip(new).rposition(differs).unwrap_or(len - 1) as u32;
            old.copy_from_slice(new);
            changed.add_within_tile(Rect { x1: x + first, y1: y, x2: x + last + 1, y2: y + 1 });
        }
        at += len;
        x += len as u32;
    }
}

#[cfg(test)]
mod tests {
    use ipc::shm::Mapping;
    use seat::video::Rect as SeatRect;

    use super::*;

    fn surface(width: u32, height: u32, depth: Depth) -> (Surface, SharedMemory, Mapping) {
        let stride = width * depth.bytes() + 12;
        let memory = SharedMemory::create("vram", 1 << 20).unwrap();
        let mapping = Mapping::new(&memory, 0, 1 << 20).unwrap();
        let surface = Surface { width, height, stride, depth, offset: 100, vram_bytes: 1 << 20 };
        assert_eq!(surface.fault(), None);
        (surface, memory, mapping)
    }

    fn put(mapping: &Mapping, surface: &Surface, x: u32, y: u32, bytes: &[u8]) {
        let at = surface.offset as usize + (y * surface.stride + x * surface.depth.bytes()) as usize;
        mapping.write(at, bytes);
    }

    fn looked(screen: &mut Screen) -> Vec<Rect> {
        let (width, height) = screen.picture().size();
        let mut changed = Damage::new(width, height);
        screen.look(&mut changed);
        let mut rects = Vec::new();
        changed.take(Rect::whole(width, height).unwrap(), &mut rects);
        rects
    }

    #[test]
    fn what_is_drawn_is_seen_where_the_guest_says_so() {
        let (surface, memory, mapping) = surface(130, 70, Depth::Xrgb8888);
        let mut screen = Screen::new();
        assert!(screen.show(surface, &memory).unwrap());
        assert_eq!(looked(&mut screen), []);
        put(&mapping, &surface, 129, 69, &[1, 2, 3, 0]);
        put(&mapping, &surface, 5, 6, &[9, 9, 9, 0]);
        assert!(!screen.is_stale());
        let mut rects = Rects::NONE;
        assert!(rects.push(SeatRect { x1: 100, y1: -5, x2: 5000, y2: 70 }));
        assert!(rects.push(SeatRect { x1: 7, y1: 7, x2: 7, y2: 9 }));
        screen.dirty(&rects);
        assert_eq!(looked(&mut screen), [Rect { x1: 129, y1: 69, x2: 130, y2: 70 }]);
        assert_eq!(screen.picture().row(69, 129, 130), [0x0003_0201]);
        assert_eq!(screen.picture().row(6, 5, 6), [0]);
        screen.all_dirty();
        assert_eq!(looked(&mut screen), [Rect { x1: 5, y1: 6, x2: 6, y2: 7 }]);
        screen.all_dirty();
        assert_eq!(looked(&mut screen), [], "drawn again, but nothing new");
    }

    #[test]
    fn sixteen_bits_become_thirty_two() {
        let (surface, memory, mapping) = surface(20, 10, Depth::Rgb565);
        let mut screen = Screen::new();
        put(&mapping, &surface, 19, 9, &0xffff_u16.to_le_bytes());
        put(&mapping, &surface, 0, 0, &(0x10_u16 << 11 | 1 << 5 | 0x1f).to_le_bytes());
        screen.show(surface, &memory).unwrap();
        assert_eq!(looked(&mut screen).len(), 1);
        assert_eq!(screen.picture().row(9, 19, 20), [0xff_ffff]);
        assert_eq!(screen.picture().row(0, 0, 2), [0x84_04_ff, 0]);
    }

    #[test]
    fn who_tells_of_too_much_gets_everything_looked_at() {
        let (surface, memory, mapping) = surface(130, 70, Depth::Xrgb8888);
        let mut screen = Screen::new();
        screen.show(surface, &memory).unwrap();
        looked(&mut screen);
        put(&mapping, &surface, 129, 69, &[1, 2, 3, 0]);
        let mut rects = Rects::NONE;
        while rects.push(SeatRect { x1: 0, y1: 0, x2: 1, y2: 1 }) {}
        for _ in 0..MAX_EFFORT / 64 / 4 {
            screen.dirty(&rects);
        }
        assert_eq!(looked(&mut screen), []);
        for _ in 0..MAX_EFFORT / 64 / 4 + 1 {
            screen.dirty(&rects);
        }
        assert_eq!(looked(&mut screen).len(), 1);
    }

    #[test]
    fn without_a_surface_the_picture_is_black_and_keeps_its_size() {
        let (surface, memory, mapping) = surface(64, 64, Depth::Xrgb8888);
        let mut screen = Screen::new();
        put(&mapping, &surface, 3, 3, &[1, 1, 1, 1]);
        screen.show(surface, &memory).unwrap();
        looked(&mut screen);
        screen.hide();
        assert_eq!(looked(&mut screen), [Rect { x1: 3, y1: 3, x2: 4, y2: 4 }]);
        assert_eq!(*screen.picture(), Picture::black(64, 64));
        assert!(!screen.show(surface, &memory).unwrap());
        assert_eq!(looked(&mut screen).len(), 1);
    }

    #[test]
    fn parts_outside_of_a_picture_are_black() {
        let picture = Picture::of(2, 2, vec![1, 2, 3, 4]);
        let mut copy = Vec::new();
        picture.copy(Rect { x1: 1, y1: 0, x2: 3, y2: 3 }, &mut copy);
        assert_eq!(copy, [2, 0, 4, 0, 0, 0]);
        assert_eq!(picture.rows(1, 9), [3, 4]);
        assert!(picture.rows(7, 9).is_empty());
    }
}
