//! Descriptors that a device's processes hand down to each other by way of the core, which does not look at them.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::Ordering,
};

use ipc::{
    message::{MAX_KEPT, MAX_KEPT_FDS, MAX_NOTE, PASSTHROUGH_VERSION, ToVsp},
    socket::SocketError,
};

use super::{
    Server,
    closer::{Closer, Open},
    device::Process,
};

/// Descriptors that are kept for all devices of a VM together.
const KEPT_MAX: usize = 1024;

/// What a device's processes have had kept.
#[derive(Debug, Default)]
pub(super) struct Kept {
    held: BTreeMap<u32, (String, Vec<OwnedFd>)>,
    /// What is not kept any more, and not closed yet.
    closing: Open,
}

impl Kept {
    fn count(&self) -> usize {
        self.held.values().map(|(_, fds)| fds.len()).sum()
    }

    /// The core has nothing of it open any more.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && !self.is_closing()
    }

    /// Some of it is still to be closed.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire) > 0
    }

    /// Has these closed, as what is kept is.
    pub fn close(&self, closer: &mut Closer, fds: Vec<OwnedFd>) {
        closer.close(fds, &self.closing);
    }

    /// Keeps nothing any more.
    pub fn let_go(&mut self, closer: &mut Closer) {
        let held = std::mem::take(&mut self.held);
        self.close(closer, held.into_values().flat_map(|(_, fds)| fds).collect());
    }

    /// Tells a process what there is.
    pub fn give(&self, process: &Process) -> Result<(), SocketError> {
        if process.version < PASSTHROUGH_VERSION {
            return Ok(());
        }
        for (key, (note, fds)) in &self.held {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            process.peer.send(&ToVsp::Kept { key: *key, note: note.clone() }, &fds)?;
        }
        Ok(())
    }
}

impl Server {
    /// Device `i` wants these kept, or none any more. `None`: it wants too much.
    pub(super) fn keep(&mut self, i: usize, key: u32, note: String, fds: Vec<OwnedFd>) -> Option<()> {
        let elsewhere: usize = (0..self.devices.len())
            .filter(|other| *other != i)
            .map(|other| self.devices[other].kept.count())
            .sum();
        let Self { devices, closer, .. } = self;
        let elsewhere = elsewhere + closer.open();
        let kept = &mut devices[i].kept;
        let before = kept.held.remove(&key);
        if fds.is_empty() {
            kept.close(closer, before.map(|(_, fds)| fds).unwrap_or_default());
            return Some(());
        }
        let count = kept.count() + fds.len();
        let is_full = kept.held.len() >= MAX_KEPT || count > MAX_KEPT_FDS || elsewhere + count > KEPT_MAX;
        if is_full || note.len() > MAX_NOTE {
            // Its next process finds what was there before.
            kept.held.extend(before.map(|before| (key, before)));
            return None;
        }
        kept.held.insert(key, (note, fds));
        kept.close(closer, before.map(|(_, fds)| fds).unwrap_or_default());
        Some(())
    }
}
