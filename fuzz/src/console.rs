//! What viewers say to the console.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use bulkhead_console::damage::{Damage, Rect};
use bulkhead_console::input::{Holder, Keyboard, MAX_WAITING, Mouse};
use bulkhead_console::rfb::handshake::{Access, World};
use bulkhead_console::rfb::password::{CHALLENGE, Guard, Password};
use bulkhead_console::screen::Picture;
use bulkhead_console::stream::Stream;
use bulkhead_console::viewer::{Pointer, Room, Viewer};
use seat::keyboard::FromConsole;
use seat::shape::Shape;

use crate::Script;

/// What every viewer says first when no password is asked for.
const HELLO: &[u8] = b"RFB 003.008\n\x01\x01";
/// Most that waits for a viewer who reads all there is after each turn: a picture in the most wasteful form, and answers.
const MAX_UNREAD: usize = 1 << 20;

/// A byte: 1 with a password, 2 without the beginning; then pieces, each behind its length (8 bits), between which the picture
/// changes, in size as well before those of certain lengths.
pub fn rfb(data: &[u8]) {
    let mut script = Script::new(data);
    let Some(how) = script.byte() else { return };
    let (Ok((ours, mut theirs)), now) = (UnixStream::pair(), Instant::now()) else { return };
    if ours.set_nonblocking(true).and(theirs.set_nonblocking(true)).is_err() {
        return;
    }
    let password = (how & 1 != 0).then(|| Password::of_file(b"secret")).flatten();
    let mut viewer = Viewer::new(
        Stream::Unix(ours),
        Access { password, tls: false },
        [7; CHALLENGE],
        Holder::viewer(0),
        now,
    );
    let (mut keyboard, mut mouse, mut guard) = (Keyboard::new(), Mouse::new(), Guard::default());
    let shape = Shape { width: 3, height: 2, hot_x: 1, hot_y: 1, pixels: vec![0x80; 24] };
    let mut pointer = Pointer { shape: Some(shape), visible: true, version: 1 };
    let mut picture = drawn(130, 70, 0);
    let mut pieces = vec![if how & 3 == 0 { HELLO } else { &[] }];
    let mut step = 0_u32;
    loop {
        let piece = match pieces.pop() {
            Some(piece) => piece,
            None => {
                let Some(piece) = script.string() else { break };
                if piece.len() % 16 == 15 {
                    picture = drawn(1 + step % 200, 1 + step * 7 % 150, step);
                    viewer.resized();
                }
                piece
            }
        };
        if theirs.write_all(piece).is_err() {
            return;
        }
        step = step.wrapping_add(1);
        pointer.version += u64::from(step % 3 == 0);
        let mut changed = Damage::new(picture.size().0, picture.size().1);
        changed.add(Rect { x1: step % 90, y1: step % 50, x2: step % 90 + 70, y2: step % 50 + 20 });
        viewer.changed(&changed);
        viewer.wake(true, true);
        let mut room = Room {
            keyboard: &mut keyboard,
            mouse: &mut mouse,
            picture: &picture,
            fresh: true,
            pointer: &pointer,
            world: World { guard: &mut guard, now },
            tls: None,
            name: "fuzz",
            full: false,
        };
        let end = viewer.hear(&mut room).and_then(|()| viewer.speak(&room));
        let (mut chunk, mut unread) = ([0; 1 << 16], 0);
        while let Ok(len @ 1..) = theirs.read(&mut chunk) {
            unread += len;
            assert!(unread <= MAX_UNREAD, "{unread} bytes for one turn");
        }
        if end.is_err() {
            break;
        }
    }
    viewer.release(&mut keyboard, &mut mouse);
    let mut down = std::collections::BTreeSet::new();
    let mut events = 0;
    while let Some(event) = keyboard.front() {
        if let FromConsole::Key(key) = event {
            assert_eq!(key.fault(), None);
            let name = (key.scancode, key.e0);
            if key.up {
                down.remove(&name)
            } else {
                down.insert(name)
            };
        }
        keyboard.pop();
        events += 1;
    }
    assert!(down.is_empty(), "keys stay pressed: {down:?}");
    assert!(events <= 4 * MAX_WAITING);
}

/// A picture with something in it.
fn drawn(width: u32, height: u32, seed: u32) -> Picture {
    let pixel = |at: u32| if at % 7 < 3 { at.wrapping_mul(seed) } else { at / 50 };
    Picture::of(width, height, (0..width * height).map(pixel).collect())
}
