//! The shape of the mouse pointer, put together from the guest's parts.
//!
//! Linux sends one part (of a pixel that is as good as invisible: it draws its pointer itself). Other guests send parts with numbers
//! from 0 on, the last with number 255.

use seat::shape::{MAX_SIDE, Shape};

use crate::wire::PointerPart;

/// Bytes of a pixel.
const PIXEL: usize = 4;

/// Parts of a shape that is not whole yet: at most 36 KiB.
#[derive(Clone, Debug, Default)]
pub struct Pointer {
    begun: Option<Begun>,
}

#[derive(Clone, Debug)]
struct Begun {
    next: u8,
    shape: Shape,
}

impl Pointer {
    /// A part has come: the shape, if it was the last one. A part that cannot be, or that does not go on where the one before it
    /// has ended, is forgotten together with what was begun.
    pub fn add(&mut self, part: &PointerPart<'_>) -> Option<Shape> {
        let begun = self.begun.take();
        let empty = empty(part)?;
        let total = usize::from(empty.width) * usize::from(empty.height) * PIXEL;
        let is_last = part.index == PointerPart::LAST;
        let fits = |begun: &Begun| {
            let shape = &begun.shape;
            (shape.width, shape.height) == (empty.width, empty.height)
                && (is_last || begun.next == part.index)
        };
        let alone = part.index == 0 || (is_last && part.bytes.len() >= total);
        let mut shape = match begun.filter(fits) {
            Some(begun) if !alone => begun.shape,
            None if !alone => return None,
            _ => empty,
        };
        let room = total - shape.pixels.len();
        shape.pixels.extend_from_slice(&part.bytes[..part.bytes.len().min(room)]);
        if is_last {
            return (shape.pixels.len() == total).then_some(shape);
        }
        // Two hundred and fifty-four parts are many more than the longest shape takes.
        self.begun = part.index.checked_add(1).map(|next| Begun { next, shape });
        None
    }
}

/// A shape of a part's size, if there can be one.
fn empty(part: &PointerPart<'_>) -> Option<Shape> {
    let side = |number: u32| u16::try_from(number).ok().filter(|side| (1..=MAX_SIDE).contains(side));
    let (width, height) = (side(part.width)?, side(part.height)?);
    let hot = |number: u32, side: u16| u16::try_from(number).ok().filter(|hot| *hot < side);
    let (hot_x, hot_y) = (hot(part.hot_x, width)?, hot(part.hot_y, height)?);
    part.is_argb.then(|| Shape { width, height, hot_x, hot_y, pixels: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(index: u8, bytes: &[u8]) -> PointerPart<'_> {
        PointerPart { index, is_argb: true, width: 32, height: 32, hot_x: 3, hot_y: 4, bytes }
    }

    fn pixels() -> Vec<u8> {
        (0..32 * 32 * 4).map(|at| (at % 253) as u8).collect()
    }

    #[test]
    fn what_linux_sends_is_a_shape() {
        let bytes = [0, 1, 1, 1];
        let part = PointerPart {
            index: PointerPart::LAST,
            is_argb: true,
            width: 1,
            height: 1,
            hot_x: 0,
            hot_y: 0,
            bytes: &bytes,
        };
        let shape = Pointer::default().add(&part).unwrap();
        assert_eq!(shape, Shape { width: 1, height: 1, hot_x: 0, hot_y: 0, pixels: bytes.to_vec() });
        assert_eq!(shape.fault(), None);
    }

    #[test]
    fn parts_make_a_shape() {
        let (pixels, mut pointer) = (pixels(), Pointer::default());
        assert_eq!(pointer.add(&part(0, &pixels[..1000])), None);
        assert_eq!(pointer.add(&part(1, &pixels[1000..3000])), None);
        let shape = pointer.add(&part(PointerPart::LAST, &pixels[3000..])).unwrap();
        assert_eq!((shape.pixels, shape.hot_x, shape.hot_y), (pixels.clone(), 3, 4));
        // Twice; and one that is begun anew in the middle; and one that replaces what was begun.
        for indices in [[0, 0], [0, PointerPart::LAST]] {
            pointer.add(&part(indices[0], &pixels[..1000]));
            let last = pointer.add(&part(indices[1], &pixels));
            let shape = last.or_else(|| pointer.add(&part(PointerPart::LAST, &[]))).unwrap();
            assert_eq!(shape.pixels, pixels);
        }
    }

    #[test]
    fn what_does_not_fit_together_is_forgotten() {
        let pixels = pixels();
        let broken = [
            vec![part(1, &pixels[..1000]), part(PointerPart::LAST, &pixels[1000..])],
            vec![part(0, &pixels[..1000]), part(2, &pixels[1000..]), part(PointerPart::LAST, &[])],
            vec![part(0, &pixels[..1000]), part(PointerPart::LAST, &pixels[1000..4000])],
            vec![
                PointerPart { width: 31, ..part(0, &pixels[..2000]) },
                part(PointerPart::LAST, &pixels[2000..]),
            ],
            vec![part(PointerPart::LAST, &pixels[1..])],
            vec![PointerPart { is_argb: false, ..part(PointerPart::LAST, &pixels) }],
            vec![PointerPart { width: 97, ..part(PointerPart::LAST, &pixels) }],
            vec![PointerPart { height: 0, ..part(PointerPart::LAST, &pixels) }],
            vec![PointerPart { width: u32::MAX, height: u32::MAX, ..part(PointerPart::LAST, &pixels) }],
            vec![PointerPart { hot_x: 32, ..part(PointerPart::LAST, &pixels) }],
            vec![PointerPart { hot_y: u32::MAX, ..part(PointerPart::LAST, &pixels) }],
        ];
        for parts in broken {
            let mut pointer = Pointer::default();
            assert!(parts.iter().all(|part| pointer.add(part).is_none()), "{parts:?}");
            assert!(pointer.add(&part(PointerPart::LAST, &pixels)).is_some(), "the next is as good as ever");
        }
    }

    #[test]
    fn endless_parts_take_no_memory() {
        let (pixels, mut pointer) = (vec![7; 16_000], Pointer::default());
        for index in 0..PointerPart::LAST {
            assert_eq!(pointer.add(&part(index, &pixels)), None);
            let len = pointer.begun.as_ref().map_or(0, |begun| begun.shape.pixels.capacity());
            assert!(len <= 64 << 10, "{len}");
        }
    }
}
