//! What a guest and a console say to a keyboard and a mouse.

use std::collections::BTreeSet;

use seat::Message;
use vsp_hid::instrument::{Instrument, Phase};
use vsp_hid::keyboard::{self, Keyboard, Prefix};
use vsp_hid::mouse::{self, Mouse};
use vsp_hid::state;

use crate::{Script, hid_device};

/// Packets of one event: each key that there is goes up, and a character.
const MOST: usize = 3 * 128 + 1;

/// What a guest's driver makes of what it is told.
pub(crate) trait Driver: Default {
    type I: Instrument;

    /// A packet. Panics if no sound device would have sent it.
    fn hears(&mut self, packet: &[u8]);

    /// Whether it knows what the device takes it to know.
    fn agrees(&self, device: &Self::I) -> bool;

    /// Whether it takes anything to be held.
    fn is_idle(&self) -> bool;

    /// Nobody may hold anything after this.
    fn release_all() -> <Self::I as Instrument>::Event;

    /// Somebody holds something after this.
    fn press() -> <Self::I as Instrument>::Event;

    /// What a sound one says before it listens.
    fn introduction() -> Vec<Vec<u8>>;
}

/// Whether these are the bytes, as a ring has them: in words of eight.
fn is_padded(packet: &[u8], bytes: &[u8]) -> bool {
    packet.starts_with(bytes)
        && packet[bytes.len()..].iter().all(|byte| *byte == 0)
        && packet.len() < bytes.len() + 8
}

#[derive(Default)]
struct KeyboardDriver {
    /// Prefix and code.
    down: BTreeSet<(u8, u8)>,
    typed: Option<u16>,
}

impl Driver for KeyboardDriver {
    type I = Keyboard;

    fn hears(&mut self, packet: &[u8]) {
        let message = keyboard::HostMessage::parse(packet).expect("a message");
        assert!(is_padded(packet, &message.encode()));
        match message {
            keyboard::HostMessage::ProtocolResponse { .. } => *self = Self::default(),
            keyboard::HostMessage::Key { key, up } => {
                // Linux takes these bytes for something else, and so it does with codes that are none.
                assert!((1..=0x7f).contains(&key.code));
                assert!(key.prefix != Prefix::None || !matches!(key.code, 0x60 | 0x61));
                let key = (key.prefix as u8, key.code);
                let was = if up { self.down.remove(&key) } else { self.down.insert(key) };
                assert!(was || !up, "{key:x?} goes up and was not down");
            }
            keyboard::HostMessage::Unicode { unit, up } => {
                let before = std::mem::replace(&mut self.typed, (!up).then_some(unit));
                assert_eq!(before, up.then_some(unit));
            }
        }
    }

    fn agrees(&self, device: &Keyboard) -> bool {
        let (mut left, mut down) = (*device.held(), BTreeSet::new());
        while let Some(key) = left.first() {
            left.remove(key);
            down.insert((key.prefix as u8, key.code));
        }
        self.down == down
    }

    fn is_idle(&self) -> bool {
        self.down.is_empty() && self.typed.is_none()
    }

    fn release_all() -> seat::keyboard::FromConsole {
        seat::keyboard::FromConsole::ReleaseAll
    }

    fn press() -> seat::keyboard::FromConsole {
        let key = seat::keyboard::Key { scancode: 0x1e, e0: false, e1: false, up: false };
        seat::keyboard::FromConsole::Key(key)
    }

    fn introduction() -> Vec<Vec<u8>> {
        vec![keyboard::GuestMessage::ProtocolRequest(1 << 16).encode()]
    }
}

#[derive(Default)]
struct MouseDriver {
    buttons: u8,
    described: bool,
}

impl Driver for MouseDriver {
    type I = Mouse;

    fn hears(&mut self, packet: &[u8]) {
        let message = mouse::HostMessage::parse(packet).expect("a message");
        assert!(is_padded(packet, &message.encode()));
        match message {
            mouse::HostMessage::ProtocolResponse { .. } => *self = Self::default(),
            mouse::HostMessage::DeviceInfo => self.described = true,
            mouse::HostMessage::Report(report) => {
                assert!(self.described);
                assert!(report.buttons <= 0x1f && report.x <= 32767 && report.y <= 32767);
                assert!(report.wheel != i8::MIN && report.pan != i8::MIN);
                self.buttons = report.buttons;
            }
        }
    }

    fn agrees(&self, device: &Mouse) -> bool {
        self.buttons == device.buttons()
    }

    fn is_idle(&self) -> bool {
        self.buttons == 0
    }

    fn release_all() -> seat::mouse::FromConsole {
        seat::mouse::FromConsole::ReleaseAll
    }

    fn press() -> seat::mouse::FromConsole {
        seat::mouse::FromConsole::Buttons(1)
    }

    fn introduction() -> Vec<Vec<u8>> {
        use mouse::GuestMessage::{DeviceInfoAck, ProtocolRequest};
        vec![ProtocolRequest(2 << 16).encode(), DeviceInfoAck.encode()]
    }
}

/// A byte: odd if the guest understands characters, and with a 2 in it for the whole device. Then steps: a byte that says what happens,
/// and a string.
pub fn keyboard(data: &[u8]) {
    let mut script = Script::new(data);
    let Some(kind) = script.byte() else { return };
    either::<KeyboardDriver>(&Keyboard::new(kind & 1 != 0), kind, script);
}

/// A byte with a 2 in it for the whole device, then steps as in [`keyboard`].
pub fn mouse(data: &[u8]) {
    let mut script = Script::new(data);
    let Some(kind) = script.byte() else { return };
    either::<MouseDriver>(&Mouse::new(), kind, script);
}

fn either<D: Driver>(blank: &D::I, kind: u8, script: Script<'_>) {
    match kind & 2 {
        0 => run::<D>(blank, script),
        _ => hid_device::run::<D>(blank, script),
    }
}

fn run<D: Driver>(blank: &D::I, mut script: Script<'_>) {
    let (mut device, mut driver, mut number) = (blank.clone(), D::default(), 0);
    while let (Some(what), Some(bytes)) = (script.byte(), script.string()) {
        match what % 5 {
            0 | 1 => {
                if let Ok(heard) = device.hear(bytes) {
                    assert!(heard.packets.len() <= 2);
                    heard.packets.iter().for_each(|packet| driver.hears(packet));
                    device = heard.next;
                }
            }
            2 => {
                let Ok(event) = <D::I as Instrument>::Event::parse(bytes) else { continue };
                if device.phase() == Phase::Ready {
                    number += 1;
                    act(&mut device, &mut driver, &event, number, blank);
                }
            }
            // Whatever lies in a ledger: refused, or the same again.
            3 => {
                if let Ok((found, number)) = state::load(blank, bytes) {
                    let saved = state::save(&found, number);
                    assert_eq!(state::load(blank, &saved), Ok((found, number)));
                }
            }
            _ => {
                device.reopen();
                driver = D::default();
            }
        }
        assert!(driver.agrees(&device));
    }
    if device.phase() == Phase::Ready {
        act(&mut device, &mut driver, &D::release_all(), number + 1, blank);
        assert!(driver.is_idle());
    }
}

/// An event, with a death after each packet of it: the successor has the same event, and the state that came with the packet.
fn act<D: Driver>(
    device: &mut D::I,
    driver: &mut D,
    event: &<D::I as Instrument>::Event,
    number: u64,
    blank: &D::I,
) {
    for _ in 0..MOST {
        let Some(step) = device.act(event) else { return };
        driver.hears(&step.packet);
        let known = step.last.then_some(number);
        let saved = state::save(&step.next, known);
        assert!(saved.len() <= 4064);
        let (found, found_number) = state::load(blank, &saved).expect("our own state");
        assert_eq!((&found, found_number), (&step.next, known));
        *device = found;
        if step.last {
            return;
        }
    }
    panic!("an event does not end");
}
