//! The reading end of a ring.

use alloc::vec::Vec;

use super::{ControlWord, FEATURE_PENDING_SEND_SIZE, RingError, RingMemory, Size};
use crate::packet::{DESCRIPTOR_SIZE, PacketHeader, TRAILER_SIZE};

/// The reading end of a ring. Reads packets one by one into private memory and gives their room back when told to.
#[derive(Debug)]
pub struct RingReader<M> {
    memory: M,
    size: Size,
    /// Where the next packet begins.
    position: u32,
    /// The read index as the writer sees it.
    published: u32,
    /// A write index that was seen and checked; packets up to here need no other look at the shared word.
    write: u32,
    longest: u32,
}

impl<M: RingMemory> RingReader<M> {
    /// Takes the ring up at the read index that it has, which may be the guest's own word or a predecessor's.
    pub fn new(memory: M) -> Result<Self, RingError> {
        let size = Size::of(&memory)?;
        let read = memory.load(ControlWord::ReadIndex);
        if !size.is_position(read) {
            return Err(RingError::ReadIndex(read));
        }
        Ok(Self { memory, size, position: read, published: read, write: read, longest: size.0 })
    }

    /// Refuses packets of more than `bytes`, and so bounds what [`Self::next`] allocates.
    #[must_use]
    pub fn with_longest_packet(mut self, bytes: u32) -> Self {
        self.longest = bytes;
        self
    }

    /// Reads the next packet into `scratch`, whose old content is lost and whose memory is used again. `Ok(None)`:
    /// the ring is empty. Does not publish: the writer does not get the room back yet.
    ///
    /// After the call `scratch` is the packet, descriptor included; [`PacketHeader::payload`] finds the payload.
    #[inline]
    pub fn next(&mut self, scratch: &mut Vec<u8>) -> Result<Option<PacketHeader>, RingError> {
        if self.position == self.write && !self.look()? {
            return Ok(None);
        }
        let available = self.size.distance(self.position, self.write);
        if available < DESCRIPTOR_SIZE + TRAILER_SIZE {
            return Err(RingError::Truncated(available));
        }
        // The descriptor is read once, here. What is copied below may differ from it, and is not looked at.
        let low = self.memory.read_u64(self.position);
        let high = self.memory.read_u64(self.position + 8);
        let descriptor = (u128::from(low) | u128::from(high) << 64).to_le_bytes();
        let header = PacketHeader::parse(&descriptor).ok_or(RingError::BadDescriptor)?;
        if header.len + TRAILER_SIZE > available {
            return Err(RingError::Overrun { len: header.len + TRAILER_SIZE, available });
        }
        if header.len > self.longest {
            return Err(RingError::TooLong { len: header.len, limit: self.longest });
        }
        // All of it is written below: only memory that it has not had yet needs an initial value.
        let len = header.len as usize;
        if scratch.len() >= len {
            scratch.truncate(len)
        } else {
            scratch.resize(len, 0)
        }
        let (head, rest) = scratch.split_at_mut(DESCRIPTOR_SIZE as usize);
        head.copy_from_slice(&descriptor);
        self.memory.read(self.size.advance(self.position, DESCRIPTOR_SIZE), rest);
        self.position = self.size.advance(self.position, header.len + TRAILER_SIZE);
        Ok(Some(header))
    }

    /// Where in the data the packet begins that [`Self::next`] has just returned, given its length.
    pub fn start_of_last(&self, len: u32) -> u32 {
        let whole = len + TRAILER_SIZE;
        if self.position >= whole { self.position - whole } else { self.position + (self.size.0 - whole) }
    }

    /// Looks at the write index; true if there is something to read.
    #[cold]
    fn look(&mut self) -> Result<bool, RingError> {
        let write = self.memory.load(ControlWord::WriteIndex);
        if !self.size.is_position(write) {
            return Err(RingError::WriteIndex(write));
        }
        self.write = write;
        Ok(write != self.position)
    }

    /// Gives the room of everything that [`Self::next`] has returned back to the writer. True: the writer waits
    /// for room, has it now, and must be signalled.
    #[inline]
    #[must_use = "a writer that waits for room and is not signalled waits for ever"]
    pub fn publish(&mut self) -> bool {
        if self.position == self.published {
            return false;
        }
        let freed = self.size.distance(self.published, self.position);
        self.memory.store(ControlWord::ReadIndex, self.position);
        self.published = self.position;
        if self.memory.load(ControlWord::FeatureBits) & FEATURE_PENDING_SEND_SIZE == 0 {
            return false;
        }
        self.memory.fence();
        let pending = self.memory.load(ControlWord::PendingSendSize);
        pending != 0 && self.made_room(pending, freed)
    }

    /// True if `freed` bytes were what a writer that waits for more than `pending` lacked.
    fn made_room(&self, pending: u32, freed: u32) -> bool {
        let write = self.memory.load(ControlWord::WriteIndex);
        if !self.size.is_position(write) {
            // The next read finds it and says so.
            return false;
        }
        let free = self.size.free(self.position, write);
        free > pending && free.saturating_sub(freed) <= pending
    }

    /// Tells the writer that no signal is wanted, because the ring is being read anyway.
    #[inline]
    pub fn mask_interrupts(&mut self) {
        self.memory.store(ControlWord::InterruptMask, 1);
    }

    /// Tells the writer to signal again. True: something has arrived meanwhile, for which there may be no signal;
    /// read on.
    #[inline]
    #[must_use = "packets that arrived meanwhile are not signalled"]
    pub fn unmask_interrupts(&mut self) -> bool {
        self.memory.store(ControlWord::InterruptMask, 0);
        self.memory.fence();
        self.memory.load(ControlWord::WriteIndex) != self.position
    }

    /// Whether something lies in the ring, as far as the writer is to be believed. One load, for whoever looks again and
    /// again: no order with anything else is promised, and whoever wants to sleep calls [`Self::unmask_interrupts`].
    #[inline]
    pub fn has_arrived(&self) -> bool {
        self.memory.load(ControlWord::WriteIndex) != self.position
    }

    /// Where the next packet begins: private, ahead of what the writer sees.
    pub fn read_position(&self) -> u32 {
        self.position
    }

    /// The read index as the writer sees it.
    pub fn published_position(&self) -> u32 {
        self.published
    }

    /// The memory under the ring.
    pub fn memory(&self) -> &M {
        &self.memory
    }
}
