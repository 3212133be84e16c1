//! How a word or a run of bytes shows that it was overwritten.
//!
//! This is about accidents: a process that went wrong before it died. It stops nobody who means it, and nobody
//! who does could gain anything, since a ledger is written by the device's own process.

/// Bits of a sealed word that check the others.
const CHECK_BITS: u32 = 12;

/// Most that fits into a sealed word.
pub const MAX_SEALED: u64 = u64::MAX >> CHECK_BITS;

/// Odd numbers without a pattern (the fractional parts of the square roots of 2, 3, 5 and 7).
const KEYS: [u64; 4] =
    [0x6a09_e667_f3bc_c909, 0xbb67_ae85_84ca_a73b, 0x3c6e_f372_fe94_f82b, 0xa54f_f53a_5f1d_36f1];

/// A word that carries `value`, of which only the lower 52 bits count. Never 0.
#[inline]
pub fn seal(value: u64) -> u64 {
    let value = value & MAX_SEALED;
    value << CHECK_BITS | check(value)
}

/// What a sealed word carries; `None` if it is none.
#[inline]
pub fn unseal(word: u64) -> Option<u64> {
    let value = word >> CHECK_BITS;
    (word == value << CHECK_BITS | check(value)).then_some(value)
}

/// Not 0 for 0, so that memory that was never written, or was wiped, does not pass.
#[inline]
fn check(value: u64) -> u64 {
    (value ^ KEYS[1]).wrapping_mul(KEYS[0]) >> (u64::BITS - CHECK_BITS)
}

/// A checksum of a few words.
#[inline]
pub fn of_words<const N: usize>(words: [u64; N]) -> u64 {
    let mut sum = 0u64;
    for (index, word) in words.into_iter().enumerate() {
        // One multiplication a word, none of which waits for another.
        let key = KEYS[index % 4].rotate_left(index as u32 * 8) | 1;
        sum = sum.wrapping_add((word ^ KEYS[3]).wrapping_mul(key).rotate_left(index as u32 * 5 + 7));
    }
    finish(sum)
}

/// A checksum of bytes, 32 of them a step.
#[inline]
pub fn of_bytes(seed: u64, bytes: &[u8]) -> u64 {
    let mut lanes = KEYS.map(|key| key ^ seed);
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = step(*lane, u64::from_le_bytes(*word));
        }
    }
    let (words, tail) = rest.as_chunks::<8>();
    for (lane, word) in lanes.iter_mut().zip(words) {
        *lane = step(*lane, u64::from_le_bytes(*word));
    }
    // Packets are whole words, so there is hardly ever anything to copy.
    let last = if tail.is_empty() { 0 } else { last_word(tail) };
    lanes[3] = step(lanes[3], last);
    let [a, b, c, d] = lanes;
    finish(a ^ b.rotate_left(17) ^ c.rotate_left(31) ^ d.rotate_left(47) ^ bytes.len() as u64)
}

/// Fewer bytes than a word has, the missing ones 0.
#[cold]
fn last_word(tail: &[u8]) -> u64 {
    tail.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

#[inline]
fn step(lane: u64, word: u64) -> u64 {
    (lane ^ word).wrapping_mul(KEYS[0]).rotate_left(29)
}

#[inline]
fn finish(sum: u64) -> u64 {
    let mixed = (sum ^ sum >> 32).wrapping_mul(KEYS[2] | 1);
    mixed ^ mixed >> 29
}
