//! A disk behind a vhost-user socket.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use bulkhead_tests::bench::wait::{Wait, readable};
use bulkhead_tests::bench::{DEEPEST, LONGEST, Side};
use bulkhead_tests::steps::LIMIT;
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

use crate::memory::Memory;

/// Entries of the queue: a read takes three.
const QUEUE: u16 = 256;
/// Bytes of a sector, whatever the disk's blocks are (VIRTIO 1.1, 5.2.4).
const SECTOR: u64 = 512;

/// One queue of it.
pub struct Disk {
    queue: VirtioBlkQueue<'static, usize>,
    notifier: Box<dyn QueueNotifier>,
    completed: Arc<EventFd>,
    wait: Wait,
    size: u64,
    memory: Memory,
    // The queue's memory is its; so it is dropped last.
    _transport: Box<VirtioBlkTransport>,
}

impl Disk {
    /// Connects.
    pub fn connect(socket: &Path, wait: Wait) -> anyhow::Result<Self> {
        let wanted = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        let socket = socket.to_str().context("the socket's name is no text")?;
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::new(socket, wanted.bits()).context("connecting")?);
        let memory = Memory::new(DEEPEST, LONGEST as usize)?;
        transport.map_mem_region(memory.address(), memory.len(), memory.file().as_raw_fd(), 0)?;
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, 1, QUEUE)?;
        let mut queue = queues.pop().context("no queue")?;
        queue.set_used_notif_enabled(wait != Wait::Poll);
        let size = u64::from(transport.get_config()?.capacity) * SECTOR;
        let (notifier, completed) = (transport.get_submission_notifier(0), transport.get_completion_fd(0));
        Ok(Self { queue, notifier, completed, wait, size, memory, _transport: transport })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Waits for a notification. The server may have made the eventfd non-blocking, which is no business of the driver.
    fn sleep(&self) -> anyhow::Result<()> {
        ensure!(readable(&[self.completed.as_fd()], self.wait.looks_out(), LIMIT), "a read does not end");
        self.completed.read()?;
        Ok(())
    }

    fn take(&mut self, ended: &mut Vec<usize>) -> anyhow::Result<()> {
        for done in self.queue.completions() {
            ensure!(done.ret == 0, "a read failed: {}", std::io::Error::from_raw_os_error(-done.ret));
            ended.push(done.context);
        }
        Ok(())
    }
}

impl Side for Disk {
    fn push(&mut self, slot: usize, offset: u64, len: u32) -> anyhow::Result<()> {
        ensure!(len <= LONGEST, "a read of {len} bytes");
        let buffer = self.memory.piece(slot);
        // SAFETY: the piece is `LONGEST` bytes long, and nobody looks into it before the read has ended.
        Ok(unsafe { self.queue.read_raw(offset, buffer, len as usize, slot) }?)
    }

    fn submit(&mut self) -> anyhow::Result<()> {
        if self.queue.avail_notif_needed() {
            self.notifier.notify()?;
        }
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<usize>) -> anyhow::Result<()> {
        if self.wait == Wait::Poll {
            loop {
                self.take(ended)?;
                if !ended.is_empty() {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
        }
        // As a driver in a kernel: no notifications while there is work, then on again and one more look.
        self.queue.set_used_notif_enabled(false);
        self.take(ended)?;
        while ended.is_empty() {
            self.queue.set_used_notif_enabled(true);
            self.take(ended)?;
            if ended.is_empty() {
                self.sleep()?;
                self.queue.set_used_notif_enabled(false);
                self.take(ended)?;
            }
        }
        Ok(())
    }

    fn look(&mut self, slot: usize, into: &mut [u8]) -> anyhow::Result<()> {
        self.memory.copy_out(slot, into);
        Ok(())
    }
}
