//! The VMBus server: the bus's state machine joined to a partition and to device processes.
//!
//! Knows how a channel is opened (pages donated, doorbell bound, descriptors sent), never what
//! goes through it. Runs on one thread and never blocks.

mod device;
mod live;
#[cfg(test)]
mod tests;

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::{Duration, Instant},
};

use device::Device;
use ipc::{
    config::DeviceSlot,
    message::{ToCore, ToVsp, VERSIONS},
    socket::{Listener, Peer, SocketError},
};
use live::{Live, Word};
use logs::Ration;
use vmbus::guid::Guid;

use crate::{
    bus::{Bus, Effect, Open, Relid, STATUS_UNSUCCESSFUL},
    layout::PAGE,
    memory::{
        Ram,
        donation::{Donation, Donations},
    },
    partition::{HvStatus, Partition, SynicRegisters},
    synic::Synic,
};

/// How long a device process may take to let go of a channel before it is cut off.
const CLOSE_GRACE: Duration = Duration::from_secs(5);
/// How long a device process may take to answer a request to open.
const OPEN_GRACE: Duration = Duration::from_secs(10);
/// How long a connection may take to say who it is.
const HELLO_GRACE: Duration = Duration::from_secs(5);
/// After a connection could not be accepted (descriptors have run out), the next is tried so much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections accepted at a time, so that a storm of them does not keep the server from its work.
const ACCEPT_BATCH: usize = 16;
/// Connections that have not said who they are, besides those of devices that are still to come.
const STRANGERS_MAX: usize = 16;
/// Pause before a device is told again what its socket had no room for. It has hundreds of messages to read first.
const TELL_AGAIN: Duration = Duration::from_millis(10);
/// Messages that one peer may have handled before others get their turn.
const PEER_BATCH: usize = 32;

/// Why the server could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An instance GUID in the configuration does not parse.
    #[error("device {device}: {instance:?} is not a GUID")]
    BadInstance {
        /// The slot.
        device: String,
        /// What it says.
        instance: String,
    },
    /// Event-flag pages.
    #[error("cannot make event-flag pages: {0}")]
    Flags(#[from] ipc::shm::ShmError),
}

/// The server of one VM.
#[derive(Debug)]
pub struct Server {
    vm: String,
    ram: Ram,
    vps: u32,
    bus: Bus,
    synic: Synic,
    donations: Donations,
    devices: Vec<Device>,
    live: Vec<Live>,
    /// With the time by which each has to say who it is.
    strangers: Vec<(Peer, Instant)>,
    /// Nobody is accepted before then.
    accept_after: Option<Instant>,
    /// Why the VM cannot go on.
    failure: Option<String>,
    /// User ids that may attach as any device.
    trusted: Vec<u32>,
    /// About the guest.
    complaints: Ration,
}

impl Server {
    /// A server without attached devices. `trusted` are user ids that may attach as any device.
    pub fn new(
        vm: &str,
        ram: Ram,
        vps: u32,
        slots: &[DeviceSlot],
        trusted: Vec<u32>,
    ) -> Result<Self, ServerError> {
        let devices = slots.iter().map(Device::new).collect::<Result<_, _>>()?;
        Ok(Self {
            vm: vm.to_owned(),
            bus: Bus::new(vps, ram.len() / PAGE),
            synic: Synic::new(vps)?,
            ram,
            vps,
            donations: Donations::default(),
            devices,
            live: Vec::new(),
            strangers: Vec::new(),
            accept_after: None,
            failure: None,
            trusted,
            complaints: Ration::default(),
        })
    }

    /// Descriptors that the server holds before anybody has attached.
    pub fn descriptors(&self) -> Vec<RawFd> {
        (0..self.vps)
            .map(|vp| self.synic.event_flags(vp).as_fd().as_raw_fd())
            .chain(self.synic.own_descriptors())
            .collect()
    }

    /// Names of configured devices that no process serves.
    pub fn missing_devices(&self) -> Vec<&str> {
        self.devices.iter().filter(|d| d.peer.is_none()).map(|d| d.name.as_str()).collect()
    }

    /// Why the VM cannot go on: memory of the guest's may be in hands that it must not be in.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref().or(self.synic.failure())
    }

    /// The guest posted a message.
    pub fn post_message<P: Partition>(&mut self, partition: &P, connection: u32, payload: &[u8]) -> HvStatus {
        if !Bus::is_message_connection(connection) {
            return HvStatus::InvalidConnectionId;
        }
        if self.synic.is_congested() && !Bus::begins_anew(payload) {
            return HvStatus::InsufficientBuffers;
        }
        if let Err(fault) = self.bus.message(connection, payload)
            && let Some(times) = self.complaints.another()
        {
            tracing::warn!(%fault, times, "guest");
        }
        self.apply(partition);
        HvStatus::Success
    }

    /// The guest wrote a SynIC register.
    pub fn set_synic<P: Partition>(&mut self, partition: &P, vp: u32, registers: SynicRegisters) {
        self.synic.set_registers(partition, &self.ram, &mut self.donations, vp, registers);
    }

    /// The guest has ended a message on `vp` (or an interrupt; it does no harm to look).
    pub fn end_of_message<P: Partition>(&mut self, partition: &P, vp: u32) {
        self.synic.deliver(partition, &self.ram, vp);
    }

    /// Closes everything, as the guest is being reset. Complete once [`Self::is_quiet`].
    pub fn reset<P: Partition>(&mut self, partition: &P) {
        self.bus.reset();
        self.apply(partition);
        self.synic.reset(partition, &self.ram, &mut self.donations);
        // The next guest is not told of devices that are gone.
        for i in 0..self.devices.len() {
            self.forget_if_gone(i);
        }
    }

    /// No channel is open and no guest page is shared.
    pub fn is_quiet(&self) -> bool {
        self.bus.is_quiet() && self.live.is_empty()
    }

    /// When [`Self::tick`] has to be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let live = self.live.iter().flat_map(|l| [l.close_by, l.open_by, l.owed.map(|(_, when)| when)]);
        let strangers = self.strangers.iter().map(|(_, by)| Some(*by));
        live.chain(strangers).chain([self.accept_after]).flatten().min()
    }

    /// Cuts off devices that did not let go of a channel in time.
    pub fn tick<P: Partition>(&mut self, partition: &P, now: Instant) {
        let due = |l: &Live| l.owed.filter(|(_, when)| *when <= now).map(|(word, _)| (l.relid, word));
        let owed: Vec<_> = self.live.iter().filter_map(due).collect();
        for (relid, word) in owed {
            self.tell(partition, relid, word);
        }
        self.strangers.retain(|(_, by)| *by > now);
        if self.accept_after.is_some_and(|after| after <= now) {
            self.accept_after = None;
        }
        let is_late = |l: &&Live| [l.close_by, l.open_by].iter().flatten().any(|by| *by <= now);
        let late: Vec<Relid> = self.live.iter().filter(is_late).map(|l| l.relid).collect();
        for relid in late {
            if let Some(i) = self.devices.iter().position(|d| d.relid == Some(relid)) {
                let device = &self.devices[i];
                tracing::error!(device = %device.name, "did not open or close its channel in time; it is cut off");
                if device.guest_ram {
                    // It lives, and what it has under way may still be written into memory that the guest has
                    // put to other use, or that is a new guest's.
                    self.failure = Some(format!(
                        "device {} hangs with guest memory in its hands; the VM cannot go on safely",
                        device.name
                    ));
                }
                self.lose(partition, i);
            }
        }
    }

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
        let attached = self.devices.iter().filter_map(|d| d.peer.as_ref());
        self.strangers.iter().map(|(peer, _)| peer).chain(attached).map(AsFd::as_fd)
    }

    /// The peer on descriptor `fd` is readable.
    pub fn peer_ready<P: Partition>(&mut self, partition: &P, fd: RawFd) {
        for _ in 0..PEER_BATCH {
            let more = if let Some(i) = self.strangers.iter().position(|(p, _)| p.as_raw_fd() == fd) {
                self.introduce(partition, i)
            } else if let Some(i) = self.devices.iter().position(|d| d.has_fd(fd)) {
                self.hear(partition, i)
            } else {
                false
            };
            if !more {
                return;
            }
        }
    }

    /// A stranger says who it is.
    fn introduce<P: Partition>(&mut self, partition: &P, at: usize) -> bool {
        let hello = match self.strangers[at].0.try_recv::<ToCore>() {
            Err(SocketError::WouldBlock) => return false,
            other => other,
        };
        let (peer, _) = self.strangers.swap_remove(at);
        let refusal = match hello {
            Ok((ToCore::Hello { versions, device, offer, .. }, _)) => {
                match self.attach(&peer, versions, &device, &offer) {
                    Ok(i) => {
                        self.devices[i].peer = Some(peer);
                        tracing::info!(device = %device, "attached");
                        self.apply(partition);
                        return true;
                    }
                    Err(reason) => format!("{device}: {reason}"),
                }
            }
            Ok(_) => "the first message must be a hello".into(),
            Err(e) => e.to_string(),
        };
        tracing::warn!(reason = %refusal, "a device's connection was refused");
        // It may not be listening any more, which is all the same.
        let _ = peer.send(&ToVsp::Refused { reason: refusal }, &[]);
        false
    }

    /// Checks a hello and answers it. The index is that of the device's slot.
    fn attach(
        &mut self,
        peer: &Peer,
        versions: ipc::message::Versions,
        name: &str,
        offer: &ipc::message::Offer,
    ) -> Result<usize, String> {
        let i = self
            .devices
            .iter()
            .position(|d| d.name == name)
            .ok_or_else(|| "this VM has no such device".to_owned())?;
        let slot = &self.devices[i];
        let mut allowed = self.trusted.clone();
        allowed.extend(slot.uid);
        peer.check_user(&allowed).map_err(|e| e.to_string())?;
        peer.set_nonblocking(true).map_err(|e| e.to_string())?;
        if slot.peer.is_some() {
            return Err("a process serves this device already".into());
        }
        if slot.relid.is_some() {
            return Err("the process that served it has died, and the guest still has its channel".into());
        }
        let version = VERSIONS.common(versions).ok_or_else(|| {
            format!("it speaks versions {versions} of the control protocol, this core {VERSIONS}")
        })?;
        let class: Guid = offer.class.parse().map_err(|_| "its class is not a GUID".to_owned())?;
        if offer.user_defined.len() > ipc::message::MAX_USER_DATA {
            return Err("its offer is too long".into());
        }
        let ram = slot.guest_ram.then(|| self.ram_regions());
        let fds: &[BorrowedFd<'_>] = if slot.guest_ram { &[self.ram.memfd()] } else { &[] };
        let welcome = ToVsp::Welcome { version, vm: self.vm.clone(), vps: self.vps, ram, standby: false };
        if self.bus.is_full() {
            return Err("the bus is full".into());
        }
        peer.send(&welcome, fds).map_err(|e| e.to_string())?;
        self.devices[i].relid =
            self.bus.add_channel(class, slot.instance, |wire| device::fill_offer(wire, offer));
        Ok(i)
    }

    fn ram_regions(&self) -> Vec<ipc::message::RamRegion> {
        let region =
            |s: &crate::memory::Stretch| ipc::message::RamRegion { gpa: s.gpa, len: s.len, offset: s.offset };
        self.ram.stretches().iter().map(region).collect()
    }

    /// An attached device says something.
    fn hear<P: Partition>(&mut self, partition: &P, i: usize) -> bool {
        let Some(peer) = &self.devices[i].peer else { return false };
        let name = &self.devices[i].name;
        let own = self.devices[i].relid;
        match peer.try_recv::<ToCore>() {
            Ok((ToCore::OpenResult { channel, status, .. }, _)) if own == Some(channel) => {
                self.open_result(partition, channel, status);
            }
            Ok((ToCore::Closed { channel }, _)) if own == Some(channel) => {
                self.close_result(partition, channel);
            }
            Err(SocketError::WouldBlock) => return false,
            Err(SocketError::Closed) => {
                tracing::warn!(device = %name, "has gone");
                self.lose(partition, i);
                return false;
            }
            Ok((message, _)) => {
                tracing::error!(device = %name, said = ?message, "said what it may not; it is cut off");
                self.lose(partition, i);
                return false;
            }
            Err(error) => {
                tracing::error!(device = %name, %error, "cannot be understood; it is cut off");
                self.lose(partition, i);
                return false;
            }
        }
        true
    }

    /// The device's process is no more (or must be no more). What it was asked and did not answer counts
    /// as answered; an open channel stays open, for a successor.
    fn lose<P: Partition>(&mut self, partition: &P, i: usize) {
        self.devices[i].peer = None;
        let Some(relid) = self.devices[i].relid else { return };
        if let Some(live) = self.live.iter_mut().find(|l| l.relid == relid) {
            live.owed = None;
        }
        match self.live.iter().find(|l| l.relid == relid) {
            Some(live) if live.close_by.is_some() => self.close_result(partition, relid),
            Some(live) if live.open_by.is_some() => self.open_result(partition, relid, STATUS_UNSUCCESSFUL),
            _ => {}
        }
        self.forget_if_gone(i);
    }

    /// A device without a process that no guest knows of is as if it had never attached.
    fn forget_if_gone(&mut self, i: usize) {
        let device = &mut self.devices[i];
        if let (None, Some(relid)) = (&device.peer, device.relid)
            && self.bus.withdraw(relid)
        {
            device.relid = None;
        }
    }

    fn open_result<P: Partition>(&mut self, partition: &P, relid: Relid, status: u32) {
        let Some(live) = self.live.iter_mut().find(|l| l.relid == relid) else { return };
        if live.open_by.take().is_none() {
            return;
        }
        // Closed by the guest while it was being opened: the close is answered, not this.
        if live.close_by.is_none() {
            if status != 0 {
                self.take_down(partition, relid);
            }
            self.bus.opened(relid, status);
            self.apply(partition);
        }
    }

    fn close_result<P: Partition>(&mut self, partition: &P, relid: Relid) {
        if self.live.iter().any(|l| l.relid == relid && l.close_by.is_some()) {
            self.take_down(partition, relid);
            self.bus.closed(relid);
            self.apply(partition);
        }
    }

    /// Takes the channel's pages back. The device's consent is not needed.
    fn take_down<P: Partition>(&mut self, partition: &P, relid: Relid) {
        let Some(at) = self.live.iter().position(|l| l.relid == relid) else { return };
        let live = self.live.swap_remove(at);
        partition.unbind_doorbell(Bus::connection_id(relid));
        self.take_back(partition, live.pages);
    }

    /// Failing at this would leave a device's process with pages that the guest uses again.
    fn take_back<P: Partition>(&mut self, partition: &P, pages: Donation) {
        if let Err(error) = self.donations.take_back(&self.ram, pages, partition) {
            self.failure = Some(format!("ring pages could not be taken back: {error}"));
        }
    }

    /// Carries out what the bus asks for, until it asks for nothing more.
    fn apply<P: Partition>(&mut self, partition: &P) {
        loop {
            let effects = self.bus.take_effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                match effect {
                    Effect::Discard => self.synic.discard(),
                    Effect::Send(message) => {
                        if let Some(vp) = self.bus.message_vp() {
                            self.synic.post(partition, &self.ram, vp, message.as_bytes());
                        }
                    }
                    Effect::Open(open) => self.begin_open(partition, open),
                    Effect::Close(relid) => self.begin_close(partition, relid),
                    Effect::Retarget(relid, vp) => self.tell(partition, relid, Word::Retarget(vp)),
                }
            }
        }
    }

    fn begin_open<P: Partition>(&mut self, partition: &P, open: Open) {
        let relid = open.relid;
        if let Err(reason) = self.try_open(partition, open) {
            if let Some(times) = self.complaints.another() {
                tracing::warn!(channel = relid, %reason, times, "cannot be opened");
            }
            self.take_down(partition, relid);
            self.bus.opened(relid, STATUS_UNSUCCESSFUL);
        }
    }

    fn try_open<P: Partition>(&mut self, partition: &P, open: Open) -> Result<(), String> {
        let device = self.devices.iter().find(|d| d.relid == Some(open.relid));
        let peer = device.and_then(|d| d.peer.as_ref()).ok_or("no process serves it")?;
        let kick = ipc::event::Doorbell::new().map_err(|e| e.to_string())?;
        let pages = self
            .donations
            .donate(&self.ram, "bulkhead-ring", open.pages.clone(), partition)
            .map_err(|e| e.to_string())?;
        let (relid, target) = (open.relid, open.target_vp);
        let open_by = Some(Instant::now() + OPEN_GRACE);
        self.live.push(Live { relid, pages, kick, open_by, close_by: None, owed: None });
        let live = &self.live[self.live.len() - 1];
        partition
            .bind_doorbell(Bus::connection_id(relid), live.kick.as_fd())
            .map_err(|e| format!("doorbell: {e}"))?;
        let fds = [
            live.pages.memory().as_fd(),
            live.kick.as_fd(),
            partition.interrupt(target),
            self.synic.event_flags(target).as_fd(),
        ];
        peer.send(&live::open_message(&open), &fds).map_err(|e| e.to_string())
    }

    fn begin_close<P: Partition>(&mut self, partition: &P, relid: Relid) {
        if let Some(live) = self.live.iter_mut().find(|l| l.relid == relid) {
            live.close_by = Some(Instant::now() + CLOSE_GRACE);
        }
        self.tell(partition, relid, Word::Close);
    }

    /// Tells the channel's device something that it has to know, now or as soon as its socket has room.
    fn tell<P: Partition>(&mut self, partition: &P, relid: Relid, word: Word) {
        let peer = self.devices.iter().find(|d| d.relid == Some(relid)).and_then(|d| d.peer.as_ref());
        let Some(peer) = peer else {
            // Nobody has the pages.
            return self.close_result(partition, relid);
        };
        let sent = match word {
            Word::Close => peer.send(&ToVsp::ChannelClose { channel: relid }, &[]),
            Word::Retarget(vp) => {
                let fds = [partition.interrupt(vp), self.synic.event_flags(vp).as_fd()];
                peer.send(&ToVsp::Retarget { channel: relid, target_vp: vp }, &fds)
            }
        };
        if let Some(live) = self.live.iter_mut().find(|l| l.relid == relid) {
            live.owed = sent.is_err().then(|| (word, Instant::now() + TELL_AGAIN));
        }
    }
}
