//! Parameters by name (`OID_GEN_RNDIS_CONFIG_PARAMETER`).
//!
//! Linux sets its address so (`rndis_filter_set_device_mac`), Windows what its administrators set for an adapter. Names and values
//! are UTF-16. What we do not know is accepted, as Hyper-V does.

use super::offloads::set_by_keyword;
use super::set::set_mac;
use super::{Effect, Mac, State};
use crate::rndis::RndisStatus;

/// Most bytes of a name or a value; the longest that matters is "*TCPChecksumOffloadIPv4".
const MAX_LEN: u32 = 256;
/// The address.
const ADDRESS: &str = "NetworkAddress";

/// Types of value.
mod kind {
    pub const INTEGER: u32 = 0;
    pub const HEX_INTEGER: u32 = 1;
    pub const STRING: u32 = 2;
}

/// Sets a parameter.
pub(super) fn set(state: &mut State, value: &[u8]) -> Result<Effect, RndisStatus> {
    let word = |at: usize| value.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word));
    let (Some(name_at), Some(name_len), Some(kind), Some(value_at), Some(value_len)) =
        (word(0), word(4), word(8), word(12), word(16))
    else {
        return Err(RndisStatus::INVALID_LENGTH);
    };
    let part = |at: u32, len: u32| {
        let part = value.get(at as usize..).and_then(|rest| rest.get(..len as usize));
        part.filter(|_| len <= MAX_LEN).ok_or(RndisStatus::INVALID_DATA)
    };
    let name = text(part(name_at, name_len)?)?;
    let setting = part(value_at, value_len)?;
    let number = match kind {
        kind::STRING if name == ADDRESS => return set_mac(state, mac(&text(setting)?)?),
        kind::STRING => text(setting)?.trim().parse().ok(),
        kind::INTEGER | kind::HEX_INTEGER => setting.first_chunk().map(|word| u32::from_le_bytes(*word)),
        _ => None,
    };
    let offloads = number.and_then(|number| set_by_keyword(state.offloads, state.enabled, &name, number));
    let Some(offloads) = offloads else { return Ok(Effect::None) };
    state.enabled = offloads;
    Ok(Effect::Offloads)
}

/// UTF-16 without zeroes behind it.
fn text(bytes: &[u8]) -> Result<String, RndisStatus> {
    let (units, odd) = bytes.as_chunks::<2>();
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
    let text: Result<String, _> = char::decode_utf16(units.take_while(|unit| *unit != 0)).collect();
    text.ok().filter(|_| odd.is_empty()).ok_or(RndisStatus::INVALID_DATA)
}

/// Twelve hexadecimal digits; Windows allows dashes between them.
fn mac(text: &str) -> Result<Mac, RndisStatus> {
    let mut mac = Mac::default();
    let mut digits = text.chars().filter(|digit| !matches!(digit, '-' | ':'));
    for byte in &mut mac {
        let mut digit = || digits.next().and_then(|digit| digit.to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(RndisStatus::INVALID_DATA) };
        *byte = (high << 4 | low) as u8;
    }
    if digits.next().is_some() { Err(RndisStatus::INVALID_DATA) } else { Ok(mac) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::oid::{Config, Offloads};

    /// What Linux sends for an address, and Windows for the rest.
    pub(crate) fn parameter(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let (name_len, value_len) = (name.len() as u32, value.len() as u32);
        let words = [20, name_len, kind, 20 + name_len, value_len];
        [words.map(u32::to_le_bytes).as_flattened(), &name, value].concat()
    }

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    fn state(mac_locked: bool) -> State {
        State::new(Config {
            mac: [2, 0, 0, 0, 0, 1],
            mac_locked,
            mtu: 1500,
            speed: 10_000_000_000,
            queues: 4,
            offloads: Offloads::TAP,
            name: String::new(),
        })
    }

    #[test]
    fn linux_sets_its_address() {
        let mut state = state(false);
        let value = parameter(ADDRESS, 2, &utf16("020000abcdef"));
        assert_eq!(value.len(), 20 + 28 + 24);
        assert_eq!(set(&mut state, &value), Ok(Effect::Mac));
        assert_eq!(state.mac, [2, 0, 0, 0xab, 0xcd, 0xef]);
        let value = parameter(ADDRESS, 2, &utf16("02-00-00-00-00-09\0"));
        assert_eq!(set(&mut state, &value), Ok(Effect::Mac));
        assert_eq!((state.mac[5], state.permanent_mac[5]), (9, 1));
    }

    #[test]
    fn addresses_that_cannot_be_are_refused() {
        let mut state = state(false);
        let before = state.clone();
        for text in
            ["", "0200000000", "02000000000", "0200000000012", "g20000000001", "010000000000", "000000000000"]
        {
            let value = parameter(ADDRESS, 2, &utf16(text));
            assert_eq!(set(&mut state, &value), Err(RndisStatus::INVALID_DATA), "{text}");
        }
        assert_eq!(state, before);
    }

    #[test]
    fn an_address_may_be_locked() {
        let mut state = state(true);
        let other = parameter(ADDRESS, 2, &utf16("020000000002"));
        assert_eq!(set(&mut state, &other), Err(RndisStatus::NOT_ACCEPTED));
        let own = parameter(ADDRESS, 2, &utf16("020000000001"));
        assert_eq!(set(&mut state, &own), Ok(Effect::Mac));
    }

    #[test]
    fn windows_switches_offloads() {
        let mut state = state(false);
        let value = parameter("*TCPChecksumOffloadIPv4", 2, &utf16("1"));
        assert_eq!(set(&mut state, &value), Ok(Effect::Offloads));
        assert!(state.enabled.contains(Offloads::TX_TCP4) && !state.enabled.contains(Offloads::RX_TCP4));
        let value = parameter("*LsoV2IPv4", 0, &0u32.to_le_bytes());
        assert_eq!(set(&mut state, &value), Ok(Effect::Offloads));
        assert!(!state.enabled.contains(Offloads::LSO4));
        for value in [
            parameter("*JumboPacket", 2, &utf16("9014")),
            parameter("*LsoV2IPv4", 2, &utf16("yes")),
            parameter("*LsoV2IPv4", 0, &[1]),
            parameter("*LsoV2IPv4", 9, &utf16("1")),
        ] {
            assert_eq!(set(&mut state, &value), Ok(Effect::None));
        }
    }

    #[test]
    fn parameters_that_lie_are_refused() {
        let good = parameter(ADDRESS, 2, &utf16("020000000002"));
        let mut state = state(false);
        for len in 0..good.len() {
            assert!(set(&mut state, &good[..len]).is_err());
        }
        for (at, word) in
            [(0, 46), (0, u32::MAX), (4, 27), (4, 300), (4, u32::MAX), (12, 49), (16, 25), (16, u32::MAX)]
        {
            let mut value = good.clone();
            value[at..at + 4].copy_from_slice(&u32::to_le_bytes(word));
            assert_eq!(set(&mut state, &value), Err(RndisStatus::INVALID_DATA), "{word} at {at}");
        }
        // Half of a pair is no character.
        let value = parameter(ADDRESS, 2, &[0, 0xd8, 0x30, 0]);
        assert_eq!(set(&mut state, &value), Err(RndisStatus::INVALID_DATA));
    }
}
