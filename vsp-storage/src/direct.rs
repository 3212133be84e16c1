//! Past the page cache: what `O_DIRECT` asks of addresses and offsets.

use std::fs::File;
use std::io;

use rustix::fs::{AtFlags, StatxFlags, statx};

/// What is assumed where the kernel does not say (before Linux 6.1, and some file systems): the smallest sector.
const USUAL: u32 = 512;

/// What reads and writes have to be aligned to, in bytes; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direct {
    /// Addresses of memory.
    pub memory: u32,
    /// Offsets in the file, and the length of each piece of memory.
    pub offset: u32,
}

impl Direct {
    /// What a file asks for; `None` if it cannot be used past the page cache at all.
    pub fn of(file: &File) -> io::Result<Option<Direct>> {
        let found = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
        if found.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
            return Ok(Some(Direct { memory: USUAL, offset: USUAL }));
        }
        let (memory, offset) = (found.stx_dio_mem_align, found.stx_dio_offset_align);
        Ok((memory.is_power_of_two() && offset.is_power_of_two()).then_some(Direct { memory, offset }))
    }
}
