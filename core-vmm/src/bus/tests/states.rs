//! Every message in every state of the connection and of a channel.

use vmbus::message::{ModifyChannel, VersionResponse, kind};
use vmbus::synic::MESSAGE_CONNECTION_ID;

use super::*;

fn contact(bus: &mut Bus, version: u32, vp: u32) -> Result<(), GuestFault> {
    let contact = InitiateContact { version, target_vp: vp, ..InitiateContact::default() };
    say(bus, GuestMessage::InitiateContact(contact))
}

fn accepted(message: &HostMessage) -> bool {
    matches!(message, HostMessage::VersionResponse(VersionResponse { supported: 1, .. }))
}

#[test]
fn every_version_that_we_speak_is_accepted() {
    for version in Version::ALL {
        let mut bus = bus();
        contact(&mut bus, version.raw(), 1).expect("contact");
        let id = if version >= Version::V5_0 { MESSAGE_CONNECTION_ID_5 } else { 0 };
        let yes = HostMessage::VersionResponse(VersionResponse::accepted(id));
        assert_eq!(heard(&mut bus), [yes], "{version}");
        assert_eq!(bus.message_vp(), Some(1));
    }
}

#[test]
fn other_versions_are_refused_and_the_guest_may_try_again() {
    let mut bus = bus();
    for version in [0, 0x0000_000d, 0x0001_0001, 0x0002_0005, 0x0005_0004, 0x0006_0000, u32::MAX] {
        contact(&mut bus, version, 1).expect("contact");
        assert_eq!(heard(&mut bus), [HostMessage::VersionResponse(VersionResponse::refused())]);
        assert_eq!(bus.message_vp(), Some(1), "the refusal goes there");
        let asked = say(&mut bus, GuestMessage::RequestOffers);
        assert_eq!(asked, Err(GuestFault::NotConnected(kind::REQUEST_OFFERS)));
    }
    contact(&mut bus, Version::WIN8.raw(), 0).expect("contact");
    assert!(heard(&mut bus).iter().all(accepted));
    say(&mut bus, GuestMessage::RequestOffers).expect("connected");
}

#[test]
fn a_contact_for_no_vp_is_not_heard() {
    let mut bus = connected();
    let result = contact(&mut bus, Version::NEWEST.raw(), VPS);
    assert_eq!(result, Err(GuestFault::BadVp { kind: kind::INITIATE_CONTACT, vp: VPS }));
    say(&mut bus, GuestMessage::RequestOffers).expect("the old connection lives on");
}

#[test]
fn before_the_contact_nothing_is_answered() {
    let mut bus = bus();
    let share = vmbus::gpadl::messages(1, 1, &[1; 30]);
    let others = [
        GuestMessage::RequestOffers,
        GuestMessage::OpenChannel(open_request(1, 1)),
        GuestMessage::CloseChannel(1),
        GuestMessage::GpadlTeardown { relid: 1, gpadl: 1 },
        GuestMessage::RelidReleased(1),
        GuestMessage::ModifyChannel(ModifyChannel { relid: 1, target_vp: 0 }),
        GuestMessage::Unload,
    ];
    for message in others.into_iter().map(|m| m.encode()).chain(share) {
        let result = bus.message(MESSAGE_CONNECTION_ID, &message);
        assert!(matches!(result, Err(GuestFault::NotConnected(_))), "{result:?}");
    }
    assert!(bus.take_effects().is_empty());
    assert!(bus.is_quiet());
    assert_eq!(bus.message_vp(), None);
}

#[test]
fn bytes_that_are_no_message_are_faults() {
    let mut bus = connected();
    for bytes in [&[][..], &[3; 7], &[0xff; 8], &[0; 240], &[5, 0, 0, 0, 0, 0, 0, 0, 1], &[3; 241]] {
        let result = bus.message(MESSAGE_CONNECTION_ID, bytes);
        assert!(matches!(result, Err(GuestFault::Malformed(_))), "{result:?}");
    }
    // Messages of the host's are none of the guest's.
    for kind in [kind::OFFER, kind::OPEN_RESULT, kind::VERSION_RESPONSE, kind::UNLOAD_RESPONSE] {
        let mut bytes = [0; 240];
        bytes[0] = kind as u8;
        assert!(bus.message(MESSAGE_CONNECTION_ID, &bytes).is_err());
    }
    assert!(bus.take_effects().is_empty());
}

#[test]
fn offers_wait_for_the_request_and_late_ones_come_at_once() {
    let mut bus = bus();
    contact(&mut bus, Version::NEWEST.raw(), 0).expect("contact");
    bus.take_effects();
    assert_eq!(bus.add_channel(class::NETWORK, class::NETWORK, |o| o.mmio_megabytes = 3), Some(3));
    assert!(heard(&mut bus).is_empty(), "the guest has not asked");
    say(&mut bus, GuestMessage::RequestOffers).expect("request");
    let messages = heard(&mut bus);
    let relids = messages.iter().filter_map(|m| match m {
        HostMessage::Offer(offer) => {
            assert_eq!(offer.connection_id, Bus::connection_id(offer.relid));
            assert_eq!(offer.mmio_megabytes, if offer.relid == 3 { 3 } else { 0 });
            Some(offer.relid)
        }
        _ => None,
    });
    assert_eq!(relids.collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(messages.last(), Some(&HostMessage::AllOffersDelivered));
    assert_eq!(bus.add_channel(class::VIDEO, class::VIDEO, |_| {}), Some(4));
    assert!(matches!(heard(&mut bus).as_slice(), [HostMessage::Offer(offer)] if offer.relid == 4));
}

#[test]
fn relids_run_out_without_harm() {
    let mut bus = Bus::new(1, RAM_PAGES);
    for relid in 1..EVENT_FLAGS_COUNT {
        assert_eq!(bus.add_channel(class::ECHO, class::ECHO, |_| {}), Some(relid));
    }
    assert_eq!(bus.add_channel(class::ECHO, class::ECHO, |_| {}), None);
    bus.rescind(1000);
    assert_eq!(bus.add_channel(class::ECHO, class::ECHO, |_| {}), Some(1000), "nobody knew of it");
}

#[test]
fn an_open_request_reaches_the_device_as_it_is() {
    let mut bus = connected();
    share_ring(&mut bus, 1, 5);
    say(&mut bus, GuestMessage::OpenChannel(open_request(1, 5))).expect("a good request");
    let pages = (0..RING_PAGES).map(|n| (40 + n) * 4096).collect();
    let (to_host_pages, user_data) = (4, vec![9; 120]);
    let expected =
        Open { relid: 1, primary: 1, subchannel: 0, pages, to_host_pages, target_vp: 1, user_data };
    assert_eq!(bus.take_effects(), [Effect::Open(expected)]);
    assert!(!bus.is_quiet());
    bus.opened(1, 0);
    assert_eq!(heard(&mut bus), [open_result(1, 0)]);
    bus.opened(1, 0);
    bus.opened(1, 5);
    bus.opened(99, 0);
    assert!(heard(&mut bus).is_empty(), "one request, one answer");
}

#[test]
fn an_open_channel_is_not_opened_again() {
    let mut bus = connected();
    share_ring(&mut bus, 1, 1);
    share_ring(&mut bus, 1, 2);
    begin_open(&mut bus, 1, 1);
    open_refused(&mut bus, 1, 2);
    bus.opened(1, 0);
    assert_eq!(heard(&mut bus), [open_result(1, 0)]);
    open_refused(&mut bus, 1, 2);
    say(&mut bus, GuestMessage::CloseChannel(1)).expect("close");
    assert_eq!(bus.take_effects(), [Effect::Close(1)]);
    open_refused(&mut bus, 1, 2);
    bad_state(say(&mut bus, GuestMessage::CloseChannel(1)));
    bus.closed(1);
    bad_state(say(&mut bus, GuestMessage::CloseChannel(1)));
    begin_open(&mut bus, 1, 2);
}

#[test]
fn a_refused_channel_can_be_tried_again_with_a_new_ring() {
    let mut bus = connected();
    share_ring(&mut bus, 1, 1);
    begin_open(&mut bus, 1, 1);
    bus.opened(1, 0xc000_0022);
    assert_eq!(heard(&mut bus), [open_result(1, 0xc000_0022)]);
    assert!(bus.is_quiet());
    say(&mut bus, GuestMessage::GpadlTeardown { relid: 1, gpadl: 1 }).expect("teardown");
    assert_eq!(heard(&mut bus), [HostMessage::GpadlTorndown(1)]);
    open(&mut bus, 1, 1);
}

#[test]
fn a_channel_closed_while_it_opens_is_answered_no_and_closed() {
    let mut bus = connected();
    share_ring(&mut bus, 1, 1);
    begin_open(&mut bus, 1, 1);
    say(&mut bus, GuestMessage::CloseChannel(1)).expect("close");
    let no = HostMessage::OpenResult(OpenResult { relid: 1, open_id: 77, status: STATUS_UNSUCCESSFUL });
    assert_eq!(bus.take_effects(), [Effect::Send(no.encode()), Effect::Close(1)]);
    bus.opened(1, 0);
    assert!(heard(&mut bus).is_empty(), "it has been answered");
    assert!(!bus.is_quiet(), "the device still has it");
    bus.closed(1);
    assert!(bus.is_quiet());
}

#[test]
fn a_close_that_nobody_asked_for_changes_nothing() {
    let mut bus = connected();
    open(&mut bus, 1, 1);
    bus.closed(1);
    bus.closed(2);
    bus.closed(99);
    assert!(!bus.is_quiet(), "still open");
    say(&mut bus, GuestMessage::CloseChannel(1)).expect("still open");
}

#[test]
fn unknown_channels_are_refused_in_every_message() {
    let mut bus = connected();
    for relid in [0, 3, EVENT_FLAGS_COUNT, u32::MAX] {
        for message in [
            GuestMessage::OpenChannel(open_request(relid, 1)),
            GuestMessage::CloseChannel(relid),
            GuestMessage::GpadlTeardown { relid, gpadl: 1 },
            GuestMessage::RelidReleased(relid),
        ] {
            let result = say(&mut bus, message);
            assert!(matches!(result, Err(GuestFault::UnknownChannel { .. })), "{message:?}: {result:?}");
        }
        assert!(share(&mut bus, relid, 1, &[1, 2, 3, 4]).is_err());
    }
    assert!(bus.take_effects().is_empty());
}

#[test]
fn modify_channel_moves_an_open_channel() {
    for version in Version::ALL {
        let mut bus = connected_by(version);
        open(&mut bus, 1, 1);
        let modify = |relid, target_vp| GuestMessage::ModifyChannel(ModifyChannel { relid, target_vp });
        let response = |relid, status| HostMessage::ModifyChannelResponse { relid, status };
        say(&mut bus, modify(1, 0)).expect("a good request");
        let mut effects = bus.take_effects();
        assert_eq!(effects.remove(0), Effect::Retarget(1, 0));
        let answers = version >= Version::V5_3;
        let expected = answers.then(|| Effect::Send(response(1, 0).encode()));
        assert_eq!(effects, Vec::from_iter(expected), "{version}");

        for (relid, vp) in [(1, VPS), (1, u32::MAX), (2, 0), (7, 0)] {
            say(&mut bus, modify(relid, vp)).expect_err("a bad request");
            let expected = answers.then(|| response(relid, STATUS_UNSUCCESSFUL));
            assert_eq!(heard(&mut bus), Vec::from_iter(expected), "{version}: {relid} {vp}");
        }
    }
}

#[test]
fn unload_closes_everything_before_it_is_answered() {
    let mut bus = connected();
    open(&mut bus, 1, 1);
    share_ring(&mut bus, 2, 2);
    begin_open(&mut bus, 2, 2);
    say(&mut bus, GuestMessage::Unload).expect("unload");
    assert_eq!(bus.take_effects(), [Effect::Close(1), Effect::Close(2)]);
    for message in [GuestMessage::Unload, GuestMessage::RequestOffers, GuestMessage::CloseChannel(1)] {
        assert!(matches!(say(&mut bus, message), Err(GuestFault::NotConnected(_))));
    }
    bus.closed(2);
    assert!(heard(&mut bus).is_empty(), "channel 1 is still open");
    bus.closed(1);
    assert_eq!(heard(&mut bus), [HostMessage::UnloadResponse]);
    assert_eq!(bus.message_vp(), Some(0), "the response goes there");
    assert!(bus.is_quiet());
    assert!(share(&mut bus, 1, 9, &[1, 2, 3, 4]).is_err(), "no connection");
    contact(&mut bus, Version::NEWEST.raw(), 0).expect("and again");
    assert!(heard(&mut bus).iter().all(accepted));
    open(&mut bus, 1, 1);
}

#[test]
fn a_crash_kernel_finds_a_clean_bus() {
    let mut bus = connected();
    open(&mut bus, 1, 1);
    say(&mut bus, GuestMessage::GpadlTeardown { relid: 1, gpadl: 1 }).expect_err("in use");
    say(&mut bus, GuestMessage::CloseChannel(1)).expect("close");
    say(&mut bus, GuestMessage::GpadlTeardown { relid: 1, gpadl: 1 }).expect("later");
    assert_eq!(bus.take_effects(), [Effect::Close(1)]);
    open(&mut bus, 2, 2);
    // No unload: the kernel crashed while channel 1 was being closed.
    contact(&mut bus, Version::WIN10.raw(), 1).expect("contact");
    assert_eq!(bus.take_effects(), [Effect::Close(2)], "no answer while pages are shared");
    bus.closed(1);
    assert!(bus.take_effects().is_empty(), "the old kernel's teardown is not answered to the new one");
    bus.closed(2);
    let effects = bus.take_effects();
    assert_eq!(effects[0], Effect::Discard, "what the old kernel was to be told is dropped first");
    let yes = HostMessage::VersionResponse(VersionResponse::accepted(0));
    assert_eq!(effects[1..], [Effect::Send(yes.encode())]);
    assert_eq!(bus.message_vp(), Some(1));
    say(&mut bus, GuestMessage::RequestOffers).expect("request");
    assert_eq!(heard(&mut bus).len(), 3);
    open(&mut bus, 1, 1);
}

#[test]
fn a_reset_closes_in_silence_in_every_state() {
    for state in 0..7 {
        let mut bus = if state == 0 { bus() } else { connected() };
        let mut held = false;
        if state >= 2 {
            share_ring(&mut bus, 1, 1);
        }
        if state >= 3 {
            begin_open(&mut bus, 1, 1);
            held = true;
        }
        if state >= 4 {
            bus.opened(1, 0);
            bus.take_effects();
        }
        if state == 5 {
            say(&mut bus, GuestMessage::CloseChannel(1)).expect("close");
            say(&mut bus, GuestMessage::GpadlTeardown { relid: 1, gpadl: 1 }).expect("later");
            assert_eq!(bus.take_effects(), [Effect::Close(1)]);
        }
        if state == 6 {
            say(&mut bus, GuestMessage::Unload).expect("unload");
            assert_eq!(bus.take_effects(), [Effect::Close(1)]);
        }
        bus.reset();
        bus.reset();
        let close = if matches!(state, 3 | 4) { vec![Effect::Close(1)] } else { vec![] };
        let effects = bus.take_effects();
        assert_eq!(effects, close, "state {state}");
        assert_eq!(bus.is_quiet(), !held, "state {state}");
        bus.opened(1, 0);
        bus.closed(1);
        assert!(bus.take_effects().is_empty(), "state {state}: nobody is there to be answered");
        assert!(bus.is_quiet());
        contact(&mut bus, Version::NEWEST.raw(), 0).expect("contact");
        say(&mut bus, GuestMessage::RequestOffers).expect("request");
        assert_eq!(heard(&mut bus).len(), 4, "state {state}: response, two offers, end");
        open(&mut bus, 1, 1);
    }
}

#[test]
fn a_rescinded_channel_ends_when_the_guest_has_released_it() {
    let mut bus = connected();
    open(&mut bus, 1, 1);
    bus.rescind(1);
    let rescind = HostMessage::RescindOffer(1);
    assert_eq!(bus.take_effects(), [Effect::Close(1), Effect::Send(rescind.encode())]);
    bus.closed(1);
    open_refused(&mut bus, 1, 1);
    assert_eq!(bus.add_channel(class::ECHO, class::ECHO, |_| {}), Some(3), "1 is not free yet");
    say(&mut bus, GuestMessage::RelidReleased(1)).expect("release");
    assert!(matches!(heard(&mut bus).as_slice(), [HostMessage::Offer(_)]));
    assert_eq!(bus.add_channel(class::ECHO, class::ECHO, |_| {}), Some(1), "now it is");
    bus.take_effects();
    // The old channel's pages went with it.
    open_refused(&mut bus, 1, 1);
}

#[test]
fn a_relid_released_while_the_channel_is_open_is_not_given_away() {
    let mut bus = connected();
    open(&mut bus, 1, 1);
    say(&mut bus, GuestMessage::RelidReleased(1)).expect("as it likes");
    bus.rescind(1);
    assert_eq!(bus.take_effects(), [Effect::Close(1)], "the guest knows nothing of it any more");
    assert_ne!(bus.add_channel(class::ECHO, class::ECHO, |_| {}), Some(1), "its device still has the pages");
    bus.closed(1);
    bus.take_effects();
    assert_eq!(bus.add_channel(class::ECHO, class::ECHO, |_| {}), Some(1));
}
