//! The VMBus server: the bus's state machine joined to a partition and to device processes.
//!
//! Knows how a channel is opened (pages donated, doorbell bound, descriptors sent), never what
//! goes through it. Device processes come and go; a guest that uses the device notices a pause at most. Runs on one
//! thread and never blocks.

mod allowance;
mod channels;
mod control;
mod device;
mod hotplug;
mod interrupts;
mod kept;
mod live;
mod mappings;
mod memory;
mod operator;
mod passthrough;
mod peers;
mod prepare;
mod slot;
mod swap;
#[cfg(test)]
mod tests;
mod traps;

use std::{
    os::fd::{AsFd, AsRawFd, RawFd},
    time::{Duration, Instant},
};

use control::Controls;
use device::{Device, ProcessId};
use interrupts::Interrupt;
use ipc::{config::DeviceSlot, message::VERSIONS, socket::Peer};
use live::{Hold, Live};
use logs::Ration;
use mappings::Mapping;
use memory::Shared;
use operator::Operators;
use traps::Traps;

use crate::{
    bus::{Bus, Effect},
    layout::PAGE,
    memory::{Ram, donation::Donations},
    partition::{HvStatus, Partition, SynicRegisters},
    synic::Synic,
};

/// Pause before a device is told again what its socket had no room for. It has hundreds of messages to read first.
const TELL_AGAIN: Duration = Duration::from_millis(10);

/// Channels open at a time. Each costs the core three descriptors, of which its compartment allows 4,096: this leaves enough for
/// VPs, for a successor of every device's process, and for all that is held for devices of the host's. It is room for 8 controllers with a channel for each of 64 VPs.
const CHANNELS_MAX: usize = 512;
/// Of these, how many sub-channels may leave for primary channels: without one, a guest has no device.
const PRIMARIES: usize = 64;

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
    shared: Vec<Shared>,
    mappings: Vec<Mapping>,
    /// Mappings that have been taken back so far,
    unmapped: u64,
    /// and how many it had been when each VP last met memory that did not answer.
    faults: Vec<u64>,
    traps: Traps,
    interrupts: Vec<Interrupt>,
    channels_max: usize,
    /// With the time by which each has to say who it is.
    strangers: Vec<(Peer, Instant)>,
    /// Nobody is accepted before then.
    accept_after: Option<Instant>,
    operators: Operators,
    controls: Controls,
    /// Why the VM cannot go on.
    failure: Option<String>,
    /// User ids that may attach as any device, and as operators.
    trusted: Vec<u32>,
    /// Device processes that have come so far.
    processes: ProcessId,
    /// About the guest.
    complaints: Ration,
}

impl Server {
    /// A server without attached devices. `trusted` are user ids that may attach as any device, and as operators.
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
            shared: Vec::new(),
            mappings: Vec::new(),
            unmapped: 0,
            faults: vec![0; vps as usize],
            traps: Traps::default(),
            interrupts: Vec::new(),
            channels_max: CHANNELS_MAX,
            strangers: Vec::new(),
            accept_after: None,
            operators: Operators::default(),
            controls: Controls::default(),
            failure: None,
            trusted,
            processes: 0,
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

    /// Names of configured devices that no process serves yet, or any more.
    pub fn missing_devices(&self) -> Vec<&str> {
        let missing = |d: &&Device| !d.is_vacant() && d.removal.is_none() && !d.slot.is_served();
        self.devices.iter().filter(missing).map(|d| d.name.as_str()).collect()
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

    /// Closes everything, as the guest is being reset. Complete once [`Self::is_quiet`], which can take until a device that
    /// lost its process has another one.
    pub fn reset<P: Partition>(&mut self, partition: &P) {
        self.bus.reset();
        self.apply(partition);
        self.synic.reset(partition, &self.ram, &mut self.donations);
        self.forget_accesses();
        // The next guest is not told of devices that are gone.
        for i in 0..self.devices.len() {
            self.forget_if_gone(i);
        }
    }

    /// No channel is open, no guest page is shared, no device's memory is mapped.
    pub fn is_quiet(&self) -> bool {
        let is_open = !self.live.is_empty() || !self.shared.is_empty() || !self.mappings.is_empty();
        self.bus.is_quiet() && !is_open
    }

    /// No process has a channel; what is still open waits for processes that are not there.
    pub fn is_released(&self) -> bool {
        // Who waits for its resource has nothing to end.
        self.live.iter().all(|l| matches!(l.hold, Hold::Free | Hold::Early(_)))
    }

    /// When [`Self::tick`] has to be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let strangers = self.strangers.iter().map(|(_, by)| *by);
        let slots = self.devices.iter().filter_map(|d| d.slot.deadline());
        let own = [
            self.accept_after,
            self.channels_deadline(),
            self.asks_deadline(),
            self.traps.deadline(),
            self.controls.deadline(),
        ];
        strangers.chain(slots).chain(own.into_iter().flatten()).min()
    }

    /// Time goes by: what could not be said is said again, and who does not do in time what he has to is cut off.
    pub fn tick<P: Partition>(&mut self, partition: &P, now: Instant) {
        self.tick_strangers(now);
        self.tick_channels(partition, now);
        self.tick_asks(partition, now);
        self.tick_traps(partition, now);
        self.tick_slots(partition, now);
        self.tick_controls(now);
        self.finish_removals(partition);
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
                    Effect::Open(open) => self.begin_open(partition, &open),
                    Effect::Close(relid) => self.begin_close(partition, relid),
                    Effect::Retarget(relid, vp) => self.retarget(partition, relid, vp),
                    Effect::Unshare(gpadl) => self.unshare(partition, gpadl),
                }
            }
        }
    }
}
