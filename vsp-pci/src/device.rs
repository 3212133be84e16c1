//! The device: a bus with one function at the end of a vPCI channel.
//!
//! Requests of the guest's end at once, but for those that the core has to be asked for: the configuration window, and interrupts. Accesses of the
//! guest's processors end when what they have changed is in the ledger, and when the guest sees what they have asked for.
//!
//! * `packets`: what the guest says by its channel.
//! * `accesses`: what its processors do.
//! * `life`: how the function comes to this process, and what becomes of it.

mod accesses;
mod life;
mod packets;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use logs::Ration;
use thiserror::Error;
use vsp::vmbus::guid::class;
use vsp::vmbus::packet::{Outgoing, PacketType};
use vsp::{
    Access, ChannelId, Channels, Control, Device, GuestRam, Notify, Offer, OpenRequest, Packet, Refused,
    Request, Vm,
};

use self::packets::Create;
use crate::backend::{Adopt, Backend};
use crate::config::Unfit;
use crate::function::{FoundPlace, Function};
use crate::interrupts::Bells;
use crate::places::Order;
use crate::state::State;
use crate::wire::{HostMessage, Status, host};

/// Most requests at a time. Those that wait do so for the core alone.
const DEPTH: u32 = 32;

/// How long a guest may take to let the function go. Windows gives it a minute; an operator has less patience, and can ask again.
const EJECTION: Duration = Duration::from_secs(20);

/// How often it is tried to keep what an access has changed before the access ends all the same. It takes two turns if the core has to be told something
/// first; if it takes longer the guest does not read its ring, or has broken it, and the loss is its own.
const ATTEMPTS: u32 = 16;

/// What guests can have logged as often as they like.
static NEWS: Ration = Ration::new();
static REFUSED: Ration = Ration::new();

/// Why the device cannot start.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The function cannot be opened.
    #[error("{0}")]
    Backend(String),
    /// It can, and is of no use.
    #[error("{name} cannot be passed through: {unfit}")]
    Unfit {
        /// Which it is.
        name: String,
        /// Why.
        unfit: Unfit,
    },
    /// No eventfds.
    #[error("no descriptors for interrupts: {0}")]
    Bells(std::io::Error),
}

/// Where functions come from.
#[derive(Debug)]
pub struct Origin {
    /// What people call it.
    pub name: String,
    /// Number of its slot, for the guest.
    pub serial: u32,
    /// Makes one of what a predecessor has kept.
    pub adopter: Box<dyn Adopt>,
}

impl std::fmt::Debug for dyn Adopt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Adopt")
    }
}

/// A processor of the guest's that waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    id: u64,
    value: u64,
}

/// The device.
#[derive(Debug)]
pub struct Pci {
    origin: Origin,
    /// None as long as somebody else has it.
    function: Option<Function>,
    ram: Option<Arc<GuestRam>>,
    vps: u32,
    /// Guest RAM that the function cannot reach yet: addresses and lengths.
    unmapped: Vec<(u64, u64)>,
    /// Guest RAM that it has still to lose, since its guest has gone.
    unmapping: Option<Vec<(u64, u64)>>,
    /// What a predecessor has kept, by keys.
    kept: BTreeMap<u32, (String, Vec<OwnedFd>)>,
    /// The core keeps the function.
    is_kept: bool,
    /// Another process has served the device before this one.
    has_predecessor: bool,
    /// What the guest sees by a predecessor's doing.
    found: Vec<FoundPlace>,
    channel: Option<ChannelId>,
    /// Guests that wait for their configuration window.
    entries: Vec<Request>,
    /// Guests that wait for interrupts.
    creates: Vec<Create>,
    waiting: VecDeque<Waiting>,
    /// Turns in which what they have changed could not be kept.
    attempts: u32,
    /// Requests of a channel that has closed meanwhile: they only have to end.
    leftovers: Vec<Request>,
    ejections: Vec<Control>,
    /// The guest has to be told, and there was no room.
    must_eject: bool,
    eject_by: Option<Instant>,
    is_quiescing: bool,
    /// There is something to do though nobody has rung.
    attention: bool,
    /// Messages of the guest that made no sense.
    strange: u64,
}

impl Pci {
    /// The device, with its function, or without if another process has it.
    pub fn open(origin: Origin, backend: Option<Box<dyn Backend>>) -> Result<Pci, OpenError> {
        let function = match backend {
            None => None,
            Some(backend) => {
                let vectors = backend.info().msi.max(backend.info().msix);
                let bells = Bells::new(Bells::count(vectors)).map_err(OpenError::Bells)?;
                let name = origin.name.clone();
                Some(Function::new(backend, bells).map_err(|unfit| OpenError::Unfit { name, unfit })?)
            }
        };
        Ok(Pci {
            origin,
            function,
            ram: None,
            vps: 0,
            unmapped: Vec::new(),
            unmapping: None,
            kept: BTreeMap::new(),
            is_kept: false,
            has_predecessor: false,
            found: Vec::new(),
            channel: None,
            entries: Vec::new(),
            creates: Vec::new(),
            waiting: VecDeque::new(),
            attempts: 0,
            leftovers: Vec::new(),
            ejections: Vec::new(),
            must_eject: false,
            eject_by: None,
            is_quiescing: false,
            attention: false,
            strange: 0,
        })
    }

    /// The function, if this process has it.
    pub fn function(&self) -> Option<&Function> {
        self.function.as_ref()
    }

    fn state(&self) -> Vec<u8> {
        let pending: Vec<u32> = self.creates.iter().map(|create| create.first).collect();
        self.function.as_ref().map_or_else(State::default, |function| function.save(&pending)).encode()
    }

    /// Ends a request, and keeps the state.
    fn complete(&mut self, request: Request, payload: &[u8], channels: &mut Channels) {
        let state = self.state();
        request.complete_with_state(channels, payload, &state);
        if let Some(function) = &mut self.function {
            function.is_dirty = false;
        }
    }

    /// The function still has what its last user has made of it.
    fn owes_reset(&self) -> bool {
        self.function.as_ref().is_some_and(|function| function.reset_again().is_some())
    }

    /// Tells the core what there is to tell, keeps what there is to keep, and lets those go on who need not wait any more.
    fn settle(&mut self, channels: &mut Channels) {
        // Every call is a piece of RAM's.
        self.attention = (!self.unmapped.is_empty() && !self.owes_reset()) || self.unmapping.is_some();
        let (Some(function), Some(channel)) = (&mut self.function, self.channel) else { return };
        if function.is_dirty && !self.waiting.is_empty() {
            // Not while the core has still to be told something: then the next turn will do.
            let pending: Vec<u32> = self.creates.iter().map(|create| create.first).collect();
            function.is_dirty = !channels.save_state(channel, &function.save(&pending).encode());
        }
        let file = Arc::clone(function.backend().file());
        for order in function.take_orders() {
            match order {
                Order::Trap { gpa, bytes } => channels.trap(gpa, bytes),
                Order::Untrap { gpa } => channels.untrap(gpa),
                Order::Map { gpa, bytes, offset } => channels.map_region(gpa, bytes, &file, offset),
                Order::Unmap { gpa } => channels.unmap_memory(gpa),
            }
        }
        if self.waiting.is_empty() || !function.places.is_settled() {
            return;
        }
        if function.is_dirty && self.attempts < ATTEMPTS {
            self.attention = true;
            return;
        }
        self.attempts = 0;
        for Waiting { id, value } in self.waiting.drain(..) {
            channels.access_done(id, value);
        }
    }

    /// The core has said what becomes of a place.
    fn placed(&mut self, gpa: u64, is_trap: bool, result: Result<(), String>, channels: &mut Channels) {
        let Some(function) = &mut self.function else { return };
        let place = function.places.answered(gpa, is_trap, result.is_ok());
        if let (Some(_), Err(why)) = (place, &result)
            && let Some(times) = REFUSED.another()
        {
            tracing::warn!(times, "the guest cannot have the function at {gpa:#x}: {why}");
        }
        if function.places.is_settled() {
            self.answer_entries(channels);
        }
        self.settle(channels);
    }

    fn ask_to_eject(&mut self, channels: &mut Channels) {
        let Some(channel) = self.channel.filter(|_| self.must_eject) else { return };
        match channels.notify(channel, &Outgoing::in_band(0, false), &HostMessage::Eject.encode()) {
            Notify::Sent | Notify::Dead => self.must_eject = false,
            Notify::Full => {}
        }
    }

    fn end_ejections(&mut self, result: &Result<String, String>, channels: &mut Channels) {
        self.eject_by = None;
        self.must_eject = false;
        for control in self.ejections.drain(..) {
            control.answer(channels, result.clone());
        }
    }
}

/// What an operator is told when the guest has let the function go.
const GONE: &str = r#"{"ejected":true}"#;

impl Device for Pci {
    fn offer(&self) -> Offer {
        Offer { class: class::VPCI.to_string(), ..Offer::default() }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        let Some(function) = &self.function else { return Vec::new() };
        let kept = function.backend().kept();
        kept.iter().chain(function.bells().all()).map(|fd| fd.as_raw_fd()).collect()
    }

    fn depth(&self) -> u32 {
        DEPTH
    }

    fn attached(&mut self, vm: Vm) -> Result<(), String> {
        let ram = vm.ram.ok_or("the device's slot has no guest RAM, which a PCI function needs for DMA")?;
        (self.vps, self.ram) = (vm.vps, Some(Arc::new(ram)));
        Ok(())
    }

    fn kept(&mut self, key: u32, note: String, fds: Vec<OwnedFd>) {
        // A process that has the function has these already.
        if self.function.is_none() {
            self.kept.insert(key, (note, fds));
        }
    }

    fn resource(&self) -> String {
        format!("the PCI function {}", self.origin.name)
    }

    fn fence(&mut self, predecessor: bool) -> Result<bool, String> {
        self.has_predecessor = predecessor;
        self.adopt_function(predecessor).map(|()| true)
    }

    fn open(&mut self, channel: ChannelId, request: &OpenRequest) -> Result<(), Refused> {
        let Some(function) =
            self.function.as_mut().filter(|_| request.subchannel == 0 && self.channel.is_none())
        else {
            return Err(Refused::default());
        };
        function.forget();
        self.channel = Some(channel);
        Ok(())
    }

    fn restore(&mut self, _channel: ChannelId, state: &[u8]) -> Result<(), String> {
        let state = State::decode(state).map_err(|error| error.to_string())?;
        if let Some(function) = &mut self.function {
            function.restore(&state);
        }
        Ok(())
    }

    fn region(&mut self, gpa: u64, bytes: u64, offset: u64) {
        self.found.push(FoundPlace::Region { gpa, bytes, offset });
    }

    fn trap(&mut self, gpa: u64, bytes: u64) {
        self.found.push(FoundPlace::Trap { gpa, bytes });
    }

    fn resumed(&mut self, _channel: ChannelId, channels: &mut Channels) {
        if let Some(function) = &mut self.function {
            self.found.drain(..).for_each(|place| function.found(place));
            function.resume();
        }
        self.settle(channels);
    }

    fn adopted(&mut self, channels: &mut Channels) {
        self.keep(channels);
        if self.channel.is_none() && self.has_predecessor {
            // It may have died between the end of its guest and the function's reset.
            if let Some(function) = &mut self.function {
                function.suspect();
            }
            self.close();
            self.found.clear();
        }
    }

    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        if packet.header.packet_type == PacketType::IN_BAND {
            self.hear(packet.header.payload(packet.bytes), request, channels);
        } else {
            self.nonsense(&"it is no message", request, Status::INVALID_PARAMETER, channels);
        }
        self.settle(channels);
    }

    fn reject(&mut self, _packet: Option<Packet<'_>>, request: Request, channels: &mut Channels) {
        request.complete(channels, &host::completion(Status::INVALID_STATE));
    }

    fn memory_mapped(&mut self, gpa: u64, result: Result<(), String>, channels: &mut Channels) {
        self.placed(gpa, false, result, channels);
    }

    fn trapped(&mut self, gpa: u64, result: Result<(), String>, channels: &mut Channels) {
        self.placed(gpa, true, result, channels);
    }

    fn region_lost(&mut self, gpa: u64, channels: &mut Channels) {
        if let Some(times) = NEWS.another() {
            tracing::warn!(
                times,
                "the function did not answer the guest at {gpa:#x}, and is not seen there any more"
            );
        }
        if let Some(function) = &mut self.function {
            function.lost(gpa);
        }
        self.settle(channels);
    }

    fn access(&mut self, access: Access, channels: &mut Channels) {
        self.access_by_guest(access, channels);
    }

    fn interrupt_ready(&mut self, id: u32, result: Result<(), String>, channels: &mut Channels) {
        self.interrupt_answered(id, result, channels);
        self.settle(channels);
    }

    fn room(&mut self, _channel: ChannelId, channels: &mut Channels) {
        self.ask_to_eject(channels);
    }

    fn submit(&mut self, channels: &mut Channels) {
        for request in self.leftovers.drain(..) {
            request.complete(channels, &[]);
        }
        if self.channel.is_none() && !self.ejections.is_empty() {
            // With the channel, the guest has let the function go.
            self.end_ejections(&Ok(GONE.into()), channels);
        }
        if self.eject_by.is_some_and(|by| by <= Instant::now()) {
            let why = format!("the guest has not let the function go within {} s", EJECTION.as_secs());
            self.end_ejections(&Err(why), channels);
        }
        if let Some(function) = &mut self.function {
            function.reset_if_due();
        }
        self.unmap_some();
        if !self.unmapped.is_empty() && !self.owes_reset() {
            self.map_some();
            self.answer_entries(channels);
        }
        if self.is_quiescing {
            self.end_ejections(&Err("another process takes the device over now: ask again".into()), channels);
        }
        self.settle(channels);
        if self.attention && !self.waiting.is_empty() {
            self.attempts += 1;
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        if self.attention {
            return Some(Instant::now());
        }
        let again = self.function.as_ref().and_then(Function::reset_again);
        again.into_iter().chain(self.eject_by).min()
    }

    fn control(&mut self, control: Control, channels: &mut Channels) {
        self.wanted_by_operator(control, channels);
    }

    fn quiescing(&mut self) {
        (self.is_quiescing, self.attention) = (true, true);
    }

    fn is_idle(&self) -> bool {
        let is_open = !self.entries.is_empty() || !self.creates.is_empty() || !self.leftovers.is_empty();
        !is_open && self.is_clean()
    }

    fn is_clean(&self) -> bool {
        self.unmapping.is_none() && !self.owes_reset()
    }

    fn release(&mut self) {
        self.channel = None;
        self.unmapped.clear();
        self.waiting.clear();
        self.found.clear();
        self.is_quiescing = false;
        if let Some(function) = &mut self.function {
            function.forget();
        }
    }

    fn closing(&mut self, channel: ChannelId) {
        if self.channel == Some(channel) {
            self.close();
        }
    }
}
