//! What `bulkhead screenshot`, `type`, `key` and their like ask of a console.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use seat::Sent;
use seat::keyboard::{FromConsole as KeyEvent, ToConsole as FromKeyboard};

use super::desk::{Client, Desk};
use super::{colours, key};
use crate::peers::MAX_COMMANDS;

#[test]
fn commands_see_and_type() {
    let mut desk = Desk::new();
    desk.show(30, 20);
    desk.draw(desk.surface.whole(), colours(9));
    let mut control = desk.connect("control");
    let answer = desk.command(&mut control, r#"{"screenshot":{}}"#);
    let file = desk.read(&mut control, answer["png"].as_u64().unwrap() as usize);
    let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut bytes).unwrap();
    let seen: Vec<_> =
        bytes.as_chunks().0.iter().map(|[r, g, b]| u32::from_be_bytes([0, *r, *g, *b])).collect();
    assert_eq!(seen, desk.drawn().into_iter().map(|pixel| pixel & 0xff_ffff).collect::<Vec<_>>());
    let answer = desk.command(&mut control, r#"{"type":"x"}"#);
    assert!(answer["error"].as_str().unwrap().contains("listens"), "{answer}");
    assert_eq!(desk.keyboard.send(&FromKeyboard::Ready(true), None).unwrap(), Sent::Whole);
    desk.turns(2);
    desk.keys();
    assert_eq!(desk.command(&mut control, r#"{"type":"hi"}"#).to_string(), r#"{"done":{}}"#);
    assert_eq!(desk.keys(), [key(0x23, false), key(0x23, true), key(0x17, false), key(0x17, true)]);
    assert_eq!(desk.command(&mut control, r#"{"key":"ctrl-c"}"#).to_string(), r#"{"done":{}}"#);
    assert_eq!(desk.keys(), [key(0x1d, false), key(0x2e, false), key(0x1d, true), key(0x2e, true)]);
    let state = desk.command(&mut control, r#"{"state":{}}"#);
    assert_eq!(
        (state["state"]["width"].as_u64(), state["state"]["keyboard"].as_bool()),
        (Some(30), Some(true))
    );
    assert!(desk.command(&mut control, r#"{"token":{}}"#)["error"].is_string());
    assert!(desk.command(&mut control, "nonsense")["error"].is_string());
}

/// As many as there may be.
fn crowd(desk: &Desk) -> Vec<UnixStream> {
    let one = |_| {
        let mut control = desk.connect("control");
        control.write_all(b"{\"type\":\"no\"}\n").unwrap();
        control
    };
    (0..MAX_COMMANDS).map(one).collect()
}

#[test]
fn who_goes_makes_room_for_who_comes_at_the_same_moment() {
    let mut desk = Desk::new();
    let crowd = crowd(&desk);
    desk.turns(3);
    drop(crowd);
    let mut control = desk.connect("control");
    assert!(desk.command(&mut control, r#"{"state":{}}"#)["state"].is_object());
}

#[test]
fn who_finds_no_place_is_told_why() {
    let mut desk = Desk::new();
    let _crowd = crowd(&desk);
    desk.turns(3);
    let mut late = desk.connect("control");
    desk.turns(3);
    let mut line = String::new();
    late.read_to_string(&mut line).unwrap();
    assert!(line.starts_with("{\"error\":\"as many commands as"), "{line}");
}

#[test]
fn commands_wait_for_the_keyboard_and_not_for_ever() {
    let mut desk = Desk::new();
    assert_eq!(desk.keyboard.send(&FromKeyboard::Ready(true), None).unwrap(), Sent::Whole);
    // The guest takes no keys: the way to the keyboard is full.
    let mut client = Client::new(&mut desk);
    for _ in 0..3000 {
        client.stream.write_all(&[255, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x10]).unwrap();
        desk.turns(1);
    }
    let ask = |desk: &Desk, request: &[u8]| {
        let mut control = desk.connect("control");
        control.write_all(request).unwrap();
        control
    };
    let (impatient, mut patient): (Vec<_>, _) =
        ((0..7).map(|_| ask(&desk, b"{\"type\":\"no\"}\n")).collect(), ask(&desk, b"{\"key\":\"z\"}\n"));
    desk.turns(10);
    assert_eq!(patient.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(!desk.is_cut_off(&mut patient));
    // Who gives up has a place for others, and is typed for no more.
    drop(impatient);
    desk.turns(3);
    let mut control = desk.connect("control");
    assert!(desk.command(&mut control, r#"{"state":{}}"#)["state"].is_object());
    let mut keys = Vec::new();
    let line = desk.until(|desk| {
        keys.extend(desk.keys());
        let mut line = [0; 12];
        patient.read(&mut line).ok().map(|_| line)
    });
    assert_eq!(&line, b"{\"done\":{}}\n");
    keys.extend(desk.keys());
    assert_eq!(keys[keys.len() - 2..], [key(0x2c, false), key(0x2c, true)]);
    let typed = keys.iter().filter(|event| {
        **event != key(0x10, false) && !matches!(event, KeyEvent::Ask | KeyEvent::ReleaseAll)
    });
    assert_eq!(typed.count(), 2);
}
