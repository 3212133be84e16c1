//! The colours of a piece, if they are few.

/// Most colours.
const MAX: usize = 256;
/// Places of the hash table: a power of two, with room to spare.
const PLACES: usize = 1024;

/// Up to 256 colours, each with a number.
#[derive(Clone, Debug)]
pub struct Palette {
    colours: Vec<u32>,
    /// Numbers of colours plus one, where their hash says or behind.
    places: Box<[u16; PLACES]>,
}

impl Default for Palette {
    fn default() -> Palette {
        Palette::new()
    }
}

impl Palette {
    /// An empty one.
    pub fn new() -> Palette {
        Palette { colours: Vec::with_capacity(MAX), places: Box::new([0; PLACES]) }
    }

    /// Takes over the colours of these pixels; false: there are more than `most`, which is at most 256.
    pub fn fill(&mut self, pixels: &[u32], most: usize) -> bool {
        self.colours.clear();
        self.places.fill(0);
        let mut last = None;
        for &pixel in pixels {
            if last == Some(pixel) {
                continue;
            }
            last = Some(pixel);
            let place = self.place(pixel);
            if self.places[place] == 0 {
                if self.colours.len() >= most.min(MAX) {
                    return false;
                }
                self.colours.push(pixel);
                self.places[place] = self.colours.len() as u16;
            }
        }
        true
    }

    /// The colours by number.
    pub fn colours(&self) -> &[u32] {
        &self.colours
    }

    /// The number of a colour that is there.
    pub fn number(&self, colour: u32) -> u8 {
        self.places[self.place(colour)].wrapping_sub(1) as u8
    }

    /// Where a colour is, or would be.
    fn place(&self, colour: u32) -> usize {
        let mut place = (colour.wrapping_mul(0x9e37_79b1) >> 22) as usize;
        loop {
            match self.places[place % PLACES] {
                0 => return place % PLACES,
                number if self.colours[usize::from(number) - 1] == colour => return place % PLACES,
                _ => place += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_numbered_as_they_come() {
        let mut palette = Palette::new();
        assert!(palette.fill(&[7, 7, 9, 7, 1], 3));
        assert_eq!(palette.colours(), [7, 9, 1]);
        assert_eq!([7, 9, 1].map(|colour| palette.number(colour)), [0, 1, 2]);
        assert!(!palette.fill(&[7, 7, 9, 7, 1], 2));
        let many: Vec<u32> = (0..256).map(|colour| colour * 1024).collect();
        assert!(palette.fill(&many, 256));
        assert!(
            many.iter().enumerate().all(|(number, colour)| usize::from(palette.number(*colour)) == number)
        );
        assert!(!palette.fill(&(0..257).collect::<Vec<_>>(), 1000));
    }
}
