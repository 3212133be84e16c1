use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vsp::ipc::shm::{PagesMapping, SharedMemory};

use super::super::{Backend, Offloads};
use super::*;

mod kills;
mod passt;

fn pages() -> PagesMapping {
    PagesMapping::new(&SharedMemory::create("pages", 128 * 1024).unwrap()).unwrap()
}

/// A backend that serves, and the other end.
fn pair() -> (Backend, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut backend = Backend::Stream(Stream::new(ours.into()).unwrap());
    backend.start().unwrap();
    (backend, theirs)
}

/// Another process of the device, on the same socket.
fn successor(backend: &Backend) -> Backend {
    let Backend::Stream(stream) = backend else { unreachable!() };
    let mut next = Backend::Stream(Stream::new(stream.socket.try_clone().unwrap()).unwrap());
    next.start().unwrap();
    next
}

fn send(backend: &mut Backend, frame: &[u8]) -> Sent {
    backend.send(0, &VnetHeader::default(), frame, []).unwrap()
}

fn try_receive(backend: &mut Backend) -> io::Result<Option<Vec<u8>>> {
    let pages = pages();
    match backend.receive(0, [pages.span(0, pages.len()).unwrap()])? {
        Received::Frame { vnet, len } => {
            assert_eq!(vnet, VnetHeader::default());
            let mut frame = vec![0; len];
            pages.copy_out(0, &mut frame).unwrap();
            Ok(Some(frame))
        }
        Received::Nothing => Ok(None),
        Received::Dropped => panic!("dropped"),
    }
}

fn receive(backend: &mut Backend) -> Option<Vec<u8>> {
    try_receive(backend).unwrap()
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

fn next_of(peer: &mut UnixStream) -> Vec<u8> {
    let mut prefix = [0; PREFIX];
    peer.read_exact(&mut prefix).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

fn frame(tag: u8, len: usize) -> Vec<u8> {
    vec![tag; len]
}

#[test]
fn frames_go_both_ways() {
    let (mut backend, mut peer) = pair();
    assert_eq!((backend.queues(), backend.offloads()), (1, Offloads::NONE));
    for len in [14, 60, 1514, 9014, 65_549] {
        peer.write_all(&framed(&frame(7, len))).unwrap();
        assert_eq!(receive(&mut backend).unwrap(), frame(7, len));
        assert_eq!(receive(&mut backend), None);
        backend.settle().unwrap();
    }
    let longest = backend.longest_frame();
    assert!(longest >= 9022);
    for len in [14, 1514, longest] {
        assert_eq!(send(&mut backend, &frame(9, len)), Sent::Whole);
        assert_eq!(next_of(&mut peer), frame(9, len));
    }
}

#[test]
fn a_frame_is_gathered_from_shared_pages() {
    let (mut backend, mut peer) = pair();
    let pages = pages();
    let mut expected = frame(1, 20);
    let mut spans = Vec::new();
    // More pieces than have room on the stack.
    for piece in 0..100 {
        pages.copy_in(piece * 100, &[piece as u8; 10]).unwrap();
        spans.push(pages.span(piece * 100, 10).unwrap());
        expected.extend([piece as u8; 10]);
    }
    assert_eq!(
        backend.send(0, &VnetHeader::default(), &expected[..20], spans.iter().copied()).unwrap(),
        Sent::Whole
    );
    assert_eq!(next_of(&mut peer), expected);
    let spans = vec![pages.span(0, 1).unwrap(); 2000];
    assert_eq!(backend.send(0, &VnetHeader::default(), &[0; 20], spans).unwrap(), Sent::Dropped);
}

#[test]
fn what_nobody_could_take_is_dropped() {
    let (mut backend, mut peer) = pair();
    let longest = backend.longest_frame();
    assert_eq!(send(&mut backend, &frame(1, 13)), Sent::Dropped);
    assert_eq!(send(&mut backend, &frame(1, longest + 1)), Sent::Dropped);
    let unfinished = VnetHeader { flags: VnetHeader::NEEDS_CSUM, ..VnetHeader::default() };
    assert_eq!(backend.send(0, &unfinished, &frame(1, 60), []).unwrap(), Sent::Dropped);
    let long = VnetHeader { gso_type: VnetHeader::GSO_TCPV4, ..VnetHeader::default() };
    assert_eq!(backend.send(0, &long, &frame(1, 60), []).unwrap(), Sent::Dropped);
    assert_eq!(send(&mut backend, &frame(2, 60)), Sent::Whole);
    assert_eq!(next_of(&mut peer), frame(2, 60), "nothing of the dropped ones was sent");

    peer.write_all(&framed(&frame(1, 13))).unwrap();
    peer.write_all(&framed(&frame(3, 200))).unwrap();
    peer.write_all(&framed(&frame(4, 100))).unwrap();
    let pages = pages();
    let small = pages.span(0, 100).unwrap();
    assert_eq!(backend.receive(0, [small]).unwrap(), Received::Dropped);
    assert_eq!(backend.receive(0, [small]).unwrap(), Received::Dropped);
    let fits = Received::Frame { vnet: VnetHeader::default(), len: 100 };
    assert_eq!(backend.receive(0, [small]).unwrap(), fits);
    assert_eq!(backend.receive(0, [small]).unwrap(), Received::Nothing);
}

#[test]
fn a_full_socket_takes_a_frame_later() {
    let (mut backend, mut peer) = pair();
    let mut sent = 0u32;
    let big = |number: u32| [&number.to_be_bytes(), &frame(5, 9000)[..]].concat();
    while send(&mut backend, &big(sent)) == Sent::Whole {
        sent += 1;
        assert!(sent < 10_000);
    }
    assert_eq!(send(&mut backend, &big(sent)), Sent::Later);
    let mut seen = 0;
    // Whatever was refused has left no trace.
    while sent < 500 {
        assert_eq!(next_of(&mut peer), big(seen));
        seen += 1;
        while sent < 500 && send(&mut backend, &big(sent)) == Sent::Whole {
            sent += 1;
        }
    }
    for number in seen..sent {
        assert_eq!(next_of(&mut peer), big(number));
    }
}

#[test]
fn a_frame_that_comes_in_pieces_is_one_frame() {
    let (mut backend, mut peer) = pair();
    for byte in framed(&frame(6, 20)) {
        assert_eq!(receive(&mut backend), None);
        peer.write_all(&[byte]).unwrap();
    }
    peer.write_all(&[0, 0]).unwrap();
    assert_eq!(receive(&mut backend).unwrap(), frame(6, 20));
    assert_eq!(receive(&mut backend), None);
    backend.settle().unwrap();
    // The beginning of the next one has been looked at, and is still there for a successor.
    let mut next = successor(&backend);
    assert_eq!(receive(&mut next), None);
    peer.write_all(&framed(&frame(8, 30))[2..]).unwrap();
    assert_eq!(receive(&mut next).unwrap(), frame(8, 30));
}

#[test]
fn many_frames_pass_a_small_window() {
    let (mut backend, peer) = pair();
    let writer = std::thread::spawn(move || {
        let mut peer = peer;
        for number in 0..5000u32 {
            let len = 20 + (number as usize * 37) % 3000;
            let mut bytes = frame(number as u8, len);
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            peer.write_all(&framed(&bytes)).unwrap();
        }
        peer
    });
    let mut number = 0u32;
    while number < 5000 {
        match receive(&mut backend) {
            Some(bytes) => {
                assert_eq!(bytes[..4], number.to_be_bytes());
                assert_eq!(bytes.len(), 20 + (number as usize * 37) % 3000);
                number += 1;
                if number.is_multiple_of(7) {
                    backend.settle().unwrap();
                }
            }
            None => {
                backend.settle().unwrap();
                std::thread::yield_now();
            }
        }
    }
    writer.join().unwrap();
}

#[test]
fn what_was_not_settled_comes_again() {
    let (mut backend, mut peer) = pair();
    for tag in 1..=4 {
        peer.write_all(&framed(&frame(tag, 50))).unwrap();
    }
    assert_eq!(receive(&mut backend).unwrap()[0], 1);
    backend.settle().unwrap();
    assert_eq!(receive(&mut backend).unwrap()[0], 2);
    assert_eq!(receive(&mut backend).unwrap()[0], 3);
    let mut next = successor(&backend);
    for tag in 2..=4 {
        assert_eq!(receive(&mut next).unwrap()[0], tag);
    }
    next.settle().unwrap();
    next.stop();
    assert_eq!(receive(&mut successor(&next)), None);
}

/// A predecessor that died while it took bytes away: after any number of them, in the first or the last step.
#[test]
fn a_half_done_taking_is_finished() {
    let total = framed(&frame(1, 40)).len() + framed(&frame(2, 60)).len();
    for taken in 0..=total {
        let (backend, mut peer) = pair();
        for (tag, len) in [(1, 40), (2, 60), (3, 80)] {
            // Each frame lies in two buffers.
            let bytes = framed(&frame(tag, len));
            peer.write_all(&bytes[..25]).unwrap();
            peer.write_all(&bytes[25..]).unwrap();
        }
        let Backend::Stream(stream) = &backend else { unreachable!() };
        sys::set_peek_offset(stream.socket.as_fd(), MARK + total as c_int).unwrap();
        let mut left = taken;
        while left > 0 {
            left -= sys::discard(stream.socket.as_fd(), &mut vec![0; left]).unwrap();
        }
        assert_eq!(sys::peek_offset(stream.socket.as_fd()).unwrap(), MARK + (total - taken) as c_int);
        let mut next = successor(&backend);
        assert_eq!(receive(&mut next).unwrap(), frame(3, 80), "{taken} bytes were taken");
        assert_eq!(receive(&mut next), None);
    }
}

#[test]
fn the_end_of_the_other_side_has_a_name() {
    let (mut backend, mut peer) = pair();
    peer.write_all(&framed(&frame(1, 60))).unwrap();
    drop(peer);
    assert_eq!(receive(&mut backend).unwrap(), frame(1, 60));
    let pages = pages();
    let error = backend.receive(0, [pages.span(0, 4096).unwrap()]).unwrap_err();
    assert_eq!(error.to_string(), ENDED);
    let error = backend.send(0, &VnetHeader::default(), &[0; 60], []).unwrap_err();
    assert_eq!(error.to_string(), ENDED);
}

#[test]
fn another_protocol_is_noticed() {
    let (mut backend, mut peer) = pair();
    peer.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let pages = pages();
    let error = backend.receive(0, [pages.span(0, 4096).unwrap()]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn only_a_connected_stream_will_do() {
    use nix::sys::socket::{SockFlag, setsockopt, socket, socketpair};
    let none = SockFlag::empty();
    let lonely = socket(AddressFamily::Unix, SockType::Stream, none, None).unwrap();
    assert!(matches!(Stream::new(lonely), Err(StreamError::WrongSocket)));
    let (datagram, _other) = socketpair(AddressFamily::Unix, SockType::Datagram, None, none).unwrap();
    assert!(matches!(Stream::new(datagram), Err(StreamError::WrongSocket)));
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(Stream::new(file.into()), Err(StreamError::WrongSocket)));
    let (small, _other) = UnixStream::pair().unwrap();
    setsockopt(&small, sockopt::SndBuf, &4096).unwrap();
    assert!(matches!(Stream::new(small.into()), Err(StreamError::SmallBuffer(8192))));
}
