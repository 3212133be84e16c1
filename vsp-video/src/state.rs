//! What a successor has to know of this process: it lies in the channel's ledger and changes in the same step as the answer to what
//! changed it. (The pointer is not in it: a successor has the guest tell it anew.)
//!
//! The format is ours and has versions: fields are added at the end, and a build that must not ignore one raises
//! `MIN_READER`. Numbers are little-endian:
//!
//! | offset | | | since |
//! |---|---|---|---|
//! | 0 | `u8` | format of the writer | 1 |
//! | 1 | `u8` | oldest format that may read it | 1 |
//! | 2 | `u8` | bits: 1 the guest has its video memory, 2 there is a situation, 4 its screen is on | 1 |
//! | 3 | `u8` | bits of a pixel | 1 |
//! | 4 | `u32` | version of the protocol, 0 for none | 1 |
//! | 8 | `u64` | guest-physical address of the video memory | 1 |
//! | 16 | `u32` | byte of the video memory at which the picture begins | 1 |
//! | 20 | `u32` | pixels of a row | 1 |
//! | 24 | `u32` | rows | 1 |
//! | 28 | `u32` | bytes from row to row | 1 |

use seat::video::{Depth, Surface};
use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::Version;

/// Format that is written.
const FORMAT: u8 = 1;
/// Oldest format whose readers understand what is written.
const MIN_READER: u8 = 1;

const HAS_VRAM: u8 = 1;
const HAS_SITUATION: u8 = 2;
const IS_ACTIVE: u8 = 4;

/// What the guest says that its picture is. Its word: nothing of it has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// The screen is on.
    pub active: bool,
    /// Byte of the video memory at which the picture begins.
    pub offset: u32,
    /// Bits of a pixel.
    pub depth_bits: u8,
    /// Pixels of a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Bytes from row to row.
    pub pitch: u32,
}

impl Situation {
    /// The picture in video memory of so many bytes; `None`: the screen is off. An error names what cannot be.
    pub fn surface(&self, vram_bytes: u64) -> Result<Option<Surface>, &'static str> {
        if !self.active {
            return Ok(None);
        }
        let surface = Surface {
            width: self.width,
            height: self.height,
            stride: self.pitch,
            depth: Depth::of_bits(self.depth_bits.into()).ok_or("depth")?,
            offset: self.offset.into(),
            vram_bytes,
        };
        match surface.fault() {
            None => Ok(Some(surface)),
            Some(fault) => Err(fault),
        }
    }
}

/// All of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The version of the protocol that is agreed on.
    pub version: Option<Version>,
    /// Where the guest has been told that it has its video memory.
    pub vram: Option<u64>,
    /// What its picture is.
    pub situation: Option<Situation>,
}

/// A state that this build cannot take up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// It was cut off, or it never was one.
    #[error("the state in the ledger has {0} bytes, too few for a screen's")]
    TooShort(usize),
    /// A newer build wrote it and says that we must not ignore what we cannot know.
    #[error(
        "the state in the ledger is of format {0}, which needs a newer vsp-video; this one knows {FORMAT}"
    )]
    TooNew(u8),
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    format: u8,
    min_reader: u8,
    bits: u8,
    depth_bits: u8,
    version: U32,
    vram: U64,
    offset: U32,
    width: U32,
    height: U32,
    pitch: U32,
}

impl State {
    /// For the ledger.
    pub fn encode(&self) -> Vec<u8> {
        let none = Situation { active: false, offset: 0, depth_bits: 0, width: 0, height: 0, pitch: 0 };
        let situation = self.situation.unwrap_or(none);
        let bit = |is: bool, bit: u8| if is { bit } else { 0 };
        let fields = Fields {
            format: FORMAT,
            min_reader: MIN_READER,
            bits: bit(self.vram.is_some(), HAS_VRAM)
                | bit(self.situation.is_some(), HAS_SITUATION)
                | bit(situation.active, IS_ACTIVE),
            depth_bits: situation.depth_bits,
            version: self.version.map_or(0, Version::wire).into(),
            vram: self.vram.unwrap_or(0).into(),
            offset: situation.offset.into(),
            width: situation.width.into(),
            height: situation.height.into(),
            pitch: situation.pitch.into(),
        };
        fields.as_bytes().to_vec()
    }

    /// From the ledger.
    pub fn decode(bytes: &[u8]) -> Result<State, StateError> {
        let (fields, _) = Fields::ref_from_prefix(bytes).map_err(|_| StateError::TooShort(bytes.len()))?;
        if fields.min_reader > FORMAT {
            return Err(StateError::TooNew(fields.format));
        }
        let is = |bit: u8| fields.bits & bit != 0;
        let situation = Situation {
            active: is(IS_ACTIVE),
            offset: fields.offset.get(),
            depth_bits: fields.depth_bits,
            width: fields.width.get(),
            height: fields.height.get(),
            pitch: fields.pitch.get(),
        };
        Ok(State {
            version: Some(Version::from_wire(fields.version.get())).filter(|version| version.is_spoken()),
            vram: is(HAS_VRAM).then(|| fields.vram.get()),
            situation: is(HAS_SITUATION).then_some(situation),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states() -> [State; 4] {
        let situation =
            Situation { active: true, offset: 4096, depth_bits: 32, width: 1024, height: 768, pitch: 4096 };
        [
            State::default(),
            State { version: Some(Version::V3_2), ..State::default() },
            State { version: Some(Version::V3_5), vram: Some(0), situation: None },
            State { version: Some(Version::V3_5), vram: Some(0xf800_0000), situation: Some(situation) },
        ]
    }

    #[test]
    fn a_successor_reads_what_was_written() {
        for state in states() {
            let mut bytes = state.encode();
            assert_eq!(State::decode(&bytes), Ok(state));
            bytes.push(7);
            bytes[0] = 9;
            assert_eq!(State::decode(&bytes), Ok(state), "a newer build may add fields");
            bytes[1] = 2;
            assert_eq!(State::decode(&bytes), Err(StateError::TooNew(9)));
            assert_eq!(State::decode(&bytes[..31]), Err(StateError::TooShort(31)));
        }
    }

    #[test]
    fn a_picture_lies_in_video_memory() {
        let situation =
            Situation { active: true, offset: 0, depth_bits: 32, width: 1024, height: 768, pitch: 4096 };
        let vram = 4 << 20;
        let surface = situation.surface(vram).unwrap().unwrap();
        assert_eq!((surface.width, surface.height, surface.stride), (1024, 768, 4096));
        assert_eq!(Situation { active: false, width: 0, ..situation }.surface(vram), Ok(None));
        for (broken, fault) in [
            (Situation { depth_bits: 24, ..situation }, "depth"),
            (Situation { depth_bits: 0, ..situation }, "depth"),
            (Situation { width: 0, ..situation }, "width"),
            (Situation { width: u32::MAX, ..situation }, "width"),
            (Situation { height: u32::MAX, ..situation }, "height"),
            (Situation { pitch: 4095, ..situation }, "stride"),
            (Situation { pitch: u32::MAX, ..situation }, "offset"),
            (Situation { offset: u32::MAX, ..situation }, "offset"),
            (Situation { offset: (1 << 20) + 1, ..situation }, "offset"),
        ] {
            assert_eq!(broken.surface(vram), Err(fault), "{broken:?}");
        }
    }
}
