//! From a command to what has to be done about it: an answer that is ready, or I/O within the disk's bounds.

use super::answers::{capacity_10, capacity_16, report_luns, request_sense};
use super::cdb::Command;
use super::condition::Condition;
use super::reserve::Action;
use super::sense::Sense;
use super::{inquiry, mode, opcodes, reserve, unmap};

/// Most bytes in one READ or WRITE. Told to the guest; bounds the page list of a request.
pub const MAX_TRANSFER: u32 = 512 * 1024;
/// Most bytes that one COMPARE AND WRITE compares. Told to the guest; bounds what a process holds of each unit, and how much
/// is written again by a successor.
pub const MAX_COMPARE: u32 = 64 * 1024;
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
    /// What is written may be lost until it has been flushed.
    pub write_cache: bool,
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
    /// Guest to disk, stable, and read again.
    WriteVerify {
        /// Where.
        offset: u64,
        /// How much; not 0.
        len: u64,
        /// What is read has to be what was written.
        compare: bool,
    },
    /// The disk is read, by us alone.
    Verify {
        /// Where.
        offset: u64,
        /// How much; not 0.
        len: u64,
        /// What is read has to be the guest's data.
        compare: bool,
    },
    /// The first half of the guest's data is compared with the disk; if it is the same the second half is written.
    CompareAndWrite {
        /// Where.
        offset: u64,
        /// How much, half of the data.
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
    /// Change a mode page as the parameter list says.
    ModeSelect {
        /// The 10-byte form.
        long: bool,
        /// Bytes of the list; not 0.
        list: usize,
    },
    /// Change registrations or the reservation as the parameter list says.
    Reserve {
        /// How.
        action: Action,
        /// Bytes of the list.
        list: usize,
    },
}

/// What doing a command twice would do to the disk: a successor repeats what a dead process may have done already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// The same as doing it once: it is simply done again.
    Same,
    /// Something else (a comparison with what it has written itself). That its effect has begun is recorded before it does, and
    /// its outcome before the guest can see it: a successor goes on from there.
    Differs,
}

impl Plan {
    /// The class of a command. Each new one has to be thought about here.
    pub fn repeat(&self) -> Repeat {
        match self {
            // Questions.
            Plan::Good | Plan::Respond(_) | Plan::Read { .. } | Plan::Verify { .. } => Repeat::Same,
            // The guest neither changes the data nor writes these blocks otherwise before it has the answer.
            Plan::Write { .. } | Plan::WriteVerify { .. } | Plan::WriteSame { .. } | Plan::Unmap { .. } => {
                Repeat::Same
            }
            // What they change is device state, which becomes true in the same step as their answer: there is no effect
            // that a predecessor could have left behind.
            Plan::ModeSelect { .. } | Plan::Reserve { .. } => Repeat::Same,
            Plan::CompareAndWrite { .. } => Repeat::Differs,
            // More is flushed than was asked for.
            Plan::Flush => Repeat::Same,
        }
    }
}

impl Plan {
    /// Whether it has to have the unit to itself: because nobody may come between a comparison and what follows from it, and
    /// because it takes memory of ours, of which there is one piece a unit.
    pub fn is_exclusive(&self) -> bool {
        matches!(self, Plan::CompareAndWrite { .. } | Plan::Verify { .. } | Plan::WriteVerify { .. })
    }
}

/// What to do about a CDB for a unit in this condition. `luns` are all units of the target.
pub fn plan(unit: &Unit, condition: &Condition, luns: &[u8], cdb: &[u8]) -> Result<Plan, Sense> {
    plan_command(unit, condition, luns, Command::parse(cdb)?)
}

/// What to do about a command for a unit in this condition. `luns` are all units of the target.
pub fn plan_command(
    unit: &Unit,
    condition: &Condition,
    luns: &[u8],
    command: Command,
) -> Result<Plan, Sense> {
    let on_disk = OnDisk { unit, condition };
    match command {
        Command::TestUnitReady | Command::SelfTest => Ok(Plan::Good),
        Command::StartStop { flush } => Ok(if flush && !unit.read_only { Plan::Flush } else { Plan::Good }),
        Command::RequestSense { descriptor, allocation } => {
            Ok(respond(request_sense(condition, descriptor), allocation))
        }
        Command::Inquiry { page: None, allocation } => Ok(respond(inquiry::standard(), allocation)),
        Command::Inquiry { page: Some(page), allocation } => {
            Ok(respond(inquiry::page(unit, page)?, allocation))
        }
        Command::ModeSense { query, allocation } => {
            Ok(respond(mode::sense(unit, condition.modes, query)?, allocation))
        }
        Command::ModeSelect { list: 0, .. } => Ok(Plan::Good),
        Command::ModeSelect { long, list } => match list as usize {
            list if list > mode::MAX_LIST => Err(Sense::PARAMETER_LENGTH),
            list => Ok(Plan::ModeSelect { long, list }),
        },
        Command::ReadCapacity10 => Ok(Plan::Respond(capacity_10(unit))),
        Command::ReadCapacity16 { allocation } => Ok(respond(capacity_16(unit), allocation)),
        Command::ReportLuns { select, allocation } => Ok(respond(report_luns(luns, select)?, allocation)),
        Command::ReportOpcodes { subject, timeouts, allocation } => {
            Ok(respond(opcodes::report(subject, timeouts, unit.can_unmap)?, allocation))
        }
        Command::ReserveIn { action, allocation } => {
            Ok(respond(reserve::report(&condition.registry, action)?, allocation))
        }
        Command::ReserveOut { action, list } => match list as usize {
            list if !(reserve::LIST..=reserve::MAX_LIST).contains(&list) => Err(Sense::PARAMETER_LENGTH),
            list => Ok(Plan::Reserve { action, list }),
        },
        Command::Read { lba, blocks } => match on_disk.transfer(lba, blocks)? {
            (_, 0) => Ok(Plan::Good),
            (offset, len) => Ok(Plan::Read { offset, len }),
        },
        Command::Write { lba, blocks, fua } => match on_disk.writable()?.transfer(lba, blocks)? {
            (_, 0) => Ok(Plan::Good),
            (offset, len) => Ok(Plan::Write { offset, len, fua }),
        },
        Command::WriteVerify { lba, blocks, compare } => match on_disk.writable()?.transfer(lba, blocks)? {
            (_, 0) => Ok(Plan::Good),
            (offset, len) => Ok(Plan::WriteVerify { offset, len, compare }),
        },
        Command::Verify { lba, blocks, compare } => match on_disk.transfer(lba, blocks)? {
            (_, 0) => Ok(Plan::Good),
            (offset, len) => Ok(Plan::Verify { offset, len, compare }),
        },
        Command::CompareAndWrite { lba, blocks, fua } => {
            let (offset, len) = on_disk.writable()?.extent(lba, blocks)?;
            if len > MAX_COMPARE.into() {
                return Err(Sense::in_cdb(13));
            }
            Ok(Plan::CompareAndWrite { offset, len, fua })
        }
        // A hint: the host's page cache knows what to read ahead.
        Command::PreFetch { lba, blocks } => on_disk.extent(lba, blocks).map(|_| Plan::Good),
        Command::SynchronizeCache { lba, blocks } => {
            on_disk.extent(lba, blocks)?;
            // All of it, whatever the range: a file cannot be flushed by halves, and more is never wrong.
            Ok(if unit.read_only { Plan::Good } else { Plan::Flush })
        }
        Command::Unmap { .. } if !unit.can_unmap && !unit.read_only => Err(Sense::INVALID_OPCODE),
        Command::Unmap { list } => {
            on_disk.writable()?;
            match list as usize {
                0 => Ok(Plan::Good),
                1..8 => Err(Sense::PARAMETER_LENGTH),
                list if list > unmap::MAX_LIST => Err(Sense::PARAMETER_LENGTH),
                list => Ok(Plan::Unmap { list }),
            }
        }
        Command::WriteSame { lba, blocks, unmap, no_data } => {
            let (offset, len) = on_disk.writable()?.extent(lba, blocks)?;
            if blocks == 0 || blocks > MAX_WRITE_SAME_BLOCKS {
                return Err(Sense::INVALID_FIELD);
            }
            if unmap && !unit.can_unmap {
                return Err(Sense::in_cdb(1));
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

/// A unit's blocks.
#[derive(Clone, Copy)]
struct OnDisk<'a> {
    unit: &'a Unit,
    condition: &'a Condition,
}

impl OnDisk<'_> {
    /// Offset and length in bytes of a range of blocks, if it lies on the disk.
    fn extent(self, lba: u64, blocks: u32) -> Result<(u64, u64), Sense> {
        let (unit, blocks) = (self.unit, u64::from(blocks));
        match lba.checked_add(blocks) {
            // Capacity in bytes fits an i64 (it is a file's size), so nothing inside it overflows.
            Some(end) if end <= unit.blocks => {
                Ok((lba * u64::from(unit.block_size), blocks * u64::from(unit.block_size)))
            }
            _ => Err(Sense::LBA_OUT_OF_RANGE),
        }
    }

    /// The same of what is moved or read at a time.
    fn transfer(self, lba: u64, blocks: u32) -> Result<(u64, u64), Sense> {
        let (offset, len) = self.extent(lba, blocks)?;
        if len > MAX_TRANSFER.into() { Err(Sense::INVALID_FIELD) } else { Ok((offset, len)) }
    }

    /// If it may be written to.
    fn writable(self) -> Result<Self, Sense> {
        if self.unit.read_only {
            return Err(Sense::WRITE_PROTECTED);
        }
        if self.condition.modes.write_protected {
            return Err(Sense::SOFTWARE_WRITE_PROTECTED);
        }
        Ok(self)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::scsi::attention::Attention;
    use crate::scsi::mode::Modes;

    /// A disk of 2048 blocks of 512 bytes.
    pub(crate) fn unit() -> Unit {
        Unit {
            blocks: 2048,
            block_size: 512,
            physical_exponent: 3,
            read_only: false,
            can_unmap: true,
            write_cache: true,
            serial: "test-0".into(),
            naa: 0x1234,
        }
    }

    fn read_10(lba: u32, blocks: u16) -> [u8; 10] {
        let ([a, b, c, d], [e, f]) = (lba.to_be_bytes(), blocks.to_be_bytes());
        [0x28, 0, a, b, c, d, 0, e, f, 0]
    }

    fn run(cdb: &[u8]) -> Result<Plan, Sense> {
        plan(&unit(), &Condition::default(), &[0, 5], cdb)
    }

    #[test]
    fn reads_stay_on_the_disk() {
        assert_eq!(run(&read_10(2, 3)), Ok(Plan::Read { offset: 1024, len: 1536 }));
        assert_eq!(run(&read_10(2047, 1)), Ok(Plan::Read { offset: 2047 * 512, len: 512 }));
        assert_eq!(run(&read_10(2047, 2)), Err(Sense::LBA_OUT_OF_RANGE));
        assert_eq!(run(&read_10(2048, 0)), Ok(Plan::Good));
        assert_eq!(run(&read_10(2049, 0)), Err(Sense::LBA_OUT_OF_RANGE));
        let mut far = [0xFF; 16];
        (far[0], far[1], far[15]) = (0x88, 0, 0);
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
            assert_eq!(plan(&unit, &Condition::default(), &[0], &cdb), Err(Sense::WRITE_PROTECTED));
        }
        let flush = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(plan(&unit, &Condition::default(), &[0], &flush), Ok(Plan::Good));
    }

    #[test]
    fn a_guest_that_has_protected_its_disk_gets_its_own_sense() {
        let modes = Modes { write_protected: true };
        let condition = Condition { modes, ..Condition::default() };
        let ask = |cdb: &[u8]| plan(&unit(), &condition, &[0], cdb);
        let mut write = read_10(0, 1);
        write[0] = 0x2A;
        assert_eq!(ask(&write), Err(Sense::SOFTWARE_WRITE_PROTECTED));
        assert!(ask(&read_10(0, 1)).is_ok());
    }

    #[test]
    fn what_is_pending_is_what_request_sense_says() {
        let mut condition = Condition::default();
        condition.attentions.raise(Attention::CapacityChanged);
        let ask = |condition, flags| plan(&unit(), condition, &[0], &[3, flags, 0, 0, 252, 0]);
        let Ok(Plan::Respond(data)) = ask(&condition, 0) else { panic!() };
        assert_eq!((data[2], data[12], data[13]), (6, 0x2A, 9));
        let Ok(Plan::Respond(data)) = ask(&condition, 1) else { panic!() };
        assert_eq!(data[..4], [0x72, 6, 0x2A, 9]);
        let Ok(Plan::Respond(data)) = ask(&Condition::default(), 0) else { panic!() };
        assert_eq!((data[2], data[12]), (0, 0));
    }

    #[test]
    fn verifying_and_comparing_have_limits() {
        let verify = |flags, lba, blocks: u16| {
            let mut cdb = read_10(lba, blocks);
            (cdb[0], cdb[1]) = (0x2F, flags);
            run(&cdb)
        };
        assert_eq!(verify(2, 1, 2), Ok(Plan::Verify { offset: 512, len: 1024, compare: true }));
        assert_eq!(verify(0, 2048, 0), Ok(Plan::Good));
        assert_eq!(verify(0, 2049, 0), Err(Sense::LBA_OUT_OF_RANGE));
        assert_eq!(verify(0, 0, 1025), Err(Sense::INVALID_FIELD));
        let compare = |lba: u8, blocks: u8| run(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, blocks, 0, 0]);
        let planned = compare(3, 2).unwrap();
        assert_eq!(planned, Plan::CompareAndWrite { offset: 1536, len: 1024, fua: false });
        assert!(planned.is_exclusive() && planned.repeat() == Repeat::Differs);
        assert_eq!(compare(0, 129), Err(Sense::in_cdb(13)));
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
        assert_eq!(run(&cdb(255, 9)), Err(Sense::in_cdb(2)));
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
