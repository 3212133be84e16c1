//! The whole console, in one thread with its devices and viewers.

mod commands;
mod crowd;
mod desk;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use seat::keyboard::{FromConsole as KeyEvent, Key, Leds, ToConsole as FromKeyboard};
use seat::mouse::FromConsole as MouseEvent;
use seat::shape::Shape;
use seat::video::{FromConsole, Rect, ToConsole};
use seat::{Build, Sent};

use self::desk::{Client, Desk};
use crate::console::{Console, ConsoleError};
use crate::peers::MAX_VIEWERS;
use crate::rfb::password::{CHALLENGE, Password};
use crate::stream::tests::{client, tls_config};

fn colours(seed: u32) -> impl Fn(u32, u32) -> u32 {
    move |x, y| (x * 2654435 + y * 40503 + seed * 97).wrapping_mul(0x9e37_79b1) >> 8
}

fn key(scancode: u16, up: bool) -> KeyEvent {
    KeyEvent::Key(Key { scancode, e0: false, e1: false, up })
}

fn said(desk: &mut Desk) -> Vec<FromConsole> {
    desk.turns(2);
    std::iter::from_fn(|| desk.video.receive().unwrap()).map(|received| received.message).collect()
}

#[test]
fn a_viewer_sees_what_the_guest_draws() {
    let mut desk = Desk::new();
    desk.show(200, 130);
    let mut client = Client::new(&mut desk);
    assert_eq!(client.size, (200, 130));
    client.ask(false);
    client.update(&mut desk);
    for round in 1..60_i32 {
        let (x1, y1) = (round * 37 % 190, round * 11 % 125);
        let (x2, y2) = (x1 + 1 + round * 7 % (200 - x1), y1 + 1 + round * 3 % (130 - y1));
        client.ask(true);
        desk.draw(Rect { x1, y1, x2, y2 }, colours(round as u32));
        client.update(&mut desk);
        assert!(client.picture == desk.drawn(), "round {round}");
    }
}

#[test]
fn what_is_drawn_again_costs_nothing() {
    let mut desk = Desk::new();
    desk.show(200, 130);
    let mut client = Client::new(&mut desk);
    client.ask(false);
    client.update(&mut desk);
    client.ask(true);
    desk.draw(desk.surface.whole(), |_, _| 0);
    std::thread::sleep(Duration::from_millis(20));
    desk.turns(5);
    desk.draw(Rect { x1: 3, y1: 4, x2: 5, y2: 6 }, |_, _| 7);
    client.update(&mut desk);
    assert_eq!(client.encodings, [0]);
    assert!(client.picture == desk.drawn());
}

#[test]
fn the_device_knows_whether_anybody_looks() {
    let mut desk = Desk::new();
    assert_eq!(said(&mut desk), [FromConsole::Ask, FromConsole::Watched(false)]);
    let client = Client::new(&mut desk);
    assert_eq!(said(&mut desk), [FromConsole::Watched(true)]);
    desk.say(&ToConsole::Hello { build: Build::new("test") });
    assert_eq!(said(&mut desk), [FromConsole::Watched(true)]);
    drop(client);
    assert_eq!(said(&mut desk), [FromConsole::Watched(false)]);
}

#[test]
fn the_picture_comes_back_with_a_new_device() {
    let mut desk = Desk::new();
    desk.show(100, 70);
    let mut client = Client::new(&mut desk);
    client.ask(false);
    client.update(&mut desk);
    client.ask(true);
    desk.say(&ToConsole::Hello { build: Build::new("test") });
    desk.say(&ToConsole::NoSurface);
    desk.show(100, 70);
    desk.draw(Rect { x1: 0, y1: 0, x2: 100, y2: 70 }, colours(3));
    let drawn = desk.drawn();
    client.follow(&mut desk, &drawn);
}

#[test]
fn a_picture_of_another_size_is_announced() {
    let mut desk = Desk::new();
    desk.show(100, 70);
    let (mut follows, mut stays) = (Client::new(&mut desk), Client::new(&mut desk));
    follows.understand(&[0, -223]);
    for client in [&mut follows, &mut stays] {
        client.ask(false);
        client.update(&mut desk);
        client.ask(true);
    }
    desk.show(60, 90);
    desk.draw(desk.surface.whole(), colours(5));
    follows.update(&mut desk);
    assert_eq!((follows.encodings.as_slice(), follows.size), (&[-223][..], (60, 90)));
    follows.ask(true);
    let drawn = desk.drawn();
    follows.follow(&mut desk, &drawn);
    // Who cannot follow sees what fits, and black.
    let pixel = |index: usize| {
        let (x, y) = (index % 100, index / 100);
        if x < 60 { drawn[y * 60 + x] } else { 0 }
    };
    let wanted: Vec<_> = (0..100 * 70).map(pixel).collect();
    stays.follow(&mut desk, &wanted);
    // The pixel that is pointed at is the guest's, for both of them.
    desk.clicks();
    for client in [&mut follows, &mut stays] {
        client.stream.write_all(&[5, 1, 0, 30, 0, 45]).unwrap();
        let middle = MouseEvent::Motion { x: (61 * 32768 / 120) as u16, y: (91 * 32768 / 180) as u16 };
        assert_eq!(desk.clicks()[0], middle);
    }
}

#[test]
fn a_viewer_that_never_reads_delays_nobody() {
    let mut desk = Desk::new();
    desk.show(500, 400);
    let (mut deaf, mut client) = (Client::new(&mut desk), Client::new(&mut desk));
    client.ask(false);
    client.update(&mut desk);
    for round in 0..20 {
        deaf.ask(false);
        client.ask(true);
        desk.draw(desk.surface.whole(), colours(round));
        client.update(&mut desk);
        assert!(client.picture == desk.drawn());
    }
}

#[test]
fn keys_go_to_the_guest_and_none_stays_pressed() {
    let mut desk = Desk::new();
    assert_eq!(desk.keys(), [KeyEvent::Ask, KeyEvent::ReleaseAll]);
    assert_eq!(desk.clicks(), [MouseEvent::Ask, MouseEvent::ReleaseAll]);
    let mut client = Client::new(&mut desk);
    client.stream.write_all(&[4, 1, 0, 0, 0, 0, 0, 0x61]).unwrap();
    client.stream.write_all(&[255, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x10]).unwrap();
    client.stream.write_all(&[5, 1, 0, 0, 0, 0]).unwrap();
    assert_eq!(desk.keys(), [key(0x1e, false), key(0x10, false)]);
    // The middle of the first of 640 by 480 pixels.
    assert_eq!(desk.clicks(), [MouseEvent::Motion { x: 25, y: 34 }, MouseEvent::Buttons(1)]);
    drop(client);
    assert_eq!(desk.keys(), [key(0x1e, true), key(0x10, true)]);
    assert_eq!(desk.clicks(), [MouseEvent::Buttons(0)]);
}

#[test]
fn a_keyboard_that_does_not_listen_loses_no_release() {
    let mut desk = Desk::new();
    let mut client = Client::new(&mut desk);
    for round in 0..3000_u32 {
        let code = 0x10 + (round / 2 % 8) as u8;
        client.stream.write_all(&[255, 0, 0, (round % 2 == 0).into(), 0, 0, 0, 0, 0, 0, 0, code]).unwrap();
        desk.turns(1);
    }
    drop(client);
    let mut down = std::collections::BTreeSet::new();
    loop {
        let events = desk.keys();
        if events.is_empty() {
            break;
        }
        for event in events {
            if let KeyEvent::Key(key) = event {
                if key.up {
                    down.remove(&key.scancode)
                } else {
                    down.insert(key.scancode)
                };
            }
        }
    }
    assert!(down.is_empty(), "{down:?}");
}

#[test]
fn pointers_lamps_and_scan_codes_are_told() {
    let mut desk = Desk::new();
    let mut client = Client::new(&mut desk);
    client.understand(&[0, -314, -261, -258]);
    client.ask(false);
    client.update(&mut desk);
    assert_eq!(client.encodings, [-258, -261, 0]);
    let shape = Shape { width: 2, height: 3, hot_x: 0, hot_y: 0, pixels: vec![9; 24] };
    client.ask(true);
    desk.say(&ToConsole::PointerShape(shape.part(1, 0).unwrap()));
    client.update(&mut desk);
    assert_eq!(client.encodings, [-314]);
    client.ask(true);
    let leds = FromKeyboard::Leds(Leds { caps: true, ..Leds::default() });
    assert_eq!(desk.keyboard.send(&leds, None).unwrap(), Sent::Whole);
    client.update(&mut desk);
    assert_eq!(client.encodings, [-261]);
}

#[test]
fn garbage_is_cut_off() {
    let mut desk = Desk::new();
    let mut stream = desk.connect("rfb");
    stream.write_all(&[0xff; 5000]).unwrap();
    assert!(desk.is_cut_off(&mut stream));
    let mut client = Client::new(&mut desk);
    client.stream.write_all(&[6, 0, 0, 0, 0x70, 0, 0, 0]).unwrap();
    assert!(desk.is_cut_off(&mut client.stream));
    let mut client = Client::new(&mut desk);
    client.stream.write_all(&[6, 0, 0, 0, 0, 0, 0, 5, 9, 9, 9, 9, 9, 4, 1, 0, 0, 0, 0, 0, 0x61]).unwrap();
    assert!(!desk.is_cut_off(&mut client.stream), "text for the clipboard is read over");
    assert!(desk.keys().contains(&key(0x1e, false)));
}

#[test]
fn there_are_only_so_many_viewers() {
    let mut desk = Desk::new();
    let _clients: Vec<_> = (0..MAX_VIEWERS).map(|_| Client::new(&mut desk)).collect();
    let mut stream = desk.connect("rfb");
    stream.write_all(b"RFB 003.008\n\x01\x01").unwrap();
    assert!(desk.is_cut_off(&mut stream));
    let mut all: Vec<_> = (0..100).map(|_| desk.connect("rfb")).collect();
    desk.turns(20);
    assert!(all.iter_mut().filter_map(|stream| desk.is_cut_off(stream).then_some(())).count() >= 84);
}

#[test]
fn who_comes_by_tcp_has_to_know_the_password() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut desk = Desk::with(Some(listener), Some("secret"), None);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream.write_all(b"RFB 003.008\n\x01\x01").unwrap();
    assert_eq!(desk.read(&mut stream, 14), b"RFB 003.008\n\x01\x02");
    assert!(desk.is_cut_off(&mut stream));
}

#[test]
fn the_password_is_asked_for_inside_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut desk = Desk::with(Some(listener), Some("secret"), Some(tls_config()));
    desk.show(100, 70);
    desk.draw(desk.surface.whole(), colours(1));
    let drawn = desk.drawn();
    // The viewer waits where it likes, so it is another thread.
    let viewer = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let hear = |stream: &mut dyn Read, len: usize| {
            let mut bytes = vec![0; len];
            stream.read_exact(&mut bytes).unwrap();
            bytes
        };
        stream.write_all(b"RFB 003.008\n\x13\0\x02\0\0\x01\x05").unwrap();
        assert_eq!(hear(&mut stream, 12 + 2 + 2 + 6 + 1)[12..], [1, 19, 0, 2, 0, 1, 0, 0, 1, 5, 1]);
        let mut stream = client(stream);
        let challenge: [u8; CHALLENGE] = hear(&mut stream, CHALLENGE).try_into().unwrap();
        let answer = Password::of_file(b"secret").unwrap().answer(&challenge);
        stream.write_all(&answer).unwrap();
        stream.write_all(&[1, 3, 0, 0, 0, 0, 0, 0, 100, 0, 70]).unwrap();
        assert_eq!(hear(&mut stream, 4), [0; 4]);
        hear(&mut stream, 24 + 5 + 4 + 12);
        hear(&mut stream, 100 * 70 * 4)
    });
    desk.until(|_| viewer.is_finished().then_some(()));
    let pixels = viewer.join().unwrap();
    let pixels: Vec<_> = pixels.as_chunks().0.iter().map(|pixel| u32::from_le_bytes(*pixel)).collect();
    assert!(pixels == drawn);
}

#[test]
fn a_tcp_socket_without_a_password_is_refused_encrypted_or_not() {
    for tls in [None, Some(tls_config())] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let setting = crate::console::Setting {
            name: String::new(),
            video: seat::video::DeviceEnd::pair().unwrap().1,
            keyboard: seat::keyboard::DeviceEnd::pair().unwrap().1,
            mouse: seat::mouse::DeviceEnd::pair().unwrap().1,
            listeners: vec![crate::listener::Listener::new(listener.into()).unwrap()],
            control: None,
            web: None,
            password: None,
            tls,
        };
        assert!(matches!(Console::new(setting), Err(ConsoleError::Open)));
    }
}

#[test]
fn while_nothing_happens_nothing_is_done() {
    let mut desk = Desk::new();
    desk.show(200, 130);
    let mut client = Client::new(&mut desk);
    client.ask(false);
    client.update(&mut desk);
    client.ask(true);
    desk.turns(10);
    for _ in 0..3 {
        let begin = Instant::now();
        desk.console.turn(Some(Duration::from_millis(30))).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(29));
    }
    assert_eq!(desk.console.until_deadline(None), None, "no timer runs");
}

#[test]
fn a_flood_of_dirt_is_looked_at_in_peace() {
    let mut desk = Desk::new();
    desk.show(200, 130);
    let mut client = Client::new(&mut desk);
    client.ask(false);
    client.update(&mut desk);
    let (begin, mut updates) = (Instant::now(), 0_u32);
    while begin.elapsed() < Duration::from_millis(200) {
        client.ask(true);
        desk.draw(Rect { x1: 0, y1: 0, x2: 2, y2: 2 }, colours(updates));
        client.update(&mut desk);
        updates += 1;
    }
    assert!((5..=30).contains(&updates), "{updates} updates in 200 ms");
}
