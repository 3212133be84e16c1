//! What must be on the disk.
//!
//! Each block has a generation, one more with each write or trim that is started, and remembers the last one that
//! the device has reported done. While something is under way the block may hold the old or the new; afterwards the new
//! and nothing else. So an old write that lands late shows, as does one that never landed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::block::{self, BLOCK, Contents};

/// A disk's model, shared by all queues. At most one write (or trim) of a block is under way at a time.
#[derive(Debug)]
pub struct Shadow {
    /// Done in the upper half, started in the lower one.
    generations: Vec<AtomicU64>,
    /// The last generation that was a trim. In the beginning it is 0, and generation 0 is empty.
    trims: Vec<AtomicU32>,
}

/// A write or trim under way: it has these blocks to itself.
#[derive(Debug)]
#[must_use = "settle it when it is done"]
pub struct Claim {
    /// First block.
    pub lba: u64,
    /// The generation that each block gets.
    pub generations: Vec<u32>,
}

fn pack(done: u32, started: u32) -> u64 {
    u64::from(done) << 32 | u64::from(started)
}

fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

impl Shadow {
    /// An empty disk.
    pub fn new(blocks: u64) -> Self {
        let generations = (0..blocks).map(|_| AtomicU64::new(0)).collect();
        Self { generations, trims: (0..blocks).map(|_| AtomicU32::new(0)).collect() }
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.generations.len() as u64
    }

    /// Takes blocks for a write or trim; `None` if one is under way on any of them.
    pub fn claim(&self, lba: u64, blocks: u32, trim: bool) -> Option<Claim> {
        let mut claim = Claim { lba, generations: Vec::with_capacity(blocks as usize) };
        for at in lba as usize..lba as usize + blocks as usize {
            let word = self.generations[at].load(Ordering::SeqCst);
            let (done, started) = unpack(word);
            let next = pack(done, started + 1);
            let is_free = done == started;
            if !is_free
                || self.generations[at]
                    .compare_exchange(word, next, Ordering::SeqCst, Ordering::SeqCst)
                    .is_err()
            {
                self.abandon(&claim);
                return None;
            }
            claim.generations.push(started + 1);
        }
        if trim {
            for (at, generation) in (lba as usize..).zip(&claim.generations) {
                self.trims[at].store(*generation, Ordering::SeqCst);
            }
        }
        Some(claim)
    }

    /// Gives blocks back that nothing was done to: what was claimed has never been sent. Not for trims.
    pub fn abandon(&self, claim: &Claim) {
        for (at, generation) in (claim.lba as usize..).zip(&claim.generations) {
            self.generations[at].store(pack(generation - 1, generation - 1), Ordering::SeqCst);
        }
    }

    /// A write or trim is done.
    pub fn settle(&self, claim: &Claim) {
        for (at, generation) in (claim.lba as usize..).zip(&claim.generations) {
            self.generations[at].store(pack(*generation, *generation), Ordering::SeqCst);
        }
    }

    /// The generations that blocks have for certain: to be asked before a read is started.
    pub fn done(&self, lba: u64, blocks: u32) -> Vec<u32> {
        let range = lba as usize..lba as usize + blocks as usize;
        self.generations[range].iter().map(|word| unpack(word.load(Ordering::SeqCst)).0).collect()
    }

    /// Whether a read may have found this: `done` is what [`Self::done`] said before it was started.
    pub fn judge(&self, lba: u64, done: u32, contents: Contents) -> Result<(), String> {
        let at = lba as usize;
        let started = unpack(self.generations[at].load(Ordering::SeqCst)).1;
        let is_good = match contents {
            Contents::Zero => self.trims[at].load(Ordering::SeqCst) >= done,
            Contents::Written { lba: found, generation } => {
                found == lba && (done..=started).contains(&generation)
            }
            // A read beside a write may find half of it: no disk promises more than whole sectors to either.
            Contents::Broken => started > done,
        };
        match is_good {
            true => Ok(()),
            false => Err(format!("block {lba}, generation {done} to {started}: {contents:?} was read")),
        }
    }

    /// Checks a whole disk on which nothing is under way, behind the device's back; returns what is wrong.
    pub fn check(&self, disk: &File) -> std::io::Result<Vec<String>> {
        const CHUNK: u64 = 2048;
        let (mut bytes, mut wrong) = (vec![0; CHUNK as usize * BLOCK], Vec::new());
        for first in (0..self.blocks()).step_by(CHUNK as usize) {
            let blocks = CHUNK.min(self.blocks() - first);
            let bytes = &mut bytes[..blocks as usize * BLOCK];
            disk.read_exact_at(bytes, first * BLOCK as u64)?;
            for (lba, found) in (first..).zip(bytes.chunks_exact(BLOCK)) {
                let (done, started) = unpack(self.generations[lba as usize].load(Ordering::SeqCst));
                let found = block::read(found);
                let due = match self.trims[lba as usize].load(Ordering::SeqCst) == done {
                    true => Contents::Zero,
                    false => Contents::Written { lba, generation: done },
                };
                if found != due || started != done {
                    wrong.push(format!("block {lba}: {found:?} instead of {due:?} (started: {started})"));
                }
            }
        }
        Ok(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(lba: u64, generation: u32) -> Contents {
        Contents::Written { lba, generation }
    }

    #[test]
    fn a_block_may_be_old_or_new_while_it_is_written_and_new_afterwards() {
        let shadow = Shadow::new(8);
        let before = shadow.done(2, 1)[0];
        let claim = shadow.claim(2, 2, false).expect("free");
        assert!(shadow.claim(3, 1, false).is_none(), "one at a time");
        assert!(shadow.claim(0, 3, false).is_none(), "and all or nothing");
        assert!(shadow.claim(0, 2, false).is_some());
        for contents in [Contents::Zero, written(2, 1), Contents::Broken] {
            assert_eq!(shadow.judge(2, before, contents), Ok(()));
        }
        shadow.settle(&claim);
        assert_eq!(shadow.judge(2, before, Contents::Zero), Ok(()), "the read began before");
        let after = shadow.done(2, 1)[0];
        assert_eq!(shadow.judge(2, after, written(2, 1)), Ok(()));
        for contents in [Contents::Zero, written(2, 0), written(2, 2), written(3, 1), Contents::Broken] {
            assert!(shadow.judge(2, after, contents).is_err(), "{contents:?}");
        }
    }

    #[test]
    fn what_was_trimmed_is_empty() {
        let shadow = Shadow::new(1);
        shadow.settle(&shadow.claim(0, 1, false).expect("free"));
        shadow.settle(&shadow.claim(0, 1, true).expect("free"));
        let done = shadow.done(0, 1)[0];
        assert_eq!(shadow.judge(0, done, Contents::Zero), Ok(()));
        assert!(shadow.judge(0, done, written(0, 1)).is_err(), "an old write has landed late");
    }
}
