//! The main loop: one thread, one epoll, turns of bounded length.
//!
//! A turn waits for something to happen, hears what the front end has to say, takes at most [`Face::batch`] requests from each queue, and
//! publishes what was completed. However fast a guest sends, the front end is heard every 50 microseconds at least, or after the
//! turn that took longer.
//!
//! One front end at a time. It is let in when the resource is ours and nothing of the one before is in flight: it may give back a region
//! that says what to run again.

mod hear;
mod wait;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use ipc::stream::Listener;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use thiserror::Error;
use vsp::notify::Notifier;
use vsp::polling::Polling;
use vsp::role::{Fencing, Patience};

use crate::chain::Chain;
use crate::connection::Connection;
use crate::crash;
use crate::face::Face;
use crate::memory::MemoryError;
use crate::queues::Queues;
use crate::session::Session;

/// Most requests taken from one queue in one turn, unless a device [says otherwise](Face::batch).
pub const BATCH: usize = 16;

/// Most messages of a front end that are heard in one turn.
const MESSAGES: usize = 32;

const LISTENER: Token = Token(0);
const FRONT_END: Token = Token(1);
const FIRST_SOURCE: usize = 2;
const FIRST_QUEUE: usize = 1 << 16;

/// What ends the process.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// epoll does not work.
    #[error("cannot wait for events: {0}")]
    Poll(#[from] io::Error),
    /// Nobody can connect any more.
    #[error("cannot accept connections: {0}")]
    Listener(#[source] io::Error),
    /// There is no memory to begin with.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The device cannot go on.
    #[error("{0}")]
    Device(String),
}

/// The front end.
#[derive(Debug)]
struct FrontEnd {
    connection: Connection,
    session: Session,
    /// It waits for the end of this queue, and is not heard meanwhile.
    stopping: Option<u16>,
    /// It has something to say that has not been heard.
    speaks: bool,
}

/// A device and its front end.
#[derive(Debug)]
pub struct Runtime<F> {
    face: F,
    queues: Queues,
    /// Where front ends connect; tests let them in by hand.
    listener: Option<Listener>,
    notifier: Notifier,
    /// Waiting for the resource; `None`: it is ours.
    fencing: Option<Fencing>,
    front_end: Option<FrontEnd>,
    /// Somebody may have connected.
    knocks: bool,
    poll: Poll,
    polling: Polling,
    events: Events,
    chain: Chain,
    /// Writes to the configuration space that were refused.
    refused: u64,
}

impl<F: Face> Runtime<F> {
    /// Prepares the loop. Everything that the loop needs is open afterwards.
    pub fn new(face: F, listener: Listener, notifier: Notifier) -> Result<Runtime<F>, RuntimeError> {
        Runtime::with(face, Some(listener), notifier)
    }

    /// The same without a place to connect to: front ends are [admitted](Runtime::admit) by hand.
    #[cfg(feature = "testing")]
    pub fn without_listener(face: F, notifier: Notifier) -> Result<Runtime<F>, RuntimeError> {
        Runtime::with(face, None, notifier)
    }

    fn with(mut face: F, listener: Option<Listener>, notifier: Notifier) -> Result<Runtime<F>, RuntimeError> {
        let poll = Poll::new()?;
        for (index, number) in face.sources().into_iter().enumerate() {
            let token = Token(FIRST_SOURCE + index);
            poll.registry().register(&mut SourceFd(&number), token, Interest::READABLE)?;
        }
        if let Some(listener) = &listener {
            let number = listener.as_raw_fd();
            poll.registry().register(&mut SourceFd(&number), LISTENER, Interest::READABLE)?;
            face.identify(&listener.address());
        }
        let queues = Queues::new(face.queues(), |queue| face.takes_itself(queue))?;
        Ok(Runtime {
            face,
            queues,
            listener,
            notifier,
            // Whoever had the resource before may need a while, be it a predecessor or a stranger.
            fencing: Some(Fencing::new(true)),
            front_end: None,
            knocks: true,
            poll,
            // Asked now: later nothing of the system can be seen.
            polling: Polling::new(std::thread::available_parallelism().map_or(1, usize::from)),
            events: Events::with_capacity(64),
            chain: Chain::new(),
            refused: 0,
        })
    }

    /// Descriptors of the loop and of the device, for the compartment to keep.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let mut all = self.face.descriptors();
        all.push(self.poll.as_raw_fd());
        all.extend(self.listener.as_ref().map(AsRawFd::as_raw_fd));
        all.extend(self.notifier.descriptor());
        all
    }

    /// The device.
    pub fn face(&self) -> &F {
        &self.face
    }

    /// The same, to be changed; for tests of what comes from neither guest nor front end.
    #[cfg(feature = "testing")]
    pub fn with_face<T>(&mut self, act: impl FnOnce(&mut F, &mut Queues) -> T) -> T {
        act(&mut self.face, &mut self.queues)
    }

    /// Whether the resource is not ours yet.
    pub fn is_fencing(&self) -> bool {
        self.fencing.is_some()
    }

    /// Whether a front end is connected.
    pub fn is_connected(&self) -> bool {
        self.front_end.is_some()
    }

    /// One turn. Waits at most `timeout` (`None`: for ever) if there is nothing to do.
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<(), RuntimeError> {
        self.wait(timeout)?;
        for event in &self.events {
            match event.token() {
                LISTENER => self.knocks = true,
                FRONT_END => {
                    if let Some(front_end) = &mut self.front_end {
                        front_end.speaks = true;
                    }
                }
                // The kick eventfd is never read: epoll reports each new write of an edge-triggered one by itself, and the ring says how
                // much there is.
                Token(number) if number >= FIRST_QUEUE => {}
                Token(number) => self.face.ready(number - FIRST_SOURCE, &mut self.queues),
            }
        }
        if self.fencing.is_some() {
            self.fence()?;
        }
        self.hear()?;
        self.answer_knock()?;
        // To begin with the next requests takes the longer the slower the resource is; what has ended need not wait for that.
        self.queues.publish_all();
        for queue in 0..self.queues.slots.len() as u16 {
            if self.queues.has_some(queue) {
                self.take_batch(queue);
            }
        }
        if self.face.wake_at().is_some_and(|then| then <= Instant::now()) {
            self.face.submit(&mut self.queues);
        }
        self.queues.publish_all();
        self.report_stop();
        Ok(())
    }

    /// Tries to make the resource ours.
    fn fence(&mut self) -> Result<(), RuntimeError> {
        let Some(fencing) = &mut self.fencing else { return Ok(()) };
        if self.face.fence().map_err(RuntimeError::Device)? {
            self.fencing = None;
            self.notifier.status(true, "waiting for a front end");
            return Ok(());
        }
        if let Patience::Say(waited) = fencing.in_vain() {
            let (seconds, resource) = (waited.as_secs(), self.face.resource());
            tracing::warn!(seconds, "waiting for {resource}: whoever had it is not done with it");
            self.notifier.status(false, &format!("fencing: waits for {resource}"));
        }
        Ok(())
    }

    /// Lets the next front end in, if there is room for it.
    fn answer_knock(&mut self) -> Result<(), RuntimeError> {
        if !self.knocks || !self.is_vacant() {
            return Ok(());
        }
        let Some(listener) = &self.listener else {
            self.knocks = false;
            return Ok(());
        };
        let stream = match listener.try_accept() {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.knocks = false;
                return Ok(());
            }
            // It has left again.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return Ok(()),
            Err(error) => return Err(RuntimeError::Listener(error)),
        };
        self.admit(stream)
    }

    /// A front end is here. Nothing of another one may be under way.
    pub fn admit(&mut self, stream: ipc::stream::Stream) -> Result<(), RuntimeError> {
        let connection = Connection::new(stream);
        let number = connection.as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&number), FRONT_END, Interest::READABLE)?;
        self.queues.begin_session()?;
        self.face.connected();
        let session = Session::default();
        self.front_end = Some(FrontEnd { connection, session, stopping: None, speaks: true });
        tracing::info!("a front end has connected");
        self.notifier.status(true, "serving");
        Ok(())
    }

    /// Whether a front end may be let in: nobody is there, and nothing of the one before is under way.
    pub fn is_vacant(&self) -> bool {
        self.fencing.is_none()
            && self.front_end.is_none()
            && self.queues.under_way() == 0
            && self.face.is_idle()
    }

    /// Whether the device wants no more of a queue for now.
    fn is_full(&self, queue: u16) -> bool {
        let live = self.queues.slots.get(usize::from(queue)).and_then(|slot| slot.live.as_ref());
        live.is_none_or(|live| {
            live.under_way >= self.face.depth() || (!live.stopping && self.face.holds_back(queue))
        })
    }

    /// Takes requests from one queue and has the device start on them.
    fn take_batch(&mut self, queue: u16) {
        if self.face.takes_itself(queue) {
            if !self.queues.feed(queue) {
                return;
            }
            self.face.filled(queue, &mut self.queues);
        } else {
            for _ in 0..self.face.batch() {
                if self.is_full(queue) {
                    break;
                }
                let Some(request) = self.queues.take(queue, &mut self.chain) else { break };
                crash::enter(queue, request.head);
                if request.poisoned {
                    tracing::error!(
                        queue,
                        head = request.head,
                        "a request that has killed its processes is failed"
                    );
                    self.face.reject(&self.chain, request, &mut self.queues);
                } else {
                    self.face.request(&self.chain, request, &mut self.queues);
                }
                // One of those that nobody trusts is suspect until it has ended.
                if !self.queues.is_careful() {
                    crash::leave();
                }
            }
        }
        self.face.submit(&mut self.queues);
        // Not at the end of the turn: the guest need not wait for other queues' batches.
        self.queues.publish_all();
        self.notifier.alive();
    }
}
