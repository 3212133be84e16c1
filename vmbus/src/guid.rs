//! GUIDs: their mixed-endian wire form, their text form, and the classes of device that VMBus knows.

use core::fmt;
use core::str::FromStr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A GUID in its wire form: the first three fields are little-endian, the last eight bytes are in order.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct Guid([u8; 16]);

/// A text that is not a GUID of the form `ba6163d9-04a1-4d29-b605-72e2ffb1dc7f` (braces around it are allowed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a GUID: write it as xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx, in hexadecimal digits")]
pub struct ParseGuidError;

impl Guid {
    /// The GUID of all zeroes, which names nothing.
    pub const ZERO: Self = Self([0; 16]);

    /// A GUID from its four customary fields.
    pub const fn from_fields(a: u32, b: u16, c: u16, d: [u8; 8]) -> Self {
        let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        Self([a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]])
    }

    /// A GUID from its wire form.
    pub const fn from_wire(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The wire form.
    pub const fn to_wire(self) -> [u8; 16] {
        self.0
    }

    /// True for the GUID of all zeroes.
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

/// Position in the wire form of each byte of the text form.
const TEXT_ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
/// Positions in the text at which a dash stands.
const DASHES: [usize; 4] = [8, 13, 18, 23];

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, &position) in TEXT_ORDER.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0[position])?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Guid {
    type Err = ParseGuidError;

    fn from_str(text: &str) -> Result<Self, ParseGuidError> {
        let text = match text.strip_prefix('{') {
            Some(rest) => rest.strip_suffix('}').ok_or(ParseGuidError)?,
            None => text,
        };
        let text = text.as_bytes();
        if text.len() != 36 || DASHES.iter().any(|&at| text[at] != b'-') {
            return Err(ParseGuidError);
        }
        let mut digits = text.iter().enumerate().filter(|(at, _)| !DASHES.contains(at)).map(|(_, &c)| c);
        let mut digit = || digits.next().and_then(|c| (c as char).to_digit(16)).ok_or(ParseGuidError);
        let mut wire = [0; 16];
        for position in TEXT_ORDER {
            wire[position] = (digit()? * 16 + digit()?) as u8;
        }
        Ok(Self(wire))
    }
}

/// The classes of device (`if_type` of an offer).
pub mod class {
    use super::Guid;

    /// SCSI controller (`hv_storvsc`).
    pub const SCSI: Guid =
        Guid::from_fields(0xba6163d9, 0x04a1, 0x4d29, [0xb6, 0x05, 0x72, 0xe2, 0xff, 0xb1, 0xdc, 0x7f]);
    /// IDE controller accelerated over VMBus (`hv_storvsc`).
    pub const IDE: Guid =
        Guid::from_fields(0x32412632, 0x86cb, 0x44a2, [0x9b, 0x5c, 0x50, 0xd1, 0x41, 0x73, 0x54, 0xf5]);
    /// Network interface (`hv_netvsc`).
    pub const NETWORK: Guid =
        Guid::from_fields(0xf8615163, 0xdf3e, 0x46c5, [0x91, 0x3f, 0xf2, 0xd2, 0xf9, 0x65, 0xed, 0x0e]);
    /// Keyboard (`hyperv_keyboard`).
    pub const KEYBOARD: Guid =
        Guid::from_fields(0xf912ad6d, 0x2b17, 0x48ea, [0xbd, 0x65, 0xf9, 0x27, 0xa6, 0x1c, 0x76, 0x84]);
    /// Mouse (`hid_hyperv`).
    pub const MOUSE: Guid =
        Guid::from_fields(0xcfa8b69e, 0x5b4a, 0x4cc0, [0xb9, 0x8b, 0x8b, 0xa1, 0xa1, 0xf3, 0xf9, 0x5a]);
    /// Framebuffer (`hyperv_fb`, `hyperv_drm`).
    pub const VIDEO: Guid =
        Guid::from_fields(0xda0a7802, 0xe377, 0x4aac, [0x8e, 0x77, 0x05, 0x58, 0xeb, 0x10, 0x73, 0xf8]);
    /// PCI bus behind VMBus (`pci_hyperv`).
    pub const VPCI: Guid =
        Guid::from_fields(0x44c4f61d, 0x4444, 0x4400, [0x9d, 0x52, 0x80, 0x2e, 0x27, 0xed, 0xe1, 0x9f]);
    /// Shutdown integration service (`hv_utils`).
    pub const SHUTDOWN: Guid =
        Guid::from_fields(0x0e0b6031, 0x5213, 0x4934, [0x81, 0x8b, 0x38, 0xd9, 0x0c, 0xed, 0x39, 0xdb]);
    /// Time synchronisation integration service (`hv_utils`).
    pub const TIME_SYNC: Guid =
        Guid::from_fields(0x9527e630, 0xd0ae, 0x497b, [0xad, 0xce, 0xe8, 0x0a, 0xb0, 0x17, 0x5c, 0xaf]);
    /// Heartbeat integration service (`hv_utils`).
    pub const HEARTBEAT: Guid =
        Guid::from_fields(0x57164f39, 0x9115, 0x4e78, [0xab, 0x55, 0x38, 0x2f, 0x3b, 0xd5, 0x42, 0x2d]);
    /// Key-value pair integration service (`hv_utils`).
    pub const KVP: Guid =
        Guid::from_fields(0xa9a0f4e7, 0x5a45, 0x4d96, [0xb8, 0x27, 0x8a, 0x84, 0x1e, 0x8c, 0x03, 0xe6]);
    /// Backup integration service, "VSS" (`hv_utils`).
    pub const BACKUP: Guid =
        Guid::from_fields(0x35fa2e29, 0xea23, 0x4236, [0x96, 0xae, 0x3a, 0x6e, 0xba, 0xcb, 0xa4, 0x40]);
    /// Dynamic memory (`hv_balloon`).
    pub const DYNAMIC_MEMORY: Guid =
        Guid::from_fields(0x525074dc, 0x8985, 0x46e2, [0x80, 0x57, 0xa3, 0x07, 0xdc, 0x18, 0xa5, 0x02]);
    /// File copy from host to guest (`hv_utils`).
    pub const FILE_COPY: Guid =
        Guid::from_fields(0x34d14be3, 0xdee4, 0x41c8, [0x9a, 0xe7, 0x6b, 0x17, 0x49, 0x77, 0xc1, 0x92]);

    /// Our own test device: it completes each in-band packet with the packet's payload.
    /// No guest driver binds to it; `vsc::echo` does.
    pub const ECHO: Guid =
        Guid::from_fields(0x62756c6b, 0x6865, 0x4164, [0x8e, 0x0c, 0x65, 0x63, 0x68, 0x6f, 0x00, 0x01]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn text_form_is_the_customary_one() {
        let text = "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f";
        assert_eq!(class::SCSI.to_string(), text);
        assert_eq!(text.parse(), Ok(class::SCSI));
        assert_eq!("{BA6163D9-04a1-4d29-b605-72e2ffb1dc7f}".parse(), Ok(class::SCSI));
    }

    #[test]
    fn wire_form_is_mixed_endian() {
        let wire = class::SCSI.to_wire();
        assert_eq!(wire[..8], [0xd9, 0x63, 0x61, 0xba, 0xa1, 0x04, 0x29, 0x4d]);
        assert_eq!(wire[8..], [0xb6, 0x05, 0x72, 0xe2, 0xff, 0xb1, 0xdc, 0x7f]);
    }

    #[test]
    fn what_is_not_a_guid_is_refused() {
        for text in [
            "",
            "{ba6163d9-04a1-4d29-b605-72e2ffb1dc7f",
            "ba6163d9-04a1-4d29-b605-72e2ffb1dc7",
            "ba6163d9-04a1-4d29-b605-72e2ffb1dc7g",
            "ba6163d9004a1-4d29-b605-72e2ffb1dc7f",
            "ba6163d9-04a1-4d29-b605-72e2ffb1dc\u{e9}",
        ] {
            assert_eq!(text.parse::<Guid>(), Err(ParseGuidError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(wire: [u8; 16]) {
            let guid = Guid::from_wire(wire);
            prop_assert_eq!(guid.to_string().parse(), Ok(guid));
        }
    }
}
