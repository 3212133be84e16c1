//! The writing end of a ring.

use super::{ControlWord, FEATURE_PENDING_SEND_SIZE, RingError, RingMemory, Size};
use crate::packet::{DESCRIPTOR_SIZE, Outgoing, TRAILER_SIZE};

/// The writing end of a ring. Copies packets in, and makes them visible when told to.
#[derive(Debug)]
pub struct RingWriter<M> {
    memory: M,
    size: Size,
    /// Where the next packet goes.
    position: u32,
    /// The write index as the reader sees it.
    published: u32,
    /// A read index that was seen and checked; room up to here needs no other look at the shared word.
    read: u32,
}

/// A packet that could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// No room now. Wait with [`RingWriter::set_pending_send_size`].
    #[error("the ring has no room for {needed} bytes now")]
    Full {
        /// Bytes that the packet takes in the ring: what to set as pending-send-size.
        needed: u32,
    },
    /// No room ever: the packet is too long for this ring or for any.
    #[error("a packet of {0} bytes does not fit into the ring")]
    TooLarge(usize),
    /// The reader has broken the ring.
    #[error("{0}")]
    Ring(#[from] RingError),
}

impl<M: RingMemory> RingWriter<M> {
    /// Takes the ring up at the write index that it has, which may be the guest's own word or a predecessor's, and
    /// announces that pending-send-size is in use.
    pub fn new(memory: M) -> Result<Self, RingError> {
        let size = Size::of(&memory)?;
        let write = memory.load(ControlWord::WriteIndex);
        if !size.is_position(write) {
            return Err(RingError::WriteIndex(write));
        }
        let features = memory.load(ControlWord::FeatureBits);
        if features & FEATURE_PENDING_SEND_SIZE == 0 {
            memory.store(ControlWord::FeatureBits, features | FEATURE_PENDING_SEND_SIZE);
        }
        // Read index equal to the write index would mean an empty ring; one step behind means a full one, so
        // that the first push looks.
        let read = size.advance(write, 8);
        Ok(Self { memory, size, position: write, published: write, read })
    }

    /// Copies a packet behind the last one; the reader does not see it before [`Self::publish`]. The parts are
    /// put in a row (the type header first, if the packet has one) and padded with zeroes to a multiple of 8
    /// bytes.
    #[inline]
    pub fn push(&mut self, packet: &Outgoing, parts: &[&[u8]]) -> Result<(), PushError> {
        let content: usize = parts.iter().map(|part| part.len()).sum();
        let whole = (content + DESCRIPTOR_SIZE as usize).next_multiple_of(8);
        let needed = whole + TRAILER_SIZE as usize;
        if needed >= self.size.0 as usize || whole / 8 > usize::from(u16::MAX) {
            return Err(PushError::TooLarge(whole));
        }
        let needed = needed as u32;
        if self.size.free(self.read, self.position) <= needed && !self.look(needed)? {
            return Err(PushError::Full { needed });
        }
        let start = self.position;
        let (low, high) = descriptor(packet, whole as u32);
        self.memory.write_u64(start, low);
        self.memory.write_u64(start + 8, high);
        let mut at = self.size.advance(start, DESCRIPTOR_SIZE);
        for part in parts {
            at = self.put(at, part);
        }
        let padding = whole - DESCRIPTOR_SIZE as usize - content;
        at = self.put(at, &[0; 8][..padding]);
        self.memory.write_u64(at, u64::from(start) << 32);
        self.position = self.size.advance(at, TRAILER_SIZE);
        Ok(())
    }

    /// Whether there is room now for so many bytes: for packets that take so many together, descriptors and trailers included.
    #[inline]
    pub fn has_room(&mut self, bytes: u32) -> Result<bool, RingError> {
        Ok(self.size.free(self.read, self.position) > bytes || self.look(bytes)?)
    }

    /// Looks at the read index; true if there is room for more than `needed` bytes.
    #[cold]
    fn look(&mut self, needed: u32) -> Result<bool, RingError> {
        let read = self.memory.load(ControlWord::ReadIndex);
        if !self.size.is_position(read) {
            return Err(RingError::ReadIndex(read));
        }
        self.read = read;
        Ok(self.size.free(read, self.position) > needed)
    }

    #[inline]
    fn put(&self, at: u32, bytes: &[u8]) -> u32 {
        if bytes.is_empty() {
            return at;
        }
        self.memory.write(at, bytes);
        self.size.advance(at, bytes.len() as u32)
    }

    /// Makes all pushed packets visible. True: the reader had emptied the ring and waits for a signal, which must
    /// be sent.
    #[inline]
    #[must_use = "a reader that waits and is not signalled waits for ever"]
    pub fn publish(&mut self) -> bool {
        if self.position == self.published {
            return false;
        }
        let before = self.published;
        self.memory.store(ControlWord::WriteIndex, self.position);
        self.published = self.position;
        self.memory.fence();
        self.memory.load(ControlWord::InterruptMask) == 0
            && self.memory.load(ControlWord::ReadIndex) == before
    }

    /// Tells the reader to signal when more than `bytes` are free; 0: when nothing is waited for any more.
    ///
    /// The reader may have made the room just before: push once more after setting it, and wait only if that
    /// fails too. Publish before that last attempt, and push nothing after it: a reader signals when it sees too
    /// little room become enough, and what it cannot see in the ring it takes for room.
    pub fn set_pending_send_size(&mut self, bytes: u32) {
        self.memory.store(ControlWord::PendingSendSize, bytes);
        self.memory.fence();
    }

    /// Where the next packet goes: private, ahead of what the reader sees.
    pub fn write_position(&self) -> u32 {
        self.position
    }

    /// The write index as the reader sees it.
    pub fn published_position(&self) -> u32 {
        self.published
    }

    /// The memory under the ring.
    pub fn memory(&self) -> &M {
        &self.memory
    }
}

/// A descriptor's wire form: its first and its last 8 bytes.
#[inline]
fn descriptor(packet: &Outgoing, whole: u32) -> (u64, u64) {
    let data_offset = (DESCRIPTOR_SIZE + packet.type_header_len) / 8;
    let low = u64::from(packet.packet_type.0)
        | u64::from(data_offset as u16) << 16
        | u64::from((whole / 8) as u16) << 32
        | u64::from(packet.flags) << 48;
    (low, packet.transaction_id)
}
