//! Commands: from the bytes of a CDB to a [`Command`], with every field that we do not support refused.

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
        /// The 10-byte form.
        long: bool,
        /// Without block descriptors.
        no_descriptors: bool,
        /// Current, changeable, default, saved.
        control: u8,
        /// Page, 0x3F: all.
        page: u8,
        /// Sub-page, 0xFF: all.
        subpage: u8,
        /// Room for the answer.
        allocation: u32,
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
    /// VERIFY 10, 12, 16 without data.
    Verify {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u32,
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
            0x1A => mode_sense_6(fixed(cdb)?),
            0x5A => mode_sense_10(fixed(cdb)?),
            // START 0, NO_FLUSH 0, POWER CONDITION 0: stop. (Other conditions leave the unit accessible.)
            0x1B => fixed::<6>(cdb).map(|c| Command::StartStop { flush: c[4] & 0xF5 == 0 }),
            0x25 => fixed::<10>(cdb).map(|_| Command::ReadCapacity10),
            0x9E => service_action_in(fixed(cdb)?),
            0xA0 => fixed::<12>(cdb).map(|c| Command::ReportLuns { select: c[2], allocation: be32(&c[6..]) }),
            0x08 => Extent::of_6(fixed(cdb)?).map(Extent::read),
            0x0A => Extent::of_6(fixed(cdb)?).map(Extent::write),
            0x28 => Extent::of_10(fixed(cdb)?).protected().map(Extent::read),
            0x2A => Extent::of_10(fixed(cdb)?).protected().map(Extent::write),
            0xA8 => Extent::of_12(fixed(cdb)?).protected().map(Extent::read),
            0xAA => Extent::of_12(fixed(cdb)?).protected().map(Extent::write),
            0x88 => Extent::of_16(fixed(cdb)?).protected().map(Extent::read),
            0x8A => Extent::of_16(fixed(cdb)?).protected().map(Extent::write),
            0x35 => Ok(Extent::of_10(fixed(cdb)?).synchronize()),
            0x91 => Ok(Extent::of_16(fixed(cdb)?).synchronize()),
            0x2F => Extent::of_10(fixed(cdb)?).protected().and_then(Extent::verify),
            0xAF => Extent::of_12(fixed(cdb)?).protected().and_then(Extent::verify),
            0x8F => Extent::of_16(fixed(cdb)?).protected().and_then(Extent::verify),
            0x41 => Extent::of_10(fixed(cdb)?).protected().and_then(Extent::write_same_10),
            0x93 => Extent::of_16(fixed(cdb)?).protected().and_then(Extent::write_same),
            0x42 => unmap(fixed(cdb)?),
            _ => Err(Sense::INVALID_OPCODE),
        }
    }
}

/// The first `N` bytes; a shorter CDB is none.
fn fixed<const N: usize>(cdb: &[u8]) -> Result<&[u8; N], Sense> {
    cdb.first_chunk().ok_or(Sense::INVALID_FIELD)
}

fn be16(bytes: &[u8]) -> u16 {
    bytes.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn be64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn inquiry(c: &[u8; 6]) -> Result<Command, Sense> {
    let vital = c[1] & 1 != 0;
    // CMDDT is obsolete, and a page without EVPD makes no sense.
    if c[1] & 2 != 0 || (!vital && c[2] != 0) {
        return Err(Sense::INVALID_FIELD);
    }
    Ok(Command::Inquiry { page: vital.then_some(c[2]), allocation: be16(&c[3..]).into() })
}

fn mode_sense_6(c: &[u8; 6]) -> Result<Command, Sense> {
    mode_sense(false, c[1], c[2], c[3], c[4].into())
}

fn mode_sense_10(c: &[u8; 10]) -> Result<Command, Sense> {
    mode_sense(true, c[1], c[2], c[3], be16(&c[7..]).into())
}

fn mode_sense(long: bool, flags: u8, page: u8, subpage: u8, allocation: u32) -> Result<Command, Sense> {
    let no_descriptors = flags & 8 != 0;
    let (control, page) = (page >> 6, page & 0x3F);
    Ok(Command::ModeSense { long, no_descriptors, control, page, subpage, allocation })
}

fn service_action_in(c: &[u8; 16]) -> Result<Command, Sense> {
    match c[1] & 0x1F {
        0x10 => Ok(Command::ReadCapacity16 { allocation: be32(&c[10..]) }),
        _ => Err(Sense::INVALID_FIELD),
    }
}

fn unmap(c: &[u8; 10]) -> Result<Command, Sense> {
    // ANCHOR: we have no anchored blocks.
    if c[1] & 1 != 0 {
        return Err(Sense::INVALID_FIELD);
    }
    Ok(Command::Unmap { list: be16(&c[7..]).into() })
}

/// The fields that commands on a range of blocks share.
#[derive(Clone, Copy)]
struct Extent {
    lba: u64,
    blocks: u32,
    /// Byte 1 of the CDB.
    flags: u8,
}

impl Extent {
    fn of_6(c: &[u8; 6]) -> Result<Extent, Sense> {
        let lba = u64::from(be32(&[0, c[1] & 0x1F, c[2], c[3]]));
        let blocks = if c[4] == 0 { 256 } else { c[4].into() };
        Ok(Extent { lba, blocks, flags: 0 })
    }

    fn of_10(c: &[u8; 10]) -> Extent {
        Extent { lba: be32(&c[2..]).into(), blocks: be16(&c[7..]).into(), flags: c[1] }
    }

    fn of_12(c: &[u8; 12]) -> Extent {
        Extent { lba: be32(&c[2..]).into(), blocks: be32(&c[6..]), flags: c[1] }
    }

    fn of_16(c: &[u8; 16]) -> Extent {
        Extent { lba: be64(&c[2..]), blocks: be32(&c[10..]), flags: c[1] }
    }

    /// Refuses protection information, which no disk of ours is formatted with.
    fn protected(self) -> Result<Extent, Sense> {
        if self.flags & 0xE0 == 0 { Ok(self) } else { Err(Sense::INVALID_FIELD) }
    }

    fn read(self) -> Command {
        Command::Read { lba: self.lba, blocks: self.blocks }
    }

    fn write(self) -> Command {
        Command::Write { lba: self.lba, blocks: self.blocks, fua: self.flags & 8 != 0 }
    }

    fn synchronize(self) -> Command {
        Command::SynchronizeCache { lba: self.lba, blocks: self.blocks }
    }

    fn verify(self) -> Result<Command, Sense> {
        // BYTCHK: a comparison with data is not offered.
        if self.flags & 6 != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        Ok(Command::Verify { lba: self.lba, blocks: self.blocks })
    }

    fn write_same_10(self) -> Result<Command, Sense> {
        // The 10-byte form has no NDOB: there its bit is obsolete and reserved.
        Extent { flags: self.flags & !1, ..self }.write_same()
    }

    fn write_same(self) -> Result<Command, Sense> {
        // ANCHOR, and the obsolete PBDATA and LBDATA.
        if self.flags & 0x16 != 0 {
            return Err(Sense::INVALID_FIELD);
        }
        let (unmap, no_data) = (self.flags & 8 != 0, self.flags & 1 != 0);
        Ok(Command::WriteSame { lba: self.lba, blocks: self.blocks, unmap, no_data })
    }
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
        assert_eq!(Command::parse(&protected), Err(Sense::INVALID_FIELD));
    }

    #[test]
    fn short_and_unknown_commands_are_told_apart() {
        assert_eq!(Command::parse(&[]), Err(Sense::INVALID_OPCODE));
        assert_eq!(Command::parse(&[0x28; 9]), Err(Sense::INVALID_FIELD));
        assert_eq!(Command::parse(&[0xFF; 16]), Err(Sense::INVALID_OPCODE));
        assert_eq!(Command::parse(&[0x9E; 16]), Err(Sense::INVALID_FIELD));
    }

    #[test]
    fn inquiry_fields() {
        let standard = Ok(Command::Inquiry { page: None, allocation: 0x124 });
        assert_eq!(Command::parse(&[0x12, 0, 0, 1, 0x24, 0]), standard);
        let page = Ok(Command::Inquiry { page: Some(0x83), allocation: 255 });
        assert_eq!(Command::parse(&[0x12, 1, 0x83, 0, 255, 0]), page);
        assert_eq!(Command::parse(&[0x12, 0, 0x83, 0, 255, 0]), Err(Sense::INVALID_FIELD));
    }

    #[test]
    fn write_same_forms() {
        let mut cdb = [0x93, 0x09, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0];
        let same = Command::WriteSame { lba: 7, blocks: 9, unmap: true, no_data: true };
        assert_eq!(Command::parse(&cdb), Ok(same));
        cdb[1] = 0x10;
        assert_eq!(Command::parse(&cdb), Err(Sense::INVALID_FIELD));
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
