//! Host to guest: a frame is read from the backend into the buffers that the driver has given next, behind the place of its header, and they
//! become visible together at the turn's end.
//!
//! With too little memory for the longest frame, frames are read one by one into memory of ours and copied as far as the driver has given
//! enough: a small ring works, slowly. Without any, frames stay in the backend. One that has been read and has no place waits for some time; a
//! driver that has not even made room for it by then does not get it.

use std::time::{Duration, Instant};

use vhost_face::{Chain, Queues, Request};
use vsp::SharedMemory;
use vsp::ipc::shm::{GuestBuffer, HeldSpan, PagesMapping, ShmError};

use super::buffers::Buffers;
use super::features::Agreed;
use super::{Net, header, pieces};
use crate::backend::{LONGEST_FRAME, Received, VnetHeader, broken};
use crate::offload::{HEADERS_LEN, Sum};
use crate::oid::Mac;

/// Most frames of one queue in a row: then what was received becomes visible, and others have their turn.
const FRAMES_A_TURN: usize = 64;
/// Most buffers that are taken for one frame, and most that go back empty: as many as a ring has.
const BUFFERS_AT_ONCE: usize = 1024;
/// A delivery of more than one frame, or of so many bytes, is a stream's rather than somebody's question or answer.
const STREAM: usize = 4 << 10;
/// How long a frame waits for a driver that has some memory, and not enough for it. A driver gives more as soon as it is told of what it has
/// got; nobody waits for a frame so long.
const PATIENCE: Duration = Duration::from_millis(100);

/// A frame in memory of ours.
#[derive(Clone, Copy, Debug)]
struct Staged {
    /// Of the backend's.
    queue: usize,
    vnet: VnetHeader,
    len: usize,
    /// It has been tried in vain since then.
    since: Option<Instant>,
}

/// A queue of the backend's.
#[derive(Clone, Copy, Debug, Default)]
struct Source {
    /// It may have frames.
    readable: bool,
    /// It has been said that frames have to wait.
    waits: bool,
}

/// Where frames come from, and where they go.
#[derive(Debug)]
pub(super) struct Receive {
    sources: Vec<Source>,
    /// What the driver has given, by pairs of queues.
    given: Vec<Buffers<Request>>,
    /// Memory of ours for one frame.
    staging: PagesMapping,
    staged: Option<Staged>,
    /// What was delivered last was a stream's.
    streams: bool,
    /// Frames have been delivered that the backend may forget when the guest can see them.
    unsettled: bool,
    chain: Chain,
}

/// What came of trying to deliver.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A frame of so many bytes.
    Delivered(usize),
    /// Something was done.
    Done,
    /// There are no more frames.
    Nothing,
    /// There is no memory for them.
    Waits,
}

impl Receive {
    pub fn new(sources: usize, pairs: usize) -> Result<Receive, ShmError> {
        let staging =
            SharedMemory::create("bulkhead-net-frame", LONGEST_FRAME.next_multiple_of(4096) as u64)?;
        Ok(Receive {
            sources: vec![Source::default(); sources],
            given: (0..pairs).map(|_| Buffers::default()).collect(),
            staging: PagesMapping::new(&staging)?,
            staged: None,
            streams: false,
            unsettled: false,
            chain: Chain::new(),
        })
    }

    /// Frames may have come: to one queue, or (`None`) to any.
    pub fn readable(&mut self, source: Option<usize>) {
        match source {
            Some(source) => {
                if let Some(source) = self.sources.get_mut(source) {
                    source.readable = true;
                }
            }
            None => self.sources.iter_mut().for_each(|source| source.readable = true),
        }
    }

    /// Whether frames come by themselves, so that nobody has to ask for them.
    pub fn streams(&self) -> bool {
        self.streams
    }

    /// When a frame has waited long enough.
    pub fn wake_at(&self) -> Option<Instant> {
        self.staged.and_then(|staged| staged.since).map(|since| since + PATIENCE)
    }

    /// Takes buffers of a pair's until there is room for `wanted` bytes, or the driver has given no more. Whether there is. Those that are no
    /// good go back as soon as they come first; `bad` counts them.
    fn gather(&mut self, pair: u16, wanted: usize, merges: bool, bad: &mut u64, queues: &mut Queues) -> bool {
        let Some(given) = self.given.get_mut(usize::from(pair)) else { return false };
        while let Some(request) = given.pop_bad() {
            *bad += 1;
            request.complete(queues, 0);
        }
        // A driver that gives nothing but such buffers, as fast as they come back, holds nobody up.
        for _ in 0..BUFFERS_AT_ONCE {
            if given.room() >= wanted || !given.takes_more(merges) {
                break;
            }
            let Some(request) = queues.take(pair * 2, &mut self.chain) else { break };
            // A buffer that killed processes is as good as one that is no RAM: it goes back empty, in its turn.
            let pieces = self.chain.writable().iter().map(|piece| (piece.gpa, piece.len.into()));
            let memory = GuestBuffer::new(queues.ram(), pieces).ok().filter(|_| !request.is_poisoned());
            given.push(request, memory);
            if let Some(request) = given.pop_bad() {
                *bad += 1;
                request.complete(queues, 0);
            }
        }
        given.room() >= wanted
    }

    /// What is held of a pair's goes back as it came.
    pub fn give_back(&mut self, pair: u16, queues: &mut Queues) {
        let Some(given) = self.given.get_mut(usize::from(pair)) else { return };
        while let Some(request) = given.pop_back() {
            if let Err(request) = request.give_back(queues) {
                // It cannot be, as what is held was taken last. An empty answer is better than none.
                request.complete(queues, 0);
            }
        }
    }

    /// The front end is gone, and what it had in flight is its own to keep.
    pub fn forget(&mut self, queues: &mut Queues) {
        for given in &mut self.given {
            while let Some(request) = given.pop_back() {
                request.complete(queues, 0);
            }
        }
        if let Some(staged) = &mut self.staged {
            staged.since = None;
        }
    }
}

impl Net {
    /// What was delivered in an earlier turn, the guest can see by now.
    pub(super) fn settle(&mut self) {
        if !std::mem::take(&mut self.receive.unsettled) {
            return;
        }
        let settled = match self.receive.staged {
            None => self.backend.settle(),
            Some(_) => self.backend.settle_but_last(),
        };
        if let Err(error) = settled {
            broken(&error);
        }
    }

    /// Delivers what there is, as far as it goes. True: something was done.
    pub(super) fn receive(&mut self, queues: &mut Queues) -> bool {
        let mut any = false;
        for source in 0..self.receive.sources.len() {
            if !self.setting.link_up {
                any |= self.discard(source);
                continue;
            }
            let waits = self.receive.staged.is_some_and(|staged| staged.queue == source);
            if (self.receive.sources[source].readable || waits)
                && let Some(pair) = self.pair_of(source, queues)
            {
                any |= self.deliver(source, pair, queues);
            } else if waits && let Some(staged) = &mut self.receive.staged {
                // There is no ring to wait for: its patience begins when there is one.
                staged.since = None;
            }
        }
        any
    }

    /// The pair that a queue of the backend's feeds: by its number among all pairs; the first for those that the guest does not use (yet, or any
    /// more). `None`: the guest uses none.
    fn pair_of(&self, source: usize, queues: &Queues) -> Option<u16> {
        let own = (source % usize::from(self.pairs.max(1))) as u16;
        [own, 0].into_iter().find(|pair| queues.is_enabled(pair * 2))
    }

    /// One queue's frames, to one pair. True: something was done.
    fn deliver(&mut self, source: usize, pair: u16, queues: &mut Queues) -> bool {
        let (mut any, mut frames, mut bytes) = (false, 0, 0);
        for _ in 0..FRAMES_A_TURN {
            let bad = self.stats.rx_bad;
            let step = match self.step(source, pair, queues) {
                // What went back has to become visible.
                Step::Waits if self.stats.rx_bad != bad => Step::Done,
                step => step,
            };
            match step {
                Step::Delivered(len) => {
                    any = true;
                    frames += 1;
                    bytes += len;
                }
                Step::Done => any = true,
                Step::Nothing => {
                    self.receive.sources[source].readable = false;
                    break;
                }
                Step::Waits => {
                    let source = &mut self.receive.sources[source];
                    self.stats.rx_waits += u64::from(!source.waits);
                    source.waits = true;
                    break;
                }
            }
            self.receive.sources[source].waits = false;
        }
        if frames > 0 {
            self.receive.streams = frames > 1 || bytes > STREAM;
        }
        any
    }

    /// One frame.
    fn step(&mut self, source: usize, pair: u16, queues: &mut Queues) -> Step {
        if let Some(staged) = self.receive.staged.filter(|staged| staged.queue == source) {
            return self.unstage(staged, pair, queues);
        }
        let (header_len, merges) = (self.agreed.header_len(), self.agreed.merges());
        let longest = self.agreed.longest_received(self.setting.mtu);
        let bad = &mut self.stats.rx_bad;
        let enough = self.receive.gather(pair, header_len + longest, merges, bad, queues);
        let Some(given) = self.receive.given.get(usize::from(pair)) else { return Step::Waits };
        if given.count() == 0 {
            return Step::Waits;
        }
        if !enough || !given.is_simple() {
            return self.stage(source, longest);
        }
        let memory = pieces::take(pieces::skip(given.memory(), header_len), longest);
        match self.backend.receive(source, memory) {
            Err(error) => broken(&error),
            Ok(Received::Nothing) => Step::Nothing,
            Ok(Received::Dropped) => self.lost(),
            Ok(Received::Frame { vnet, len }) => {
                self.receive.unsettled = true;
                self.hand_over(&vnet, len.min(longest), pair, queues)
            }
        }
    }

    /// Reads a frame into memory of ours.
    fn stage(&mut self, source: usize, longest: usize) -> Step {
        if self.receive.staged.is_some() {
            return Step::Waits;
        }
        let staging = self.receive.staging.clone();
        let Ok(memory) = staging.span(0, longest.min(LONGEST_FRAME)) else { return Step::Waits };
        match self.backend.receive(source, [memory]) {
            Err(error) => broken(&error),
            Ok(Received::Nothing) => Step::Nothing,
            Ok(Received::Dropped) => self.lost(),
            Ok(Received::Frame { vnet, len }) => {
                self.stats.rx_staged += 1;
                self.receive.unsettled = true;
                self.receive.staged = Some(Staged { queue: source, vnet, len, since: None });
                Step::Done
            }
        }
    }

    /// Takes buffers until a frame of so many bytes can lie in them. Whether it can.
    fn place_for(&mut self, wanted: usize, pair: u16, merges: bool, queues: &mut Queues) -> bool {
        for _ in 0..BUFFERS_AT_ONCE {
            let bad = &mut self.stats.rx_bad;
            let enough = self.receive.gather(pair, wanted, merges, bad, queues);
            let given = self.receive.given.get_mut(usize::from(pair));
            let Some(request) = given.and_then(|given| given.pop_useless(wanted)) else { return enough };
            // The frame is kept for those behind it.
            self.stats.rx_bad += 1;
            request.complete(queues, 0);
        }
        false
    }

    /// Copies the frame that was read to where it belongs.
    fn unstage(&mut self, staged: Staged, pair: u16, queues: &mut Queues) -> Step {
        let (header_len, merges) = (self.agreed.header_len(), self.agreed.merges());
        let wanted = header_len + staged.len;
        if !self.place_for(wanted, pair, merges, queues) {
            let now = Instant::now();
            let since = staged.since.unwrap_or(now);
            let given = self.receive.given.get(usize::from(pair));
            // Without merging, the buffer that there is remains the one that there is.
            let hopeless = given.is_some_and(|given| given.count() > 0 && !given.takes_more(merges));
            if hopeless || now.saturating_duration_since(since) >= PATIENCE {
                self.receive.staged = None;
                return self.lost();
            }
            self.receive.staged = Some(Staged { since: Some(since), ..staged });
            return Step::Waits;
        }
        self.receive.staged = None;
        self.receive.unsettled = true;
        let staging = self.receive.staging.clone();
        let (Ok(from), Some(given)) =
            (staging.span(0, staged.len), self.receive.given.get(usize::from(pair)))
        else {
            return self.lost();
        };
        copy(from, pieces::skip(given.memory(), header_len));
        self.hand_over(&staged.vnet, staged.len, pair, queues)
    }

    /// A frame is in the buffers: its header is made, and the guest gets it.
    fn hand_over(&mut self, vnet: &VnetHeader, len: usize, pair: u16, queues: &mut Queues) -> Step {
        let agreed = self.agreed;
        let Some(given) = self.receive.given.get_mut(usize::from(pair)) else { return Step::Done };
        let Some(destination) = finish(given, vnet, len, agreed) else { return self.lost() };
        self.stats.frames.receive.count(&destination, len);
        given.written(agreed.header_len() + len, |request, written| request.complete(queues, written as u32));
        Step::Delivered(len)
    }

    /// Reads frames that nobody wants. True: there were some.
    fn discard(&mut self, source: usize) -> bool {
        let mut any = false;
        for _ in 0..FRAMES_A_TURN {
            if !self.receive.sources[source].readable {
                break;
            }
            self.receive.staged = None;
            match self.stage(source, LONGEST_FRAME) {
                Step::Done => any = true,
                _ => self.receive.sources[source].readable = false,
            }
        }
        self.receive.staged = None;
        any
    }

    /// A frame that nobody gets. The buffers are as they were.
    fn lost(&mut self) -> Step {
        self.receive.unsettled = true;
        self.stats.frames.receive.errors += 1;
        Step::Done
    }
}

/// Makes a frame of `len` bytes in these buffers what the driver has agreed to, and puts its header in front; to whom it is. `None`: the driver
/// cannot take it.
fn finish<R>(given: &Buffers<R>, vnet: &VnetHeader, len: usize, agreed: Agreed) -> Option<Mac> {
    let header_len = agreed.header_len();
    let mut head = [0; HEADERS_LEN];
    let head = &mut head[..len.min(HEADERS_LEN)];
    let frame = pieces::take(pieces::skip(given.memory(), header_len), len);
    let destination = pieces::copy_out(frame.clone(), head).then(|| head.first_chunk().copied())??;
    let found = header::receive(vnet, head, len, agreed.receive())?;
    if let Some(complete) = found.complete {
        let sum = sum(pieces::skip(frame.clone(), complete.start));
        pieces::copy_in(pieces::skip(frame, complete.at), &complete.finish(sum));
    }
    let buffers = u16::try_from(given.of(header_len + len)).unwrap_or(u16::MAX);
    let header = header::bytes(&found.vnet, buffers);
    pieces::copy_in(given.memory(), &header[..header_len]).then_some(destination)
}

/// The sum of what is in these places.
fn sum<'a>(from: impl Iterator<Item = HeldSpan<'a>>) -> Sum {
    let (mut sum, mut bytes) = (Sum::new(), [0; 2048]);
    for span in from {
        for at in (0..span.len()).step_by(bytes.len()) {
            let part = &mut bytes[..(span.len() - at).min(2048)];
            if span.copy_out(at, part).is_ok() {
                sum = sum.add(part);
            }
        }
    }
    sum
}

/// Copies from memory of ours, as far as there is room.
fn copy<'a>(from: HeldSpan<'_>, into: impl Iterator<Item = HeldSpan<'a>>) {
    let (mut from, mut bytes) = (from, [0; 4096]);
    for span in into {
        if from.is_empty() {
            return;
        }
        let mut at = 0;
        while at < span.len() && !from.is_empty() {
            let part = &mut bytes[..(span.len() - at).min(from.len()).min(4096)];
            let (now, rest) = from.split_at(part.len());
            let copied = now.copy_out(0, part).and_then(|()| span.copy_in(at, part));
            debug_assert!(copied.is_ok(), "both have so many bytes");
            at += part.len();
            from = rest;
        }
    }
}
