//! The synthetic mouse: a HID device that tells where the pointer is, whatever the resolution, which buttons are down and how the wheels
//! turn.
//!
//! Linux waits for two messages after its question, the answer and the device's description, and takes whatever comes second for the
//! latter (`mousevsc_connect_to_vsp` in `drivers/hid/hid-hyperv.c`): both become visible together, once. It drops reports until it
//! has made an input device of what it was told, which is after its acknowledgement; nobody says when.

pub mod report;
pub mod wire;

use seat::Build;
use seat::mouse::{ALL_BUTTONS, FromConsole, MAX_POSITION, ToConsole};
use vsp::vmbus::guid::{Guid, class};

pub use report::Report;
pub use wire::{GuestMessage, HostMessage};

use crate::instrument::{GuestFault, Heard, Instrument, Phase, Step};
use crate::state::StateError;

/// A mouse, as the guest's driver knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mouse {
    phase: Phase,
    x: u16,
    y: u16,
    /// Buttons that are down.
    buttons: u8,
}

impl Mouse {
    /// One that nobody has opened.
    pub fn new() -> Mouse {
        Mouse::default()
    }

    /// Buttons that are down, as far as the guest knows.
    pub fn buttons(&self) -> u8 {
        self.buttons
    }

    /// Also if there is nothing new about it: the driver drops what comes while it is still making an input device.
    fn report(next: Mouse, wheel: i8, pan: i8) -> Step<Mouse> {
        let Mouse { x, y, buttons, .. } = next;
        let packet = HostMessage::Report(Report { buttons, x, y, wheel, pan }).encode();
        Step { packet, next, last: true }
    }
}

/// What of it fits into a report. Nobody turns a wheel that fast.
fn notches(count: i16) -> i8 {
    let most = i16::from(report::MAX_NOTCHES);
    count.clamp(-most, most) as i8
}

impl Instrument for Mouse {
    type Event = FromConsole;
    type News = ToConsole;

    const CLASS: Guid = class::MOUSE;
    const KIND: u8 = 2;

    fn reopen(&mut self) {
        // The pointer stays where it is.
        self.phase = Phase::Opened;
        self.buttons = 0;
    }

    fn phase(&self) -> Phase {
        self.phase
    }

    fn hear(&self, payload: &[u8]) -> Result<Heard<Mouse>, GuestFault> {
        let mut next = self.clone();
        match GuestMessage::parse(payload)? {
            GuestMessage::ProtocolRequest(version) => {
                let accepted = version == wire::VERSION_2_0;
                // Another driver than before, perhaps, without a new channel: one that knows of no button.
                next.reopen();
                let mut packets = vec![HostMessage::ProtocolResponse { version, accepted }.encode()];
                if accepted {
                    next.phase = Phase::Agreed;
                    packets.push(HostMessage::DeviceInfo.encode());
                }
                Ok(Heard { next, packets })
            }
            GuestMessage::DeviceInfoAck if self.phase == Phase::Opened => {
                Err(GuestFault::Early(wire::kind::INITIAL_DEVICE_INFO_ACK))
            }
            GuestMessage::DeviceInfoAck => {
                next.phase = Phase::Ready;
                Ok(Heard { next, packets: Vec::new() })
            }
        }
    }

    fn act(&self, event: &FromConsole) -> Option<Step<Mouse>> {
        let mut next = self.clone();
        let (mut wheel, mut pan) = (0, 0);
        match *event {
            FromConsole::Ask => return None,
            FromConsole::Motion { x, y } => (next.x, next.y) = (x.min(MAX_POSITION), y.min(MAX_POSITION)),
            FromConsole::Buttons(held) => next.buttons = held & ALL_BUTTONS,
            FromConsole::Wheel { vertical: 0, horizontal: 0 } => return None,
            FromConsole::Wheel { vertical, horizontal } => {
                (wheel, pan) = (notches(vertical), notches(horizontal));
            }
            FromConsole::ReleaseAll if self.buttons == 0 => return None,
            FromConsole::ReleaseAll => next.buttons = 0,
        }
        Some(Mouse::report(next, wheel, pan))
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

    fn save(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.x.to_le_bytes());
        into.extend_from_slice(&self.y.to_le_bytes());
        into.push(self.buttons);
    }

    fn load(&self, phase: Phase, saved: &[u8]) -> Result<Mouse, StateError> {
        let short = StateError::TooShort(saved.len());
        let (&[x0, x1, y0, y1, buttons], _) = saved.split_first_chunk().ok_or(short)?;
        let (x, y) = (u16::from_le_bytes([x0, x1]), u16::from_le_bytes([y0, y1]));
        if x > MAX_POSITION || y > MAX_POSITION {
            return Err(StateError::Senseless("position"));
        }
        if buttons & !ALL_BUTTONS != 0 {
            return Err(StateError::Senseless("button"));
        }
        Ok(Mouse { phase, x, y, buttons })
    }
}

#[cfg(test)]
mod tests;
