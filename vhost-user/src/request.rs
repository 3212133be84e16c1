//! A request as a linear value: it is completed once, or the test fails.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::queues::Queues;

/// A chain that the device has taken and owes an end.
///
/// A guest waits for ever for a request that does not end, and a queue is stopped only when all of its requests have. So one that is
/// dropped uncompleted panics in debug builds, and is logged and counted in release builds.
#[must_use = "a request that is dropped hangs the guest: complete it"]
#[derive(Debug)]
pub struct Request {
    pub(crate) queue: u16,
    pub(crate) head: u16,
    /// Of which session it is: what ended with a session is nobody's any more.
    pub(crate) session: u32,
    /// Where it was in the available part; `None`: a predecessor has taken it.
    pub(crate) position: Option<u16>,
    pub(crate) poisoned: bool,
    open: bool,
}

static LOST: AtomicU64 = AtomicU64::new(0);

impl Request {
    pub(crate) fn new(queue: u16, head: u16, session: u32, position: Option<u16>, poisoned: bool) -> Request {
        Request { queue, head, session, position, poisoned, open: true }
    }

    /// The queue that it came by.
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// Whether it has killed so many processes that it should be failed untried. Only what a device [takes](Queues::take) itself can be;
    /// of others [`crate::Face::reject`] is told.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// A predecessor had it in flight.
    pub fn is_rerun(&self) -> bool {
        self.position.is_none()
    }

    /// Ends it; `written` bytes of its writable part have been written. The guest sees it with the next publication.
    pub fn complete(mut self, queues: &mut Queues, written: u32) {
        self.open = false;
        queues.completed(&self, written);
    }

    /// Gives it back untouched: it is the next one of its queue again. Only the one that was taken last and is not back yet can be; another is
    /// returned.
    pub fn give_back(mut self, queues: &mut Queues) -> Result<(), Request> {
        if queues.given_back(&self) {
            self.open = false;
            return Ok(());
        }
        Err(self)
    }

    /// How many requests this process has dropped uncompleted: 0, or there is a bug in the device.
    pub fn lost() -> u64 {
        LOST.load(Ordering::Relaxed)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let lost = LOST.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::error!(queue = self.queue, head = self.head, lost, "a request was dropped uncompleted");
        if cfg!(debug_assertions) && !std::thread::panicking() {
            panic!("request {} of queue {} was dropped uncompleted", self.head, self.queue);
        }
    }
}
