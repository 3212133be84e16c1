//! Those who ask who serves.

use super::*;

fn devices(rig: &mut Rig, operator: &Peer) -> Vec<ipc::operator::Device> {
    rig.asks(operator, &Request::Devices {});
    let Some(Reply::Devices(devices)) = reply(operator) else { panic!("no answer") };
    devices
}

#[test]
fn an_operator_sees_who_serves() {
    let mut rig = Rig::with(vec![disk("a"), slot("bb")], vec![own_uid()]);
    let operator = rig.operator();
    let nobody = devices(&mut rig, &operator);
    assert_eq!(
        nobody[0],
        ipc::operator::Device { name: "a".into(), exposed_bytes: RAM, ..Default::default() }
    );
    let (a, b) = (rig.attach("a"), rig.attach("bb"));
    rig.contact();
    rig.post(GuestMessage::RequestOffers);
    rig.heard();
    rig.open(&a, 1, 1);
    rig.open(&b, 2, 2);
    let spare = rig.arrive("a", true);
    let [one, two] = devices(&mut rig, &operator).try_into().unwrap();
    assert_eq!((one.serving, one.standby, one.build.as_str(), one.channels), (true, true, "1.0", 1));
    assert_eq!((two.serving, two.standby, two.channels, two.takeovers), (true, false, 1, 0));
    // A ring of 8 pages and a page of event flags.
    assert_eq!((one.exposed_bytes, two.exposed_bytes), (RAM + 9 * PAGE, 9 * PAGE));
    drop(a);
    rig.poll();
    assert!(!devices(&mut rig, &operator)[0].serving);
    rig.serve(&spare, true);
    let one = &devices(&mut rig, &operator)[0];
    assert_eq!((one.serving, one.standby, one.takeovers), (true, false, 1));
}

#[test]
fn only_trusted_users_are_operators() {
    // The slot's own user may attach and no more.
    let own = DeviceSlot { uid: Some(own_uid()), ..slot("a") };
    let mut rig = Rig::with(vec![own], vec![own_uid() + 1]);
    rig.attach("a");
    let peer = rig.operator();
    let Some(ToVsp::Refused { reason }) = said(&peer) else { panic!("let in") };
    assert!(reason.contains("uid") && is_cut_off(&peer), "{reason}");
}

#[test]
fn operators_are_few() {
    let mut rig = Rig::new();
    let mut all: Vec<Peer> = (0..OPERATORS_MAX).map(|_| rig.operator()).collect();
    assert!(all.iter().all(|o| said(o).is_none()));
    assert!(matches!(said(&rig.operator()), Some(ToVsp::Refused { .. })));
    all.pop();
    rig.poll();
    let next = rig.operator();
    assert_eq!(devices(&mut rig, &next).len(), 2);
}

#[test]
fn an_operator_that_does_not_listen_is_left_behind() {
    let mut rig = Rig::new();
    let (deaf, other) = (rig.operator(), rig.operator());
    for _ in 0..10_000 {
        if deaf.send(&Request::Devices {}, &[]).is_err() {
            break;
        }
        rig.poll();
    }
    assert!(is_cut_off(&deaf), "the core does not wait for it");
    assert_eq!(devices(&mut rig, &other).len(), 2);
}

#[test]
fn nonsense_ends_that_operator_only() {
    let mut rig = Rig::new();
    let other = rig.operator();
    for bytes in [&b"{"[..], b"{\"Closed\":{\"channel\":1}}", b"{\"Swap\":{\"device\":\"a\",\"wait_ms\":-1}}"]
    {
        let operator = rig.operator();
        operator.send_bytes(bytes, &[]).unwrap();
        rig.poll();
        assert!(is_cut_off(&operator));
    }
    assert_eq!(devices(&mut rig, &other).len(), 2);
}

#[test]
fn everybody_hears_of_a_process_that_is_cut_off() {
    let (mut rig, a, _b) = Rig::running();
    let (one, two) = (rig.operator(), rig.operator());
    a.send_bytes(&[b'['; 60_000], &[]).unwrap();
    rig.poll();
    for operator in [&one, &two] {
        let Some(Reply::CutOff { device, reason }) = reply(operator) else { panic!("not told") };
        assert!(device == "a" && reason.len() < 1000);
    }
}
