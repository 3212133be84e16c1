//! MODE SENSE and MODE SELECT (SPC-4 6.9 to 6.12, 7.5; SBC-3 6.5): the caching and control pages.
//!
//! One bit can be changed: SWP, software write protect. Whether there is a write cache is the operator's to say, who knows
//! what the disk is for.

use super::bytes::be16;
use super::plan::Unit;
use super::sense::Sense;

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0A;
const ALL: u8 = 0x3F;

/// Device-specific parameter: DPO and FUA are known.
const DPOFUA: u8 = 0x10;
/// Device-specific parameter: write protected.
const WRITE_PROTECTED: u8 = 0x80;

/// Longest parameter list of MODE SELECT that is taken: header, block descriptor and both pages, with room to spare.
pub const MAX_LIST: usize = 256;

/// Bytes of a block descriptor.
const DESCRIPTOR: usize = 8;
/// Where SWP lies in the body of the control page, and which bit it is.
const SWP: (usize, u8) = (2, 0x08);

/// What is asked for; the fields of [`super::Command::ModeSense`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// What can be changed, as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    /// SWP: the guest wants no writes of its own let through.
    pub write_protected: bool,
}

impl Modes {
    /// As they lie in the ledger.
    pub fn from_bits(bits: u8) -> Modes {
        Modes { write_protected: bits & 1 != 0 }
    }

    /// For the ledger.
    pub fn bits(self) -> u8 {
        u8::from(self.write_protected)
    }
}

/// The answer to MODE SENSE.
pub fn sense(unit: &Unit, modes: Modes, query: Query) -> Result<Vec<u8>, Sense> {
    if query.control == 3 {
        return Err(Sense::NO_SAVED_PARAMETERS);
    }
    if query.subpage != 0 && query.subpage != 0xFF {
        return Err(Sense::in_cdb(3));
    }
    let mut data = Vec::new();
    for page in pages(unit, modes, query.control) {
        if query.page == page.code || query.page == ALL {
            data.extend([page.code, page.current.len() as u8]);
            data.extend(if query.control == 1 { page.changeable } else { page.current });
        }
    }
    if data.is_empty() {
        return Err(Sense::in_cdb(2));
    }
    let descriptor = if query.no_descriptors { Vec::new() } else { block_descriptor(unit) };
    let protected = unit.read_only || modes.write_protected;
    let specific = DPOFUA | if protected { WRITE_PROTECTED } else { 0 };
    let rest = descriptor.len() + data.len();
    let header = if query.long {
        let [high, low] = ((rest + 6) as u16).to_be_bytes();
        vec![high, low, 0, specific, 0, 0, 0, descriptor.len() as u8]
    } else {
        vec![(rest + 3) as u8, 0, specific, descriptor.len() as u8]
    };
    Ok([header, descriptor, data].concat())
}

/// What MODE SELECT changes. `Err` is what the guest is told; nothing has changed then.
pub fn select(unit: &Unit, modes: Modes, long: bool, list: &[u8]) -> Result<Modes, Sense> {
    let header = if long { 8 } else { 4 };
    if list.len() < header {
        return Err(Sense::PARAMETER_LENGTH);
    }
    let descriptors = if long { usize::from(be16(&list[6..])) } else { usize::from(list[3]) };
    let mut at = header + descriptors;
    let (medium, long_lba) = if long { (list[2], list[4] & 1 != 0) } else { (list[1], false) };
    if medium != 0 || long_lba {
        return Err(Sense::in_list(if long { 2 } else { 1 }));
    }
    match list.get(header..at) {
        None => return Err(Sense::PARAMETER_LENGTH),
        Some([]) => {}
        Some(descriptor) if descriptor.len() == DESCRIPTOR => check_descriptor(unit, descriptor, header)?,
        Some(_) => return Err(Sense::in_list(if long { 6 } else { 3 })),
    }
    let mut changed = modes;
    while at < list.len() {
        let [code, len] = *list[at..].first_chunk().ok_or(Sense::PARAMETER_LENGTH)?;
        // PS is reserved here, and there are no sub-pages.
        let page = pages(unit, modes, 0).into_iter().find(|page| page.code == code);
        let page = page.ok_or(Sense::in_list(at as u16))?;
        if usize::from(len) != page.current.len() {
            return Err(Sense::in_list(at as u16 + 1));
        }
        let body = list[at + 2..].get(..page.current.len()).ok_or(Sense::PARAMETER_LENGTH)?;
        for (index, byte) in body.iter().enumerate() {
            if (byte ^ page.current[index]) & !page.changeable[index] != 0 {
                return Err(Sense::in_list((at + 2 + index) as u16));
            }
        }
        if code == CONTROL {
            changed.write_protected = body[SWP.0] & SWP.1 != 0;
        }
        at += 2 + body.len();
    }
    Ok(changed)
}

/// The disk cannot be formatted otherwise: the blocks' size has to be theirs, and their number all of them.
fn check_descriptor(unit: &Unit, descriptor: &[u8], at: usize) -> Result<(), Sense> {
    let now = block_descriptor(unit);
    let all =
        matches!(descriptor[..4], [0, 0, 0, 0] | [0xFF, 0xFF, 0xFF, 0xFF]) || descriptor[..4] == now[..4];
    match (all, descriptor[5..] == now[5..]) {
        (true, true) => Ok(()),
        (false, _) => Err(Sense::in_list(at as u16)),
        (true, false) => Err(Sense::in_list(at as u16 + 5)),
    }
}

/// A mode page, its bodies without the two bytes of its head.
struct Page {
    code: u8,
    current: Vec<u8>,
    changeable: Vec<u8>,
}

/// All pages; `control` 2: as they are by default.
fn pages(unit: &Unit, modes: Modes, control: u8) -> [Page; 2] {
    let modes = if control == 2 { Modes::default() } else { modes };
    let mut caching = vec![0; 0x12];
    // WCE: what is written may sit in a cache of the host's until it is flushed.
    caching[0] = if unit.write_cache && !unit.read_only { 0x04 } else { 0 };
    let mut current = vec![0; 0x0A];
    // Queue algorithm modifier 1: commands are reordered as we like.
    current[1] = 0x10;
    if modes.write_protected {
        current[SWP.0] |= SWP.1;
    }
    // BUSY TIMEOUT PERIOD: there is no limit.
    current[6..8].copy_from_slice(&[0xFF, 0xFF]);
    let mut changeable = vec![0; 0x0A];
    changeable[SWP.0] = SWP.1;
    [
        Page { code: CACHING, changeable: vec![0; caching.len()], current: caching },
        Page { code: CONTROL, current, changeable },
    ]
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

    const NONE: Modes = Modes { write_protected: false };
    const PROTECTED: Modes = Modes { write_protected: true };
    const CACHE: Query = Query { long: false, no_descriptors: true, control: 0, page: CACHING, subpage: 0 };

    #[test]
    fn linux_finds_the_write_cache() {
        let data = sense(&unit(), NONE, CACHE).unwrap();
        assert_eq!(data.len(), usize::from(data[0]) + 1);
        assert_eq!((data[2] & 0x10, data[4], data[5]), (0x10, 8, 0x12));
        assert_eq!(data[6] & 4, 4);
        let through = sense(&Unit { write_cache: false, ..unit() }, NONE, CACHE).unwrap();
        assert_eq!(through[6] & 4, 0);
    }

    #[test]
    fn all_pages_with_descriptor_in_the_long_form() {
        let data = sense(
            &Unit { read_only: true, ..unit() },
            NONE,
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
        let ask = |query| sense(&unit(), NONE, query);
        assert_eq!(ask(Query { page: 0x1C, ..CACHE }), Err(Sense::in_cdb(2)));
        assert_eq!(ask(Query { subpage: 1, ..CACHE }), Err(Sense::in_cdb(3)));
        assert_eq!(ask(Query { control: 3, ..CACHE }), Err(Sense::NO_SAVED_PARAMETERS));
        let mask = ask(Query { control: 1, ..CACHE }).unwrap();
        assert!(mask[6..].iter().all(|byte| *byte == 0));
    }

    /// What a guest does: asks for the page, changes a bit, clears PS and sends it back.
    fn set(long: bool, descriptors: bool, protected: bool) -> Result<Modes, Sense> {
        let query = Query { long, no_descriptors: !descriptors, page: ALL, ..CACHE };
        let modes = if protected { NONE } else { PROTECTED };
        let mut list = sense(&unit(), modes, query).unwrap();
        list[0] = 0;
        list[1] = 0;
        let last = list.len() - 10;
        list[last + SWP.0] ^= SWP.1;
        select(&unit(), modes, long, &list)
    }

    #[test]
    fn a_guest_can_protect_its_disk() {
        for long in [false, true] {
            for descriptors in [false, true] {
                assert_eq!(set(long, descriptors, true), Ok(PROTECTED));
                assert_eq!(set(long, descriptors, false), Ok(NONE));
            }
        }
        let page = Query { page: CONTROL, ..CACHE };
        let [now, mask, default] =
            [0, 1, 2].map(|control| sense(&unit(), PROTECTED, Query { control, ..page }).unwrap());
        assert_eq!((now[8], mask[8], default[8]), (8, 8, 0));
        assert_eq!(now[2] & 0x80, 0x80, "and it says so at the front");
    }

    #[test]
    fn nothing_else_can_be_set() {
        let select = |list: &[u8]| select(&unit(), NONE, false, list);
        let mut list = vec![0, 0, 0, 0, CONTROL, 10, 0, 0x10, 8, 0, 0, 0, 0xFF, 0xFF, 0, 0];
        assert_eq!(select(&list), Ok(PROTECTED));
        assert_eq!(select(&list[..4]), Ok(NONE));
        assert_eq!(select(&list[..3]), Err(Sense::PARAMETER_LENGTH));
        assert_eq!(select(&list[..15]), Err(Sense::PARAMETER_LENGTH));
        assert_eq!(select(&list[..5]), Err(Sense::PARAMETER_LENGTH));
        for (byte, wrong, pointer) in
            [(6, 4, 6), (5, 9, 5), (4, 0x8A, 4), (4, 0x1C, 4), (1, 1, 1), (3, 4, 3), (3, 8, 4)]
        {
            let mut list = list.clone();
            list[byte] = wrong;
            assert_eq!(select(&list), Err(Sense::in_list(pointer)), "{byte}");
        }
        list[3] = 200;
        assert_eq!(select(&list), Err(Sense::PARAMETER_LENGTH));
    }
}
