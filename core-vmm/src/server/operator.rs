//! Operators: connections on which somebody who may (the supervisor, an administrator) asks who serves, and has devices handed over.
//!
//! The core never waits for them: who does not read what he asked for is disconnected.

use std::{
    os::fd::{AsRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use ipc::{
    message::Versions,
    operator::{self, Reply, Request},
    socket::{Peer, SocketError},
};

use super::{Server, VERSIONS, live::Wish, slot::OperatorId};
use crate::{layout::PAGE, partition::Partition};

/// Operators at a time: the supervisor, a few people with `bulkhead device`, a monitor. One more takes the place of an idle one.
pub(super) const OPERATORS_MAX: usize = 8;
/// The longest that a hand-over can wait for a process to stand by. Whoever wants to wait longer asks again.
pub(super) const SWAP_WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Operator {
    id: OperatorId,
    peer: Peer,
    /// It has asked for a hand-over, or something of a device, and waits. What it asks meanwhile stays in its socket: answers come in order.
    is_waiting: bool,
    /// When it last asked something, or came.
    since: Instant,
}

/// All operators.
#[derive(Debug, Default)]
pub(super) struct Operators {
    list: Vec<Operator>,
    next: OperatorId,
}

impl Operators {
    /// Those that may say something now.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.list.iter().filter(|o| !o.is_waiting).map(|o| &o.peer)
    }

    /// The one at the other end of `fd`.
    pub fn find(&self, fd: RawFd) -> Option<OperatorId> {
        self.list.iter().find(|o| o.peer.as_raw_fd() == fd).map(|o| o.id)
    }

    pub fn add(&mut self, peer: Peer, versions: Versions, trusted: &[u32]) -> Result<(), (Peer, String)> {
        let checked = match peer.check_user(trusted) {
            Err(error) => Err(error.to_string()),
            Ok(_) if VERSIONS.common(versions).is_none() => {
                Err(format!("it speaks versions {versions} of the control protocol, this core {VERSIONS}"))
            }
            Ok(_) if !self.make_room() => Err("there are too many operators".into()),
            Ok(_) => peer.set_nonblocking(true).map_err(|e| e.to_string()),
        };
        if let Err(reason) = checked {
            return Err((peer, reason));
        }
        self.next += 1;
        self.list.push(Operator { id: self.next, peer, is_waiting: false, since: Instant::now() });
        Ok(())
    }

    /// Lets go of the one that has been idle for longest, if need be: people forget to leave, and monitors leak connections. Not of
    /// the first, which is the supervisor's: it only listens, and would not hear whom it has to end.
    fn make_room(&mut self) -> bool {
        if self.list.len() < OPERATORS_MAX {
            return true;
        }
        let idle = self.list.iter().enumerate().skip(1).filter(|(_, o)| !o.is_waiting);
        let Some((place, _)) = idle.min_by_key(|(_, o)| o.since) else { return false };
        self.list.remove(place);
        tracing::warn!("there are too many operators: one that has been idle is disconnected");
        true
    }

    /// The next request, if the operator has one and may be answered.
    fn hear(&mut self, id: OperatorId) -> Option<(Request, Vec<OwnedFd>)> {
        let operator = self.list.iter_mut().find(|o| o.id == id && !o.is_waiting)?;
        match operator.peer.try_recv() {
            Ok(received) => {
                operator.since = Instant::now();
                return Some(received);
            }
            Err(SocketError::WouldBlock) => return None,
            Err(SocketError::Closed) => {}
            Err(error) => tracing::warn!(%error, "an operator cannot be understood; it is disconnected"),
        }
        self.list.retain(|o| o.id != id);
        None
    }

    /// The answer to its last request.
    pub fn answer(&mut self, id: OperatorId, reply: &Reply) {
        if let Some(operator) = self.list.iter_mut().find(|o| o.id == id) {
            operator.is_waiting = false;
        }
        self.send(|o| o.id == id, reply);
    }

    /// News for everybody.
    pub fn tell_all(&mut self, reply: &Reply) {
        self.send(|_| true, reply);
    }

    fn send(&mut self, to: impl Fn(&Operator) -> bool, reply: &Reply) {
        self.list.retain(|o| {
            let sent = if to(o) { o.peer.send(reply, &[]) } else { Ok(()) };
            if let Err(error) = &sent {
                tracing::warn!(%error, "an operator does not take what it is told; it is disconnected");
            }
            sent.is_ok()
        });
    }

    pub fn wait(&mut self, id: OperatorId) {
        if let Some(operator) = self.list.iter_mut().find(|o| o.id == id) {
            operator.is_waiting = true;
        }
    }
}

impl Server {
    /// An operator may have asked something. False when there is no more for now.
    pub(super) fn serve_operator<P: Partition>(&mut self, partition: &P, id: OperatorId) -> bool {
        match self.operators.hear(id) {
            None => return false,
            Some((Request::Devices {}, _)) => {
                let all = (0..self.devices.len()).filter(|i| !self.devices[*i].is_vacant());
                let devices = all.map(|device| self.describe_device(device)).collect();
                self.operators.answer(id, &Reply::Devices(devices));
            }
            Some((Request::Swap { device, wait_ms }, _)) => self.begin_swap(partition, id, device, wait_ms),
            Some((Request::DeviceAdd { slot }, _)) => self.begin_add(id, &slot),
            Some((Request::DeviceRemove { device, force }, _)) => {
                self.begin_remove(partition, id, device, force);
            }
            Some((Request::Control { device, payload }, fds)) => {
                self.begin_control(id, device, payload, &fds)
            }
        }
        true
    }

    fn begin_swap<P: Partition>(&mut self, partition: &P, id: OperatorId, name: String, wait_ms: u64) {
        let Some(device) = self.device_named(&name) else {
            let reason = "this VM has no such device".into();
            return self.operators.answer(id, &Reply::Failed { device: name, reason });
        };
        if self.devices[device].removal.is_some() {
            let reason = "it is about to go".into();
            return self.operators.answer(id, &Reply::Failed { device: name, reason });
        }
        let now = Instant::now();
        let until = now + Duration::from_millis(wait_ms).min(SWAP_WAIT_MAX);
        self.operators.wait(id);
        match self.devices[device].slot.swap(id, until, now) {
            Ok(acts) => self.perform(partition, device, acts),
            Err(reason) => self.operators.answer(id, &Reply::Failed { device: name, reason }),
        }
    }

    fn describe_device(&self, index: usize) -> operator::Device {
        let device = &self.devices[index];
        let own = || self.live.iter().filter(|l| l.device == index);
        let ram = if device.guest_ram { self.ram.len() } else { 0 };
        let mut vps: Vec<u32> = own().map(|l| l.target_vp).collect();
        vps.sort_unstable();
        vps.dedup();
        // Rings, and the event-flag pages of the VPs that they interrupt.
        let pages = own().map(|l| u64::from(l.ring.pages)).sum::<u64>() + vps.len() as u64;
        let build = device.slot.holder().map(|(_, process)| process.build.clone());
        operator::Device {
            name: device.name.clone(),
            serving: device.slot.is_served(),
            standby: device.slot.has_standby(),
            build: build.unwrap_or_default(),
            channels: own().filter(|l| l.wish == Wish::Open).count() as u32,
            exposed_bytes: ram + pages * PAGE + self.shared_bytes(index),
            takeovers: device.slot.takeovers(),
        }
    }
}
