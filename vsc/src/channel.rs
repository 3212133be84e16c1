//! An open channel, as a driver uses it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vmbus::message::Offer;
use vmbus::packet::{Outgoing, PacketHeader};
use vmbus::ring::{PushError, RingReader, RingWriter};

use crate::client::Gpadl;
use crate::error::Error;
use crate::platform::Platform;

/// How long a wait may last when a signal on another processor would not end it.
const SLICE: Duration = Duration::from_millis(5);

/// An open channel. It belongs to one thread at a time; dropping it without [`crate::Client::close`] leaves it open.
pub struct Channel<P: Platform> {
    platform: Arc<P>,
    offer: Offer,
    gpadl: Gpadl,
    reader: RingReader<P::Ring>,
    writer: RingWriter<P::Ring>,
    scratch: Vec<u8>,
    /// Virtual processors on which the host may interrupt: the target, and earlier ones.
    vps: Vec<u32>,
    counts: Counts,
}

/// What a channel has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Signals sent to the host.
    pub signals: u64,
    /// Times that the channel's event flag was found set.
    pub events: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets received.
    pub received: u64,
}

/// A received packet.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Its descriptor.
    pub header: PacketHeader,
    /// The whole packet, descriptor included.
    pub bytes: &'a [u8],
}

impl<'a> Packet<'a> {
    /// The payload, padded to a multiple of 8 bytes.
    pub fn payload(&self) -> &'a [u8] {
        self.header.payload(self.bytes)
    }
}

impl<P: Platform> Channel<P> {
    pub(crate) fn new(
        platform: Arc<P>,
        offer: Offer,
        gpadl: Gpadl,
        rings: (RingReader<P::Ring>, RingWriter<P::Ring>),
        target_vp: u32,
    ) -> Self {
        let (reader, writer) = rings;
        let (scratch, vps) = (Vec::new(), vec![target_vp]);
        Self { platform, offer, gpadl, reader, writer, scratch, vps, counts: Counts::default() }
    }

    /// The offer that was opened.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The machine below.
    pub fn platform(&self) -> &Arc<P> {
        &self.platform
    }

    /// What the channel has done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The virtual processor that the host interrupts.
    pub fn target_vp(&self) -> u32 {
        self.vps[0]
    }

    /// The ring's pages.
    pub fn gpadl(&self) -> Gpadl {
        self.gpadl
    }

    /// The ring to the host, for tests that want to write what no honest guest would.
    pub fn writer(&mut self) -> &mut RingWriter<P::Ring> {
        &mut self.writer
    }

    /// The ring from the host.
    pub fn reader(&mut self) -> &mut RingReader<P::Ring> {
        &mut self.reader
    }

    pub(crate) fn retargeted(&mut self, vp: u32) {
        self.vps.retain(|&old| old != vp);
        self.vps.insert(0, vp);
    }

    /// Signals the host, due or not.
    pub fn signal(&mut self) -> Result<(), Error> {
        self.counts.signals += 1;
        self.platform.signal_event(self.offer.connection_id).map_err(Error::Platform)
    }

    /// Writes a packet that the host does not see before [`Self::flush`].
    pub fn push(&mut self, packet: &Outgoing, parts: &[&[u8]]) -> Result<(), Error> {
        self.writer.push(packet, parts)?;
        self.counts.sent += 1;
        Ok(())
    }

    /// Shows the host what was pushed, and signals it if that is due.
    pub fn flush(&mut self) -> Result<(), Error> {
        if self.writer.publish() { self.signal() } else { Ok(()) }
    }

    /// Sends a packet. A full ring is an error: [`PushError::Full`].
    pub fn send(&mut self, packet: &Outgoing, parts: &[&[u8]]) -> Result<(), Error> {
        self.push(packet, parts)?;
        self.flush()
    }

    /// Sends a packet, and waits while the ring is full.
    pub fn send_waiting(
        &mut self,
        packet: &Outgoing,
        parts: &[&[u8]],
        timeout: Duration,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let needed = match self.send(packet, parts) {
                Err(Error::Push(PushError::Full { needed })) => needed,
                done => return done,
            };
            // What was pushed and not shown yet can make no room.
            self.flush()?;
            let seen = self.platform.interrupts(self.target_vp());
            self.writer.set_pending_send_size(needed);
            let retry = self.send(packet, parts);
            if retry.is_err() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Error::Timeout("room in the ring"));
                }
                self.wait(seen, left);
            }
            self.writer.set_pending_send_size(0);
            match retry {
                Err(Error::Push(PushError::Full { .. })) => {}
                done => return done,
            }
        }
    }

    /// The next packet if there is one now, whether or not the host has signalled it.
    pub fn poll(&mut self) -> Result<Option<Packet<'_>>, Error> {
        let Some(header) = self.reader.next(&mut self.scratch)? else {
            if self.reader.publish() {
                self.signal()?;
            }
            return Ok(None);
        };
        self.counts.received += 1;
        Ok(Some(Packet { header, bytes: &self.scratch }))
    }

    /// The next packet, waiting for it if need be; `None` if the time is over.
    ///
    /// Like a kernel's driver it looks at an empty ring again only when the host has set the channel's event flag
    /// and interrupted, so a signal that the host owes and does not send shows as a timeout.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<Packet<'_>>, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            // `poll` twice would hold the scratch buffer's borrow over the loop, so the header goes first.
            if let Some(header) = self.reader.next(&mut self.scratch)? {
                self.counts.received += 1;
                return Ok(Some(Packet { header, bytes: &self.scratch }));
            }
            if self.reader.publish() {
                self.signal()?;
            }
            if self.reader.unmask_interrupts() {
                continue;
            }
            if !self.wait_event(deadline) {
                return Ok(None);
            }
            self.reader.mask_interrupts();
        }
    }

    /// Shows the host everything, and asks it to interrupt when a packet comes; true if one is there already. Then the
    /// caller waits for an interrupt of the platform's, or for something else, and calls [`Self::disarm`].
    pub fn arm(&mut self) -> Result<bool, Error> {
        self.flush()?;
        if self.reader.publish() {
            self.signal()?;
        }
        Ok(self.reader.unmask_interrupts())
    }

    /// Asks the host not to interrupt, and clears the channel's event flag.
    pub fn disarm(&mut self) {
        self.reader.mask_interrupts();
        let taken = self.vps.iter().filter(|&&vp| self.platform.take_event(vp, self.offer.relid)).count();
        self.counts.events += u64::from(taken > 0);
    }

    /// Waits until the channel's event flag is set, and clears it; false if the time is over.
    fn wait_event(&mut self, deadline: Instant) -> bool {
        loop {
            let seen = self.platform.interrupts(self.target_vp());
            let taken = self.vps.iter().filter(|&&vp| self.platform.take_event(vp, self.offer.relid)).count();
            if taken > 0 {
                self.counts.events += 1;
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.wait(seen, left);
        }
    }

    fn wait(&self, seen: u64, timeout: Duration) {
        let timeout = if self.vps.len() > 1 { timeout.min(SLICE) } else { timeout };
        self.platform.wait_interrupt(self.target_vp(), seen, timeout);
    }
}
