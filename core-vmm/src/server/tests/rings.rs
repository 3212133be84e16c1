//! A channel from open to close, with devices that answer, late or never.

use super::*;

#[test]
fn an_opened_channel_has_pages_and_a_doorbell() {
    let (mut rig, a, _b) = Rig::running();
    rig.ram.write((RINGS + 8) * PAGE, b"ring").unwrap();
    let fds = rig.open(&a, 1, 1);
    let mut seen = [0; 4];
    nix::sys::uio::pread(&fds[0], &mut seen, 0).unwrap();
    assert_eq!(&seen, b"ring");
    assert!(rig.is_shared(1));
    assert_eq!(rig.mock.bells.borrow().keys().copied().collect::<Vec<_>>(), [Bus::connection_id(1)]);
    assert!(!rig.server.is_quiet());

    rig.post(GuestMessage::CloseChannel(1));
    rig.post(GuestMessage::GpadlTeardown { relid: 1, gpadl: 1 });
    assert!(rig.heard().is_empty(), "the device has not let go");
    assert!(matches!(told(&a), Some((ToVsp::ChannelClose { channel: 1 }, _))));
    a.send(&ToCore::Closed { channel: 1 }, &[]).unwrap();
    rig.poll();
    assert_eq!(rig.heard(), [HostMessage::GpadlTorndown(1)]);
    assert!(!rig.is_shared(1));
    assert!(rig.mock.bells.borrow().is_empty());
    assert!(rig.server.is_quiet() && rig.server.deadline().is_none());
    nix::sys::uio::pwrite(&fds[0], b"late", 0).unwrap();
    rig.ram.read((RINGS + 8) * PAGE, &mut seen).unwrap();
    assert_eq!(&seen, b"ring", "a device that keeps the memfd keeps nothing of the guest's");
    rig.open(&a, 1, 2);
}

#[test]
fn a_device_may_refuse_a_channel() {
    let (mut rig, a, _b) = Rig::running();
    rig.ask_open(1, 1);
    asked_to_open(&a, 1);
    a.send(&ToCore::OpenResult { channel: 1, status: 0xc000_0022, reason: None }, &[]).unwrap();
    rig.poll();
    assert_eq!(rig.heard(), [opened(1, 0xc000_0022)]);
    assert!(!rig.is_shared(1) && rig.mock.bells.borrow().is_empty() && rig.server.is_quiet());
    rig.open(&a, 1, 2);
}

#[test]
fn a_device_that_never_closes_is_cut_off_in_time() {
    let (mut rig, a, b) = Rig::running();
    rig.open(&a, 1, 1);
    assert_eq!(rig.server.deadline(), None);
    rig.post(GuestMessage::CloseChannel(1));
    rig.post(GuestMessage::GpadlTeardown { relid: 1, gpadl: 1 });
    let deadline = rig.server.deadline().expect("it has to answer");
    rig.server.tick(&rig.mock, deadline - Duration::from_millis(1));
    assert!(!is_cut_off(&a) && rig.is_shared(1));
    rig.server.tick(&rig.mock, deadline);
    assert!(is_cut_off(&a) && !rig.is_shared(1));
    assert_eq!(rig.heard(), [HostMessage::GpadlTorndown(1)]);
    drop(a);
    rig.poll();
    assert_eq!(rig.server.deadline(), None);
    rig.open(&b, 2, 2);
}

#[test]
fn a_channel_closed_while_it_opens_is_closed_once_the_device_says_so() {
    let (mut rig, a, _b) = Rig::running();
    rig.ask_open(1, 1);
    asked_to_open(&a, 1);
    rig.post(GuestMessage::CloseChannel(1));
    assert_eq!(rig.heard(), [opened(1, STATUS_UNSUCCESSFUL)]);
    a.send(&ToCore::OpenResult { channel: 1, status: 0, reason: None }, &[]).unwrap();
    rig.poll();
    assert!(rig.heard().is_empty() && rig.is_shared(1), "it may be using the pages");
    assert!(matches!(told(&a), Some((ToVsp::ChannelClose { channel: 1 }, _))));
    a.send(&ToCore::Closed { channel: 1 }, &[]).unwrap();
    rig.poll();
    assert!(rig.server.is_quiet() && !rig.is_shared(1));
    rig.open(&a, 1, 2);
}

#[test]
fn pages_that_cannot_be_shared_are_refused() {
    let (mut rig, a, b) = Rig::running();
    rig.open(&a, 1, 1);
    let good: Vec<u64> = (0x300..0x308).collect();
    let with = |pfn: u64| good.iter().map(|&p| if p == 0x305 { pfn } else { p }).collect::<Vec<_>>();
    // Another channel's page, a VP's event flags, no RAM, the last address, a page twice.
    let bad = [RINGS + 9, 0x101, RAM / PAGE, 0xc_0000, (1 << 40) - 1, 0x300];
    for (n, pfn) in bad.into_iter().enumerate() {
        rig.ask_open_of(2, 10 + n as u32, &with(pfn));
        assert_eq!(rig.heard(), [opened(2, STATUS_UNSUCCESSFUL)], "{pfn:#x}");
        assert_eq!(rig.server.live.len(), 1);
    }
    assert!(told(&b).is_none(), "the device never hears of it");
    rig.ask_open_of(2, 20, &good);
    asked_to_open(&b, 2);
}

#[test]
fn a_page_in_use_as_a_ring_is_no_event_flag_page() {
    let (mut rig, a, _b) = Rig::running();
    rig.open(&a, 1, 1);
    let ring = (RINGS + 8) * PAGE;
    let stolen = SynicRegisters { event_page: ring | 1, ..registers(1) };
    rig.server.set_synic(&rig.mock, 1, stolen);
    rig.ram.write(ring, b"ring").unwrap();
    let mut seen = [0; 4];
    nix::sys::uio::pread(rig.server.live[0].pages.memory().as_fd(), &mut seen, 0).unwrap();
    assert_eq!(&seen, b"ring", "the ring stays where it is");
    rig.server.set_synic(&rig.mock, 1, registers(1));
    rig.post(GuestMessage::CloseChannel(1));
    assert!(matches!(told(&a), Some((ToVsp::ChannelClose { .. }, _))));
}

#[test]
fn a_doorbell_that_cannot_be_bound_refuses_the_channel() {
    let (mut rig, a, _b) = Rig::running();
    rig.mock.has_bells = false;
    rig.ask_open(1, 1);
    assert_eq!(rig.heard(), [opened(1, STATUS_UNSUCCESSFUL)]);
    assert!(rig.server.is_quiet() && !rig.is_shared(1));
    rig.mock.has_bells = true;
    assert!(told(&a).is_none());
    rig.open(&a, 1, 2);
}

#[test]
fn retargeting_hands_the_device_the_other_vps_wires() {
    let (mut rig, a, _b) = Rig::running();
    rig.open(&a, 1, 1);
    rig.post(GuestMessage::ModifyChannel(ModifyChannel { relid: 1, target_vp: 0 }));
    assert_eq!(rig.heard(), [HostMessage::ModifyChannelResponse { relid: 1, status: 0 }]);
    let Some((ToVsp::Retarget { channel: 1, target_vp: 0 }, fds)) = told(&a) else { panic!() };
    assert_eq!(fds.len(), 2);
    nix::unistd::write(&fds[0], &1u64.to_ne_bytes()).unwrap();
    assert!(rig.mock.wires[0].drain().unwrap() && !rig.mock.wires[1].drain().unwrap());
}

#[test]
fn a_device_that_listens_late_hears_the_last_word() {
    let (mut rig, a, b) = Rig::running();
    rig.open(&a, 1, 1);
    // Its socket fills up; the core never waits for it.
    for n in 0..10_000 {
        rig.post(GuestMessage::ModifyChannel(ModifyChannel { relid: 1, target_vp: n % 2 }));
        assert_eq!(rig.heard().len(), 1);
    }
    let mut last = None;
    loop {
        match told(&a) {
            Some((ToVsp::Retarget { target_vp, .. }, _)) => last = Some(target_vp),
            None if rig.server.deadline().is_none() => break,
            None => rig.server.tick(&rig.mock, Instant::now() + TELL_AGAIN),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(last, Some(1));
    // And one that never listens again is cut off when it has to.
    for n in 0..10_000 {
        rig.post(GuestMessage::ModifyChannel(ModifyChannel { relid: 1, target_vp: n % 2 }));
        rig.heard();
    }
    rig.post(GuestMessage::CloseChannel(1));
    rig.server.tick(&rig.mock, Instant::now() + TELL_AGAIN);
    assert!(rig.is_shared(1));
    rig.server.tick(&rig.mock, Instant::now() + CLOSE_GRACE);
    assert!(is_cut_off(&a) && !rig.is_shared(1) && rig.server.is_quiet());
    rig.open(&b, 2, 2);
}

#[test]
fn a_guest_that_does_not_read_its_messages_is_told_to_wait() {
    let (mut rig, _a, _b) = Rig::running();
    let message = GuestMessage::RequestOffers.encode();
    let mut posted = 0;
    let status = loop {
        match rig.server.post_message(&rig.mock, MESSAGE_CONNECTION_ID_5, &message) {
            HvStatus::Success if posted < 100_000 => posted += 1,
            status => break status,
        }
    };
    assert_eq!(status, HvStatus::InsufficientBuffers);
    assert!(posted < 2000, "{posted}");
    assert_eq!(rig.heard().len(), posted * 3, "nothing is lost");
    rig.post(GuestMessage::RequestOffers);
}

#[test]
fn only_message_connections_take_messages() {
    let (mut rig, _a, _b) = Rig::running();
    let message = GuestMessage::RequestOffers.encode();
    for connection in [0, 2, 3, 5, Bus::connection_id(1), u32::MAX] {
        let status = rig.server.post_message(&rig.mock, connection, &message);
        assert_eq!(status, HvStatus::InvalidConnectionId);
    }
    assert!(rig.heard().is_empty());
}

#[test]
fn a_reset_takes_everything_back() {
    let (mut rig, a, b) = Rig::running();
    rig.open(&a, 1, 1);
    rig.ask_open(2, 2);
    rig.post(GuestMessage::RequestOffers);
    rig.server.reset(&rig.mock);
    assert!(!rig.server.is_quiet(), "devices have not let go");
    asked_to_open(&b, 2);
    for (device, relid) in [(&a, 1), (&b, 2)] {
        assert!(matches!(told(device), Some((ToVsp::ChannelClose { channel }, _)) if channel == relid));
    }
    a.send(&ToCore::Closed { channel: 1 }, &[]).unwrap();
    b.send(&ToCore::OpenResult { channel: 2, status: 0, reason: None }, &[]).unwrap();
    rig.poll();
    assert!(!rig.server.is_quiet());
    rig.server.tick(&rig.mock, rig.server.deadline().expect("one is late"));
    assert!(rig.server.is_quiet() && is_cut_off(&b) && !is_cut_off(&a));
    assert!(
        rig.server
            .donations
            .donate(&rig.ram, "t", vec![0x10_1000], &rig.mock)
            .is_ok_and(|d| { rig.server.donations.take_back(&rig.ram, d, &rig.mock).is_ok() })
    );
    // The next guest begins as the first one did.
    rig.ram.store_u32(crate::testing::slot(0), 0).unwrap();
    (0..VPS).for_each(|vp| rig.server.set_synic(&rig.mock, vp, registers(vp)));
    assert!(rig.heard().is_empty(), "no message of the old guest's");
    rig.contact();
    rig.open(&a, 1, 3);
}

#[test]
fn unload_is_answered_when_the_last_device_has_let_go() {
    let (mut rig, a, b) = Rig::running();
    rig.open(&a, 1, 1);
    rig.open(&b, 2, 2);
    rig.post(GuestMessage::Unload);
    a.send(&ToCore::Closed { channel: 1 }, &[]).unwrap();
    rig.poll();
    assert!(rig.heard().is_empty());
    drop(b);
    rig.poll();
    assert_eq!(rig.heard(), [HostMessage::UnloadResponse]);
    assert!(rig.server.is_quiet());
    rig.contact();
}
