//! Shared memory to look at: what others write, mapped without the right to write.

use super::{Mapping, OutOfPages, SharedMemory, ShmError};

/// A read-only mapping. Whoever shares the memory may change it at any moment, so bytes are only ever copied out.
#[derive(Debug)]
pub struct View {
    mapping: Mapping,
}

impl View {
    /// Maps all of `memory`, which has to be whole pages.
    pub fn new(memory: &SharedMemory) -> Result<View, ShmError> {
        Ok(View { mapping: Mapping::read_only(memory, 0, memory.len())? })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Never true: there is at least a page.
    pub fn is_empty(&self) -> bool {
        self.mapping.is_empty()
    }

    /// Copies out. The bytes may have changed a moment later: only the copy may be checked and used.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfPages> {
        let size = self.len();
        if offset.checked_add(into.len()).is_none_or(|end| end > size) {
            return Err(OutOfPages { offset, len: into.len(), size });
        }
        self.mapping.read(offset, into);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_is_seen() {
        let memory = SharedMemory::create("view", 8192).unwrap();
        let view = View::new(&memory).unwrap();
        Mapping::new(&memory, 0, 8192).unwrap().write(4094, b"both");
        let mut bytes = [0; 4];
        view.copy_out(4094, &mut bytes).unwrap();
        assert_eq!(&bytes, b"both");
        for (offset, len) in [(8189, 4), (8193, 0), (usize::MAX, 1)] {
            assert!(view.copy_out(offset, &mut vec![0; len]).is_err(), "{offset} {len}");
        }
    }

    #[test]
    fn it_cannot_be_written_to() {
        let memory = SharedMemory::create("view-alone", 4096).unwrap();
        let _view = View::new(&memory).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.contains("memfd:view-alone")).unwrap();
        assert!(line.contains(" r--s "), "{line}");
    }
}
