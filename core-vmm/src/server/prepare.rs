//! Gives a process that stands by the channels ahead of time, so that it need not map them while the guest waits.
//!
//! What could not be said to it costs time later and nothing else: it is given the channel in full then.

use std::os::fd::{AsFd, BorrowedFd};

use ipc::{
    message::{PREPARE_VERSION, ToVsp},
    shm::SharedMemory,
};

use super::{
    Server,
    device::ProcessId,
    live::{Hold, Live, Wish},
};
use crate::{bus::Relid, partition::Partition, synic::Synic};

impl Server {
    /// A process has come: if it stands by, it is told of all channels that are served.
    pub(super) fn prepare_all<P: Partition>(&mut self, partition: &P, device: usize) {
        let relids: Vec<Relid> = self.live.iter().filter(|l| l.device == device).map(|l| l.relid).collect();
        for relid in relids {
            self.prepare(partition, relid);
        }
    }

    /// A channel is served, or has changed: the process that stands by is told.
    pub(super) fn prepare<P: Partition>(&mut self, partition: &P, relid: Relid) {
        let Some(live) = self.live.iter_mut().find(|l| l.relid == relid) else { return };
        let Some(process) = self.devices[live.device].slot.next() else { return };
        let has_all = live.ledger.is_some() == (process.ledger > 0);
        if process.version < PREPARE_VERSION
            || !has_all
            || live.hold != Hold::Served
            || live.wish != Wish::Open
        {
            return;
        }
        let fds = descriptors(live, &self.synic, partition);
        let message = ToVsp::ChannelPrepare { channel: relid, ring: live.ring };
        let sent = process.peer.send(&message, &fds);
        live.prepared = sent.is_ok().then_some((process.id, live.target_vp));
    }

    /// A channel is no more. Its pages are taken back whether or not the process hears of it.
    pub(super) fn unprepare(&self, device: usize, relid: Relid, prepared: Option<ProcessId>) {
        let mut all = self.devices[device].slot.all();
        if let Some((_, process)) = all.find(|(_, process)| Some(process.id) == prepared) {
            let _ = process.peer.send(&ToVsp::ChannelForget { channel: relid }, &[]);
        }
    }
}

/// What this process needs to serve a channel: nothing if it has it all, and the guest has not moved its interrupts since then.
pub(super) fn descriptors_for<'a, P: Partition>(
    live: &'a Live,
    process: ProcessId,
    synic: &'a Synic,
    partition: &'a P,
) -> Vec<BorrowedFd<'a>> {
    if live.prepared == Some((process, live.target_vp)) {
        return Vec::new();
    }
    descriptors(live, synic, partition)
}

/// What a process needs to serve a channel, in the order of [`ToVsp::ChannelOpen`].
fn descriptors<'a, P: Partition>(live: &'a Live, synic: &'a Synic, partition: &'a P) -> Vec<BorrowedFd<'a>> {
    let interrupt = partition.interrupt(live.target_vp);
    let flags = synic.event_flags(live.target_vp).as_fd();
    let mut fds = vec![live.pages.memory().as_fd(), live.kick.as_fd(), interrupt, flags];
    fds.extend(live.ledger.as_ref().map(SharedMemory::as_fd));
    fds
}
