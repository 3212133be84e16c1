//! Persistent reservations: who is registered with a unit, who has reserved it, and what that lets others do
//! (SPC-4 5.12, 6.15, 6.16).
//!
//! The rules are for any number of initiators, so that several VMs could share a registry; as long as each has an image to
//! itself there is one, [`Nexus::GUEST`]. What is kept is small and lies in the ledger with the answer that changed
//! it; nothing is kept through a loss of power (APTPL is refused), which here is a guest that opens its controller anew.
//!
//! * `report`: the answers to PERSISTENT RESERVE IN
//! * `request`: what PERSISTENT RESERVE OUT asks for

mod report;
mod request;
#[cfg(test)]
mod tests;

use super::attention::Attention;
use super::bytes::Reader;
use super::sense::Sense;

pub use report::report;
pub use request::{Action, LIST, MAX_LIST, Request};

/// An initiator and the port by which it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nexus(pub u64);

impl Nexus {
    /// The guest whose controller this is.
    pub const GUEST: Nexus = Nexus(1);
}

/// Most registrants of a unit. Bounds what a registry takes in the ledger.
pub const MAX_REGISTRANTS: usize = 8;

/// Kinds of reservations, by their numbers in commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Only the holder writes.
    WriteExclusive = 1,
    /// Only the holder reads and writes.
    ExclusiveAccess = 3,
    /// Only registrants write.
    WriteExclusiveRegistrants = 5,
    /// Only registrants read and write.
    ExclusiveAccessRegistrants = 6,
    /// Only registrants write, and each of them is a holder.
    WriteExclusiveAll = 7,
    /// Only registrants read and write, and each of them is a holder.
    ExclusiveAccessAll = 8,
}

impl Kind {
    /// Every one.
    pub const ALL: [Kind; 6] = [
        Kind::WriteExclusive,
        Kind::ExclusiveAccess,
        Kind::WriteExclusiveRegistrants,
        Kind::ExclusiveAccessRegistrants,
        Kind::WriteExclusiveAll,
        Kind::ExclusiveAccessAll,
    ];

    /// By its number.
    pub fn of(number: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// Every registrant holds it.
    fn is_for_all(self) -> bool {
        matches!(self, Kind::WriteExclusiveAll | Kind::ExclusiveAccessAll)
    }

    /// Registrants are as good as the holder.
    fn is_for_registrants(self) -> bool {
        !matches!(self, Kind::WriteExclusive | Kind::ExclusiveAccess)
    }

    fn lets_others_read(self) -> bool {
        matches!(self, Kind::WriteExclusive | Kind::WriteExclusiveRegistrants | Kind::WriteExclusiveAll)
    }
}

/// What a command does to a unit, as far as a reservation cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It asks what anybody may know.
    Free,
    /// It reads the disk or what only its users have to know.
    Read,
    /// It changes the disk or how the unit behaves.
    Write,
}

/// Why a command on reservations has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Status RESERVATION CONFLICT.
    Conflict,
    /// CHECK CONDITION.
    Check(Sense),
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Refusal {
        Refusal::Check(sense)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registrant {
    nexus: Nexus,
    key: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reservation {
    kind: Kind,
    /// Who made it; where every registrant is a holder, it may have gone.
    holder: Nexus,
}

/// Whom something has to be told that he did not do himself.
pub type Notices = Vec<(Nexus, Attention)>;

/// Registrations and the reservation of a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registry {
    /// Counts changes of registrations (PRGENERATION).
    generation: u32,
    registrants: Vec<Registrant>,
    reservation: Option<Reservation>,
}

impl Registry {
    /// Nobody is registered.
    pub const fn new() -> Registry {
        Registry { generation: 0, registrants: Vec::new(), reservation: None }
    }

    /// Whether somebody may do this to the unit.
    pub fn allows(&self, nexus: Nexus, access: Access) -> bool {
        let Some(Reservation { kind, holder }) = self.reservation else { return true };
        access == Access::Free
            || holder == nexus && !kind.is_for_all()
            || kind.is_for_registrants() && self.key_of(nexus).is_some()
            || kind.lets_others_read() && access == Access::Read
    }

    /// Carries out PERSISTENT RESERVE OUT. On an error nothing has changed.
    pub fn apply(&mut self, from: Nexus, request: &Request) -> Result<Notices, Refusal> {
        let registered = self.key_of(from);
        // All but registrations come from registrants who know their key.
        let registrant = || if registered == Some(request.key) { Ok(()) } else { Err(Refusal::Conflict) };
        match request.action {
            Action::Register => {
                if registered.unwrap_or(0) != request.key {
                    return Err(Refusal::Conflict);
                }
                self.register(from, request.new_key)
            }
            Action::RegisterAnyway => self.register(from, request.new_key),
            Action::Reserve(kind) => registrant().and_then(|()| self.reserve(from, kind)),
            Action::Release(kind) => registrant().and_then(|()| self.release(from, kind)),
            Action::Clear => {
                registrant()?;
                let notices = self.to_others(from, Attention::ReservationsPreempted);
                self.registrants.clear();
                self.reservation = None;
                self.changed();
                Ok(notices)
            }
            Action::Preempt(kind) => registrant().and_then(|()| self.preempt(from, kind, request.new_key)),
            // To whom? No initiator but the one that asks has a name here.
            Action::Move => {
                registrant()?;
                match self.reservation {
                    Some(held) if held.holder == from && !held.kind.is_for_all() => {
                        Err(Sense::in_list(request::TRANSPORT_ID).into())
                    }
                    _ => Err(Refusal::Conflict),
                }
            }
        }
    }

    fn key_of(&self, nexus: Nexus) -> Option<u64> {
        self.registrants.iter().find(|one| one.nexus == nexus).map(|one| one.key)
    }

    fn holds(&self, nexus: Nexus) -> bool {
        self.reservation.is_some_and(|held| {
            if held.kind.is_for_all() { self.key_of(nexus).is_some() } else { held.holder == nexus }
        })
    }

    fn changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    fn to_others(&self, than: Nexus, attention: Attention) -> Notices {
        let others = self.registrants.iter().filter(|one| one.nexus != than);
        others.map(|one| (one.nexus, attention)).collect()
    }

    fn register(&mut self, from: Nexus, key: u64) -> Result<Notices, Refusal> {
        let known = self.registrants.iter().position(|one| one.nexus == from);
        let mut notices = Notices::new();
        match (known, key) {
            // Nothing to forget.
            (None, 0) => return Ok(notices),
            (None, key) => {
                if self.registrants.len() >= MAX_REGISTRANTS {
                    return Err(Sense::NO_REGISTRATION_LEFT.into());
                }
                self.registrants.push(Registrant { nexus: from, key });
            }
            (Some(index), 0) => {
                let held = self.reservation.filter(|held| !held.kind.is_for_all() && held.holder == from);
                self.registrants.remove(index);
                if let Some(held) = held {
                    self.reservation = None;
                    if held.kind.is_for_registrants() {
                        notices = self.to_others(from, Attention::ReservationsReleased);
                    }
                }
                self.drop_unheld();
            }
            (Some(index), key) => self.registrants[index].key = key,
        }
        self.changed();
        Ok(notices)
    }

    /// A reservation for all registrants ends with the last of them.
    fn drop_unheld(&mut self) {
        if self.registrants.is_empty() {
            self.reservation = None;
        }
    }

    fn reserve(&mut self, from: Nexus, kind: Kind) -> Result<Notices, Refusal> {
        match self.reservation {
            None => self.reservation = Some(Reservation { kind, holder: from }),
            Some(held) if held.kind == kind && self.holds(from) => {}
            Some(_) => return Err(Refusal::Conflict),
        }
        Ok(Notices::new())
    }

    fn release(&mut self, from: Nexus, kind: Kind) -> Result<Notices, Refusal> {
        let Some(held) = self.reservation.filter(|_| self.holds(from)) else { return Ok(Notices::new()) };
        if held.kind != kind {
            return Err(Sense::INVALID_RELEASE.into());
        }
        self.reservation = None;
        let shared = held.kind.is_for_registrants();
        Ok(if shared { self.to_others(from, Attention::ReservationsReleased) } else { Notices::new() })
    }

    /// Removes whoever has this key. If the reservation was theirs it becomes the preempting one's.
    fn preempt(&mut self, from: Nexus, kind: Kind, victims: u64) -> Result<Notices, Refusal> {
        let is_victim = |one: &Registrant| victims == 0 || one.key == victims;
        let takes = match self.reservation {
            Some(held) if held.kind.is_for_all() => victims == 0,
            Some(held) if victims != 0 => self.key_of(held.holder) == Some(victims),
            _ => false,
        };
        if victims == 0 && !takes {
            return Err(Sense::in_list(request::NEW_KEY).into());
        }
        let mut notices = Notices::new();
        for one in self.registrants.iter().filter(|one| is_victim(one) && one.nexus != from) {
            notices.push((one.nexus, Attention::RegistrationsPreempted));
        }
        if takes {
            let before = self.reservation.replace(Reservation { kind, holder: from });
            self.registrants.retain(|one| one.nexus == from || !is_victim(one));
            if before.is_some_and(|held| held.kind != kind && held.kind.is_for_registrants()) {
                notices.extend(self.to_others(from, Attention::ReservationsReleased));
            }
        } else {
            if !self.registrants.iter().any(is_victim) {
                return Err(Refusal::Conflict);
            }
            self.registrants.retain(|one| !is_victim(one));
            self.drop_unheld();
        }
        self.changed();
        Ok(notices)
    }

    /// Whether nobody but this one is registered or holds the reservation.
    pub fn is_only(&self, nexus: Nexus) -> bool {
        self.registrants.iter().all(|one| one.nexus == nexus)
            && self.reservation.is_none_or(|held| held.holder == nexus)
    }

    /// Nobody is registered and never was.
    pub fn is_default(&self) -> bool {
        *self == Registry::default()
    }

    /// For the ledger.
    pub fn encode(&self, into: &mut Vec<u8>) {
        into.extend(self.generation.to_le_bytes());
        let (kind, holder) = self.reservation.map_or((0, 0), |held| (held.kind as u8, held.holder.0));
        into.extend([kind, self.registrants.len() as u8, 0, 0]);
        into.extend(holder.to_le_bytes());
        for one in &self.registrants {
            into.extend(one.nexus.0.to_le_bytes());
            into.extend(one.key.to_le_bytes());
        }
    }

    /// From the ledger; `None`: it makes no sense.
    pub fn decode(from: &mut Reader<'_>) -> Option<Registry> {
        let generation = from.u32()?;
        let [kind, count, ..] = from.array::<4>()?;
        let holder = Nexus(from.u64()?);
        if usize::from(count) > MAX_REGISTRANTS {
            return None;
        }
        let mut registrants = Vec::with_capacity(count.into());
        for _ in 0..count {
            let (nexus, key) = (Nexus(from.u64()?), from.u64()?);
            if registrants.iter().any(|one: &Registrant| one.nexus == nexus) {
                return None;
            }
            registrants.push(Registrant { nexus, key });
        }
        let reservation = match kind {
            0 => None,
            kind => Some(Reservation { kind: Kind::of(kind)?, holder }),
        };
        Some(Registry { generation, registrants, reservation })
    }
}
