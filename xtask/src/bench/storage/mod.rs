//! `bench storage`: reads through guest, ring and `vsp-storage` beside fio and QEMU's server, all on the same file in turns.
//!
//! * [`disk`]: the file
//! * [`fio`]: fio, which reads it without anything between, and is what the others are measured by
//! * [`side`]: a program that reads it through a server: ours, and a virtio driver with `qemu-storage-daemon`
//! * [`native`]: the rounds and what is made of them
//! * [`lab`]: the same reads in a guest, against QEMU's virtio-blk

pub(super) mod disk;
mod fio;
mod lab;
mod native;
pub(super) mod side;

use std::fmt;
use std::time::Duration;

pub use lab::measure as in_the_lab;
pub use native::{Options, measure};
pub(super) use native::{Series, rounds};

/// Whether the page cache is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cache {
    /// Everything is in it.
    Warm,
    /// It is gone around (O_DIRECT).
    Direct,
}

/// How the guests wait for the end of a read; the programs of the sides know it by the same words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Wait {
    /// For an interrupt, which KVM looks out for 200 microseconds (its `halt_poll_ns`) before the processor's thread sleeps.
    #[default]
    Halt,
    /// For an interrupt, and the processor's thread sleeps at once.
    Sleep,
    /// They look at their rings all the time.
    Poll,
}

impl Wait {
    fn word(self) -> &'static str {
        match self {
            Wait::Halt => "halt",
            Wait::Sleep => "sleep",
            Wait::Poll => "poll",
        }
    }
}

/// What is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// Bytes of a read.
    pub(super) block: u32,
    /// Reads under way.
    pub(super) depth: u32,
    /// At random places, or one after the other.
    pub(super) random: bool,
}

impl Work {
    /// As the programs of the sides want it.
    fn order(&self, time: Duration) -> String {
        let order = if self.random { "random" } else { "sequential" };
        format!("{} {} {order} {}", self.block, self.depth, time.as_millis())
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = if self.random { "random" } else { "sequential" };
        write!(f, "{order} {} KiB, depth {}", self.block / 1024, self.depth)
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measured {
    /// Reads a second.
    pub(super) per_second: f64,
    /// Median of a read's latency in microseconds.
    pub(super) p50: f64,
}
