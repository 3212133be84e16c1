//! What a successor has to know of this process: it lies in the channel's ledger, and changes in the same step as the packet that
//! tells the guest of the change.
//!
//! The format is ours and has versions: fields are added at the end, and a build that must not ignore one raises
//! `MIN_READER`. Numbers are little-endian:
//!
//! | offset | | | since |
//! |---|---|---|---|
//! | 0 | `u8` | format of the writer | 1 |
//! | 1 | `u8` | oldest format that may read it | 1 |
//! | 2 | `u8` | 1 keyboard, 2 mouse ([`Instrument::KIND`]) | 1 |
//! | 3 | `u8` | [`Phase`] | 1 |
//! | 4 | `u32` | 0 | 1 |
//! | 8 | `u64` | number of the last event of the console's that the guest knows all about, 0 for none | 1 |
//! | 16 | | of a keyboard: `u16` lamps, `u16` a character that is down, `u32` 0, then 48 bytes of keys that are down: a bit for each scan code, without prefix, behind E0, behind E1 | 1 |
//! | 16 | | of a mouse: `u16` x, `u16` y, `u8` buttons | 1 |

use thiserror::Error;

use crate::instrument::{Instrument, Phase};

/// Format that is written.
const FORMAT: u8 = 1;
/// Oldest format whose readers understand what is written.
const MIN_READER: u8 = 1;
/// Bytes before what only one of the two has.
const HEAD: usize = 16;

/// A state that this build cannot use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// Not as long as its format says.
    #[error("the device state of the predecessor is cut off after {0} bytes")]
    TooShort(usize),
    /// Of a build that this one must not guess at.
    #[error(
        "the device state of the predecessor wants a reader of format {wanted}, this build reads {FORMAT}"
    )]
    TooNew {
        /// What it wants.
        wanted: u8,
    },
    /// A keyboard's for a mouse, or the other way round.
    #[error("the device state of the predecessor is that of another kind of device ({0})")]
    Kind(u8),
    /// A value that there is not.
    #[error("the device state of the predecessor has a senseless {0}")]
    Senseless(&'static str),
}

/// For the ledger.
pub fn save<I: Instrument>(instrument: &I, number: Option<u64>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + 64);
    bytes.extend_from_slice(&[FORMAT, MIN_READER, I::KIND, instrument.phase() as u8, 0, 0, 0, 0]);
    bytes.extend_from_slice(&number.unwrap_or(0).to_le_bytes());
    instrument.save(&mut bytes);
    bytes
}

/// What a predecessor has left of an instrument, and the last event that the guest knows all about. `instrument` is one as this process has been set up.
pub fn load<I: Instrument>(instrument: &I, saved: &[u8]) -> Result<(I, Option<u64>), StateError> {
    let short = StateError::TooShort(saved.len());
    let (&[_, wanted, kind, phase], rest) = saved.split_first_chunk().ok_or(short)?;
    if wanted > FORMAT {
        return Err(StateError::TooNew { wanted });
    }
    if kind != I::KIND {
        return Err(StateError::Kind(kind));
    }
    let phase = Phase::of(phase).ok_or(StateError::Senseless("phase"))?;
    let (_, rest) = rest.split_first_chunk::<4>().ok_or(short)?;
    let (number, rest) = rest.split_first_chunk().ok_or(short)?;
    let number = u64::from_le_bytes(*number);
    Ok((instrument.load(phase, rest)?, (number != 0).then_some(number)))
}
