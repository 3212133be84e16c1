//! From a message's bytes to the backend: each of its frames with its headers checked and repaired in private memory, the rest
//! of it straight from where the guest has put it.

use vsp::ipc::shm::HeldSpan;

use super::source::Source;
use super::stats::Stats;
use crate::backend::{Backend, Sent, broken};
use crate::headers::{ETHERNET_LEN, VLAN_LEN};
use crate::nvsp::Status;
use crate::offload::{self, Headers, VnetHeader};
use crate::oid;
use crate::rndis::{Frame, Frames};

/// How far a message has come.
pub(super) enum Progress {
    Done(Status),
    Later,
}

/// What became of one frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Sent, dropped: it is not thought of again.
    Over,
    /// The backend does not take it for now.
    Later,
}

/// What sending takes.
pub(super) struct Sender<'a> {
    pub backend: &'a mut Backend,
    pub queue: usize,
    pub nic: &'a mut oid::State,
    pub stats: &'a mut Stats,
    pub antispoof: bool,
    /// No operator wants it held up.
    pub passes: bool,
}

impl Sender<'_> {
    pub fn send_all(&mut self, source: Source<'_>, done: &mut usize) -> Progress {
        let frames = Frames::new(source.len(), |at, into: &mut [u8]| source.copy_out(at, into));
        let mut any = false;
        for (index, frame) in frames.enumerate() {
            any = true;
            let Ok(frame) = frame else {
                self.stats.malformed += 1;
                return Progress::Done(Status::InvalidRndisPacket);
            };
            if index < *done {
                continue;
            }
            match self.send_frame(&source, &frame) {
                Fate::Later => return Progress::Later,
                Fate::Over => *done += 1,
            }
        }
        Progress::Done(if any { Status::Success } else { Status::InvalidRndisPacket })
    }

    fn send_frame(&mut self, source: &Source<'_>, frame: &Frame) -> Fate {
        let len = frame.data.len();
        if !self.passes || !self.nic.link_up {
            return self.dropped();
        }
        let mut whole = true;
        let mut headers =
            Headers::copy(len, |into: &mut [u8]| whole = source.copy_out(frame.data.start, into));
        let Some(&[to, from]) = headers.as_slice().as_chunks::<6>().0.first_chunk().filter(|_| whole) else {
            return self.dropped();
        };
        if self.antispoof && !self.nic.is_ours(&from) {
            self.stats.spoofed += 1;
            return Fate::Over;
        }
        let Ok(vnet) = offload::transmit(&frame.info, &mut headers, len, self.nic.offloads) else {
            return self.dropped();
        };
        // Whatever is longer has to say how it is to be cut up.
        if vnet.gso_type == VnetHeader::GSO_NONE && len > self.nic.mtu as usize + ETHERNET_LEN + 2 * VLAN_LEN
        {
            return self.dropped();
        }
        let (at, rest) = (frame.data.start + headers.copied(), len - headers.copied());
        let sent = if rest == 0 {
            self.backend.send(self.queue, &vnet, headers.as_slice(), [])
        } else if let Some(span) = source.span(at, rest) {
            self.backend.send(self.queue, &vnet, headers.as_slice(), [span])
        } else {
            self.send_scattered(source, at, rest, &vnet, &headers)
        };
        match sent {
            Ok(Sent::Whole) => {
                self.nic.statistics.transmit.count(&to, len);
                Fate::Over
            }
            Ok(Sent::Later) => Fate::Later,
            Ok(Sent::Dropped) => self.dropped(),
            Err(error) => broken(&error),
        }
    }

    /// A frame that is in several places, or in private memory.
    fn send_scattered(
        &mut self,
        source: &Source<'_>,
        at: usize,
        rest: usize,
        vnet: &VnetHeader,
        headers: &Headers,
    ) -> std::io::Result<Sent> {
        let mut spans: Vec<HeldSpan<'_>> = Vec::new();
        if source.spans(at, rest, &mut spans).is_some() {
            return self.backend.send(self.queue, vnet, headers.as_slice(), spans.iter().copied());
        }
        let mut bytes = Vec::with_capacity(headers.as_slice().len() + rest);
        bytes.extend_from_slice(headers.as_slice());
        let head = bytes.len();
        bytes.resize(head + rest, 0);
        if !source.copy_out(at, &mut bytes[head..]) {
            return Ok(Sent::Dropped);
        }
        self.backend.send(self.queue, vnet, &bytes, [])
    }

    fn dropped(&mut self) -> Fate {
        self.nic.statistics.transmit.discards += 1;
        Fate::Over
    }
}
