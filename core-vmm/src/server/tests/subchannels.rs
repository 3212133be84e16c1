//! A device with more than one channel.

use vmbus::message::Offer;

use super::*;

/// What the guest was offered, all of it sub-channels.
fn offers(rig: &mut Rig) -> Vec<Offer> {
    let messages = rig.heard().into_iter().map(|message| match message {
        HostMessage::Offer(offer) if offer.sub_channel_index > 0 => offer,
        other => panic!("{other:?}"),
    });
    messages.collect()
}

/// "a" with its primary channel open, and two sub-channels (3 and 4) offered.
fn offered() -> (Rig, Peer, Peer) {
    let (mut rig, a, b) = Rig::running();
    rig.open(&a, 1, 1);
    rig.says(&a, &ToCore::OfferSubchannels { count: 2 });
    assert_eq!(offers(&mut rig).len(), 2);
    (rig, a, b)
}

/// Opens sub-channel `index`, which is channel `relid`.
fn open_sub(rig: &mut Rig, device: &Peer, relid: Relid, index: u16) -> Vec<OwnedFd> {
    rig.ask_open(relid, relid);
    let Some((ToVsp::ChannelOpen { channel, subchannel, flag, .. }, fds)) = told(device) else { panic!() };
    assert_eq!((channel, flag, subchannel), (relid, relid, index));
    rig.answers(device, relid, 0);
    assert_eq!(rig.heard(), [opened(relid, 0)]);
    fds
}

#[test]
fn sub_channels_are_offered_as_linux_reads_them() {
    let (mut rig, a, _b) = Rig::running();
    rig.says(&a, &ToCore::OfferSubchannels { count: 2 });
    assert!(rig.heard().is_empty(), "not before the primary channel is open");
    rig.open(&a, 1, 1);
    rig.says(&a, &ToCore::OfferSubchannels { count: 2 });
    let [one, two] = offers(&mut rig).try_into().unwrap();
    for (offer, index, relid) in [(one, 1, 3), (two, 2, 4)] {
        assert_eq!((offer.class, offer.instance.to_string()), (class::ECHO, slot("a").instance));
        assert_eq!((offer.sub_channel_index, offer.relid), (index, relid));
        assert_eq!(offer.connection_id, Bus::connection_id(relid));
        assert_eq!((offer.is_dedicated_interrupt, offer.monitor_allocated, offer.monitor_id), (1, 0, 0));
    }
    rig.says(&a, &ToCore::OfferSubchannels { count: 1 });
    rig.says(&a, &ToCore::OfferSubchannels { count: 2 });
    assert!(rig.heard().is_empty(), "they are offered");
    rig.says(&a, &ToCore::OfferSubchannels { count: 3 });
    assert_eq!(offers(&mut rig).len(), 1);
}

#[test]
fn a_sub_channel_is_a_channel_of_its_own() {
    let (mut rig, a, _b) = offered();
    let one = open_sub(&mut rig, &a, 3, 1);
    let two = open_sub(&mut rig, &a, 4, 2);
    assert!(!same(&one[4], &two[4]) && rig.is_bound(3) && rig.is_bound(4));
    // It closes without the others.
    rig.closes(3);
    assert_eq!(said(&a), Some(ToVsp::ChannelClose { channel: 3 }));
    rig.says(&a, &ToCore::Closed { channel: 3 });
    assert!(rig.is_shared(4) && !rig.is_shared(3) && rig.heard().is_empty());
    // It is the guest's to open again.
    rig.post(GuestMessage::GpadlTeardown { relid: 3, gpadl: 3 });
    assert_eq!(rig.heard(), [HostMessage::GpadlTorndown(3)]);
    open_sub(&mut rig, &a, 3, 1);
}

#[test]
fn sub_channels_end_with_the_primary_channel() {
    let (mut rig, a, _b) = offered();
    open_sub(&mut rig, &a, 3, 1);
    open_sub(&mut rig, &a, 4, 2);
    // As Linux does it: sub-channels first. One is left open all the same.
    rig.closes(3);
    rig.closes(1);
    for channel in [3, 4, 1] {
        assert_eq!(said(&a), Some(ToVsp::ChannelClose { channel }));
        rig.says(&a, &ToCore::Closed { channel });
    }
    assert_eq!(rig.heard(), [HostMessage::RescindOffer(3), HostMessage::RescindOffer(4)]);
    assert!(rig.server.is_quiet());
    // The numbers are taken until the guest lets go of them.
    rig.post(GuestMessage::RelidReleased(4));
    rig.open(&a, 1, 9);
    rig.says(&a, &ToCore::OfferSubchannels { count: 2 });
    let numbers: Vec<Relid> = offers(&mut rig).iter().map(|o| o.relid).collect();
    assert_eq!(numbers, [4, 5]);
}

#[test]
fn a_guest_that_begins_anew_has_no_sub_channels() {
    for how in 0..3 {
        let (mut rig, a, _b) = offered();
        open_sub(&mut rig, &a, 3, 1);
        match how {
            0 => rig.server.reset(&rig.mock),
            1 => rig.post(GuestMessage::Unload),
            _ => rig.post(GuestMessage::InitiateContact(InitiateContact::new(Version::NEWEST, 0))),
        }
        for channel in [1, 3] {
            assert_eq!(said(&a), Some(ToVsp::ChannelClose { channel }));
            rig.says(&a, &ToCore::Closed { channel });
        }
        assert!(rig.server.is_quiet());
        rig.ram.store_u32(crate::testing::slot(0), 0).unwrap();
        (0..VPS).for_each(|vp| rig.server.set_synic(&rig.mock, vp, registers(vp)));
        rig.contact();
        rig.post(GuestMessage::RequestOffers);
        assert_eq!(rig.heard().len(), 3, "two devices and the end");
        rig.open(&a, 1, 9);
        assert!(rig.heard().is_empty(), "only when the device asks again");
        rig.says(&a, &ToCore::OfferSubchannels { count: 1 });
        assert_eq!(offers(&mut rig)[0].relid, 3);
    }
}

#[test]
fn a_successor_gets_all_of_them_the_primary_channel_first() {
    let (mut rig, a, _b) = offered();
    let two = open_sub(&mut rig, &a, 4, 2);
    open_sub(&mut rig, &a, 3, 1);
    drop(a);
    rig.poll();
    let next = rig.arrive("a", false);
    rig.serve(&next, true);
    let mut last = None;
    for (relid, index) in [(1, 0), (3, 1), (4, 2)] {
        let Some((ToVsp::ChannelOpen { channel, subchannel, .. }, fds)) = told(&next) else { panic!() };
        assert_eq!((channel, subchannel), (relid, index));
        last = Some(fds);
    }
    assert!(same(&last.unwrap()[4], &two[4]));
    for relid in [1, 3, 4] {
        rig.answers(&next, relid, 0);
    }
    // What its predecessor agreed on holds.
    rig.says(&next, &ToCore::OfferSubchannels { count: 2 });
    assert!(rig.heard().is_empty() && !is_cut_off(&next));
}

#[test]
fn a_sub_channel_that_linux_cannot_use_is_released_and_gone() {
    let (mut rig, a, b) = offered();
    rig.post(GuestMessage::RelidReleased(3));
    rig.ask_refused(3);
    // Offered anew if the device asks.
    rig.says(&a, &ToCore::OfferSubchannels { count: 2 });
    assert_eq!(offers(&mut rig).iter().map(|o| (o.relid, o.sub_channel_index)).collect::<Vec<_>>(), [(3, 1)]);
    // One that is released while it is open closes with the primary channel, in silence.
    open_sub(&mut rig, &a, 3, 1);
    rig.post(GuestMessage::RelidReleased(3));
    rig.closes(1);
    assert_eq!(rig.heard(), [HostMessage::RescindOffer(4)]);
    for channel in [3, 1] {
        assert_eq!(said(&a), Some(ToVsp::ChannelClose { channel }));
        rig.says(&a, &ToCore::Closed { channel });
    }
    assert!(rig.server.is_quiet());
    rig.open(&b, 2, 9);
}

impl Rig {
    /// The guest names a channel that is no more.
    fn ask_refused(&mut self, relid: Relid) {
        for message in vmbus::gpadl::messages(relid, 77, &[0x300, 0x301, 0x302, 0x303]) {
            self.post_raw(&message);
        }
        self.post(GuestMessage::CloseChannel(relid));
        assert!(self.heard().is_empty());
    }
}

#[test]
fn a_device_asks_for_what_it_said_it_could_serve_and_for_no_other() {
    let (mut rig, a, b) = offered();
    // Its own limit is 3.
    rig.says(&a, &ToCore::OfferSubchannels { count: 4 });
    assert!(is_cut_off(&a));
    // Somebody else's sub-channel.
    rig.says(&b, &ToCore::Closed { channel: 3 });
    assert!(is_cut_off(&b));
    assert!(rig.heard().is_empty());
}

#[test]
fn sub_channels_leave_room_for_primary_channels() {
    let (mut rig, a, b) = offered();
    rig.server.channels_max = PRIMARIES + 2;
    open_sub(&mut rig, &a, 3, 1);
    rig.ask_open(4, 4);
    assert_eq!(rig.heard(), [opened(4, STATUS_UNSUCCESSFUL)]);
    assert!(told(&a).is_none() && !rig.is_shared(4));
    rig.open(&b, 2, 2);
}

#[test]
fn a_successor_is_told_when_it_has_all_channels() {
    let (mut rig, a, _b) = Rig::running();
    assert_eq!(told_next(&a), Some(ToVsp::Adopted {}), "there was none to take over");
    rig.open(&a, 1, 1);
    assert_eq!(told_next(&a), None, "what the guest opens later is nobody's legacy");
    drop(a);
    rig.poll();
    let next = rig.attach_again("a");
    assert!(matches!(told_next(&next), Some(ToVsp::ChannelOpen { channel: 1, .. })));
    assert_eq!((told_next(&next), told_next(&next)), (Some(ToVsp::Adopted {}), None));
    drop(next);
    rig.poll();
    let ToCore::Hello { device, offer, ledger, build, .. } = hello("a") else { unreachable!() };
    let versions = Versions { min: 2, max: 2 };
    let old = rig.meet(&ToCore::Hello { versions, device, offer, ledger, build });
    assert!(matches!(told_next(&old), Some(ToVsp::Welcome { version: 2, .. })));
    rig.serve(&old, true);
    assert!(matches!(told_next(&old), Some(ToVsp::ChannelOpen { channel: 1, .. })));
    assert_eq!(told_next(&old), None, "an older build would not understand it");
}
