//! The device: a NIC between the queues of a virtio driver and its backend.
//!
//! Nothing is kept for a successor but what the front end keeps: features, rings, and which requests are in flight. Requests of a queue end in the
//! order in which they came, so that even a front end that keeps no list of them (QEMU keeps none for a NIC) knows which have ended: all up to the
//! ring's used index. A send in flight is repeated, which a network bears; its request ends once. Buffers that were taken and not used
//! come to the successor again, or go back to the ring.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use vhost_face::{Chain, Face, Queues, Request};
use vsp::ipc::shm::{GuestBuffer, ShmError};

use super::config::config;
use super::features::{Agreed, Features};
use super::receive::Receive;
use super::send::{Fate, Sender};
use super::stats::Stats;
use crate::backend::{Backend, broken};
use crate::cli::Setting;

/// Most requests of a queue that wait for the backend: it takes none sooner for having more of them, and the ring has room for the others.
const DEPTH: u32 = 128;
/// Frames that are sent in one go: enough that neither the driver's interrupt nor ours is felt, few enough that it works on while we do.
const BATCH: usize = 64;
/// How long a frame waits before it is tried again, unless the backend says something earlier.
const AGAIN: Duration = Duration::from_millis(1);

/// How long frames go on waiting for the backend while their queue is to stop: a network may lose frames, and a front end that waits for the
/// end of a queue stands still with all of its machine.
const LAST_TRIES: Duration = Duration::from_millis(200);

/// A request whose frame waits.
#[derive(Debug)]
struct Held {
    request: Request,
    /// `None`: there is none, and it only waits for its turn to end.
    frame: Option<GuestBuffer>,
}

/// What waits of one pair's.
#[derive(Debug, Default)]
struct Waiting {
    held: VecDeque<Held>,
    /// Its queue is to stop, and what cannot go back waits no longer than until then.
    last_try: Option<Instant>,
}

/// The NIC.
#[derive(Debug)]
pub struct Net {
    pub(super) setting: Setting,
    pub(super) backend: Backend,
    /// Pairs of queues that a driver may have.
    pub(super) pairs: u16,
    pub(super) agreed: Agreed,
    pub(super) receive: Receive,
    pub(super) stats: Stats,
    /// What waits, by pairs.
    waiting: Vec<Waiting>,
    /// When that is tried again.
    again: Option<Instant>,
}

/// The pair that a queue belongs to, and whether it is the one that the driver sends by (virtio 1.2, 5.1.2: receive queues are even).
fn place(queue: u16) -> (u16, bool) {
    (queue / 2, queue % 2 == 1)
}

impl Net {
    /// Makes the NIC of a backend that is not used yet. Nothing is opened afterwards.
    pub fn open(setting: Setting, backend: Backend) -> Result<Net, ShmError> {
        let pairs = setting.queues.max(1);
        Ok(Net {
            receive: Receive::new(backend.queues(), pairs.into())?,
            waiting: (0..pairs).map(|_| Waiting::default()).collect(),
            setting,
            backend,
            pairs,
            agreed: Agreed::default(),
            stats: Stats::default(),
            again: None,
        })
    }

    /// Sends a frame of a pair's, if it is one, or says that it has to wait.
    fn try_send(&mut self, pair: u16, frame: Option<&GuestBuffer>) -> Fate {
        let Some(frame) = frame else {
            self.stats.frames.transmit.errors += 1;
            return Fate::Over;
        };
        let Net { setting, backend, agreed, stats, .. } = self;
        let queue = usize::from(pair) % backend.queues();
        Sender { backend, queue, setting, agreed: *agreed, stats }.send(frame)
    }

    /// Sends a frame, and ends its request behind those that wait. `None`: it is no frame, or must not be tried; it ends in its turn all the
    /// same, as a front end that keeps no list of what is in flight takes whatever ends for the next in the ring.
    fn transmit(&mut self, request: Request, frame: Option<GuestBuffer>, queues: &mut Queues) {
        let pair = place(request.queue()).0;
        let waits = self.waiting.get(usize::from(pair)).is_some_and(|waiting| !waiting.held.is_empty());
        let fate = if waits { Fate::Later } else { self.try_send(pair, frame.as_ref()) };
        match self.waiting.get_mut(usize::from(pair)) {
            Some(waiting) if fate == Fate::Later => {
                self.stats.tx_waits += 1;
                waiting.held.push_back(Held { request, frame });
                self.again.get_or_insert_with(|| Instant::now() + AGAIN);
            }
            _ => request.complete(queues, 0),
        }
    }

    /// What the backend may leave to the driver is what has been agreed on last.
    fn renew_offloads(&mut self) {
        if let Err(error) = self.backend.set_offloads(self.agreed.receive()) {
            broken(&error);
        }
    }

    /// Tries what waits, if it is time or `now`. True: something has ended.
    fn retry(&mut self, now: bool, queues: &mut Queues) -> bool {
        match self.again {
            None => return false,
            Some(then) if !now && Instant::now() < then => return false,
            Some(_) => self.again = None,
        }
        let mut any = false;
        for pair in 0..self.waiting.len() {
            while let Some(held) = self.waiting[pair].held.pop_front() {
                if self.try_send(pair as u16, held.frame.as_ref()) == Fate::Later {
                    let now = Instant::now();
                    if self.waiting[pair].last_try.is_none_or(|then| now < then) {
                        self.waiting[pair].held.push_front(held);
                        self.again = Some(now + AGAIN);
                        break;
                    }
                    self.stats.frames.transmit.discards += 1;
                }
                held.request.complete(queues, 0);
                any = true;
            }
        }
        any
    }

    /// Frames that wait for the backend, of all queues.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(|waiting| waiting.held.len()).sum()
    }
}

impl Face for Net {
    fn features(&self) -> u64 {
        Features::offered(self.backend.offloads(), self.pairs).bits()
    }

    fn queues(&self) -> u16 {
        self.pairs * 2
    }

    fn config(&self, offset: usize, into: &mut [u8]) {
        let Setting { mac, link_up, mtu, .. } = self.setting;
        let all = config(mac, link_up, self.pairs, mtu);
        let there = all.get(offset..).unwrap_or_default();
        let len = there.len().min(into.len());
        into[..len].copy_from_slice(&there[..len]);
    }

    fn descriptors(&self) -> Vec<RawFd> {
        self.backend.fds()
    }

    fn sources(&self) -> Vec<RawFd> {
        self.backend.fds()
    }

    fn resource(&self) -> String {
        "its network backend".into()
    }

    fn fence(&mut self) -> Result<bool, String> {
        self.backend.start().map_err(|error| format!("the network backend cannot be used: {error}"))?;
        self.receive.readable(None);
        Ok(true)
    }

    fn connected(&mut self) {
        self.agreed = Agreed::default();
        self.receive.readable(None);
    }

    fn negotiated(&mut self, features: u64) {
        self.agreed = Agreed::new(features);
        self.renew_offloads();
    }

    fn stopping(&mut self, queue: u16, queues: &mut Queues) {
        let (pair, sends) = place(queue);
        if !sends {
            return self.receive.give_back(pair, queues);
        }
        let Some(waiting) = self.waiting.get_mut(usize::from(pair)) else { return };
        // What a predecessor had begun comes again at once.
        waiting.last_try = Some(Instant::now() + LAST_TRIES);
        while let Some(Held { request, .. }) = waiting.held.pop_back() {
            if let Err(request) = request.give_back(queues) {
                // It cannot be: what waits was taken last. A frame may be lost, an answer never.
                request.complete(queues, 0);
            }
        }
    }

    fn disconnected(&mut self, queues: &mut Queues) {
        self.receive.forget(queues);
        for waiting in &mut self.waiting {
            waiting.last_try = None;
            waiting.held.drain(..).for_each(|held| held.request.complete(queues, 0));
        }
        self.again = None;
        std::mem::take(&mut self.stats).log();
    }

    fn depth(&self) -> u32 {
        DEPTH
    }

    fn batch(&self) -> usize {
        BATCH
    }

    fn takes_itself(&self, queue: u16) -> bool {
        !place(queue).1
    }

    fn filled(&mut self, _queue: u16, queues: &mut Queues) {
        self.receive(queues);
    }

    fn started(&mut self, queue: u16, queues: &mut Queues) {
        if let Some(waiting) = self.waiting.get_mut(usize::from(place(queue).0)) {
            waiting.last_try = None;
        }
        // A driver that has taken no features has said nothing of them, either.
        self.renew_offloads();
        self.receive.readable(None);
        self.receive(queues);
    }

    fn request(&mut self, chain: &Chain, request: Request, queues: &mut Queues) {
        let pieces = chain.readable().iter().map(|piece| (piece.gpa, piece.len.into()));
        let frame = GuestBuffer::new(queues.ram(), pieces);
        self.transmit(request, frame.ok(), queues);
    }

    fn reject(&mut self, _chain: &Chain, request: Request, queues: &mut Queues) {
        self.transmit(request, None, queues);
    }

    fn submit(&mut self, queues: &mut Queues) {
        self.retry(false, queues);
        if self.receive.wake_at().is_some_and(|then| then <= Instant::now()) {
            self.receive(queues);
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        [self.again, self.receive.wake_at()].into_iter().flatten().min()
    }

    fn ready(&mut self, source: usize, queues: &mut Queues) {
        self.receive.readable(Some(source));
        self.retry(true, queues);
        self.receive(queues);
    }

    fn poll(&mut self, queues: &mut Queues) -> bool {
        // What was delivered before this turn is visible by now.
        self.settle();
        let any = self.again.is_some() && self.retry(false, queues);
        // Between two sleeps nobody says that a frame has come: it is asked for, or it would wait as long as the guest is looked for.
        // In a stream of large ones it waits for others: what comes together is delivered together.
        if !self.receive.streams() {
            self.receive.readable(None);
        }
        self.receive(queues) || any
    }
}
