//! What a process is told of channels right after the order to serve, before it has said that it does.

use ipc::message::EARLY_VERSION;

use super::{super::slot::Role, *};

/// "a", whose process reaches guest memory if `ram`, with channel 1 open, and sub-channel 3 behind it.
fn running(ram: bool) -> (Rig, Peer, [Vec<OwnedFd>; 2]) {
    let one = if ram { disk("a") } else { slot("a") };
    let (mut rig, a) = attached(one);
    let primary = rig.open(&a, 1, 1);
    rig.says(&a, &ToCore::OfferSubchannels { count: 1 });
    assert_eq!(rig.heard().len(), 1);
    rig.ask_open(3, 3);
    let Some((ToVsp::ChannelOpen { channel: 3, subchannel: 1, .. }, sub)) = told(&a) else { panic!() };
    rig.answers(&a, 3, 0);
    assert_eq!(rig.heard(), [opened(3, 0)]);
    (rig, a, [primary, sub])
}

fn attached(one: DeviceSlot) -> (Rig, Peer) {
    let mut rig = Rig::with(vec![one, slot("bb")], vec![own_uid()]);
    let a = rig.attach("a");
    // Nothing is expected of it.
    std::mem::forget(rig.attach("bb"));
    rig.contact();
    rig.post(GuestMessage::RequestOffers);
    rig.heard();
    (rig, a)
}

fn hello_up_to(max: u32) -> ToCore {
    let mut hello = hello("a");
    if let ToCore::Hello { versions, .. } = &mut hello {
        *versions = Versions { max, ..VERSIONS };
    }
    hello
}

/// A process that knows of this comes.
fn comes(rig: &mut Rig) -> Peer {
    let peer = rig.meet(&hello_up_to(EARLY_VERSION));
    assert!(matches!(said(&peer), Some(ToVsp::Welcome { .. })));
    peer
}

fn die(rig: &mut Rig, process: Peer) {
    drop(process);
    rig.poll();
}

/// The next of what a process is told has to be the order to serve.
fn ordered(process: &Peer) {
    assert_eq!(told_next(process), Some(ToVsp::Serve { predecessor: true }));
}

/// Then it has to be a channel; what came with it.
fn given(process: &Peer, relid: Relid) -> Vec<OwnedFd> {
    match process.try_recv() {
        Ok((ToVsp::ChannelOpen { channel, .. }, fds)) if channel == relid => fds,
        other => panic!("{other:?}"),
    }
}

/// And then that it has all, and nothing more.
fn given_all(process: &Peer) {
    assert_eq!(told_next(process), Some(ToVsp::Adopted {}));
    assert_eq!(told_next(process), None);
}

/// The successor of a process that has died, told of both channels.
fn successor(rig: &mut Rig) -> (Peer, [Vec<OwnedFd>; 2]) {
    let next = comes(rig);
    ordered(&next);
    let fds = [given(&next, 1), given(&next, 3)];
    given_all(&next);
    (next, fds)
}

#[test]
fn whoever_is_told_to_serve_is_told_of_all_channels_at_once_and_once() {
    let (mut rig, a, before) = running(true);
    die(&mut rig, a);
    let (next, fds) = successor(&mut rig);
    for (fds, before) in fds.iter().zip(&before) {
        assert!(fds.len() == 5 && fds.iter().zip(before).all(|(given, had)| same(given, had)));
    }
    // However long its resource takes: nothing is due, and nobody is cut off.
    assert_eq!(rig.server.deadline(), None);
    rig.server.tick(&rig.mock, Instant::now() + Duration::from_secs(3600));
    assert_eq!((told_next(&next), rig.server.missing_devices()), (None, vec!["a"]));
    rig.says(&next, &ToCore::Serving {});
    given_all(&next);
    // From now on it has to answer.
    let deadline = rig.server.deadline().unwrap();
    assert!(deadline <= Instant::now() + OPEN_GRACE);
    rig.answers(&next, 1, 0);
    rig.answers(&next, 3, 0);
    assert_eq!((rig.server.deadline(), told_next(&next)), (None, None));
    assert!(rig.heard().is_empty() && rig.server.missing_devices().is_empty());
    // It is asked to close like any other.
    rig.closes(3);
    assert_eq!(told_next(&next), Some(ToVsp::ChannelClose { channel: 3 }));
}

#[test]
fn one_that_does_not_answer_for_what_it_was_told_is_cut_off() {
    let (mut rig, a, _) = running(false);
    die(&mut rig, a);
    let (next, _) = successor(&mut rig);
    rig.says(&next, &ToCore::Serving {});
    rig.answers(&next, 1, 0);
    let deadline = rig.server.deadline().unwrap();
    rig.server.tick(&rig.mock, deadline);
    assert!(is_cut_off(&next));
}

#[test]
fn an_older_process_is_told_when_it_serves() {
    let (mut rig, a, _) = running(false);
    die(&mut rig, a);
    let next = rig.meet(&hello_up_to(EARLY_VERSION - 1));
    assert!(matches!(said(&next), Some(ToVsp::Welcome { .. })));
    ordered(&next);
    assert_eq!(told_next(&next), None);
    rig.says(&next, &ToCore::Serving {});
    assert_eq!([given(&next, 1).len(), given(&next, 3).len()], [5, 5]);
    given_all(&next);
}

#[test]
fn what_comes_before_the_channels_keeps_them_back() {
    let (mut rig, a) = attached(DeviceSlot { device_memory: PAGE, ..slot("a") });
    rig.open(&a, 1, 1);
    die(&mut rig, a);
    let next = comes(&mut rig);
    ordered(&next);
    assert_eq!(told_next(&next), None);
    rig.says(&next, &ToCore::Serving {});
    given(&next, 1);
    given_all(&next);
}

#[test]
fn what_the_guest_still_opens_is_told_when_the_process_serves_and_so_is_what_follows() {
    let (mut rig, a) = attached(slot("a"));
    rig.open(&a, 1, 1);
    rig.closes(1);
    assert_eq!(said(&a), Some(ToVsp::ChannelClose { channel: 1 }));
    rig.says(&a, &ToCore::Closed { channel: 1 });
    die(&mut rig, a);
    rig.post(GuestMessage::GpadlTeardown { relid: 1, gpadl: 1 });
    rig.heard();
    rig.ask_open(1, 5);
    let next = comes(&mut rig);
    ordered(&next);
    assert_eq!(told_next(&next), None);
    rig.says(&next, &ToCore::Serving {});
    given(&next, 1);
    rig.answers(&next, 1, 0);
    assert_eq!(rig.heard(), [opened(1, 0)]);
}

#[test]
fn interrupts_that_move_meanwhile_are_told_when_it_serves() {
    let moves = |rig: &mut Rig, target_vp| {
        rig.post(GuestMessage::ModifyChannel(ModifyChannel { relid: 1, target_vp }));
        assert_eq!(rig.heard(), [HostMessage::ModifyChannelResponse { relid: 1, status: 0 }]);
    };
    for (way, told) in [(&[0][..], Some(0)), (&[0, 1][..], None)] {
        let (mut rig, a, _) = running(false);
        die(&mut rig, a);
        let (next, _) = successor(&mut rig);
        way.iter().for_each(|vp| moves(&mut rig, *vp));
        assert_eq!(told_next(&next), None, "it waits for its resource");
        rig.says(&next, &ToCore::Serving {});
        if let Some(target_vp) = told {
            assert_eq!(told_next(&next), Some(ToVsp::Retarget { channel: 1, target_vp }));
        }
        given_all(&next);
        rig.answers(&next, 1, 0);
        moves(&mut rig, 1 - way.last().unwrap());
        assert!(matches!(told_next(&next), Some(ToVsp::Retarget { channel: 1, .. })));
    }
}

#[test]
fn a_close_meanwhile_is_told_when_it_serves() {
    for ram in [false, true] {
        let (mut rig, a, _) = running(ram);
        die(&mut rig, a);
        let (next, _) = successor(&mut rig);
        rig.closes(3);
        assert!(rig.is_shared(3) && told_next(&next).is_none() && rig.server.deadline().is_none());
        rig.says(&next, &ToCore::Serving {});
        assert_eq!(told_next(&next), Some(ToVsp::ChannelClose { channel: 3 }));
        given_all(&next);
        rig.answers(&next, 1, 0);
        // It had begun to serve it.
        rig.answers(&next, 3, 0);
        assert!(rig.is_shared(3) && rig.server.deadline().is_some());
        rig.says(&next, &ToCore::Closed { channel: 3 });
        assert!(!rig.is_shared(3) && rig.server.deadline().is_none());
        assert!(!is_cut_off(&next));
    }
}

#[test]
fn a_reset_meanwhile_is_over_when_it_serves_and_a_power_off_at_once() {
    let (mut rig, a, _) = running(true);
    die(&mut rig, a);
    let (next, _) = successor(&mut rig);
    rig.server.reset(&rig.mock);
    assert!(!rig.server.is_quiet() && told_next(&next).is_none());
    assert!(rig.server.is_released(), "a VM that ends does not wait for a resource");
    rig.says(&next, &ToCore::Serving {});
    assert!(!rig.server.is_released());
    for relid in [1, 3] {
        assert!(matches!(told_next(&next), Some(ToVsp::ChannelClose { .. })));
        rig.answers(&next, relid, 0);
        rig.says(&next, &ToCore::Closed { channel: relid });
    }
    given_all(&next);
    assert!(rig.server.is_quiet() && rig.server.is_released());
}

#[test]
fn one_that_dies_meanwhile_leaves_everything_to_the_next() {
    for ram in [false, true] {
        let (mut rig, a, before) = running(ram);
        die(&mut rig, a);
        let (next, _) = successor(&mut rig);
        let spare = comes(&mut rig);
        rig.closes(3);
        die(&mut rig, next);
        // Whoever dies may have begun: what may still be on its way into guest memory is waited for.
        assert_eq!((rig.is_shared(3), rig.is_shared(1)), (ram, true));
        ordered(&spare);
        let fds = given(&spare, 1);
        assert!(same(&fds[4], &before[0][4]));
        given_all(&spare);
        rig.says(&spare, &ToCore::Serving {});
        given_all(&spare);
        rig.answers(&spare, 1, 0);
        assert!(!rig.is_shared(3) && rig.server.missing_devices().is_empty());
    }
}

#[test]
fn one_that_is_cut_off_meanwhile_has_to_end_before_the_next_is_told_anything() {
    for ram in [false, true] {
        let (mut rig, a, _) = running(ram);
        let operator = rig.operator();
        die(&mut rig, a);
        let (next, _) = successor(&mut rig);
        let spare = comes(&mut rig);
        // It answers before it says that it serves.
        rig.answers(&next, 1, 0);
        assert!(is_cut_off(&next));
        assert!(matches!(reply(&operator), Some(Reply::CutOff { had_channels: false, .. })));
        rig.closes(3);
        assert_eq!(rig.is_shared(3), ram);
        // Whatever it still says; and whoever can is asked again to end it.
        rig.says(&next, &ToCore::Serving {});
        let deadline = rig.server.deadline().unwrap();
        rig.server.tick(&rig.mock, deadline);
        assert!(matches!(reply(&operator), Some(Reply::CutOff { had_channels: true, .. })));
        assert_eq!(told_next(&spare), None);
        die(&mut rig, next);
        ordered(&spare);
        given(&spare, 1);
        given_all(&spare);
    }
}

#[test]
fn a_hand_over_that_hangs_gives_them_back_when_the_new_one_has_ended() {
    let (mut rig, a, _) = running(true);
    die(&mut rig, a);
    let (old, _) = successor(&mut rig);
    rig.says(&old, &ToCore::Serving {});
    given_all(&old);
    [1, 3].into_iter().for_each(|relid| rig.answers(&old, relid, 0));
    let operator = rig.operator();
    let new = rig.meet(&hello_up_to(EARLY_VERSION));
    while told(&new).is_some() {}
    rig.asks(&operator, &Request::Swap { device: "a".into(), wait_ms: 0 });
    assert_eq!(told_next(&old), Some(ToVsp::Quiesce {}));
    rig.says(&old, &ToCore::Quiesced {});
    ordered(&new);
    assert_eq!([given(&new, 1).len(), given(&new, 3).len()], [0, 0], "it has been prepared");
    given_all(&new);
    let deadline = rig.server.deadline().unwrap();
    assert!(deadline <= Instant::now() + FENCE_GRACE);
    rig.server.tick(&rig.mock, deadline);
    assert!(matches!(reply(&operator), Some(Reply::CutOff { had_channels: false, .. })));
    assert_eq!(told_next(&old), None, "the new one may have begun");
    die(&mut rig, new);
    ordered(&old);
    assert_eq!([given(&old, 1).len(), given(&old, 3).len()], [5, 5]);
    given_all(&old);
    rig.says(&old, &ToCore::Serving {});
    assert!(matches!(reply(&operator), Some(Reply::Failed { .. })));
}

/// Fills the socket of the process at `role`.
fn fill(rig: &Rig, role: Role) {
    let peer = &rig.server.devices[0].slot.get(role).unwrap().peer;
    while peer.send(&ToVsp::Serve { predecessor: true }, &[]).is_ok() {}
}

#[test]
fn nobody_hears_what_one_could_not_be_told_that_does_not_listen() {
    let (mut rig, a, _) = running(false);
    // Whoever comes now waits for its end.
    rig.says(&a, &ToCore::Serving {});
    assert!(is_cut_off(&a));
    let (deaf, spare) = (comes(&mut rig), comes(&mut rig));
    fill(&rig, Role::Seated);
    die(&mut rig, a);
    assert_eq!(told_next(&spare), None);
    assert!(is_cut_off(&deaf));
    die(&mut rig, deaf);
    ordered(&spare);
    given(&spare, 1);
    given(&spare, 3);
    given_all(&spare);
}

#[test]
fn what_finds_no_room_is_told_when_it_serves() {
    let (mut rig, a, _) = running(false);
    rig.says(&a, &ToCore::Serving {});
    let next = comes(&mut rig);
    fill(&rig, Role::Seated);
    // Room for the order, and for nothing else.
    ordered(&next);
    die(&mut rig, a);
    while let Some(message) = told_next(&next) {
        assert_eq!(message, ToVsp::Serve { predecessor: true });
    }
    assert!(!is_cut_off(&next));
    rig.says(&next, &ToCore::Serving {});
    assert_eq!([given(&next, 1).len(), given(&next, 3).len()], [5, 5]);
    given_all(&next);
}
