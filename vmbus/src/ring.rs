//! The ring buffer of one direction of a channel.
//!
//! A ring is a control page and data pages. The writer owns the write index, the reader the read index; each is
//! a byte offset into the data, a multiple of 8, and equal indices mean that the ring is empty, so a writer never
//! fills the last byte. The other end is hostile: a value of its is read once, checked, and only then used, and
//! positions of our own are kept in private memory and never read back.
//!
//! Signals, that is interrupts in one direction and doorbells in the other, are due in two cases, which
//! [`RingWriter::publish`] and [`RingReader::publish`] report and their callers send:
//! * the writer made an empty ring non-empty and the reader has not masked its interrupts;
//! * the reader made enough room for a writer that had announced, by the pending-send-size, how much it waits
//!   for.
//!
//! In both, one end stores its index and then looks at the other's word, while the other stores that word and
//! then looks at the index. One of them has to see the other's store, so there is a full barrier
//! ([`RingMemory::fence`]) between store and look, everywhere.

mod reader;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod writer;

pub use crate::packet::PacketHeader;
pub use reader::RingReader;
pub use writer::{PushError, RingWriter};

use crate::PAGE_SIZE;

/// A word of the control page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ControlWord {
    /// Where the writer writes next. The writer's.
    WriteIndex,
    /// Where the reader reads next. The reader's.
    ReadIndex,
    /// Not 0: the reader wants no signal. The reader's.
    InterruptMask,
    /// Bytes of room for which the writer waits; 0 if it does not wait. The writer's.
    PendingSendSize,
    /// Bit 0: pending-send-size is in use. Set by whoever makes the ring, and by its writer.
    FeatureBits,
}

impl ControlWord {
    /// Where the word lies in the control page, in bytes.
    #[inline]
    pub const fn offset(self) -> usize {
        match self {
            Self::WriteIndex => 0,
            Self::ReadIndex => 4,
            Self::InterruptMask => 8,
            Self::PendingSendSize => 12,
            Self::FeatureBits => 64,
        }
    }
}

/// Bit of [`ControlWord::FeatureBits`]: pending-send-size is in use.
pub const FEATURE_PENDING_SEND_SIZE: u32 = 1;

/// The memory under a ring, shared with a hostile other end.
///
/// An implementation has to be tear-free for control words; data may be torn, since it is copied once and then
/// checked.
pub trait RingMemory {
    /// Bytes of data: a multiple of 4096, at least 4096. Never changes.
    fn data_len(&self) -> u32;
    /// Reads a control word (at least `Acquire`).
    fn load(&self, word: ControlWord) -> u32;
    /// Writes a control word (at least `Release`).
    fn store(&self, word: ControlWord, value: u32);
    /// A full barrier: no load behind it happens before a store ahead of it.
    fn fence(&self);
    /// Copies data out. `offset < data_len`, and `offset + into.len()` is at most `2 * data_len`: the data is
    /// mapped twice in a row, or an implementation wraps.
    fn read(&self, offset: u32, into: &mut [u8]);
    /// Copies data in. The same bounds as for [`Self::read`].
    fn write(&self, offset: u32, from: &[u8]);
    /// Reads 8 bytes of data, little-endian, once. `offset` is a multiple of 8, else as for [`Self::read`], and may
    /// be `data_len` itself. Worth an implementation of its own: a call of a copy routine costs more than the copy.
    #[inline]
    fn read_u64(&self, offset: u32) -> u64 {
        let mut bytes = [0; 8];
        self.read(offset % self.data_len(), &mut bytes);
        u64::from_le_bytes(bytes)
    }
    /// Writes 8 bytes of data, little-endian. The same bounds as for [`Self::read_u64`].
    #[inline]
    fn write_u64(&self, offset: u32, value: u64) {
        self.write(offset % self.data_len(), &value.to_le_bytes());
    }
}

impl<M: RingMemory + ?Sized> RingMemory for &M {
    fn data_len(&self) -> u32 {
        (**self).data_len()
    }
    fn load(&self, word: ControlWord) -> u32 {
        (**self).load(word)
    }
    fn store(&self, word: ControlWord, value: u32) {
        (**self).store(word, value);
    }
    fn fence(&self) {
        (**self).fence();
    }
    fn read(&self, offset: u32, into: &mut [u8]) {
        (**self).read(offset, into);
    }
    fn write(&self, offset: u32, from: &[u8]) {
        (**self).write(offset, from);
    }
    fn read_u64(&self, offset: u32) -> u64 {
        (**self).read_u64(offset)
    }
    fn write_u64(&self, offset: u32, value: u64) {
        (**self).write_u64(offset, value);
    }
}

/// A ring that its other end has broken. The channel cannot be used any more; nothing else is affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The memory is no ring: [`RingMemory::data_len`] is against the rules. The host's fault.
    #[error("a ring cannot have {0} bytes of data")]
    BadSize(u32),
    /// The write index is out of the ring or uneven.
    #[error("the ring's write index is {0:#x}, which is no position in the ring")]
    WriteIndex(u32),
    /// The read index is out of the ring or uneven.
    #[error("the ring's read index is {0:#x}, which is no position in the ring")]
    ReadIndex(u32),
    /// The write index is not at the end of a packet.
    #[error("only {0} bytes lie in the ring, which is no packet")]
    Truncated(u32),
    /// The packet's descriptor contradicts itself.
    #[error("a packet's payload begins or ends outside of the packet")]
    BadDescriptor,
    /// The packet claims to be longer than what is in the ring.
    #[error("a packet claims {len} bytes, {available} lie in the ring")]
    Overrun {
        /// Bytes that the packet and its trailer need.
        len: u32,
        /// Bytes in the ring.
        available: u32,
    },
    /// The packet is longer than the reader takes.
    #[error("a packet has {len} bytes, at most {limit} are allowed")]
    TooLong {
        /// Bytes of the packet.
        len: u32,
        /// The reader's limit.
        limit: u32,
    },
}

/// Makes the ring empty: the duty of the guest, which owns the pages, before it opens the channel.
pub fn initialize(memory: &impl RingMemory) {
    memory.store(ControlWord::WriteIndex, 0);
    memory.store(ControlWord::ReadIndex, 0);
    memory.store(ControlWord::InterruptMask, 0);
    memory.store(ControlWord::PendingSendSize, 0);
    memory.store(ControlWord::FeatureBits, FEATURE_PENDING_SEND_SIZE);
}

/// The size of a ring, and arithmetic on positions in it.
#[derive(Debug, Clone, Copy)]
struct Size(u32);

impl Size {
    /// Largest ring, so that twice its length still is a `u32`.
    const MAX: u32 = 1 << 30;

    fn of(memory: &impl RingMemory) -> Result<Self, RingError> {
        let len = memory.data_len();
        if len == 0 || len > Self::MAX || !len.is_multiple_of(PAGE_SIZE) {
            return Err(RingError::BadSize(len));
        }
        Ok(Self(len))
    }

    #[inline]
    fn is_position(self, index: u32) -> bool {
        index < self.0 && index.is_multiple_of(8)
    }

    /// `position + bytes`, around the end; `bytes` is at most the ring's length.
    #[inline]
    fn advance(self, position: u32, bytes: u32) -> u32 {
        let sum = position + bytes;
        if sum >= self.0 { sum - self.0 } else { sum }
    }

    /// Bytes from `from` to `to`; 0 if they are equal.
    #[inline]
    fn distance(self, from: u32, to: u32) -> u32 {
        if to >= from { to - from } else { self.0 - from + to }
    }

    /// Bytes that are free. All of them may not be written: the ring would look empty.
    #[inline]
    fn free(self, read: u32, write: u32) -> u32 {
        self.0 - self.distance(read, write)
    }
}
