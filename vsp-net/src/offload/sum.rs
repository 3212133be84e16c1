//! The Internet checksum (RFC 1071).

use crate::headers::Ip;

/// Adds bytes up, piece by piece.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Sum of words as this machine has them in memory; it does not matter which byte comes first until the end.
    words: u64,
    /// An odd number of bytes has been added.
    odd: bool,
}

impl Sum {
    /// Of nothing.
    pub fn new() -> Sum {
        Sum::default()
    }

    /// Adds bytes that follow those added before.
    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "a sum of bytes that are no sum")]
    pub fn add(self, bytes: &[u8]) -> Sum {
        let (wide, rest) = bytes.as_chunks::<4>();
        let mut sum: u64 = wide.iter().map(|word| u64::from(u32::from_le_bytes(*word))).sum();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_le_bytes(last));
        // Behind an odd number of bytes, each byte counts in the other half of its word.
        let sum = if self.odd { u64::from(fold(sum).swap_bytes()) } else { sum };
        Sum {
            words: u64::from(fold(self.words)) + u64::from(fold(sum)),
            odd: self.odd ^ (bytes.len() % 2 == 1),
        }
    }

    /// Adds the pseudo-header of a transport protocol: addresses as they follow each other in the IP header.
    #[must_use]
    pub(super) fn add_pseudo_header(self, ip: Ip, addresses: &[u8], protocol: u8, len: u32) -> Sum {
        debug_assert_eq!(addresses.len(), if ip == Ip::V4 { 8 } else { 32 });
        self.add(addresses).add(&len.to_be_bytes()).add(&[0, protocol])
    }

    /// The sum as it stands in a frame where somebody else goes on with it: not complemented.
    pub(super) fn partial(self) -> [u8; 2] {
        fold(self.words).to_le_bytes()
    }

    /// The checksum, as it stands in a frame.
    pub fn finish(self) -> [u8; 2] {
        (!fold(self.words)).to_le_bytes()
    }
}

/// A sum in 16 bits, carries added.
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As RFC 1071 has it.
    fn by_the_book(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x1234_5678u32;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(len)
        .collect()
    }

    #[test]
    fn the_example_of_the_rfc_holds() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::new().add(&bytes).finish(), [0x22, 0x0d]);
        assert_eq!(Sum::new().add(&bytes).partial(), [0xdd, 0xf2]);
        assert_eq!(Sum::new().finish(), [0xff, 0xff]);
    }

    #[test]
    fn lengths_and_pieces_do_not_matter() {
        for len in [0, 1, 2, 3, 4, 5, 7, 8, 60, 1499, 65_535] {
            let bytes = noise(len);
            assert_eq!(Sum::new().add(&bytes).finish(), by_the_book(&bytes), "{len}");
            for at in [0, 1, 2, 3, len / 2, len.saturating_sub(1)] {
                let (first, rest) = bytes.split_at(at.min(len));
                let (second, third) = rest.split_at(rest.len() / 3);
                let sum = Sum::new().add(first).add(second).add(third);
                assert_eq!(sum.finish(), by_the_book(&bytes), "{len} at {at}");
            }
        }
        let ones = vec![0xff; 100_001];
        assert_eq!(Sum::new().add(&ones).finish(), by_the_book(&ones));
    }

    #[test]
    fn pseudo_headers_are_those_of_the_rfcs() {
        // Addresses, zero, protocol, length: RFC 793; and with a length of 32 bits: RFC 8200.
        let sum = Sum::new().add_pseudo_header(Ip::V4, &[10, 0, 0, 1, 10, 0, 0, 2], 6, 1000);
        assert_eq!(sum.finish(), by_the_book(&[10, 0, 0, 1, 10, 0, 0, 2, 0, 6, 0x03, 0xe8]));
        let addresses = noise(32);
        let sum = Sum::new().add_pseudo_header(Ip::V6, &addresses, 17, 0x1_0001);
        let book = [&addresses[..], &[0, 1, 0, 1, 0, 0, 0, 17]].concat();
        assert_eq!(sum.finish(), by_the_book(&book));
    }
}
