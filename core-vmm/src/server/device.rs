//! A configured device: what the guest has been offered, and the processes that serve it.

use std::{
    os::fd::{AsRawFd, RawFd},
    time::{Duration, Instant},
};

use ipc::{
    config::DeviceSlot,
    message::{MAX_LEDGER, MAX_SUBCHANNELS, MAX_USER_DATA, Offer, ToCore},
    socket::Peer,
};
use logs::Ration;
use vmbus::{
    guid::Guid,
    message::{self, OfferFlags},
};

use super::{
    ServerError,
    allowance::Allowance,
    kept::Kept,
    memory::Desk,
    slot::{OperatorId, Role, Slot},
};
use crate::bus::Relid;

/// How long a device process may take to let go of a channel before it is cut off.
pub(super) const CLOSE_GRACE: Duration = Duration::from_secs(5);
/// How long a device process may take to answer a request to open.
pub(super) const OPEN_GRACE: Duration = Duration::from_secs(10);
/// The same two for one that has a device of the host's reach guest memory: all of that is pinned when it opens, and released when it closes, some seconds for
/// each 16 GiB.
const PINNING_GRACE: Duration = Duration::from_secs(60);
/// Characters that are kept of what a process says for people to read.
const TEXT_MAX: usize = 200;

/// One device.
#[derive(Debug)]
pub(super) struct Device {
    pub name: String,
    pub instance: Guid,
    pub uid: Option<u32>,
    pub guest_ram: bool,
    pub may_fetch: bool,
    /// Most bytes of its own that it may have mapped.
    pub device_memory: u64,
    /// It passes a device of the host's through.
    pub passthrough: bool,
    /// What its processes hand down to each other.
    pub kept: Kept,
    /// An operator waits for it to be gone.
    pub removal: Option<OperatorId>,
    /// How often something else of it may be mapped.
    pub allowance: Allowance,
    /// How often it may have an interrupt made.
    pub routings: Allowance,
    pub offered: Option<Offered>,
    pub slot: Slot<Process>,
    /// The process that serves has still to be told that it has been given all channels; when to try.
    pub owes_adopted: Option<Instant>,
    /// It has been given all channels, or is about to be told so.
    pub is_adopted: bool,
    /// What the process that has the device asks for besides its rings.
    pub desk: Desk,
    /// Times that somebody had to be asked again to end a process of this device.
    pub lingers: Ration,
}

/// What the guest knows, or will be told when it asks. A successor offers the same.
#[derive(Debug)]
pub(super) struct Offered {
    /// The primary channel.
    pub relid: Relid,
    /// As the guest reads it, but for the numbers of the channel.
    wire: message::Offer,
    /// Whether its channels have ledgers.
    ledger: bool,
}

/// Tells processes apart, as long as the VM lives.
pub(super) type ProcessId = u64;

/// A process that serves the device, or would.
#[derive(Debug)]
pub(super) struct Process {
    /// No other process has had or will have it.
    pub id: ProcessId,
    pub peer: Peer,
    /// Version of the control protocol that it speaks.
    pub version: u32,
    /// Bytes of ledger for each channel.
    pub ledger: u64,
    pub build: String,
    pub max_subchannels: u16,
}

/// A hello that has been looked at.
#[derive(Debug)]
pub(super) struct Greeting {
    wire: message::Offer,
    pub ledger: u64,
    pub build: String,
    pub max_subchannels: u16,
}

impl Device {
    pub fn new(slot: &DeviceSlot) -> Result<Self, ServerError> {
        let instance = slot.instance.parse().map_err(|_| ServerError::BadInstance {
            device: slot.name.clone(),
            instance: slot.instance.clone(),
        })?;
        Ok(Self {
            name: slot.name.clone(),
            instance,
            uid: slot.uid,
            guest_ram: slot.guest_ram,
            may_fetch: slot.fetch,
            device_memory: slot.device_memory,
            passthrough: slot.passthrough,
            ..Self::vacant()
        })
    }

    /// A place that a device has left.
    pub fn vacant() -> Self {
        Self {
            name: String::new(),
            instance: Guid::ZERO,
            uid: None,
            guest_ram: false,
            may_fetch: false,
            device_memory: 0,
            passthrough: false,
            kept: Kept::default(),
            removal: None,
            allowance: Allowance::of_mappings(Instant::now()),
            routings: Allowance::of_interrupts(Instant::now()),
            offered: None,
            slot: Slot::new(),
            owes_adopted: None,
            is_adopted: false,
            desk: Desk::default(),
            lingers: Ration::new(),
        }
    }

    /// Nobody's place.
    pub fn is_vacant(&self) -> bool {
        self.name.is_empty()
    }

    /// Its process at the other end of descriptor `fd`.
    pub fn role_of(&self, fd: RawFd) -> Option<Role> {
        self.slot.all().find(|(_, process)| process.peer.as_raw_fd() == fd).map(|(role, _)| role)
    }

    /// Whether a channel that the guest closes is nobody's, once no process has it: nothing can be on its way into guest memory.
    pub fn may_close(&self) -> bool {
        !self.guest_ram || (self.slot.is_fenced() && !self.acts_by_itself()) || self.is_let_go()
    }

    /// How long its process may take to open a channel.
    pub fn open_grace(&self) -> Duration {
        if self.acts_by_itself() { PINNING_GRACE } else { OPEN_GRACE }
    }

    /// How long it may take to let go of one.
    pub fn close_grace(&self) -> Duration {
        if self.acts_by_itself() { PINNING_GRACE } else { CLOSE_GRACE }
    }

    /// Whether a device of the host's may reach guest memory whatever its process does, and until a process has told it not to.
    pub fn acts_by_itself(&self) -> bool {
        self.passthrough && self.guest_ram
    }

    /// Whether it is to go, passes a device of the host's through, and nobody has that any more.
    fn is_let_go(&self) -> bool {
        let is_held = self.slot.all().next().is_some() || !self.kept.is_empty();
        self.removal.is_some() && self.passthrough && !is_held
    }

    pub fn is_primary(&self, relid: Relid) -> bool {
        self.offered.as_ref().is_some_and(|o| o.relid == relid)
    }

    /// Checks whether a process that offers this can serve here.
    pub fn check(&self, offer: &Offer, ledger: u64, build: &str) -> Result<Greeting, String> {
        let class: Guid = offer.class.parse().map_err(|_| "its class is not a GUID".to_owned())?;
        if offer.user_defined.len() > MAX_USER_DATA {
            return Err("its offer is too long".into());
        }
        if ledger > MAX_LEDGER {
            return Err(format!("it wants a ledger of {ledger} bytes a channel; {MAX_LEDGER} is the most"));
        }
        if offer.max_subchannels > MAX_SUBCHANNELS {
            let wanted = offer.max_subchannels;
            return Err(format!("it offers {wanted} sub-channels; {MAX_SUBCHANNELS} is the most"));
        }
        let mut wire = message::Offer::new(class, self.instance, 0, 0);
        fill_offer(&mut wire, offer);
        if let Some(known) = &self.offered {
            if known.wire != wire {
                return Err("it offers another device than the one that the guest has".into());
            }
            if known.ledger != (ledger > 0) {
                return Err("it keeps a ledger and the process before it kept none, or the reverse".into());
            }
        }
        Ok(Greeting { wire, ledger, build: shorten(build), max_subchannels: offer.max_subchannels })
    }
}

impl Greeting {
    /// Puts it into an offer to the guest.
    pub fn fill(&self, wire: &mut message::Offer) {
        wire.flags = self.wire.flags;
        wire.mmio_megabytes = self.wire.mmio_megabytes;
        wire.user_defined = self.wire.user_defined;
    }

    pub fn class(&self) -> Guid {
        self.wire.class
    }

    /// What a successor will have to match.
    pub fn offered_as(&self, relid: Relid) -> Offered {
        Offered { relid, wire: self.wire, ledger: self.ledger > 0 }
    }

    pub fn process(self, id: ProcessId, peer: Peer, version: u32) -> Process {
        let Self { ledger, build, max_subchannels, .. } = self;
        Process { id, peer, version, ledger, build, max_subchannels }
    }
}

/// Puts what the device offers into the wire form. `user_defined` has been checked for length.
fn fill_offer(wire: &mut message::Offer, offer: &Offer) {
    let mut flags = OfferFlags::empty();
    flags.set(OfferFlags::ENUMERATE_DEVICE_INTERFACE, offer.flags.enumerate_device_interface);
    flags.set(OfferFlags::NAMED_PIPE_MODE, offer.flags.named_pipe);
    flags.set(OfferFlags::TLNPI_PROVIDER, offer.flags.tlnpi_provider);
    wire.flags = flags.bits();
    wire.mmio_megabytes = offer.mmio_megabytes;
    for (to, from) in wire.user_defined.iter_mut().zip(&offer.user_defined) {
        *to = *from;
    }
}

/// Text from a process, fit for a log line.
pub(super) fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect()
}

/// What a message was, for a log line.
pub(super) fn describe(message: &ToCore) -> String {
    shorten(&format!("{message:?}"))
}
