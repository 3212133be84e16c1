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
fn operators_are_few_and_an_idle_one_makes_room() {
    let mut rig = Rig::new();
    let all: Vec<Peer> = (0..OPERATORS_MAX).map(|_| rig.operator()).collect();
    assert!(all.iter().all(|o| said(o).is_none()));
    // The first only listens, as the supervisor does; the second has just asked something.
    devices(&mut rig, &all[1]);
    let next = rig.operator();
    assert_eq!(devices(&mut rig, &next).len(), 2);
    let left: Vec<usize> = (0..OPERATORS_MAX).filter(|&i| is_cut_off(&all[i])).collect();
    assert_eq!(left, [2]);
    // One who may not be an operator takes nobody's place.
    let stranger = rig.meet(&ToCore::Operator { versions: Versions { min: 99, max: 99 } });
    assert!(is_cut_off(&stranger) && !is_cut_off(&all[3]));
}

#[test]
fn an_operator_that_waits_for_its_answer_is_not_idle() {
    let mut rig = Rig::with((0..8).map(|i| slot(&"abcdefgh"[..=i])).collect(), vec![own_uid()]);
    let all: Vec<Peer> = (0..OPERATORS_MAX).map(|_| rig.operator()).collect();
    for (i, operator) in all.iter().enumerate() {
        rig.asks(operator, &Request::Swap { device: "abcdefgh"[..=i].into(), wait_ms: 500 });
    }
    assert!(matches!(said(&rig.operator()), Some(ToVsp::Refused { reason }) if reason.contains("too many")));
    assert!(all.iter().all(|o| reply(o).is_none()));
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
        let Some(Reply::CutOff { device, reason, had_channels }) = reply(operator) else {
            panic!("not told")
        };
        assert!(device == "a" && reason.len() < 1000 && had_channels);
    }
}

#[test]
fn a_process_that_never_served_is_told_from_the_one_that_does() {
    let (mut rig, a, _b) = Rig::running();
    rig.open(&a, 1, 1);
    let operator = rig.operator();
    let spare = rig.arrive("a", true);
    rig.says(&spare, &ToCore::Serving {});
    assert!(is_cut_off(&spare) && !is_cut_off(&a));
    assert!(matches!(reply(&operator), Some(Reply::CutOff { had_channels: false, .. })));
    assert!(rig.server.deadline().is_none(), "and nobody waits for its end");
    // One that was told to serve, and had nothing yet.
    drop(a);
    rig.poll();
    let next = rig.arrive("a", false);
    rig.says(&next, &ToCore::Quiesced {});
    assert!(matches!(reply(&operator), Some(Reply::CutOff { had_channels: false, .. })));
}

#[test]
fn everybody_hears_of_a_process_until_it_ends() {
    let (mut rig, a, _b) = Rig::running();
    let operator = rig.operator();
    rig.says(&a, &ToCore::Serving {});
    assert!(matches!(reply(&operator), Some(Reply::CutOff { had_channels: true, .. })));
    for _ in 0..3 {
        let deadline = rig.server.deadline().expect("it is not forgotten");
        rig.server.tick(&rig.mock, deadline - Duration::from_millis(1));
        assert_eq!(reply(&operator), None);
        rig.server.tick(&rig.mock, deadline);
        let Some(Reply::CutOff { device, reason, had_channels: true }) = reply(&operator) else { panic!() };
        assert!(device == "a" && reason.contains("does not end"), "{reason}");
    }
    let next = rig.arrive("a", true);
    assert_eq!(said(&next), None);
    drop(a);
    rig.poll();
    assert_eq!((rig.server.deadline(), reply(&operator)), (None, None));
    rig.serve(&next, true);
}
