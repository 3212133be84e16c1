//! What the handshake and the parts that need no console do is tested where they are; here is what only a viewer can get wrong.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::*;
use crate::rfb::password::{Guard, Password};
use crate::stream::tests::tls_config;

/// A viewer that has come so far, and its other end.
fn viewer() -> (Viewer, UnixStream) {
    viewer_with(Access::default(), Instant::now())
}

fn viewer_with(access: Access, now: Instant) -> (Viewer, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let who = Holder::viewer(0);
    (Viewer::new(Stream::Unix(ours), access, [0; CHALLENGE], who, now), theirs)
}

/// A turn in a room with this picture.
fn turn(viewer: &mut Viewer, picture: &Picture, now: Instant, full: bool) -> Result<(), End> {
    turn_with(viewer, picture, now, full, None)
}

/// The same with TLS.
fn turn_with(
    viewer: &mut Viewer,
    picture: &Picture,
    now: Instant,
    full: bool,
    tls: Option<&TlsConfig>,
) -> Result<(), End> {
    viewer.wake(true, true);
    let mut room = Room {
        keyboard: &mut Keyboard::new(),
        mouse: &mut Mouse::new(),
        picture,
        fresh: true,
        pointer: &Pointer::default(),
        world: World { guard: &mut Guard::default(), now },
        tls,
        name: "vm",
        full,
    };
    viewer.hear(&mut room)?;
    viewer.speak(&room)
}

const HELLO: &[u8] = b"RFB 003.008\n\x01\x01";

#[test]
fn a_format_is_for_the_next_update() {
    let (mut viewer, mut peer) = viewer();
    let picture = Picture::of(600, 400, vec![0x0011_2233; 240_000]);
    peer.write_all(HELLO).unwrap();
    // All of it, and before that has been read: pixels of two bytes, and all of it once more.
    peer.write_all(&[3, 0, 0, 0, 0, 0, 2, 88, 1, 144]).unwrap();
    turn(&mut viewer, &picture, Instant::now(), false).unwrap();
    assert!(viewer.sender.is_updating(), "a megabyte does not fit into a socket");
    peer.write_all(&[0, 0, 0, 0, 16, 16, 0, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0]).unwrap();
    peer.write_all(&[3, 0, 0, 0, 0, 0, 2, 88, 1, 144]).unwrap();
    let mut got = Vec::new();
    let mut chunk = [0; 65536];
    for _ in 0..1000 {
        turn(&mut viewer, &picture, Instant::now(), false).unwrap();
        while let Ok(len) = peer.read(&mut chunk) {
            got.extend_from_slice(&chunk[..len]);
        }
    }
    let init = 12 + 2 + 4 + 24 + 2;
    let first = &got[init..init + 4 + 12 + 960_000];
    assert_eq!(first[4..16], [0, 0, 0, 0, 2, 88, 1, 144, 0, 0, 0, 0]);
    assert!(first[16..].as_chunks().0.iter().all(|pixel| *pixel == [0x33, 0x22, 0x11, 0]));
    let second = &got[init + 16 + 960_000..];
    let pieces = 2 * 7;
    assert_eq!(second[..4], [0, 0, 0, pieces]);
    assert_eq!(second.len(), 4 + usize::from(pieces) * 12 + 480_000);
}

#[test]
fn an_update_of_a_picture_that_is_gone_ends_as_it_began() {
    let (mut viewer, mut peer) = viewer();
    let picture = Picture::of(600, 400, vec![0x0011_2233; 240_000]);
    peer.write_all(HELLO).unwrap();
    peer.write_all(&[3, 0, 0, 0, 0, 0, 2, 88, 1, 144]).unwrap();
    turn(&mut viewer, &picture, Instant::now(), false).unwrap();
    let (mut got, mut chunk) = (0, [0; 65536]);
    for _ in 0..1000 {
        turn(&mut viewer, &Picture::black(3, 3), Instant::now(), false).unwrap();
        while let Ok(len) = peer.read(&mut chunk) {
            got += len;
        }
    }
    assert_eq!(got, 12 + 2 + 4 + 24 + 2 + 16 + 960_000);
}

#[test]
fn who_does_not_come_to_the_point_is_cut_off() {
    let (mut viewer, _peer) = viewer();
    let picture = Picture::black(4, 4);
    let begin = Instant::now();
    turn(&mut viewer, &picture, begin, false).unwrap();
    assert!(viewer.deadline().is_some());
    assert!(matches!(turn(&mut viewer, &picture, begin + 2 * HANDSHAKE, false), Err(End::Late)));
    let (mut viewer, mut peer) = self::viewer();
    peer.write_all(HELLO).unwrap();
    assert!(matches!(turn(&mut viewer, &picture, begin, true), Err(End::Full)));
}

#[test]
fn people_have_time_for_passwords_and_certificates() {
    let picture = Picture::black(4, 4);
    let begin = Instant::now();
    let later = begin + 3 * HANDSHAKE;
    let password = Password::of_file(b"secret");
    let locked = |tls| Access { password: password.clone(), tls };
    // The first is asked for the password, the second is about to begin TLS.
    for (access, agreed) in [(locked(false), &b"\x02"[..]), (locked(true), b"\x13\0\x02\0\0\x01\x05")] {
        let (mut viewer, mut peer) = viewer_with(access.clone(), begin);
        peer.write_all(b"RFB 003.008\n").unwrap();
        turn(&mut viewer, &picture, begin, false).unwrap();
        assert_eq!(viewer.deadline(), Some(begin + HANDSHAKE), "programs need no more");
        peer.write_all(agreed).unwrap();
        viewer.wake(true, true);
        for round in 0..agreed.len() {
            let result = turn_with(&mut viewer, &picture, begin, false, Some(&tls_config()));
            assert!(result.is_ok(), "{round}: {result:?}");
        }
        turn(&mut viewer, &picture, later, false).unwrap();
        let deadline = viewer.deadline().unwrap();
        assert_eq!(deadline, begin + HANDSHAKE + PEOPLE);
        if !access.tls {
            // The right answer does not shorten it.
            peer.write_all(&access.password.unwrap().answer(&[0; CHALLENGE])).unwrap();
            turn(&mut viewer, &picture, later, false).unwrap();
            assert_eq!(viewer.deadline(), Some(deadline));
        }
        assert!(matches!(turn(&mut viewer, &picture, deadline, false), Err(End::Late)));
    }
}

#[test]
fn who_asks_without_reading_is_cut_off() {
    let (mut viewer, mut peer) = viewer();
    let picture = Picture::black(4, 4);
    peer.write_all(HELLO).unwrap();
    let mut result = turn(&mut viewer, &picture, Instant::now(), false);
    let mut fence = vec![248, 0, 0, 0, 0x80, 0, 0, 1, 64];
    fence.extend_from_slice(&[7; 64]);
    for _ in 0..100_000 {
        if result.is_err() {
            break;
        }
        let _ = peer.write(&fence);
        result = turn(&mut viewer, &picture, Instant::now(), false);
    }
    assert!(matches!(result, Err(End::Deaf)), "{result:?}");
}

#[test]
fn who_types_while_much_waits_for_him_stays() {
    let (mut viewer, mut peer) = viewer();
    let picture = Picture::of(2000, 400, (0..800_000).collect());
    peer.write_all(HELLO).unwrap();
    peer.write_all(&[0, 0, 0, 0, 32, 24, 1, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]).unwrap();
    peer.write_all(&[3, 0, 0, 0, 0, 0, 7, 208, 1, 144]).unwrap();
    for _ in 0..20 {
        turn(&mut viewer, &picture, Instant::now(), false).unwrap();
    }
    assert!(viewer.sender.out().len() > MAX_ANSWERS, "a piece of 128 KiB does not fit into a full socket");
    for _ in 0..20 {
        peer.write_all(&[4, 1, 0, 0, 0, 0, 0, 0x61]).unwrap();
        turn(&mut viewer, &picture, Instant::now(), false).unwrap();
    }
}
