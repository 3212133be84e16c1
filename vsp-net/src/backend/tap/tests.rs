//! In a network namespace of their own, each in a thread of its own; as root, where there is `/dev/net/tun`.

use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use vsp::ipc::shm::{PagesMapping, SharedMemory};

use super::super::Backend;
use super::*;

/// The guest's address on the wire.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Runs `test` with a network of its own, or says why it does not.
fn in_own_network(test: impl FnOnce() + Send + 'static) {
    thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            return eprintln!("skipped: no network namespace can be made here: {error}");
        }
        if let Err(error) = OpenOptions::new().read(true).write(true).open(DEVICE) {
            return eprintln!("skipped: {DEVICE}: {error}");
        }
        test();
    })
    .join()
    .unwrap();
}

/// `ip` with these words, in the thread's network.
fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A TAP that is there before us, with an address and a neighbour, which is the guest.
fn make(more: &str) {
    ip(&format!("tuntap add tap0 mode tap {more}"));
    ip("link set tap0 mtu 65521");
    ip("address add 10.9.8.1/24 dev tap0");
}

fn up() {
    ip("link set tap0 up");
    ip("neighbour replace 10.9.8.2 lladdr 02:00:00:00:00:02 dev tap0");
}

fn pages() -> PagesMapping {
    PagesMapping::new(&SharedMemory::create("pages", 128 * 1024).unwrap()).unwrap()
}

/// The next frame of any queue that `wanted` says is one.
fn next(tap: &mut Backend, wanted: impl Fn(&[u8]) -> bool) -> (usize, VnetHeader, Vec<u8>) {
    let pages = pages();
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        for queue in 0..tap.queues() {
            let received = tap.receive(queue, [pages.span(0, 70_000).unwrap()]).unwrap();
            let Received::Frame { vnet, len } = received else { continue };
            let mut frame = vec![0; len];
            pages.copy_out(0, &mut frame).unwrap();
            if wanted(&frame) {
                return (queue, vnet, frame);
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("no frame came");
}

fn is_udp(frame: &[u8]) -> bool {
    frame[12..14] == [8, 0] && frame[23] == 17
}

/// "Who is 10.9.8.1?"
fn arp_request() -> Vec<u8> {
    let mut frame = [&[0xff; 6], &MAC[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC, &[10, 9, 8, 2]].concat();
    frame.extend([0, 0, 0, 0, 0, 0, 10, 9, 8, 1]);
    frame
}

#[test]
fn a_question_is_answered() {
    in_own_network(|| {
        make("multi_queue vnet_hdr");
        up();
        let mut tap = Backend::Tap(TapQueues::open("tap0", 1).unwrap());
        assert!(ip("-d link show tap0").contains("numqueues 0 numdisabled 1"), "not before it serves");
        tap.start().unwrap();
        assert!(ip("-d link show tap0").contains("numqueues 1 numdisabled 0"));
        // The last bytes come from shared pages.
        let (pages, request) = (pages(), arp_request());
        pages.copy_in(1000, &request[30..]).unwrap();
        let rest = [pages.span(1000, 2).unwrap(), pages.span(1002, request.len() - 32).unwrap()];
        let sent = tap.send(0, &VnetHeader::default(), &request[..30], rest).unwrap();
        assert_eq!(sent, Sent::Whole);
        let (_, _, answer) = next(&mut tap, |frame| frame[12..14] == [8, 6] && frame[21] == 2);
        assert_eq!((&answer[..6], &answer[28..32]), (&MAC[..], &[10, 9, 8, 1][..]));
        tap.stop();
        assert!(ip("-d link show tap0").contains("numqueues 0 numdisabled 1"));
        tap.start().unwrap();
        assert_eq!(tap.send(0, &VnetHeader::default(), &arp_request(), []).unwrap(), Sent::Whole);
    });
}

/// A datagram from 10.9.8.2:2000 to 10.9.8.1:1000 in a frame of `len` bytes.
fn datagram(to: [u8; 6], len: usize) -> Vec<u8> {
    let size = |from: usize| ((len - from) as u16).to_be_bytes();
    let mut ip = [&[0x45, 0], &size(14)[..], &[0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 8, 2, 10, 9, 8, 1]].concat();
    let sum = crate::offload::Sum::new().add(&ip).finish();
    ip[10..12].copy_from_slice(&sum);
    let udp = [&[0x07, 0xd0, 0x03, 0xe8], &size(34)[..], &[0, 0]].concat();
    let mut frame = [&to[..], &MAC[..], &[8, 0], &ip, &udp].concat();
    frame.extend((frame.len()..len).map(|n| n as u8));
    frame
}

#[test]
fn a_frame_is_the_same_in_one_piece_and_in_several() {
    in_own_network(|| {
        make("multi_queue");
        let mut tap = Backend::Tap(TapQueues::open("tap0", 1).unwrap());
        ip("link set tap0 address 02:00:00:00:00:01");
        up();
        tap.start().unwrap();
        let socket = UdpSocket::bind("10.9.8.1:1000").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let pages = pages();
        for len in [60, HEADERS - 1, HEADERS, HEADERS + 1, 1000] {
            let frame = datagram([2, 0, 0, 0, 0, 1], len);
            for ours in [len, len - 1, 42] {
                pages.copy_in(0, &frame[ours..]).unwrap();
                let rest = (ours < len).then(|| pages.span(0, len - ours).unwrap());
                let sent = tap.send(0, &VnetHeader::default(), &frame[..ours], rest).unwrap();
                assert_eq!(sent, Sent::Whole);
                let mut bytes = [0; 2000];
                let count = socket.recv(&mut bytes).unwrap();
                assert_eq!(&bytes[..count], &frame[42..], "{len} bytes, {ours} of them ours");
            }
        }
    });
}

#[test]
fn checksums_are_left_to_us_if_we_say_so() {
    in_own_network(|| {
        make("multi_queue");
        let mut tap = Backend::Tap(TapQueues::open("tap0", 1).unwrap());
        up();
        tap.start().unwrap();
        let socket = UdpSocket::bind("10.9.8.1:1000").unwrap();
        tap.set_offloads(Offloads::ALL).unwrap();
        socket.send_to(&[7; 100], "10.9.8.2:2000").unwrap();
        let (_, vnet, frame) = next(&mut tap, is_udp);
        assert_eq!((vnet.flags & VnetHeader::NEEDS_CSUM, vnet.csum_start, vnet.csum_offset), (1, 34, 6));
        assert_eq!((frame.len(), &frame[42..]), (142, &[7; 100][..]));
        tap.set_offloads(Offloads::NONE).unwrap();
        socket.send_to(&[7; 100], "10.9.8.2:2000").unwrap();
        let (_, vnet, _) = next(&mut tap, is_udp);
        assert_eq!(vnet.flags & VnetHeader::NEEDS_CSUM, 0);
    });
}

#[test]
fn a_frame_too_long_for_its_place_is_dropped() {
    in_own_network(|| {
        make("multi_queue");
        let mut tap = Backend::Tap(TapQueues::open("tap0", 1).unwrap());
        up();
        tap.start().unwrap();
        let socket = UdpSocket::bind("10.9.8.1:1000").unwrap();
        socket.send_to(&[7; 65_000], "10.9.8.2:2000").unwrap();
        assert_eq!(next(&mut tap, is_udp).2.len(), 65_042);
        let pages = pages();
        for (room, good) in [(1041, false), (1042, true), (1043, true)] {
            // Whatever else the kernel may have to say first.
            while tap.receive(0, [pages.span(0, 70_000).unwrap()]).unwrap() != Received::Nothing {}
            socket.send_to(&[7; 1000], "10.9.8.2:2000").unwrap();
            let received = tap.receive(0, [pages.span(0, room).unwrap()]).unwrap();
            assert_eq!(matches!(received, Received::Frame { len: 1042, .. }), good, "{room}: {received:?}");
            assert_eq!(received == Received::Dropped, !good);
        }
        assert_eq!(tap.receive(0, [pages.span(0, 70_000).unwrap()]).unwrap(), Received::Nothing);
    });
}

#[test]
fn several_queues_are_one_interface() {
    in_own_network(|| {
        make("multi_queue vnet_hdr");
        let mut tap = Backend::Tap(TapQueues::open("tap0", 4).unwrap());
        // A spare does not take frames away.
        let spare = TapQueues::open("tap0", 4).unwrap();
        up();
        tap.start().unwrap();
        assert!(ip("-d link show tap0").contains("numqueues 4 numdisabled 4"), "{}", ip("-d link show tap0"));
        assert_eq!(tap.fds().len(), 4);
        drop(spare);
        let sockets: Vec<_> = (0..32).map(|n| UdpSocket::bind(("10.9.8.1", 1000 + n)).unwrap()).collect();
        let mut used = [false; 4];
        for socket in &sockets {
            socket.send_to(&[1; 50], "10.9.8.2:2000").unwrap();
            used[next(&mut tap, is_udp).0] = true;
        }
        assert!(used.iter().filter(|used| **used).count() > 1, "frames are spread: {used:?}");
        assert_eq!(tap.receive(9, [pages().span(0, 4096).unwrap()]).unwrap(), Received::Nothing);
        assert_eq!(tap.send(9, &VnetHeader::default(), &arp_request(), []).unwrap(), Sent::Dropped);
    });
}

#[test]
fn an_interface_that_is_down_or_gone() {
    in_own_network(|| {
        make("multi_queue");
        let mut tap = Backend::Tap(TapQueues::open("tap0", 2).unwrap());
        tap.start().unwrap();
        let (pages, none) = (pages(), VnetHeader::default());
        assert_eq!(tap.send(0, &none, &arp_request(), []).unwrap(), Sent::Dropped, "it is down");
        assert_eq!(tap.receive(1, [pages.span(0, 70_000).unwrap()]).unwrap(), Received::Nothing);
        up();
        assert_eq!(tap.send(0, &none, &arp_request(), []).unwrap(), Sent::Whole);
        let nonsense = VnetHeader { hdr_len: 1000, ..none };
        assert_eq!(tap.send(0, &nonsense, &arp_request(), []).unwrap(), Sent::Dropped);
        let nonsense = VnetHeader { gso_type: 77, gso_size: 1, ..none };
        assert_eq!(tap.send(0, &nonsense, &arp_request(), []).unwrap(), Sent::Dropped);
        ip("link delete tap0");
        assert!(tap.send(0, &none, &arp_request(), []).is_err());
        let error = tap.receive(0, [pages.span(0, 70_000).unwrap()]).unwrap_err();
        assert!(error.to_string().contains("`tap0` can no longer be used"), "{error}");
    });
}

#[test]
fn interfaces_that_will_not_do_are_refused() {
    in_own_network(|| {
        assert!(matches!(TapQueues::open("tap0", 1), Err(TapError::Unknown { .. })));
        assert!(matches!(TapQueues::open("lo", 1), Err(TapError::Join { .. })));
        assert!(matches!(TapQueues::open("a name that is too long", 1), Err(TapError::Unknown { .. })));
        make("");
        assert!(matches!(TapQueues::open("tap0", 2), Err(TapError::Join { multi: true, .. })));
        let only = TapQueues::open("tap0", 1).unwrap();
        let twin = only.queues[0].try_clone().unwrap();
        let adopted = TapQueues::adopt(vec![twin]).unwrap();
        assert_eq!((adopted.name(), adopted.queues()), ("tap0", 1));
        assert!(matches!(TapQueues::adopt(vec![]), Err(TapError::Count)));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(TapQueues::adopt(vec![file.into()]), Err(TapError::NoQueue(_))));
        drop((only, adopted));
        let bare = OpenOptions::new().read(true).write(true).open(DEVICE).unwrap();
        sys::join_interface(bare.as_fd(), "tap0", IFF_TAP | IFF_NO_PI).unwrap();
        assert!(matches!(TapQueues::adopt(vec![bare.into()]), Err(TapError::Properties(_))));
    });
}
