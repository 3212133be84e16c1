//! Who connects: strangers that have to say who they are, device processes, operators.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use ipc::{
    message::{Offer, STATUS_OK, ToCore, ToVsp, Versions},
    socket::{Listener, Peer, SocketError},
};

use super::{
    Server, VERSIONS,
    device::{self, shorten},
    mappings::Kind,
    memory::Ask,
    passthrough,
    slot::{Leave, Role},
};
use crate::{bus::Relid, partition::Partition};

/// How long a connection may take to say who it is.
pub(super) const HELLO_GRACE: Duration = Duration::from_secs(5);
/// After a connection could not be accepted (descriptors have run out), the next is tried so much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections accepted at a time, so that a storm of them does not keep the server from its work.
const ACCEPT_BATCH: usize = 16;
/// Connections that have not said who they are, besides those of devices that are still to come.
pub(super) const STRANGERS_MAX: usize = 16;
/// Messages that one peer may have handled before others get their turn.
const PEER_BATCH: usize = 32;

impl Server {
    /// Whether the listener should be polled now.
    pub fn accepts(&self) -> bool {
        self.accept_after.is_none()
    }

    /// Takes those who connect.
    pub fn accept(&mut self, listener: &Listener) {
        for _ in 0..ACCEPT_BATCH {
            match listener.accept() {
                Ok(peer) => self.meet(peer),
                Err(SocketError::WouldBlock) => return,
                Err(error) => {
                    if let Some(times) = self.complaints.another() {
                        tracing::warn!(%error, times, "cannot accept a device's connection");
                    }
                    self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn meet(&mut self, peer: Peer) {
        let refusal = if self.strangers.len() >= STRANGERS_MAX + self.missing_devices().len() {
            "too many connections that do not say who they are".to_owned()
        } else if let Err(error) = peer.check_user(&self.users()) {
            error.to_string()
        } else {
            return self.add_stranger(peer);
        };
        if let Some(times) = self.complaints.another() {
            tracing::warn!(reason = %refusal, times, "a connection was refused");
        }
    }

    /// Everybody who may attach as some device.
    fn users(&self) -> Vec<u32> {
        self.devices.iter().filter_map(|d| d.uid).chain(self.trusted.iter().copied()).collect()
    }

    /// A connection that was made elsewhere.
    pub fn add_stranger(&mut self, peer: Peer) {
        self.strangers.push((peer, Instant::now() + HELLO_GRACE));
    }

    /// Every peer's socket, to poll for reading.
    pub fn peers(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let processes = self.devices.iter().flat_map(|d| d.slot.all().map(|(_, process)| &process.peer));
        let strangers = self.strangers.iter().map(|(peer, _)| peer);
        strangers.chain(processes).chain(self.operators.peers()).map(AsFd::as_fd)
    }

    /// The peer on descriptor `fd` is readable.
    pub fn peer_ready<P: Partition>(&mut self, partition: &P, fd: RawFd) {
        for _ in 0..PEER_BATCH {
            let more = if let Some(i) = self.strangers.iter().position(|(p, _)| p.as_raw_fd() == fd) {
                self.introduce(partition, i)
            } else if let Some(id) = self.operators.find(fd) {
                self.serve_operator(partition, id)
            } else {
                let found = self.devices.iter().enumerate().find_map(|(i, d)| Some((i, d.role_of(fd)?)));
                found.is_some_and(|(i, role)| self.hear(partition, i, role))
            };
            if !more {
                return;
            }
        }
    }

    /// Those of whom nobody knows anything have their time.
    pub(super) fn tick_strangers(&mut self, now: Instant) {
        self.strangers.retain(|(_, by)| *by > now);
        if self.accept_after.is_some_and(|after| after <= now) {
            self.accept_after = None;
        }
    }

    /// A stranger says who it is.
    fn introduce<P: Partition>(&mut self, partition: &P, at: usize) -> bool {
        let hello = match self.strangers[at].0.try_recv::<ToCore>() {
            Err(SocketError::WouldBlock) => return false,
            other => other,
        };
        let (peer, _) = self.strangers.swap_remove(at);
        let (peer, refusal) = match hello {
            Ok((ToCore::Hello { versions, device, offer, ledger, build }, _)) => {
                let greeting = (versions, &offer, ledger, build.as_str());
                match self.welcome(partition, peer, &device, greeting) {
                    Ok(()) => return true,
                    Err((peer, reason)) => (peer, format!("{}: {reason}", shorten(&device))),
                }
            }
            Ok((ToCore::Operator { versions }, _)) => {
                match self.operators.add(peer, versions, &self.trusted) {
                    Ok(()) => return true,
                    Err(refused) => refused,
                }
            }
            Ok(_) => (peer, "the first message must be a hello".into()),
            Err(e) => (peer, e.to_string()),
        };
        tracing::warn!(reason = %refusal, "a connection was refused");
        // It may not be listening any more, which is all the same.
        let _ = peer.send(&ToVsp::Refused { reason: refusal }, &[]);
        false
    }

    fn welcome<P: Partition>(
        &mut self,
        partition: &P,
        peer: Peer,
        name: &str,
        greeting: (Versions, &Offer, u64, &str),
    ) -> Result<(), (Peer, String)> {
        let Some(i) = self.device_named(name) else {
            return Err((peer, "this VM has no such device".into()));
        };
        // The process that it is to replace may have gone, and that not been read yet.
        let own: Vec<RawFd> = self.devices[i].slot.all().map(|(_, p)| p.peer.as_raw_fd()).collect();
        for fd in own {
            self.peer_ready(partition, fd);
        }
        match self.greet(i, &peer, greeting) {
            Ok((greeting, version)) => {
                self.processes += 1;
                let process = greeting.process(self.processes, peer, version);
                let acts = self.devices[i].slot.attach(process, Instant::now());
                tracing::info!(device = %name, standby = self.devices[i].slot.has_standby(), "attached");
                self.perform(partition, i, acts);
                self.prepare_all(partition, i);
                self.apply(partition);
                Ok(())
            }
            Err(reason) => Err((peer, reason)),
        }
    }

    /// Checks a hello and answers it. With the version that is spoken from now on.
    fn greet(
        &mut self,
        i: usize,
        peer: &Peer,
        (versions, offer, ledger, build): (Versions, &Offer, u64, &str),
    ) -> Result<(device::Greeting, u32), String> {
        let device = &self.devices[i];
        let mut allowed = self.trusted.clone();
        allowed.extend(device.uid);
        peer.check_user(&allowed).map_err(|e| e.to_string())?;
        peer.set_nonblocking(true).map_err(|e| e.to_string())?;
        let standby = device.slot.room()?;
        let version = VERSIONS.common(versions).ok_or_else(|| {
            format!("it speaks versions {versions} of the control protocol, this core {VERSIONS}")
        })?;
        let greeting = device.check(offer, ledger, build)?;
        if device.offered.is_none() && self.bus.is_full() {
            return Err("the bus is full".into());
        }
        let ram = device.guest_ram.then(|| self.ram_regions());
        let fds: &[BorrowedFd<'_>] = if device.guest_ram { &[self.ram.memfd()] } else { &[] };
        let welcome = ToVsp::Welcome { version, vm: self.vm.clone(), vps: self.vps, ram, standby };
        peer.send(&welcome, fds).map_err(|e| e.to_string())?;
        let device = &mut self.devices[i];
        if device.offered.is_none() {
            let relid = self.bus.add_channel(greeting.class(), device.instance, |wire| greeting.fill(wire));
            device.offered = relid.map(|relid| greeting.offered_as(relid));
        }
        Ok((greeting, version))
    }

    fn ram_regions(&self) -> Vec<ipc::message::RamRegion> {
        let region =
            |s: &crate::memory::Stretch| ipc::message::RamRegion { gpa: s.gpa, len: s.len, offset: s.offset };
        self.ram.stretches().iter().map(region).collect()
    }

    /// A device's process says something. False when there is no more for now.
    fn hear<P: Partition>(&mut self, partition: &P, i: usize, role: Role) -> bool {
        let Some(process) = self.devices[i].slot.get(role) else { return false };
        let how = match process.peer.try_recv::<ToCore>() {
            Err(SocketError::WouldBlock) => return false,
            Err(SocketError::Closed) if process.peer.is_abandoned() => Leave::Gone,
            // Whatever it was, it is not heard any more.
            _ if role == Role::Ghost => return true,
            // It plays dead, so that a successor begins while it still has everything.
            Err(SocketError::Closed) => Leave::CutOff("it sent nothing".into()),
            Err(error) => Leave::CutOff(format!("it cannot be understood: {}", shorten(&error.to_string()))),
            Ok((message, fds)) => match self.obey(partition, i, role, message, fds) {
                Ok(()) => return true,
                Err(how) => how,
            },
        };
        let gone = (how == Leave::Gone).then(|| self.devices[i].name.clone());
        self.leave(partition, i, role, how);
        // Its successor has been told by now: a guest waits, and need not wait for a line in a log.
        if let Some(device) = gone {
            tracing::warn!(%device, place = ?role, "a process has gone");
        }
        false
    }

    /// Does what a message asks for. `Err`: the process must not go on.
    fn obey<P: Partition>(
        &mut self,
        partition: &P,
        i: usize,
        role: Role,
        message: ToCore,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Leave> {
        let now = Instant::now();
        let said = device::describe(&message);
        let breach = || Leave::CutOff(format!("it said what it may not: {said}"));
        let slot = &mut self.devices[i].slot;
        let acts = match message {
            ToCore::Serving {} => slot.serving(role, now),
            ToCore::Quiesced {} => slot.quiesced(role, now),
            message => {
                let process = slot.holder().filter(|(holder, _)| *holder == role);
                let most = process.ok_or_else(breach)?.1.max_subchannels;
                return match message {
                    ToCore::MapMemory { gpa, bytes } => {
                        self.map_asked(partition, i, (gpa, bytes, Kind::Own), fds)
                    }
                    message if passthrough::is_of(&message) => {
                        self.obey_passthrough(partition, i, message, fds)
                    }
                    message => self.obey_holder(partition, i, most, message),
                }?
                .ok_or_else(breach);
            }
        };
        self.perform(partition, i, acts.map_err(|()| breach())?);
        Ok(())
    }

    /// What the process that has the channels says of them; `None` if it is none of its business.
    fn obey_holder<P: Partition>(
        &mut self,
        partition: &P,
        i: usize,
        most: u16,
        message: ToCore,
    ) -> Result<Option<()>, Leave> {
        match message {
            ToCore::OpenResult { channel, status, reason } if self.owns(i, channel) => {
                let reason = reason.map_or_else(|| "it does not say why".into(), |r| shorten(&r));
                debug_assert_eq!(STATUS_OK, 0, "as the guest reads it");
                self.open_result(partition, channel, status, &reason)?;
            }
            ToCore::Closed { channel } if self.owns(i, channel) => self.close_result(partition, channel),
            ToCore::ShareGpadl { channel, gpadl } if self.owns(i, channel) => {
                return self.asked(partition, i, Ask::Share { channel, gpadl });
            }
            ToCore::Fetch { channel, offset, len } if self.owns(i, channel) => {
                return self.asked(partition, i, Ask::Fetch { channel, offset, len });
            }
            ToCore::ReturnGpadl { channel, gpadl } if self.owns(i, channel) => {
                self.return_gpadl(partition, channel, gpadl);
            }
            ToCore::UnmapMemory { gpa } => return Ok(self.unmap_asked(partition, i, gpa)),
            ToCore::ControlDone { id, result } => return Ok(self.control_done(i, id, result)),
            ToCore::OfferSubchannels { count } if count <= most => {
                let Some(offered) = &self.devices[i].offered else { return Ok(Some(())) };
                if !self.bus.offer_subchannels(offered.relid, count)
                    && let Some(times) = self.complaints.another()
                {
                    tracing::warn!(device = %self.devices[i].name, times, "no numbers are left for its sub-channels");
                }
                self.apply(partition);
            }
            _ => return Ok(None),
        }
        Ok(Some(()))
    }

    fn owns(&self, i: usize, channel: Relid) -> bool {
        self.bus.primary_of(channel).is_some_and(|primary| self.devices[i].is_primary(primary))
    }
}
