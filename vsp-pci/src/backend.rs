//! What a function of PCI is to the rest of this program: configuration space, registers, interrupts, memory for DMA.
//!
//! [`crate::vfio`] has the real one; tests have one that is a file ([`crate::mock`]).

use std::fmt::Debug;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use vsp::Span;

use crate::wire::BARS;

/// Most interrupt messages of a function: as many as the core has for a device (`Interrupt` of the control protocol). A function that has
/// more shows its guest that many.
pub const MAX_VECTORS: u32 = 128;

/// Which of the two ways to interrupt by messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A few messages, their values in a row, described in configuration space.
    Msi,
    /// A table of messages, in the function's memory.
    MsiX,
}

/// Registers behind a base address register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Bytes.
    pub size: u64,
    /// Where they begin in the function's file.
    pub offset: u64,
    /// What of them can be mapped: begin and length in bytes, whole pages but for the end of a region that is smaller than one.
    pub mappable: Vec<(u64, u64)>,
}

/// What a function is like. It does not change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Bytes of configuration space: 256 or 4096.
    pub config_size: u16,
    /// Registers behind each base address register, if there are any.
    pub regions: [Option<Region>; BARS],
    /// Messages that it can have by MSI.
    pub msi: u32,
    /// Messages that it can have by MSI-X.
    pub msix: u32,
    /// It can be reset.
    pub is_resettable: bool,
    /// Addresses that it can be given for DMA, first and last; empty: all.
    pub dma: Vec<(u64, u64)>,
}

/// A function.
///
/// Nothing here waits for a guest. What waits for the function itself (a reset does, up to a second) holds up nobody but its own guest.
pub trait Backend: Debug {
    /// What it is like.
    fn info(&self) -> &Info;

    /// Reads configuration space.
    fn read_config(&self, at: u16, into: &mut [u8]) -> io::Result<()>;

    /// Writes configuration space.
    fn write_config(&self, at: u16, from: &[u8]) -> io::Result<()>;

    /// Reads registers, `at` and the length being inside the region.
    fn read_region(&self, bar: usize, at: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes registers.
    fn write_region(&self, bar: usize, at: u64, from: &[u8]) -> io::Result<()>;

    /// The file whose pages are the function's registers.
    fn file(&self) -> &Arc<OwnedFd>;

    /// Turns messages on: vector number n of the function makes this eventfd count, or nothing. All that there will be: later they can be
    /// changed, and not become more (kernels before 6.5 cannot do that).
    fn enable(&mut self, kind: Kind, bells: &[Option<BorrowedFd<'_>>]) -> io::Result<()>;

    /// From now on this vector makes another eventfd count.
    fn attach(&mut self, kind: Kind, vector: u32, bell: Option<BorrowedFd<'_>>) -> io::Result<()>;

    /// Turns messages off.
    fn disable(&mut self, kind: Kind) -> io::Result<()>;

    /// Has the function forget everything.
    fn reset(&mut self) -> io::Result<()>;

    /// The function may read and write this memory, from this address on.
    fn map_dma(&mut self, address: u64, memory: Span) -> io::Result<()>;

    /// It may not reach this any more, which was mapped like that; `None`: nothing any more.
    fn unmap_dma(&mut self, piece: Option<(u64, u64)>) -> io::Result<()>;

    /// What somebody has to keep when this process dies, or the function is reset under its guest.
    fn kept(&self) -> Vec<Arc<OwnedFd>>;
}

/// What a process does that is given what a predecessor has kept.
pub trait Adopt {
    /// The function, from [`Backend::kept`] of a predecessor.
    fn adopt(&self, fds: Vec<OwnedFd>) -> Result<Box<dyn Backend>, String>;
}
