//! Memory of ours that the kernel reads into or writes from: for data that is compared, or has to be aligned.

/// What every disk's alignment divides.
const ALIGNMENT: usize = 4096;

/// Some bytes, at an address that suits reads past the page cache. The memory is taken when it is first needed: a guest can
/// have many commands waiting that will want some.
#[derive(Debug)]
pub struct Scratch {
    /// With room to begin at an aligned address; empty at first.
    memory: Box<[u8]>,
    from: usize,
    len: usize,
    room: usize,
}

impl Scratch {
    /// So many bytes, all 0.
    pub fn new(len: usize) -> Scratch {
        Scratch { memory: Box::default(), from: 0, len, room: len }
    }

    /// So many bytes of the same memory, at most all of it.
    pub fn resize(&mut self, len: usize) {
        self.len = len.min(self.room);
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes; none before anybody wanted to change them.
    pub fn bytes(&self) -> &[u8] {
        self.memory.get(self.from..self.from + self.len).unwrap_or_default()
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        if self.memory.is_empty() {
            self.memory = vec![0; self.room + ALIGNMENT].into_boxed_slice();
            self.from = self.memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        }
        &mut self.memory[self.from..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_where_disks_want_it_and_not_before_it_is_wanted() {
        for len in [1, 512, 65536] {
            let mut scratch = Scratch::new(len);
            assert_eq!((scratch.len(), scratch.bytes().len()), (len, 0));
            assert_eq!(scratch.bytes_mut().len(), len);
            assert_eq!(scratch.bytes().as_ptr().addr() % ALIGNMENT, 0);
            scratch.resize(100);
            assert_eq!(scratch.bytes().len(), len.min(100));
            scratch.resize(usize::MAX);
            assert_eq!(scratch.bytes().len(), len);
        }
    }
}
