//! A guest on the software partition that reads through the real `vsp-storage`.

use std::path::Path;

use anyhow::{Context, ensure};
use vsc::Platform;
use vsc::storage::{Buffer, Completion, Storage, StorageOptions, scsi::read_16, wire::Direction};

use super::{DEEPEST, LONGEST, Side, wait::Wait};
use crate::guest::{Interrupts, SoftPlatform};
use crate::steps::{Guest, LIMIT};
use crate::vm::Vm;

/// Name of the controller.
const DEVICE: &str = "disk0";
/// Bytes of a block.
const BLOCK: u32 = 512;

/// A guest with one disk.
pub struct SoftGuest {
    storage: Storage<SoftPlatform>,
    wait: Wait,
    buffers: Vec<Buffer>,
    /// Request to buffer.
    slots: Vec<usize>,
    size: u64,
    // In this order: the connection ends before the machine.
    _guest: Guest,
    vm: Vm,
}

impl SoftGuest {
    /// A guest whose disk is `path`; `options` begin with a comma if there are any.
    pub fn start(path: &Path, options: &str, wait: Wait) -> anyhow::Result<Self> {
        let disk = format!("path={}{options}", path.display());
        let vm = Vm::builder()
            .interrupts(Interrupts::Direct(wait.looks_out()))
            .storage(DEVICE, &[disk])
            .start()?;
        let mut guest = Guest::connect(&vm)?;
        let offer = guest.offer(0)?;
        let options = StorageOptions { depth: DEEPEST, ..StorageOptions::default() };
        let mut storage = Storage::open(&mut guest.client, &offer, &options)?;
        let longest = storage.properties().max_transfer_bytes;
        ensure!(longest >= LONGEST, "the controller moves {longest} bytes at a time");
        let buffers = (0..DEEPEST).map(|_| storage.allocate(LONGEST)).collect::<Result<_, _>>()?;
        let capacity = storage.read_capacity(0).context("the disk's size")?;
        ensure!(capacity.block_size == BLOCK, "blocks of {} bytes", capacity.block_size);
        let size = capacity.blocks * u64::from(BLOCK);
        Ok(Self { storage, wait, buffers, slots: vec![0; DEEPEST + 1], size, _guest: guest, vm })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn end(&self, done: &Completion, ended: &mut Vec<usize>) -> anyhow::Result<()> {
        let slot = self.slots.get(done.id.0 as usize).copied().context("an unknown request")?;
        done.moved()?;
        ended.push(slot);
        Ok(())
    }
}

impl Side for SoftGuest {
    fn push(&mut self, slot: usize, offset: u64, len: u32) -> anyhow::Result<()> {
        let cdb = read_16(offset / u64::from(BLOCK), len / BLOCK);
        // Shown to the host at once, as a stock driver does; it is signalled only if that is due.
        let id = self.storage.submit(0, &cdb, Direction::Read, self.buffers[slot].part(0, len))?;
        self.slots[id.0 as usize] = slot;
        Ok(())
    }

    fn submit(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<usize>) -> anyhow::Result<()> {
        if self.wait != Wait::Poll {
            let done = self.storage.completion(LIMIT)?.context("a read does not end")?;
            self.end(&done, ended)?;
        }
        loop {
            match self.storage.poll_completion()? {
                Some(done) => self.end(&done, ended)?,
                None if ended.is_empty() => std::hint::spin_loop(),
                None => return Ok(()),
            }
        }
    }

    fn look(&mut self, slot: usize, into: &mut [u8]) -> anyhow::Result<()> {
        self.storage.platform().read(self.buffers[slot].address, into);
        Ok(())
    }

    fn server(&mut self) -> Option<u32> {
        Some(self.vm.device(DEVICE).pid())
    }
}
