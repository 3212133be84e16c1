//! Messages of the synthetic keyboard, as Linux' `drivers/input/serio/hyperv-keyboard.c` has them: in-band packets, a kind and what
//! belongs to it, in little-endian order.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::keys::{Key, Prefix};
use crate::instrument::GuestFault;

/// The only version there is (`SYNTH_KBD_VERSION`).
pub const VERSION_1_0: u32 = 1 << 16;

/// Numbers of the kinds (`enum synth_kbd_msg_type`).
pub mod kind {
    /// Guest to host: a version.
    pub const PROTOCOL_REQUEST: u32 = 1;
    /// Host to guest: whether it is accepted.
    pub const PROTOCOL_RESPONSE: u32 = 2;
    /// Host to guest: a key.
    pub const EVENT: u32 = 3;
    /// Guest to host: lamps. Linux has the number and never sends it; Microsoft's own drivers do.
    pub const LED_INDICATORS: u32 = 4;
}

/// Bits of a key's event (`IS_UNICODE` and so on).
mod info {
    pub const UNICODE: u32 = 1;
    pub const BREAK: u32 = 2;
    pub const E0: u32 = 4;
    pub const E1: u32 = 8;
}

/// What a guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMessage {
    /// It wants to speak this version.
    ProtocolRequest(u32),
    /// It wants these lamps to be on: bit 0 Scroll Lock, 1 Num Lock, 2 Caps Lock (as a PC keyboard's command 0xED has them).
    LedIndicators(u16),
}

/// What it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMessage {
    /// Whether the version is accepted.
    ProtocolResponse {
        /// It is.
        accepted: bool,
    },
    /// A key went down (or is held, and repeats), or up.
    Key {
        /// Which.
        key: Key,
        /// It went up.
        up: bool,
    },
    /// The same with a character that no key has: a unit of UTF-16.
    Unicode {
        /// Which.
        unit: u16,
        /// It went up.
        up: bool,
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Keystroke {
    kind: U32,
    make_code: U16,
    reserved: U16,
    info: U32,
}

impl GuestMessage {
    /// Reads a message; bytes behind it are padding.
    pub fn parse(payload: &[u8]) -> Result<GuestMessage, GuestFault> {
        let (kind, body) = fields::<U32>(payload, payload.len())?;
        match kind.get() {
            kind::PROTOCOL_REQUEST => {
                Ok(GuestMessage::ProtocolRequest(fields::<U32>(body, payload.len())?.0.get()))
            }
            kind::LED_INDICATORS => {
                Ok(GuestMessage::LedIndicators(fields::<U16>(body, payload.len())?.0.get()))
            }
            other => Err(GuestFault::Unknown(other)),
        }
    }

    /// As the guest's driver writes it.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            GuestMessage::ProtocolRequest(version) => words(&[kind::PROTOCOL_REQUEST, *version]),
            GuestMessage::LedIndicators(lamps) => {
                let mut bytes = words(&[kind::LED_INDICATORS]);
                bytes.extend_from_slice(&lamps.to_le_bytes());
                bytes
            }
        }
    }
}

impl HostMessage {
    /// For the guest.
    pub fn encode(&self) -> Vec<u8> {
        let (code, up, bits) = match *self {
            // All bits but the first are reserved.
            HostMessage::ProtocolResponse { accepted } => {
                return words(&[kind::PROTOCOL_RESPONSE, accepted.into()]);
            }
            HostMessage::Key { key, up } => {
                let bits = match key.prefix {
                    Prefix::None => 0,
                    Prefix::E0 => info::E0,
                    Prefix::E1 => info::E1,
                };
                (key.code.into(), up, bits)
            }
            HostMessage::Unicode { unit, up } => (unit, up, info::UNICODE),
        };
        let info = bits | if up { info::BREAK } else { 0 };
        let event = Keystroke {
            kind: kind::EVENT.into(),
            make_code: code.into(),
            reserved: U16::ZERO,
            info: info.into(),
        };
        event.as_bytes().to_vec()
    }

    /// As the guest's driver reads it; for tests.
    pub fn parse(payload: &[u8]) -> Option<HostMessage> {
        let (kind, body) = U32::read_from_prefix(payload).ok()?;
        match kind.get() {
            kind::PROTOCOL_RESPONSE => {
                let (status, _) = U32::read_from_prefix(body).ok()?;
                Some(HostMessage::ProtocolResponse { accepted: status.get() & 1 != 0 })
            }
            kind::EVENT => {
                let (event, _) = Keystroke::read_from_prefix(payload).ok()?;
                let (code, info) = (event.make_code.get(), event.info.get());
                let up = info & info::BREAK != 0;
                if info & info::UNICODE != 0 {
                    return Some(HostMessage::Unicode { unit: code, up });
                }
                let prefix = match (info & info::E0 != 0, info & info::E1 != 0) {
                    (false, false) => Prefix::None,
                    (true, false) => Prefix::E0,
                    (false, true) => Prefix::E1,
                    (true, true) => return None,
                };
                Some(HostMessage::Key { key: Key { code: u8::try_from(code).ok()?, prefix }, up })
            }
            _ => None,
        }
    }
}

/// What a message begins with, and the rest; `have` is all that came.
fn fields<F>(bytes: &[u8], have: usize) -> Result<(F, &[u8]), GuestFault>
where
    F: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let short = GuestFault::TooShort { have, need: have - bytes.len() + size_of::<F>() };
    F::read_from_prefix(bytes).map_err(|_| short)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_driver() {
        // `struct synth_kbd_protocol_request` and `struct synth_kbd_keystroke`, by hand.
        let request = [1, 0, 0, 0, 0, 0, 1, 0];
        assert_eq!(GuestMessage::parse(&request), Ok(GuestMessage::ProtocolRequest(VERSION_1_0)));
        let lamps = [4, 0, 0, 0, 6, 0, 0xaa, 0xaa];
        assert_eq!(GuestMessage::parse(&lamps), Ok(GuestMessage::LedIndicators(6)));
        let response = HostMessage::ProtocolResponse { accepted: true }.encode();
        assert_eq!(response, [2, 0, 0, 0, 1, 0, 0, 0]);
        let key = Key { code: 0x1c, prefix: Prefix::E0 };
        let up = HostMessage::Key { key, up: true }.encode();
        assert_eq!(up, [3, 0, 0, 0, 0x1c, 0, 0, 0, 2 | 4, 0, 0, 0]);
        let down = HostMessage::Unicode { unit: 0x20ac, up: false }.encode();
        assert_eq!(down, [3, 0, 0, 0, 0xac, 0x20, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn what_is_said_is_understood() {
        for message in [GuestMessage::ProtocolRequest(7), GuestMessage::LedIndicators(0xffff)] {
            assert_eq!(GuestMessage::parse(&message.encode()), Ok(message));
        }
        for prefix in [Prefix::None, Prefix::E0, Prefix::E1] {
            for up in [false, true] {
                let message = HostMessage::Key { key: Key { code: 0x45, prefix }, up };
                assert_eq!(HostMessage::parse(&message.encode()), Some(message));
            }
        }
        for up in [false, true] {
            let message = HostMessage::Unicode { unit: 0xe9, up };
            assert_eq!(HostMessage::parse(&message.encode()), Some(message));
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for len in 0..8 {
            let bytes = &[1, 0, 0, 0, 0, 0, 1, 0][..len];
            assert_eq!(
                GuestMessage::parse(bytes),
                Err(GuestFault::TooShort { have: len, need: if len < 4 { 4 } else { 8 } })
            );
        }
        for kind in [0, 2, 3, 5, u32::MAX] {
            assert_eq!(GuestMessage::parse(&words(&[kind, 0, 0])), Err(GuestFault::Unknown(kind)));
        }
    }
}
