//! The device at the end of rings that a test holds, with a socket for a backend.

mod continuity;
mod guest;
mod hostile;

use std::time::{Duration, Instant};

use super::state::State;
use guest::{MAC, PEER, RECEIVE, SEND, World, frame, message, setting};

use crate::cli::{Memory, Setting};
use crate::nvsp::{ChannelType, GuestMessage, HostMessage, Section, Status, Version};
use crate::rndis::control::Message;
use crate::rndis::frame::Received;
use crate::rndis::{Indication, Reply, RndisStatus, TransmitInfo, Vlan};

const OID_PERMANENT_ADDRESS: u32 = 0x0101_0101;
const OID_MEDIA_CONNECT: u32 = 0x0001_0114;
const OID_RSS: u32 = 0x0001_0204;

fn stat(world: &mut World, name: &str) -> u64 {
    let report: serde_json::Value = serde_json::from_str(&world.control(r#"{"stats":{}}"#).unwrap()).unwrap();
    report[name].as_u64().unwrap_or_else(|| panic!("{name} in {report}"))
}

fn query(world: &mut World, oid: u32) -> (RndisStatus, Vec<u8>) {
    let answer = world.ask(&Message::Query { id: 9, oid, info: &[] });
    match Reply::parse(&answer).unwrap() {
        Reply::QueryComplete { id: 9, status, info } => (status, info.to_vec()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_introduces_itself() {
    let mut world = World::new(setting());
    let old = world.say(&GuestMessage::Init { min: 1, max: 1 });
    assert_eq!(old, Some(HostMessage::InitComplete { status: Status::TooOld }));
    world.agree();
    let answer = world.ask(&Message::Initialize { id: 3, major: 1, minor: 0, max_transfer: 0x4000 });
    let Ok(Reply::InitializeComplete { id: 3, status, max_packets: 8, alignment_shift: 3, .. }) =
        Reply::parse(&answer)
    else {
        panic!("{answer:?}")
    };
    assert_eq!(status, RndisStatus::SUCCESS);
    assert_eq!(query(&mut world, OID_PERMANENT_ADDRESS), (RndisStatus::SUCCESS, MAC.to_vec()));
    assert_eq!(query(&mut world, OID_MEDIA_CONNECT).1, [0; 4]);
    let (status, value) = query(&mut world, 0xdead_beef);
    assert!(status != RndisStatus::SUCCESS && value.is_empty());
    // A virtual function is nobody's here; Linux waits for an answer of no bytes.
    assert_eq!(world.say(&GuestMessage::SwitchDataPath { active: 1 }), None);
    let state = &world.bench.runtime.device().state;
    assert_eq!(state.version, Some(Version::V61));
    assert_eq!(state.receive.map(|buffer| (buffer.size, buffer.count)), Some((128 << 10, 128)));
    assert!(state.send.is_some_and(|buffer| buffer.size * buffer.count <= 1 << 20));
}

#[test]
fn frames_go_out_in_their_order() {
    for memory in [Memory::Full, Memory::Confined] {
        frames_go_out(Setting { memory, ..setting() });
    }
}

fn frames_go_out(setting: Setting) {
    let mut world = World::up(setting);
    let sent: Vec<_> =
        (0..5).map(|number| frame(PEER, MAC, 60 + 300 * usize::from(number), number)).collect();
    let sent: Vec<&[u8]> = sent.iter().map(Vec::as_slice).collect();
    world.send_frames(&sent);
    for frame in &sent {
        assert_eq!(world.wire.next().as_deref(), Some(*frame));
    }
    assert_eq!(world.wire.next(), None);
    assert_eq!(stat(&mut world, "tx_packets"), 5);
    // Two in a section, a third whose data lies elsewhere, as Linux does it.
    let mut bytes = Vec::new();
    message(&TransmitInfo::default(), sent[0], &mut bytes);
    message(&TransmitInfo::default(), sent[1], &mut bytes);
    crate::rndis::frame::compose(&TransmitInfo::default(), sent[3].len(), &mut bytes);
    world.send.copy_in(0, &bytes).unwrap();
    let section = Section { index: 0, size: bytes.len() as u32 };
    world.send_pages(0, ChannelType::Data, Some(section), sent[3]);
    assert_eq!(world.completion(0), Status::Success);
    for frame in [sent[0], sent[1], sent[3]] {
        assert_eq!(world.wire.next().as_deref(), Some(frame));
    }
    // All of it elsewhere.
    let mut bytes = Vec::new();
    message(&TransmitInfo::default(), sent[4], &mut bytes);
    world.send_pages(0, ChannelType::Data, None, &bytes);
    assert_eq!(world.completion(0), Status::Success);
    assert_eq!(world.wire.next().as_deref(), Some(sent[4]));
    assert_eq!(stat(&mut world, "tx_by_pages"), 2);
}

#[test]
fn a_frame_longer_than_a_page_goes_out_from_its_pages() {
    for memory in [Memory::Full, Memory::Confined] {
        let mut world = World::up(Setting { mtu: 9000, memory, ..setting() });
        let [short, long] = [60, 9014].map(|len| frame(PEER, MAC, len, 7));
        let mut bytes = Vec::new();
        message(&TransmitInfo::default(), &long, &mut bytes);
        world.send_pages(0, ChannelType::Data, None, &bytes);
        assert_eq!(world.completion(0), Status::Success);
        assert!(world.wire.next().as_deref() == Some(&long[..]), "{memory:?}");
        // Its headers are behind another frame in a section.
        let mut bytes = Vec::new();
        message(&TransmitInfo::default(), &short, &mut bytes);
        crate::rndis::frame::compose(&TransmitInfo::default(), long.len(), &mut bytes);
        world.send.copy_in(0, &bytes).unwrap();
        let section = Section { index: 0, size: bytes.len() as u32 };
        world.send_pages(0, ChannelType::Data, Some(section), &long);
        assert_eq!(world.completion(0), Status::Success);
        assert!(world.wire.next().as_deref() == Some(&short[..]), "{memory:?}");
        assert!(world.wire.next().as_deref() == Some(&long[..]), "{memory:?}");
    }
}

/// Asking the backend for frames is no work by itself: the loop would never sleep.
#[test]
fn an_idle_nic_sleeps() {
    let mut world = World::up(setting());
    world.send_frames(&[&frame(PEER, MAC, 60, 1)]);
    let mut sleeps = || {
        let begin = Instant::now();
        world.bench.turn(20);
        begin.elapsed() >= Duration::from_millis(15)
    };
    assert!((0..8).any(|_| sleeps()), "it always finds something to do");
}

#[test]
fn a_tag_is_put_in_and_taken_out() {
    let mut world = World::up(setting());
    let plain = frame(PEER, MAC, 100, 7);
    let vlan = Vlan { priority: 3, cfi: false, id: 42 };
    let mut bytes = Vec::new();
    message(&TransmitInfo { vlan: Some(vlan), ..TransmitInfo::default() }, &plain, &mut bytes);
    world.send_section(0, 0, &bytes);
    assert_eq!(world.completion(0), Status::Success);
    let tagged = [&plain[..12], &[0x81, 0, 0x60, 42], &plain[12..]].concat();
    assert_eq!(world.wire.next().as_deref(), Some(&tagged[..]));

    let plain = frame(MAC, PEER, 100, 8);
    world.wire.send(&[&plain[..12], &[0x81, 0, 0x60, 42], &plain[12..]].concat());
    let (loan, messages) = world.transfer(0);
    let received = Received::parse(&messages[0]).unwrap();
    assert_eq!((received.data, received.info.vlan), (&plain[..], Some(vlan)));
    world.give_back(0, loan);
}

#[test]
fn frames_come_in_several_to_a_block() {
    let mut world = World::up(setting());
    let sent: Vec<_> =
        (0..40).map(|number| frame(MAC, PEER, 60 + 30 * usize::from(number), number)).collect();
    sent.iter().for_each(|frame| world.wire.send(frame));
    world.settle();
    let (loan, messages) = world.transfer(0);
    assert_eq!(messages.len(), 32);
    let data: Vec<_> =
        messages.iter().map(|message| Received::parse(message).unwrap().data.to_vec()).collect();
    assert_eq!(data, sent[..32]);
    world.give_back(0, loan);
    assert_eq!(world.frames(0, 8), sent[32..]);
    assert_eq!((stat(&mut world, "rx_packets"), stat(&mut world, "lent")), (40, 0));
}

#[test]
fn what_the_filter_does_not_want_does_not_come() {
    let mut world = World::up(setting());
    let broadcast = frame([0xff; 6], PEER, 64, 1);
    let mine = frame(MAC, PEER, 64, 2);
    world.wire.send(&frame(PEER, [6; 6], 64, 3));
    world.wire.send(&broadcast);
    world.wire.send(&mine);
    assert_eq!(world.frames(0, 2), [broadcast.clone(), mine.clone()]);
    world.set(0x0001_010e, &0u32.to_le_bytes());
    world.wire.send(&mine);
    world.settle();
    assert_eq!(world.poll_transfer(0), None);
    world.set(0x0001_010e, &guest::FILTER.to_le_bytes());
    world.wire.send(&broadcast);
    assert_eq!(world.frames(0, 1), [broadcast]);
    assert_eq!(stat(&mut world, "rx_filtered"), 2);
}

#[test]
fn without_a_block_frames_wait() {
    let mut world = World::with(setting(), 1, 8 * (72 << 10));
    world.bring_up();
    // A block of 72 KiB has room for a few frames only, as the next one could be a large one.
    let sent: Vec<_> = (0..60).map(|number| frame(MAC, PEER, 1500, number)).collect();
    sent.iter().for_each(|frame| world.wire.send(frame));
    (0..20).for_each(|_| world.settle());
    let mut blocks = Vec::new();
    while let Some((loan, messages)) = world.poll_transfer(0) {
        blocks.push(loan);
        assert!(!messages.is_empty());
    }
    // Two are for answers.
    assert_eq!(blocks.len(), 6);
    assert!(stat(&mut world, "rx_waits") > 0);
    let got = stat(&mut world, "rx_packets") as usize;
    assert!(got < sent.len());
    blocks.into_iter().for_each(|loan| world.give_back(0, loan));
    assert_eq!(world.frames(0, sent.len() - got), sent[got..], "not one is missing");
    assert_eq!(stat(&mut world, "rx_drops"), 0);
}

#[test]
fn a_backend_that_takes_nothing_makes_frames_wait() {
    let mut world = World::up(setting());
    let one = frame(PEER, MAC, 1500, 9);
    let mut bytes = Vec::new();
    (0..8).for_each(|_| message(&TransmitInfo::default(), &one, &mut bytes));
    let mut asked = 0;
    while stat(&mut world, "tx_waits") == 0 {
        world.send_section(0, asked % 16, &bytes);
        world.settle();
        asked += 1;
        assert!(asked < 1000);
    }
    let mut frames = 0;
    for _ in 0..50 {
        while let Some(frame) = world.wire.next() {
            assert_eq!(frame, one);
            frames += 1;
        }
        world.turn(2);
    }
    (0..asked).for_each(|_| assert_eq!(world.completion(0), Status::Success));
    assert_eq!(frames, asked * 8);
}

#[test]
fn frames_with_false_addresses_do_not_go_out() {
    let mut world = World::up(Setting { antispoof: true, ..setting() });
    let (mine, false_one) = (frame(PEER, MAC, 64, 1), frame(MAC, PEER, 64, 2));
    world.send_frames(&[&false_one, &mine]);
    assert_eq!(world.wire.next(), Some(mine));
    assert_eq!(world.wire.next(), None);
    assert_eq!(stat(&mut world, "spoofed"), 1);
}

#[test]
fn frames_that_are_too_long_do_not_go_out() {
    let mut world = World::up(setting());
    world.send_frames(&[&frame(PEER, MAC, 1523, 1)]);
    world.send_frames(&[&frame(PEER, MAC, 13, 1)]);
    let largest = frame(PEER, MAC, 1522, 2);
    world.send_frames(&[&largest]);
    assert_eq!(world.wire.next(), Some(largest));
    assert_eq!(stat(&mut world, "tx_drops"), 2);
}

#[test]
fn the_link_goes_down_and_up() {
    let mut world = World::up(setting());
    let indication = |world: &mut World| {
        let (loan, messages) = world.transfer(0);
        world.give_back(0, loan);
        messages.concat()
    };
    world.control(r#"{"link":"down"}"#).unwrap();
    let told = indication(&mut world);
    assert_eq!(Reply::parse(&told).unwrap(), Reply::Indicate(Indication::Disconnect));
    world.send_frames(&[&frame(PEER, MAC, 64, 1)]);
    assert_eq!(world.wire.next(), None);
    world.wire.send(&frame(MAC, PEER, 64, 1));
    world.settle();
    world.control(r#"{"link":"down"}"#).unwrap();
    world.control(r#"{"link":"up"}"#).unwrap();
    let told = indication(&mut world);
    assert_eq!(Reply::parse(&told).unwrap(), Reply::Indicate(Indication::Connect));
    let late = frame(MAC, PEER, 64, 2);
    world.wire.send(&late);
    assert_eq!(world.frames(0, 1), [late]);
    assert!(world.control("{}").unwrap_err().contains("does not understand"));
}

#[test]
fn nothing_passes_during_a_pause() {
    let mut world = World::up(setting());
    world.control(r#"{"pause":{}}"#).unwrap();
    let kept = frame(MAC, PEER, 64, 1);
    world.wire.send(&kept);
    world.send_frames(&[&frame(PEER, MAC, 64, 1)]);
    world.settle();
    assert_eq!((world.wire.next(), world.poll_transfer(0)), (None, None));
    world.control(r#"{"resume":{}}"#).unwrap();
    assert_eq!(world.frames(0, 1), [kept]);
}

#[test]
fn the_driver_goes_and_comes_back() {
    let mut world = World::up(setting());
    for _ in 0..3 {
        world.wire.send(&frame(MAC, PEER, 64, 1));
        let (loan, _) = world.transfer(0);
        world.send_question(&Message::Halt { id: 8 });
        assert_eq!(world.completion(0), Status::Success);
        world.give_back(0, loan);
        world.tell(&GuestMessage::RevokeReceiveBuffer { id: guest::PAGE_SET });
        world.tell(&GuestMessage::RevokeSendBuffer { id: 0 });
        assert_eq!(world.bench.runtime.device().state.receive, None);
        world.bench.close(1);
        world.reopen();
        world.bring_up();
        let (again, back) = (frame(MAC, PEER, 64, 2), frame(PEER, MAC, 64, 3));
        world.wire.send(&again);
        assert_eq!(world.frames(0, 1), [again]);
        world.send_frames(&[&back]);
        assert_eq!(world.wire.next(), Some(back));
    }
}

#[test]
fn a_buffer_that_is_too_small_is_refused() {
    let mut world = World::with(setting(), 1, 68 << 10);
    let version = Version::V61.wire();
    world.say(&GuestMessage::Init { min: version, max: version });
    let answer = world.say(&GuestMessage::SendReceiveBuffer { gpadl: RECEIVE, id: 1 });
    assert_eq!(answer, Some(HostMessage::ReceiveBufferComplete { status: Status::Fail, section: None }));
    let answer = world.say(&GuestMessage::SendSendBuffer { gpadl: 0xbad, id: 1 });
    assert_eq!(answer, Some(HostMessage::SendBufferComplete { status: Status::Fail, section_size: 0 }));
    let answer = world.say(&GuestMessage::SendSendBuffer { gpadl: SEND, id: 1 });
    assert!(matches!(answer, Some(HostMessage::SendBufferComplete { status: Status::Success, .. })));
}

/// What Linux sets to spread frames over `channels` channels.
fn rss(channels: u32) -> Vec<u8> {
    let (table, key_len) = (128u32, 40u32);
    let mut value = vec![0x89, 2, 44, 0, 0, 0, 0, 0];
    // Toeplitz; IPv4, TCP over it, IPv6, TCP over it.
    value.extend_from_slice(&(1u32 | 0x100 | 0x200 | 0x400 | 0x800).to_le_bytes());
    value.extend_from_slice(&((table * 4) as u16).to_le_bytes());
    value.extend_from_slice(&[0; 2]);
    value.extend_from_slice(&44u32.to_le_bytes());
    value.extend_from_slice(&(key_len as u16).to_le_bytes());
    value.extend_from_slice(&[0; 2]);
    value.extend_from_slice(&(44 + table * 4).to_le_bytes());
    value.resize(44, 0);
    (0..table).for_each(|entry| value.extend_from_slice(&(entry % channels).to_le_bytes()));
    value.extend((0..40u8).map(|byte| byte.wrapping_mul(7) + 1));
    value
}

#[test]
fn frames_are_spread_over_channels() {
    let mut world = World::with(Setting { queues: 4, ..setting() }, 4, 16 << 20);
    world.bring_up();
    world.add_channels(3);
    // The table of channels to send by.
    world.settle();
    while world.channels[0].poll().is_some() {}
    world.set(OID_RSS, &rss(4));
    let mut sent = 0;
    for port in 0..64u16 {
        let mut tcp = frame(MAC, PEER, 100, 0);
        tcp[12..14].copy_from_slice(&[8, 0]);
        tcp[14..34].copy_from_slice(&[0x45, 0, 0, 86, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
        tcp[34..36].copy_from_slice(&(1024 + port).to_be_bytes());
        tcp[36..38].copy_from_slice(&80u16.to_be_bytes());
        tcp[46] = 0x50;
        world.wire.send(&tcp);
        sent += 1;
    }
    (0..8).for_each(|_| world.settle());
    let mut counts = [0; 4];
    for (channel, count) in counts.iter_mut().enumerate() {
        while let Some((loan, messages)) = world.poll_transfer(channel) {
            *count += messages.len();
            assert!(messages.iter().all(|message| Received::parse(message).unwrap().info.hash.is_some()));
            world.give_back(channel, loan);
        }
    }
    assert_eq!(counts.iter().sum::<usize>(), sent);
    assert!(counts.iter().all(|&count| count > 4), "{counts:?}");
    // What a channel's guest sends goes out as well.
    let back = frame(PEER, MAC, 64, 3);
    let mut bytes = Vec::new();
    message(&TransmitInfo::default(), &back, &mut bytes);
    world.send_section(2, 1, &bytes);
    assert_eq!(world.completion(2), Status::Success);
    assert_eq!(world.wire.next(), Some(back));
}

#[test]
fn states_are_understood_by_later_processes() {
    let world = World::up(setting());
    let state = &world.bench.runtime.device().state;
    let bytes = state.encode();
    assert!(bytes.len() <= vsp::ipc::ledger::LONGEST_STATE);
    let mut theirs = State::new(state.nic.clone());
    theirs.decode(&bytes).unwrap();
    assert_eq!(theirs.encode(), bytes);
    assert_eq!((theirs.phase, theirs.receive, theirs.send), (state.phase, state.receive, state.send));
    for len in 0..bytes.len() {
        assert!(State::new(state.nic.clone()).decode(&bytes[..len]).is_err(), "{len}");
    }
    let newer = [&[9, 2], &bytes[2..]].concat();
    assert!(theirs.decode(&newer).unwrap_err().contains("knows too little"));
    let compatible = [&[9, 1], &bytes[2..], &[1, 2, 3]].concat();
    assert!(theirs.decode(&compatible).is_ok());
}
