//! What a keyboard and a mouse have in common: something with a state, which hears messages of the guest's driver and events of the
//! console's, and has packets for the guest in answer. Nothing here sends, waits or remembers.

use std::fmt::Debug;

use seat::{Build, Message};
use thiserror::Error;
use vsp::vmbus::guid::Guid;

use crate::state::StateError;

/// How far the guest's driver has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The channel is open, or not even that.
    #[default]
    Opened = 0,
    /// A version is agreed on, and something else is still due.
    Agreed = 1,
    /// The driver listens: events go to it.
    Ready = 2,
}

impl Phase {
    /// The phase with this number.
    pub fn of(number: u8) -> Option<Phase> {
        [Phase::Opened, Phase::Agreed, Phase::Ready].into_iter().find(|phase| *phase as u8 == number)
    }
}

/// A message of a guest's that makes no sense: it is answered with nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GuestFault {
    /// Less than its kind needs, or less than it says.
    #[error("a message of {have} bytes should have {need}")]
    TooShort {
        /// Bytes that came.
        have: usize,
        /// Bytes that it needs.
        need: usize,
    },
    /// Not for the host, or unknown.
    #[error("a message of kind {0}, which is nothing that a guest says")]
    Unknown(u32),
    /// Not a message in a pipe.
    #[error("a pipe header of type {0}, of which there is only 1")]
    NoPipe(u32),
    /// It answers what was not asked.
    #[error("a message of kind {0} before its time")]
    Early(u32),
}

/// What follows from a message of the guest's: the state changes together with the packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard<I> {
    /// The state from then on.
    pub next: I,
    /// What the guest is told, in order, all of it at once.
    pub packets: Vec<Vec<u8>>,
}

/// A packet that an event of the console's has for the guest: the state changes together with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<I> {
    /// What the guest is told.
    pub packet: Vec<u8>,
    /// The state from then on.
    pub next: I,
    /// The event is over with it; else the same event has more to say, which follows from `next`.
    pub last: bool,
}

/// A keyboard or a mouse, as the guest's driver knows it.
pub trait Instrument: Clone + PartialEq + Debug {
    /// What the console says.
    type Event: Message + Debug;
    /// What it is told.
    type News: Message + Debug;

    /// What the guest's driver binds to.
    const CLASS: Guid;
    /// Which of the two it is, in the ledger.
    const KIND: u8;

    /// The guest begins anew: its driver knows of nothing that is held.
    fn reopen(&mut self);

    /// How far the driver has come.
    fn phase(&self) -> Phase;

    /// A message of the guest's: what is behind the packet's descriptor, up to 7 bytes of padding included.
    fn hear(&self, payload: &[u8]) -> Result<Heard<Self>, GuestFault>;

    /// The next packet that an event has for a driver that listens; `None`: nothing (any more).
    fn act(&self, event: &Self::Event) -> Option<Step<Self>>;

    /// Whether the console wants to be told everything anew.
    fn is_question(event: &Self::Event) -> bool;

    /// For the console: a process begins.
    fn hello(build: Build) -> Self::News;

    /// For the console: whether a driver listens.
    fn ready(ready: bool) -> Self::News;

    /// For the console: what else there is to know of the state.
    fn remark(&self) -> Option<Self::News> {
        None
    }

    /// Appends the state, but for the phase, to what goes into the ledger.
    fn save(&self, into: &mut Vec<u8>);

    /// The same with the state of a predecessor's; later builds may have added bytes at the end.
    fn load(&self, phase: Phase, saved: &[u8]) -> Result<Self, StateError>;
}
