//! The parameter list of UNMAP (SBC-3 5.28).

use super::sense::Sense;

/// Most descriptors in a list; told to the guest in VPD page B0.
pub const MAX_DESCRIPTORS: u32 = 64;
/// Most blocks in all descriptors together; told to the guest in VPD page B0. Bounds how long one command can
/// keep a disk busy.
pub const MAX_BLOCKS: u32 = 1 << 20;
/// Bytes of the longest list that is taken.
pub const MAX_LIST: usize = 8 + 16 * MAX_DESCRIPTORS as usize;

/// A range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// First block.
    pub lba: u64,
    /// Number of blocks, not 0.
    pub count: u32,
}

/// Reads the list for a disk of `capacity` blocks. Empty ranges are left out. `Err` is what the guest is told.
pub fn parse(list: &[u8], capacity: u64) -> Result<Vec<Blocks>, Sense> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let header: &[u8; 8] = list.first_chunk().ok_or(Sense::PARAMETER_LENGTH)?;
    let bytes = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let descriptors = list[8..].get(..bytes).ok_or(Sense::PARAMETER_LENGTH)?;
    if descriptors.len() / 16 > MAX_DESCRIPTORS as usize {
        return Err(Sense::INVALID_PARAMETER);
    }
    let mut ranges = Vec::with_capacity(descriptors.len() / 16);
    let mut total = 0u32;
    for descriptor in descriptors.as_chunks::<16>().0 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *descriptor;
        let range = Blocks {
            lba: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            count: u32::from_be_bytes([i, j, k, l]),
        };
        let end = range.lba.checked_add(range.count.into()).ok_or(Sense::LBA_OUT_OF_RANGE)?;
        if end > capacity {
            return Err(Sense::LBA_OUT_OF_RANGE);
        }
        total = total
            .checked_add(range.count)
            .filter(|total| *total <= MAX_BLOCKS)
            .ok_or(Sense::INVALID_PARAMETER)?;
        if range.count > 0 {
            ranges.push(range);
        }
    }
    Ok(ranges)
}

/// Builds a list; for tests.
pub fn list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let bytes = 16 * ranges.len() as u16;
    let mut list = Vec::from((bytes + 6).to_be_bytes());
    list.extend(bytes.to_be_bytes());
    list.extend([0; 4]);
    for (lba, count) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read() {
        let ranges = parse(&list(&[(5, 3), (9, 0), (0, 100)]), 100).unwrap();
        assert_eq!(ranges, [Blocks { lba: 5, count: 3 }, Blocks { lba: 0, count: 100 }]);
        assert_eq!(parse(&[], 100), Ok(vec![]));
        assert_eq!(parse(&list(&[]), 100), Ok(vec![]));
    }

    #[test]
    fn lists_that_lie_are_refused() {
        assert_eq!(parse(&[0; 7], 100), Err(Sense::PARAMETER_LENGTH));
        let mut short = list(&[(0, 1), (1, 1)]);
        short.truncate(39);
        assert_eq!(parse(&short, 100), Err(Sense::PARAMETER_LENGTH));
        assert_eq!(parse(&list(&[(100, 1)]), 100), Err(Sense::LBA_OUT_OF_RANGE));
        assert_eq!(parse(&list(&[(u64::MAX, 2)]), 100), Err(Sense::LBA_OUT_OF_RANGE));
        assert_eq!(parse(&list(&[(0, MAX_BLOCKS), (0, 1)]), u64::MAX), Err(Sense::INVALID_PARAMETER));
        assert_eq!(parse(&list(&[(0, u32::MAX), (0, u32::MAX)]), u64::MAX), Err(Sense::INVALID_PARAMETER));
        assert_eq!(parse(&list(&[(0, 1); 65]), 100), Err(Sense::INVALID_PARAMETER));
    }
}
