//! Memory that a driver has given for frames, taken from its queue and not used yet: several buffers in a row, so that the longest frame can
//! be received into them before anybody knows how long it is. What is not used goes back, in the order in which it came.

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
    memory: GuestBuffer,
}

/// All of them, oldest first.
#[derive(Debug)]
pub(super) struct Buffers<R> {
    taken: VecDeque<Taken<R>>,
    room: usize,
    pieces: usize,
}

impl<R> Default for Buffers<R> {
    fn default() -> Buffers<R> {
        Buffers { taken: VecDeque::new(), room: 0, pieces: 0 }
    }
}

impl<R> Buffers<R> {
    /// One more.
    pub fn push(&mut self, request: R, memory: GuestBuffer) {
        self.room = self.room.saturating_add(memory.len());
        self.pieces += memory.spans().len();
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

    /// Whether the kernel takes so many pieces at once.
    pub fn is_simple(&self) -> bool {
        self.pieces <= MOST_PIECES
    }

    /// Their bytes, one after the other.
    pub fn memory(&self) -> impl Iterator<Item = HeldSpan<'_>> + Clone {
        self.taken.iter().flat_map(|taken| taken.memory.held().iter().copied())
    }

    /// How many of them the first `len` bytes lie in. At least one, if there is any.
    pub fn of(&self, len: usize) -> usize {
        let mut end = 0;
        let enough = self.taken.iter().position(|taken| {
            end += taken.memory.len();
            end >= len
        });
        enough.map_or(self.taken.len(), |index| index + 1)
    }

    /// The first `len` bytes have been written: the buffers that they lie in, with how much of each, in order.
    pub fn written(&mut self, len: usize, mut each: impl FnMut(R, usize)) {
        let mut left = len;
        for _ in 0..self.of(len) {
            let Some(Taken { request, memory }) = self.pop_front() else { return };
            let part = left.min(memory.len());
            left -= part;
            each(request, part);
        }
    }

    /// The newest one goes back.
    pub fn pop_back(&mut self) -> Option<R> {
        let Taken { request, memory } = self.taken.pop_back()?;
        self.forget(&memory);
        Some(request)
    }

    fn pop_front(&mut self) -> Option<Taken<R>> {
        let taken = self.taken.pop_front()?;
        self.forget(&taken.memory);
        Some(taken)
    }

    fn forget(&mut self, memory: &GuestBuffer) {
        self.room -= memory.len();
        self.pieces -= memory.spans().len();
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
            buffers.push(number, GuestBuffer::new(ram, places).unwrap());
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
            buffers.push((), GuestBuffer::new(&ram, [(0, 1), (100, 1)]).unwrap());
        }
        assert_eq!((buffers.count(), buffers.is_simple(), buffers.takes_more(false)), (MOST, false, false));
        // Empty ones are taken along, and make no room.
        let mut empty = Buffers::default();
        empty.push((), GuestBuffer::new(&ram, []).unwrap());
        empty.push((), GuestBuffer::new(&ram, [(0, 100)]).unwrap());
        assert_eq!((empty.of(50), empty.of(200), empty.room()), (2, 2, 100));
    }
}
