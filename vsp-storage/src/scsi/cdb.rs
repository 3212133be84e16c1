//! Commands: from the bytes of a CDB to a [`Command`], with every field that we do not support refused.

mod extent;

use self::extent::Extent;
use super::bytes::{be16, be32};
use super::mode::Query;
use super::opcodes::Subject;
use super::reserve::{Access, Action};
use super::sense::Sense;

/// A command that we know, its fields read and checked for form. Addresses and counts are in blocks,
/// `allocation` in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// TEST UNIT READY.
    TestUnitReady,
    /// REQUEST SENSE.
    RequestSense {
        /// Descriptor format is asked for.
        descriptor: bool,
        /// Room for the answer.
        allocation: u32,
    },
    /// INQUIRY.
    Inquiry {
        /// Vital product data page; `None`: standard data.
        page: Option<u8>,
        /// Room for the answer.
        allocation: u32,
    },
    /// MODE SENSE 6 and 10.
    ModeSense {
        /// What is asked for.
        query: Query,
        /// Room for the answer.
        allocation: u32,
    },
    /// MODE SELECT 6 and 10.
    ModeSelect {
        /// The 10-byte form.
        long: bool,
        /// Bytes of the parameter list.
        list: u32,
    },
    /// READ CAPACITY (10).
    ReadCapacity10,
    /// READ CAPACITY (16).
    ReadCapacity16 {
        /// Room for the answer.
        allocation: u32,
    },
    /// REPORT LUNS.
    ReportLuns {
        /// Which kinds of units.
        select: u8,
        /// Room for the answer.
        allocation: u32,
    },
    /// READ 6, 10, 12, 16.
    Read {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u32,
    },
    /// WRITE 6, 10, 12, 16.
    Write {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u32,
        /// On stable storage before it is answered.
        fua: bool,
    },
    /// SYNCHRONIZE CACHE 10, 16.
    SynchronizeCache {
        /// First block.
        lba: u64,
        /// Number of blocks; 0: to the end.
        blocks: u32,
    },
    /// PRE-FETCH 10, 16.
    PreFetch {
        /// First block.
        lba: u64,
        /// Number of blocks; 0: to the end.
        blocks: u32,
    },
    /// VERIFY 10, 12, 16.
    Verify {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u32,
        /// The disk is compared with data of the guest's.
        compare: bool,
    },
    /// WRITE AND VERIFY 10, 12, 16.
    WriteVerify {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u32,
        /// The disk is compared with what was written.
        compare: bool,
    },
    /// COMPARE AND WRITE.
    CompareAndWrite {
        /// First block.
        lba: u64,
        /// Number of blocks; there is twice as much data.
        blocks: u32,
        /// On stable storage before it is answered.
        fua: bool,
    },
    /// UNMAP.
    Unmap {
        /// Bytes of the parameter list.
        list: u32,
    },
    /// WRITE SAME 10, 16.
    WriteSame {
        /// First block.
        lba: u64,
        /// Number of blocks; 0 is refused later (we set WSNZ).
        blocks: u32,
        /// The blocks may be deallocated if the content is zero.
        unmap: bool,
        /// There is no data: zeroes are meant.
        no_data: bool,
    },
    /// PERSISTENT RESERVE IN.
    ReserveIn {
        /// Service action.
        action: u8,
        /// Room for the answer.
        allocation: u32,
    },
    /// PERSISTENT RESERVE OUT.
    ReserveOut {
        /// Service action.
        action: Action,
        /// Bytes of the parameter list.
        list: u32,
    },
    /// REPORT SUPPORTED OPERATION CODES.
    ReportOpcodes {
        /// Which.
        subject: Subject,
        /// With timeouts.
        timeouts: bool,
        /// Room for the answer.
        allocation: u32,
    },
    /// SEND DIAGNOSTIC: the default self-test.
    SelfTest,
    /// START STOP UNIT.
    StartStop {
        /// The unit is stopped, and its cache is to be written first.
        flush: bool,
    },
}

impl Command {
    /// Reads a command. `Err` is what the guest is told.
    pub fn parse(cdb: &[u8]) -> Result<Command, Sense> {
        let opcode = *cdb.first().ok_or(Sense::INVALID_OPCODE)?;
        match opcode {
            0x00 => fixed::<6>(cdb).map(|_| Command::TestUnitReady),
            0x03 => fixed::<6>(cdb)
                .map(|c| Command::RequestSense { descriptor: c[1] & 1 != 0, allocation: c[4].into() }),
            0x12 => inquiry(fixed(cdb)?),
            0x15 => fixed::<6>(cdb).and_then(|c| mode_select(false, c[1], c[4].into())),
            0x55 => fixed::<10>(cdb).and_then(|c| mode_select(true, c[1], be16(&c[7..]).into())),
            0x1A => fixed::<6>(cdb).map(|c| mode_sense(false, c, c[4].into())),
            0x5A => fixed::<10>(cdb).map(|c| mode_sense(true, c, be16(&c[7..]).into())),
            // START 0, NO_FLUSH 0, POWER CONDITION 0: stop. (Other conditions leave the unit accessible.)
            0x1B => fixed::<6>(cdb).map(|c| Command::StartStop { flush: c[4] & 0xF5 == 0 }),
            0x1D => send_diagnostic(fixed(cdb)?),
            0x25 => fixed::<10>(cdb).map(|_| Command::ReadCapacity10),
            0x9E => service_action_in(fixed(cdb)?),
            0xA0 => fixed::<12>(cdb).map(|c| Command::ReportLuns { select: c[2], allocation: be32(&c[6..]) }),
            0xA3 => maintenance_in(fixed(cdb)?),
            0x5E => reserve_in(fixed(cdb)?),
            0x5F => reserve_out(fixed(cdb)?),
            0x08 => Extent::of_6(fixed(cdb)?).map(Extent::read),
            0x0A => Extent::of_6(fixed(cdb)?).map(Extent::write),
            0x28 => Extent::of_10(fixed(cdb)?).protected().map(Extent::read),
            0x2A => Extent::of_10(fixed(cdb)?).protected().map(Extent::write),
            0xA8 => Extent::of_12(fixed(cdb)?).protected().map(Extent::read),
            0xAA => Extent::of_12(fixed(cdb)?).protected().map(Extent::write),
            0x88 => Extent::of_16(fixed(cdb)?).protected().map(Extent::read),
            0x8A => Extent::of_16(fixed(cdb)?).protected().map(Extent::write),
            0x34 => Ok(Extent::of_10(fixed(cdb)?).pre_fetch()),
            0x90 => Ok(Extent::of_16(fixed(cdb)?).pre_fetch()),
            0x35 => Ok(Extent::of_10(fixed(cdb)?).synchronize()),
            0x91 => Ok(Extent::of_16(fixed(cdb)?).synchronize()),
            0x2F => Extent::of_10(fixed(cdb)?).protected().and_then(Extent::verify),
            0xAF => Extent::of_12(fixed(cdb)?).protected().and_then(Extent::verify),
            0x8F => Extent::of_16(fixed(cdb)?).protected().and_then(Extent::verify),
            0x2E => Extent::of_10(fixed(cdb)?).protected().and_then(Extent::write_verify),
            0xAE => Extent::of_12(fixed(cdb)?).protected().and_then(Extent::write_verify),
            0x8E => Extent::of_16(fixed(cdb)?).protected().and_then(Extent::write_verify),
            0x89 => Extent::of_compare(fixed(cdb)?).protected().map(Extent::compare_and_write),
            0x41 => Extent::of_10(fixed(cdb)?).protected().and_then(Extent::write_same_10),
            0x93 => Extent::of_16(fixed(cdb)?).protected().and_then(Extent::write_same),
            0x42 => unmap(fixed(cdb)?),
            _ => Err(Sense::INVALID_OPCODE),
        }
    }

    /// What it does to the unit, as far as a reservation cares (SPC-4 table 49, SBC-3 table 13).
    pub fn access(&self) -> Access {
        match self {
            Command::TestUnitReady
            | Command::RequestSense { .. }
            | Command::Inquiry { .. }
            | Command::ModeSense { .. }
            | Command::ReadCapacity10
            | Command::ReadCapacity16 { .. }
            | Command::ReportLuns { .. }
            | Command::ReportOpcodes { .. }
            // These have rules of their own.
            | Command::ReserveIn { .. }
            | Command::ReserveOut { .. } => Access::Free,
            Command::Read { .. } | Command::Verify { .. } | Command::PreFetch { .. } => Access::Read,
            Command::Write { .. }
            | Command::WriteVerify { .. }
            | Command::CompareAndWrite { .. }
            | Command::WriteSame { .. }
            | Command::Unmap { .. }
            | Command::SynchronizeCache { .. }
            | Command::StartStop { .. }
            | Command::SelfTest
            | Command::ModeSelect { .. } => Access::Write,
        }
    }
}

/// The first `N` bytes; a shorter CDB is none. The last one is the control byte: of what it can ask for nothing is
/// supported (NACA).
fn fixed<const N: usize>(cdb: &[u8]) -> Result<&[u8; N], Sense> {
    const NACA: u8 = 4;
    let cdb: &[u8; N] = cdb.first_chunk().ok_or(Sense::INVALID_FIELD)?;
    if cdb[N - 1] & NACA != 0 {
        return Err(Sense::in_cdb(N as u16 - 1));
    }
    Ok(cdb)
}

fn inquiry(c: &[u8; 6]) -> Result<Command, Sense> {
    let vital = c[1] & 1 != 0;
    // CMDDT is obsolete.
    if c[1] & 2 != 0 {
        return Err(Sense::in_cdb(1));
    }
    // A page without EVPD makes no sense.
    if !vital && c[2] != 0 {
        return Err(Sense::in_cdb(2));
    }
    Ok(Command::Inquiry { page: vital.then_some(c[2]), allocation: be16(&c[3..]).into() })
}

fn mode_sense(long: bool, c: &[u8], allocation: u32) -> Command {
    let no_descriptors = c[1] & 8 != 0;
    let (control, page) = (c[2] >> 6, c[2] & 0x3F);
    let query = Query { long, no_descriptors, control, page, subpage: c[3] };
    Command::ModeSense { query, allocation }
}

fn mode_select(long: bool, flags: u8, list: u32) -> Result<Command, Sense> {
    // PF has to be set: there are no other formats. SP must not: nothing is saved.
    if flags & 0x11 != 0x10 {
        return Err(Sense::in_cdb(1));
    }
    Ok(Command::ModeSelect { long, list })
}

fn send_diagnostic(c: &[u8; 6]) -> Result<Command, Sense> {
    // Nothing but SELFTEST, and no parameters.
    if c[1] & !4 != 0 {
        return Err(Sense::in_cdb(1));
    }
    if c[3] != 0 || c[4] != 0 {
        return Err(Sense::in_cdb(3));
    }
    Ok(Command::SelfTest)
}

fn service_action_in(c: &[u8; 16]) -> Result<Command, Sense> {
    match c[1] & 0x1F {
        0x10 => Ok(Command::ReadCapacity16 { allocation: be32(&c[10..]) }),
        _ => Err(Sense::in_cdb(1)),
    }
}

fn maintenance_in(c: &[u8; 12]) -> Result<Command, Sense> {
    if c[1] & 0x1F != 0x0C {
        return Err(Sense::in_cdb(1));
    }
    let subject = Subject::parse(c[2] & 7, c[3], be16(&c[4..]))?;
    Ok(Command::ReportOpcodes { subject, timeouts: c[2] & 0x80 != 0, allocation: be32(&c[6..]) })
}

fn reserve_in(c: &[u8; 10]) -> Result<Command, Sense> {
    match c[1] & 0x1F {
        action @ 0..=3 => Ok(Command::ReserveIn { action, allocation: be16(&c[7..]).into() }),
        _ => Err(Sense::in_cdb(1)),
    }
}

fn reserve_out(c: &[u8; 10]) -> Result<Command, Sense> {
    Ok(Command::ReserveOut { action: Action::parse(c[1] & 0x1F, c[2])?, list: be32(&c[5..]) })
}

fn unmap(c: &[u8; 10]) -> Result<Command, Sense> {
    // ANCHOR: we have no anchored blocks.
    if c[1] & 1 != 0 {
        return Err(Sense::in_cdb(1));
    }
    Ok(Command::Unmap { list: be16(&c[7..]).into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_of_all_lengths() {
        let read = |lba, blocks| Ok(Command::Read { lba, blocks });
        assert_eq!(Command::parse(&[8, 0xE1, 2, 3, 0, 0]), read(0x10203, 256));
        assert_eq!(Command::parse(&[0x28, 0, 1, 2, 3, 4, 0, 5, 6, 0]), read(0x1020304, 0x506));
        assert_eq!(Command::parse(&[0xA8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]), read(0x1020304, 0x5060708));
        let long = [0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 9, 0, 0];
        assert_eq!(Command::parse(&long), read(0x102030405060708, 9));
    }

    #[test]
    fn writes_know_fua_and_refuse_protection() {
        let write = [0x2A, 8, 0, 0, 0, 1, 0, 0, 2, 0];
        assert_eq!(Command::parse(&write), Ok(Command::Write { lba: 1, blocks: 2, fua: true }));
        let protected = [0x2A, 0x20, 0, 0, 0, 1, 0, 0, 2, 0];
        assert_eq!(Command::parse(&protected), Err(Sense::in_cdb(1)));
    }

    #[test]
    fn short_and_unknown_commands_are_told_apart() {
        assert_eq!(Command::parse(&[]), Err(Sense::INVALID_OPCODE));
        assert_eq!(Command::parse(&[0x28; 9]), Err(Sense::INVALID_FIELD));
        assert_eq!(Command::parse(&[0xFF; 16]), Err(Sense::INVALID_OPCODE));
        assert_eq!(Command::parse(&[0x9A; 16]), Err(Sense::INVALID_OPCODE));
        assert_eq!(Command::parse(&[0x9E; 16]), Err(Sense::in_cdb(15)), "NACA");
        let mut unknown = [0; 16];
        (unknown[0], unknown[1]) = (0x9E, 0x12);
        assert_eq!(Command::parse(&unknown), Err(Sense::in_cdb(1)), "a service action that there is not");
    }

    #[test]
    fn inquiry_fields() {
        let standard = Ok(Command::Inquiry { page: None, allocation: 0x124 });
        assert_eq!(Command::parse(&[0x12, 0, 0, 1, 0x24, 0]), standard);
        let page = Ok(Command::Inquiry { page: Some(0x83), allocation: 255 });
        assert_eq!(Command::parse(&[0x12, 1, 0x83, 0, 255, 0]), page);
        assert_eq!(Command::parse(&[0x12, 0, 0x83, 0, 255, 0]), Err(Sense::in_cdb(2)));
    }

    #[test]
    fn write_same_forms() {
        let mut cdb = [0x93, 0x09, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0];
        let same = Command::WriteSame { lba: 7, blocks: 9, unmap: true, no_data: true };
        assert_eq!(Command::parse(&cdb), Ok(same));
        cdb[1] = 0x10;
        assert_eq!(Command::parse(&cdb), Err(Sense::in_cdb(1)));
    }

    #[test]
    fn verify_forms() {
        let verify = |flags| Command::parse(&[0x2F, flags, 0, 0, 0, 1, 0, 0, 2, 0]);
        assert_eq!(verify(0x10), Ok(Command::Verify { lba: 1, blocks: 2, compare: false }));
        assert_eq!(verify(0x02), Ok(Command::Verify { lba: 1, blocks: 2, compare: true }));
        assert_eq!(verify(0x04), Err(Sense::in_cdb(1)));
        assert_eq!(verify(0x06), Err(Sense::in_cdb(1)));
        let write = Command::parse(&[0xAE, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0]);
        assert_eq!(write, Ok(Command::WriteVerify { lba: 1, blocks: 2, compare: true }));
        let mut compare = [0; 16];
        (compare[0], compare[1], compare[9], compare[13]) = (0x89, 8, 7, 3);
        assert_eq!(Command::parse(&compare), Ok(Command::CompareAndWrite { lba: 7, blocks: 3, fua: true }));
    }

    #[test]
    fn mode_select_wants_pages_that_are_not_saved() {
        let select = |flags| Command::parse(&[0x15, flags, 0, 0, 24, 0]);
        assert_eq!(select(0x10), Ok(Command::ModeSelect { long: false, list: 24 }));
        assert_eq!(select(0x11), Err(Sense::in_cdb(1)));
        assert_eq!(select(0x00), Err(Sense::in_cdb(1)));
    }

    #[test]
    fn every_opcode_at_every_length_is_answered() {
        for opcode in 0..=255 {
            for filling in [0, 0x5A, 0xFF] {
                for len in 1..=16 {
                    let mut cdb = vec![filling; len];
                    cdb[0] = opcode;
                    let _ = Command::parse(&cdb);
                }
            }
        }
    }
}
