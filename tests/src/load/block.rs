//! What is in a block of 512 bytes: a checksum, its address, its generation, and noise that depends on both.

/// Bytes of a block.
pub const BLOCK: usize = 512;
const WORDS: usize = BLOCK / 8;

/// What a block was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing: never written, or trimmed.
    Zero,
    /// What some write of this load has written.
    Written {
        /// The block that it was meant for.
        lba: u64,
        /// How many times that block had been written or trimmed then, this time included.
        generation: u32,
    },
    /// Neither: half of one and half of another, or garbage.
    Broken,
}

/// Fills a block.
pub fn fill(block: &mut [u8], lba: u64, generation: u32) {
    let mut sum = Sum::default();
    let mut noise = mix(lba << 32 ^ u64::from(generation));
    let (head, body) = block.split_at_mut(8);
    for (n, word) in body.chunks_exact_mut(8).enumerate() {
        let value = match n {
            0 => lba,
            1 => u64::from(generation),
            _ => noise,
        };
        noise = noise.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_add(1);
        sum.add(value);
        word.copy_from_slice(&value.to_le_bytes());
    }
    head.copy_from_slice(&sum.0.to_le_bytes());
}

/// Looks at a block.
pub fn read(block: &[u8]) -> Contents {
    let mut words = block.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
    let (head, lba, generation) = (words.next(), words.next(), words.next());
    let (Some(head), Some(lba), Some(generation)) = (head, lba, generation) else { return Contents::Broken };
    if head == 0 {
        return if block.iter().all(|byte| *byte == 0) { Contents::Zero } else { Contents::Broken };
    }
    let mut sum = Sum::default();
    sum.add(lba);
    sum.add(generation);
    words.for_each(|word| sum.add(word));
    match u32::try_from(generation) {
        Ok(generation) if sum.0 == head => Contents::Written { lba, generation },
        _ => Contents::Broken,
    }
}

/// Finds every change of one word and of the order of words; never 0, which would look like an empty block.
struct Sum(u64);

impl Default for Sum {
    fn default() -> Self {
        Self(0x5115_ca11_ab1e_d15c)
    }
}

impl Sum {
    fn add(&mut self, word: u64) {
        self.0 = ((self.0 ^ word).wrapping_mul(0x2127_599b_f432_5c37).rotate_left(31)).max(1);
    }
}

fn mix(n: u64) -> u64 {
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb)
}

const _: () = assert!(WORDS * 8 == BLOCK);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_tells_where_it_belongs_and_every_flaw_shows() {
        let mut block = [0; BLOCK];
        assert_eq!(read(&block), Contents::Zero);
        fill(&mut block, 77, 3);
        assert_eq!(read(&block), Contents::Written { lba: 77, generation: 3 });
        for at in 0..BLOCK {
            let mut flawed = block;
            flawed[at] ^= 0x10;
            assert_eq!(read(&flawed), Contents::Broken, "byte {at}");
        }
        let mut newer = [0; BLOCK];
        fill(&mut newer, 77, 4);
        newer[BLOCK / 2..].copy_from_slice(&block[BLOCK / 2..]);
        assert_eq!(read(&newer), Contents::Broken, "half and half");
    }
}
