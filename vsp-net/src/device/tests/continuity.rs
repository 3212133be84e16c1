//! Processes die, others take over; the guest has a pause.

use super::guest::{FILTER, MAC, PEER, World, frame, message, setting};
use super::{OID_PERMANENT_ADDRESS, query, stat};
use crate::cli::{Memory, Setting};
use crate::nvsp::{ChannelType, Status};
use crate::rndis::control::Message;
use crate::rndis::{Indication, Reply, RndisStatus, TransmitInfo};

#[test]
fn a_successor_knows_what_was_agreed_on() {
    let mut world = World::up(setting());
    for round in 0..5 {
        world = world.die(setting());
        assert_eq!(query(&mut world, OID_PERMANENT_ADDRESS).1, MAC);
        let (in_, out) = (frame(MAC, PEER, 64, round), frame(PEER, MAC, 64, round));
        world.wire.send(&in_);
        assert_eq!(world.frames(0, 1), [in_]);
        world.send_frames(&[&out]);
        assert_eq!(world.wire.next(), Some(out));
        world.set(0x0001_010e, &FILTER.to_le_bytes());
    }
}

#[test]
fn blocks_that_the_guest_has_are_lent_to_nobody_else() {
    let mut world = World::up(setting());
    world.wire.send(&frame(MAC, PEER, 64, 1));
    let (first, _) = world.transfer(0);
    // Else the frame would come again.
    world.settle();
    world = world.die(setting());
    world.settle();
    assert_eq!(stat(&mut world, "lent"), 1);
    let mut blocks = vec![first];
    for number in 0..100 {
        world.wire.send(&frame(MAC, PEER, 64, number));
        let (loan, _) = world.transfer(0);
        assert!(!blocks.contains(&loan), "block {loan} is out already");
        blocks.push(loan);
    }
    for loan in blocks {
        world.give_back(0, loan);
    }
    assert_eq!(stat(&mut world, "lent"), 0);
}

#[test]
fn a_question_is_answered_once() {
    let mut world = World::up(setting());
    // It lies in the ring, or has been answered and published: wherever the process dies, there is one answer.
    for turns in 0..3 {
        world.send_question(&Message::Query { id: 9, oid: OID_PERMANENT_ADDRESS, info: &[] });
        (0..turns).for_each(|_| world.turn(0));
        world = world.die(setting());
        assert_eq!(world.completion(0), Status::Success);
        let (loan, messages) = world.transfer(0);
        assert_eq!(
            Reply::parse(&messages[0]).unwrap(),
            Reply::QueryComplete { id: 9, status: RndisStatus::SUCCESS, info: &MAC }
        );
        world.give_back(0, loan);
        world.settle();
        assert_eq!(world.poll_transfer(0), None);
    }
}

#[test]
fn frames_that_were_not_sent_are_sent_by_the_successor() {
    let mut world = World::up(setting());
    let one = frame(PEER, MAC, 200, 9);
    let mut bytes = Vec::new();
    message(&TransmitInfo::default(), &one, &mut bytes);
    world.send_section(0, 0, &bytes);
    world.send_pages(0, ChannelType::Data, None, &bytes);
    world = world.die(setting());
    for _ in 0..2 {
        assert_eq!(world.completion(0), Status::Success);
        assert_eq!(world.wire.next().as_ref(), Some(&one));
    }
}

#[test]
fn what_was_fetched_for_a_frame_is_in_the_ledger() {
    let setting = || Setting { memory: Memory::Confined, ..setting() };
    let mut world = World::up(setting());
    let one = frame(PEER, MAC, 1500, 9);
    let mut bytes = Vec::new();
    (0..8).for_each(|_| message(&TransmitInfo::default(), &one, &mut bytes));
    let mut asked = 0;
    while stat(&mut world, "tx_waits") == 0 {
        world.send_pages(0, ChannelType::Data, None, &bytes);
        world.settle();
        asked += 1;
    }
    world = world.die(setting());
    (0..50).for_each(|_| {
        while let Some(frame) = world.wire.next() {
            assert_eq!(frame, one);
        }
        world.turn(2);
    });
    (0..asked).for_each(|_| assert_eq!(world.completion(0), Status::Success));
    assert_eq!(stat(&mut world, "tx_drops"), 0);
}

#[test]
fn a_stream_of_frames_goes_on_over_deaths() {
    let mut world = World::up(setting());
    let mut expected = 0;
    for round in 0..20u8 {
        for number in 0..10 {
            world.wire.send(&frame(MAC, PEER, 100, round * 10 + number));
        }
        (0..round % 3).for_each(|_| world.turn(0));
        world = world.die(setting());
        world.settle();
        // Once at least, in order but for repetitions.
        let mut next = round * 10;
        while let Some((loan, messages)) = world.poll_transfer(0) {
            for message in messages {
                let last = *message.last().unwrap();
                assert!(last <= next, "{next} is missing");
                next = next.max(last + 1);
            }
            world.give_back(0, loan);
        }
        expected += 10;
        assert_eq!(u32::from(next), expected);
    }
}

#[test]
fn a_pause_outlives_the_process() {
    let mut world = World::up(setting());
    world.control(r#"{"pause":{}}"#).unwrap();
    // It is in the ledger with the next answer.
    world.send_frames(&[&frame(PEER, MAC, 64, 1)]);
    world = world.die(setting());
    world.send_frames(&[&frame(PEER, MAC, 64, 1)]);
    assert_eq!(world.wire.next(), None);
    world.control(r#"{"resume":{}}"#).unwrap();
    world.send_frames(&[&frame(PEER, MAC, 64, 2)]);
    assert!(world.wire.next().is_some());
}

#[test]
fn a_guest_hears_of_a_link_that_has_changed_meanwhile() {
    let mut world = World::up(setting());
    world = world.die(Setting { link_up: false, ..setting() });
    let (loan, messages) = world.transfer(0);
    assert_eq!(Reply::parse(&messages[0]).unwrap(), Reply::Indicate(Indication::Disconnect));
    world.give_back(0, loan);
    // And of one that has not, nothing.
    world.send_frames(&[&frame(PEER, MAC, 64, 1)]);
    world = world.die(Setting { link_up: false, ..setting() });
    (0..4).for_each(|_| world.settle());
    assert_eq!(world.poll_transfer(0), None);
}

#[test]
fn channels_are_taken_over_together() {
    let mut world = World::with(Setting { queues: 2, ..setting() }, 2, 16 << 20);
    world.bring_up();
    world.add_channels(1);
    world.settle();
    while world.channels[0].poll().is_some() {}
    world = world.die(Setting { queues: 2, ..setting() });
    world.settle();
    while world.channels[0].poll().is_some() {}
    let one = frame(PEER, MAC, 200, 9);
    let mut bytes = Vec::new();
    message(&TransmitInfo::default(), &one, &mut bytes);
    for channel in 0..2 {
        world.send_section(channel, channel as u32, &bytes);
        assert_eq!(world.completion(channel), Status::Success);
        assert_eq!(world.wire.next().as_ref(), Some(&one));
    }
}

#[test]
fn a_planned_hand_over_loses_nothing() {
    let mut world = World::up(setting());
    let one = frame(MAC, PEER, 100, 1);
    world.wire.send(&one);
    let (loan, _) = world.transfer(0);
    world.bench.quiesce();
    // What comes meanwhile waits.
    let two = frame(MAC, PEER, 100, 2);
    world.wire.send(&two);
    world.bench.serve(true);
    world.bench.reopen_all();
    assert_eq!(world.frames(0, 1), [two]);
    world.give_back(0, loan);
    assert_eq!(stat(&mut world, "lent"), 0);
}
