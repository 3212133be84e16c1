//! What the guest says by its channel.

use std::fmt::Display;

use vsp::{Channels, Request};

use super::{GONE, NEWS, Pci};
use crate::interrupts::ADDRESS;
use crate::wire::guest::{Message, Target};
use crate::wire::{GuestMessage, HostMessage, SLOT, Status, Version, host};

/// Vectors below are the processor's own (Intel's manual, volume 3, 6.2).
const FIRST_VECTOR: u32 = 16;
/// The last that there is.
const LAST_VECTOR: u32 = 255;

/// A guest that waits for interrupts.
#[derive(Debug)]
pub(super) struct Create {
    request: Request,
    /// First number.
    pub first: u32,
    count: u16,
    /// How many the core has not answered.
    open: u16,
    /// It has refused one.
    is_refused: bool,
}

impl Create {
    /// Nobody waits any more.
    pub(super) fn into_request(self) -> Request {
        self.request
    }
}

impl Pci {
    pub(super) fn hear(&mut self, payload: &[u8], request: Request, channels: &mut Channels) {
        let message = match GuestMessage::parse(payload) {
            Ok(message) => message,
            Err(error) => return self.nonsense(&error, request, Status::INVALID_PARAMETER, channels),
        };
        let version = self.function().and_then(|function| function.version);
        match message {
            GuestMessage::QueryVersion(version) => self.agree(version, request, channels),
            _ if version.is_none() => {
                self.nonsense(&"it has not asked for a version", request, Status::INVALID_STATE, channels);
            }
            GuestMessage::QueryBusRelations => self.introduce(request, channels),
            GuestMessage::QueryResourceRequirements { slot } => {
                match self.function().filter(|function| is_there(slot, function.is_ejected())) {
                    Some(function) => {
                        let payload = host::requirements(&function.config().bars().probed());
                        self.complete(request, &payload, channels);
                    }
                    None => self.nonsense(&NO_FUNCTION, request, Status::NO_SUCH_DEVICE, channels),
                }
            }
            GuestMessage::D0Entry { window } => self.enter(window, request, channels),
            GuestMessage::D0Exit => {
                self.leave(channels);
                self.complete(request, &host::completion(Status::SUCCESS), channels);
            }
            GuestMessage::ResourcesAssigned { slot } | GuestMessage::ResourcesReleased { slot } => {
                match slot {
                    // The base address registers say where, and the command register says whether.
                    SLOT => self.complete(request, &host::completion(Status::SUCCESS), channels),
                    _ => self.nonsense(&NO_FUNCTION, request, Status::NO_SUCH_DEVICE, channels),
                }
            }
            GuestMessage::PowerStateChange { slot: SLOT, state } => {
                self.complete(request, &host::power(state), channels);
            }
            GuestMessage::PowerStateChange { .. } => {
                self.nonsense(&NO_FUNCTION, request, Status::NO_SUCH_DEVICE, channels);
            }
            GuestMessage::CreateInterrupt { slot, target } => self.create(slot, target, request, channels),
            GuestMessage::DeleteInterrupt { slot, message } => self.delete(slot, message, request, channels),
            GuestMessage::EjectionComplete { slot } => self.ejected(slot, request, channels),
            // They are for a driver of the host's, and there is none.
            GuestMessage::Block => {
                self.complete(request, &host::completion(Status::NOT_SUPPORTED), channels);
            }
        }
    }

    /// Ends a request that makes no sense.
    pub(super) fn nonsense(
        &mut self,
        why: &dyn Display,
        request: Request,
        status: Status,
        channels: &mut Channels,
    ) {
        self.strange += 1;
        if self.strange.is_power_of_two() {
            tracing::warn!(count = self.strange, "a message of the guest's makes no sense: {why}");
        }
        request.complete(channels, &host::completion(status));
    }

    fn agree(&mut self, version: Version, request: Request, channels: &mut Channels) {
        let accepted = version.is_spoken();
        if let Some(times) = NEWS.another() {
            // If it is not, drivers ask for an older one.
            tracing::info!(%version, accepted, times, "the guest wants to speak vPCI");
        }
        if !accepted {
            return request.complete(channels, &host::completion(Status::REVISION_MISMATCH));
        }
        if let Some(function) = &mut self.function {
            function.version = Some(version.wire());
        }
        self.complete(request, &host::completion(Status::SUCCESS), channels);
    }

    /// Says which functions there are: as a message, since the guest asks for no completion.
    fn introduce(&mut self, request: Request, channels: &mut Channels) {
        let serial = self.origin.serial;
        let Some(function) = &self.function else {
            return request.complete(channels, &host::completion(Status::INVALID_STATE));
        };
        let version = Version::from_wire(function.version.unwrap_or(0));
        let description = (!function.is_ejected()).then(|| function.config().description(serial));
        let message = HostMessage::BusRelations { version, function: description };
        request.reply(channels, &[&message.encode()], None);
    }

    fn enter(&mut self, window: u64, request: Request, channels: &mut Channels) {
        if let Some(function) = &mut self.function {
            function.enter(window);
        }
        if self.unmapped.is_empty() {
            self.plan_dma();
        }
        self.entries.push(request);
        self.answer_entries(channels);
    }

    /// Answers those who wait for their window, if the core has decided about it and the function has guest RAM.
    pub(super) fn answer_entries(&mut self, channels: &mut Channels) {
        let is_through = self.unmapped.is_empty() && !self.entries.is_empty() && !self.owes_reset();
        let Some(function) =
            self.function.as_mut().filter(|function| is_through && function.places.is_settled())
        else {
            return;
        };
        let has_window = function.window().is_some_and(|window| function.places.find(window, 1).is_some());
        let is_there = has_window && function.reaches_ram();
        if !is_there {
            function.refuse_window();
        }
        let status = match (is_there, has_window) {
            (true, _) => Status::SUCCESS,
            (false, true) => Status::INSUFFICIENT_RESOURCES,
            (false, false) => Status::INVALID_PARAMETER,
        };
        for request in std::mem::take(&mut self.entries) {
            self.complete(request, &host::completion(status), channels);
        }
    }

    /// The guest does not use the bus any more.
    fn leave(&mut self, channels: &mut Channels) {
        let Some(function) = &mut self.function else { return };
        let given: Vec<_> = function.interrupts.given().collect();
        let pending: Vec<u32> = self.creates.iter().map(|create| create.first).collect();
        for (first, count) in given.into_iter().filter(|(first, _)| !pending.contains(first)) {
            (first..first + count).for_each(|number| channels.delete_interrupt(number));
        }
        function.leave();
        for create in &mut self.creates {
            // Whoever has asked for it is not told of another end; that it is given is forgotten.
            create.is_refused = true;
        }
    }

    fn create(&mut self, slot: u32, target: Target, request: Request, channels: &mut Channels) {
        let Target { vector, count, vp } = target;
        let is_possible = (FIRST_VECTOR..=LAST_VECTOR).contains(&vector)
            && vector + u32::from(count) - 1 <= LAST_VECTOR
            && vp < self.vps;
        let refuse = |status| host::interrupt(Err(status));
        let Some(function) = self.function.as_mut().filter(|function| is_there(slot, function.is_ejected()))
        else {
            return request.complete(channels, &refuse(Status::NO_SUCH_DEVICE));
        };
        if !is_possible || count == 0 {
            self.strange += 1;
            return request.complete(channels, &refuse(Status::INVALID_PARAMETER));
        }
        let Some(first) = function.interrupts.find(count, function.bells()) else {
            if let Some(times) = NEWS.another() {
                tracing::warn!(count, times, "the guest wants more interrupts than the function has");
            }
            return request.complete(channels, &refuse(Status::INSUFFICIENT_RESOURCES));
        };
        function.interrupts.give(first, count);
        for (number, vector) in (first..).zip(vector..).take(count.into()) {
            // Both fit: the guest may have no more numbers than there are eventfds, and the last vector is a byte.
            if let Some(bell) = function.bells().get(number) {
                channels.interrupt(number, vector as u8, vp, bell);
            }
        }
        self.creates.push(Create { request, first, count, open: count, is_refused: false });
    }

    /// The core has said what becomes of an interrupt.
    pub(super) fn interrupt_answered(
        &mut self,
        id: u32,
        result: Result<(), String>,
        channels: &mut Channels,
    ) {
        let is_it = |create: &Create| (create.first..create.first + u32::from(create.count)).contains(&id);
        let Some(place) = self.creates.iter().position(is_it) else { return };
        let create = &mut self.creates[place];
        create.open = create.open.saturating_sub(1);
        if let Err(why) = result {
            create.is_refused = true;
            if let Some(times) = super::REFUSED.another() {
                tracing::warn!(id, times, "the guest cannot have an interrupt: {why}");
            }
        }
        if create.open > 0 {
            return;
        }
        let Create { request, first, count, is_refused, .. } = self.creates.swap_remove(place);
        let Some(function) = &mut self.function else {
            return request.complete(channels, &host::interrupt(Err(Status::INVALID_STATE)));
        };
        let payload = if is_refused {
            function.interrupts.take_back(first);
            (first..first + u32::from(count)).for_each(|number| channels.delete_interrupt(number));
            host::interrupt(Err(Status::INSUFFICIENT_RESOURCES))
        } else {
            function.interrupts_changed();
            host::interrupt(Ok(Message { count, data: first, address: ADDRESS }))
        };
        self.complete(request, &payload, channels);
    }

    fn delete(&mut self, slot: u32, message: Message, request: Request, channels: &mut Channels) {
        let is_pending = self.creates.iter().any(|create| create.first == message.data);
        let function = self.function.as_mut().filter(|_| slot == SLOT && !is_pending);
        if let Some(function) = function
            && let Some(count) = function.interrupts.take_back(message.data)
        {
            (message.data..message.data + count).for_each(|number| channels.delete_interrupt(number));
            function.interrupts_changed();
        }
        self.complete(request, &host::completion(Status::SUCCESS), channels);
    }

    fn ejected(&mut self, slot: u32, request: Request, channels: &mut Channels) {
        if slot != SLOT {
            return self.nonsense(&NO_FUNCTION, request, Status::NO_SUCH_DEVICE, channels);
        }
        self.leave(channels);
        if let Some(function) = &mut self.function {
            function.eject();
        }
        if let Some(times) = NEWS.another() {
            tracing::info!(times, "the guest has let the function go");
        }
        self.complete(request, &host::completion(Status::SUCCESS), channels);
        self.end_ejections(&Ok(GONE.into()), channels);
    }
}

const NO_FUNCTION: &str = "there is no such function";

fn is_there(slot: u32, is_ejected: bool) -> bool {
    slot == SLOT && !is_ejected
}
