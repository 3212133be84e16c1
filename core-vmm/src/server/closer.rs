//! Closes descriptors of the host's devices, on a thread of its own: with the last one of a device the host resets it, which takes a second and more, and
//! whoever closes that stands still meanwhile. The bus of the VM must not.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, SendError},
    },
    thread,
};

const STACK: usize = 64 * 1024;

/// How many descriptors of somebody's are still to be closed.
pub(super) type Open = Arc<AtomicUsize>;

#[derive(Debug)]
struct Batch {
    fds: Vec<OwnedFd>,
    of: Open,
}

/// The thread's other end. The thread begins with the first descriptor: most VMs have no device of the host's.
#[derive(Debug, Default)]
pub(super) struct Closer {
    queue: Option<mpsc::Sender<Batch>>,
    open: Open,
}

impl Closer {
    /// Descriptors that are not closed yet. They are open files of this process: who has more and more of them closed has to be refused.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Closes them, some time; `of` says when it has been done.
    pub fn close(&mut self, fds: Vec<OwnedFd>, of: &Open) {
        if fds.is_empty() {
            return;
        }
        of.fetch_add(fds.len(), Ordering::AcqRel);
        self.open.fetch_add(fds.len(), Ordering::AcqRel);
        let open = &self.open;
        let queue = self.queue.get_or_insert_with(|| start(Arc::clone(open)));
        if let Err(SendError(batch)) = queue.send(Batch { fds, of: Arc::clone(of) }) {
            // There is no thread, for want of memory: late is better than never.
            batch.close(open);
        }
    }
}

impl Batch {
    fn close(self, open: &Open) {
        let count = self.fds.len();
        drop(self.fds);
        open.fetch_sub(count, Ordering::AcqRel);
        self.of.fetch_sub(count, Ordering::AcqRel);
    }
}

fn start(open: Open) -> mpsc::Sender<Batch> {
    let (queue, batches) = mpsc::channel::<Batch>();
    let body = move || batches.into_iter().for_each(|batch| batch.close(&open));
    if let Err(error) = thread::Builder::new().name("closer".into()).stack_size(STACK).spawn(body) {
        tracing::warn!(%error, "no thread closes what devices of the host's are held by: the bus may stand still");
    }
    queue
}
