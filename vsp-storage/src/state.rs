//! What a successor has to know of this process: it lies in each channel's ledger and changes in the same step as the
//! answer to what changed it.
//!
//! The format is ours and has versions: fields are added at the end, and a build that must not ignore one raises
//! `MIN_READER`. 36 bytes:
//!
//! | offset | | |
//! |---|---|---|
//! | 0 | `u8` | format of the writer |
//! | 1 | `u8` | oldest format that may read it |
//! | 2 | `u8` | [`Phase`] |
//! | 3 | `u8` | 0 |
//! | 4 | `[u8; 32]` | a bit a LUN: flushes of it fail (see [`crate::lun`]) |

/// Format that is written.
const FORMAT: u8 = 1;
/// Oldest format whose readers understand what is written.
const MIN_READER: u8 = 1;
/// Where the LUNs lie.
const LUNS: usize = 4;
/// Bytes of the whole.
pub const LEN: usize = LUNS + 32;

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

    /// Whatever either has.
    pub fn union(self, other: Luns) -> Luns {
        Luns(std::array::from_fn(|byte| self.0[byte] | other.0[byte]))
    }
}

/// All of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Of the primary channel.
    pub phase: Phase,
    /// LUNs that may have lost writes which were acknowledged.
    pub lost_writes: Luns,
}

impl State {
    /// For the ledger.
    pub fn encode(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..3].copy_from_slice(&[FORMAT, MIN_READER, self.phase as u8]);
        bytes[LUNS..].copy_from_slice(&self.lost_writes.0);
        bytes
    }

    /// From the ledger; an error says why not.
    pub fn decode(bytes: &[u8]) -> Result<State, String> {
        let Some((head, luns)) = bytes.split_first_chunk::<LUNS>() else {
            return Err(format!("the controller's state has only {} bytes", bytes.len()));
        };
        let [format, min_reader, phase, _] = *head;
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
        let luns = luns.first_chunk().ok_or("the controller's state is cut short")?;
        Ok(State { phase, lost_writes: Luns(*luns) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_as_it_was() {
        let mut state = State { phase: Phase::Ready, ..State::default() };
        [0, 7, 8, 254].into_iter().for_each(|lun| state.lost_writes.insert(lun));
        let back = State::decode(&state.encode()).unwrap();
        assert_eq!(back, state);
        assert!(back.lost_writes.has(254) && !back.lost_writes.has(253));
    }

    #[test]
    fn a_newer_build_may_add_to_it_and_may_forbid_us_to_read_it() {
        let mut bytes = State { phase: Phase::Versioned, ..State::default() }.encode().to_vec();
        bytes[0] = 9;
        bytes.extend([1, 2, 3]);
        assert_eq!(State::decode(&bytes).unwrap().phase, Phase::Versioned);
        bytes[1] = 2;
        assert!(State::decode(&bytes).unwrap_err().contains("format 9"));
    }

    #[test]
    fn nonsense_is_said_to_be_such() {
        assert!(State::decode(&[]).is_err());
        assert!(State::decode(&[1, 1, 3, 0]).is_err());
        assert!(State::decode(&[1, 1, 4, 0].into_iter().chain([0; 32]).collect::<Vec<u8>>()).is_err());
    }
}
