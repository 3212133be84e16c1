//! What a front end may do, and what ends its connection.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::os::fd::AsFd;

use common::{Holder, RAM, Seen, bench, send};
use vhost_face::feature;
use vhost_face::testing::{Bench, FrontEnd, message};
use vhost_face::wire::request;

fn silent() -> Bench<Holder> {
    Bench::silent(Holder::default(), FrontEnd::new(RAM))
}

/// Whether these messages have the front end cut off, the last of them and none before.
fn ends(bench: &mut Bench<Holder>, what: u32, payload: &[u8]) -> bool {
    bench.turn(2);
    assert!(bench.runtime.is_connected(), "before");
    bench.tell(what, payload, &[]);
    bench.turn(2);
    !bench.runtime.is_connected()
}

fn words(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[test]
fn features_that_were_not_offered_end_the_connection() {
    assert!(ends(&mut silent(), request::SET_FEATURES, &(1u64 << 40).to_ne_bytes()));
    assert!(ends(&mut silent(), request::SET_PROTOCOL_FEATURES, &(1u64 << 5).to_ne_bytes()));
    assert!(!ends(&mut silent(), request::SET_FEATURES, &(1u64 << 32 | 1).to_ne_bytes()));
}

#[test]
fn messages_in_the_wrong_order_end_the_connection() {
    let seen = Seen::default();
    for (what, payload) in [
        (request::SET_VRING_NUM, words(&[0, 8])),
        (request::SET_VRING_BASE, words(&[0, 8])),
        (request::SET_FEATURES, 1u64.to_ne_bytes().to_vec()),
        (request::SET_VRING_ADDR, [words(&[0, 0]), vec![0; 32]].concat()),
    ] {
        let (mut bench, _ring) = bench(Holder::patient(&seen));
        assert!(ends(&mut bench, what, &payload), "{what}");
    }
    assert!(!ends(&mut silent(), request::SET_VRING_ENABLE, &words(&[0, 1])), "QEMU's NIC does that");
    assert!(ends(&mut silent(), request::GET_INFLIGHT_FD, &[0; 24]), "not negotiated");
    assert!(ends(&mut silent(), request::SET_VRING_NUM, &words(&[2, 8])), "there are two queues");
    assert!(ends(&mut silent(), request::SET_VRING_BASE, &words(&[0, 0x10000])));
    assert!(ends(&mut silent(), 6, &[0; 16]), "a log was not offered");
    assert!(ends(&mut silent(), request::SET_FEATURES, &[0; 7]));
}

#[test]
fn what_is_no_eventfd_is_not_rung() {
    let mut bench = silent();
    let file = std::fs::File::open("/dev/null").unwrap();
    bench.tell(request::SET_VRING_KICK, &0u64.to_ne_bytes(), &[file.as_fd()]);
    bench.turn(2);
    assert!(!bench.runtime.is_connected());
}

#[test]
fn rings_outside_of_memory_end_the_connection() {
    let seen = Seen::default();
    let (mut bench, _ring) = bench(Holder::patient(&seen));
    bench.stop(0);
    let bell = ipc::event::Doorbell::new().unwrap();
    let longs = |all: &[u64]| all.iter().flat_map(|long| long.to_ne_bytes()).collect::<Vec<u8>>();
    bench.tell(request::SET_VRING_ADDR, &[words(&[0, 0]), longs(&[0, 0, 0, 0])].concat(), &[]);
    bench.tell(request::SET_VRING_KICK, &0u64.to_ne_bytes(), &[bell.as_fd()]);
    bench.turn(2);
    assert!(!bench.runtime.is_connected());
}

#[test]
fn a_front_end_that_was_cut_off_leaves_room_for_the_next() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::patient(&seen));
    send(&mut ring, &bench.front_end, 1);
    bench.kick(0);
    bench.turn(2);
    assert_eq!(bench.runtime.face().held.len(), 1);
    assert!(bench.tell_raw(&message(99, &[]), &[]));
    bench.turn(3);
    assert!(!bench.runtime.is_connected());
    // The same process goes on as its own successor: nothing was completed, so it runs again.
    bench.reconnect();
    bench.turn(2);
    assert_eq!(*seen.borrow(), [1, 1]);
    bench.runtime.with_face(|face, _| face.eager = true);
    send(&mut ring, &bench.front_end, 2);
    bench.kick(0);
    assert_eq!(bench.wait(&mut ring, 2).len(), 2);
}

#[test]
fn the_end_of_a_queue_is_said_when_its_requests_have_ended() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::patient(&seen));
    send(&mut ring, &bench.front_end, 1);
    bench.kick(0);
    bench.turn(2);
    bench.tell(request::GET_VRING_BASE, &words(&[0, 0]), &[]);
    bench.runtime.turn(Some(std::time::Duration::from_millis(1))).unwrap();
    send(&mut ring, &bench.front_end, 2);
    bench.kick(0);
    bench.turn(5);
    assert!(bench.try_hear().is_none(), "one is in flight");
    assert_eq!(*seen.borrow(), [1], "and no other is taken");
    bench.runtime.with_face(|face, queues| face.held.pop().unwrap().complete(queues, 8));
    let heard = bench.hear();
    assert_eq!((heard.request, &heard.payload[..]), (request::GET_VRING_BASE, &words(&[0, 1])[..]));
    assert_eq!(bench.wait(&mut ring, 1).len(), 1);
    bench.restart(0);
    bench.turn(3);
    assert_eq!(*seen.borrow(), [1, 2]);
    bench.runtime.with_face(|face, queues| face.held.pop().unwrap().complete(queues, 8));
}

#[test]
fn the_configuration_is_read_in_pieces() {
    let mut bench = Bench::new(Holder::default(), FrontEnd::new(RAM));
    bench.tell(request::GET_CONFIG, &[words(&[4, 3, 0]), vec![0; 3]].concat(), &[]);
    let heard = bench.hear();
    assert_eq!(heard.payload, [words(&[4, 3, 0]), vec![4, 5, 6]].concat());
}

/// It is a driver that writes to it: whatever it does is no fault of the front end's.
#[test]
fn a_configuration_that_cannot_be_written_stays_and_so_does_the_front_end() {
    let seen = Seen::default();
    let (mut bench, mut ring) = bench(Holder::eager(&seen));
    let payload = [words(&[0, 1, 0]), vec![1]].concat();
    assert!(!ends(&mut bench, request::SET_CONFIG, &payload));
    assert!(bench.try_hear().is_none(), "it was not asked");
    let mut asking = message(request::SET_CONFIG, &payload);
    asking[4] |= 8;
    assert!(bench.tell_raw(&asking, &[]));
    let heard = bench.hear();
    assert_eq!((heard.request, heard.payload), (request::SET_CONFIG, 1u64.to_ne_bytes().to_vec()));
    send(&mut ring, &bench.front_end, 1);
    bench.kick(0);
    assert_eq!(bench.wait(&mut ring, 1).len(), 1);
}

/// Descriptors that the loop watches.
fn watched(bench: &Bench<Holder>) -> usize {
    let of = |number: &i32| std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
    let all = bench.runtime.descriptors();
    all.iter().map(|number| of(number).lines().filter(|line| line.starts_with("tfd:")).count()).sum()
}

/// A front end keeps its descriptor open, and the loop would be woken by it for ever.
#[test]
fn a_bell_that_was_replaced_is_not_listened_to_even_if_the_queue_cannot_start() {
    let mut bench = silent();
    let before = watched(&bench);
    let (first, second) = (ipc::event::Doorbell::new().unwrap(), ipc::event::Doorbell::new().unwrap());
    let kick = 0u64.to_ne_bytes();
    let features = |bits: u64| bits.to_ne_bytes();
    bench.tell(request::SET_FEATURES, &features(feature::PROTOCOL_FEATURES), &[]);
    bench.tell(request::SET_VRING_ADDR, &[words(&[0, 0]), vec![0; 32]].concat(), &[]);
    bench.tell(request::SET_VRING_KICK, &kick, &[first.as_fd()]);
    bench.turn(2);
    assert_eq!(watched(&bench), before + 1, "it is not enabled yet");
    // Now it is, and has no size.
    bench.tell(request::SET_FEATURES, &features(feature::VERSION_1), &[]);
    assert!(bench.tell_raw(&message(request::SET_VRING_KICK, &kick), &[second.as_fd()]));
    bench.turn(2);
    assert!(!bench.runtime.is_connected());
    assert_eq!(watched(&bench), before - 1, "neither bell, nor the front end");
}
