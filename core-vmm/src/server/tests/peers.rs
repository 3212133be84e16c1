//! Who may attach, and what becomes of those who may not or who misbehave.

use super::*;

/// The reason for which the core does not want this peer.
fn refused(peer: &Peer) -> String {
    let Some((ToVsp::Refused { reason }, _)) = told(peer) else { panic!("not refused") };
    assert!(is_cut_off(peer));
    reason
}

#[test]
fn a_device_is_welcomed_and_offered() {
    let mut rig = Rig::new();
    assert_eq!(rig.server.missing_devices(), ["a", "bb"]);
    let device = rig.meet(&hello("bb"));
    let Some((ToVsp::Welcome { version, vm, vps, ram, .. }, fds)) = told(&device) else { panic!() };
    assert_eq!((version, vm.as_str(), vps, ram), (PREPARE_VERSION - 1, "vm", VPS, None));
    assert!(fds.is_empty(), "guest RAM is not for everybody");
    assert_eq!(rig.server.missing_devices(), ["a", "bb"], "it does not serve yet");
    rig.serve(&device, false);
    assert_eq!(rig.server.missing_devices(), ["a"]);
    rig.contact();
    rig.post(GuestMessage::RequestOffers);
    let messages = rig.heard();
    let [HostMessage::Offer(offer), HostMessage::AllOffersDelivered] = messages.as_slice() else { panic!() };
    assert_eq!((offer.class, offer.instance.to_string()), (class::ECHO, slot("bb").instance));
    // One that comes late is offered at once.
    rig.attach("a");
    assert!(matches!(rig.heard().as_slice(), [HostMessage::Offer(_)]));
}

#[test]
fn guest_ram_goes_to_those_who_need_it() {
    let mut rig = Rig::with(vec![DeviceSlot { guest_ram: true, ..slot("a") }], vec![own_uid()]);
    let device = rig.meet(&hello("a"));
    let Some((ToVsp::Welcome { ram: Some(ram), .. }, fds)) = told(&device) else { panic!() };
    assert_eq!(ram, [ipc::message::RamRegion { gpa: 0, len: RAM, offset: 0 }]);
    assert_eq!(fds.len(), 1);
}

#[test]
fn hellos_that_cannot_be_are_refused_with_a_reason() {
    let mut rig = Rig::new();
    let offer = |change: fn(&mut DeviceOffer)| {
        let ToCore::Hello { versions, device, mut offer, ledger, build } = hello("a") else { unreachable!() };
        change(&mut offer);
        ToCore::Hello { versions, device, offer, ledger, build }
    };
    let ToCore::Hello { offer: good, .. } = hello("a") else { unreachable!() };
    let future = Versions { min: VERSIONS.max + 1, max: u32::MAX };
    let of = |versions| ToCore::Hello {
        versions,
        device: "a".into(),
        offer: good.clone(),
        ledger: 0,
        build: String::new(),
    };
    let (versions, backwards) = (of(future), of(Versions { min: 9, max: 1 }));
    let operator = ToCore::Operator { versions: future };
    for (first, reason) in [
        (hello("c"), "no such device"),
        (hello(""), "no such device"),
        (offer(|o| o.class = "echo".into()), "not a GUID"),
        (offer(|o| o.user_defined = vec![0; 121]), "too long"),
        (offer(|o| o.max_subchannels = 64), "sub-channels"),
        (hello_of("a", self::offer(), ipc::message::MAX_LEDGER + 1), "ledger"),
        (hello_of("a", self::offer(), u64::MAX), "ledger"),
        (operator, "versions"),
        (ToCore::Serving {}, "must be a hello"),
        (versions, "versions"),
        (backwards, "versions"),
        (ToCore::OpenResult { channel: 1, status: 0, reason: None }, "must be a hello"),
        (ToCore::Closed { channel: 1 }, "must be a hello"),
    ] {
        let peer = rig.meet(&first);
        let told = refused(&peer);
        assert!(told.contains(reason), "{told:?} should say {reason:?}");
    }
    assert_eq!(rig.server.peers().count(), 0);
    rig.attach("a");
}

#[test]
fn bytes_that_are_no_hello_end_that_peer_only() {
    let mut rig = Rig::new();
    let garbage: [&[u8]; 5] = [b"{", b"\xff\xff\xff", b"[]", b"{\"Hello\":{}}", &[b'['; 60_000]];
    for bytes in garbage {
        let (ours, theirs) = Peer::pair().unwrap();
        theirs.send_bytes(bytes, &[]).unwrap();
        let fd = ours.as_raw_fd();
        rig.server.add_stranger(ours);
        rig.server.peer_ready(&rig.mock, fd);
        refused(&theirs);
    }
    // One that says nothing and one that goes at once.
    let (ours, _theirs) = Peer::pair().unwrap();
    let fd = ours.as_raw_fd();
    rig.server.add_stranger(ours);
    rig.server.peer_ready(&rig.mock, fd);
    let (gone, _) = Peer::pair().unwrap();
    rig.server.add_stranger(gone);
    rig.poll();
    assert_eq!(rig.server.peers().count(), 1, "only who may still speak");
    rig.attach("a");
}

#[test]
fn a_user_who_may_not_is_refused() {
    let mut rig = Rig::with(vec![slot("a")], vec![own_uid() + 1]);
    assert!(refused(&rig.meet(&hello("a"))).contains("uid"));
    assert_eq!(rig.server.missing_devices(), ["a"]);
    // The slot's own user may attach there and nowhere else.
    let own = DeviceSlot { uid: Some(own_uid()), ..slot("a") };
    let mut rig = Rig::with(vec![own, slot("bb")], vec![own_uid() + 1]);
    assert!(refused(&rig.meet(&hello("bb"))).contains("uid"));
    rig.attach("a");
}

#[test]
fn a_device_is_served_by_one_process_and_one_stands_by() {
    let mut rig = Rig::new();
    let first = rig.attach("a");
    let second = rig.arrive("a", true);
    assert!(refused(&rig.meet(&hello("a"))).contains("already"));
    assert!(!is_cut_off(&first) && !is_cut_off(&second));
}

#[test]
fn strangers_do_not_pile_up() {
    let folder = std::env::temp_dir().join(format!("bulkhead-core-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("core.sock");
    let listener = Listener::bind(&path).unwrap();
    let mut rig = Rig::new();
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(Peer::connect(&path).unwrap());
        rig.server.accept(&listener);
    }
    assert_eq!(rig.server.peers().count(), STRANGERS_MAX + 2, "two devices are still to come");
    assert!(is_cut_off(&crowd[99]));
    // Those who are in may still turn out to be devices.
    for (peer, name) in crowd.iter().zip(["a", "bb"]) {
        rig.says(peer, &hello(name));
        assert!(matches!(said(peer), Some(ToVsp::Welcome { .. })));
        rig.serve(peer, false);
    }
    assert!(rig.server.missing_devices().is_empty());
    // A user who may be nobody's device does not get in at all.
    let mut rig = Rig::with(vec![slot("a")], vec![own_uid() + 1]);
    let peer = Peer::connect(&path).unwrap();
    rig.server.accept(&listener);
    assert_eq!(rig.server.peers().count(), 0);
    assert!(is_cut_off(&peer));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn an_attached_device_that_breaks_the_protocol_is_cut_off_alone() {
    for bytes in [
        &b"{"[..],
        b"nonsense",
        b"{\"Format\":{\"disk\":\"c:\"}}",
        b"{\"OpenResult\":{\"channel\":2,\"status\":0}}",
        b"{\"Closed\":{\"channel\":2}}",
        b"{\"Closed\":{\"channel\":4294967295}}",
        b"{\"Serving\":{}}",
        b"{\"Quiesced\":{}}",
        b"{\"OfferSubchannels\":{\"count\":4}}",
        b"{\"OfferSubchannels\":{\"count\":65536}}",
        b"{\"Operator\":{\"versions\":{\"min\":2,\"max\":2}}}",
        b"{\"Hello\":{\"versions\":{\"min\":1,\"max\":1},\"device\":\"bb\",\"offer\":{\"class\":\"\"}}}",
    ] {
        let (mut rig, a, b) = Rig::running();
        rig.open(&a, 1, 1);
        rig.open(&b, 2, 2);
        a.send_bytes(bytes, &[]).unwrap();
        rig.poll();
        assert!(is_cut_off(&a), "{}", String::from_utf8_lossy(bytes));
        assert!(!is_cut_off(&b));
        assert!(rig.heard().is_empty(), "the guest is not told: the channel waits for a successor");
        rig.post(GuestMessage::CloseChannel(1));
        rig.post(GuestMessage::GpadlTeardown { relid: 1, gpadl: 1 });
        assert_eq!(rig.heard(), [HostMessage::GpadlTorndown(1)], "nobody has the pages");
        rig.post(GuestMessage::CloseChannel(2));
        assert!(matches!(told(&b), Some((ToVsp::ChannelClose { channel: 2 }, _))));
    }
}

#[test]
fn descriptors_that_nobody_asked_for_are_dropped() {
    let (mut rig, a, _b) = Rig::running();
    rig.ask_open(1, 1);
    let fds = asked_to_open(&a, 1);
    let extra: Vec<_> = fds.iter().chain(&fds).take(ipc::socket::MAX_FDS).map(AsFd::as_fd).collect();
    a.send(&ToCore::OpenResult { channel: 1, status: 0, reason: None }, &extra).unwrap();
    rig.poll();
    assert_eq!(rig.heard(), [opened(1, 0)]);
}

#[test]
fn answers_that_are_not_due_change_nothing() {
    let (mut rig, a, _b) = Rig::running();
    for message in [ToCore::OpenResult { channel: 1, status: 0, reason: None }, ToCore::Closed { channel: 1 }]
    {
        a.send(&message, &[]).unwrap();
    }
    rig.poll();
    assert!(rig.heard().is_empty());
    assert!(rig.server.is_quiet());
    rig.open(&a, 1, 1);
    for message in [ToCore::OpenResult { channel: 1, status: 9, reason: None }, ToCore::Closed { channel: 1 }]
    {
        a.send(&message, &[]).unwrap();
    }
    rig.poll();
    assert!(rig.heard().is_empty());
    assert!(rig.is_shared(1), "still open");
}
