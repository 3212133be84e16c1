//! The bus as guests use and misuse it. A guest's messages go in, effects come out; the device's answers are the test's.

mod random;
mod sharing;
mod states;

use vmbus::{
    guid::class,
    message::{GpadlCreated, GuestMessage, HostMessage, InitiateContact, OpenChannel},
    protocol::Version,
    synic::MESSAGE_CONNECTION_ID_5,
};

use super::*;

const VPS: u32 = 2;
const RAM_PAGES: u64 = 4096;
const RING_PAGES: u64 = 8;

/// A bus with channels 1 and 2, and no guest yet.
fn bus() -> Bus {
    let mut bus = Bus::new(VPS, RAM_PAGES);
    assert_eq!(bus.add_channel(class::ECHO, class::ECHO, |_| {}), Some(1));
    assert_eq!(bus.add_channel(class::SCSI, class::SCSI, |_| {}), Some(2));
    assert!(bus.take_effects().is_empty(), "nobody is listening");
    bus
}

/// The same with a guest of `version` that knows both channels.
fn connected_by(version: Version) -> Bus {
    let mut bus = bus();
    say(&mut bus, GuestMessage::InitiateContact(InitiateContact::new(version, 0))).expect("contact");
    say(&mut bus, GuestMessage::RequestOffers).expect("request");
    bus.take_effects();
    bus
}

fn connected() -> Bus {
    connected_by(Version::NEWEST)
}

fn say(bus: &mut Bus, message: GuestMessage<'_>) -> Result<(), GuestFault> {
    bus.message(MESSAGE_CONNECTION_ID_5, &message.encode())
}

/// Messages that came out; nothing else may have.
fn heard(bus: &mut Bus) -> Vec<HostMessage> {
    let messages = bus.take_effects().into_iter().filter_map(|effect| match effect {
        Effect::Send(message) => Some(HostMessage::parse(&message).expect("our own message")),
        Effect::Discard => None,
        other => panic!("{other:?} was not due"),
    });
    messages.collect()
}

fn share(bus: &mut Bus, relid: Relid, gpadl: u32, pfns: &[u64]) -> Result<(), GuestFault> {
    for message in vmbus::gpadl::messages(relid, gpadl, pfns) {
        bus.message(MESSAGE_CONNECTION_ID_5, &message)?;
    }
    Ok(())
}

/// Shares a good ring and takes the answer.
fn share_ring(bus: &mut Bus, relid: Relid, gpadl: u32) {
    let first = u64::from(gpadl) * RING_PAGES;
    share(bus, relid, gpadl, &(first..first + RING_PAGES).collect::<Vec<_>>()).expect("a good GPADL");
    let created = GpadlCreated { relid, gpadl, status: 0 };
    assert_eq!(heard(bus), [HostMessage::GpadlCreated(created)]);
}

fn open_request(relid: Relid, gpadl: u32) -> OpenChannel {
    OpenChannel {
        relid,
        open_id: 77,
        ring_gpadl: gpadl,
        target_vp: 1,
        downstream_page_offset: RING_PAGES as u32 / 2,
        user_data: [9; 120],
    }
}

/// Has the guest ask for the channel to be opened; the device is asked.
fn begin_open(bus: &mut Bus, relid: Relid, gpadl: u32) {
    say(bus, GuestMessage::OpenChannel(open_request(relid, gpadl))).expect("a good request");
    let effects = bus.take_effects();
    assert!(matches!(effects.as_slice(), [Effect::Open(open)] if open.relid == relid), "{effects:?}");
}

/// Opens the channel over a new GPADL.
fn open(bus: &mut Bus, relid: Relid, gpadl: u32) {
    share_ring(bus, relid, gpadl);
    begin_open(bus, relid, gpadl);
    bus.opened(relid, 0);
    assert_eq!(heard(bus), [open_result(relid, 0)]);
}

fn open_result(relid: Relid, status: u32) -> HostMessage {
    HostMessage::OpenResult(OpenResult { relid, open_id: 77, status })
}

fn created(relid: Relid, gpadl: u32, status: u32) -> HostMessage {
    HostMessage::GpadlCreated(GpadlCreated { relid, gpadl, status })
}

/// The guest asks in vain, and is told so.
fn open_refused(bus: &mut Bus, relid: Relid, gpadl: u32) {
    let result = say(bus, GuestMessage::OpenChannel(open_request(relid, gpadl)));
    assert!(matches!(result, Err(GuestFault::OpenRefused { .. })), "{result:?}");
    assert_eq!(heard(bus), [open_result(relid, STATUS_UNSUCCESSFUL)]);
}

fn bad_state<T: std::fmt::Debug>(result: Result<T, GuestFault>) {
    assert!(matches!(result, Err(GuestFault::BadState { .. })), "{result:?}");
}
