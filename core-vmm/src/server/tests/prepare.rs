//! What a process that stands by is told ahead of time.

use super::*;

/// "a" with channel 1 open, served by the first process.
fn running() -> (Rig, Peer, Vec<OwnedFd>) {
    let mut rig = Rig::new();
    let (a, b) = (rig.attach("a"), rig.attach("bb"));
    rig.contact();
    rig.post(GuestMessage::RequestOffers);
    rig.heard();
    // Nothing more is expected of it.
    std::mem::forget(b);
    let fds = rig.open(&a, 1, 1);
    (rig, a, fds)
}

/// A process that knows of preparation comes, and stands by.
fn standby(rig: &mut Rig) -> Peer {
    let mut hello = hello("a");
    if let ToCore::Hello { versions, .. } = &mut hello {
        *versions = VERSIONS;
    }
    let peer = rig.meet(&hello);
    assert!(matches!(said(&peer), Some(ToVsp::Welcome { standby: true, .. })));
    peer
}

fn prepared(peer: &Peer) -> Vec<OwnedFd> {
    match told(peer) {
        Some((
            ToVsp::ChannelPrepare { channel: 1, ring: RingLayout { pages: 8, to_host_pages: 4 } },
            fds,
        )) => fds,
        other => panic!("{other:?}"),
    }
}

/// Takes over, and has been asked to open channel 1; what came with that.
fn takes_over(rig: &mut Rig, next: &Peer) -> Vec<OwnedFd> {
    rig.serve(next, true);
    let Some((ToVsp::ChannelOpen { channel: 1, .. }, fds)) = told(next) else {
        panic!("no request to open came")
    };
    fds
}

#[test]
fn a_process_that_stands_by_has_the_channels_already() {
    let (mut rig, a, fds) = running();
    let next = standby(&mut rig);
    let given = prepared(&next);
    assert!(given.len() == 5 && given.iter().zip(&fds).all(|(given, had)| same(given, had)));
    drop(a);
    rig.poll();
    assert_eq!(takes_over(&mut rig, &next).len(), 0, "it has them");
    rig.answers(&next, 1, 0);
    // The one after it is told as well; should it be asked in vain, there is nothing that it has not got.
    let third = standby(&mut rig);
    assert_eq!(prepared(&third).len(), 5);
    assert!(rig.heard().is_empty());
}

#[test]
fn a_channel_that_opens_later_is_told_once_it_is_served() {
    let (mut rig, a, _) = running();
    let next = standby(&mut rig);
    prepared(&next);
    rig.closes(1);
    assert_eq!(said(&a), Some(ToVsp::ChannelClose { channel: 1 }));
    assert_eq!(said(&next), None, "it is still there");
    rig.says(&a, &ToCore::Closed { channel: 1 });
    assert_eq!(said(&next), Some(ToVsp::ChannelForget { channel: 1 }));
    rig.heard();
    rig.ask_open(1, 2);
    let had = asked_to_open(&a, 1);
    assert_eq!(said(&next), None, "it may still be refused");
    rig.answers(&a, 1, 0);
    assert!(prepared(&next).iter().zip(&had).all(|(given, had)| same(given, had)));
}

#[test]
fn a_channel_whose_interrupts_move_is_told_again() {
    let (mut rig, a, _) = running();
    let next = standby(&mut rig);
    let before = prepared(&next);
    rig.post(GuestMessage::ModifyChannel(ModifyChannel { relid: 1, target_vp: 0 }));
    let after = prepared(&next);
    assert!(same(&before[0], &after[0]) && !same(&before[3], &after[3]), "another processor's flags");
    drop(a);
    rig.poll();
    assert_eq!(takes_over(&mut rig, &next).len(), 0);
}

#[test]
fn a_channel_whose_interrupts_move_while_nobody_has_it_comes_in_full() {
    let (mut rig, a, _) = running();
    let next = standby(&mut rig);
    prepared(&next);
    // Cut off: until it has ended, the channel is nobody's.
    rig.says(&a, &ToCore::Serving {});
    rig.post(GuestMessage::ModifyChannel(ModifyChannel { relid: 1, target_vp: 0 }));
    drop(a);
    rig.poll();
    let fds = takes_over(&mut rig, &next);
    let flags = rig.server.synic.event_flags(0).as_fd().try_clone_to_owned().unwrap();
    assert!(fds.len() == 5 && same(&fds[3], &flags));
}

#[test]
fn one_that_has_not_been_told_gets_everything() {
    let (mut rig, a, _) = running();
    let next = standby(&mut rig);
    prepared(&next);
    drop(next);
    rig.poll();
    // It may have the same descriptor's number here. It is another process all the same.
    let old = rig.arrive("a", true);
    assert_eq!(said(&old), None, "it does not know the word");
    drop(a);
    rig.poll();
    assert_eq!(takes_over(&mut rig, &old).len(), 5);
}

#[test]
fn a_hand_over_that_fails_gives_the_old_one_everything_back() {
    let (mut rig, a, _) = running();
    let next = standby(&mut rig);
    prepared(&next);
    let operator = rig.operator();
    rig.asks(&operator, &Request::Swap { device: "a".into(), wait_ms: 0 });
    assert_eq!(said(&a), Some(ToVsp::Quiesce {}));
    // The guest moves its interrupts just now.
    rig.post(GuestMessage::ModifyChannel(ModifyChannel { relid: 1, target_vp: 0 }));
    prepared(&next);
    rig.says(&a, &ToCore::Quiesced {});
    assert_eq!(takes_over(&mut rig, &next).len(), 0);
    rig.answers(&next, 1, STATUS_LEDGER);
    drop(next);
    rig.poll();
    assert_eq!(said(&a), Some(ToVsp::Serve { predecessor: true }));
    rig.says(&a, &ToCore::Serving {});
    assert_eq!(asked_to_open_at(&a, 1, 0).len(), 5);
}
