//! Two ends of a pair, one of them perhaps hostile.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use ipc::shm::{Mapping, SharedMemory};
use seat::video::{ConsoleEnd, DeviceEnd, FromConsole, Surface, ToConsole};
use seat::{MAX_MESSAGE, Message, MessageError, SeatError, Sent, keyboard};

const VRAM: u64 = 1 << 20;

fn pair() -> (DeviceEnd, ConsoleEnd) {
    DeviceEnd::pair().unwrap()
}

fn surface() -> ToConsole {
    let depth = seat::video::Depth::Rgb565;
    ToConsole::Surface(Surface { width: 640, height: 480, stride: 1280, depth, offset: 0, vram_bytes: VRAM })
}

fn encode(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

#[track_caller]
fn refused(console: &ConsoleEnd, why: MessageError) {
    match console.receive() {
        Err(SeatError::Peer(found)) => assert_eq!(found, why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_surface_comes_with_its_memory() {
    let (device, console) = pair();
    let memory = SharedMemory::create("vram", VRAM).unwrap();
    assert_eq!(device.send(&surface(), Some(&memory)).unwrap(), Sent::Whole);
    let received = console.receive().unwrap().unwrap();
    assert_eq!(received.message, surface());
    let received = received.memory.unwrap();
    Mapping::new(&memory, 0, VRAM).unwrap().write(5, b"x");
    let mut byte = [0];
    Mapping::new(&received, 0, VRAM).unwrap().read(5, &mut byte);
    assert_eq!(&byte, b"x");
    assert!(console.receive().unwrap().is_none());
}

#[test]
fn memory_that_is_not_what_it_says_is_refused_and_the_next_message_heard() {
    let (device, console) = pair();
    let short = SharedMemory::create("short", VRAM / 2).unwrap();
    let unsealed = nix::sys::memfd::memfd_create("x", nix::sys::memfd::MFdFlags::empty()).unwrap();
    nix::unistd::ftruncate(&unsealed, VRAM as i64).unwrap();
    let good = SharedMemory::create("good", VRAM).unwrap();
    let bytes = encode(&surface());
    for fds in [vec![], vec![short.as_fd()], vec![unsealed.as_fd()], vec![good.as_fd(); 2]] {
        assert_eq!(device.send_bytes(&bytes, &fds).unwrap(), Sent::Whole);
        refused(&console, MessageError::Memory);
    }
    assert_eq!(device.send_bytes(&encode(&ToConsole::NoSurface), &[good.as_fd()]).unwrap(), Sent::Whole);
    refused(&console, MessageError::Memory);
    assert_eq!(device.send(&ToConsole::NoSurface, None).unwrap(), Sent::Whole);
    assert_eq!(console.receive().unwrap().unwrap().message, ToConsole::NoSurface);
}

#[test]
fn what_is_no_message_is_skipped() {
    let (device, console) = pair();
    let _ = device.send_bytes(b"x", &[]).unwrap();
    refused(&console, MessageError::TooShort { kind: 0, have: 1, need: 16 });
    let _ = device.send_bytes(&[7; 16], &[]).unwrap();
    refused(&console, MessageError::Unknown(0x707));
    let _ = device.send_bytes(&vec![1; MAX_MESSAGE + 1], &[]).unwrap();
    refused(&console, MessageError::TooLong);
    let _ = device.send_bytes(b"", &[]).unwrap();
    let _ = device.send(&ToConsole::AllDirty, None).unwrap();
    refused(&console, MessageError::Empty);
    assert_eq!(console.receive().unwrap().unwrap().message, ToConsole::AllDirty);
}

#[test]
fn a_peer_that_does_not_read_holds_nobody_up() {
    let (device, console) = pair();
    let memory = SharedMemory::create("vram", VRAM).unwrap();
    let sent = (0..100_000).take_while(|_| device.send(&surface(), Some(&memory)).unwrap() == Sent::Whole);
    let sent = sent.count();
    assert!((10..100_000).contains(&sent), "{sent}");
    let mut numbers = Vec::new();
    while let Some(received) = console.receive().unwrap() {
        assert!(received.memory.is_some());
        numbers.push(received.number);
    }
    assert_eq!(numbers.len(), sent);
    assert!(numbers.windows(2).all(|two| two[1] == two[0] + 1), "what was not sent has no number");
    assert_eq!(device.send(&ToConsole::AllDirty, None).unwrap(), Sent::Whole, "there is room again");
}

#[test]
fn what_was_said_survives_and_the_next_process_goes_on() {
    let (device, console) = pair();
    let _ = device.send(&ToConsole::NoSurface, None).unwrap();
    // The supervisor keeps both ends.
    let kept = device.as_fd().try_clone_to_owned().unwrap();
    drop(device);
    let device = DeviceEnd::from_fd(kept).unwrap();
    let _ = device.send(&ToConsole::AllDirty, None).unwrap();
    let first = console.receive().unwrap().unwrap();
    let second = console.receive().unwrap().unwrap();
    assert_eq!((first.message, second.message), (ToConsole::NoSurface, ToConsole::AllDirty));
    assert_ne!(first.number, second.number);
    let _ = console.send(&FromConsole::Ask, None).unwrap();
    assert_eq!(device.receive().unwrap().unwrap().message, FromConsole::Ask);
}

#[test]
fn a_peeked_message_stays() {
    let (device, console) = keyboard::DeviceEnd::pair().unwrap();
    assert!(device.peek().unwrap().is_none());
    let _ = console.send(&keyboard::FromConsole::Unicode(65), None).unwrap();
    let _ = console.send_bytes(b"nonsense", &[]).unwrap();
    let _ = console.send_bytes(b"", &[]).unwrap();
    let _ = console.send(&keyboard::FromConsole::ReleaseAll, None).unwrap();
    for _ in 0..3 {
        assert_eq!(device.peek().unwrap().unwrap().message, keyboard::FromConsole::Unicode(65));
    }
    device.skip().unwrap();
    for _ in 0..3 {
        assert!(device.peek().unwrap_err().is_peers_fault());
    }
    device.skip().unwrap();
    for _ in 0..3 {
        assert!(matches!(device.peek(), Err(SeatError::Peer(MessageError::Empty))));
    }
    device.skip().unwrap();
    let number = device.peek().unwrap().unwrap().number;
    let received = device.receive().unwrap().unwrap();
    assert_eq!((received.message, received.number), (keyboard::FromConsole::ReleaseAll, number));
    device.skip().unwrap();
}

#[test]
fn what_lies_behind_empty_datagrams_is_found_and_an_end_is_not_read_without_a_pause() {
    let (device, console) = pair();
    while console.send_bytes(b"", &[]).unwrap() == Sent::Whole {}
    let (mut lulls, mut found) = (0, None);
    while found.is_none() {
        match device.receive() {
            Ok(None) => {
                assert!(device.look_again().is_some(), "there is more, and nobody rings");
                lulls += 1;
                // Only the next console can say something.
                let _ = console.send(&FromConsole::Ask, None).unwrap();
            }
            Ok(Some(received)) => found = Some(received.message),
            Err(error) => assert!(error.is_peers_fault()),
        }
    }
    assert_eq!((found, device.look_again()), (Some(FromConsole::Ask), None));
    assert!((1..100).contains(&lulls), "{lulls}");
    while device.receive().unwrap().is_some() {}
    assert_eq!(device.look_again(), None, "there is nothing, and somebody will ring");
    drop(console);
    let met = (0..1000).take_while(|_| !matches!(device.receive(), Ok(None))).count();
    assert!((1..1000).contains(&met), "{met}");
    assert!(device.look_again().is_some());
}

#[test]
fn other_descriptors_are_no_seats() {
    let memory = SharedMemory::create("vram", VRAM).unwrap();
    assert!(matches!(DeviceEnd::from_fd(memory.into()), Err(SeatError::NotASeat { .. })));
    assert!(matches!(DeviceEnd::inherited(2), Err(SeatError::NotASeat { number: 2, .. })));
    let (device, _console) = pair();
    let number = device.as_raw_fd();
    let flags = nix::fcntl::fcntl(OwnedFd::from(device), nix::fcntl::FcntlArg::F_GETFL).unwrap();
    assert_ne!(flags & libc::O_NONBLOCK, 0, "descriptor {number}");
}
