//! GPADLs: page lists in one message and in many, good and bad, and their end.

use vmbus::message::{GpadlBody, GpadlHeader};

use super::*;
use crate::layout::PAGE;

/// A header message with raw words behind it.
fn header(bus: &mut Bus, gpadl: u32, (len, count): (u16, u16), words: &[u64]) -> Result<(), GuestFault> {
    let data: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let header = GpadlHeader { relid: 1, gpadl, range_buffer_len: len, range_count: count, data: &data };
    say(bus, GuestMessage::GpadlHeader(header))
}

fn body(bus: &mut Bus, gpadl: u32, words: &[u64]) -> Result<(), GuestFault> {
    let data: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    say(bus, GuestMessage::GpadlBody(GpadlBody { message_number: 0, gpadl, data: &data }))
}

fn refused(bus: &mut Bus, gpadl: u32, result: Result<(), GuestFault>) {
    assert!(matches!(result, Err(GuestFault::GpadlRefused { .. })), "{result:?}");
    assert_eq!(heard(bus), [created(1, gpadl, STATUS_UNSUCCESSFUL)]);
}

/// Opening over this GPADL has to be refused, with an answer.
fn is_no_ring(bus: &mut Bus, request: OpenChannel) {
    let result = say(bus, GuestMessage::OpenChannel(request));
    assert!(matches!(result, Err(GuestFault::OpenRefused { .. })), "{request:?}: {result:?}");
    assert_eq!(heard(bus), [open_result(1, STATUS_UNSUCCESSFUL)]);
    assert!(bus.is_quiet());
}

#[test]
fn a_long_list_is_answered_at_its_last_message() {
    let mut bus = connected();
    let pfns: Vec<u64> = (100..1100).collect();
    let messages = vmbus::gpadl::messages(1, 7, &pfns);
    let (last, before) = messages.split_last().expect("many");
    for message in before {
        bus.message(MESSAGE_CONNECTION_ID_5, message).expect("good");
        assert!(heard(&mut bus).is_empty());
    }
    is_no_ring(&mut bus, open_request(1, 7));
    bus.message(MESSAGE_CONNECTION_ID_5, last).expect("good");
    assert_eq!(heard(&mut bus), [created(1, 7, 0)]);
    begin_open(&mut bus, 1, 7);
}

#[test]
fn lists_that_contradict_themselves_are_refused() {
    let mut bus = connected();
    let page = |len: u64, offset: u64| len | offset << 32;
    // Length and number of ranges, then the words of the list.
    let bad: [((u16, u16), &[u64]); 11] = [
        ((16, 0), &[page(4096, 0), 1]),
        ((16, 2), &[page(4096, 0), 1]),
        ((16, u16::MAX), &[page(4096, 0), 1]),
        ((15, 1), &[page(4096, 0), 1]),
        ((8, 1), &[page(4096, 0)]),
        ((16, 1), &[page(0, 0), 1]),
        ((16, 1), &[page(4096, 4096), 1]),
        ((16, 1), &[page(4097, 0), 1]),
        ((24, 1), &[page(4096, 0), 1, 2]),
        ((16, 1), &[page(4096, 0), 1 << 52]),
        ((16, 1), &[page(u64::from(u32::MAX), 0), 1]),
    ];
    for (n, (lengths, words)) in bad.into_iter().enumerate() {
        let result = header(&mut bus, n as u32, lengths, words);
        refused(&mut bus, n as u32, result);
    }
    // What was refused does not exist.
    for n in 0..bad.len() as u32 {
        let torn = say(&mut bus, GuestMessage::GpadlTeardown { relid: 1, gpadl: n });
        assert!(matches!(torn, Err(GuestFault::BadGpadl { .. })));
        assert!(matches!(body(&mut bus, n, &[1]), Err(GuestFault::BadGpadl { .. })));
    }
    assert!(heard(&mut bus).is_empty());
}

#[test]
fn a_list_may_go_wrong_late() {
    let mut bus = connected();
    header(&mut bus, 1, (32, 1), &[3 * 4096, 1]).expect("so far");
    let result = body(&mut bus, 1, &[2, 1 << 60]);
    refused(&mut bus, 1, result);
    header(&mut bus, 1, (32, 1), &[3 * 4096, 1]).expect("the number is free again");
    let result = body(&mut bus, 1, &[]);
    refused(&mut bus, 1, result);
}

#[test]
fn a_number_in_use_is_not_taken_twice() {
    let mut bus = connected();
    share_ring(&mut bus, 1, 1);
    assert!(matches!(share(&mut bus, 1, 1, &[50, 51, 52, 53]), Err(GuestFault::BadGpadl { .. })));
    assert!(matches!(share(&mut bus, 2, 1, &[50, 51, 52, 53]), Err(GuestFault::BadGpadl { .. })));
    header(&mut bus, 2, (32, 1), &[3 * 4096, 1]).expect("unfinished");
    assert!(matches!(share(&mut bus, 1, 2, &[50]), Err(GuestFault::BadGpadl { .. })));
    let torn = say(&mut bus, GuestMessage::GpadlTeardown { relid: 1, gpadl: 2 });
    assert!(matches!(torn, Err(GuestFault::BadGpadl { .. })), "unfinished");
    assert!(matches!(body(&mut bus, 1, &[1]), Err(GuestFault::BadGpadl { .. })), "finished");
    assert!(heard(&mut bus).is_empty());
    begin_open(&mut bus, 1, 1);
}

#[test]
fn what_is_no_ring_does_not_open() {
    let mut bus = connected();
    is_no_ring(&mut bus, open_request(1, 404));
    share_ring(&mut bus, 2, 1);
    is_no_ring(&mut bus, open_request(1, 1));
    share_ring(&mut bus, 1, 2);
    for downstream in [0, 1, 7, 8, 9, u32::MAX] {
        is_no_ring(&mut bus, OpenChannel { downstream_page_offset: downstream, ..open_request(1, 2) });
    }
    is_no_ring(&mut bus, OpenChannel { target_vp: VPS, ..open_request(1, 2) });
    // Two ranges; a range with an offset; a range that ends inside of a page.
    let two = [2 * 4096, 1, 2, 2 * 4096, 3, 4];
    let offset = [(4 * 4096 - 8) | 8 << 32, 1, 2, 3, 4];
    let ragged = [4 * 4096 - 8, 1, 2, 3, 4];
    for (gpadl, count, words) in [(3, 2, &two[..]), (4, 1, &offset), (5, 1, &ragged)] {
        header(&mut bus, gpadl, (words.len() as u16 * 8, count), words).expect("a good list");
        assert_eq!(heard(&mut bus), [created(1, gpadl, 0)]);
        is_no_ring(&mut bus, OpenChannel { downstream_page_offset: 2, ..open_request(1, gpadl) });
    }
    begin_open(&mut bus, 1, 2);
}

#[test]
fn a_teardown_waits_until_the_device_has_let_go() {
    let mut bus = connected();
    open(&mut bus, 1, 1);
    let teardown = GuestMessage::GpadlTeardown { relid: 1, gpadl: 1 };
    assert!(matches!(say(&mut bus, teardown), Err(GuestFault::BadGpadl { .. })), "the channel is open");
    say(&mut bus, GuestMessage::CloseChannel(1)).expect("close");
    bus.take_effects();
    say(&mut bus, teardown).expect("closing");
    assert!(matches!(say(&mut bus, teardown), Err(GuestFault::BadGpadl { .. })), "asked already");
    assert!(heard(&mut bus).is_empty(), "the device still has the pages");
    bus.closed(1);
    assert_eq!(heard(&mut bus), [HostMessage::GpadlTorndown(1)]);
    assert!(matches!(say(&mut bus, teardown), Err(GuestFault::BadGpadl { .. })), "gone");
}

#[test]
fn another_channels_gpadl_is_not_torn_down() {
    let mut bus = connected();
    share_ring(&mut bus, 1, 1);
    let foreign = say(&mut bus, GuestMessage::GpadlTeardown { relid: 2, gpadl: 1 });
    assert!(matches!(foreign, Err(GuestFault::BadGpadl { .. })));
    say(&mut bus, GuestMessage::GpadlTeardown { relid: 1, gpadl: 1 }).expect("its own");
}

#[test]
fn no_more_is_shared_than_there_is() {
    let mut bus = connected();
    // Announced pages count, so a guest that begins lists and never ends them gets no further.
    let mut started = 0;
    for gpadl in 0..100_000 {
        match header(&mut bus, gpadl, (0xfff8, 1), &[4096, 1]) {
            Ok(()) => started += 1,
            Err(e) => assert!(matches!(e, GuestFault::GpadlRefused { .. }), "{e}"),
        }
        assert!(heard(&mut bus).len() <= 1);
    }
    assert_eq!(started, RAM_PAGES * 2 / 8191);
    // Small ones are bounded in number.
    let mut bus = Bus::new(1, 1 << 30);
    bus.add_channel(class::ECHO, class::ECHO, |_| {}).expect("room");
    say(&mut bus, GuestMessage::InitiateContact(InitiateContact::new(Version::NEWEST, 0))).expect("contact");
    bus.take_effects();
    let shared = (0..100_000).filter(|&gpadl| share(&mut bus, 1, gpadl, &[1]).is_ok()).count();
    assert_eq!(shared, 4096);
    bus.take_effects();
    for gpadl in 0..4096 {
        say(&mut bus, GuestMessage::GpadlTeardown { relid: 1, gpadl }).expect("teardown");
        assert_eq!(heard(&mut bus), [HostMessage::GpadlTorndown(gpadl)]);
    }
    share(&mut bus, 1, 1, &[1]).expect("room again");
}

/// Channel 1 open, and GPADL 20 made for it: three pages.
fn with_buffer() -> Bus {
    let mut bus = connected();
    open(&mut bus, 1, 1);
    share(&mut bus, 1, 20, &[70, 72, 71]).expect("a good GPADL");
    assert_eq!(heard(&mut bus), [created(1, 20, 0)]);
    bus
}

#[test]
fn a_device_is_given_a_gpadl_of_its_channel_once() {
    let mut bus = with_buffer();
    assert_eq!(bus.share_gpadl(1, 20), Ok(vec![70 * PAGE, 72 * PAGE, 71 * PAGE]));
    assert!(bus.share_gpadl(1, 20).is_err(), "it has it");
    bus.unshare_gpadl(1, 20);
    assert!(bus.share_gpadl(1, 20).is_err(), "it had it");
    assert!(bus.take_effects().is_empty(), "who gives it back need not be told");
    say(&mut bus, GuestMessage::GpadlTeardown { relid: 1, gpadl: 20 }).expect("teardown");
    assert_eq!(heard(&mut bus), [HostMessage::GpadlTorndown(20)]);
}

#[test]
fn what_is_no_buffer_is_not_shared() {
    let mut bus = connected();
    share(&mut bus, 1, 20, &[70]).expect("a good GPADL");
    bus.take_effects();
    assert!(bus.share_gpadl(1, 20).is_err(), "nobody has the channel open");
    open(&mut bus, 1, 1);
    assert!(bus.share_gpadl(1, 1).is_err(), "the ring");
    assert!(bus.share_gpadl(1, 404).is_err(), "no such thing");
    open(&mut bus, 2, 2);
    assert!(bus.share_gpadl(2, 20).is_err(), "somebody else's");
    header(&mut bus, 21, (32, 1), &[3 * 4096, 1]).expect("unfinished");
    assert!(bus.share_gpadl(1, 21).is_err(), "unfinished");
    let (two, offset) = ([4096, 1, 4096, 3], [(4096 - 8) | 8 << 32, 1]);
    for (gpadl, count, words) in [(22, 2, &two[..]), (23, 1, &offset), (24, 1, &[4096 - 8, 1])] {
        header(&mut bus, gpadl, (words.len() as u16 * 8, count), words).expect("a good list");
        assert_eq!(heard(&mut bus), [created(1, gpadl, 0)]);
        assert!(bus.share_gpadl(1, gpadl).is_err(), "{gpadl}");
    }
    assert!(bus.share_gpadl(1, 20).is_ok());
}

/// The device is not asked: the guest gets its pages back first, and its answer then.
#[test]
fn what_ends_a_gpadl_takes_it_from_the_device() {
    let mut bus = with_buffer();
    bus.share_gpadl(1, 20).expect("shared");
    let foreign = say(&mut bus, GuestMessage::GpadlTeardown { relid: 2, gpadl: 20 });
    assert!(matches!(foreign, Err(GuestFault::BadGpadl { .. })));
    assert!(bus.take_effects().is_empty());
    say(&mut bus, GuestMessage::GpadlTeardown { relid: 1, gpadl: 20 }).expect("teardown");
    let torndown = HostMessage::GpadlTorndown(20).encode();
    assert_eq!(bus.take_effects(), [Effect::Unshare(20), Effect::Send(torndown)]);

    let mut bus = with_buffer();
    bus.share_gpadl(1, 20).expect("shared");
    say(&mut bus, GuestMessage::CloseChannel(1)).expect("close");
    assert_eq!(bus.take_effects(), [Effect::Close(1)]);
    bus.closed(1);
    assert_eq!(bus.take_effects(), [Effect::Unshare(20)]);

    for how in 0..3 {
        let mut bus = with_buffer();
        bus.share_gpadl(1, 20).expect("shared");
        match how {
            0 => bus.reset(),
            1 => say(&mut bus, GuestMessage::Unload).expect("unload"),
            _ => {
                let contact = InitiateContact::new(Version::NEWEST, 0);
                say(&mut bus, GuestMessage::InitiateContact(contact)).expect("contact");
            }
        }
        assert_eq!(bus.take_effects(), [Effect::Unshare(20), Effect::Close(1)], "before the device lets go");
    }
}
