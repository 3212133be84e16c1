//! What is said to a viewer, pixels apart (RFC 6143, 7.3.2, 7.6 and 7.8, and the community's registry).

use seat::keyboard::Leds;
use seat::shape::Shape;

use super::encodings::{Encoding, pseudo};
use super::pixel::{PixelFormat, Translator};
use crate::damage::Rect;

/// Why a message about the picture's size is sent (ExtendedDesktopSize's x).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The guest has changed it.
    Server,
    /// The viewer had asked for another one, which is not its to say.
    Refused,
}

/// The picture's size, format and name, after which messages begin.
pub fn server_init(size: (u32, u32), name: &str, out: &mut Vec<u8>) {
    put_words([size.0, size.1], out);
    out.extend_from_slice(&PixelFormat::NATIVE.wire());
    out.extend_from_slice(&(name.len() as u32).to_be_bytes());
    out.extend_from_slice(name.as_bytes());
}

/// An update of so many rectangles follows.
pub fn update(rectangles: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&rectangles.to_be_bytes());
}

/// A rectangle of pixels follows.
pub fn rectangle(rect: Rect, encoding: Encoding, out: &mut Vec<u8>) {
    head([rect.x1, rect.y1, rect.width(), rect.height()], encoding.number(), out);
}

/// Rectangle: the picture has this size from now on.
pub fn desktop_size(size: (u32, u32), out: &mut Vec<u8>) {
    head([0, 0, size.0, size.1], pseudo::DESKTOP_SIZE, out);
}

/// The same for viewers who know of screens, of which there is one.
pub fn extended_desktop_size(size: (u32, u32), reason: Reason, out: &mut Vec<u8>) {
    let (reason, status) = match reason {
        Reason::Server => (0, 0),
        // By this client; administratively prohibited.
        Reason::Refused => (1, 1),
    };
    head([reason, status, size.0, size.1], pseudo::EXTENDED_DESKTOP_SIZE, out);
    // One screen, its number 0, all of the picture, no flags.
    out.extend_from_slice(&[1, 0, 0, 0]);
    out.extend_from_slice(&0u32.to_be_bytes());
    put_words([0, 0, size.0, size.1], out);
    out.extend_from_slice(&0u32.to_be_bytes());
}

/// Rectangle: key events may come with scan codes.
pub fn qemu_key(out: &mut Vec<u8>) {
    head([0; 4], pseudo::QEMU_KEY, out);
}

/// Rectangle: lamps of the keyboard.
pub fn led_state(leds: Leds, out: &mut Vec<u8>) {
    head([0; 4], pseudo::QEMU_LED_STATE, out);
    out.push(u8::from(leds.scroll) | u8::from(leds.num) << 1 | u8::from(leds.caps) << 2);
}

/// A fence's answer.
pub fn fence(flags: u32, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[248, 0, 0, 0]);
    out.extend_from_slice(&flags.to_be_bytes());
    let len = payload.len().min(64);
    out.push(len as u8);
    out.extend_from_slice(&payload[..len]);
}

/// Rectangle: the pointer's shape in four bytes a pixel, colours multiplied by alpha. `None`: it is not to be seen.
pub fn cursor_with_alpha(shape: Option<&Shape>, out: &mut Vec<u8>) {
    cursor_head(shape, pseudo::CURSOR_WITH_ALPHA, out);
    // How its pixels are encoded: as they are.
    out.extend_from_slice(&Encoding::Raw.number().to_be_bytes());
    for [blue, green, red, alpha] in pixels(shape) {
        let times_alpha = |colour: u8| (u16::from(colour) * u16::from(alpha) / 255) as u8;
        out.extend_from_slice(&[times_alpha(red), times_alpha(green), times_alpha(blue), alpha]);
    }
}

/// Rectangle: the pointer's shape in the viewer's pixels, and one bit for each that is to be seen.
pub fn cursor(shape: Option<&Shape>, translator: &Translator, out: &mut Vec<u8>) {
    cursor_head(shape, pseudo::CURSOR, out);
    for [blue, green, red, _] in pixels(shape) {
        translator.put(&[u32::from_be_bytes([0, red, green, blue])], out);
    }
    let Some(shape) = shape else { return };
    for row in shape.pixels.chunks(usize::from(shape.width) * 4) {
        for eight in row.chunks(32) {
            let pixels = eight.as_chunks::<4>().0.iter();
            let bits = pixels.zip(0u8..).filter(|([_, _, _, alpha], _)| *alpha >= 0x80);
            out.push(bits.fold(0, |byte, (_, bit)| byte | 0x80 >> bit));
        }
    }
}

fn pixels(shape: Option<&Shape>) -> impl Iterator<Item = [u8; 4]> {
    shape.map_or(&[][..], |shape| &shape.pixels).as_chunks().0.iter().copied()
}

fn cursor_head(shape: Option<&Shape>, encoding: i32, out: &mut Vec<u8>) {
    let place = shape.map_or([0; 4], |shape| [shape.hot_x, shape.hot_y, shape.width, shape.height]);
    head(place.map(u32::from), encoding, out);
}

fn head(place: [u32; 4], encoding: i32, out: &mut Vec<u8>) {
    put_words(place, out);
    out.extend_from_slice(&encoding.to_be_bytes());
}

/// Pictures are smaller than 65,536 pixels each way (`seat::video::MAX_WIDTH`).
fn put_words<const N: usize>(words: [u32; N], out: &mut Vec<u8>) {
    words.into_iter().for_each(|word| out.extend_from_slice(&(word as u16).to_be_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(say: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        say(&mut out);
        out
    }

    #[test]
    fn the_beginning_names_size_format_and_name() {
        let bytes = said(|out| server_init((1920, 1080), "vm", out));
        assert_eq!(bytes[..8], [7, 128, 4, 56, 32, 24, 0, 1]);
        assert_eq!(bytes[20..], [0, 0, 0, 2, b'v', b'm']);
    }

    #[test]
    fn sizes_are_rectangles() {
        assert_eq!(said(|out| desktop_size((800, 600), out)), [0, 0, 0, 0, 3, 32, 2, 88, 255, 255, 255, 33]);
        let bytes = said(|out| extended_desktop_size((800, 600), Reason::Refused, out));
        assert_eq!(bytes[..12], [0, 1, 0, 1, 3, 32, 2, 88, 255, 255, 254, 204]);
        assert_eq!(bytes[12..], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 32, 2, 88, 0, 0, 0, 0]);
    }

    #[test]
    fn a_pointer_is_told_in_two_ways() {
        let mut pixels = vec![0; 9 * 2 * 4];
        pixels[..4].copy_from_slice(&[10, 20, 30, 255]);
        pixels[17 * 4..].copy_from_slice(&[255, 255, 255, 128]);
        let shape = Shape { width: 9, height: 2, hot_x: 1, hot_y: 0, pixels };
        let bytes = said(|out| cursor_with_alpha(Some(&shape), out));
        assert_eq!(bytes[..12], [0, 1, 0, 0, 0, 9, 0, 2, 255, 255, 254, 198]);
        assert_eq!(bytes[12..20], [0, 0, 0, 0, 30, 20, 10, 255]);
        assert_eq!(bytes[bytes.len() - 4..], [128, 128, 128, 128]);
        let translator = Translator::new(PixelFormat::NATIVE);
        let bytes = said(|out| cursor(Some(&shape), &translator, out));
        assert_eq!(bytes.len(), 12 + 18 * 4 + 4);
        assert_eq!(bytes[12..16], [10, 20, 30, 0]);
        assert_eq!(bytes[bytes.len() - 4..], [0x80, 0, 0, 0x80]);
        assert_eq!(said(|out| cursor(None, &translator, out))[..8], [0; 8]);
    }
}
