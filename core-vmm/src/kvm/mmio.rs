//! Accesses to addresses where no memory is.

/// An access in pieces that a device can have: of 1, 2, 4 or 8 bytes, and aligned. Where each begins, counted from the first byte, and how long it is.
///
/// KVM tells of at most eight bytes at a time.
pub fn pieces(gpa: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let left = len.checked_sub(at).filter(|left| *left > 0)?;
        let address = gpa.wrapping_add(at as u64);
        let aligned = 1 << address.trailing_zeros().min(3);
        let piece = aligned.min(1 << left.ilog2());
        let found = (address, at, piece);
        at += piece;
        Some(found)
    })
}

/// A value that a device gives for some bytes, as the guest's processor sees them.
pub fn fill(bytes: &mut [u8], value: u64) {
    for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
        *to = from;
    }
}

/// The reverse.
pub fn value(bytes: &[u8]) -> u64 {
    let mut all = [0; 8];
    for (to, from) in all.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_le_bytes(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_accesses_come_in_even_pieces() {
        let all = |gpa, len| pieces(gpa, len).map(|(gpa, _, len)| (gpa, len)).collect::<Vec<_>>();
        assert_eq!(all(0x1000, 4), [(0x1000, 4)]);
        assert_eq!(all(0x1000, 8), [(0x1000, 8)]);
        assert_eq!(all(0x1001, 4), [(0x1001, 1), (0x1002, 2), (0x1004, 1)]);
        assert_eq!(all(0x1000, 7), [(0x1000, 4), (0x1004, 2), (0x1006, 1)]);
        assert_eq!(all(0, 8), [(0, 8)]);
        assert_eq!(all(0x1000, 0), []);
        for gpa in 0..16 {
            for len in 0..=8 {
                let mut next = gpa;
                for (at, offset, piece) in pieces(gpa, len) {
                    assert!(at == next && at.is_multiple_of(piece as u64) && at - gpa == offset as u64);
                    next += piece as u64;
                }
                assert_eq!(next, gpa + len as u64);
            }
        }
    }

    #[test]
    fn bytes_are_values_and_back() {
        let mut bytes = [0; 3];
        fill(&mut bytes, 0x0403_0201);
        assert_eq!(bytes, [1, 2, 3]);
        assert_eq!(value(&bytes), 0x03_0201);
    }
}
