//! What is said is understood, and nonsense is not.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use proptest::prelude::*;
use seat::keyboard::{self, Key, Leds};
use seat::shape::{Assembly, MAX_PART, Shape, ShapePart};
use seat::video::{self, Depth, MAX_HEIGHT, MAX_RECTS, MAX_WIDTH, Rect, Rects, Surface};
use seat::{Build, MAX_MESSAGE, Message, MessageError, mouse};

fn encode(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    assert!(bytes.len() <= MAX_MESSAGE);
    bytes
}

/// A message comes back as it was, also with fields that a later version adds, and never from fewer bytes.
fn goes_both_ways<M: Message + PartialEq + std::fmt::Debug>(message: &M) {
    let mut bytes = encode(message);
    assert_eq!(M::parse(&bytes).as_ref(), Ok(message));
    for len in 0..bytes.len() {
        assert!(
            matches!(M::parse(&bytes[..len]), Err(MessageError::TooShort { .. })),
            "{message:?} of {len}"
        );
    }
    bytes.extend_from_slice(b"of a later version");
    assert_eq!(M::parse(&bytes).as_ref(), Ok(message));
}

fn surface() -> Surface {
    Surface { width: 1024, height: 768, stride: 4096, depth: Depth::Xrgb8888, offset: 0, vram_bytes: 8 << 20 }
}

#[test]
fn each_message_goes_both_ways() {
    let mut rects = Rects::NONE;
    assert!(rects.push(Rect { x1: i32::MIN, y1: -1, x2: 0, y2: i32::MAX }));
    assert!(rects.push(Rect { x1: 1, y1: 2, x2: 3, y2: 4 }));
    let part = ShapePart {
        serial: 9,
        width: 2,
        height: 2,
        hot_x: 1,
        hot_y: 0,
        offset: 4,
        bytes: vec![1, 2, 3, 4, 5],
    };
    for message in [
        video::ToConsole::Hello { build: Build::new("0.1.0") },
        video::ToConsole::Surface(surface()),
        video::ToConsole::NoSurface,
        video::ToConsole::Dirty(rects),
        video::ToConsole::Dirty(Rects::NONE),
        video::ToConsole::AllDirty,
        video::ToConsole::PointerShape(part),
        video::ToConsole::PointerPosition { x: -5, y: 70_000, visible: true },
    ] {
        goes_both_ways(&message);
        let memory = matches!(message, video::ToConsole::Surface(_)).then_some(8 << 20);
        assert_eq!(message.memory(), memory);
    }
    for message in [video::FromConsole::Ask, video::FromConsole::Watched(true)] {
        goes_both_ways(&message);
    }
    for message in [
        keyboard::FromConsole::Ask,
        keyboard::FromConsole::Key(Key { scancode: 0x1d, e0: false, e1: true, up: true }),
        keyboard::FromConsole::Unicode(0xd83d),
        keyboard::FromConsole::ReleaseAll,
    ] {
        goes_both_ways(&message);
    }
    for message in [
        keyboard::ToConsole::Hello { build: Build::new("") },
        keyboard::ToConsole::Ready(true),
        keyboard::ToConsole::Leds(Leds { scroll: true, num: false, caps: true }),
    ] {
        goes_both_ways(&message);
    }
    for message in [
        mouse::FromConsole::Ask,
        mouse::FromConsole::Motion { x: 0, y: 32767 },
        mouse::FromConsole::Buttons(0x1f),
        mouse::FromConsole::Wheel { vertical: -1, horizontal: 2 },
        mouse::FromConsole::ReleaseAll,
    ] {
        goes_both_ways(&message);
    }
    goes_both_ways(&mouse::ToConsole::Hello { build: Build::new("x") });
    goes_both_ways(&mouse::ToConsole::Ready(false));
}

#[test]
fn what_belongs_elsewhere_is_unknown() {
    let bytes = encode(&mouse::FromConsole::Ask);
    assert!(matches!(keyboard::FromConsole::parse(&bytes), Err(MessageError::Unknown(0x381))));
    assert!(matches!(mouse::ToConsole::parse(&bytes), Err(MessageError::Unknown(0x381))));
    let mut old = encode(&mouse::FromConsole::Ask);
    old[2] = 0;
    assert!(matches!(mouse::FromConsole::parse(&old), Err(MessageError::Senseless { .. })), "version 0");
}

#[test]
fn a_surface_lies_in_its_memory() {
    let sound = surface();
    assert_eq!(sound.fault(), None);
    let end = Surface { offset: (8 << 20) - 4096 * 768, ..sound };
    assert_eq!(end.fault(), None);
    let narrow = Surface { depth: Depth::Rgb565, width: 2048, ..sound };
    assert_eq!(narrow.fault(), None);
    let wide = Surface { height: MAX_HEIGHT, width: MAX_WIDTH, stride: u32::MAX, ..sound };
    for broken in [
        Surface { width: 0, ..sound },
        Surface { width: MAX_WIDTH + 1, stride: u32::MAX, ..sound },
        Surface { width: u32::MAX, height: u32::MAX, stride: u32::MAX, offset: u64::MAX, ..sound },
        Surface { height: 0, ..sound },
        Surface { height: MAX_HEIGHT + 1, ..sound },
        Surface { stride: 4095, ..sound },
        Surface { stride: 1 << 24, ..sound },
        Surface { offset: end.offset + 1, ..end },
        Surface { offset: u64::MAX, ..sound },
        Surface { vram_bytes: 4096 * 768 - 1, ..sound },
        Surface { vram_bytes: u64::MAX, ..sound },
        wide,
    ] {
        assert!(broken.fault().is_some(), "{broken:?}");
        let parsed = video::ToConsole::parse(&encode(&video::ToConsole::Surface(broken)));
        assert!(matches!(parsed, Err(MessageError::Senseless { .. })), "{broken:?}");
    }
}

#[test]
fn rectangles_are_counted_and_cut() {
    let mut rects = Rects::NONE;
    (0..MAX_RECTS).for_each(|_| assert!(rects.push(Rect::default())));
    assert!(!rects.push(Rect::default()));
    let mut bytes = encode(&video::ToConsole::Dirty(rects));
    bytes.extend_from_slice(&[0; 16]);
    bytes[16] += 1;
    assert!(matches!(video::ToConsole::parse(&bytes), Err(MessageError::Senseless { .. })));
    let all = Rect { x1: i32::MIN, y1: i32::MIN, x2: i32::MAX, y2: i32::MAX };
    assert_eq!(all.within(1024, 768), Some(Rect { x1: 0, y1: 0, x2: 1024, y2: 768 }));
    for outside in [
        Rect { x1: 1024, y1: 0, x2: 2000, y2: 10 },
        Rect { x1: -10, y1: 0, x2: 0, y2: 10 },
        Rect { x1: 10, y1: 0, x2: 10, y2: 10 },
        Rect { x1: 10, y1: 10, x2: 0, y2: 0 },
    ] {
        assert_eq!(outside.within(1024, 768), None, "{outside:?}");
    }
}

#[test]
fn keys_that_no_keyboard_has_are_refused() {
    let key = Key { scancode: 0x1e, e0: false, e1: false, up: false };
    for broken in [
        Key { scancode: 0, ..key },
        Key { scancode: 0x80, ..key },
        Key { scancode: 0xffff, ..key },
        Key { scancode: 0x60, ..key },
        Key { scancode: 0x61, up: true, ..key },
        Key { e0: true, e1: true, ..key },
    ] {
        let parsed = keyboard::FromConsole::parse(&encode(&keyboard::FromConsole::Key(broken)));
        assert!(matches!(parsed, Err(MessageError::Senseless { .. })), "{broken:?}");
    }
    let outside = encode(&mouse::FromConsole::Motion { x: 32768, y: 0 });
    assert!(matches!(mouse::FromConsole::parse(&outside), Err(MessageError::Senseless { .. })));
    assert_eq!(
        mouse::FromConsole::parse(&encode(&mouse::FromConsole::Buttons(0xff))),
        Ok(mouse::FromConsole::Buttons(0x1f))
    );
}

fn pointer(width: u16, height: u16) -> Shape {
    let pixels = (0..usize::from(width) * usize::from(height) * 4).map(|at| (at % 251) as u8).collect();
    Shape { width, height, hot_x: width - 1, hot_y: 0, pixels }
}

fn parts(shape: &Shape, serial: u32) -> Vec<ShapePart> {
    (0..).map_while(|index| shape.part(serial, index * MAX_PART)).collect()
}

#[test]
fn a_shape_is_put_together() {
    for (width, height) in [(1, 1), (32, 32), (96, 96)] {
        let shape = pointer(width, height);
        assert_eq!(shape.fault(), None);
        let mut assembly = Assembly::new();
        let mut whole = None;
        for part in parts(&shape, 3) {
            assert!(whole.is_none());
            let bytes = encode(&video::ToConsole::PointerShape(part));
            let Ok(video::ToConsole::PointerShape(part)) = video::ToConsole::parse(&bytes) else { panic!() };
            whole = assembly.add(part);
        }
        assert_eq!(whole.as_ref(), Some(&shape));
    }
}

#[test]
fn parts_of_two_shapes_make_none() {
    let shape = pointer(96, 96);
    let (one, other) = (parts(&shape, 1), parts(&shape, 2));
    let mut assembly = Assembly::new();
    let mixed = one.iter().take(5).chain(other.iter().skip(5));
    assert!(mixed.cloned().all(|part| assembly.add(part).is_none()));
    // One that is begun anew in the middle is put together all the same.
    let again = one.iter().take(5).chain(&other);
    assert_eq!(again.cloned().filter_map(|part| assembly.add(part)).count(), 1);
    // Twice the same part, or one left out.
    let twice = one.iter().take(2).chain(one.iter().skip(1));
    assert_eq!(twice.cloned().filter_map(|part| assembly.add(part)).count(), 0);
    let missing = one.iter().take(2).chain(one.iter().skip(3));
    assert_eq!(missing.cloned().filter_map(|part| assembly.add(part)).count(), 0);
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    let sound = parts(&pointer(32, 32), 1).remove(0);
    for broken in [
        ShapePart { width: 0, ..sound.clone() },
        ShapePart { width: 97, ..sound.clone() },
        ShapePart { height: 97, ..sound.clone() },
        ShapePart { hot_x: 32, ..sound.clone() },
        ShapePart { hot_y: 32, ..sound.clone() },
        ShapePart { offset: 97, ..sound.clone() },
        ShapePart { offset: u32::MAX, ..sound.clone() },
        ShapePart { bytes: Vec::new(), ..sound.clone() },
    ] {
        let parsed = video::ToConsole::parse(&encode(&video::ToConsole::PointerShape(broken)));
        assert!(matches!(parsed, Err(MessageError::Senseless { .. })), "{parsed:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_a_fall(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = video::ToConsole::parse(&bytes);
        let _ = video::FromConsole::parse(&bytes);
        let _ = keyboard::ToConsole::parse(&bytes);
        let _ = keyboard::FromConsole::parse(&bytes);
        let _ = mouse::ToConsole::parse(&bytes);
        let _ = mouse::FromConsole::parse(&bytes);
    }

    #[test]
    fn a_cut_rectangle_is_inside(x1: i32, y1: i32, x2: i32, y2: i32, width in 1u32..5000, height in 1u32..5000) {
        let rect = Rect { x1, y1, x2, y2 };
        if let Some(cut) = rect.within(width, height) {
            prop_assert!(0 <= cut.x1 && cut.x1 < cut.x2 && cut.x2 <= width as i32);
            prop_assert!(0 <= cut.y1 && cut.y1 < cut.y2 && cut.y2 <= height as i32);
            prop_assert!(cut.x1 >= x1 && cut.x2 <= x2 && cut.y1 >= y1 && cut.y2 <= y2);
        }
    }
}
