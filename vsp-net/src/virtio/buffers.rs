//! Memory that a driver has given for frames, taken from its queue and not used yet: several buffers in a row, so that the longest frame can
//! be received into them before anybody knows how long it is. What is not used goes back, in the order in which it came.
//!
//! A buffer that lies in no RAM takes no frame. It goes back empty when it is its turn, and no frame lies across it: a driver would take it for a
//! part of one.

use std::collections::VecDeque;

use vsp::ipc::shm::{GuestBuffer, HeldSpan};

/// Most buffers: as many as the header can count, and far more than the longest frame needs of a driver that means well.
const MOST: usize = 1024;
/// Most pieces for which the kernel is asked to receive at once; it takes 1,024, two of which are ours.
const MOST_PIECES: usize = 1000;

/// One of them; `R` is what it is answered with.
#[derive(Debug)]
struct Taken<R> {
    request: R,
    /// `None`: it is no good.
    memory: Option<GuestBuffer>,
}

/// All of them, oldest first.
#[derive(Debug)]
pub(super) struct Buffers<R> {
    taken: VecDeque<Taken<R>>,
    room: usize,
    pieces: usize,
    /// How many are no good.
    bad: usize,
}

impl<R> Default for Buffers<R> {
    fn default() -> Buffers<R> {
        Buffers { taken: VecDeque::new(), room: 0, pieces: 0, bad: 0 }
    }
}

impl<R> Buffers<R> {
    /// One more. One of no bytes is no good, nor is none.
    pub fn push(&mut self, request: R, memory: Option<GuestBuffer>) {
        let memory = memory.filter(|memory| !memory.is_empty());
        match &memory {
            Some(memory) => {
                self.room = self.room.saturating_add(memory.len());
                self.pieces += memory.spans().len();
            }
            None => self.bad += 1,
        }
        self.taken.push_back(Taken { request, memory });
    }

    /// Bytes in all of them.
    pub fn room(&self) -> usize {
        self.room
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.taken.len()
    }

    /// Whether there may be one more. Without merging, a frame lies in one.
    pub fn takes_more(&self, merges: bool) -> bool {
        self.taken.len() < if merges { MOST } else { 1 }
    }

    /// Whether a frame of any length can be received into them at once: the kernel takes so many pieces, and all are good.
    pub fn is_simple(&self) -> bool {
        self.pieces <= MOST_PIECES && self.bad == 0
    }

    /// Bytes of those before the first that is no good.
    fn room_in_front(&self) -> usize {
        self.taken.iter().map_while(|taken| taken.memory.as_ref()).map(GuestBuffer::len).sum()
    }

    /// The oldest one, if it goes back empty: no frame of `wanted` bytes begins in it, as one that is no good comes before its end.
    pub fn pop_useless(&mut self, wanted: usize) -> Option<R> {
        if self.bad == 0 || self.room_in_front() >= wanted {
            return None;
        }
        self.pop_front().map(|taken| taken.request)
    }

    /// The oldest one, if it is no good.
    pub fn pop_bad(&mut self) -> Option<R> {
        self.pop_useless(1)
    }

    /// Their bytes, one after the other.
    pub fn memory(&self) -> impl Iterator<Item = HeldSpan<'_>> + Clone {
        self.taken.iter().flat_map(|taken| &taken.memory).flat_map(|memory| memory.held().iter().copied())
    }

    /// How many of them the first `len` bytes lie in. At least one, if there is any.
    pub fn of(&self, len: usize) -> usize {
        let mut end = 0;
        let enough = self.taken.iter().position(|taken| {
            end += taken.memory.as_ref().map_or(0, GuestBuffer::len);
            end >= len
        });
        enough.map_or(self.taken.len(), |index| index + 1)
    }

    /// The first `len` bytes have been written: the buffers that they lie in, with how much of each, in order.
    pub fn written(&mut self, len: usize, mut each: impl FnMut(R, usize)) {
        let mut left = len;
        for _ in 0..self.of(len) {
            let Some(Taken { request, memory }) = self.pop_front() else { return };
            let part = left.min(memory.map_or(0, |memory| memory.len()));
            left -= part;
            each(request, part);
        }
    }

    /// The newest one goes back.
    pub fn pop_back(&mut self) -> Option<R> {
        let Taken { request, memory } = self.taken.pop_back()?;
        self.forget(memory.as_ref());
        Some(request)
    }

    fn pop_front(&mut self) -> Option<Taken<R>> {
        let taken = self.taken.pop_front()?;
        self.forget(taken.memory.as_ref());
        Some(taken)
    }

    fn forget(&mut self, memory: Option<&GuestBuffer>) {
        match memory {
            Some(memory) => {
                self.room -= memory.len();
                self.pieces -= memory.spans().len();
            }
            None => self.bad -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vsp::SharedMemory;
    use vsp::ipc::message::RamRegion;
    use vsp::ipc::shm::GuestRam;

    use super::*;
    use crate::virtio::pieces;

    fn ram() -> Arc<GuestRam> {
        let memory = SharedMemory::create("ram", 1 << 16).unwrap();
        Arc::new(GuestRam::new(&memory, &[RamRegion { gpa: 0, len: 1 << 16, offset: 0 }]).unwrap())
    }

    fn buffers(ram: &Arc<GuestRam>, lens: &[u64]) -> Buffers<usize> {
        let mut buffers = Buffers::default();
        for (number, len) in lens.iter().enumerate() {
            // Each in two places.
            let places = [(number as u64 * 0x400, len / 2), (0x8000 + number as u64 * 0x400, len - len / 2)];
            buffers.push(number, GuestBuffer::new(ram, places).ok());
        }
        buffers
    }

    fn written(buffers: &mut Buffers<usize>, len: usize) -> Vec<(usize, usize)> {
        let mut all = Vec::new();
        buffers.written(len, |request, len| all.push((request, len)));
        all
    }

    #[test]
    fn a_frame_lies_in_as_many_as_it_needs() {
        let ram = ram();
        let mut buffers = buffers(&ram, &[100, 100, 50, 100]);
        assert_eq!((buffers.room(), buffers.count()), (350, 4));
        assert_eq!([1, 100, 101, 250, 251].map(|len| buffers.of(len)), [1, 1, 2, 3, 4]);
        assert!(pieces::copy_in(buffers.memory(), &[7; 130]));
        let mut byte = [0];
        ram.read(0x8400 - 1, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        ram.read(0x400 + 29, &mut byte).unwrap();
        assert_eq!(byte, [7], "the 30th byte of the second one");
        assert_eq!(written(&mut buffers, 130), [(0, 100), (1, 30)]);
        assert_eq!((buffers.room(), buffers.count()), (150, 2));
        assert_eq!(written(&mut buffers, 1), [(2, 1)]);
        assert_eq!(buffers.room(), 100);
    }

    #[test]
    fn what_is_left_goes_back_newest_first() {
        let ram = ram();
        let mut buffers = buffers(&ram, &[100, 100, 100]);
        assert_eq!(written(&mut buffers, 14).len(), 1);
        assert_eq!(buffers.pop_back(), Some(2));
        assert_eq!(buffers.pop_back(), Some(1));
        assert!(buffers.pop_back().is_none());
        assert_eq!((buffers.room(), buffers.pieces), (0, 0));
    }

    #[test]
    fn there_is_an_end_to_what_is_taken() {
        let ram = ram();
        let mut buffers = Buffers::default();
        assert!(buffers.takes_more(false) && buffers.takes_more(true));
        while buffers.takes_more(true) {
            buffers.push((), GuestBuffer::new(&ram, [(0, 1), (100, 1)]).ok());
        }
        assert_eq!((buffers.count(), buffers.is_simple(), buffers.takes_more(false)), (MOST, false, false));
    }

    #[test]
    fn one_that_is_no_good_goes_back_before_a_frame_would_lie_across_it() {
        let ram = ram();
        let mut buffers = Buffers::default();
        for (number, len) in [(0, 100), (1, 0), (2, 0), (3, 50), (4, 60)] {
            buffers.push(number, GuestBuffer::new(&ram, [(0, len)]).ok());
        }
        buffers.push(5, None);
        assert_eq!((buffers.room(), buffers.is_simple(), buffers.pop_bad()), (210, false, None));
        assert_eq!((buffers.pop_useless(100), buffers.of(100)), (None, 1));
        // A longer one lies behind them.
        let useless: Vec<_> = std::iter::from_fn(|| buffers.pop_useless(101)).collect();
        assert_eq!((useless, buffers.of(101), buffers.room()), (vec![0, 1, 2], 2, 110));
        assert_eq!(written(&mut buffers, 101), [(3, 50), (4, 51)]);
        assert_eq!((buffers.pop_bad(), buffers.pop_bad(), buffers.is_simple()), (Some(5), None, true));
    }
}
