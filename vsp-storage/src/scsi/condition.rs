//! What a unit has become by what was done to it, besides its blocks: what its guest has still to be told, what it has set,
//! who has reserved it. Small, and device state: a successor goes on with it.

use super::attention::Attentions;
use super::bytes::Reader;
use super::mode::Modes;
use super::reserve::Registry;

/// The condition of a unit. The default is that of one that nobody has done anything to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// What is to be told.
    pub attentions: Attentions,
    /// What was set by MODE SELECT.
    pub modes: Modes,
    /// Registrations and the reservation.
    pub registry: Registry,
}

impl Condition {
    /// Nothing was done to the unit.
    pub const fn new() -> Condition {
        Condition {
            attentions: Attentions::new(),
            modes: Modes { write_protected: false },
            registry: Registry::new(),
        }
    }

    /// Whether there is nothing to remember.
    pub fn is_default(&self) -> bool {
        self.attentions.is_empty() && self.modes == Modes::default() && self.registry.is_default()
    }

    /// Whether a build that knows nothing of conditions would do harm: it would let through what is refused.
    pub fn binds(&self) -> bool {
        self.modes != Modes::default() || !self.registry.is_default()
    }

    /// For the ledger.
    pub fn encode(&self, into: &mut Vec<u8>) {
        into.extend([self.attentions.bits(), self.modes.bits(), 0, 0]);
        self.registry.encode(into);
    }

    /// From the ledger; `None`: it makes no sense.
    pub fn decode(from: &mut Reader<'_>) -> Option<Condition> {
        let [attentions, modes, ..] = from.array::<4>()?;
        Some(Condition {
            attentions: Attentions::from_bits(attentions),
            modes: Modes::from_bits(modes),
            registry: Registry::decode(from)?,
        })
    }
}
