//! MODE SENSE (SPC-4 6.11, 7.5; SBC-3 6.5): the caching and control pages.

use super::plan::Unit;
use super::sense::Sense;

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0A;
const ALL: u8 = 0x3F;

/// Device-specific parameter: DPO and FUA are known.
const DPOFUA: u8 = 0x10;
/// Device-specific parameter: write protected.
const WRITE_PROTECTED: u8 = 0x80;

/// What is asked for; the fields of [`super::Command::ModeSense`].
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// The 10-byte form.
    pub long: bool,
    /// Without block descriptors.
    pub no_descriptors: bool,
    /// Current 0, changeable 1, default 2, saved 3.
    pub control: u8,
    /// Page.
    pub page: u8,
    /// Sub-page.
    pub subpage: u8,
}

/// The answer.
pub fn sense(unit: &Unit, query: Query) -> Result<Vec<u8>, Sense> {
    if query.control == 3 {
        return Err(Sense::NO_SAVED_PARAMETERS);
    }
    if query.subpage != 0 && query.subpage != 0xFF {
        return Err(Sense::INVALID_FIELD);
    }
    let mut pages = Vec::new();
    for (code, page) in [(CACHING, caching(unit)), (CONTROL, control())] {
        if query.page == code || query.page == ALL {
            pages.extend([code, page.len() as u8]);
            // Nothing can be changed, so the mask of what can be is zeroes.
            pages.extend(page.iter().map(|byte| if query.control == 1 { 0 } else { *byte }));
        }
    }
    if pages.is_empty() {
        return Err(Sense::INVALID_FIELD);
    }
    let descriptor = if query.no_descriptors { Vec::new() } else { block_descriptor(unit) };
    let specific = DPOFUA | if unit.read_only { WRITE_PROTECTED } else { 0 };
    let rest = descriptor.len() + pages.len();
    let mut data = if query.long {
        let [high, low] = ((rest + 6) as u16).to_be_bytes();
        vec![high, low, 0, specific, 0, 0, 0, descriptor.len() as u8]
    } else {
        vec![(rest + 3) as u8, 0, specific, descriptor.len() as u8]
    };
    data.extend(descriptor);
    data.extend(pages);
    Ok(data)
}

fn caching(unit: &Unit) -> Vec<u8> {
    let mut page = vec![0; 0x12];
    // WCE: what is written may sit in the host's page cache until it is flushed.
    page[0] = if unit.read_only { 0 } else { 0x04 };
    page
}

fn control() -> Vec<u8> {
    let mut page = vec![0; 0x0A];
    // Queue algorithm modifier 1: commands are reordered as we like.
    page[1] = 0x10;
    page
}

fn block_descriptor(unit: &Unit) -> Vec<u8> {
    let blocks = u32::try_from(unit.blocks).unwrap_or(u32::MAX);
    let mut descriptor = Vec::from(blocks.to_be_bytes());
    descriptor.extend(unit.block_size.to_be_bytes());
    descriptor
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::plan::tests::unit;

    const CACHE: Query = Query { long: false, no_descriptors: true, control: 0, page: CACHING, subpage: 0 };

    #[test]
    fn linux_finds_the_write_cache() {
        let data = sense(&unit(), CACHE).unwrap();
        assert_eq!(data.len(), usize::from(data[0]) + 1);
        assert_eq!((data[2] & 0x10, data[4], data[5]), (0x10, 8, 0x12));
        assert_eq!(data[6] & 4, 4);
    }

    #[test]
    fn all_pages_with_descriptor_in_the_long_form() {
        let data = sense(
            &Unit { read_only: true, ..unit() },
            Query { long: true, no_descriptors: false, page: ALL, ..CACHE },
        )
        .unwrap();
        assert_eq!(usize::from(u16::from_be_bytes([data[0], data[1]])), data.len() - 2);
        assert_eq!(data[3] & 0x80, 0x80);
        assert_eq!(data[7], 8);
        assert_eq!(data[12..16], 512u32.to_be_bytes());
        assert_eq!((data[16], data[36]), (8, 10));
    }

    #[test]
    fn what_we_do_not_have_is_refused() {
        assert_eq!(sense(&unit(), Query { page: 0x1C, ..CACHE }), Err(Sense::INVALID_FIELD));
        assert_eq!(sense(&unit(), Query { subpage: 1, ..CACHE }), Err(Sense::INVALID_FIELD));
        assert_eq!(sense(&unit(), Query { control: 3, ..CACHE }), Err(Sense::NO_SAVED_PARAMETERS));
        let mask = sense(&unit(), Query { control: 1, ..CACHE }).unwrap();
        assert!(mask[6..].iter().all(|byte| *byte == 0));
    }
}
