//! Pages that a guest has shared with a device, mapped: buffers that both sides use while both run.
//!
//! The guest writes to them at any moment. What is looked at is copied out first; what the kernel is to move goes to
//! it as spans, which are tied to the mapping by their lifetime and can be made into no slice.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use thiserror::Error;

use super::mapping::copy;
use super::{GuestBuffer, Mapping, SharedMemory, ShmError, Span};

/// A range that is not inside the shared pages, or the part of them that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{len} bytes at {offset} are not inside {size} bytes of shared pages")]
pub struct OutOfPages {
    /// First byte.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
    /// Bytes that there are.
    pub size: usize,
}

/// A mapping of pages that a guest has shared. Offsets may come from the guest: one outside is an error, not a panic.
///
/// A clone is another handle to the same mapping.
#[derive(Clone, Debug)]
pub struct PagesMapping {
    mapping: Arc<Mapping>,
}

impl PagesMapping {
    /// Maps all of `memory`, which has to be whole pages.
    pub fn new(memory: &SharedMemory) -> Result<PagesMapping, ShmError> {
        Ok(PagesMapping { mapping: Arc::new(Mapping::new(memory, 0, memory.len())?) })
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
        check(offset, into.len(), self.len())?;
        self.mapping.read(offset, into);
        Ok(())
    }

    /// Copies in.
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> Result<(), OutOfPages> {
        check(offset, from.len(), self.len())?;
        self.mapping.write(offset, from);
        Ok(())
    }

    /// A range for the kernel; it may be empty.
    pub fn span(&self, offset: usize, len: usize) -> Result<HeldSpan<'_>, OutOfPages> {
        check(offset, len, self.len())?;
        Ok(HeldSpan { address: self.mapping.address(offset, len), len, _held: PhantomData })
    }
}

fn check(offset: usize, len: usize, size: usize) -> Result<(), OutOfPages> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(OutOfPages { offset, len, size }),
    }
}

/// Bytes of shared memory that stay mapped for `'a`, laid out like an `iovec`: for the kernel, never a slice for us.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct HeldSpan<'a> {
    address: NonNull<u8>,
    len: usize,
    _held: PhantomData<&'a Mapping>,
}

// `GuestBuffer::held` sees the one as the other.
const _: () = assert!(size_of::<HeldSpan<'_>>() == size_of::<Span>());
const _: () = assert!(align_of::<HeldSpan<'_>>() == align_of::<Span>());

impl<'a> HeldSpan<'a> {
    /// First byte.
    pub fn address(self) -> NonNull<u8> {
        self.address
    }

    /// Length in bytes.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The first `at` bytes (at most all), and the rest.
    pub fn split_at(self, at: usize) -> (HeldSpan<'a>, HeldSpan<'a>) {
        let at = at.min(self.len);
        // SAFETY: at most one past the end of a span that lies in one mapping.
        let address = unsafe { self.address.add(at) };
        (HeldSpan { len: at, ..self }, HeldSpan { address, len: self.len - at, _held: PhantomData })
    }

    /// Copies in at `at`.
    pub fn copy_in(self, at: usize, from: &[u8]) -> Result<(), OutOfPages> {
        let place = self.part(at, from.len())?;
        // SAFETY: the part is mapped for 'a and no reference to it exists; the source is a private slice.
        unsafe { copy(from.as_ptr(), place.as_ptr(), from.len()) };
        Ok(())
    }

    /// Copies out what is at `at`. The bytes may have changed a moment later: only the copy may be checked and used.
    pub fn copy_out(self, at: usize, into: &mut [u8]) -> Result<(), OutOfPages> {
        let place = self.part(at, into.len())?;
        // SAFETY: the part is mapped for 'a; the destination is a private slice.
        unsafe { copy(place.as_ptr(), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn part(self, at: usize, len: usize) -> Result<NonNull<u8>, OutOfPages> {
        check(at, len, self.len)?;
        // SAFETY: at most one past the end of a span that lies in one mapping.
        Ok(unsafe { self.address.add(at) })
    }
}

impl GuestBuffer {
    /// Its bytes as the kernel takes them, tied to this buffer, which keeps the RAM mapped.
    pub fn held(&self) -> &[HeldSpan<'_>] {
        let spans: &[Span] = self.spans();
        // SAFETY: both are `repr(C)`, an address and a length in this order (and nothing); spans of a buffer lie in RAM
        // that is mapped as long as the buffer is borrowed.
        unsafe { slice::from_raw_parts(spans.as_ptr().cast(), spans.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::GuestRam;
    use super::*;
    use crate::message::RamRegion;

    #[test]
    fn both_sides_see_the_same_bytes() {
        let memory = SharedMemory::create("pages", 8192).unwrap();
        let (device, guest) = (PagesMapping::new(&memory).unwrap(), PagesMapping::new(&memory).unwrap());
        device.copy_in(4094, b"abcd").unwrap();
        let mut bytes = [0; 4];
        guest.copy_out(4094, &mut bytes).unwrap();
        assert_eq!(&bytes, b"abcd");
        assert_eq!((device.len(), device.is_empty()), (8192, false));
    }

    #[test]
    fn ranges_outside_are_errors() {
        let pages = PagesMapping::new(&SharedMemory::create("pages", 4096).unwrap()).unwrap();
        for (offset, len) in [(4096, 1), (4095, 2), (usize::MAX, 1), (usize::MAX, 0), (5000, 0), (0, 4097)] {
            assert_eq!(pages.span(offset, len).unwrap_err(), OutOfPages { offset, len, size: 4096 });
        }
        assert!(pages.copy_in(4090, &[0; 7]).is_err());
        assert!(pages.copy_out(4090, &mut [0; 7]).is_err());
        assert!(pages.span(4096, 0).unwrap().is_empty());
        assert_eq!(pages.span(0, 4096).unwrap().len(), 4096);
    }

    #[test]
    fn a_span_is_cut_and_copied() {
        let pages = PagesMapping::new(&SharedMemory::create("pages", 4096).unwrap()).unwrap();
        let span = pages.span(100, 6).unwrap();
        let (head, tail) = span.split_at(2);
        head.copy_in(0, b"ab").unwrap();
        tail.copy_in(1, b"def").unwrap();
        tail.copy_in(0, b"c").unwrap();
        let mut bytes = [9; 5];
        span.copy_out(1, &mut bytes).unwrap();
        assert_eq!(&bytes, b"bcdef");
        for (at, len) in [(0, 3), (1, 2), (3, 0), (usize::MAX, 1)] {
            let outside = OutOfPages { offset: at, len, size: 2 };
            assert_eq!(head.copy_out(at, &mut vec![0; len]), Err(outside));
            assert_eq!(head.copy_in(at, &vec![0; len]), Err(outside));
        }
        let (all, none) = tail.split_at(100);
        assert_eq!((all.len(), none.len()), (4, 0));
    }

    #[test]
    fn a_guest_buffer_is_held() {
        let memory = SharedMemory::create("ram", 8192).unwrap();
        let regions =
            [RamRegion { gpa: 0, len: 4096, offset: 4096 }, RamRegion { gpa: 1 << 20, len: 4096, offset: 0 }];
        let ram = Arc::new(GuestRam::new(&memory, &regions).unwrap());
        ram.write(10, b"head").unwrap();
        ram.write(1 << 20, b"tail").unwrap();
        let mut buffer = GuestBuffer::new(&ram, [(10, 4), (1 << 20, 4)]).unwrap();
        buffer.advance(2);
        let held = buffer.held();
        assert_eq!(held.len(), 2);
        let mut bytes = [0; 2];
        held[0].copy_out(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"ad");
        held[1].copy_out(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"ta");
        assert_eq!(held[1].address(), buffer.spans()[1].address());
    }
}
