//! Guest to host: the frames of a message, one after the other, each with its headers checked and repaired in private
//! memory, its rest straight from where the guest has put it.
//!
//! A frame that the backend does not take for now waits, and those behind it on its channel do; nothing is sent again by this
//! process. A successor sends a message's frames again from the first on, which a network bears.

use std::time::{Duration, Instant};

use vsp::ipc::message::MAX_FETCH;
use vsp::ipc::shm::PagesMapping;
use vsp::vmbus::gpadl::Limits;
use vsp::vmbus::packet::{GpaRange, PacketType};
use vsp::{Channels, GuestBuffer, Packet, Request};

use super::Net;
use super::send::{Progress, Sender};
use super::source::{Piece, Source};
use super::state::Phase;
use crate::nvsp::{HostMessage, Section, Status};
use crate::oid;

/// What a packet may name: Linux sends 32 ranges of a page or a few each at most.
pub(super) const LIMITS: Limits = Limits { ranges: 64, pages: MAX_FETCH / 4096 + 64 };
/// Bytes of page lists that are kept for frames which wait, of all channels together. A queue of a NIC is not endless: what
/// does not fit is dropped.
const MOST_HELD: usize = 16 << 20;
/// How long a frame waits before it is tried again, unless the backend says something earlier.
const AGAIN: Duration = Duration::from_millis(1);

/// The bytes of a message that its packet names, besides those in a section.
#[derive(Debug)]
pub(super) enum Pages {
    /// None, or none that can be had.
    None,
    /// A private copy.
    Fetched(Vec<u8>),
    /// Where they are in guest RAM.
    Guest(GuestBuffer),
}

/// The same for as long as the packet is looked at.
#[derive(Clone, Copy)]
enum PagesRef<'a> {
    None,
    Private(&'a [u8]),
    Guest(&'a GuestBuffer),
}

impl Pages {
    fn as_ref(&self) -> PagesRef<'_> {
        match self {
            Pages::None => PagesRef::None,
            Pages::Fetched(bytes) => PagesRef::Private(bytes),
            Pages::Guest(buffer) => PagesRef::Guest(buffer),
        }
    }

    fn len(&self) -> usize {
        match self {
            Pages::Fetched(bytes) => bytes.len(),
            _ => 0,
        }
    }
}

/// A request whose frames wait.
#[derive(Debug)]
pub(super) struct Held {
    request: Request,
    section: Option<Section>,
    pages: Pages,
    /// Frames that are done with.
    done: usize,
}

/// The send buffer, and what waits.
#[derive(Debug, Default)]
pub(super) struct Transmit {
    /// The buffer, once the core has shared it.
    pub pages: Option<PagesMapping>,
    /// Bytes in page lists of requests that wait.
    held: usize,
    /// When those are tried again.
    pub again: Option<Instant>,
}

/// Bytes of a section of the send buffer: what a driver copies into one is sent without a look at guest memory.
///
/// A process that sees guest memory has no need of that for long frames: their driver names the pages in which they are and
/// copies nothing but what is short. For one that does not, a section takes the largest frame that we let the guest send,
/// with room for its headers and Linux' alignment, where there is segmentation: Linux has 16 of these in its usual buffer.
/// Without, it is some frames.
pub(super) fn section_size(offloads: oid::Offloads, mtu: u32, sees_guest: bool) -> u32 {
    let segments = offloads.intersects(oid::Offloads::LSO4 | oid::Offloads::LSO6);
    if segments && !sees_guest {
        (oid::MAX_LSO + HEADERS).next_multiple_of(64)
    } else {
        (mtu + HEADERS).next_multiple_of(1024).max(SMALL_SECTION)
    }
}

/// Bytes in front of a frame and behind it: RNDIS and Ethernet headers, a tag, padding.
const HEADERS: u32 = 512;
/// Bytes of a section where frames are not large: about eight of the usual ones, which is what we tell guests to send at once.
const SMALL_SECTION: u32 = 14 << 10;

impl Net {
    /// A message with frames.
    pub(super) fn transmit(
        &mut self,
        section: Option<Section>,
        packet: Packet<'_>,
        request: Request,
        channels: &mut Channels,
    ) {
        if self.state.phase != Phase::Running {
            return self.sent(request, Status::Fail, channels);
        }
        let Ok(guest) = self.guest_pages(packet) else {
            self.stats.malformed += 1;
            return self.sent(request, Status::InvalidRndisPacket, channels);
        };
        let pages = match &guest {
            Some(buffer) => PagesRef::Guest(buffer),
            None if packet.header.packet_type != PacketType::GPA_DIRECT => PagesRef::None,
            None if packet.fetched.is_empty() => {
                // Nobody could fetch it, or it was too long to be kept for this successor: lost on the way.
                self.state.nic.statistics.transmit.discards += 1;
                return self.sent(request, Status::Success, channels);
            }
            None => PagesRef::Private(packet.fetched),
        };
        self.stats.tx_by_pages += u64::from(!matches!(pages, PagesRef::None));
        let Some(number) = self.ports.number(request.channel()) else {
            return self.sent(request, Status::Fail, channels);
        };
        let waits = self.ports.get(number).is_some_and(|port| !port.held.is_empty());
        let mut done = 0;
        let progress = if waits { Progress::Later } else { self.send(number, section, pages, &mut done) };
        match progress {
            Progress::Done(status) => self.sent(request, status, channels),
            Progress::Later => {
                let pages = match guest {
                    Some(buffer) => Pages::Guest(buffer),
                    None if packet.fetched.is_empty() => Pages::None,
                    None => Pages::Fetched(packet.fetched.to_vec()),
                };
                self.hold(number, Held { request, section, pages, done }, channels);
            }
        }
    }

    /// The guest memory that a packet names, if this process sees it.
    pub(super) fn guest_pages(&mut self, packet: Packet<'_>) -> Result<Option<GuestBuffer>, ()> {
        let (Some(ram), PacketType::GPA_DIRECT) = (&self.ram, packet.header.packet_type) else {
            return Ok(None);
        };
        let ranges = packet.header.gpa_ranges(packet.bytes, LIMITS).map_err(|_| ())?;
        let pieces = ranges.flat_map(GpaRange::pieces).map(|(gpa, len)| (gpa, len.into()));
        GuestBuffer::new(ram, pieces).map(Some).map_err(|_| ())
    }

    /// A message has been dealt with: its bytes are the guest's again.
    pub(super) fn sent(&mut self, request: Request, status: Status, channels: &mut Channels) {
        let answer = HostMessage::RndisPacketComplete { status }.encode(self.version());
        self.answer(request, &answer, channels);
    }

    /// A message waits, unless there are too many.
    fn hold(&mut self, number: u16, held: Held, channels: &mut Channels) {
        let len = held.pages.len();
        let port = self.ports.get_mut(number);
        match port {
            Some(port) if self.transmit.held + len <= MOST_HELD => {
                self.transmit.held += len;
                self.stats.tx_waits += 1;
                port.held.push_back(held);
                self.transmit.again.get_or_insert_with(|| Instant::now() + AGAIN);
            }
            _ => {
                self.state.nic.statistics.transmit.discards += 1;
                self.sent(held.request, Status::Success, channels);
            }
        }
    }

    /// Tries what waits, if it is time or `now`. True: something has ended.
    pub(super) fn retry(&mut self, now: bool, channels: &mut Channels) -> bool {
        match self.transmit.again {
            None => return false,
            Some(then) if !now && Instant::now() < then => return false,
            Some(_) => self.transmit.again = None,
        }
        let mut any = false;
        for number in 0..self.ports.numbers() {
            while let Some(mut held) = self.ports.get_mut(number).and_then(|port| port.held.pop_front()) {
                let progress = self.send(number, held.section, held.pages.as_ref(), &mut held.done);
                match progress {
                    Progress::Later if self.hands_over.is_some_and(|then| then <= Instant::now()) => {
                        self.state.nic.statistics.transmit.discards += 1;
                        self.transmit.held -= held.pages.len();
                        self.sent(held.request, Status::Success, channels);
                    }
                    Progress::Later => {
                        if let Some(port) = self.ports.get_mut(number) {
                            port.held.push_front(held);
                        }
                        self.transmit.again = Some(Instant::now() + AGAIN);
                        break;
                    }
                    Progress::Done(status) => {
                        self.transmit.held -= held.pages.len();
                        self.sent(held.request, status, channels);
                    }
                }
                any = true;
            }
        }
        any
    }

    /// A channel closes: its frames are not sent, its requests end.
    pub(super) fn forget_held(&mut self, held: impl IntoIterator<Item = Held>) {
        for held in held {
            self.transmit.held -= held.pages.len();
            self.leftovers.push(held.request);
        }
    }

    /// Sends the frames of a message, from the one after `done` on.
    fn send(
        &mut self,
        number: u16,
        section: Option<Section>,
        pages: PagesRef<'_>,
        done: &mut usize,
    ) -> Progress {
        let queue = usize::from(number) % self.backend.queues();
        let Net { transmit, backend, state, stats, setting, .. } = self;
        let piece = match section {
            None => None,
            Some(Section { index, size }) => {
                let buffer = state.send.as_ref().filter(|buffer| index < buffer.count && size <= buffer.size);
                let span = buffer.zip(transmit.pages.as_ref()).and_then(|(buffer, pages)| {
                    pages.span(index as usize * buffer.size as usize, size as usize).ok()
                });
                match span {
                    Some(span) => Some(Piece::Shared(span)),
                    None => {
                        stats.malformed += 1;
                        return Progress::Done(Status::InvalidRndisPacket);
                    }
                }
            }
        };
        let mut sender = Sender {
            backend,
            queue,
            nic: &mut state.nic,
            stats,
            antispoof: setting.antispoof,
            passes: !state.paused,
        };
        match (piece, pages) {
            (Some(piece), PagesRef::None) => sender.send_all(Source::new(&[piece]), done),
            (None, PagesRef::Private(bytes)) => sender.send_all(Source::new(&[Piece::Private(bytes)]), done),
            (None, PagesRef::None) => {
                sender.stats.malformed += 1;
                Progress::Done(Status::InvalidRndisPacket)
            }
            (piece, pages) => {
                let mut pieces: Vec<Piece<'_>> = piece.into_iter().collect();
                match pages {
                    PagesRef::Private(bytes) => pieces.push(Piece::Private(bytes)),
                    PagesRef::Guest(buffer) => {
                        pieces.extend(buffer.held().iter().copied().map(Piece::Shared))
                    }
                    PagesRef::None => {}
                }
                sender.send_all(Source::new(&pieces), done)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_does_not_see_guest_memory_has_long_frames_copied() {
        let segments = oid::Offloads::LSO4;
        assert!(section_size(segments, 1500, false) >= oid::MAX_LSO + 14 + 4);
        let small = section_size(segments, 1500, true);
        assert_eq!(small, section_size(oid::Offloads::empty(), 1500, false));
        assert!(
            (8 * 1514..oid::MAX_LSO / 2).contains(&small),
            "{small} bytes are a batch, and no long frame"
        );
        assert!(section_size(segments, 9000, true) > 9000 + 14 + 4, "an ordinary frame fits");
    }
}
