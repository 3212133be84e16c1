//! The consumer of the synthetic mouse: what `hid-hyperv` is in a kernel (Linux `drivers/hid/hid-hyperv.c`), with the
//! checks of a test.
//!
//! The device describes itself as a HID device does; [`report`] reads that description, and the reports by it, as a kernel's
//! HID layer does. So a report that is described wrongly shows as a wrong movement.

pub mod report;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use vmbus::message::Offer;
use vmbus::packet::{Outgoing, PacketType};

use crate::channel::Channel;
use crate::client::Client;
use crate::error::Error;
use crate::keyboard::rings;
use crate::platform::Platform;
pub use report::{Layout, Report};

/// The only version: 2.0.
pub const VERSION_2_0: u32 = 2 << 16;
/// To the device: proposal of a version.
pub const PROTOCOL_REQUEST: u32 = 0;
/// From the device: its answer.
pub const PROTOCOL_RESPONSE: u32 = 1;
/// From the device: what it is.
pub const DEVICE_INFO: u32 = 2;
/// To the device: we know.
pub const DEVICE_INFO_ACK: u32 = 3;
/// From the device: it was moved or pressed.
pub const INPUT_REPORT: u32 = 4;
/// The only kind of message in a pipe.
const PIPE_DATA: u32 = 1;
/// The vendor and the product that the driver insists on (`mousevsc_devices`).
const IDENTITY: (u16, u16) = (0x045e, 0x0621);
/// Most bytes of a report.
const LONGEST_REPORT: usize = 16;
/// Bytes of what comes before the descriptor: size, vendor, product, version, 22 of nothing.
const INFO: usize = 32;
/// Bytes of the descriptor before the report descriptor.
const DESCRIPTOR: usize = 9;
/// How long the device may take for an answer, as in the driver.
const PATIENCE: Duration = Duration::from_secs(5);

/// A message to the device: a pipe header whose size counts the message header, and a message header whose size does not.
pub fn message(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [PIPE_DATA, body.len() as u32 + 8, kind, body.len() as u32] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

/// A mouse.
pub struct Mouse<P: Platform> {
    channel: Channel<P>,
    layout: Layout,
    last: Option<Report>,
    /// Ids of messages whose completion is due.
    due: BTreeSet<u64>,
    next_id: u64,
}

impl<P: Platform> Mouse<P> {
    /// Opens a device, agrees on the version and learns what it is.
    pub fn open(client: &mut Client<P>, offer: &Offer) -> Result<Self, Error> {
        let mut mouse = Self::over(client.open(offer, &rings())?);
        mouse.connect(VERSION_2_0)?;
        Ok(mouse)
    }

    /// Takes a channel that is open already, and says nothing.
    pub fn over(channel: Channel<P>) -> Self {
        Self { channel, layout: Layout::default(), last: None, due: BTreeSet::new(), next_id: 1 }
    }

    /// Agrees on the version, takes the device's description and acknowledges it; waits for both completions.
    pub fn connect(&mut self, version: u32) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        self.send(&message(PROTOCOL_REQUEST, &version.to_le_bytes()), true)?;
        match self.await_one(deadline, "protocol response")? {
            Received::Response { version: said, approved: 1 } if said == version => {}
            other => return Err(Error::Protocol(format!("version {version:#x} is answered with {other:?}"))),
        }
        match self.await_one(deadline, "device information")? {
            Received::Info(layout) => self.layout = layout,
            other => return Err(Error::Protocol(format!("instead of its description comes {other:?}"))),
        }
        self.send(&message(DEVICE_INFO_ACK, &[0]), true)?;
        while !self.due.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)?.ok_or(Error::Timeout("completion"))? {
                // The driver is not ready for the reports that come so early, and drops them.
                Received::Completion | Received::Report(_) => {}
                other => return Err(Error::Protocol(format!("nobody asked for {other:?}"))),
            }
        }
        Ok(())
    }

    /// The next report; `None` if none comes in time.
    pub fn report(&mut self, timeout: Duration) -> Result<Option<Report>, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)? {
                None => return Ok(None),
                Some(Received::Completion) => {}
                Some(Received::Report(report)) => return Ok(Some(report)),
                Some(other) => return Err(Error::Protocol(format!("nobody asked for {other:?}"))),
            }
        }
    }

    /// What the last report said: where the pointer is, and what is pressed.
    pub fn last(&self) -> Option<Report> {
        self.last
    }

    /// What a report looks like.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many completions have not come.
    pub fn completions_due(&self) -> usize {
        self.due.len()
    }

    /// Sends any bytes as a message.
    pub fn send(&mut self, message: &[u8], completion: bool) -> Result<(), Error> {
        let id = self.next_id;
        self.next_id += 1;
        if completion {
            self.due.insert(id);
        }
        self.channel.send_waiting(&Outgoing::in_band(id, completion), &[message], PATIENCE)
    }

    /// The channel, for what a test does besides.
    pub fn channel(&mut self) -> &mut Channel<P> {
        &mut self.channel
    }

    /// The channel, to close it.
    pub fn into_channel(self) -> Channel<P> {
        self.channel
    }

    /// The next message that is not a completion.
    fn await_one(&mut self, deadline: Instant, what: &'static str) -> Result<Received, Error> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)?.ok_or(Error::Timeout(what))? {
                Received::Completion => {}
                other => return Ok(other),
            }
        }
    }

    fn receive(&mut self, timeout: Duration) -> Result<Option<Received>, Error> {
        let Some(packet) = self.channel.receive(timeout)? else { return Ok(None) };
        let (header, payload) = (packet.header, packet.payload());
        match header.packet_type {
            PacketType::COMPLETION => match self.due.remove(&header.transaction_id) {
                true => Ok(Some(Received::Completion)),
                false => Err(Error::UnknownCompletion(header.transaction_id)),
            },
            PacketType::IN_BAND if !header.completion_requested() => {
                let received = parse(payload, &self.layout)?;
                if let Received::Report(report) = &received {
                    self.last = Some(*report);
                }
                Ok(Some(received))
            }
            _ => Err(Error::Protocol(format!("a message was due, not {header:?}"))),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Received {
    Completion,
    Response { version: u32, approved: u8 },
    Info(Layout),
    Report(Report),
}

/// Reads the payload of a packet, which is padded to 8 bytes.
fn parse(payload: &[u8], layout: &Layout) -> Result<Received, Error> {
    let broken = |why: &str| Error::Protocol(format!("{why}: {:02x?}", &payload[..payload.len().min(128)]));
    let word = |at: usize| payload.get(at..at + 4).and_then(|w| Some(u32::from_le_bytes(*w.first_chunk()?)));
    let (Some(pipe), Some(size), Some(kind), Some(inner)) = (word(0), word(4), word(8), word(12)) else {
        return Err(broken("a message without headers"));
    };
    let end = 8 + size as usize;
    if pipe != PIPE_DATA || size < 8 || end > payload.len() || payload.len() - end >= 8 {
        return Err(broken("the pipe header is wrong"));
    }
    let body = &payload[16..end];
    if inner as usize != body.len() {
        return Err(broken("the two sizes contradict each other"));
    }
    match kind {
        PROTOCOL_RESPONSE => match body {
            // The driver copies the whole message into a structure that has no room for more.
            [a, b, c, d, approved] => {
                Ok(Received::Response { version: u32::from_le_bytes([*a, *b, *c, *d]), approved: *approved })
            }
            _ => Err(broken("an answer of a wrong length")),
        },
        DEVICE_INFO => Ok(Received::Info(info(body)?)),
        INPUT_REPORT if body.len() <= LONGEST_REPORT => {
            layout.read(body).map(Received::Report).ok_or_else(|| broken("a report that was not described"))
        }
        _ => Err(broken("no message of a mouse")),
    }
}

/// Reads the device's description.
fn info(body: &[u8]) -> Result<Layout, Error> {
    let broken = |why: &str| Error::Protocol(format!("{why}: {body:02x?}"));
    let half = |at: usize| body.get(at..at + 2).map_or(0, |h| u16::from_le_bytes([h[0], h[1]]));
    if body.len() < INFO + DESCRIPTOR || u32::from(half(0)) | u32::from(half(2)) << 16 != INFO as u32 {
        return Err(broken("a description of a wrong length"));
    }
    if (half(4), half(6)) != IDENTITY {
        return Err(broken("the driver knows no such vendor and product"));
    }
    let descriptor = &body[INFO..];
    let (own, len) = (usize::from(descriptor[0]), usize::from(half(INFO + 7)));
    // bLength, bDescriptorType (HID), ..., bNumDescriptors, bDescriptorType (report).
    if own != DESCRIPTOR || descriptor[1] != 0x21 || descriptor[5] != 1 || descriptor[6] != 0x22 {
        return Err(broken("no HID descriptor"));
    }
    let report = &descriptor[own..];
    if len == 0 || report.len() != len {
        return Err(broken("the report descriptor's length is wrong"));
    }
    // The driver "repairs" this byte of what it takes for an old host (its workaround SA-167).
    if report.get(14) == Some(&0x25) {
        return Err(broken("byte 14 is one that the driver changes to 0x29"));
    }
    let layout = Layout::parse(report).ok_or_else(|| broken("the report descriptor makes no sense"))?;
    if layout.bytes() > LONGEST_REPORT {
        return Err(broken("reports are longer than the driver takes"));
    }
    Ok(layout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use report::tests::POINTER;

    fn description(report: &[u8]) -> Vec<u8> {
        let mut body = vec![0; INFO];
        body[0] = INFO as u8;
        body[4..8].copy_from_slice(&[0x5e, 0x04, 0x21, 0x06]);
        body.extend_from_slice(&[9, 0x21, 0x11, 1, 0, 1, 0x22, report.len() as u8, 0]);
        body.extend_from_slice(report);
        body
    }

    fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn a_device_is_described_and_moved() {
        let told = padded(message(DEVICE_INFO, &description(POINTER)));
        let Received::Info(layout) = parse(&told, &Layout::default()).expect("good") else { panic!("kind") };
        let moved = padded(message(INPUT_REPORT, &[2, 0xff, 0x7f, 1, 0, 0xff]));
        let Received::Report(report) = parse(&moved, &layout).expect("good") else { panic!("kind") };
        assert_eq!((report.x, report.y, report.buttons, report.wheel), (32767, 1, 2, -1));
    }

    #[test]
    fn nonsense_is_an_error() {
        let good = description(POINTER);
        for at in [0, 4, 6, INFO, INFO + 1, INFO + 5, INFO + 6, INFO + 7] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(parse(&padded(message(DEVICE_INFO, &bad)), &Layout::default()).is_err(), "{at}");
        }
        for len in 0..good.len() {
            let told = padded(message(DEVICE_INFO, &good[..len]));
            assert!(parse(&told, &Layout::default()).is_err(), "{len}");
        }
        let moved = padded(message(INPUT_REPORT, &[2, 0xff]));
        let layout = Layout::parse(POINTER).expect("good");
        assert!(parse(&moved, &layout).is_err());
        assert!(parse(&moved[..15], &layout).is_err());
    }
}
