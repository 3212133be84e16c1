//! What a viewer says once the handshake is over (RFC 6143, 7.5).

use super::Fault;
use super::pixel::PixelFormat;

/// Most encodings that are looked at.
const MAX_ENCODINGS: u16 = 1024;
/// Longest text for the clipboard, which is read over; longer ones are an attack.
const MAX_CUT_TEXT: u32 = 1 << 20;
/// Longest payload of a fence, by the protocol.
const MAX_FENCE: u8 = 64;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// How it wants its pixels from now on.
    SetPixelFormat(PixelFormat),
    /// What it understands, best first.
    SetEncodings(Vec<i32>),
    /// It is ready for the next update of this part of the picture.
    UpdateRequest {
        /// Only what has changed.
        incremental: bool,
        /// From the left.
        x: u16,
        /// From the top.
        y: u16,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// A key.
    Key {
        /// Pressed.
        down: bool,
        /// X11's name of what the key means.
        keysym: u32,
        /// The key itself as an XT make code, with 0x80 in place of the prefix E0; 0 without the extension.
        code: u32,
    },
    /// The pointer.
    Pointer {
        /// Bit 0 is the left button, 1 the middle one, 2 the right one; 3 to 6 are turns of wheels up, down, left, right.
        buttons: u8,
        /// From the left.
        x: u16,
        /// From the top.
        y: u16,
    },
    /// So many bytes of text follow, which are to be read over.
    CutText(u32),
    /// It wants another size of the picture, which is the guest's to say.
    SetDesktopSize,
    /// To be answered by the same.
    Fence {
        /// Which kind.
        flags: u32,
        /// To be repeated.
        payload: Vec<u8>,
    },
}

/// Types of messages.
mod kind {
    pub const SET_PIXEL_FORMAT: u8 = 0;
    pub const SET_ENCODINGS: u8 = 2;
    pub const UPDATE_REQUEST: u8 = 3;
    pub const KEY_EVENT: u8 = 4;
    pub const POINTER_EVENT: u8 = 5;
    pub const CUT_TEXT: u8 = 6;
    pub const FENCE: u8 = 248;
    pub const SET_DESKTOP_SIZE: u8 = 251;
    pub const QEMU: u8 = 255;
}

/// QEMU's message: the extended key event.
const QEMU_KEY: u8 = 0;

/// Takes the first message out of `bytes`: it, and how many bytes it has. `None`: more are needed.
pub fn parse(bytes: &[u8]) -> Result<Option<(ClientMessage, usize)>, Fault> {
    let Some(&kind) = bytes.first() else { return Ok(None) };
    let (message, len) = match kind {
        kind::SET_PIXEL_FORMAT => {
            let Some(format) = field(bytes, 4) else { return Ok(None) };
            (ClientMessage::SetPixelFormat(PixelFormat::parse(format)?), 20)
        }
        kind::SET_ENCODINGS => {
            let Some(count) = field(bytes, 2).map(|bytes| u16::from_be_bytes(*bytes)) else {
                return Ok(None);
            };
            if count > MAX_ENCODINGS {
                return Err(Fault::TooLong(count.into()));
            }
            let len = 4 + usize::from(count) * 4;
            let Some(list) = bytes.get(4..len) else { return Ok(None) };
            let list = list.as_chunks().0.iter().map(|bytes| i32::from_be_bytes(*bytes)).collect();
            (ClientMessage::SetEncodings(list), len)
        }
        kind::UPDATE_REQUEST => {
            let Some(&[incremental, ref rest @ ..]) = field::<9>(bytes, 1) else { return Ok(None) };
            let [x, y, width, height] = words(rest);
            (ClientMessage::UpdateRequest { incremental: incremental != 0, x, y, width, height }, 10)
        }
        kind::KEY_EVENT => {
            let Some(&[down, _, _, ref keysym @ ..]) = field::<7>(bytes, 1) else { return Ok(None) };
            (ClientMessage::Key { down: down != 0, keysym: u32::from_be_bytes(*keysym), code: 0 }, 8)
        }
        kind::POINTER_EVENT => {
            let Some(&[buttons, ref place @ ..]) = field::<5>(bytes, 1) else { return Ok(None) };
            let [x, y] = words(place);
            (ClientMessage::Pointer { buttons, x, y }, 6)
        }
        kind::CUT_TEXT => {
            let Some(len) = field(bytes, 4).map(|bytes| u32::from_be_bytes(*bytes)) else { return Ok(None) };
            // The extended clipboard has negative lengths; it was not offered, but its text can be read over as well.
            let len = if len.cast_signed() < 0 { len.cast_signed().unsigned_abs() } else { len };
            if len > MAX_CUT_TEXT {
                return Err(Fault::TooLong(len));
            }
            (ClientMessage::CutText(len), 8)
        }
        kind::FENCE => {
            let Some(flags) = field(bytes, 4).map(|bytes| u32::from_be_bytes(*bytes)) else {
                return Ok(None);
            };
            let Some(&len) = bytes.get(8) else { return Ok(None) };
            if len > MAX_FENCE {
                return Err(Fault::TooLong(len.into()));
            }
            let end = 9 + usize::from(len);
            let Some(payload) = bytes.get(9..end) else { return Ok(None) };
            (ClientMessage::Fence { flags, payload: payload.to_vec() }, end)
        }
        kind::SET_DESKTOP_SIZE => {
            let Some(&screens) = bytes.get(6) else { return Ok(None) };
            let len = 8 + usize::from(screens) * 16;
            if bytes.len() < len {
                return Ok(None);
            }
            (ClientMessage::SetDesktopSize, len)
        }
        kind::QEMU => {
            match bytes.get(1) {
                Some(&QEMU_KEY) => {}
                Some(_) => return Err(Fault::Message(kind)),
                None => return Ok(None),
            }
            let Some(down) = field(bytes, 2).map(|bytes| u16::from_be_bytes(*bytes)) else { return Ok(None) };
            let Some(keysym) = field(bytes, 4).map(|bytes| u32::from_be_bytes(*bytes)) else {
                return Ok(None);
            };
            let Some(code) = field(bytes, 8).map(|bytes| u32::from_be_bytes(*bytes)) else { return Ok(None) };
            (ClientMessage::Key { down: down != 0, keysym, code }, 12)
        }
        other => return Err(Fault::Message(other)),
    };
    Ok((bytes.len() >= len).then_some((message, len)))
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

/// As many 16-bit words as there are. Panics if there are more words than bytes.
fn words<const N: usize>(bytes: &[u8]) -> [u16; N] {
    std::array::from_fn(|index| u16::from_be_bytes([bytes[index * 2], bytes[index * 2 + 1]]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_message_is_understood_when_all_of_it_is_there() {
        let mut format = vec![0, 0, 0, 0];
        format.extend(PixelFormat::NATIVE.wire());
        let messages = [
            (format, ClientMessage::SetPixelFormat(PixelFormat::NATIVE)),
            (vec![2, 0, 0, 2, 0, 0, 0, 16, 255, 255, 255, 17], ClientMessage::SetEncodings(vec![16, -239])),
            (
                vec![3, 1, 0, 1, 0, 2, 1, 0, 0, 4],
                ClientMessage::UpdateRequest { incremental: true, x: 1, y: 2, width: 256, height: 4 },
            ),
            (vec![4, 1, 0, 0, 0, 0, 255, 13], ClientMessage::Key { down: true, keysym: 0xff0d, code: 0 }),
            (vec![5, 4, 0, 9, 1, 0], ClientMessage::Pointer { buttons: 4, x: 9, y: 256 }),
            (vec![6, 0, 0, 0, 0, 0, 0, 9], ClientMessage::CutText(9)),
            (vec![6, 0, 0, 0, 255, 255, 255, 247], ClientMessage::CutText(9)),
            (
                vec![248, 0, 0, 0, 0x80, 0, 0, 1, 2, 7, 8],
                ClientMessage::Fence { flags: 0x8000_0001, payload: vec![7, 8] },
            ),
            (vec![251, 0, 4, 0, 3, 0, 0, 0], ClientMessage::SetDesktopSize),
            (
                vec![255, 0, 0, 1, 0, 0, 0, 0x61, 0, 0, 0, 0x1e],
                ClientMessage::Key { down: true, keysym: 0x61, code: 0x1e },
            ),
        ];
        for (bytes, message) in messages {
            for len in 0..bytes.len() {
                assert_eq!(parse(&bytes[..len]), Ok(None), "{len} of {bytes:?}");
            }
            assert_eq!(parse(&bytes), Ok(Some((message, bytes.len()))));
        }
    }

    #[test]
    fn absurd_claims_are_faults_at_once() {
        assert_eq!(parse(&[2, 0, 255, 255]), Err(Fault::TooLong(65535)));
        assert_eq!(parse(&[6, 0, 0, 0, 0x7f, 0, 0, 0]), Err(Fault::TooLong(0x7f00_0000)));
        assert_eq!(parse(&[6, 0, 0, 0, 0x80, 0, 0, 0]), Err(Fault::TooLong(1 << 31)));
        assert_eq!(parse(&[248, 0, 0, 0, 0, 0, 0, 0, 65]), Err(Fault::TooLong(65)));
        assert_eq!(parse(&[1]), Err(Fault::Message(1)));
        assert_eq!(parse(&[255, 1]), Err(Fault::Message(255)));
    }

    proptest! {
        #[test]
        fn no_message_is_longer_than_what_is_there(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some((_, len))) = parse(&bytes) {
                prop_assert!(len > 0 && len <= bytes.len());
            }
        }
    }
}
