//! Requests of virtio-blk (VIRTIO 1.2, 5.2) on one ring.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

use super::memory::Memory;
use super::ring::{Part, Ring};
use crate::steps::LIMIT;

/// Bytes of a sector, whatever the disk's blocks are.
pub const SECTOR: u64 = 512;
/// Longest request of ours in bytes.
pub const LONGEST: u32 = 64 << 10;
/// All went well.
pub const OK: u8 = 0;
/// It did not.
pub const IOERR: u8 = 1;
/// There is no such request.
pub const UNSUPP: u8 = 2;
/// What the status holds before.
const UNTOUCHED: u8 = 0x77;

/// Bits of the features.
pub mod feature {
    #![allow(missing_docs, reason = "the specification's own names")]
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Bytes of the config space.
pub const CONFIG: u32 = 60;

/// What is asked of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read.
    In,
    /// Write.
    Out,
    /// Put on the medium.
    Flush,
    /// What the disk is called.
    GetId,
    /// Forget sectors: they are zero, or as before.
    Discard,
    /// Make sectors zero.
    WriteZeroes,
    /// Anything else.
    Other(u32),
}

impl Op {
    fn number(self) -> u32 {
        match self {
            Op::In => 0,
            Op::Out => 1,
            Op::Flush => 4,
            Op::GetId => 8,
            Op::Discard => 11,
            Op::WriteZeroes => 13,
            Op::Other(number) => number,
        }
    }
}

/// A disk's queue, with memory for as many requests as it has hands.
#[derive(Debug)]
pub struct Blk {
    /// The ring.
    pub ring: Ring,
    memory: Arc<Memory>,
    /// Memory of each slot: a page with what is not data, then the data.
    slots: Vec<u64>,
    /// Whether the next request goes through an indirect table; they take turns.
    indirect: bool,
    turns: bool,
}

// In the first page of a slot.
const SEGMENT: u64 = 16;
const STATUS: u64 = 32;
const TABLE: u64 = 64;
const DATA: u64 = 4096;

impl Blk {
    /// The driver of a ring; `indirect`: every other request goes through a table of its own.
    pub fn new(memory: &Arc<Memory>, ring: Ring, slots: u16, indirect: bool) -> anyhow::Result<Self> {
        let slots = (0..slots).map(|_| memory.take(DATA + u64::from(LONGEST))).collect::<Result<_, _>>()?;
        Ok(Self { ring, memory: Arc::clone(memory), slots, indirect: false, turns: indirect })
    }

    /// Starts a request for `len` bytes at `sector`; it is not published yet. What is written has to be in the slot's memory already.
    pub fn start(&mut self, slot: u16, op: Op, sector: u64, len: u32) -> anyhow::Result<()> {
        ensure!(len <= LONGEST);
        let at = self.slots[usize::from(slot)];
        let mut head = op.number().to_le_bytes().to_vec();
        head.extend([0; 4]);
        let ranged = matches!(op, Op::Discard | Op::WriteZeroes);
        head.extend(if ranged { 0 } else { sector }.to_le_bytes());
        self.memory.write(at, &head)?;
        self.memory.write(at + STATUS, &[UNTOUCHED])?;
        let part = |at: u64, len: u32, writable| Part { address: Memory::guest(at), len, writable };
        let mut parts = vec![part(at, 16, false)];
        match op {
            Op::In | Op::Out | Op::GetId => {
                let writable = op != Op::Out;
                // In two pieces that do not end where sectors do.
                let first = (len / 3 + 1).min(len);
                parts.push(part(at + DATA, first, writable));
                if len > first {
                    parts.push(part(at + DATA + u64::from(first), len - first, writable));
                }
            }
            Op::Discard | Op::WriteZeroes => {
                let mut segment = sector.to_le_bytes().to_vec();
                segment.extend((len / SECTOR as u32).to_le_bytes());
                segment.extend([0; 4]);
                self.memory.write(at + SEGMENT, &segment)?;
                parts.push(part(at + SEGMENT, 16, false));
            }
            Op::Flush | Op::Other(_) => {}
        }
        parts.push(part(at + STATUS, 1, true));
        let table = (self.turns && self.indirect).then_some(at + TABLE);
        self.indirect = !self.indirect;
        self.ring.push(slot, &parts, table)
    }

    /// Puts what is to be written into a slot.
    pub fn fill(&self, slot: u16, bytes: &[u8]) -> anyhow::Result<()> {
        self.memory.write(self.slots[usize::from(slot)] + DATA, bytes)
    }

    /// What was read.
    pub fn look(&self, slot: u16, bytes: &mut [u8]) -> anyhow::Result<()> {
        self.memory.read(self.slots[usize::from(slot)] + DATA, bytes)
    }

    /// A completion that has come: slot and status.
    pub fn take(&mut self) -> anyhow::Result<Option<(u16, u8)>> {
        let Some((slot, len)) = self.ring.take()? else { return Ok(None) };
        let mut status = [0];
        self.memory.read(self.slots[usize::from(slot)] + STATUS, &mut status)?;
        ensure!(status[0] != UNTOUCHED, "a completion of {len} bytes without a status");
        ensure!(len > 0, "a status was written, and the completion says that nothing was");
        Ok(Some((slot, status[0])))
    }

    /// Waits for a completion, as a driver does that is interrupted.
    pub fn wait(&mut self, timeout: Duration) -> anyhow::Result<Option<(u16, u8)>> {
        let begin = Instant::now();
        loop {
            if let Some(done) = self.take()? {
                return Ok(Some(done));
            }
            self.ring.want_interrupts(true)?;
            if let Some(done) = self.take()? {
                return Ok(Some(done));
            }
            let Some(left) = timeout.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) else {
                return Ok(None);
            };
            let call = Arc::clone(&self.ring.wires.call);
            poll(
                &mut [PollFd::new(call.as_fd(), PollFlags::POLLIN)],
                PollTimeout::try_from(left + Duration::from_millis(1))?,
            )?;
            // There may be nothing in it.
            let _ = call.read();
            self.ring.want_interrupts(false)?;
        }
    }

    /// Does one thing with nothing else under way; its status.
    pub fn does(&mut self, op: Op, sector: u64, len: u32) -> anyhow::Result<u8> {
        self.start(0, op, sector, len)?;
        self.ring.submit()?;
        let (_, status) = self.wait(LIMIT)?.with_context(|| format!("{op:?} does not end"))?;
        Ok(status)
    }

    /// Reads.
    pub fn reads(&mut self, sector: u64, len: u32) -> anyhow::Result<Vec<u8>> {
        let status = self.does(Op::In, sector, len)?;
        ensure!(status == OK, "a read ends with {status}");
        let mut bytes = vec![0; len as usize];
        self.look(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes.
    pub fn writes(&mut self, sector: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.fill(0, bytes)?;
        let status = self.does(Op::Out, sector, bytes.len() as u32)?;
        ensure!(status == OK, "a write ends with {status}");
        Ok(())
    }
}
