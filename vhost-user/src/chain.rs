//! What a request is about: pieces of guest memory, some to be read, then some to be written.

/// Most descriptors of a chain: what QEMU takes, and more than Linux sends (virtio 1.2, 2.7.5.2, bounds them by the size of the queue).
pub const MAX_CHAIN: usize = 1024;

/// A piece of guest memory, as the guest has named it: nothing is known of it but its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
}

/// The pieces of one request. Made once and filled again and again: a request costs no memory.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    pieces: Vec<Piece>,
    /// The first so many are for the device to read.
    readable: usize,
}

impl Chain {
    /// An empty one, with room for the longest.
    pub fn new() -> Chain {
        Chain { pieces: Vec::with_capacity(MAX_CHAIN), readable: 0 }
    }

    /// What the device may read.
    pub fn readable(&self) -> &[Piece] {
        &self.pieces[..self.readable]
    }

    /// What the device may write.
    pub fn writable(&self) -> &[Piece] {
        &self.pieces[self.readable..]
    }

    /// Bytes that may be read.
    pub fn bytes_readable(&self) -> u64 {
        bytes(self.readable())
    }

    /// Bytes that may be written.
    pub fn bytes_writable(&self) -> u64 {
        bytes(self.writable())
    }

    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.readable = 0;
    }

    /// One more piece; false: there is no room, or it is to be read behind one that is to be written.
    pub(crate) fn push(&mut self, piece: Piece, writable: bool) -> bool {
        if self.pieces.len() == MAX_CHAIN || (!writable && self.readable < self.pieces.len()) {
            return false;
        }
        self.pieces.push(piece);
        self.readable += usize::from(!writable);
        true
    }
}

fn bytes(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.len)).sum()
}

/// The part of `pieces` that begins after `from` bytes and has `len` bytes at most: addresses and lengths, as guest memory takes them.
pub fn cut(pieces: &[Piece], from: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let (mut skip, mut left) = (from, len);
    pieces.iter().filter_map(move |piece| {
        let whole = u64::from(piece.len);
        let begin = skip.min(whole);
        skip -= begin;
        let take = (whole - begin).min(left);
        left -= take;
        // An address that wraps is no RAM, which whoever translates it will find.
        (take > 0).then(|| (piece.gpa.wrapping_add(begin), take))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_comes_first() {
        let mut chain = Chain::new();
        let piece = |len| Piece { gpa: 0x1000, len };
        assert!(chain.push(piece(16), false) && chain.push(piece(4096), true) && chain.push(piece(1), true));
        assert!(!chain.push(piece(1), false), "behind what is written");
        assert_eq!((chain.bytes_readable(), chain.bytes_writable()), (16, 4097));
        chain.clear();
        assert!((0..MAX_CHAIN).all(|_| chain.push(piece(u32::MAX), false)) && !chain.push(piece(1), true));
        assert_eq!(chain.bytes_readable(), MAX_CHAIN as u64 * u64::from(u32::MAX));
    }

    #[test]
    fn parts_are_cut_out() {
        let pieces = [Piece { gpa: 100, len: 10 }, Piece { gpa: 200, len: 0 }, Piece { gpa: 300, len: 10 }];
        let part = |from, len| cut(&pieces, from, len).collect::<Vec<_>>();
        assert_eq!(part(0, 20), [(100, 10), (300, 10)]);
        assert_eq!(part(4, 8), [(104, 6), (300, 2)]);
        assert_eq!(part(10, 1), [(300, 1)]);
        assert_eq!(part(20, 1), []);
        assert_eq!(part(0, 0), []);
    }
}
