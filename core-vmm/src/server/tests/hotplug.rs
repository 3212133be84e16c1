//! Devices that come and go while the VM runs.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    os::fd::AsFd,
};

use nix::sys::socket::{setsockopt, sockopt};

use super::*;

fn add(rig: &mut Rig, operator: &Peer, slot: DeviceSlot) -> Option<Reply> {
    rig.asks(operator, &Request::DeviceAdd { slot });
    reply(operator)
}

fn remove(rig: &mut Rig, operator: &Peer, device: &str, force: bool) -> Option<Reply> {
    rig.asks(operator, &Request::DeviceRemove { device: device.into(), force });
    reply(operator)
}

fn names(rig: &mut Rig, operator: &Peer) -> Vec<String> {
    rig.asks(operator, &Request::Devices {});
    match reply(operator) {
        Some(Reply::Devices(all)) => all.into_iter().map(|device| device.name).collect(),
        other => panic!("{other:?}"),
    }
}

fn removed(name: &str) -> Option<Reply> {
    Some(Reply::Removed { device: name.into() })
}

fn failed(reply: Option<Reply>) -> bool {
    matches!(reply, Some(Reply::Failed { .. }))
}

#[test]
fn a_device_that_is_added_attaches_and_is_offered() {
    let (mut rig, _a, _b) = Rig::running();
    let operator = rig.operator();
    assert!(matches!(said(&rig.meet(&hello("ccc"))), Some(ToVsp::Refused { .. })));
    assert_eq!(add(&mut rig, &operator, slot("ccc")), Some(Reply::Added { device: "ccc".into() }));
    assert_eq!(rig.server.missing_devices(), ["ccc"]);
    let c = rig.attach("ccc");
    let [HostMessage::Offer(offer)] = rig.heard()[..] else { panic!("not offered") };
    assert_eq!(offer.relid, 3);
    rig.open(&c, 3, 3);
    assert_eq!(names(&mut rig, &operator), ["a", "bb", "ccc"]);
}

#[test]
fn what_cannot_be_added_is_refused() {
    let (mut rig, _a, _b) = Rig::running();
    let operator = rig.operator();
    let named = |name: &str, like: &str| DeviceSlot { name: name.into(), ..slot(like) };
    for new in
        [slot("a"), named("c", "a"), named("", "ccc"), DeviceSlot { instance: "x".into(), ..slot("ccc") }]
    {
        assert!(failed(add(&mut rig, &operator, new)));
    }
    for n in 2..64 {
        let instance = format!("b01ce4ad-0000-4000-8000-{:012x}", n + 100);
        let new = DeviceSlot { instance, ..named(&format!("d{n}"), "a") };
        assert!(matches!(add(&mut rig, &operator, new), Some(Reply::Added { .. })), "{n}");
    }
    assert!(failed(add(&mut rig, &operator, named("e", "more than enough"))));
}

#[test]
fn a_device_that_is_not_in_use_goes_at_once() {
    let (mut rig, a, b) = Rig::running();
    let operator = rig.operator();
    assert_eq!(remove(&mut rig, &operator, "a", false), removed("a"));
    assert_eq!(rig.heard(), [HostMessage::RescindOffer(1)]);
    assert_eq!(said(&a), Some(ToVsp::Retire {}));
    assert_eq!(names(&mut rig, &operator), ["bb"]);
    assert!(failed(remove(&mut rig, &operator, "a", true)));
    rig.post(GuestMessage::RelidReleased(1));
    // The name, and its place, are free for another.
    assert!(matches!(add(&mut rig, &operator, slot("a")), Some(Reply::Added { .. })));
    let again = rig.attach("a");
    assert!(matches!(rig.heard()[..], [HostMessage::Offer(offer)] if offer.relid == 1));
    rig.open(&again, 1, 1);
    rig.open(&b, 2, 2);
}

#[test]
fn a_device_in_use_goes_only_by_force() {
    let (mut rig, a, b) = Rig::running();
    rig.open(&a, 1, 1);
    rig.open(&b, 2, 2);
    let operator = rig.operator();
    assert!(failed(remove(&mut rig, &operator, "a", false)));
    assert_eq!(remove(&mut rig, &operator, "a", true), None, "its process has to let go first");
    assert_eq!(rig.heard(), [HostMessage::RescindOffer(1)]);
    assert_eq!(said(&a), Some(ToVsp::ChannelClose { channel: 1 }));
    rig.says(&a, &ToCore::Closed { channel: 1 });
    rig.server.tick(&rig.mock, Instant::now());
    assert_eq!(reply(&operator), removed("a"));
    assert_eq!(said(&a), Some(ToVsp::Retire {}));
    assert!(!rig.is_shared(1) && rig.is_shared(2));
    assert!(rig.server.missing_devices().is_empty());
}

/// A device of the host's, "a", with channel 1 open.
fn passing() -> (Rig, Peer) {
    let slots = vec![DeviceSlot { passthrough: true, ..disk("a") }, slot("bb")];
    let mut rig = Rig::with(slots, vec![own_uid()]);
    let versions = VERSIONS;
    let a = rig.meet(&ToCore::Hello {
        versions,
        device: "a".into(),
        offer: offer(),
        ledger: LEDGER,
        build: String::new(),
    });
    assert!(matches!(said(&a), Some(ToVsp::Welcome { .. })));
    rig.serve(&a, false);
    rig.contact();
    rig.post(GuestMessage::RequestOffers);
    rig.heard();
    rig.open(&a, 1, 1);
    (rig, a)
}

#[test]
fn a_device_of_the_hosts_goes_with_the_last_that_had_it() {
    let (mut rig, a) = passing();
    let (ours, theirs) = Peer::pair().unwrap();
    a.send(&ToCore::Keep { key: 0, note: String::new() }, &[theirs.as_fd()]).unwrap();
    rig.poll();
    drop((a, theirs));
    rig.poll();
    assert!(!ours.is_abandoned(), "the core has it");
    let operator = rig.operator();
    let mut answer = remove(&mut rig, &operator, "a", true);
    while answer.is_none() {
        assert!(rig.server.deadline().is_some(), "somebody is waited for");
        rig.server.tick(&rig.mock, Instant::now());
        answer = reply(&operator);
    }
    assert_eq!(answer, removed("a"));
    assert!(ours.is_abandoned() && !rig.is_shared(1));
}

/// A descriptor that takes its time to be closed, until its other end is read to the end.
fn slow_to_close() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    own.set_nonblocking(true).unwrap();
    while (&own).write(&[0; 1 << 16]).is_ok() {}
    own.set_nonblocking(false).unwrap();
    setsockopt(&own, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 30 }).unwrap();
    (own.into(), other)
}

#[test]
fn a_device_that_takes_its_time_to_be_closed_holds_up_nobody_and_has_its_memory_meanwhile() {
    let (mut rig, a) = passing();
    let (fd, mut other) = slow_to_close();
    a.send(&ToCore::Keep { key: 0, note: String::new() }, &[fd.as_fd()]).unwrap();
    rig.poll();
    drop((a, fd));
    rig.poll();
    let operator = rig.operator();
    assert_eq!(remove(&mut rig, &operator, "a", true), None, "it is not closed");
    rig.server.tick(&rig.mock, Instant::now());
    assert_eq!(reply(&operator), None);
    assert!(rig.is_shared(1), "it may write there still");
    let b = rig.attach("bb");
    rig.heard();
    rig.open(&b, 2, 2);
    std::io::copy(&mut other, &mut std::io::sink()).unwrap();
    loop {
        rig.server.tick(&rig.mock, Instant::now());
        match reply(&operator) {
            None => assert!(rig.server.deadline().is_some(), "nobody looks again"),
            answer => break assert_eq!(answer, removed("a")),
        }
    }
    assert!(!rig.is_shared(1));
}

#[test]
fn nor_has_one_gone_before_it_is_closed_that_no_guest_uses() {
    let (mut rig, a) = passing();
    rig.closes(1);
    rig.says(&a, &ToCore::Closed { channel: 1 });
    let (fd, mut other) = slow_to_close();
    a.send(&ToCore::Keep { key: 0, note: String::new() }, &[fd.as_fd()]).unwrap();
    rig.poll();
    drop((a, fd));
    rig.poll();
    let operator = rig.operator();
    assert_eq!(remove(&mut rig, &operator, "a", true), None, "it is not closed");
    std::io::copy(&mut other, &mut std::io::sink()).unwrap();
    loop {
        rig.server.tick(&rig.mock, Instant::now());
        if let Some(answer) = reply(&operator) {
            break assert_eq!(answer, Reply::Removed { device: "a".into() });
        }
    }
}

#[test]
fn what_is_still_to_be_closed_counts_as_kept() {
    let (mut rig, a) = passing();
    let (fd, _other) = slow_to_close();
    let keep = |key| ToCore::Keep { key, note: String::new() };
    a.send(&keep(0), &[fd.as_fd()]).unwrap();
    rig.poll();
    drop(fd);
    let one = SharedMemory::create("test-device", PAGE).unwrap();
    // The first waits for a minute to be closed, and all that come after it with it.
    let mut count = 0;
    while !is_cut_off(&a) {
        assert!(count < 1024, "there is an end to it");
        // One that has been cut off may not be told so yet.
        let _ = a.send(&keep(0), &[one.as_fd(); 16]);
        rig.poll();
        count += 1;
    }
    assert!(count > 32, "{count}");
}

#[test]
fn one_that_died_is_removed_when_its_successor_has_let_go() {
    let slots = vec![disk("a"), slot("bb")];
    let mut rig = Rig::with(slots, vec![own_uid()]);
    let (a, _b) = (rig.attach("a"), rig.attach("bb"));
    rig.contact();
    rig.post(GuestMessage::RequestOffers);
    rig.heard();
    rig.open(&a, 1, 1);
    drop(a);
    rig.poll();
    let operator = rig.operator();
    assert_eq!(remove(&mut rig, &operator, "a", true), None, "what it began may be under way");
    let second = rig.operator();
    assert!(failed(remove(&mut rig, &second, "a", true)), "once");
    let next = rig.attach_again("a");
    rig.server.tick(&rig.mock, Instant::now());
    assert_eq!(reply(&operator), removed("a"));
    assert_eq!(said(&next), Some(ToVsp::Retire {}));
}
