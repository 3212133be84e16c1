//! Hand-overs from one living process to another, and all the ways in which they fail.

use super::*;

/// "a" with channel 1 open, served by the first process; the second stands by.
struct Pair {
    rig: Rig,
    old: Peer,
    new: Peer,
    operator: Peer,
    /// What the old one got with its channel.
    fds: Vec<OwnedFd>,
    _other: Peer,
}

impl Pair {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(ram: bool) -> Self {
        let one = if ram { disk("a") } else { slot("a") };
        let mut rig = Rig::with(vec![one, slot("bb")], vec![own_uid()]);
        let (old, other) = (rig.attach("a"), rig.attach("bb"));
        rig.contact();
        rig.post(GuestMessage::RequestOffers);
        rig.heard();
        let fds = rig.open(&old, 1, 1);
        let mut new = rig.meet(&hello("a"));
        assert!(matches!(said(&new), Some(ToVsp::Welcome { standby: true, .. })));
        if ram {
            // The welcome's own descriptor has been taken; nothing else is there.
            assert_eq!(said(&new), None);
        }
        let operator = rig.operator();
        new.set_nonblocking(true).unwrap();
        new = Peer::from_fd(new.into()).unwrap();
        Self { rig, old, new, operator, fds, _other: other }
    }

    fn ask(&mut self) {
        self.rig.asks(&self.operator, &Request::Swap { device: "a".into(), wait_ms: 0 });
    }

    /// The old one has been told to stop.
    fn begin(&mut self) {
        self.ask();
        assert_eq!(said(&self.old), Some(ToVsp::Quiesce {}));
        assert_eq!((said(&self.new), reply(&self.operator)), (None, None));
    }

    /// The old one has stopped, and the new one been told to serve.
    fn hand(&mut self) {
        self.begin();
        self.rig.says(&self.old, &ToCore::Quiesced {});
        assert_eq!(said(&self.new), Some(ToVsp::Serve { predecessor: true }));
        assert_eq!(said(&self.old), None);
    }

    /// The new one serves, and has been asked to take the channel.
    fn adopt(&mut self) {
        self.hand();
        self.rig.says(&self.new, &ToCore::Serving {});
        assert!(same(&asked_to_open(&self.new, 1)[4], &self.fds[4]));
        assert_eq!((said(&self.old), reply(&self.operator)), (None, None));
    }

    /// The old one serves again, and the operator knows.
    fn is_back(&mut self, why: &str) {
        assert_eq!(said(&self.old), Some(ToVsp::Serve { predecessor: true }));
        assert_eq!(reply(&self.operator), None, "not before it is true");
        self.rig.says(&self.old, &ToCore::Serving {});
        let fds = asked_to_open(&self.old, 1);
        assert!(same(&fds[0], &self.fds[0]) && same(&fds[4], &self.fds[4]));
        self.rig.answers(&self.old, 1, 0);
        let reason = loop {
            match reply(&self.operator) {
                Some(Reply::Failed { device, reason }) if device == "a" => break reason,
                Some(Reply::CutOff { .. }) => {}
                other => panic!("{other:?}"),
            }
        };
        assert!(reason.contains(why), "{reason}");
        assert!(self.rig.heard().is_empty() && self.rig.is_shared(1), "the guest notices nothing");
        assert!(self.rig.server.missing_devices().is_empty());
        assert_eq!(self.rig.server.deadline(), None);
        // And it can be handed over another time.
        let next = self.rig.meet(&hello("a"));
        assert!(matches!(said(&next), Some(ToVsp::Welcome { standby: true, .. })));
        self.ask();
        assert_eq!(said(&self.old), Some(ToVsp::Quiesce {}));
    }

    fn swapped(&mut self) {
        assert!(matches!(reply(&self.operator), Some(Reply::Swapped { device, .. }) if device == "a"));
        assert!(self.rig.server.missing_devices().is_empty() && self.rig.heard().is_empty());
        assert_eq!(self.rig.server.deadline(), None);
    }

    fn fail(&mut self) -> String {
        match reply(&self.operator) {
            Some(Reply::Failed { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn wait(&mut self, grace: Duration) {
        let deadline = self.rig.server.deadline().expect("it does not wait for ever");
        assert!(deadline <= Instant::now() + grace);
        self.rig.server.tick(&self.rig.mock, deadline);
    }

    fn cut_off(&mut self, had_channels: bool) {
        let told = reply(&self.operator);
        assert!(
            matches!(told, Some(Reply::CutOff { had_channels: had, .. }) if had == had_channels),
            "{told:?}"
        );
    }
}

/// Ends one of two processes.
fn end(pair: &mut Pair, which: fn(&mut Pair) -> &mut Peer) {
    let (dead, _) = Peer::pair().unwrap();
    drop(std::mem::replace(which(pair), dead));
    pair.rig.poll();
}

#[test]
fn a_device_is_handed_over() {
    for ram in [false, true] {
        let mut pair = Pair::with(ram);
        pair.adopt();
        pair.rig.answers(&pair.new, 1, 0);
        pair.swapped();
        assert_eq!(said(&pair.old), Some(ToVsp::Retire {}));
        assert!(is_cut_off(&pair.old));
        // The new one is now like any other.
        pair.rig.closes(1);
        assert_eq!(said(&pair.new), Some(ToVsp::ChannelClose { channel: 1 }));
        pair.rig.says(&pair.new, &ToCore::Closed { channel: 1 });
        assert!(pair.rig.server.is_quiet());
    }
}

#[test]
fn a_device_without_channels_is_handed_over_too() {
    let mut rig = Rig::new();
    let (old, operator) = (rig.attach("a"), rig.operator());
    let new = rig.arrive("a", true);
    rig.asks(&operator, &Request::Swap { device: "a".into(), wait_ms: 0 });
    assert_eq!(said(&old), Some(ToVsp::Quiesce {}));
    rig.says(&old, &ToCore::Quiesced {});
    rig.serve(&new, true);
    assert!(matches!(reply(&operator), Some(Reply::Swapped { .. })));
    assert_eq!(said(&old), Some(ToVsp::Retire {}));
}

#[test]
fn what_cannot_be_handed_over_is_said_at_once() {
    let mut rig = Rig::new();
    let operator = rig.operator();
    let fails = |rig: &mut Rig, device: &str, why: &str| {
        rig.asks(&operator, &Request::Swap { device: device.into(), wait_ms: 0 });
        let Some(Reply::Failed { reason, .. }) = reply(&operator) else { panic!() };
        assert!(reason.contains(why), "{reason}");
    };
    fails(&mut rig, "c", "no such device");
    fails(&mut rig, "a", "no process serves");
    let a = rig.attach("a");
    fails(&mut rig, "a", "no process stands by");
    assert_eq!(said(&a), None);
}

#[test]
fn an_operator_may_wait_for_a_standby() {
    let mut rig = Rig::new();
    let (a, operator) = (rig.attach("a"), rig.operator());
    let wait = Request::Swap { device: "a".into(), wait_ms: 500 };
    rig.asks(&operator, &wait);
    assert_eq!(reply(&operator), None);
    let new = rig.arrive("a", true);
    assert_eq!(said(&a), Some(ToVsp::Quiesce {}));
    rig.says(&a, &ToCore::Quiesced {});
    rig.serve(&new, true);
    assert!(matches!(reply(&operator), Some(Reply::Swapped { .. })));
    // In vain, the second time; and what it asks meanwhile is answered after.
    rig.asks(&operator, &wait);
    rig.asks(&operator, &Request::Devices {});
    assert_eq!(reply(&operator), None);
    let other = rig.operator();
    rig.asks(&other, &wait);
    assert!(matches!(reply(&other), Some(Reply::Failed { reason, .. }) if reason.contains("under way")));
    let deadline = rig.server.deadline().unwrap();
    rig.server.tick(&rig.mock, deadline);
    rig.poll();
    assert!(matches!(reply(&operator), Some(Reply::Failed { reason, .. }) if reason.contains("stands by")));
    assert!(matches!(reply(&operator), Some(Reply::Devices(_))));
    assert_eq!(said(&new), None);
}

#[test]
fn an_operator_that_leaves_changes_nothing() {
    let mut pair = Pair::new();
    pair.begin();
    let (dead, _) = Peer::pair().unwrap();
    pair.operator = dead;
    pair.rig.says(&pair.old, &ToCore::Quiesced {});
    pair.rig.serve(&pair.new, true);
    asked_to_open(&pair.new, 1);
    pair.rig.answers(&pair.new, 1, 0);
    assert_eq!(said(&pair.old), Some(ToVsp::Retire {}));
    assert!(pair.rig.server.missing_devices().is_empty());
}

#[test]
fn a_new_process_that_cannot_read_the_ledger_gives_way_to_the_old_one() {
    let mut pair = Pair::new();
    pair.adopt();
    pair.rig.answers(&pair.new, 1, STATUS_LEDGER);
    assert!(matches!(said(&pair.new), Some(ToVsp::Refused { reason }) if reason.contains("because")));
    assert_eq!(said(&pair.old), None, "the new one still has the ring");
    end(&mut pair, |p| &mut p.new);
    pair.is_back("because");
}

#[test]
fn a_new_process_that_refuses_or_dies_or_lies_gives_way_to_the_old_one() {
    // Dies before it is told anything, while it fences, while it takes over.
    for (step, why) in [(Pair::begin as fn(&mut Pair), "died"), (Pair::hand, "died"), (Pair::adopt, "died")] {
        let mut pair = Pair::new();
        step(&mut pair);
        end(&mut pair, |p| &mut p.new);
        if said(&pair.old).is_none() {
            // It was told to stop, and has to have stopped before it goes on.
            pair.rig.says(&pair.old, &ToCore::Quiesced {});
        } else {
            pair.old_heard_serve();
        }
        pair.is_back_after(why);
    }
    // Lies.
    for message in
        [ToCore::Quiesced {}, hello("a"), ToCore::OpenResult { channel: 2, status: 0, reason: None }]
    {
        let mut pair = Pair::new();
        pair.adopt();
        pair.rig.says(&pair.new, &message);
        assert!(is_cut_off(&pair.new), "{message:?}");
        pair.cut_off(true);
        end(&mut pair, |p| &mut p.new);
        pair.is_back("may not");
    }
    // Refuses the channel for another reason.
    let mut pair = Pair::new();
    pair.adopt();
    pair.rig.answers(&pair.new, 1, ipc::message::STATUS_REFUSED);
    end(&mut pair, |p| &mut p.new);
    pair.is_back("because");
}

impl Pair {
    fn old_heard_serve(&mut self) {
        self.rig.says(&self.old, &ToCore::Serving {});
        asked_to_open(&self.old, 1);
        self.rig.answers(&self.old, 1, 0);
    }

    /// As [`Self::is_back`], whether or not the old one has been told to serve already.
    fn is_back_after(&mut self, why: &str) {
        if let Some(message) = said(&self.old) {
            assert_eq!(message, ToVsp::Serve { predecessor: true });
            self.old_heard_serve();
        }
        assert!(self.fail().contains(why));
        assert!(self.rig.heard().is_empty() && self.rig.is_shared(1));
        assert!(self.rig.server.missing_devices().is_empty() && self.rig.server.deadline().is_none());
    }
}

#[test]
fn a_new_process_that_hangs_gives_way_to_the_old_one() {
    let mut pair = Pair::new();
    pair.hand();
    pair.wait(FENCE_GRACE);
    pair.cut_off(false);
    assert!(is_cut_off(&pair.new));
    assert_eq!(said(&pair.old), None, "the new one may have begun");
    end(&mut pair, |p| &mut p.new);
    pair.is_back("in time");
    let mut pair = Pair::new();
    pair.adopt();
    pair.wait(ADOPT_GRACE);
    pair.cut_off(true);
    end(&mut pair, |p| &mut p.new);
    pair.is_back("in time");
}

#[test]
fn an_old_process_that_dies_leaves_everything_to_the_new_one() {
    for step in [Pair::begin as fn(&mut Pair), Pair::hand, Pair::adopt] {
        let mut pair = Pair::with(true);
        step(&mut pair);
        end(&mut pair, |p| &mut p.old);
        match said(&pair.new) {
            Some(ToVsp::Serve { predecessor: true }) => {
                pair.rig.says(&pair.new, &ToCore::Serving {});
                asked_to_open(&pair.new, 1);
            }
            None if !pair.rig.server.missing_devices().is_empty() => {
                pair.rig.says(&pair.new, &ToCore::Serving {});
                asked_to_open(&pair.new, 1);
            }
            None => {}
            other => panic!("{other:?}"),
        }
        pair.rig.answers(&pair.new, 1, 0);
        pair.swapped();
    }
}

#[test]
fn an_old_process_that_never_stops_is_cut_off() {
    let mut pair = Pair::new();
    pair.begin();
    pair.wait(QUIESCE_GRACE);
    pair.cut_off(true);
    assert!(is_cut_off(&pair.old));
    assert_eq!(said(&pair.new), None, "it may still be at it");
    end(&mut pair, |p| &mut p.old);
    pair.rig.serve(&pair.new, true);
    asked_to_open(&pair.new, 1);
    pair.rig.answers(&pair.new, 1, 0);
    pair.swapped();
}

#[test]
fn when_both_are_lost_the_next_one_serves() {
    let mut pair = Pair::new();
    pair.adopt();
    end(&mut pair, |p| &mut p.old);
    let third = pair.rig.arrive("a", true);
    end(&mut pair, |p| &mut p.new);
    assert!(pair.fail().contains("both"));
    pair.rig.serve(&third, true);
    asked_to_open(&third, 1);
    assert!(pair.rig.heard().is_empty());
}

#[test]
fn a_quiet_process_has_nothing_to_say() {
    let mut pair = Pair::new();
    pair.hand();
    pair.rig.says(&pair.old, &ToCore::OpenResult { channel: 1, status: 0, reason: None });
    assert!(is_cut_off(&pair.old));
    assert_eq!(reply(&pair.operator), None, "told now, somebody might end the new one");
    pair.rig.says(&pair.new, &ToCore::Serving {});
    asked_to_open(&pair.new, 1);
    pair.rig.answers(&pair.new, 1, 0);
    pair.swapped();
}

#[test]
fn an_old_process_that_strays_is_reported_when_the_new_one_is_lost_too() {
    for step in [Pair::hand as fn(&mut Pair), Pair::adopt] {
        let mut pair = Pair::new();
        step(&mut pair);
        pair.rig.says(&pair.old, &ToCore::Serving {});
        assert!(is_cut_off(&pair.old));
        end(&mut pair, |p| &mut p.new);
        assert!(pair.fail().contains("both"));
        assert_eq!(reply(&pair.operator), None, "the new one has not been reaped");
        pair.wait(GHOST_GRACE);
        pair.cut_off(true);
        assert_eq!(pair.rig.server.deadline(), None, "once");
        let next = pair.rig.arrive("a", false);
        pair.rig.serve(&next, true);
        asked_to_open(&next, 1);
    }
}

#[test]
fn a_guest_closes_in_the_middle() {
    // While the old one stops: it is not told, and its word that it has stopped is enough.
    let mut pair = Pair::with(true);
    pair.begin();
    pair.rig.closes(1);
    assert!(said(&pair.old).is_none() && pair.rig.is_shared(1));
    pair.rig.says(&pair.old, &ToCore::Quiesced {});
    assert!(pair.rig.server.is_quiet());
    pair.rig.serve(&pair.new, true);
    pair.swapped();
    // While nobody has it.
    let mut pair = Pair::with(true);
    pair.hand();
    pair.rig.closes(1);
    assert!(pair.rig.server.is_quiet());
    pair.rig.says(&pair.new, &ToCore::Serving {});
    assert_eq!(said(&pair.new), None);
    pair.swapped();
    // While the new one takes it over.
    let mut pair = Pair::with(true);
    pair.adopt();
    pair.rig.closes(1);
    assert_eq!(said(&pair.new), Some(ToVsp::ChannelClose { channel: 1 }));
    pair.rig.answers(&pair.new, 1, 0);
    pair.rig.says(&pair.new, &ToCore::Closed { channel: 1 });
    pair.swapped();
    assert!(pair.rig.server.is_quiet());
    // A close that was under way before.
    let mut pair = Pair::with(true);
    pair.rig.closes(1);
    assert_eq!(said(&pair.old), Some(ToVsp::ChannelClose { channel: 1 }));
    pair.begin();
    pair.rig.says(&pair.old, &ToCore::Closed { channel: 1 });
    assert!(pair.rig.server.is_quiet());
    pair.rig.says(&pair.old, &ToCore::Quiesced {});
    pair.rig.serve(&pair.new, true);
    pair.swapped();
}

#[test]
fn a_guest_opens_in_the_middle() {
    for (step, stopped) in [(Pair::begin as fn(&mut Pair), false), (Pair::hand, true)] {
        let mut pair = Pair::new();
        pair.rig.closes(1);
        said(&pair.old);
        pair.rig.says(&pair.old, &ToCore::Closed { channel: 1 });
        step(&mut pair);
        pair.rig.ask_open(1, 5);
        assert_eq!(said(&pair.old), None);
        if !stopped {
            pair.rig.says(&pair.old, &ToCore::Quiesced {});
            assert_eq!(said(&pair.new), Some(ToVsp::Serve { predecessor: true }));
        }
        pair.rig.says(&pair.new, &ToCore::Serving {});
        asked_to_open(&pair.new, 1);
        pair.rig.answers(&pair.new, 1, 0);
        assert_eq!(pair.rig.heard(), [opened(1, 0)]);
        pair.swapped();
    }
}

#[test]
fn an_open_that_the_old_one_has_not_answered_is_the_new_ones() {
    let mut pair = Pair::new();
    pair.rig.closes(1);
    said(&pair.old);
    pair.rig.says(&pair.old, &ToCore::Closed { channel: 1 });
    pair.rig.ask_open(1, 5);
    asked_to_open(&pair.old, 1);
    pair.hand();
    pair.rig.says(&pair.new, &ToCore::Serving {});
    asked_to_open(&pair.new, 1);
    pair.rig.answers(&pair.new, 1, 0xc000_0022);
    assert_eq!(pair.rig.heard(), [opened(1, 0xc000_0022)]);
    pair.swapped();
}

#[test]
fn a_guest_moves_its_interrupt_in_the_middle() {
    let modify = |pair: &mut Pair, target_vp| {
        pair.rig.post(GuestMessage::ModifyChannel(ModifyChannel { relid: 1, target_vp }));
        assert_eq!(pair.rig.heard(), [HostMessage::ModifyChannelResponse { relid: 1, status: 0 }]);
    };
    let mut pair = Pair::new();
    pair.begin();
    modify(&mut pair, 0);
    assert_eq!(said(&pair.old), None);
    pair.rig.says(&pair.old, &ToCore::Quiesced {});
    modify(&mut pair, 1);
    modify(&mut pair, 0);
    pair.rig.serve(&pair.new, true);
    asked_to_open_at(&pair.new, 1, 0);
    modify(&mut pair, 1);
    assert_eq!(said(&pair.new), Some(ToVsp::Retarget { channel: 1, target_vp: 1 }));
    pair.rig.answers(&pair.new, 1, 0);
    pair.swapped();
}

#[test]
fn a_guest_is_reset_in_the_middle() {
    for step in [Pair::begin as fn(&mut Pair), Pair::hand, Pair::adopt] {
        let mut pair = Pair::with(true);
        step(&mut pair);
        pair.rig.server.reset(&pair.rig.mock);
        if said(&pair.new) == Some(ToVsp::ChannelClose { channel: 1 }) {
            pair.rig.says(&pair.new, &ToCore::Closed { channel: 1 });
        } else if !pair.rig.server.is_quiet() {
            pair.rig.says(&pair.old, &ToCore::Quiesced {});
            pair.rig.serve(&pair.new, true);
        } else {
            pair.rig.says(&pair.new, &ToCore::Serving {});
        }
        assert!(pair.rig.server.is_quiet());
        pair.swapped();
    }
}
