//! A byte string of the guest's that lies in several places: what the descriptors of a chain name, or of several chains in a row.
//!
//! Nothing of it is looked at but private copies.

use vsp::ipc::shm::HeldSpan;

/// How many bytes there are.
pub fn len<'a>(pieces: impl Iterator<Item = HeldSpan<'a>>) -> usize {
    pieces.fold(0, |sum, span| sum.saturating_add(span.len()))
}

/// All but the first `count` bytes.
pub fn skip<'a>(
    pieces: impl Iterator<Item = HeldSpan<'a>> + Clone,
    count: usize,
) -> impl Iterator<Item = HeldSpan<'a>> + Clone {
    let mut left = count;
    pieces.filter_map(move |span| {
        let (skipped, rest) = span.split_at(left);
        left -= skipped.len();
        (!rest.is_empty()).then_some(rest)
    })
}

/// The first `count` bytes.
pub fn take<'a>(
    pieces: impl Iterator<Item = HeldSpan<'a>> + Clone,
    count: usize,
) -> impl Iterator<Item = HeldSpan<'a>> + Clone {
    let mut left = count;
    let taken = pieces.map_while(move |span| {
        // Not one piece further than that: there may be many.
        (left > 0).then(|| {
            let (taken, _) = span.split_at(left);
            left -= taken.len();
            taken
        })
    });
    taken.filter(|span| !span.is_empty())
}

/// A private copy of the first bytes. False: there are not so many.
pub fn copy_out<'a>(pieces: impl Iterator<Item = HeldSpan<'a>>, mut into: &mut [u8]) -> bool {
    for span in pieces {
        let (part, rest) = into.split_at_mut(into.len().min(span.len()));
        if span.copy_out(0, part).is_err() {
            return false;
        }
        into = rest;
        if into.is_empty() {
            break;
        }
    }
    into.is_empty()
}

/// Puts bytes at the beginning. False: there is no room for all.
pub fn copy_in<'a>(pieces: impl Iterator<Item = HeldSpan<'a>>, mut from: &[u8]) -> bool {
    for span in pieces {
        let (part, rest) = from.split_at(from.len().min(span.len()));
        if span.copy_in(0, part).is_err() {
            return false;
        }
        from = rest;
        if from.is_empty() {
            break;
        }
    }
    from.is_empty()
}

#[cfg(test)]
mod tests {
    use vsp::SharedMemory;
    use vsp::ipc::shm::PagesMapping;

    use super::*;

    #[test]
    fn pieces_are_one_byte_string() {
        let pages = PagesMapping::new(&SharedMemory::create("test", 4096).unwrap()).unwrap();
        pages.copy_in(0, b"abc--defg--h").unwrap();
        let spans = [(0, 3), (5, 4), (9, 0), (11, 1)].map(|(at, len)| pages.span(at, len).unwrap());
        let all = || spans.iter().copied();
        assert_eq!(len(all()), 8);
        for from in 0..=8 {
            for to in from..=8 {
                let part = || take(skip(all(), from), to - from);
                assert_eq!(len(part()), to - from);
                let mut copy = vec![0; to - from];
                assert!(copy_out(part(), &mut copy));
                assert_eq!(copy, b"abcdefgh"[from..to]);
                assert!(!copy_out(part(), &mut vec![0; to - from + 1]) && !copy_in(part(), &[0; 9]));
                // What was refused has been written as far as there was room.
                pages.copy_in(0, b"abc--defg--h").unwrap();
            }
        }
        assert_eq!((len(skip(all(), 100)), len(take(all(), 100))), (0, 8));
        assert!(copy_in(skip(all(), 2), b"CDEFGH"));
        let mut copy = [0; 12];
        pages.copy_out(0, &mut copy).unwrap();
        assert_eq!(&copy, b"abC--DEFG--H");
        assert!(copy_out(all(), &mut []) && copy_in(all(), &[]));
    }
}
