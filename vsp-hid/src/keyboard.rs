//! The synthetic keyboard: one version, one question, keys.
//!
//! Linux hands what it is told to `atkbd` byte by byte, as if a PC keyboard had sent it, which takes some bytes for something else than
//! keys: 0xAA, Left Shift going up, is a keyboard that was plugged in unless Left Shift has gone down before, and 0xFA and 0xFE
//! are answers that nobody waits for (`atkbd_interrupt` in `drivers/input/keyboard/atkbd.c`). So a key goes up only if the guest has seen it going
//! down. A key that goes down again while it is down repeats: `atkbd` leaves repeating to the keyboard.

pub mod keys;
pub mod wire;

use seat::Build;
use seat::keyboard::{FromConsole, Leds, ToConsole};
use vsp::vmbus::guid::{Guid, class};

pub use keys::{Key, Keys, Prefix};
pub use wire::{GuestMessage, HostMessage};

use crate::instrument::{GuestFault, Heard, Instrument, Phase, Step};
use crate::state::StateError;

/// A keyboard, as the guest's driver knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyboard {
    phase: Phase,
    /// Keys that are down.
    held: Keys,
    /// A character that is down: half of an event.
    typed: Option<u16>,
    /// Lamps that the guest wants to be on, as it has said.
    lamps: u16,
    /// Whether the guest is told of characters that no key has.
    unicode: bool,
}

impl Keyboard {
    /// One that nobody has opened. `unicode`: the guest's driver knows characters that no key has. Linux' takes them for scan codes.
    pub fn new(unicode: bool) -> Keyboard {
        Keyboard { unicode, ..Keyboard::default() }
    }

    /// Keys that are down, as far as the guest knows.
    pub fn held(&self) -> &Keys {
        &self.held
    }

    /// Lamps that the guest wants to be on.
    pub fn leds(&self) -> Leds {
        let is = |bit: u16| self.lamps & bit != 0;
        Leds { scroll: is(1), num: is(2), caps: is(4) }
    }

    fn key(&self, key: Key, up: bool) -> Option<Step<Keyboard>> {
        let mut next = self.clone();
        if up && !self.held.contains(key) {
            return None;
        }
        if up {
            next.held.remove(key)
        } else {
            next.held.insert(key)
        }
        Some(Step { packet: HostMessage::Key { key, up }.encode(), next, last: true })
    }

    /// Half of a character.
    fn unit(&self, unit: u16, up: bool) -> Step<Keyboard> {
        let next = Keyboard { typed: (!up).then_some(unit), ..self.clone() };
        Step { packet: HostMessage::Unicode { unit, up }.encode(), next, last: up }
    }

    fn release_all(&self) -> Option<Step<Keyboard>> {
        let mut step = match (self.typed, self.held.first()) {
            (Some(unit), _) => self.unit(unit, true),
            (None, Some(key)) => self.key(key, true)?,
            (None, None) => return None,
        };
        step.last = step.next.held.is_empty();
        Some(step)
    }
}

impl Instrument for Keyboard {
    type Event = FromConsole;
    type News = ToConsole;

    const CLASS: Guid = class::KEYBOARD;
    const KIND: u8 = 1;

    fn reopen(&mut self) {
        *self = Keyboard::new(self.unicode);
    }

    fn phase(&self) -> Phase {
        self.phase
    }

    fn hear(&self, payload: &[u8]) -> Result<Heard<Keyboard>, GuestFault> {
        match GuestMessage::parse(payload)? {
            GuestMessage::ProtocolRequest(version) => {
                let accepted = version == wire::VERSION_1_0;
                let mut next = self.clone();
                // Another driver than before, perhaps, without a new channel: one that knows of no key.
                next.reopen();
                next.phase = if accepted { Phase::Ready } else { Phase::Opened };
                Ok(Heard { next, packets: vec![HostMessage::ProtocolResponse { accepted }.encode()] })
            }
            GuestMessage::LedIndicators(_) if self.phase != Phase::Ready => {
                Err(GuestFault::Early(wire::kind::LED_INDICATORS))
            }
            GuestMessage::LedIndicators(lamps) => {
                Ok(Heard { next: Keyboard { lamps, ..self.clone() }, packets: Vec::new() })
            }
        }
    }

    fn act(&self, event: &FromConsole) -> Option<Step<Keyboard>> {
        match event {
            FromConsole::Ask => None,
            FromConsole::Key(key) => self.key(key.into(), key.up),
            FromConsole::Unicode(unit) if !self.unicode || *unit == 0 => None,
            // Down, and then the same event again: up.
            FromConsole::Unicode(unit) => Some(self.unit(*unit, self.typed == Some(*unit))),
            FromConsole::ReleaseAll => self.release_all(),
        }
    }

    fn is_question(event: &FromConsole) -> bool {
        matches!(event, FromConsole::Ask)
    }

    fn hello(build: Build) -> ToConsole {
        ToConsole::Hello { build }
    }

    fn ready(ready: bool) -> ToConsole {
        ToConsole::Ready(ready)
    }

    fn remark(&self) -> Option<ToConsole> {
        Some(ToConsole::Leds(self.leds()))
    }

    fn save(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.lamps.to_le_bytes());
        into.extend_from_slice(&self.typed.unwrap_or(0).to_le_bytes());
        into.extend_from_slice(&[0; 4]);
        into.extend_from_slice(&self.held.to_bytes());
    }

    fn load(&self, phase: Phase, saved: &[u8]) -> Result<Keyboard, StateError> {
        let short = StateError::TooShort(saved.len());
        let (&[lamps0, lamps1, typed0, typed1], rest) = saved.split_first_chunk().ok_or(short)?;
        let (_, rest) = rest.split_first_chunk::<4>().ok_or(short)?;
        let (held, _) = rest.split_first_chunk().ok_or(short)?;
        let typed = u16::from_le_bytes([typed0, typed1]);
        Ok(Keyboard {
            phase,
            held: Keys::of_bytes(*held),
            typed: (typed != 0).then_some(typed),
            lamps: u16::from_le_bytes([lamps0, lamps1]),
            unicode: self.unicode,
        })
    }
}

#[cfg(test)]
mod tests;
