//! SCSI commands, each sent and waited for. Numbers in commands are big-endian (SPC-4, SBC-3).

use super::wire::Direction;
use super::{Buffer, Storage};
use crate::error::Error;
use crate::platform::Platform;

/// Operation codes.
pub mod opcode {
    /// TEST UNIT READY
    pub const TEST_UNIT_READY: u8 = 0x00;
    /// INQUIRY
    pub const INQUIRY: u8 = 0x12;
    /// READ CAPACITY (10)
    pub const READ_CAPACITY_10: u8 = 0x25;
    /// READ (10)
    pub const READ_10: u8 = 0x28;
    /// WRITE (10)
    pub const WRITE_10: u8 = 0x2a;
    /// SYNCHRONIZE CACHE (10)
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    /// UNMAP
    pub const UNMAP: u8 = 0x42;
    /// READ (16)
    pub const READ_16: u8 = 0x88;
    /// WRITE (16)
    pub const WRITE_16: u8 = 0x8a;
    /// SERVICE ACTION IN (16); with action 0x10 it is READ CAPACITY (16)
    pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
    /// REPORT LUNS
    pub const REPORT_LUNS: u8 = 0xa0;
}

/// Size of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Blocks.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_size: u32,
}

/// READ (16) of `blocks` blocks from `lba` on.
pub fn read_16(lba: u64, blocks: u32) -> [u8; 16] {
    transfer_16(opcode::READ_16, lba, blocks)
}

/// WRITE (16) of `blocks` blocks from `lba` on.
pub fn write_16(lba: u64, blocks: u32) -> [u8; 16] {
    transfer_16(opcode::WRITE_16, lba, blocks)
}

fn transfer_16(opcode: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// READ (10) of `blocks` blocks from `lba` on.
pub fn read_10(lba: u32, blocks: u16) -> [u8; 10] {
    transfer_10(opcode::READ_10, lba, blocks)
}

/// WRITE (10) of `blocks` blocks from `lba` on.
pub fn write_10(lba: u32, blocks: u16) -> [u8; 10] {
    transfer_10(opcode::WRITE_10, lba, blocks)
}

fn transfer_10(opcode: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

impl<P: Platform> Storage<P> {
    /// Sends a command and waits for it; returns the bytes moved.
    pub fn execute(&mut self, lun: u8, cdb: &[u8], direction: Direction, data: Buffer) -> Result<u32, Error> {
        let id = self.submit(lun, cdb, direction, data)?;
        self.wait(id)?.moved()
    }

    /// Sends a command that returns at most `most` bytes.
    pub fn execute_in(&mut self, lun: u8, cdb: &[u8], most: u32) -> Result<Vec<u8>, Error> {
        let buffer = self.allocate(most)?;
        let moved = self.execute(lun, cdb, Direction::Read, buffer);
        let mut data = vec![0; most as usize];
        self.platform().read(buffer.address, &mut data);
        self.release(buffer);
        data.truncate(moved? as usize);
        Ok(data)
    }

    /// Sends a command with data.
    pub fn execute_out(&mut self, lun: u8, cdb: &[u8], data: &[u8]) -> Result<u32, Error> {
        let buffer = self.allocate(data.len() as u32)?;
        self.platform().write(buffer.address, data);
        let moved = self.execute(lun, cdb, Direction::Write, buffer);
        self.release(buffer);
        moved
    }

    /// Whether the unit is there and ready.
    pub fn test_unit_ready(&mut self, lun: u8) -> Result<(), Error> {
        self.execute(lun, &[opcode::TEST_UNIT_READY, 0, 0, 0, 0, 0], Direction::None, Buffer::NONE).map(drop)
    }

    /// The unit's standard inquiry data.
    pub fn inquiry(&mut self, lun: u8) -> Result<Vec<u8>, Error> {
        self.execute_in(lun, &[opcode::INQUIRY, 0, 0, 0, 96, 0], 96)
    }

    /// A page of the unit's vital product data.
    pub fn inquiry_page(&mut self, lun: u8, page: u8) -> Result<Vec<u8>, Error> {
        self.execute_in(lun, &[opcode::INQUIRY, 1, page, 0, 0xff, 0], 255)
    }

    /// The units of the target: the addressed LUNs in the flat form.
    pub fn report_luns(&mut self) -> Result<Vec<u8>, Error> {
        let mut cdb = [0; 12];
        cdb[0] = opcode::REPORT_LUNS;
        cdb[6..10].copy_from_slice(&4096u32.to_be_bytes());
        let data = self.execute_in(0, &cdb, 4096)?;
        let list = data.get(8..).unwrap_or_default();
        Ok(list.chunks_exact(8).map(|entry| entry[1]).collect())
    }

    /// The disk's size.
    pub fn read_capacity(&mut self, lun: u8) -> Result<Capacity, Error> {
        let mut cdb = [0; 16];
        cdb[0] = opcode::SERVICE_ACTION_IN_16;
        cdb[1] = 0x10;
        cdb[13] = 32;
        let data = self.execute_in(lun, &cdb, 32)?;
        let short = || Error::Protocol(format!("{} bytes of capacity", data.len()));
        let (last, rest) = data.split_first_chunk::<8>().ok_or_else(short)?;
        let block_size = *rest.first_chunk::<4>().ok_or_else(short)?;
        let blocks = u64::from_be_bytes(*last).wrapping_add(1);
        Ok(Capacity { blocks, block_size: u32::from_be_bytes(block_size) })
    }

    /// Reads `blocks` blocks of `block_size` bytes.
    pub fn read(&mut self, lun: u8, lba: u64, blocks: u32, block_size: u32) -> Result<Vec<u8>, Error> {
        let len = blocks * block_size;
        let data = self.execute_in(lun, &read_16(lba, blocks), len)?;
        if data.len() != len as usize {
            return Err(Error::Protocol(format!("{} bytes were read instead of {len}", data.len())));
        }
        Ok(data)
    }

    /// Writes whole blocks of `block_size` bytes.
    pub fn write(&mut self, lun: u8, lba: u64, data: &[u8], block_size: u32) -> Result<(), Error> {
        let blocks = data.len() as u32 / block_size;
        let moved = self.execute_out(lun, &write_16(lba, blocks), data)?;
        if moved as usize != data.len() {
            return Err(Error::Protocol(format!("{moved} bytes were written instead of {}", data.len())));
        }
        Ok(())
    }

    /// Makes everything written so far durable.
    pub fn flush(&mut self, lun: u8) -> Result<(), Error> {
        let mut cdb = [0; 10];
        cdb[0] = opcode::SYNCHRONIZE_CACHE_10;
        self.execute(lun, &cdb, Direction::None, Buffer::NONE).map(drop)
    }

    /// Discards ranges (first block, blocks).
    pub fn unmap(&mut self, lun: u8, ranges: &[(u64, u32)]) -> Result<(), Error> {
        let list = unmap_list(ranges);
        let mut cdb = [0; 10];
        cdb[0] = opcode::UNMAP;
        cdb[7..9].copy_from_slice(&(list.len() as u16).to_be_bytes());
        self.execute_out(lun, &cdb, &list).map(drop)
    }
}

/// UNMAP's parameter list.
pub fn unmap_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let descriptors = ranges.len() as u16 * 16;
    let mut list = Vec::with_capacity(8 + usize::from(descriptors));
    list.extend_from_slice(&(descriptors + 6).to_be_bytes());
    list.extend_from_slice(&descriptors.to_be_bytes());
    list.extend_from_slice(&[0; 4]);
    for (lba, blocks) in ranges {
        list.extend_from_slice(&lba.to_be_bytes());
        list.extend_from_slice(&blocks.to_be_bytes());
        list.extend_from_slice(&[0; 4]);
    }
    list
}
