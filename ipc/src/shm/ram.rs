//! Guest RAM as a device process sees it: the only translation from guest-physical addresses.
//!
//! Nothing else may assume that an address and an offset in the RAM memfd are related. A range that a guest
//! names is translated whole or refused; the result goes to the kernel as iovecs or is copied through here.

use std::ptr::NonNull;
use std::sync::Arc;

use thiserror::Error;

use super::mapping::copy;
use super::{Foreign, Mapping, SharedMemory, ShmError};
use crate::message::RamRegion;

/// Most stretches of RAM that a core may announce; a VM has two or three.
const MAX_REGIONS: usize = 64;

/// Why RAM cannot be mapped or a range is refused.
#[derive(Debug, Error)]
pub enum RamError {
    /// The announced regions are empty, overlap, or are too many.
    #[error("the announced RAM regions are empty, overlap or are more than {MAX_REGIONS}")]
    BadRegions,
    /// The memory cannot be mapped.
    #[error(transparent)]
    Memory(#[from] ShmError),
    /// The guest named bytes that are not RAM.
    #[error("{len} bytes at guest address {gpa:#x} are not all RAM")]
    NotRam {
        /// First guest-physical address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// Contiguous bytes of guest RAM in our address space, laid out like an `iovec`: for the kernel, never a
/// slice for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Span {
    address: NonNull<u8>,
    len: usize,
}

// SAFETY: a span is a number for the kernel; safe code can neither make one nor dereference it.
unsafe impl Send for Span {}

impl Span {
    /// First byte.
    pub fn address(self) -> NonNull<u8> {
        self.address
    }

    /// Length in bytes; more than 0.
    #[expect(clippy::len_without_is_empty, reason = "a span is never empty")]
    pub fn len(self) -> usize {
        self.len
    }
}

/// Spans in a row. One, which is the common case, costs no memory.
///
/// Never two or more in place: the kernel is given a pointer to such a list, and the buffer that it is in is moved.
#[derive(Clone, Debug)]
enum List {
    One(Span),
    Many(Vec<Span>),
}

impl Default for List {
    fn default() -> List {
        List::Many(Vec::new())
    }
}

impl List {
    fn push(&mut self, span: Span) {
        match self {
            List::Many(all) if all.is_empty() && all.capacity() == 0 => *self = List::One(span),
            List::Many(all) => all.push(span),
            List::One(first) => *self = List::Many(vec![*first, span]),
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            List::Many(all) => all.truncate(len),
            List::One(_) if len == 0 => *self = List::default(),
            List::One(_) => {}
        }
    }
}

impl std::ops::Deref for List {
    type Target = [Span];

    fn deref(&self) -> &[Span] {
        match self {
            List::One(span) => std::slice::from_ref(span),
            List::Many(all) => all,
        }
    }
}

impl std::ops::DerefMut for List {
    fn deref_mut(&mut self) -> &mut [Span] {
        match self {
            List::One(span) => std::slice::from_mut(span),
            List::Many(all) => all,
        }
    }
}

#[derive(Debug)]
struct Region {
    gpa: u64,
    len: u64,
    /// Where it begins in the mapping.
    skip: usize,
    mapping: Arc<Mapping>,
}

/// All of guest RAM.
#[derive(Debug)]
pub struct GuestRam {
    /// Sorted by address, not overlapping.
    regions: Vec<Region>,
}

impl GuestRam {
    /// Maps the announced regions of the RAM memfd.
    pub fn new(memory: &SharedMemory, regions: &[RamRegion]) -> Result<GuestRam, RamError> {
        if regions.is_empty() || regions.len() > MAX_REGIONS {
            return Err(RamError::BadRegions);
        }
        let mut mapped = Vec::with_capacity(regions.len());
        for region in regions {
            region.gpa.checked_add(region.len).ok_or(RamError::BadRegions)?;
            let mapping = Mapping::new(memory, region.offset, region.len)?;
            mapped.push(Region { gpa: region.gpa, len: region.len, skip: 0, mapping: Arc::new(mapping) });
        }
        GuestRam::sorted(mapped)
    }

    /// RAM made of memory that somebody else than a core of ours has given: (guest-physical address, memory). May be empty.
    pub fn of_foreign<'a>(parts: impl IntoIterator<Item = (u64, &'a Foreign)>) -> Result<GuestRam, RamError> {
        let region = |(gpa, part): (u64, &Foreign)| {
            let (mapping, skip, len) = part.place();
            gpa.checked_add(len).ok_or(RamError::BadRegions)?;
            Ok(Region { gpa, len, skip, mapping: Arc::clone(mapping) })
        };
        GuestRam::sorted(parts.into_iter().map(region).collect::<Result<_, RamError>>()?)
    }

    fn sorted(mut regions: Vec<Region>) -> Result<GuestRam, RamError> {
        regions.sort_by_key(|region| region.gpa);
        if regions.windows(2).any(|pair| pair[0].gpa + pair[0].len > pair[1].gpa) {
            return Err(RamError::BadRegions);
        }
        Ok(GuestRam { regions })
    }

    /// Where RAM is: first address and length in bytes, in the order of addresses.
    pub fn regions(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.regions.iter().map(|region| (region.gpa, region.len))
    }

    /// Appends the spans of `gpa..gpa + len` to `out`, joined where they touch. On an error `out` is as it was.
    fn translate(&self, gpa: u64, len: u64, out: &mut List) -> Result<(), RamError> {
        let before = (out.len(), out.last().copied());
        let result = self.walk(gpa, len, |region, offset, len| {
            let address = region.mapping.address(offset, len);
            match out.last_mut() {
                Some(last) if last.address.as_ptr().wrapping_add(last.len) == address.as_ptr() => {
                    last.len += len
                }
                _ => out.push(Span { address, len }),
            }
        });
        if result.is_err() {
            out.truncate(before.0);
            if let (Some(last), Some(was)) = (out.last_mut(), before.1) {
                *last = was;
            }
        }
        result
    }

    /// Copies out of guest RAM, all or nothing.
    pub fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), RamError> {
        self.check(gpa, into.len() as u64)?;
        let mut done = 0;
        self.walk(gpa, into.len() as u64, |region, offset, len| {
            region.mapping.read(offset, &mut into[done..done + len]);
            done += len;
        })
    }

    /// Copies into guest RAM, all or nothing.
    pub fn write(&self, gpa: u64, from: &[u8]) -> Result<(), RamError> {
        self.check(gpa, from.len() as u64)?;
        let mut done = 0;
        self.walk(gpa, from.len() as u64, |region, offset, len| {
            region.mapping.write(offset, &from[done..done + len]);
            done += len;
        })
    }

    /// Whether `gpa..gpa + len` is all RAM.
    pub fn check(&self, gpa: u64, len: u64) -> Result<(), RamError> {
        self.walk(gpa, len, |_, _, _| {})
    }

    /// Calls `each` for the stretches of a range in order; fails at the first byte that is not RAM.
    fn walk(&self, gpa: u64, len: u64, mut each: impl FnMut(&Region, usize, usize)) -> Result<(), RamError> {
        let refused = || RamError::NotRam { gpa, len };
        let end = gpa.checked_add(len).ok_or_else(refused)?;
        let mut at = gpa;
        while at < end {
            let index = self.regions.partition_point(|region| region.gpa <= at).checked_sub(1);
            let region = index.map(|index| &self.regions[index]).ok_or_else(refused)?;
            let offset = at - region.gpa;
            if offset >= region.len {
                return Err(refused());
            }
            let stretch = (region.len - offset).min(end - at);
            each(region, region.skip + offset as usize, stretch as usize);
            at += stretch;
        }
        Ok(())
    }
}

/// Ranges of guest RAM that make one buffer. Keeps the RAM mapped, so it can be handed to the kernel.
#[derive(Clone, Debug)]
pub struct GuestBuffer {
    ram: Arc<GuestRam>,
    spans: List,
    /// Spans before this one are used up.
    first: usize,
    len: usize,
}

impl GuestBuffer {
    /// The buffer made of these pieces (address, length in bytes) in a row; refused if any byte is not RAM.
    pub fn new(
        ram: &Arc<GuestRam>,
        pieces: impl IntoIterator<Item = (u64, u64)>,
    ) -> Result<GuestBuffer, RamError> {
        let mut spans = List::default();
        for (gpa, len) in pieces {
            ram.translate(gpa, len, &mut spans)?;
        }
        let len = spans.iter().map(|span| span.len).sum();
        Ok(GuestBuffer { ram: Arc::clone(ram), spans, first: 0, len })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes as the kernel takes them. Valid as long as this buffer, or a clone of it, lives.
    pub fn spans(&self) -> &[Span] {
        &self.spans[self.first..]
    }

    /// Keeps the first `len` bytes only.
    pub fn truncate(&mut self, len: usize) {
        let mut left = len;
        let mut keep = self.first;
        for span in &mut self.spans[self.first..] {
            if left == 0 {
                break;
            }
            span.len = span.len.min(left);
            left -= span.len;
            keep += 1;
        }
        self.spans.truncate(keep);
        self.len = self.len.min(len);
    }

    /// Drops the first `count` bytes, at most all.
    pub fn advance(&mut self, count: usize) {
        let mut left = count.min(self.len);
        self.len -= left;
        while let Some(span) = self.spans.get_mut(self.first) {
            if left < span.len {
                // SAFETY: `left` is less than the span's length, so the result lies in the same mapping.
                span.address = unsafe { span.address.add(left) };
                span.len -= left;
                return;
            }
            left -= span.len;
            self.first += 1;
        }
    }

    /// Copies out the first bytes; how many there were, at most `into.len()`.
    pub fn read(&self, into: &mut [u8]) -> usize {
        let mut done = 0;
        for span in self.spans() {
            let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) else { break };
            let len = rest.len().min(span.len);
            // SAFETY: spans lie in mappings of `self.ram`, which lives; the destination is private.
            unsafe { copy(span.address.as_ptr(), rest.as_mut_ptr(), len) };
            done += len;
        }
        done
    }

    /// Copies in at the beginning; how many bytes there was room for, at most `from.len()`.
    pub fn write(&self, from: &[u8]) -> usize {
        let mut done = 0;
        for span in self.spans() {
            let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) else { break };
            let len = rest.len().min(span.len);
            // SAFETY: spans lie in mappings of `self.ram`, which lives, and to which no reference exists.
            unsafe { copy(rest.as_ptr(), span.address.as_ptr(), len) };
            done += len;
        }
        done
    }

    /// The RAM that it lies in.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8 KiB at 0 (second half of the file), 4 KiB at 8 KiB, a hole, 4 KiB at 1 MiB.
    fn ram() -> GuestRam {
        let memory = SharedMemory::create("ram", 16384).unwrap();
        let region = |gpa, len, offset| RamRegion { gpa, len, offset };
        let regions = [region(1 << 20, 4096, 4096), region(0, 8192, 8192), region(8192, 4096, 0)];
        GuestRam::new(&memory, &regions).unwrap()
    }

    #[test]
    fn bytes_go_where_the_regions_say() {
        let ram = ram();
        ram.write(8190, b"abcd").unwrap();
        let mut back = [0; 4];
        ram.read(8190, &mut back).unwrap();
        assert_eq!(&back, b"abcd");
        let mut spans = List::default();
        ram.translate(8190, 4, &mut spans).unwrap();
        assert_eq!(spans.iter().map(|span| span.len).sum::<usize>(), 4);
    }

    #[test]
    fn neighbours_are_joined() {
        let ram = ram();
        let mut spans = List::default();
        ram.translate(0, 4096, &mut spans).unwrap();
        ram.translate(4096, 100, &mut spans).unwrap();
        assert_eq!(spans.len(), 1);
        assert_eq!(spans[0].len, 4196);
    }

    #[test]
    fn what_is_not_ram_is_refused_whole() {
        let ram = ram();
        let mut spans = List::default();
        ram.translate(0, 4096, &mut spans).unwrap();
        let before = spans.clone();
        for (gpa, len) in [(12288, 1), (12287, 2), (4096, 9000), (1 << 30, 1), (u64::MAX, 2), (0, u64::MAX)] {
            assert!(ram.translate(gpa, len, &mut spans).is_err(), "{gpa} {len}");
            assert_eq!(*spans, *before);
        }
        assert!(ram.write(12287, b"ab").is_err());
        let mut byte = [9];
        ram.read(12287, &mut byte).unwrap();
        assert_eq!(byte, [0], "nothing was written by the refused write");
    }

    #[test]
    fn regions_that_lie_are_refused() {
        let memory = SharedMemory::create("ram", 16384).unwrap();
        let region = |gpa, len, offset| RamRegion { gpa, len, offset };
        assert!(GuestRam::new(&memory, &[]).is_err());
        assert!(GuestRam::new(&memory, &[region(0, 8192, 0), region(4096, 4096, 8192)]).is_err());
        assert!(GuestRam::new(&memory, &[region(0, 32768, 0)]).is_err());
        assert!(GuestRam::new(&memory, &[region(u64::MAX - 4095, 8192, 0)]).is_err());
        assert!(GuestRam::new(&memory, &vec![region(0, 4096, 0); 65]).is_err());
    }

    #[test]
    fn a_buffer_is_used_up_from_the_front() {
        let ram = Arc::new(ram());
        ram.write(4000, b"0123456789").unwrap();
        ram.write(1 << 20, b"abcdef").unwrap();
        let mut buffer = GuestBuffer::new(&ram, [(4000, 4), (1 << 20, 6), (4004, 6)]).unwrap();
        assert_eq!((buffer.len(), buffer.spans().len()), (16, 3));
        let mut bytes = [0; 20];
        assert_eq!(buffer.read(&mut bytes), 16);
        assert_eq!(&bytes[..16], b"0123abcdef456789");
        buffer.advance(5);
        buffer.truncate(7);
        let mut bytes = [0; 7];
        assert_eq!(buffer.read(&mut bytes), 7);
        assert_eq!(&bytes, b"bcdef45");
        assert_eq!(buffer.write(b"XY"), 2);
        ram.read(1 << 20, &mut bytes[..4]).unwrap();
        assert_eq!(&bytes[..4], b"aXYd");
        buffer.advance(5);
        assert_eq!((buffer.len(), buffer.spans().len()), (2, 1));
        buffer.advance(100);
        assert!(buffer.is_empty() && buffer.spans().is_empty());
        let mut buffer = GuestBuffer::new(&ram, [(0, 8), (1 << 20, 8)]).unwrap();
        buffer.truncate(8);
        assert_eq!(buffer.spans().len(), 1);
        buffer.truncate(0);
        assert_eq!((buffer.len(), buffer.spans().len()), (0, 0));
        assert!(GuestBuffer::new(&ram, [(0, 8), (12288, 1)]).is_err());
    }
}
