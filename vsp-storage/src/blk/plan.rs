//! From a request to an answer, or to work for the disk: what the guest has written is copied, checked against the disk, and used.

use std::sync::Arc;

use vhost_face::{Chain, GuestBuffer, GuestRam, Piece, cut};

use super::wire::{HEADER, Header, ID, RANGE, Range, SECTOR, kind, status};
use crate::job::Work;
use crate::scsi::Unit;
use crate::scsi::unmap::Blocks;
use crate::uring::Operation;

/// Most bytes of one READ or WRITE. No driver comes near it, and the kernel's counts are 32 bits wide.
const MAX_TRANSFER: u64 = 256 << 20;
/// Most sectors of a range to be discarded or zeroed: told to the guest, so that no request keeps a disk busy for long.
pub const MAX_RANGE: u32 = 1 << 21;
/// Most ranges in one DISCARD: told to the guest.
pub const MAX_DISCARDS: u32 = 64;

/// What becomes of a request.
pub(super) enum Planned {
    /// It has only begun.
    Start { work: Work, operation: Operation, status: u64, reads: bool },
    /// It is over: this status, and so much data, has been written.
    Answer { at: u64, status: u8, data: u32 },
    /// There is no place for a status.
    Nonsense(&'static str),
}

/// A request, taken apart.
pub(super) struct Asked<'a> {
    header: Header,
    chain: &'a Chain,
    ram: &'a Arc<GuestRam>,
    /// Where its status goes.
    status: u64,
}

/// What is wrong with a request, as its status.
struct Wrong(u8);

const WRONG: Wrong = Wrong(status::IOERR);
const UNKNOWN: Wrong = Wrong(status::UNSUPP);

/// What to do about a request for this disk. `stable`: what is written has to be stable when it is answered.
pub(super) fn plan(unit: &Unit, chain: &Chain, ram: &Arc<GuestRam>, stable: bool) -> Planned {
    let asked = match Asked::parse(chain, ram) {
        Ok(asked) => asked,
        Err(why) => return Planned::Nonsense(why),
    };
    let at = asked.status;
    let answer = |status, data| Planned::Answer { at, status, data };
    let start = |(work, operation), reads| Planned::Start { work, operation, status: at, reads };
    let planned = match asked.header.kind {
        kind::IN => {
            asked.transfer(unit, chain.writable(), 0, chain.bytes_writable() - 1).map(|found| match found {
                Some((offset, buffer)) => start(Work::read(0, offset, buffer), true),
                None => answer(status::OK, 0),
            })
        }
        kind::OUT => {
            let found = match unit.read_only {
                true => Err(WRONG),
                false => {
                    let len = chain.bytes_readable() - HEADER as u64;
                    asked.transfer(unit, chain.readable(), HEADER as u64, len)
                }
            };
            found.map(|found| match found {
                Some((offset, buffer)) => start(Work::write(0, offset, stable, buffer), false),
                None => answer(status::OK, 0),
            })
        }
        kind::FLUSH => Ok(start(Work::flush(0), false)),
        kind::GET_ID => asked.identify(unit).map(|len| answer(status::OK, len)),
        kind::DISCARD => asked.discard(unit, stable).map(|work| match work {
            Some(work) => start(work, false),
            None => answer(status::OK, 0),
        }),
        kind::WRITE_ZEROES => asked.zero(unit, stable).map(|work| match work {
            Some(work) => start(work, false),
            None => answer(status::OK, 0),
        }),
        _ => Err(UNKNOWN),
    };
    planned.unwrap_or_else(|Wrong(status)| answer(status, 0))
}

/// What a request asks for, if that can be told.
pub(super) fn kind(chain: &Chain, ram: &Arc<GuestRam>) -> Option<u32> {
    Asked::parse(chain, ram).ok().map(|asked| asked.header.kind)
}

impl<'a> Asked<'a> {
    fn parse(chain: &'a Chain, ram: &'a Arc<GuestRam>) -> Result<Asked<'a>, &'static str> {
        let status = Asked::status(chain).ok_or("no room for a status")?;
        ram.check(status, 1).map_err(|_| "its status is not in RAM")?;
        let mut bytes = [0; HEADER];
        let whole = copy(ram, chain.readable(), 0, &mut bytes).ok_or("its header is not in RAM")?;
        if !whole {
            return Err("no header");
        }
        Ok(Asked { header: Header::parse(&bytes), chain, ram, status })
    }

    /// Where the status of a request goes: the last byte that may be written.
    pub fn status(chain: &Chain) -> Option<u64> {
        let last = chain.writable().iter().rev().find(|piece| piece.len > 0)?;
        last.gpa.checked_add(u64::from(last.len) - 1)
    }

    /// The place and the memory of a READ or WRITE; `None` if it moves nothing.
    fn transfer(
        &self,
        unit: &Unit,
        pieces: &[Piece],
        from: u64,
        len: u64,
    ) -> Result<Option<(u64, GuestBuffer)>, Wrong> {
        if len > MAX_TRANSFER {
            return Err(WRONG);
        }
        let offset = place(unit, self.header.sector, len)?;
        if len == 0 {
            return Ok(None);
        }
        let buffer = GuestBuffer::new(self.ram, cut(pieces, from, len)).map_err(|_| WRONG)?;
        Ok(Some((offset, buffer)))
    }

    /// Gives the serial number; how many bytes.
    fn identify(&self, unit: &Unit) -> Result<u32, Wrong> {
        let mut id = [0; ID];
        let serial = unit.serial.as_bytes();
        let len = serial.len().min(ID);
        id[..len].copy_from_slice(&serial[..len]);
        let room = self.chain.bytes_writable() - 1;
        if room < ID as u64 {
            return Err(WRONG);
        }
        let buffer =
            GuestBuffer::new(self.ram, cut(self.chain.writable(), 0, ID as u64)).map_err(|_| WRONG)?;
        Ok(buffer.write(&id) as u32)
    }

    fn discard(&self, unit: &Unit, stable: bool) -> Result<Option<(Work, Operation)>, Wrong> {
        if !unit.can_unmap {
            return Err(UNKNOWN);
        }
        let count = self.ranges(MAX_DISCARDS)?;
        let mut blocks = Vec::with_capacity(count as usize);
        for index in 0..count {
            let range = self.range(index)?;
            if range.unmap || range.odd {
                return Err(UNKNOWN);
            }
            let (offset, len) = span(unit, &range)?;
            let (lba, count) = (offset / u64::from(unit.block_size), len / u64::from(unit.block_size));
            if count > 0 {
                blocks.push(Blocks { lba, count: u32::try_from(count).map_err(|_| WRONG)? });
            }
        }
        Ok(Work::unmap(0, blocks, unit.block_size, 0, stable || !unit.write_cache))
    }

    fn zero(&self, unit: &Unit, stable: bool) -> Result<Option<(Work, Operation)>, Wrong> {
        if unit.read_only {
            return Err(WRONG);
        }
        if self.ranges(1)? == 0 {
            return Ok(None);
        }
        let range = self.range(0)?;
        if range.odd {
            return Err(UNKNOWN);
        }
        let (offset, len) = span(unit, &range)?;
        if len == 0 {
            return Ok(None);
        }
        let block = vec![0; unit.block_size as usize].into_boxed_slice();
        let unmap = range.unmap && unit.can_unmap;
        Ok(Some(Work::same(0, offset, len, unmap, block, 0, stable || !unit.write_cache)))
    }

    /// How many ranges there are.
    fn ranges(&self, most: u32) -> Result<u32, Wrong> {
        let len = self.chain.bytes_readable() - HEADER as u64;
        let whole = len.is_multiple_of(RANGE as u64);
        u32::try_from(len / RANGE as u64).ok().filter(|count| whole && *count <= most).ok_or(WRONG)
    }

    fn range(&self, index: u32) -> Result<Range, Wrong> {
        let mut bytes = [0; RANGE];
        let from = (HEADER + RANGE * index as usize) as u64;
        match copy(self.ram, self.chain.readable(), from, &mut bytes) {
            Some(true) => Ok(Range::parse(&bytes)),
            _ => Err(WRONG),
        }
    }
}

/// Copies what lies `from` bytes behind the beginning of the pieces; false if they end before. `None`: it is not in RAM.
fn copy(ram: &GuestRam, pieces: &[Piece], from: u64, into: &mut [u8]) -> Option<bool> {
    let mut done = 0;
    for (gpa, len) in cut(pieces, from, into.len() as u64) {
        let len = len as usize;
        ram.read(gpa, &mut into[done..done + len]).ok()?;
        done += len;
    }
    Some(done == into.len())
}

/// The place of so many bytes from a sector on, if all of them are on the disk, in whole blocks.
fn place(unit: &Unit, sector: u64, len: u64) -> Result<u64, Wrong> {
    let block = u64::from(unit.block_size);
    let offset = sector.checked_mul(SECTOR).ok_or(WRONG)?;
    let end = offset.checked_add(len).ok_or(WRONG)?;
    let inside = end <= unit.blocks.saturating_mul(block);
    if inside && offset.is_multiple_of(block) && len.is_multiple_of(block) { Ok(offset) } else { Err(WRONG) }
}

/// The place and the length of a range.
fn span(unit: &Unit, range: &Range) -> Result<(u64, u64), Wrong> {
    if range.sectors > MAX_RANGE {
        return Err(WRONG);
    }
    let len = u64::from(range.sectors) * SECTOR;
    Ok((place(unit, range.sector, len)?, len))
}
