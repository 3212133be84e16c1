//! What a successor has to know of this process: it lies in the primary channel's ledger and changes in the same step as
//! the answer to what changed it.
//!
//! The format is ours and has versions: fields are added at the end, and a build that must not ignore one raises
//! `MIN_READER`. Numbers are little-endian:
//!
//! | offset | | | since |
//! |---|---|---|---|
//! | 0 | `u8` | format of the writer | 1 |
//! | 1 | `u8` | oldest format that may read it | 1 |
//! | 2 | `u8` | [`Phase`] | 1 |
//! | 3 | `u8` | bits: 1 paused, 2 there is a receive buffer, 4 there is a send buffer | 1 |
//! | 4 | `u32` | version of the protocol, 0 for none | 1 |
//! | 8 | `u16` | sub-channels agreed on | 1 |
//! | 10 | `u16` | the guest's name for the receive buffer | 1 |
//! | 12 | `u32` | GPADL of the receive buffer | 1 |
//! | 16 | `u32` | bytes of one of its blocks | 1 |
//! | 20 | `u32` | how many blocks it has | 1 |
//! | 24 | `u32` | GPADL of the send buffer | 1 |
//! | 28 | `u32` | bytes of one of its sections | 1 |
//! | 32 | `u32` | how many sections it has | 1 |
//! | 36 | `u16` | the guest's name for the send buffer | 1 |
//! | 38 | `u16` | bytes of what follows | 1 |
//! | 40 | | what the guest may ask and set ([`oid::State::save`]) | 1 |

use super::bytes::Reader;
use crate::nvsp::Version;
use crate::oid;

/// Format that is written.
const FORMAT: u8 = 1;
/// Oldest format whose readers understand what is written.
const MIN_READER: u8 = 1;

const PAUSED: u8 = 1;
const HAS_RECEIVE: u8 = 2;
const HAS_SEND: u8 = 4;

/// How far the guest's driver has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// The channel is open.
    #[default]
    Opened = 0,
    /// A version of the protocol is agreed on; buffers may come.
    Versioned = 1,
    /// RNDIS is initialised: frames may come and go.
    Running = 2,
}

/// A buffer that the guest has shared, and how it was told that it is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The guest's number of its pages.
    pub gpadl: u32,
    /// The guest's name for it.
    pub id: u16,
    /// Bytes of one block or section.
    pub size: u32,
    /// How many of them there are.
    pub count: u32,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct State {
    /// Of the guest's driver.
    pub phase: Phase,
    /// The version of the protocol.
    pub version: Option<Version>,
    /// An operator wants nothing to pass.
    pub paused: bool,
    /// Sub-channels agreed on.
    pub subchannels: u16,
    /// Host to guest.
    pub receive: Option<Buffer>,
    /// Guest to host.
    pub send: Option<Buffer>,
    /// What the guest may ask and set.
    pub nic: oid::State,
}

impl State {
    /// That of a channel that has just been opened.
    pub fn new(nic: oid::State) -> State {
        State {
            phase: Phase::Opened,
            version: None,
            paused: false,
            subchannels: 0,
            receive: None,
            send: None,
            nic,
        }
    }

    /// The guest begins anew.
    pub fn reopen(&mut self) {
        self.nic.reopen();
        let (nic, paused) = (self.nic.clone(), self.paused);
        *self = State { paused, ..State::new(nic) };
    }

    /// For the ledger.
    pub fn encode(&self) -> Vec<u8> {
        let mut flags = 0;
        for (is, flag) in
            [(self.paused, PAUSED), (self.receive.is_some(), HAS_RECEIVE), (self.send.is_some(), HAS_SEND)]
        {
            flags |= if is { flag } else { 0 };
        }
        let none = Buffer { gpadl: 0, id: 0, size: 0, count: 0 };
        let (receive, send) = (self.receive.unwrap_or(none), self.send.unwrap_or(none));
        let mut nic = Vec::new();
        self.nic.save(&mut nic);
        let mut bytes = vec![FORMAT, MIN_READER, self.phase as u8, flags];
        bytes.extend_from_slice(&self.version.map_or(0, Version::wire).to_le_bytes());
        bytes.extend_from_slice(&self.subchannels.to_le_bytes());
        bytes.extend_from_slice(&receive.id.to_le_bytes());
        for number in [receive.gpadl, receive.size, receive.count, send.gpadl, send.size, send.count] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&send.id.to_le_bytes());
        bytes.extend_from_slice(&(nic.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&nic);
        bytes
    }

    /// From the ledger, over what this process was started with. An error says in one sentence why not; nothing has changed then.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut reader = Reader(bytes);
        let head = (reader.u8(), reader.u8());
        let (Some(format), Some(min_reader)) = head else { return Err(SHORT.into()) };
        if min_reader > FORMAT {
            return Err(format!(
                "the state in the ledger is of format {format}, of which this build (format {FORMAT}) knows too little"
            ));
        }
        let mut theirs = self.clone();
        theirs.read(&mut reader).ok_or_else(|| SHORT.to_owned())??;
        *self = theirs;
        Ok(())
    }

    /// What follows the formats. `None`: it ends too early.
    fn read(&mut self, reader: &mut Reader<'_>) -> Option<Result<(), String>> {
        let (phase, flags) = (reader.u8()?, reader.u8()?);
        self.phase = match phase {
            0 => Phase::Opened,
            1 => Phase::Versioned,
            2 => Phase::Running,
            other => {
                return Some(Err(format!("the state in the ledger says that the guest is in phase {other}")));
            }
        };
        self.version = match reader.u32()? {
            0 => None,
            wire => match Version::from_wire(wire) {
                Some(version) => Some(version),
                None => {
                    return Some(Err(format!(
                        "the state in the ledger names version {wire:#x} of the protocol"
                    )));
                }
            },
        };
        self.paused = flags & PAUSED != 0;
        self.subchannels = reader.u16()?;
        let mut receive =
            Buffer { id: reader.u16()?, gpadl: reader.u32()?, size: reader.u32()?, count: reader.u32()? };
        let mut send = Buffer { id: 0, gpadl: reader.u32()?, size: reader.u32()?, count: reader.u32()? };
        send.id = reader.u16()?;
        (receive.count, send.count) = (receive.count.min(u16::MAX.into()), send.count.min(u16::MAX.into()));
        self.receive = (flags & HAS_RECEIVE != 0).then_some(receive);
        self.send = (flags & HAS_SEND != 0).then_some(send);
        let len = reader.u16()?;
        let nic = reader.0.get(..len.into())?;
        Some(self.nic.restore(nic).map_err(|error| format!("the state in the ledger: {error}")))
    }
}

const SHORT: &str = "the state in the ledger is shorter than any that there is";
