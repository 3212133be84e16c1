//! What a successor has to know of this process: it lies in each channel's ledger and changes in the same step as the
//! answer to what changed it.
//!
//! The format is ours and has versions: fields are added at the end, and a build that must not ignore one raises
//! `MIN_READER`. Numbers are little-endian:
//!
//! | offset | | | since |
//! |---|---|---|---|
//! | 0 | `u8` | format of the writer | 1 |
//! | 1 | `u8` | oldest format that may read it | 1 |
//! | 2 | `u8` | [`Phase`] | 1 |
//! | 3 | `u8` | 0 | 1 |
//! | 4 | `[u8; 32]` | a bit a LUN: flushes of it fail (see [`crate::lun`]) | 1 |
//! | 36 | `[u8; 512]` | which file each LUN is ([`Identities`]) | 2 |
//! | 548 | `u64` | revision of what follows: of all channels' the newest is true | 2 |
//! | 556 | `u16` | number of units that follow | 2 |
//! | 558 | | of each its LUN (`u8`) and its [`Condition`] | 2 |

use std::collections::BTreeMap;

use vsp::ipc::ledger::LONGEST_STATE;

use crate::identity::{self, Identities};
use crate::scsi::Condition;
use crate::scsi::bytes::Reader;
use crate::scsi::reserve::Nexus;

/// Format that is written.
const FORMAT: u8 = 2;
/// Oldest format whose readers understand what is written, if no unit's condition binds its guest.
const MIN_READER: u8 = 1;
/// And if one's does: a build without conditions would let through what is refused.
const MIN_READER_BINDING: u8 = 2;
/// Bytes of what every format has.
const HEAD: usize = 4 + 32;
/// Most units whose condition is remembered: as many as a controller has.
pub const MOST: usize = identity::MOST;

/// The condition of a unit that nothing was done to.
static UNTOUCHED: Condition = Condition::new();

/// How far the guest's driver has come on the primary channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The channel is open.
    #[default]
    Opened = 0,
    /// It has begun to introduce itself.
    Begun = 1,
    /// A protocol version is agreed on.
    Versioned = 2,
    /// Commands may come.
    Ready = 3,
}

/// A set of LUNs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Luns([u8; 32]);

impl Luns {
    /// Whether it has this one.
    pub fn has(self, lun: u8) -> bool {
        self.0[usize::from(lun / 8)] & (1 << (lun % 8)) != 0
    }

    /// Adds one.
    pub fn insert(&mut self, lun: u8) {
        self.0[usize::from(lun / 8)] |= 1 << (lun % 8);
    }

    /// Takes one out.
    pub fn remove(&mut self, lun: u8) {
        self.0[usize::from(lun / 8)] &= !(1 << (lun % 8));
    }

    /// Whatever either has.
    pub fn union(self, other: Luns) -> Luns {
        Luns(std::array::from_fn(|byte| self.0[byte] | other.0[byte]))
    }
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Of the primary channel.
    pub phase: Phase,
    /// LUNs that may have lost writes which were acknowledged.
    pub lost_writes: Luns,
    /// The files that the guest knows.
    pub identities: Identities,
    /// Counts changes of conditions.
    revision: u64,
    conditions: BTreeMap<u8, Condition>,
}

impl State {
    /// What a unit has become.
    pub fn condition(&self, lun: u8) -> &Condition {
        self.conditions.get(&lun).unwrap_or(&UNTOUCHED)
    }

    /// A unit has become something else. False: it is too much to remember, and nothing has changed.
    #[must_use = "what is not remembered must not be promised"]
    pub fn set_condition(&mut self, lun: u8, condition: Condition) -> bool {
        if condition.is_default() {
            self.conditions.remove(&lun);
        } else if self.conditions.len() < MOST || self.conditions.contains_key(&lun) {
            let before = self.conditions.insert(lun, condition);
            if self.encode().len() > LONGEST_STATE {
                match before {
                    Some(before) => self.conditions.insert(lun, before),
                    None => self.conditions.remove(&lun),
                };
                return false;
            }
        } else {
            return false;
        }
        self.revision += 1;
        true
    }

    /// Takes over what a channel's ledger has of all units, if it is newer than what others had.
    pub fn renew(&mut self, theirs: State) {
        self.lost_writes = self.lost_writes.union(theirs.lost_writes);
        if theirs.revision >= self.revision {
            (self.revision, self.conditions) = (theirs.revision, theirs.conditions);
            // A number that was given to another disk since is that one's: whoever gives it counts a change.
            self.identities = theirs.identities;
        }
    }

    /// For the ledger.
    pub fn encode(&self) -> Vec<u8> {
        let binding = self.conditions.values().any(Condition::binds);
        let min_reader = if binding { MIN_READER_BINDING } else { MIN_READER };
        let mut bytes = vec![FORMAT, min_reader, self.phase as u8, 0];
        bytes.extend(self.lost_writes.0);
        bytes.extend(self.identities.encode());
        bytes.extend(self.revision.to_le_bytes());
        bytes.extend((self.conditions.len() as u16).to_le_bytes());
        for (lun, condition) in &self.conditions {
            bytes.push(*lun);
            condition.encode(&mut bytes);
        }
        bytes
    }

    /// From the ledger; an error says why not.
    pub fn decode(bytes: &[u8]) -> Result<State, String> {
        if bytes.len() < HEAD {
            return Err(format!("the controller's state has only {} bytes", bytes.len()));
        }
        let mut reader = Reader(bytes);
        let cut = || "the controller's state is cut short, or makes no sense".to_owned();
        let [format, min_reader, phase, _] = reader.array().ok_or_else(cut)?;
        if min_reader > FORMAT {
            return Err(format!(
                "the controller's state is of format {format} and not for builds that know only {FORMAT}"
            ));
        }
        let phase = match phase {
            0 => Phase::Opened,
            1 => Phase::Begun,
            2 => Phase::Versioned,
            3 => Phase::Ready,
            other => return Err(format!("the controller's state has an unknown phase {other}")),
        };
        let lost_writes = Luns(reader.array().ok_or_else(cut)?);
        let state = State { phase, lost_writes, ..State::default() };
        if format < 2 { Ok(state) } else { state.with_units(&mut reader).ok_or_else(cut) }
    }

    fn with_units(mut self, reader: &mut Reader<'_>) -> Option<State> {
        self.identities = Identities::decode(&reader.array()?);
        self.revision = reader.u64()?;
        let count = usize::from(reader.u16()?);
        if count > MOST {
            return None;
        }
        for _ in 0..count {
            let lun = reader.u8()?;
            let condition = Condition::decode(reader)?;
            // Nobody else has a way to the units of a controller: whatever names one is damaged.
            if !condition.registry.is_only(Nexus::GUEST) || self.conditions.insert(lun, condition).is_some() {
                return None;
            }
        }
        (self.encode().len() <= LONGEST_STATE).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Shape;
    use crate::identity::Identity;
    use crate::scsi::attention::Attention;
    use crate::scsi::reserve::{Action, Kind, Request};

    /// A condition with everything in it that a guest can bring about.
    fn busy() -> Condition {
        let mut condition = Condition::default();
        condition.attentions.raise(Attention::CapacityChanged);
        condition.modes.write_protected = true;
        for action in [Action::Register, Action::Reserve(Kind::WriteExclusive)] {
            let key = if action == Action::Register { 0 } else { 7 };
            condition.registry.apply(Nexus::GUEST, &Request { action, key, new_key: 7 }).unwrap();
        }
        condition
    }

    #[test]
    fn it_comes_back_as_it_was_and_fits() {
        let mut state = State { phase: Phase::Ready, ..State::default() };
        [0, 7, 8, 254].into_iter().for_each(|lun| state.lost_writes.insert(lun));
        (0..MOST as u8).for_each(|lun| assert!(state.set_condition(lun * 3, busy())));
        let bytes = state.encode();
        assert!(bytes.len() <= LONGEST_STATE, "{}", bytes.len());
        let back = State::decode(&bytes).unwrap();
        assert_eq!(back, state);
        assert!(back.lost_writes.has(254) && !back.lost_writes.has(253));
        for cut in 0..bytes.len() {
            assert!(State::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(!state.set_condition(250, busy()), "no more than that");
        assert!(state.set_condition(3, Condition::default()) && state.set_condition(250, busy()));
    }

    #[test]
    fn a_state_of_the_first_format_is_read() {
        let mut bytes = vec![1, 1, 3, 0];
        bytes.extend([0x81; 32]);
        let state = State::decode(&bytes).unwrap();
        assert!(state.phase == Phase::Ready && state.lost_writes.has(7) && !state.lost_writes.has(6));
        assert!(state.condition(7).is_default());
    }

    #[test]
    fn a_newer_build_may_add_to_it_and_may_forbid_us_to_read_it() {
        let mut bytes = State { phase: Phase::Versioned, ..State::default() }.encode();
        bytes[0] = 9;
        bytes.extend([1, 2, 3]);
        assert_eq!(State::decode(&bytes).unwrap().phase, Phase::Versioned);
        bytes[1] = 3;
        assert!(State::decode(&bytes).unwrap_err().contains("format 9"));
    }

    #[test]
    fn an_older_build_must_not_ignore_a_reservation_and_may_ignore_an_attention() {
        let mut state = State::default();
        let mut condition = Condition::default();
        condition.attentions.raise(Attention::LunsChanged);
        assert!(state.set_condition(0, condition));
        assert_eq!(state.encode()[1], 1);
        assert!(state.set_condition(0, busy()));
        assert_eq!(state.encode()[1], 2);
    }

    #[test]
    fn the_newest_of_all_channels_is_true() {
        let mut old = State::default();
        assert!(old.set_condition(1, busy()));
        let shape = Shape { block_size: 512, physical: 512, can_unmap: false, local: true, sequence: 0 };
        let file = std::fs::metadata(std::env::current_exe().unwrap()).unwrap();
        old.identities.set(1, Identity::of(&file, &shape));
        let mut new = old.clone();
        new.identities.set(1, Identity::UNKNOWN);
        assert!(new.set_condition(1, Condition::default()));
        old.lost_writes.insert(5);
        for order in [[&old, &new], [&new, &old]] {
            let mut state = State::default();
            order.into_iter().for_each(|one| state.renew(one.clone()));
            assert!(state.condition(1).is_default());
            assert_eq!(state.identities.of(1), Identity::UNKNOWN, "it is another disk's number by now");
            assert!(state.lost_writes.has(5), "a loss that anybody knows of is one");
        }
    }

    #[test]
    fn nonsense_is_said_to_be_such() {
        assert!(State::decode(&[]).is_err());
        assert!(State::decode(&[1, 1, 3, 0]).is_err());
        assert!(State::decode(&[1, 1, 4, 0].into_iter().chain([0; 32]).collect::<Vec<u8>>()).is_err());
        let mut bytes = State::default().encode();
        bytes[556] = 65;
        bytes.extend([0; 4000]);
        assert!(State::decode(&bytes).is_err(), "more units than there can be");
        let mut state = State::default();
        assert!(state.set_condition(1, busy()));
        let good = state.encode();
        let mut stranger = good.clone();
        // Its LUN, the condition's head, the registry's head and holder, then the first registrant.
        stranger[558 + 1 + 4 + 16] = 2;
        assert!(State::decode(&good).is_ok() && State::decode(&stranger).is_err(), "registered by nobody");
        let mut twice = good.clone();
        twice[556] = 2;
        twice.extend(&good[558..]);
        assert!(State::decode(&twice).is_err(), "a unit in two conditions");
    }
}
