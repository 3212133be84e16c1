//! Processes that die, hang or lie, at every point of a channel's life, and those that come after them.

use super::*;

/// "a" reaches guest memory, "bb" does not; both served, the guest connected.
fn with_ram() -> (Rig, Peer, Peer) {
    let mut rig = Rig::with(vec![disk("a"), slot("bb")], vec![own_uid()]);
    let (a, b) = (rig.attach("a"), rig.attach("bb"));
    rig.contact();
    rig.post(GuestMessage::RequestOffers);
    assert_eq!(rig.heard().len(), 3);
    (rig, a, b)
}

fn die(rig: &mut Rig, process: Peer) {
    drop(process);
    rig.poll();
}

/// The next process of "a" arrives and has been told to serve.
fn successor(rig: &mut Rig) -> Peer {
    let next = rig.arrive("a", false);
    assert_eq!(said(&next), Some(ToVsp::Serve { predecessor: true }));
    next
}

#[test]
fn a_successor_gets_the_same_ring_and_ledger() {
    let (mut rig, a, _b) = Rig::running();
    let before = rig.open(&a, 1, 1);
    let ledger =
        SharedMemory::from_fd(before[4].try_clone().unwrap(), LEDGER).expect("sealed, as long as asked");
    assert_eq!(ledger.len(), LEDGER);
    let name = std::fs::read_link(format!("/proc/self/fd/{}", before[4].as_raw_fd())).unwrap();
    assert!(name.to_string_lossy().contains("bulkhead-ledger"), "{name:?}");
    nix::sys::uio::pwrite(&before[4], b"slots", 4096).unwrap();
    die(&mut rig, a);
    assert_eq!(rig.server.missing_devices(), ["a"]);
    assert!(rig.heard().is_empty() && rig.is_shared(1) && rig.is_bound(1), "the guest notices nothing");

    let next = successor(&mut rig);
    assert_eq!(rig.server.missing_devices(), ["a"], "not before it says so");
    assert_eq!(said(&next), None, "no channel before the fence");
    rig.says(&next, &ToCore::Serving {});
    assert!(rig.server.missing_devices().is_empty());
    let after = asked_to_open(&next, 1);
    assert!(same(&before[0], &after[0]) && same(&before[4], &after[4]));
    // The guest's kicks from the time between are still in the doorbell.
    nix::unistd::write(&before[1], &7u64.to_ne_bytes()).unwrap();
    let mut kicks = [0; 8];
    nix::unistd::read(&after[1], &mut kicks).unwrap();
    assert_eq!(u64::from_ne_bytes(kicks), 7);
    rig.answers(&next, 1, 0);
    assert!(rig.heard().is_empty(), "it has been open all the time");

    // A channel that is opened anew has nothing of the old one.
    rig.closes(1);
    assert_eq!(said(&next), Some(ToVsp::ChannelClose { channel: 1 }));
    rig.says(&next, &ToCore::Closed { channel: 1 });
    let anew = rig.open(&next, 1, 2);
    assert!(!same(&after[4], &anew[4]));
    let mut page = [1; 5];
    nix::sys::uio::pread(&anew[4], &mut page, 4096).unwrap();
    assert_eq!(page, [0; 5]);
}

#[test]
fn a_death_while_opening_delays_the_opening() {
    let (mut rig, a, _b) = Rig::running();
    rig.ask_open(1, 1);
    let before = asked_to_open(&a, 1);
    assert!(rig.server.deadline().is_some());
    die(&mut rig, a);
    assert!(rig.heard().is_empty() && rig.is_shared(1));
    assert_eq!(rig.server.deadline(), None, "whoever comes has the whole time");
    let next = successor(&mut rig);
    rig.says(&next, &ToCore::Serving {});
    assert!(same(&before[0], &asked_to_open(&next, 1)[0]));
    rig.answers(&next, 1, 0);
    assert_eq!(rig.heard(), [opened(1, 0)]);
}

#[test]
fn a_channel_that_nobody_serves_is_opened_when_somebody_does() {
    let (mut rig, a, _b) = Rig::running();
    die(&mut rig, a);
    rig.ask_open(1, 1);
    assert!(rig.heard().is_empty());
    let next = successor(&mut rig);
    rig.says(&next, &ToCore::Serving {});
    asked_to_open(&next, 1);
    rig.answers(&next, 1, 0xc000_0022);
    assert_eq!(rig.heard(), [opened(1, 0xc000_0022)], "it may still refuse");
    assert!(rig.server.is_quiet());
}

#[test]
fn a_guest_may_close_what_it_opens_while_nobody_is_there() {
    for ram in [false, true] {
        let (mut rig, a, _b) = if ram { with_ram() } else { Rig::running() };
        die(&mut rig, a);
        rig.ask_open(1, 1);
        rig.closes(1);
        assert_eq!(rig.heard(), [opened(1, STATUS_UNSUCCESSFUL)]);
        assert_eq!(rig.is_shared(1), ram, "the dead one's writes may still come");
        let next = successor(&mut rig);
        rig.says(&next, &ToCore::Serving {});
        assert!(said(&next).is_none() && rig.server.is_quiet());
        rig.open(&next, 1, 2);
    }
}

#[test]
fn a_death_while_closing_is_a_close_when_nothing_is_on_its_way() {
    let (mut rig, a, b) = with_ram();
    rig.open(&a, 1, 1);
    rig.open(&b, 2, 2);
    for relid in [1, 2] {
        rig.closes(relid);
        rig.post(GuestMessage::GpadlTeardown { relid, gpadl: relid });
    }
    die(&mut rig, a);
    die(&mut rig, b);
    assert_eq!(rig.heard(), [HostMessage::GpadlTorndown(2)], "it had no guest memory");
    assert!(rig.is_shared(1));
    let next = successor(&mut rig);
    assert!(rig.heard().is_empty(), "the fence is not passed");
    rig.says(&next, &ToCore::Serving {});
    assert_eq!(rig.heard(), [HostMessage::GpadlTorndown(1)]);
    assert!(rig.server.is_quiet());
    assert_eq!(said(&next), None, "it never hears of the channel");
}

#[test]
fn a_close_while_nobody_is_there_waits_for_the_fence_too() {
    let (mut rig, a, b) = with_ram();
    rig.open(&a, 1, 1);
    rig.open(&b, 2, 2);
    die(&mut rig, a);
    die(&mut rig, b);
    rig.closes(1);
    rig.closes(2);
    assert!(rig.is_shared(1) && !rig.is_shared(2));
    let next = successor(&mut rig);
    // One that dies at the fence changes nothing.
    die(&mut rig, next);
    assert!(rig.is_shared(1));
    let next = successor(&mut rig);
    rig.says(&next, &ToCore::Serving {});
    assert!(!rig.is_shared(1) && rig.server.is_quiet());
}

#[test]
fn a_standby_takes_over_at_once() {
    let (mut rig, a, _b) = Rig::running();
    let spare = rig.arrive("a", true);
    let before = rig.open(&a, 1, 1);
    assert_eq!(said(&spare), None);
    die(&mut rig, a);
    rig.serve(&spare, true);
    assert!(same(&before[0], &asked_to_open(&spare, 1)[0]));
    rig.answers(&spare, 1, 0);
    // There is room for the next one, and it does not matter if that one dies.
    let next = rig.arrive("a", true);
    die(&mut rig, next);
    rig.arrive("a", true);
    assert!(rig.server.missing_devices().is_empty() && rig.heard().is_empty());
}

#[test]
fn a_hello_may_be_read_before_the_end_of_the_old_process() {
    let (mut rig, a, _b) = Rig::running();
    rig.open(&a, 1, 1);
    drop(a);
    // Nobody has polled.
    let next = rig.arrive("a", false);
    rig.serve(&next, true);
    asked_to_open(&next, 1);
    // The same with a standby: it takes over, and the newcomer stands by.
    let spare = rig.arrive("a", true);
    drop(next);
    let third = rig.arrive("a", true);
    rig.serve(&spare, true);
    asked_to_open(&spare, 1);
    drop(third);
    rig.arrive("a", true);
}

#[test]
fn an_interrupt_that_moved_stays_where_it_is() {
    let (mut rig, a, _b) = Rig::running();
    rig.open(&a, 1, 1);
    rig.post(GuestMessage::ModifyChannel(ModifyChannel { relid: 1, target_vp: 0 }));
    die(&mut rig, a);
    let next = rig.arrive("a", false);
    rig.serve(&next, true);
    let fds = asked_to_open_at(&next, 1, 0);
    nix::unistd::write(&fds[2], &1u64.to_ne_bytes()).unwrap();
    assert!(rig.mock.wires[0].drain().unwrap());
    die(&mut rig, next);
    // And one that moves while nobody is there.
    rig.heard();
    rig.post(GuestMessage::ModifyChannel(ModifyChannel { relid: 1, target_vp: 1 }));
    assert_eq!(rig.heard(), [HostMessage::ModifyChannelResponse { relid: 1, status: 0 }]);
    let next = rig.arrive("a", false);
    rig.serve(&next, true);
    let fds = asked_to_open_at(&next, 1, 1);
    assert!(same(&fds[3], &rig.server.synic.event_flags(1).as_fd().try_clone_to_owned().unwrap()));
    assert!(told(&next).is_none());
}

#[test]
fn a_successor_that_offers_something_else_is_refused() {
    let (mut rig, a, _b) = Rig::running();
    rig.open(&a, 1, 1);
    let other = |change: fn(&mut DeviceOffer)| {
        let mut offer = offer();
        change(&mut offer);
        hello_of("a", offer, LEDGER)
    };
    let others = [
        other(|o| o.class = class::SCSI.to_string()),
        other(|o| o.user_defined = vec![0, 1]),
        other(|o| o.flags.named_pipe = true),
        other(|o| o.mmio_megabytes = 1),
        hello_of("a", offer(), 0),
    ];
    for round in 0..2 {
        for hello in &others {
            let Some(ToVsp::Refused { reason }) = said(&rig.meet(hello)) else {
                panic!("welcome: {hello:?}")
            };
            assert!(reason.contains("than the one") || reason.contains("ledger"), "{reason}");
        }
        if round == 0 {
            assert!(!is_cut_off(&a));
            rig.poll();
            rig.server.tick(&rig.mock, Instant::now());
            let fd = rig.server.devices[0].slot.all().next().unwrap().1.peer.as_raw_fd();
            nix::sys::socket::shutdown(a.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
            rig.server.peer_ready(&rig.mock, fd);
        }
    }
    // Bytes of user data that are zero anyway are no difference, nor is a ledger of another size.
    let same = other(|o| o.user_defined = vec![0; 5]);
    let ToCore::Hello { versions, device, offer, build, .. } = same else { unreachable!() };
    let next = rig.meet(&ToCore::Hello { versions, device, offer, ledger: 4096, build });
    assert!(matches!(said(&next), Some(ToVsp::Welcome { .. })));
    // A new guest knows nothing of the old offer.
    drop(next);
    rig.poll();
    rig.server.reset(&rig.mock);
    assert!(rig.server.is_quiet());
    assert!(matches!(said(&rig.meet(&others[0])), Some(ToVsp::Welcome { .. })));
}

#[test]
fn a_successor_that_cannot_read_a_ledger_makes_way() {
    let (mut rig, a, _b) = Rig::running();
    rig.open(&a, 1, 1);
    die(&mut rig, a);
    let next = rig.arrive("a", false);
    rig.serve(&next, true);
    asked_to_open(&next, 1);
    rig.answers(&next, 1, STATUS_LEDGER);
    let Some(ToVsp::Refused { reason }) = said(&next) else { panic!() };
    assert!(reason.contains("because"), "{reason}");
    assert!(is_cut_off(&next) && rig.heard().is_empty() && rig.is_shared(1));
    assert_eq!(rig.server.missing_devices(), ["a"]);
    // It has had the ring: nobody else is told to serve before it has ended, whatever it still says.
    let better = rig.arrive("a", true);
    next.send_bytes(b"nonsense", &[]).unwrap();
    next.send_bytes(&[b'x'; 60_000], &[]).unwrap();
    rig.says(&next, &ToCore::Serving {});
    assert_eq!(said(&better), None);
    die(&mut rig, next);
    rig.serve(&better, true);
    asked_to_open(&better, 1);
    rig.answers(&better, 1, 0);
    assert!(rig.server.missing_devices().is_empty());
}

#[test]
fn a_successor_that_has_no_memory_for_an_open_channel_makes_way() {
    for status in [ipc::message::STATUS_REFUSED, 0xc000_009a] {
        let (mut rig, a, _b) = Rig::running();
        let before = rig.open(&a, 1, 1);
        die(&mut rig, a);
        let next = rig.arrive("a", false);
        rig.serve(&next, true);
        asked_to_open(&next, 1);
        rig.answers(&next, 1, status);
        assert!(matches!(said(&next), Some(ToVsp::Refused { reason }) if reason.contains("because")));
        assert!(rig.heard().is_empty() && rig.is_shared(1), "the guest waits for the next one");
        die(&mut rig, next);
        let next = rig.arrive("a", false);
        rig.serve(&next, true);
        assert!(same(&before[4], &asked_to_open(&next, 1)[4]));
        rig.answers(&next, 1, 0);
        assert!(rig.server.missing_devices().is_empty() && rig.heard().is_empty());
    }
}

#[test]
fn a_successor_may_refuse_what_the_guest_closes_meanwhile() {
    let (mut rig, a, _b) = Rig::running();
    rig.open(&a, 1, 1);
    die(&mut rig, a);
    let next = rig.arrive("a", false);
    rig.serve(&next, true);
    asked_to_open(&next, 1);
    rig.closes(1);
    assert_eq!(said(&next), Some(ToVsp::ChannelClose { channel: 1 }));
    rig.answers(&next, 1, ipc::message::STATUS_REFUSED);
    rig.says(&next, &ToCore::Closed { channel: 1 });
    assert!(!is_cut_off(&next) && rig.server.is_quiet());
    rig.open(&next, 1, 2);
}

#[test]
fn a_process_that_plays_dead_is_not_believed() {
    let (mut rig, a, b) = with_ram();
    let operator = rig.operator();
    rig.open(&a, 1, 1);
    let spare = rig.arrive("a", true);
    let sends_nothing = |rig: &mut Rig, process: &Peer| {
        process.send_bytes(b"", &[]).unwrap();
        rig.poll();
    };
    sends_nothing(&mut rig, &a);
    let Some(Reply::CutOff { reason, had_channels: true, .. }) = reply(&operator) else { panic!() };
    assert!(reason.contains("nothing") && is_cut_off(&a), "{reason}");
    for _ in 0..3 {
        sends_nothing(&mut rig, &a);
        assert_eq!(said(&spare), None, "it still has the ring, and guest memory");
    }
    // One that stands by has nothing to play for.
    sends_nothing(&mut rig, &spare);
    assert!(is_cut_off(&spare) && !is_cut_off(&b));
    assert!(matches!(reply(&operator), Some(Reply::CutOff { had_channels: false, .. })));
    let spare = rig.arrive("a", true);
    die(&mut rig, a);
    rig.serve(&spare, true);
    asked_to_open(&spare, 1);
}

#[test]
fn a_process_that_does_not_answer_is_cut_off_and_its_successor_waits_for_its_end() {
    for opening in [true, false] {
        let (mut rig, a, b) = with_ram();
        let operator = rig.operator();
        let grace = if opening {
            rig.ask_open(1, 1);
            asked_to_open(&a, 1);
            OPEN_GRACE
        } else {
            rig.open(&a, 1, 1);
            rig.closes(1);
            CLOSE_GRACE
        };
        let deadline = rig.server.deadline().expect("it has to answer");
        assert!(deadline <= Instant::now() + grace);
        rig.server.tick(&rig.mock, deadline - Duration::from_millis(1));
        assert_eq!(reply(&operator), None);
        rig.server.tick(&rig.mock, deadline);
        let Some(Reply::CutOff { device, reason, had_channels: true }) = reply(&operator) else { panic!() };
        assert!(device == "a" && reason.contains("in time"), "{reason}");
        assert!(is_cut_off(&a) && rig.is_shared(1) && rig.heard().is_empty());
        assert!(rig.server.failure().is_none(), "the VM goes on");
        let next = rig.arrive("a", true);
        assert_eq!(said(&next), None);
        die(&mut rig, a);
        rig.serve(&next, true);
        if opening {
            asked_to_open(&next, 1);
            rig.answers(&next, 1, 0);
            assert_eq!(rig.heard(), [opened(1, 0)]);
        } else {
            assert!(rig.server.is_quiet());
        }
        rig.open(&b, 2, 2);
    }
}

#[test]
fn the_first_process_has_no_predecessor_even_if_another_one_has_tried() {
    let mut rig = Rig::new();
    let first = rig.arrive("a", false);
    assert_eq!(said(&first), Some(ToVsp::Serve { predecessor: false }));
    // The resource is in use, so it ends without having served.
    die(&mut rig, first);
    rig.attach("a");
}

#[test]
fn whatever_is_said_out_of_turn_ends_that_process_alone() {
    let said_at_the_fence = [
        ToCore::OpenResult { channel: 1, status: 0, reason: None },
        ToCore::Closed { channel: 1 },
        ToCore::Quiesced {},
        ToCore::OfferSubchannels { count: 1 },
        hello("a"),
    ];
    for message in said_at_the_fence {
        let (mut rig, a, b) = Rig::running();
        rig.open(&a, 1, 1);
        die(&mut rig, a);
        let next = successor(&mut rig);
        rig.says(&next, &message);
        assert!(is_cut_off(&next) && !is_cut_off(&b), "{message:?}");
        assert!(rig.heard().is_empty() && rig.is_shared(1));
        // It was told to serve, so the next one waits for its end.
        let better = rig.arrive("a", true);
        assert_eq!(said(&better), None);
        die(&mut rig, next);
        assert_eq!(said(&better), Some(ToVsp::Serve { predecessor: true }));
    }
    for message in [ToCore::Serving {}, ToCore::Quiesced {}, ToCore::Closed { channel: 1 }] {
        let (mut rig, a, _b) = Rig::running();
        let spare = rig.arrive("a", true);
        rig.says(&spare, &message);
        assert!(is_cut_off(&spare) && !is_cut_off(&a), "{message:?}");
        rig.arrive("a", true);
    }
}

#[test]
fn a_reset_waits_for_the_memory_of_a_device_that_is_away() {
    let (mut rig, a, b) = with_ram();
    rig.open(&a, 1, 1);
    rig.open(&b, 2, 2);
    die(&mut rig, a);
    rig.server.reset(&rig.mock);
    assert_eq!(said(&b), Some(ToVsp::ChannelClose { channel: 2 }));
    assert!(!rig.server.is_released());
    rig.says(&b, &ToCore::Closed { channel: 2 });
    assert!(rig.server.is_released(), "a VM that ends waits for nobody");
    assert!(!rig.server.is_quiet() && rig.server.deadline().is_none());
    let next = successor(&mut rig);
    rig.says(&next, &ToCore::Serving {});
    assert!(rig.server.is_quiet() && rig.server.missing_devices().is_empty());
    rig.ram.store_u32(crate::testing::slot(0), 0).unwrap();
    (0..VPS).for_each(|vp| rig.server.set_synic(&rig.mock, vp, registers(vp)));
    rig.contact();
    rig.open(&next, 1, 3);
}
