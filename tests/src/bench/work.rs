//! What is to be read, as a line of text: `BLOCK DEPTH random|sequential MILLISECONDS`.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::{DEEPEST, LONGEST};
use crate::steps::Dice;

/// Reads to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Bytes of a read.
    pub block: u32,
    /// Reads under way.
    pub depth: usize,
    /// At random places, or one after the other.
    pub random: bool,
    /// How long.
    pub time: Duration,
}

impl FromStr for Work {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [block, depth, order, time] = words[..] else { bail!("four words are wanted: {line:?}") };
        let random = match order {
            "random" => true,
            "sequential" => false,
            other => bail!("{other:?} is no order"),
        };
        let (block, depth) = (block.parse().context("block size")?, depth.parse().context("depth")?);
        let time = Duration::from_millis(time.parse().context("milliseconds")?);
        ensure!((512..=LONGEST).contains(&block) && block.is_multiple_of(512), "no block size: {block}");
        ensure!((1..=DEEPEST).contains(&depth), "a depth of {depth}");
        Ok(Self { block, depth, random, time })
    }
}

/// Where the reads go.
#[derive(Debug)]
pub struct Places {
    dice: Dice,
    /// Blocks of the disk.
    blocks: u64,
    block: u64,
    /// The next one of a sequence.
    next: Option<u64>,
}

impl Places {
    /// Places on a disk of `size` bytes.
    pub fn new(work: &Work, size: u64, seed: u64) -> Self {
        let block = u64::from(work.block);
        Self { dice: Dice(seed | 1), blocks: size / block, block, next: (!work.random).then_some(0) }
    }

    /// The next one.
    pub fn choose(&mut self) -> u64 {
        let n = match &mut self.next {
            None => self.dice.number() % self.blocks,
            Some(next) => {
                let n = *next;
                *next = (n + 1) % self.blocks;
                n
            }
        };
        n * self.block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_understood() {
        let work: Work = "4096 32 random 1500".parse().unwrap();
        assert_eq!(work, Work { block: 4096, depth: 32, random: true, time: Duration::from_millis(1500) });
        for wrong in ["", "4096 32 random", "4095 1 random 1", "4096 33 random 1", "4096 1 backwards 1"] {
            assert!(wrong.parse::<Work>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_sequence_begins_again_at_the_end_and_chance_stays_on_the_disk() {
        let work = Work { block: 4096, depth: 1, random: false, time: Duration::ZERO };
        let mut places = Places::new(&work, 3 * 4096 + 512, 1);
        assert_eq!([(); 4].map(|()| places.choose()), [0, 4096, 8192, 0]);
        let mut places = Places::new(&Work { random: true, ..work }, 1 << 20, 1);
        let all: Vec<u64> = (0..1000).map(|_| places.choose()).collect();
        assert!(all.iter().all(|at| at % 4096 == 0 && *at < 1 << 20));
        assert!(all.iter().collect::<std::collections::BTreeSet<_>>().len() > 200, "all over the disk");
    }
}
