//! From a command to what has to be done about it: an answer that is ready, or I/O within the disk's bounds.

use super::cdb::Command;
use super::mode::Query;
use super::sense::Sense;
use super::{inquiry, mode, unmap};

/// Most bytes in one READ or WRITE. Told to the guest; bounds the page list of a request.
pub const MAX_TRANSFER: u32 = 512 * 1024;
/// Most blocks in one WRITE SAME; what Linux can say in the 10-byte form.
pub const MAX_WRITE_SAME_BLOCKS: u32 = 0xFFFF;

/// A logical unit as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Capacity in blocks; at least 1.
    pub blocks: u64,
    /// Bytes of a logical block: 512 or 4096.
    pub block_size: u32,
    /// Logical blocks in a physical one, as a power of two.
    pub physical_exponent: u8,
    /// The guest may not write.
    pub read_only: bool,
    /// Blocks can be deallocated.
    pub can_unmap: bool,
    /// Serial number, ASCII.
    pub serial: String,
    /// Name in the world of this guest; the lower 60 bits are used.
    pub naa: u64,
}

/// What has to be done. Offsets and lengths are in bytes and lie inside the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: success.
    Good,
    /// This is the answer; the guest gets as much of it as it has room for.
    Respond(Vec<u8>),
    /// Disk to guest.
    Read {
        /// Where.
        offset: u64,
        /// How much; not 0.
        len: u64,
    },
    /// Guest to disk.
    Write {
        /// Where.
        offset: u64,
        /// How much; not 0.
        len: u64,
        /// Stable before it is answered.
        fua: bool,
    },
    /// All completed writes to stable storage.
    Flush,
    /// Deallocate what the parameter list says, which is this long in bytes.
    Unmap {
        /// Not 0.
        list: usize,
    },
    /// Write one block over and over.
    WriteSame {
        /// Where.
        offset: u64,
        /// How much; not 0.
        len: u64,
        /// Zeroes may be deallocated.
        unmap: bool,
        /// The block is zeroes, there is no data.
        no_data: bool,
    },
}

/// What doing a command twice would do to the disk: a successor repeats what a dead process may have done already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// The same as doing it once: it is simply done again.
    Same,
    /// Something else (a reservation made twice, a comparison with what it has written itself): its outcome is recorded
    /// before the guest can see it, and a successor answers with that.
    Differs,
}

impl Plan {
    /// The class of a command. Each new one has to be thought about here.
    pub fn repeat(&self) -> Repeat {
        match self {
            // Questions.
            Plan::Good | Plan::Respond(_) | Plan::Read { .. } => Repeat::Same,
            // The guest neither changes the data nor writes these blocks otherwise before it has the answer.
            Plan::Write { .. } | Plan::WriteSame { .. } | Plan::Unmap { .. } => Repeat::Same,
            // More is flushed than was asked for.
            Plan::Flush => Repeat::Same,
        }
    }
}

/// What to do about a command to a unit. `luns` are all units of the target.
pub fn plan(unit: &Unit, luns: &[u8], cdb: &[u8]) -> Result<Plan, Sense> {
    match Command::parse(cdb)? {
        Command::TestUnitReady => Ok(Plan::Good),
        Command::StartStop { flush } => Ok(if flush && !unit.read_only { Plan::Flush } else { Plan::Good }),
        Command::RequestSense { descriptor, allocation } => {
            let sense = Sense::NONE;
            let data = if descriptor { sense.to_descriptor().to_vec() } else { sense.to_fixed().to_vec() };
            Ok(respond(data, allocation))
        }
        Command::Inquiry { page: None, allocation } => Ok(respond(inquiry::standard(), allocation)),
        Command::Inquiry { page: Some(page), allocation } => {
            Ok(respond(inquiry::page(unit, page)?, allocation))
        }
        Command::ModeSense { long, no_descriptors, control, page, subpage, allocation } => {
            let query = Query { long, no_descriptors, control, page, subpage };
            Ok(respond(mode::sense(unit, query)?, allocation))
        }
        Command::ReadCapacity10 => Ok(Plan::Respond(capacity_10(unit))),
        Command::ReadCapacity16 { allocation } => Ok(respond(capacity_16(unit), allocation)),
        Command::ReportLuns { select, allocation } => Ok(respond(report_luns(luns, select)?, allocation)),
        Command::Read { lba, blocks } => {
            let (offset, len) = extent(unit, lba, blocks.into())?;
            Ok(if len == 0 { Plan::Good } else { Plan::Read { offset, len } })
        }
        Command::Write { lba, blocks, fua } => {
            let (offset, len) = writable(unit)?.and_extent(lba, blocks)?;
            Ok(if len == 0 { Plan::Good } else { Plan::Write { offset, len, fua } })
        }
        Command::SynchronizeCache { lba, blocks } => {
            extent(unit, lba, blocks.into())?;
            // All of it, whatever the range: a file cannot be flushed by halves, and more is never wrong.
            Ok(if unit.read_only { Plan::Good } else { Plan::Flush })
        }
        Command::Verify { lba, blocks } => extent(unit, lba, blocks.into()).map(|_| Plan::Good),
        Command::Unmap { .. } if !unit.can_unmap => Err(Sense::INVALID_OPCODE),
        Command::Unmap { list } => {
            writable(unit)?;
            match list as usize {
                0 => Ok(Plan::Good),
                1..8 => Err(Sense::PARAMETER_LENGTH),
                list if list > unmap::MAX_LIST => Err(Sense::PARAMETER_LENGTH),
                list => Ok(Plan::Unmap { list }),
            }
        }
        Command::WriteSame { lba, blocks, unmap, no_data } => {
            let (offset, len) = writable(unit)?.and_extent(lba, blocks)?;
            if blocks == 0 || blocks > MAX_WRITE_SAME_BLOCKS || (unmap && !unit.can_unmap) {
                return Err(Sense::INVALID_FIELD);
            }
            Ok(Plan::WriteSame { offset, len, unmap, no_data })
        }
    }
}

/// What to say where there is no unit: enough for the guest to see that there is none. `None`: that there is
/// none. `luns` are the units of the target, none for targets that do not exist.
pub fn plan_without_unit(luns: &[u8], cdb: &[u8]) -> Option<Vec<u8>> {
    let (data, allocation) = match Command::parse(cdb).ok()? {
        Command::Inquiry { page: None, allocation } => (inquiry::standard_of_no_unit(), allocation),
        Command::ReportLuns { select, allocation } => (report_luns(luns, select).ok()?, allocation),
        _ => return None,
    };
    Some(cut(data, allocation))
}

fn cut(mut data: Vec<u8>, allocation: u32) -> Vec<u8> {
    data.truncate(allocation as usize);
    data
}

fn respond(data: Vec<u8>, allocation: u32) -> Plan {
    Plan::Respond(cut(data, allocation))
}

/// Offset and length in bytes of a range of blocks, if it lies on the disk.
fn extent(unit: &Unit, lba: u64, blocks: u64) -> Result<(u64, u64), Sense> {
    match lba.checked_add(blocks) {
        // Capacity in bytes fits an i64 (it is a file's size), so nothing inside it overflows.
        Some(end) if end <= unit.blocks => {
            Ok((lba * u64::from(unit.block_size), blocks * u64::from(unit.block_size)))
        }
        _ => Err(Sense::LBA_OUT_OF_RANGE),
    }
}

/// A unit that may be written to.
struct Writable<'a>(&'a Unit);

impl Writable<'_> {
    fn and_extent(&self, lba: u64, blocks: u32) -> Result<(u64, u64), Sense> {
        extent(self.0, lba, blocks.into())
    }
}

fn writable(unit: &Unit) -> Result<Writable<'_>, Sense> {
    if unit.read_only { Err(Sense::WRITE_PROTECTED) } else { Ok(Writable(unit)) }
}

fn capacity_10(unit: &Unit) -> Vec<u8> {
    let last = u32::try_from(unit.blocks - 1).unwrap_or(u32::MAX);
    [last.to_be_bytes(), unit.block_size.to_be_bytes()].concat()
}

fn capacity_16(unit: &Unit) -> Vec<u8> {
    let mut data = vec![0; 32];
    data[..8].copy_from_slice(&(unit.blocks - 1).to_be_bytes());
    data[8..12].copy_from_slice(&unit.block_size.to_be_bytes());
    data[13] = unit.physical_exponent & 0xF;
    // LBPME and LBPRZ.
    data[14] = if unit.can_unmap { 0xC0 } else { 0 };
    data
}

fn report_luns(luns: &[u8], select: u8) -> Result<Vec<u8>, Sense> {
    let luns = match select {
        0 | 2 => luns,
        // Well-known units only: there are none.
        1 => &[],
        _ => return Err(Sense::INVALID_FIELD),
    };
    let mut data = Vec::from((8 * luns.len() as u32).to_be_bytes());
    data.extend([0; 4]);
    for &lun in luns {
        // Peripheral device addressing.
        data.extend([0, lun, 0, 0, 0, 0, 0, 0]);
    }
    Ok(data)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A disk of 2048 blocks of 512 bytes.
    pub(crate) fn unit() -> Unit {
        Unit {
            blocks: 2048,
            block_size: 512,
            physical_exponent: 3,
            read_only: false,
            can_unmap: true,
            serial: "test-0".into(),
            naa: 0x1234,
        }
    }

    fn read_10(lba: u32, blocks: u16) -> [u8; 10] {
        let ([a, b, c, d], [e, f]) = (lba.to_be_bytes(), blocks.to_be_bytes());
        [0x28, 0, a, b, c, d, 0, e, f, 0]
    }

    fn run(cdb: &[u8]) -> Result<Plan, Sense> {
        plan(&unit(), &[0, 5], cdb)
    }

    #[test]
    fn reads_stay_on_the_disk() {
        assert_eq!(run(&read_10(2, 3)), Ok(Plan::Read { offset: 1024, len: 1536 }));
        assert_eq!(run(&read_10(2047, 1)), Ok(Plan::Read { offset: 2047 * 512, len: 512 }));
        assert_eq!(run(&read_10(2047, 2)), Err(Sense::LBA_OUT_OF_RANGE));
        assert_eq!(run(&read_10(2048, 0)), Ok(Plan::Good));
        assert_eq!(run(&read_10(2049, 0)), Err(Sense::LBA_OUT_OF_RANGE));
        let mut far = [0xFF; 16];
        (far[0], far[1]) = (0x88, 0);
        assert_eq!(run(&far), Err(Sense::LBA_OUT_OF_RANGE));
    }

    #[test]
    fn a_read_only_disk_is_not_written() {
        let unit = Unit { read_only: true, ..unit() };
        let mut write = read_10(0, 1);
        write[0] = 0x2A;
        let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
        let same = [0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        for cdb in [write, unmap, same] {
            assert_eq!(plan(&unit, &[0], &cdb), Err(Sense::WRITE_PROTECTED));
        }
        assert_eq!(plan(&unit, &[0], &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Ok(Plan::Good));
    }

    #[test]
    fn a_stop_writes_the_cache_first() {
        assert_eq!(run(&[0x1B, 0, 0, 0, 0, 0]), Ok(Plan::Flush));
        assert_eq!(run(&[0x1B, 0, 0, 0, 2, 0]), Ok(Plan::Flush), "an eject is a stop");
        for ends in [1, 3, 4, 0x20] {
            assert_eq!(run(&[0x1B, 0, 0, 0, ends, 0]), Ok(Plan::Good));
        }
    }

    #[test]
    fn capacities() {
        let Ok(Plan::Respond(ten)) = run(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]) else { panic!() };
        assert_eq!(ten, [0, 0, 7, 0xFF, 0, 0, 2, 0]);
        let huge = Unit { blocks: 1 << 40, ..unit() };
        assert_eq!(capacity_10(&huge)[..4], [0xFF; 4]);
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[13]) = (0x9E, 0x10, 32);
        let Ok(Plan::Respond(sixteen)) = run(&cdb) else { panic!() };
        assert_eq!((sixteen.len(), sixteen[7], sixteen[13], sixteen[14]), (32, 0xFF, 3, 0xC0));
    }

    #[test]
    fn units_are_listed() {
        let cdb = |allocation: u8, select| [0xA0, 0, select, 0, 0, 0, 0, 0, 0, allocation, 0, 0];
        let Ok(Plan::Respond(all)) = run(&cdb(255, 0)) else { panic!() };
        assert_eq!((all.len(), all[3], all[9], all[17]), (24, 16, 0, 5));
        let Ok(Plan::Respond(cut)) = run(&cdb(8, 0)) else { panic!() };
        assert_eq!((cut.len(), cut[3]), (8, 16), "the length says how much there would be");
        assert_eq!(run(&cdb(255, 9)), Err(Sense::INVALID_FIELD));
        assert_eq!(plan_without_unit(&[5], &cdb(255, 0)).unwrap().len(), 16);
        assert_eq!(plan_without_unit(&[], &cdb(255, 0)).unwrap(), [0; 8]);
    }

    #[test]
    fn where_there_is_no_unit_only_questions_are_answered() {
        assert_eq!(plan_without_unit(&[], &[0x12, 0, 0, 0, 36, 0]).unwrap()[0], 0x7F);
        assert_eq!(plan_without_unit(&[], &[0x12, 1, 0x80, 0, 36, 0]), None);
        assert_eq!(plan_without_unit(&[], &read_10(0, 1)), None);
        assert_eq!(plan_without_unit(&[], &[0; 6]), None);
    }

    #[test]
    fn write_same_has_limits() {
        let same = |blocks: u16, flags| {
            let [e, f] = blocks.to_be_bytes();
            run(&[0x41, flags, 0, 0, 0, 1, 0, e, f, 0])
        };
        assert_eq!(same(2, 8), Ok(Plan::WriteSame { offset: 512, len: 1024, unmap: true, no_data: false }));
        assert_eq!(same(0, 0), Err(Sense::INVALID_FIELD));
        assert_eq!(same(2048, 0), Err(Sense::LBA_OUT_OF_RANGE));
    }
}
