//! Unit attentions: what a guest has to be told of a unit that it did not do itself (SPC-4 5.14, SAM-5 5.14).
//!
//! Each is told once, by the next command that may be: it fails with CHECK CONDITION and has had no effect. Power-on
//! attentions are not among them: a guest's channel is the only initiator, and it asks everything when it opens.

use super::sense::Sense;

/// Operation code of REPORT LUNS, which tells what LUNS DATA HAS CHANGED is about.
pub const REPORT_LUNS: u8 = 0xA0;
/// Operation code of REQUEST SENSE, which tells what is pending.
pub const REQUEST_SENSE: u8 = 0x03;

/// What has changed. Numbers are bits in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Attention {
    /// The unit has another size.
    CapacityChanged = 0,
    /// Other units have come or gone.
    LunsChanged = 1,
    /// Somebody else has changed a mode page.
    ModesChanged = 2,
    /// Somebody else has taken our reservation.
    ReservationsPreempted = 3,
    /// Somebody else has given up the reservation that we shared.
    ReservationsReleased = 4,
    /// Somebody else has removed our registration.
    RegistrationsPreempted = 5,
}

impl Attention {
    /// All, the most urgent first.
    const ALL: [Attention; 6] = [
        Attention::RegistrationsPreempted,
        Attention::ReservationsPreempted,
        Attention::ReservationsReleased,
        Attention::CapacityChanged,
        Attention::ModesChanged,
        Attention::LunsChanged,
    ];

    fn sense(self) -> Sense {
        match self {
            Attention::CapacityChanged => Sense::CAPACITY_CHANGED,
            Attention::LunsChanged => Sense::LUNS_CHANGED,
            Attention::ModesChanged => Sense::MODES_CHANGED,
            Attention::ReservationsPreempted => Sense::RESERVATIONS_PREEMPTED,
            Attention::ReservationsReleased => Sense::RESERVATIONS_RELEASED,
            Attention::RegistrationsPreempted => Sense::REGISTRATIONS_PREEMPTED,
        }
    }
}

/// Those that a unit has pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attentions(u8);

impl Attentions {
    /// None.
    pub const fn new() -> Attentions {
        Attentions(0)
    }

    /// As they lie in the ledger. Bits that this build does not know are left out.
    pub fn from_bits(bits: u8) -> Attentions {
        Attentions(bits & Attention::ALL.iter().fold(0, |all, one| all | 1 << *one as u8))
    }

    /// For the ledger.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Adds one.
    pub fn raise(&mut self, attention: Attention) {
        self.0 |= 1 << attention as u8;
    }

    /// Takes the most urgent one: it is told now.
    pub fn take(&mut self) -> Option<Sense> {
        let next = Attention::ALL.into_iter().find(|one| self.0 & (1 << *one as u8) != 0)?;
        self.0 &= !(1 << next as u8);
        Some(next.sense())
    }

    /// REPORT LUNS tells itself that the units have changed.
    pub fn luns_told(&mut self) {
        self.0 &= !(1 << Attention::LunsChanged as u8);
    }

    /// Whether a command is carried out in spite of what is pending (SPC-4 5.14: those that say it themselves, and those
    /// that tell who is there).
    pub fn spare(opcode: u8) -> bool {
        const INQUIRY: u8 = 0x12;
        matches!(opcode, INQUIRY | REPORT_LUNS | REQUEST_SENSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_and_the_urgent_first() {
        let mut pending = Attentions::default();
        pending.raise(Attention::LunsChanged);
        pending.raise(Attention::CapacityChanged);
        pending.raise(Attention::CapacityChanged);
        let mut pending = Attentions::from_bits(pending.bits());
        assert_eq!(pending.take(), Some(Sense::CAPACITY_CHANGED));
        assert_eq!(pending.take(), Some(Sense::LUNS_CHANGED));
        assert_eq!(pending.take(), None);
        assert!(Attentions::from_bits(0xC0).is_empty(), "what we do not know we cannot tell");
    }

    #[test]
    fn every_one_has_a_sense_of_its_own() {
        let mut all = Attentions::from_bits(0xFF);
        let told: Vec<_> = std::iter::from_fn(|| all.take()).map(Sense::code).collect();
        assert_eq!(told.len(), Attention::ALL.len());
        assert!(told.iter().all(|(key, ..)| *key == 6));
    }
}
