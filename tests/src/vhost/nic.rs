//! A driver's end of virtio-net (VIRTIO 1.2, 5.1): a pair of queues.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::memory::Memory;
use super::ring::{Part, Ring};

/// Bytes of the header in front of each frame.
pub const HEADER: usize = 12;
/// Bytes of a frame to be sent, at most.
const LONGEST: u64 = 65_562;
/// Hands of descriptors that each request has: a header, and a frame in two pieces.
pub const HAND: u16 = 4;

/// Features.
pub mod feature {
    #![allow(missing_docs, reason = "the specification's own names")]
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const MQ: u64 = 1 << 22;
}

/// A frame that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// What was said of it.
    pub header: [u8; HEADER],
    /// Its bytes.
    pub frame: Vec<u8>,
}

impl Received {
    /// How many buffers it came in.
    pub fn buffers(&self) -> u16 {
        u16::from_le_bytes([self.header[10], self.header[11]])
    }
}

/// Two rings and the memory that they are about.
#[derive(Debug)]
pub struct Pair {
    memory: Arc<Memory>,
    /// Frames for us.
    pub receive: Ring,
    /// Frames of ours.
    pub send: Ring,
    /// Where buffers are, and how long each is.
    buffers: u64,
    buffer: u32,
    /// Where frames to be sent are, one a slot.
    frames: u64,
    /// Slots that are free.
    free: Vec<u16>,
    /// Requests to send that have ended.
    pub sent: u64,
}

impl Pair {
    /// Gives all buffers, of so many bytes each; `queues` are the receive queue and the other.
    pub fn new(memory: &Arc<Memory>, queues: [Ring; 2], buffer: u32) -> anyhow::Result<Self> {
        let [receive, send] = queues;
        let slots = |ring: &Ring| ring.place.size / HAND;
        let buffers = memory.take(u64::from(buffer) * u64::from(slots(&receive)))?;
        let frames = memory.take(LONGEST.next_multiple_of(4096) * u64::from(slots(&send)))?;
        let free = (0..slots(&send)).rev().collect();
        let memory = Arc::clone(memory);
        let mut pair = Self { memory, receive, send, buffers, buffer, frames, free, sent: 0 };
        for slot in 0..slots(&pair.receive) {
            pair.give(slot)?;
        }
        pair.receive.submit()?;
        Ok(pair)
    }

    /// Buffers that there are.
    pub fn count(&self) -> usize {
        usize::from(self.receive.place.size / HAND)
    }

    fn give(&mut self, slot: u16) -> anyhow::Result<()> {
        let address = Memory::guest(self.buffers + u64::from(slot) * u64::from(self.buffer));
        self.receive.push(slot, &[Part { address, len: self.buffer, writable: true }], None)
    }

    /// Makes a frame available, if there is a slot for it; [`Ring::submit`] publishes it.
    pub fn push(&mut self, header: &[u8; HEADER], frame: &[u8]) -> anyhow::Result<bool> {
        self.reap()?;
        let Some(slot) = self.free.pop() else { return Ok(false) };
        let at = self.frames + u64::from(slot) * LONGEST.next_multiple_of(4096);
        self.memory.write(at, &[&header[..], frame].concat())?;
        let part = |from: usize, to: usize| {
            let (address, len) = (Memory::guest(at) + from as u64, (to - from) as u32);
            Part { address, len, writable: false }
        };
        // Cut where nothing begins.
        let (end, middle) = (HEADER + frame.len(), HEADER + frame.len().min(9));
        self.send.push(slot, &[part(0, HEADER), part(HEADER, middle), part(middle, end)], None)?;
        Ok(true)
    }

    /// Takes what has been sent.
    pub fn reap(&mut self) -> anyhow::Result<()> {
        while let Some((slot, len)) = self.send.take()? {
            ensure!(len == 0, "{len} bytes of a frame to be sent were written");
            self.free.push(slot);
            self.sent += 1;
        }
        Ok(())
    }

    /// The next frame, if there is one; its buffers are given again.
    pub fn poll(&mut self) -> anyhow::Result<Option<Received>> {
        let Some((slot, len)) = self.receive.take()? else { return Ok(None) };
        ensure!(len as usize > HEADER, "a frame of {len} bytes, header included");
        let mut bytes = self.look(slot, len)?;
        let header = *bytes.first_chunk::<HEADER>().context("there is no header")?;
        let count = u16::from_le_bytes([header[10], header[11]]);
        ensure!(count > 0, "a frame in no buffers");
        let mut slots = vec![slot];
        for n in 1..count {
            // They become visible together.
            let (slot, len) =
                self.receive.take()?.with_context(|| format!("buffer {n} of {count} is missing"))?;
            bytes.extend(self.look(slot, len)?);
            slots.push(slot);
        }
        slots.into_iter().try_for_each(|slot| self.give(slot))?;
        self.receive.submit()?;
        Ok(Some(Received { header, frame: bytes.split_off(HEADER) }))
    }

    fn look(&self, slot: u16, len: u32) -> anyhow::Result<Vec<u8>> {
        ensure!(len <= self.buffer, "{len} bytes in a buffer of {}", self.buffer);
        let mut bytes = vec![0; len as usize];
        self.memory.read(self.buffers + u64::from(slot) * u64::from(self.buffer), &mut bytes)?;
        Ok(bytes)
    }

    /// The next frame, in time.
    pub fn wait(&mut self, timeout: Duration) -> anyhow::Result<Option<Received>> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(received) = self.poll()? {
                return Ok(Some(received));
            }
            if Instant::now() > end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Waits until everything has been sent.
    pub fn drain(&mut self, timeout: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + timeout;
        while self.send.under_way() > 0 {
            self.reap()?;
            ensure!(Instant::now() < end, "{} frames are under way for ever", self.send.under_way());
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }
}
