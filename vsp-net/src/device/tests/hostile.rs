//! Guests that lie, keep everything, or never stop asking.

use vsp::vmbus::packet::{Outgoing, PacketType, gpa_direct_header};

use super::guest::{MAC, PEER, World, frame, message, setting};
use super::stat;
use crate::nvsp::{ChannelType, GuestMessage, HostMessage, RndisPacket, Section, Status};
use crate::rndis::TransmitInfo;
use crate::rndis::control::Message;

/// The NIC still works.
fn works(world: &mut World) {
    let (out, in_) = (frame(PEER, MAC, 64, 3), frame(MAC, PEER, 64, 4));
    world.send_frames(&[&out]);
    assert_eq!(world.wire.next(), Some(out));
    world.wire.send(&in_);
    assert_eq!(world.frames(0, 1), [in_]);
}

#[test]
fn sections_that_do_not_exist() {
    let mut world = World::up(setting());
    let size = world.section_size();
    let count = world.bench.runtime.device().state.send.unwrap().count;
    for (index, size) in [
        (count, 64),
        (u32::MAX - 1, 64),
        (u32::MAX / size, size),
        (0, size + 1),
        (0, u32::MAX),
        (1, 0),
        (2, 7),
    ] {
        let section = Some(Section { index, size });
        let packet = GuestMessage::RndisPacket(RndisPacket { channel: ChannelType::Data, section });
        assert!(world.channels[0].send(&Outgoing::in_band(78, true), &[&packet.encode()]));
        assert_eq!(world.completion(0), Status::InvalidRndisPacket, "{index} {size}");
    }
    works(&mut world);
}

#[test]
fn lengths_and_offsets_that_lie() {
    let mut world = World::up(setting());
    let mut honest = Vec::new();
    message(&TransmitInfo::default(), &frame(PEER, MAC, 64, 1), &mut honest);
    // Each word of the header, with numbers that matter.
    for word in 1..11 {
        for value in [0u32, 1, 7, 8, 36, 44, 100, 0x7fff_ffff, 0x8000_0000, u32::MAX - 7, u32::MAX] {
            let mut bytes = honest.clone();
            bytes[word * 4..word * 4 + 4].copy_from_slice(&value.to_le_bytes());
            world.send_section(0, 0, &bytes);
            world.completion(0);
            while world.wire.next().is_some() {}
        }
    }
    works(&mut world);
}

#[test]
fn pages_that_are_none() {
    let mut world = World::up(setting());
    let packet =
        GuestMessage::RndisPacket(RndisPacket { channel: ChannelType::Data, section: None }).encode();
    let headers = [
        gpa_direct_header(&[(0, 64, &[u64::MAX >> 13])]),
        gpa_direct_header(&[(0, u32::MAX, &[1])]),
        gpa_direct_header(&[(5000, 64, &[1])]),
        gpa_direct_header(&[(0, 64, &[1 << 30])]),
        gpa_direct_header(&[]),
        vec![0; 8],
        vec![0xff; 64],
    ];
    for header in headers {
        assert!(world.channels[0].send(&Outgoing::gpa_direct(78, &header), &[&header, &packet]));
        assert_eq!(world.completion(0), Status::InvalidRndisPacket);
    }
    works(&mut world);
}

#[test]
fn messages_that_make_no_sense_or_come_too_early() {
    let mut world = World::new(setting());
    let packet = GuestMessage::RndisPacket(RndisPacket {
        channel: ChannelType::Data,
        section: Some(Section { index: 0, size: 100 }),
    });
    assert!(world.channels[0].send(&Outgoing::in_band(78, true), &[&packet.encode()]));
    assert_eq!(world.completion(0), Status::Fail);
    let answer = world.say(&GuestMessage::SendReceiveBuffer { gpadl: super::RECEIVE, id: 1 });
    assert_eq!(answer, Some(HostMessage::ReceiveBufferComplete { status: Status::Fail, section: None }));
    let answer = world.say(&GuestMessage::Subchannel { operation: 1, count: 1 });
    assert_eq!(answer, Some(HostMessage::SubchannelComplete { status: Status::Fail, count: 0 }));
    for payload in [&b""[..], &[0; 8], &[0xff; 40], &[101, 0, 0, 0, 0, 0, 0, 0]] {
        assert!(world.channels[0].send(&Outgoing::in_band(5, true), &[payload]));
        let (header, payload) = world.wait(0);
        assert_eq!((header.transaction_id, payload.len()), (5, 0));
    }
    world.bring_up();
    // Twice the same.
    let answer = world.say(&GuestMessage::SendReceiveBuffer { gpadl: super::RECEIVE, id: 1 });
    assert_eq!(answer, Some(HostMessage::ReceiveBufferComplete { status: Status::Fail, section: None }));
    works(&mut world);
}

#[test]
fn messages_for_neither_data_nor_control() {
    let mut world = World::up(setting());
    for kind in [7, u32::MAX] {
        let mut bytes = [107u32, kind, 0, 64].map(u32::to_le_bytes).concat();
        bytes.resize(40, 0);
        for len in [40, 8] {
            assert!(world.channels[0].send(&Outgoing::in_band(78, true), &[&bytes[..len]]));
            assert_eq!(world.completion(0), Status::InvalidRndisPacket, "{kind} {len}");
        }
    }
    works(&mut world);
}

#[test]
fn a_guest_that_keeps_all_blocks() {
    let mut world = World::with(setting(), 1, 8 * (72 << 10));
    world.bring_up();
    for number in 0..200 {
        world.send_question(&Message::KeepAlive { id: number });
        if number % 8 == 0 {
            world.wire.send(&frame(MAC, PEER, 1500, 1));
        }
        world.settle();
        let mut completed = 0;
        while let Some((header, _)) = world.channels[0].poll() {
            completed += u32::from(header.packet_type == PacketType::COMPLETION);
        }
        assert_eq!(completed, 1);
    }
    assert!(stat(&mut world, "answers_lost") > 100);
    assert!(stat(&mut world, "lent") <= 8);
    // Blocks that it never had, and those that it has: only they count.
    for loan in [300, 9, u64::MAX, 1 << 40].into_iter().chain(0..8).chain(0..8) {
        world.give_back(0, loan);
    }
    world.settle();
    while let Some((loan, _)) = world.poll_transfer(0) {
        world.give_back(0, loan);
    }
    assert_eq!(stat(&mut world, "lent"), 0);
    works(&mut world);
}

#[test]
fn a_guest_that_takes_no_answers() {
    let mut world = World::up(setting());
    let question = Message::KeepAlive { id: 1 };
    let mut bytes = Vec::new();
    question.encode(&mut bytes);
    world.bench.core.ram.as_ref().unwrap().write(0x4000, &bytes).unwrap();
    let header = gpa_direct_header(&[(0, bytes.len() as u32, &[4])]);
    let packet =
        GuestMessage::RndisPacket(RndisPacket { channel: ChannelType::Control, section: None }).encode();
    let mut asked = 0;
    for _ in 0..5000 {
        if !world.channels[0].send(&Outgoing::gpa_direct(78, &header), &[&header, &packet]) {
            break;
        }
        asked += 1;
        world.turn(0);
    }
    assert!(asked < 5000, "the ring is full at last");
    let device = world.bench.runtime.device();
    assert!(device.questions.len() <= super::super::DEPTH as usize);
    // It closes the channel on top of it all.
    world.bench.close(1);
}

#[test]
fn a_guest_that_closes_with_everything_under_way() {
    let mut world = World::up(setting());
    let one = frame(PEER, MAC, 1500, 9);
    let mut bytes = Vec::new();
    (0..8).for_each(|_| message(&TransmitInfo::default(), &one, &mut bytes));
    while stat(&mut world, "tx_waits") == 0 {
        world.send_section(0, 0, &bytes);
        world.settle();
    }
    world.wire.send(&frame(MAC, PEER, 64, 1));
    world.settle();
    world.bench.close(1);
    while world.wire.next().is_some() {}
    world.reopen();
    world.bring_up();
    works(&mut world);
}
