//! Devices that come and go while the VM runs.

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

#[test]
fn a_device_of_the_hosts_goes_with_the_last_that_had_it() {
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
    let (ours, theirs) = Peer::pair().unwrap();
    a.send(&ToCore::Keep { key: 0, note: String::new() }, &[theirs.as_fd()]).unwrap();
    rig.poll();
    drop((a, theirs));
    rig.poll();
    assert!(!ours.is_abandoned(), "the core has it");
    let operator = rig.operator();
    assert_eq!(remove(&mut rig, &operator, "a", true), removed("a"), "nobody is waited for");
    assert!(ours.is_abandoned() && !rig.is_shared(1));
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
