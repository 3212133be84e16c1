//! The blocks of the receive buffer: who has which, and how many each channel may have.
//!
//! A block is what is lent to the guest at a time: some frames, or one answer. Its number is the loan's. Which channel
//! lends it is not settled beforehand; that no channel takes them all is.

use vsp::ipc::ledger::MAX_LOANS;
use vsp::ipc::message::MAX_SUBCHANNELS;

/// Most blocks: as many as a channel can lend.
const MOST: usize = MAX_LOANS as usize;
/// Most channels, the primary one included.
const CHANNELS: usize = MAX_SUBCHANNELS as usize + 1;

/// Bytes of a block: two of the largest frames, or 32 of the usual ones and as much again. Not more than half as many, since
/// Linux allocates this for each of 64 channels that there could be.
const BLOCK: u32 = 128 << 10;
/// The same in a small buffer: one of the largest frames with its headers.
const SMALL_BLOCK: u32 = 72 << 10;
/// A buffer that does not hold so many blocks is small.
const FEW: u32 = 16;
/// Blocks that frames leave to answers: a request must not wait for a block ([`vsp::Device::returned`] comes behind it),
/// and Linux has one question at a time, besides changes of its link.
const RESERVED: usize = 4;

/// How a receive buffer of so many bytes is divided: bytes of a block, and how many. `None`: it is too small for any.
pub(super) fn divide(bytes: usize) -> Option<(u32, u32)> {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    let size = if bytes / BLOCK >= FEW { BLOCK } else { SMALL_BLOCK };
    let count = (bytes / size).min(MAX_LOANS);
    (count > 0).then_some((size, count))
}

/// What a block is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    Frames,
    Answer,
}

/// Who has which block.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Of each block: the channel (by its number in the device) whose guest has it.
    out: [Option<u16>; MOST],
    /// Of each channel: how many its guest has.
    on: [u16; CHANNELS],
    /// Ours, the last one returned on top: it is in the cache still.
    free: Vec<u32>,
    /// How many blocks there are; 0 without a buffer.
    count: u32,
}

impl Default for Blocks {
    fn default() -> Blocks {
        Blocks { out: [None; MOST], on: [0; CHANNELS], free: Vec::with_capacity(MOST), count: 0 }
    }
}

impl Blocks {
    /// There is a buffer of so many blocks, or (0) none. What the guest has of an earlier one stays out.
    pub fn set_count(&mut self, count: u32) {
        self.count = count.min(MAX_LOANS);
        self.free.clear();
        self.free.extend((0..self.count).rev().filter(|&block| self.out[block as usize].is_none()));
    }

    /// A block of ours; `None`: there is none for this, or the channel has its share (`channels` divide them).
    pub fn take(&mut self, channel: u16, what: For, channels: usize) -> Option<u32> {
        self.can_take(channel, what, channels).then(|| self.free.pop()).flatten()
    }

    /// Whether [`Blocks::take`] would give one.
    pub fn can_take(&self, channel: u16, what: For, channels: usize) -> bool {
        if what == For::Answer {
            return !self.free.is_empty();
        }
        let all = self.count as usize;
        let reserved = RESERVED.min(all / 4);
        let share = ((all - reserved) / channels.max(1)).max(1);
        self.free.len() > reserved && (channels <= 1 || self.out_on(channel) < share)
    }

    /// A block that was taken is not lent after all.
    pub fn give_back(&mut self, block: u32) {
        debug_assert!(!self.free.contains(&block), "block {block} is given back twice");
        if block < self.count {
            self.free.push(block);
        }
    }

    /// A block is the guest's: one that was taken, or one that a predecessor has lent (before there is a buffer).
    pub fn lent(&mut self, channel: u16, block: u32) {
        debug_assert!(!self.free.contains(&block), "block {block} is lent and free");
        let (Some(out), Some(on)) = (self.out.get_mut(block as usize), self.on.get_mut(usize::from(channel)))
        else {
            return;
        };
        if out.is_none() {
            *out = Some(channel);
            *on += 1;
        }
    }

    /// The guest has given a block back.
    pub fn returned(&mut self, channel: u16, block: u32) {
        let (Some(out), Some(on)) = (self.out.get_mut(block as usize), self.on.get_mut(usize::from(channel)))
        else {
            return;
        };
        if *out == Some(channel) {
            *out = None;
            *on -= 1;
            self.give_back(block);
        }
    }

    /// The channel closes: whatever its guest had is ours.
    pub fn closing(&mut self, channel: u16) {
        for block in 0..MAX_LOANS {
            self.returned(channel, block);
        }
    }

    /// Blocks that the guest has.
    pub fn out(&self) -> usize {
        self.on.iter().map(|&on| usize::from(on)).sum()
    }

    fn out_on(&self, channel: u16) -> usize {
        self.on.get(usize::from(channel)).map_or(0, |&on| on.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(count: u32) -> Blocks {
        let mut blocks = Blocks::default();
        blocks.set_count(count);
        blocks
    }

    #[test]
    fn buffers_are_divided() {
        assert_eq!(divide(16 << 20), Some((128 << 10, 128)), "Linux' usual one");
        assert_eq!(divide(31 << 20), Some((128 << 10, 248)));
        assert_eq!(divide(64 << 20), Some((128 << 10, 256)));
        assert_eq!(divide(1 << 20), Some((72 << 10, 14)));
        assert_eq!(divide(72 << 10), Some((72 << 10, 1)));
        assert_eq!(divide((72 << 10) - 4096), None);
        assert_eq!(divide(usize::MAX), Some((128 << 10, 256)));
    }

    #[test]
    fn frames_leave_some_blocks_to_answers() {
        let mut blocks = blocks(16);
        let frames: Vec<_> = std::iter::from_fn(|| blocks.take(0, For::Frames, 1)).collect();
        assert_eq!(frames.len(), 12);
        let answers: Vec<_> = std::iter::from_fn(|| blocks.take(0, For::Answer, 1)).collect();
        assert_eq!(answers.len(), 4);
        let mut all: Vec<_> = frames.into_iter().chain(answers).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 16, "none was given twice");
    }

    #[test]
    fn the_only_block_is_anybodys() {
        let mut blocks = blocks(1);
        assert_eq!(blocks.take(0, For::Frames, 1), Some(0));
        assert_eq!(blocks.take(0, For::Answer, 1), None);
        blocks.give_back(0);
        assert_eq!(blocks.take(0, For::Answer, 1), Some(0));
    }

    #[test]
    fn a_channel_has_its_share_and_no_more() {
        let mut blocks = blocks(20);
        let mut take = |channel| {
            let block = blocks.take(channel, For::Frames, 2)?;
            blocks.lent(channel, block);
            Some(block)
        };
        assert_eq!(std::iter::from_fn(|| take(0)).count(), 8);
        assert_eq!(std::iter::from_fn(|| take(1)).count(), 8);
        assert_eq!(blocks.out(), 16);
        blocks.closing(1);
        assert_eq!(blocks.out(), 8);
        assert!(blocks.can_take(1, For::Frames, 2) && !blocks.can_take(0, For::Frames, 2));
    }

    #[test]
    fn what_the_guest_has_is_lent_to_nobody_else() {
        let mut blocks = Blocks::default();
        blocks.lent(0, 2);
        blocks.set_count(4);
        let free: Vec<_> = std::iter::from_fn(|| blocks.take(0, For::Answer, 1)).collect();
        assert_eq!(free, [0, 1, 3]);
        // By the wrong channel, twice, or out of nowhere: nothing happens.
        blocks.returned(1, 2);
        assert_eq!(blocks.take(0, For::Answer, 1), None);
        blocks.returned(0, 2);
        blocks.returned(0, 2);
        blocks.returned(0, 4000);
        assert_eq!(blocks.take(0, For::Answer, 1), Some(2));
        assert_eq!(blocks.take(0, For::Answer, 1), None);
    }

    #[test]
    fn a_block_that_comes_back_after_its_buffer_has_gone_is_forgotten() {
        let mut blocks = Blocks::default();
        blocks.lent(0, 3);
        blocks.set_count(4);
        blocks.set_count(0);
        blocks.returned(0, 3);
        assert_eq!(blocks.take(0, For::Answer, 1), None);
        blocks.set_count(2);
        assert_eq!(blocks.out(), 0);
    }
}
