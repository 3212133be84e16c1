//! The bytes of a message of the guest's, wherever they are: in a section of the send buffer, in pages that its packet
//! names, or first in the one and then in the others (Linux copies a frame's header behind other frames into a section, and
//! leaves the frame where it is). One byte string, of which nothing is looked at but private copies.

use vsp::ipc::shm::HeldSpan;

/// Some of the bytes.
#[derive(Clone, Copy)]
pub(super) enum Piece<'a> {
    /// The guest's still.
    Shared(HeldSpan<'a>),
    /// A private copy.
    Private(&'a [u8]),
}

impl<'a> Piece<'a> {
    fn len(&self) -> usize {
        match self {
            Piece::Shared(span) => span.len(),
            Piece::Private(bytes) => bytes.len(),
        }
    }

    fn copy_out(&self, at: usize, into: &mut [u8]) -> bool {
        match self {
            Piece::Shared(span) => span.copy_out(at, into).is_ok(),
            Piece::Private(bytes) => match bytes.get(at..at + into.len()) {
                Some(from) => {
                    into.copy_from_slice(from);
                    true
                }
                None => false,
            },
        }
    }

    /// `len` bytes from `at` on of one that has them.
    fn part(self, at: usize, len: usize) -> Piece<'a> {
        match self {
            Piece::Shared(span) => Piece::Shared(span.split_at(at).1.split_at(len).0),
            Piece::Private(bytes) => Piece::Private(bytes.get(at..at + len).unwrap_or_default()),
        }
    }
}

/// All of the bytes.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pieces: &'a [Piece<'a>],
    len: usize,
}

impl<'a> Source<'a> {
    pub fn new(pieces: &'a [Piece<'a>]) -> Source<'a> {
        Source { pieces, len: pieces.iter().map(Piece::len).sum() }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// A private copy of the bytes from `at` on. False: there are not so many.
    pub fn copy_out(&self, at: usize, into: &mut [u8]) -> bool {
        let mut done = 0;
        self.walk(at, into.len(), |piece| {
            let len = piece.len();
            let copied = piece.copy_out(0, &mut into[done..done + len]);
            done += len;
            copied
        })
    }

    /// The bytes from `at` on, as far as they are the guest's: their spans. `None` if some of them are private.
    pub fn spans(&self, at: usize, len: usize, out: &mut Vec<HeldSpan<'a>>) -> Option<()> {
        out.clear();
        let all_shared = self.walk(at, len, |piece| match piece {
            Piece::Shared(span) => {
                out.push(span);
                true
            }
            Piece::Private(_) => false,
        });
        all_shared.then_some(())
    }

    /// Whether the bytes from `at` on are all in one span, and which: the usual case.
    pub fn span(&self, at: usize, len: usize) -> Option<HeldSpan<'a>> {
        match self.pieces {
            [Piece::Shared(span), ..] if at.checked_add(len)? <= span.len() => {
                Some(span.split_at(at).1.split_at(len).0)
            }
            _ => None,
        }
    }

    /// Calls `each` for the parts of a range in order until it says no. False: it did, or the range is not all there.
    fn walk(&self, at: usize, len: usize, mut each: impl FnMut(Piece<'a>) -> bool) -> bool {
        let (mut skip, mut left) = (at, len);
        for piece in self.pieces {
            if left == 0 {
                break;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let part = (piece.len() - skip).min(left);
            if !each(piece.part(skip, part)) {
                return false;
            }
            left -= part;
            skip = 0;
        }
        left == 0
    }
}

#[cfg(test)]
mod tests {
    use vsp::SharedMemory;
    use vsp::ipc::shm::PagesMapping;

    use super::*;

    #[test]
    fn pieces_make_one_byte_string() {
        let pages = PagesMapping::new(&SharedMemory::create("test", 4096).unwrap()).unwrap();
        pages.copy_in(100, b"abcdef").unwrap();
        let pieces = [
            Piece::Shared(pages.span(100, 3).unwrap()),
            Piece::Private(b"XY"),
            Piece::Shared(pages.span(103, 3).unwrap()),
        ];
        let source = Source::new(&pieces);
        assert_eq!(source.len(), 8);
        let mut all = [0; 8];
        assert!(source.copy_out(0, &mut all));
        assert_eq!(&all, b"abcXYdef");
        let mut some = [0; 4];
        assert!(source.copy_out(2, &mut some));
        assert_eq!(&some, b"cXYd");
        assert!(!source.copy_out(5, &mut some) && !source.copy_out(usize::MAX, &mut some));
        assert!(source.copy_out(8, &mut []));
        let mut spans = Vec::new();
        assert!(source.spans(1, 4, &mut spans).is_none(), "private bytes have no span");
        assert!(source.spans(5, 3, &mut spans).is_some());
        assert_eq!(spans.iter().map(|span| span.len()).collect::<Vec<_>>(), [3]);
        assert!(source.spans(5, 4, &mut spans).is_none());
        assert!(source.span(1, 2).is_some_and(|span| span.len() == 2));
        assert!(source.span(1, 3).is_none() && source.span(usize::MAX, 3).is_none());
    }
}
