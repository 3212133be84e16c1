//! What a successor has to know of this process: it lies in the channel's ledger.
//!
//! Where the guest's interrupts go is not in it (the core has the routes), nor what it sees where (the core tells). Which vector has which
//! eventfd follows from it.
//!
//! The format is ours and has versions: fields are added at the end, and a build that must not ignore one raises
//! `MIN_READER`. Numbers are little-endian; lists are a `u16` and so many of what is listed:
//!
//! | | | since |
//! |---|---|---|
//! | `u8` | format of the writer | 1 |
//! | `u8` | oldest format that may read it | 1 |
//! | `u8` | bits: 1 the guest has the bus in use, 2 it has ejected the function, 4 the function can reach guest RAM | 1 |
//! | `u8` | 0 | 1 |
//! | `u32` | version of the protocol, 0 for none | 1 |
//! | `u64` | guest-physical address of the configuration window | 1 |
//! | `u32` | function that it shows | 1 |
//! | list of `u16`, `u8` | bytes of configuration space that differ from what they were: where, and what | 1 |
//! | list of `u8`, `u8` | interrupts that the guest has: first number, and how many | 1 |
//! | list of `u16`, `u64`, `u32`, `u8` | entries of the table of messages: number, address, value, 1 if masked | 1 |
//! | list of `u64`, `u64` | accesses that have reached the function, and what came of them; newest last | 1 |

use thiserror::Error;

use crate::msix::Entry;

/// Format that is written.
const FORMAT: u8 = 1;
/// Oldest format whose readers understand what is written.
const MIN_READER: u8 = 1;

const IN_USE: u8 = 1;
const EJECTED: u8 = 2;
const REACHES: u8 = 4;

/// Accesses that are remembered: each processor of a guest waits for one at most, and it is the last ones that a successor is asked again. A guest
/// with more processors has to be unlucky in all of them at a time.
pub const ACCESSES: usize = 16;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Version of the protocol.
    pub version: Option<u32>,
    /// The configuration window, while the bus is in use.
    pub window: Option<u64>,
    /// The guest has ejected the function.
    pub is_ejected: bool,
    /// The function can reach all of guest RAM.
    pub reaches_ram: bool,
    /// Which function the window shows.
    pub selected: u32,
    /// [`crate::config::Config::save`].
    pub config: Vec<(u16, u8)>,
    /// [`crate::interrupts::Interrupts::given`].
    pub given: Vec<(u32, u32)>,
    /// [`crate::msix::Table::entries`].
    pub entries: Vec<(u32, Entry)>,
    /// What has reached the function.
    pub accesses: Vec<(u64, u64)>,
}

/// A state that this build cannot take up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// It was cut off, or it never was one.
    #[error("the state in the ledger ends too early for a PCI function's")]
    TooShort,
    /// A newer build wrote it and says that we must not ignore what we cannot know.
    #[error("the state in the ledger is of format {0}, which needs a newer vsp-pci; this one knows {FORMAT}")]
    TooNew(u8),
}

impl State {
    /// For the ledger.
    pub fn encode(&self) -> Vec<u8> {
        let bit = |is: bool, bit: u8| if is { bit } else { 0 };
        let bits = bit(self.window.is_some(), IN_USE)
            | bit(self.is_ejected, EJECTED)
            | bit(self.reaches_ram, REACHES);
        let mut out = vec![FORMAT, MIN_READER, bits, 0];
        out.extend(self.version.unwrap_or(0).to_le_bytes());
        out.extend(self.window.unwrap_or(0).to_le_bytes());
        out.extend(self.selected.to_le_bytes());
        list(&mut out, &self.config, |out, (at, byte)| {
            out.extend(at.to_le_bytes());
            out.push(*byte);
        });
        // Numbers and lengths are below 129.
        list(&mut out, &self.given, |out, (first, count)| out.extend([*first as u8, *count as u8]));
        list(&mut out, &self.entries, |out, (number, entry)| {
            out.extend((*number as u16).to_le_bytes());
            out.extend(entry.address.to_le_bytes());
            out.extend(entry.data.to_le_bytes());
            out.push(entry.is_masked.into());
        });
        list(&mut out, &self.accesses, |out, (id, value)| {
            out.extend(id.to_le_bytes());
            out.extend(value.to_le_bytes());
        });
        out
    }

    /// From the ledger.
    pub fn decode(bytes: &[u8]) -> Result<State, StateError> {
        let mut reader = Reader(bytes);
        let [format, min_reader, bits, _] = reader.take::<4>()?;
        if min_reader > FORMAT {
            return Err(StateError::TooNew(format));
        }
        let version = u32::from_le_bytes(reader.take()?);
        let window = u64::from_le_bytes(reader.take()?);
        Ok(State {
            version: (version != 0).then_some(version),
            window: (bits & IN_USE != 0).then_some(window),
            is_ejected: bits & EJECTED != 0,
            reaches_ram: bits & REACHES != 0,
            selected: u32::from_le_bytes(reader.take()?),
            config: reader
                .list(|reader| Ok((u16::from_le_bytes(reader.take()?), u8::from_le_bytes(reader.take()?))))?,
            given: reader
                .list(|reader| reader.take::<2>().map(|[first, count]| (first.into(), count.into())))?,
            entries: reader.list(|reader| {
                let number = u16::from_le_bytes(reader.take()?).into();
                let address = u64::from_le_bytes(reader.take()?);
                let data = u32::from_le_bytes(reader.take()?);
                let [is_masked] = reader.take()?;
                Ok((number, Entry { address, data, is_masked: is_masked != 0 }))
            })?,
            accesses: reader.list(|reader| {
                Ok((u64::from_le_bytes(reader.take()?), u64::from_le_bytes(reader.take()?)))
            })?,
        })
    }
}

fn list<T>(out: &mut Vec<u8>, all: &[T], mut each: impl FnMut(&mut Vec<u8>, &T)) {
    out.extend((all.len() as u16).to_le_bytes());
    all.iter().for_each(|one| each(out, one));
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(StateError::TooShort)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn list<T>(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<T, StateError>,
    ) -> Result<Vec<T>, StateError> {
        let count = u16::from_le_bytes(self.take()?);
        // Not one of them takes no bytes, so a count that lies ends.
        (0..count).map(|_| one(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> State {
        State {
            version: Some(0x1_0004),
            window: Some(0xf800_0000),
            is_ejected: false,
            reaches_ram: true,
            selected: 0,
            config: vec![(4, 6), (0x10, 0)],
            given: vec![(0, 1), (4, 4)],
            entries: vec![(2, Entry { address: 0xfee0_0000, data: 0, is_masked: false })],
            accesses: vec![(7, u64::MAX)],
        }
    }

    #[test]
    fn a_successor_reads_what_was_written() {
        for state in [State::default(), full(), State { is_ejected: true, ..full() }] {
            let mut bytes = state.encode();
            assert_eq!(State::decode(&bytes), Ok(state));
            for len in 0..bytes.len() {
                assert_eq!(State::decode(&bytes[..len]), Err(StateError::TooShort));
            }
            bytes.push(9);
            bytes[0] = 7;
            assert!(State::decode(&bytes).is_ok(), "a newer build may add fields");
            bytes[1] = 2;
            assert_eq!(State::decode(&bytes), Err(StateError::TooNew(7)));
        }
    }

    #[test]
    fn the_biggest_function_fits() {
        let entry = Entry { address: 0xfee0_0000, data: 1, is_masked: false };
        let state = State {
            config: (0..200).map(|at| (at, 1)).collect(),
            given: (0..128).map(|number| (number, 1)).collect(),
            entries: (0..128).map(|number| (number, entry)).collect(),
            accesses: vec![(1, 1); ACCESSES],
            ..full()
        };
        assert!(state.encode().len() <= 4064, "{}", state.encode().len());
    }
}
