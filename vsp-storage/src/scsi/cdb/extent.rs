//! Commands on a range of blocks: where their fields lie.

use super::super::bytes::{be16, be32, be64};
use super::super::sense::Sense;
use super::Command;

/// The fields that commands on a range of blocks share.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    lba: u64,
    blocks: u32,
    /// Byte 1 of the CDB.
    flags: u8,
}

impl Extent {
    pub fn of_6(c: &[u8; 6]) -> Result<Extent, Sense> {
        let lba = u64::from(be32(&[0, c[1] & 0x1F, c[2], c[3]]));
        let blocks = if c[4] == 0 { 256 } else { c[4].into() };
        Ok(Extent { lba, blocks, flags: 0 })
    }

    pub fn of_10(c: &[u8; 10]) -> Extent {
        Extent { lba: be32(&c[2..]).into(), blocks: be16(&c[7..]).into(), flags: c[1] }
    }

    pub fn of_12(c: &[u8; 12]) -> Extent {
        Extent { lba: be32(&c[2..]).into(), blocks: be32(&c[6..]), flags: c[1] }
    }

    pub fn of_16(c: &[u8; 16]) -> Extent {
        Extent { lba: be64(&c[2..]), blocks: be32(&c[10..]), flags: c[1] }
    }

    /// COMPARE AND WRITE is of a form of its own.
    pub fn of_compare(c: &[u8; 16]) -> Extent {
        Extent { lba: be64(&c[2..]), blocks: c[13].into(), flags: c[1] }
    }

    /// Refuses protection information, which no disk of ours is formatted with.
    pub fn protected(self) -> Result<Extent, Sense> {
        if self.flags & 0xE0 == 0 { Ok(self) } else { Err(Sense::in_cdb(1)) }
    }

    pub fn read(self) -> Command {
        Command::Read { lba: self.lba, blocks: self.blocks }
    }

    pub fn write(self) -> Command {
        Command::Write { lba: self.lba, blocks: self.blocks, fua: self.flags & 8 != 0 }
    }

    pub fn synchronize(self) -> Command {
        Command::SynchronizeCache { lba: self.lba, blocks: self.blocks }
    }

    pub fn pre_fetch(self) -> Command {
        Command::PreFetch { lba: self.lba, blocks: self.blocks }
    }

    /// BYTCHK: 0 no comparison, 1 with as much data as there are blocks. With one block over and over (3) is not offered.
    fn byte_check(self) -> Result<bool, Sense> {
        match self.flags >> 1 & 3 {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Sense::in_cdb(1)),
        }
    }

    pub fn verify(self) -> Result<Command, Sense> {
        Ok(Command::Verify { lba: self.lba, blocks: self.blocks, compare: self.byte_check()? })
    }

    pub fn write_verify(self) -> Result<Command, Sense> {
        Ok(Command::WriteVerify { lba: self.lba, blocks: self.blocks, compare: self.byte_check()? })
    }

    pub fn compare_and_write(self) -> Command {
        Command::CompareAndWrite { lba: self.lba, blocks: self.blocks, fua: self.flags & 8 != 0 }
    }

    pub fn write_same_10(self) -> Result<Command, Sense> {
        // The 10-byte form has no NDOB: there its bit is obsolete and reserved.
        Extent { flags: self.flags & !1, ..self }.write_same()
    }

    pub fn write_same(self) -> Result<Command, Sense> {
        // ANCHOR, and the obsolete PBDATA and LBDATA.
        if self.flags & 0x16 != 0 {
            return Err(Sense::in_cdb(1));
        }
        let (unmap, no_data) = (self.flags & 8 != 0, self.flags & 1 != 0);
        Ok(Command::WriteSame { lba: self.lba, blocks: self.blocks, unmap, no_data })
    }
}
