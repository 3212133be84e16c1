//! Reads at full speed, measured: one side of `cargo xtask bench storage`.
//!
//! A side is a way to a disk. [`measure`] does the same with every side: it keeps a number of reads under way and looks
//! at the clock; [`serve`] does so on demand, so that whoever compares several sides can let them take turns.
//!
//! * [`work`]: what is to be read
//! * [`wait`]: how its end is waited for
//! * [`guest`]: the side of a guest on the software partition

pub mod guest;
mod measure;
mod orders;
pub mod wait;
pub mod work;

pub use measure::{Measured, measure};
pub use orders::serve;
pub use work::Work;

/// Bytes that a side has to have room for in each of its buffers, and how many buffers.
pub const LONGEST: u32 = 128 << 10;
/// Most reads under way.
pub const DEEPEST: usize = 32;

/// A way to a disk, with [`DEEPEST`] buffers of [`LONGEST`] bytes.
pub trait Side {
    /// Prepares a read of `len` bytes from `offset` on into buffer number `slot`.
    fn push(&mut self, slot: usize, offset: u64, len: u32) -> anyhow::Result<()>;

    /// Starts what was prepared.
    fn submit(&mut self) -> anyhow::Result<()>;

    /// Waits for the end of a read, and takes those that have ended besides: the numbers of their buffers, each with
    /// all of its bytes read.
    fn reap(&mut self, ended: &mut Vec<usize>) -> anyhow::Result<()>;

    /// What the guest has in buffer `slot`, for the check that the bytes have really come.
    fn look(&mut self, slot: usize, into: &mut [u8]) -> anyhow::Result<()>;

    /// Process that serves this side, if it is one.
    fn server(&mut self) -> Option<u32> {
        None
    }
}
