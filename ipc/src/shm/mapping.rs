//! A range of shared memory in our address space.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::{PAGE, SharedMemory, ShmError};

/// Bytes of a large page.
const LARGE: usize = 2 << 20;

/// A shared, writable mapping. Bytes are copied in and out; words of the protocols are atomics.
///
/// Offsets are in bytes from the start of the mapping. An offset outside it is a bug of ours, never something a
/// peer can cause, and panics.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread; nothing in it is handed out but copies and atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above; concurrent copies race with each other no worse than with the process at the other side.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps whole pages of `memory`.
    pub fn new(memory: &SharedMemory, offset: u64, len: u64) -> Result<Mapping, ShmError> {
        Mapping::concatenate(memory, &[(offset, len)])
    }

    /// The same without the right to write; a store into it would end the process, so only [`super::View`] has one.
    pub(super) fn read_only(memory: &SharedMemory, offset: u64, len: u64) -> Result<Mapping, ShmError> {
        Mapping::assemble(memory, &[(offset, len)], ProtFlags::PROT_READ)
    }

    /// Maps `len` bytes of any file from `offset` on, where the kernel wants them: large pages have to lie where they can. Both are
    /// whole pages of the file's, which the caller has seen to.
    pub(super) fn of_file(file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Mapping, ShmError> {
        let bad = || ShmError::BadRange { offset, len: len as u64 };
        let (from, size) =
            (i64::try_from(offset).map_err(|_| bad())?, NonZeroUsize::new(len).ok_or_else(bad)?);
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh mapping at a place of the kernel's choice disturbs nothing.
        let base = unsafe { mmap(None, size, access, flags, file, from) }
            .map_err(ShmError::os("map foreign memory"))?;
        Ok(Mapping { base: base.cast(), len })
    }

    /// Maps several ranges of `memory` one after the other in our address space.
    pub(super) fn concatenate(memory: &SharedMemory, parts: &[(u64, u64)]) -> Result<Mapping, ShmError> {
        Mapping::assemble(memory, parts, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    fn assemble(memory: &SharedMemory, parts: &[(u64, u64)], access: ProtFlags) -> Result<Mapping, ShmError> {
        let mut total = 0usize;
        for &(offset, len) in parts {
            memory.check(offset, len)?;
            let bad = ShmError::BadRange { offset, len };
            total = usize::try_from(len).ok().and_then(|len| total.checked_add(len)).ok_or(bad)?;
        }
        // From here on `mapping` unmaps all of it, whatever happens.
        let mapping = Mapping::reserve(total)?;
        let mut at = 0;
        for &(offset, len) in parts {
            mapping.place(at, super::AsFd::as_fd(memory), offset, len as usize, access)?;
            at += len as usize;
        }
        Ok(mapping)
    }

    /// Address space without memory. Where a large page fits in, it begins where one can begin, so that a file's
    /// large pages can be mapped as such.
    fn reserve(len: usize) -> Result<Mapping, ShmError> {
        let slack = if len < LARGE { 0 } else { LARGE };
        let empty = ShmError::BadRange { offset: 0, len: 0 };
        let size = len.checked_add(slack).filter(|_| len > 0).and_then(NonZeroUsize::new).ok_or(empty)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh anonymous reservation at a place of the kernel's choice disturbs nothing.
        let start = unsafe { mmap_anonymous(None, size, ProtFlags::PROT_NONE, flags) }
            .map_err(ShmError::os("reserve address space"))?;
        if slack == 0 {
            return Ok(Mapping { base: start.cast(), len });
        }
        let before = start.as_ptr().align_offset(LARGE);
        // SAFETY: at most LARGE - 1 bytes into a reservation that is LARGE bytes longer than `len`; both cut-offs
        // are whole pages of it and behind nobody's pointer.
        unsafe {
            let base = start.add(before);
            let release = |from, len| if len > 0 { munmap(from, len) } else { Ok(()) };
            let released = release(start, before).and(release(base.add(len), slack - before));
            debug_assert!(released.is_ok(), "munmap: {released:?}");
            Ok(Mapping { base: base.cast(), len })
        }
    }

    /// Puts `len` bytes of a file over our own reservation at `at`.
    fn place(
        &self,
        at: usize,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        access: ProtFlags,
    ) -> Result<(), ShmError> {
        let bad = || ShmError::BadRange { offset, len: len as u64 };
        let offset = i64::try_from(offset).map_err(|_| bad())?;
        let address = NonZeroUsize::new(self.base.as_ptr() as usize + at);
        let size = NonZeroUsize::new(len).ok_or_else(bad)?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
        assert!(at + len <= self.len, "parts add up to the reservation");
        // SAFETY: MAP_FIXED replaces pages of our own reservation only, to which nobody holds a pointer yet.
        unsafe { mmap(address, size, access, flags, file, offset) }
            .map_err(ShmError::os("map shared memory"))?;
        Ok(())
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: a mapping has at least a page.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Has the kernel map these bytes now rather than at the first access: one is read from every page, and nothing made of it.
    pub fn touch(&self, offset: usize, len: usize) {
        let end = offset.saturating_add(len).min(self.len);
        for at in (offset..end).step_by(PAGE) {
            std::hint::black_box(self.byte(at).load(Ordering::Relaxed));
        }
    }

    /// Where `offset` lies in our address space, for the kernel (iovecs); `len` bytes from there are inside.
    pub(super) fn address(&self, offset: usize, len: usize) -> NonNull<u8> {
        self.bounds(offset, len);
        // SAFETY: the offset has just been checked to lie inside the mapping.
        unsafe { self.base.add(offset) }
    }

    /// The byte at `offset`.
    #[inline]
    pub fn byte(&self, offset: usize) -> &AtomicU8 {
        self.bounds(offset, 1);
        // SAFETY: as in [`Mapping::word`].
        unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(offset)) }
    }

    /// The 16-bit word at `offset` (a multiple of 2).
    #[inline]
    pub fn half(&self, offset: usize) -> &AtomicU16 {
        self.bounds(offset, 2);
        if !offset.is_multiple_of(2) {
            misaligned(offset, 2);
        }
        // SAFETY: as in [`Mapping::word`].
        unsafe { AtomicU16::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// The 32-bit word at `offset` (a multiple of 4).
    #[inline]
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        self.bounds(offset, 4);
        if !offset.is_multiple_of(4) {
            misaligned(offset, 4);
        }
        // SAFETY: in bounds and aligned (the base is page-aligned), mapped as long as `self` lives; the other
        // side is another process, which atomics are defined to tolerate in practice on this platform.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// The 64-bit word at `offset` (a multiple of 8).
    #[inline]
    pub fn long(&self, offset: usize) -> &AtomicU64 {
        self.bounds(offset, 8);
        if !offset.is_multiple_of(8) {
            misaligned(offset, 8);
        }
        // SAFETY: as in [`Mapping::word`].
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// So many 64-bit words from `offset` on (a multiple of 8).
    #[inline]
    pub fn longs(&self, offset: usize, count: usize) -> &[AtomicU64] {
        self.bounds(offset, count.saturating_mul(8));
        if !offset.is_multiple_of(8) {
            misaligned(offset, 8);
        }
        // SAFETY: as in [`Mapping::word`], for each of them; what the slice refers to is changed by atomic stores only, or by
        // copies that nobody holds a slice across.
        unsafe { slice::from_raw_parts(self.base.as_ptr().add(offset).cast(), count) }
    }

    /// Copies out. The bytes may have changed a moment later: only the copy may be checked and used.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        self.bounds(offset, into.len());
        // SAFETY: the source is in bounds, the destination is a private slice, they cannot overlap.
        unsafe { copy(self.base.as_ptr().add(offset), into.as_mut_ptr(), into.len()) }
    }

    /// Copies in.
    #[inline]
    pub fn write(&self, offset: usize, from: &[u8]) {
        self.bounds(offset, from.len());
        // SAFETY: the destination is in bounds and shared (no reference to it exists), the source is a
        // private slice.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.base.as_ptr().add(offset), from.len()) }
    }

    #[inline]
    fn bounds(&self, offset: usize, len: usize) {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if !inside {
            outside(offset, len, self.len);
        }
    }
}

/// Apart, so that what it says is not made ready ahead of each access.
#[cold]
#[inline(never)]
fn outside(offset: usize, len: usize, of: usize) -> ! {
    panic!("{len} bytes at {offset} of a mapping of {of}");
}

/// The same.
#[cold]
#[inline(never)]
fn misaligned(offset: usize, size: usize) -> ! {
    panic!("a word of {size} bytes at offset {offset}");
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this range was mapped by us and nothing refers to it after the last borrow of `self`.
        if let Err(error) = unsafe { munmap(self.base.cast::<c_void>(), self.len) } {
            debug_assert!(false, "munmap: {error}");
        }
    }
}

/// Copies bytes, one side of which another process may be changing.
///
/// Never inlined: the compiler then cannot know that the private copy came from shared memory, and so cannot
/// read the shared bytes a second time where the copy is used.
///
/// # Safety
/// As for [`ptr::copy_nonoverlapping`].
#[inline(never)]
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { ptr::copy_nonoverlapping(from, to, len) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_see_the_same_bytes() {
        let memory = SharedMemory::create("test", 12288).unwrap();
        let all = Mapping::new(&memory, 0, 12288).unwrap();
        let tail = Mapping::new(&memory, 8192, 4096).unwrap();
        all.write(8190, b"abcd");
        let mut two = [0; 2];
        tail.read(0, &mut two);
        assert_eq!(&two, b"cd");
        tail.word(4).store(7, Ordering::SeqCst);
        assert_eq!(all.word(8196).load(Ordering::SeqCst), 7);
    }

    #[test]
    fn words_side_by_side_are_those_words() {
        let memory = SharedMemory::create("test", 4096).unwrap();
        let mapping = Mapping::new(&memory, 0, 4096).unwrap();
        for (index, word) in mapping.longs(4096 - 24, 3).iter().enumerate() {
            word.store(index as u64 + 1, Ordering::Relaxed);
        }
        let found = [4072, 4080, 4088].map(|offset| mapping.long(offset).load(Ordering::Relaxed));
        assert_eq!(found, [1, 2, 3]);
        assert!(mapping.longs(4096, 0).is_empty());
    }

    #[test]
    #[should_panic(expected = "of a mapping of")]
    fn words_that_go_beyond_the_end_panic() {
        let memory = SharedMemory::create("test", 4096).unwrap();
        let _ = Mapping::new(&memory, 0, 4096).unwrap().longs(4096 - 16, 3);
    }

    #[test]
    fn touching_reads_no_further_than_the_end() {
        let memory = SharedMemory::create("test", 2 * 4096).unwrap();
        let mapping = Mapping::new(&memory, 0, 2 * 4096).unwrap();
        mapping.touch(4096, usize::MAX);
        mapping.touch(3 * 4096, 1);
    }

    #[test]
    fn parts_lie_one_after_the_other() {
        let memory = SharedMemory::create("test", 8192).unwrap();
        let turned = Mapping::concatenate(&memory, &[(4096, 4096), (0, 8192)]).unwrap();
        turned.write(0, b"x");
        let mut byte = [0];
        turned.read(4096 + 4096, &mut byte);
        assert_eq!(&byte, b"x");
        assert!(Mapping::concatenate(&memory, &[]).is_err());
        assert!(Mapping::concatenate(&memory, &[(0, 4096), (8192, 4096)]).is_err());
    }

    #[test]
    fn large_mappings_begin_where_a_large_page_can() {
        let len = LARGE as u64 + 4096;
        let memory = SharedMemory::create("test", len).unwrap();
        let mappings: Vec<_> = (0..4).map(|_| Mapping::new(&memory, 0, len).unwrap()).collect();
        for mapping in &mappings {
            assert!((mapping.base.as_ptr() as usize).is_multiple_of(LARGE));
            mapping.write(LARGE + 4000, &[7; 96]);
        }
    }

    #[test]
    #[should_panic(expected = "of a mapping of")]
    fn an_offset_outside_panics() {
        let memory = SharedMemory::create("test", 4096).unwrap();
        Mapping::new(&memory, 0, 4096).unwrap().read(4090, &mut [0; 8]);
    }
}
