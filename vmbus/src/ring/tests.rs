use super::testing::TestRing;
use super::*;
use crate::packet::{Outgoing, PacketType, TRAILER_SIZE};
use alloc::vec::Vec;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::mpsc;
use std::time::Duration;
use std::vec;

fn ends(pages: u32) -> (TestRing, RingWriter<TestRing>, RingReader<TestRing>) {
    let ring = TestRing::new(pages);
    let writer = RingWriter::new(ring.clone()).expect("a good ring");
    let reader = RingReader::new(ring.clone()).expect("a good ring");
    (ring, writer, reader)
}

#[test]
fn a_packet_comes_out_as_it_went_in() {
    let (_, mut writer, mut reader) = ends(1);
    let mut scratch = Vec::new();
    let packet = Outgoing { type_header_len: 8, ..Outgoing::in_band(0x1234, true) };
    writer.push(&packet, &[&[1; 8], &[2; 5], &[3; 2]]).expect("room");
    assert_eq!(reader.next(&mut scratch), Ok(None), "not published yet");
    assert!(writer.publish());
    let header = reader.next(&mut scratch).expect("a good ring").expect("a packet");
    assert_eq!((header.packet_type, header.transaction_id), (PacketType::IN_BAND, 0x1234));
    assert!(header.completion_requested());
    assert_eq!(header.type_header(&scratch), [1; 8]);
    assert_eq!(header.payload(&scratch), [2, 2, 2, 2, 2, 3, 3, 0]);
    assert_eq!(reader.next(&mut scratch), Ok(None));
}

#[test]
fn only_an_empty_ring_is_signalled_and_only_unmasked() {
    let (_, mut writer, mut reader) = ends(1);
    let mut scratch = Vec::new();
    let packet = Outgoing::in_band(1, false);
    assert!(!writer.publish(), "nothing was pushed");
    writer.push(&packet, &[]).expect("room");
    assert!(writer.publish(), "from empty to one");
    writer.push(&packet, &[]).expect("room");
    assert!(!writer.publish(), "from one to two");
    reader.mask_interrupts();
    while reader.next(&mut scratch).expect("good").is_some() {}
    assert!(!reader.publish());
    writer.push(&packet, &[]).expect("room");
    assert!(!writer.publish(), "masked");
    assert!(reader.unmask_interrupts(), "it arrived while masked");
    assert!(reader.next(&mut scratch).expect("good").is_some());
    assert!(!reader.publish());
    assert!(!reader.unmask_interrupts());
    writer.push(&packet, &[]).expect("room");
    assert!(writer.publish());
}

#[test]
fn a_waiting_writer_is_signalled_once_when_there_is_room() {
    let (_, mut writer, mut reader) = ends(1);
    let mut scratch = Vec::new();
    let packet = Outgoing::in_band(1, false);
    // 4 packets of 1000 + 24 bytes would fill the ring to the last byte, which is not allowed.
    for _ in 0..3 {
        writer.push(&packet, &[&[0; 1000]]).expect("room");
    }
    assert_eq!(writer.push(&packet, &[&[0; 1000]]), Err(PushError::Full { needed: 1024 }));
    let _ = writer.publish();
    writer.set_pending_send_size(2048);
    let mut freed = || {
        reader.next(&mut scratch).expect("good").expect("a packet");
        reader.publish()
    };
    assert!(!freed(), "1024 + 1024 bytes are free, but more than 2048 are wanted");
    assert!(freed(), "3072 are free");
    assert!(!freed(), "it has been signalled already");
    writer.set_pending_send_size(0);
    writer.push(&packet, &[&[0; 1000]]).expect("room again");
}

#[test]
fn without_the_feature_bit_no_writer_waits() {
    let (ring, mut writer, mut reader) = ends(1);
    writer.push(&Outgoing::in_band(1, false), &[&[0; 4000]]).expect("room");
    let _ = writer.publish();
    writer.set_pending_send_size(1000);
    ring.store(ControlWord::FeatureBits, 0);
    reader.next(&mut Vec::new()).expect("good").expect("a packet");
    assert!(!reader.publish());
}

#[test]
fn what_never_fits_is_told_from_what_does_not_fit_now() {
    let (_, mut writer, _) = ends(1);
    let packet = Outgoing::in_band(1, false);
    assert_eq!(writer.push(&packet, &[&[0; 4096 - 24]]), Err(PushError::TooLarge(4088)));
    writer.push(&packet, &[&[0; 4096 - 32]]).expect("all but 8 bytes");
    let (_, mut writer, _) = ends(256);
    assert_eq!(writer.push(&packet, &[&[0; 524_280]]), Err(PushError::TooLarge(524_296)));
}

#[test]
fn an_end_takes_up_where_its_predecessor_published() {
    let (ring, mut writer, mut reader) = ends(1);
    let mut scratch = Vec::new();
    for id in 0..5 {
        writer.push(&Outgoing::in_band(id, false), &[&[7; 40]]).expect("room");
    }
    let _ = writer.publish();
    reader.next(&mut scratch).expect("good");
    let _ = reader.publish();
    reader.next(&mut scratch).expect("good");
    assert_ne!(reader.read_position(), reader.published_position());

    let mut reader = RingReader::new(ring.clone()).expect("good");
    let header = reader.next(&mut scratch).expect("good").expect("a packet");
    assert_eq!(header.transaction_id, 1, "it was read but never published");
    let mut writer = RingWriter::new(ring).expect("good");
    writer.push(&Outgoing::in_band(5, false), &[]).expect("room");
    assert!(!writer.publish(), "the ring was not empty");
}

#[test]
fn indices_that_are_no_positions_are_refused() {
    for bad in [1, 4, 4096, 4104, u32::MAX, u32::MAX - 7] {
        let ring = TestRing::new(1);
        ring.store(ControlWord::ReadIndex, bad);
        assert_eq!(RingReader::new(ring.clone()).err(), Some(RingError::ReadIndex(bad)));
        let mut writer = RingWriter::new(ring.clone()).expect("the write index is good");
        assert_eq!(
            writer.push(&Outgoing::in_band(0, false), &[]),
            Err(PushError::Ring(RingError::ReadIndex(bad)))
        );
        let ring = TestRing::new(1);
        ring.store(ControlWord::WriteIndex, bad);
        assert_eq!(RingWriter::new(ring.clone()).err(), Some(RingError::WriteIndex(bad)));
        let mut reader = RingReader::new(ring).expect("the read index is good");
        assert!(reader.unmask_interrupts());
        assert_eq!(reader.next(&mut Vec::new()), Err(RingError::WriteIndex(bad)));
    }
}

#[test]
fn descriptors_that_lie_are_refused() {
    let refused = |offset8: u16, len8: u16, write_index: u32| {
        let ring = TestRing::new(1);
        let mut descriptor = [0; 16];
        descriptor[0] = 6;
        descriptor[2..4].copy_from_slice(&offset8.to_le_bytes());
        descriptor[4..6].copy_from_slice(&len8.to_le_bytes());
        ring.write(0, &descriptor);
        ring.store(ControlWord::WriteIndex, write_index);
        let mut reader = RingReader::new(ring).expect("good").with_longest_packet(1000);
        reader.next(&mut Vec::new()).expect_err("a lie")
    };
    assert_eq!(refused(2, 2, 16), RingError::Truncated(16));
    assert_eq!(refused(0, 2, 64), RingError::BadDescriptor);
    assert_eq!(refused(2, 1, 64), RingError::BadDescriptor);
    assert_eq!(refused(9, 7, 64), RingError::BadDescriptor);
    assert_eq!(refused(2, 8, 64), RingError::Overrun { len: 72, available: 64 });
    assert_eq!(refused(2, 0xffff, 64), RingError::Overrun { len: 0x80000, available: 64 });
    assert_eq!(refused(2, 126, 4000), RingError::TooLong { len: 1008, limit: 1000 });
}

/// What a test does to a ring.
#[derive(Debug, Clone)]
enum Step {
    Push { len: usize, id: u64 },
    PublishWrites,
    Read,
    PublishReads,
    Mask,
    Unmask,
    Wait { bytes: u32 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..1500, any::<u64>()).prop_map(|(len, id)| Step::Push { len, id }),
        3 => Just(Step::PublishWrites),
        6 => Just(Step::Read),
        3 => Just(Step::PublishReads),
        1 => Just(Step::Mask),
        1 => Just(Step::Unmask),
        1 => (0u32..3000).prop_map(|bytes| Step::Wait { bytes }),
    ];
    prop::collection::vec(step, 1..400)
}

proptest! {
    /// The ring against a queue: order, content, room and signals, around the end many times.
    #[test]
    fn a_ring_is_a_queue(steps in steps(), pages in 1u32..3, start in 0u32..512) {
        let ring = TestRing::new(pages);
        let data_len = ring.data_len();
        ring.store(ControlWord::ReadIndex, start * 8);
        ring.store(ControlWord::WriteIndex, start * 8);
        let mut writer = RingWriter::new(ring.clone()).expect("good");
        let mut reader = RingReader::new(ring).expect("good");
        let mut scratch = Vec::new();
        // Bytes in the ring of packets that are pushed, visible, and read but not yet given back.
        let (mut pushed, mut visible, mut unreturned) = (VecDeque::new(), VecDeque::new(), 0u32);
        let (mut masked, mut pending) = (false, 0u32);
        let bytes = |queue: &VecDeque<(u64, Vec<u8>)>| -> u32 {
            queue.iter().map(|(_, payload)| payload.len().next_multiple_of(8) as u32 + 16 + TRAILER_SIZE).sum()
        };
        for step in steps {
            match step {
                Step::Push { len, id } => {
                    let payload: Vec<u8> = (0..len).map(|i| (i as u64 ^ id) as u8).collect();
                    let needed = len.next_multiple_of(8) as u32 + 16 + TRAILER_SIZE;
                    let used = bytes(&pushed) + bytes(&visible) + unreturned;
                    let cut = len / 3;
                    let result = writer.push(&Outgoing::in_band(id, false), &[&payload[..cut], &payload[cut..]]);
                    if used + needed < data_len {
                        prop_assert_eq!(result, Ok(()));
                        pushed.push_back((id, payload));
                    } else {
                        prop_assert_eq!(result, Err(PushError::Full { needed }));
                    }
                }
                Step::PublishWrites => {
                    let was_empty = visible.is_empty() && unreturned == 0;
                    let signal = !pushed.is_empty() && was_empty && !masked;
                    prop_assert_eq!(writer.publish(), signal);
                    visible.append(&mut pushed);
                }
                Step::Read => match (reader.next(&mut scratch), visible.pop_front()) {
                    (Ok(Some(header)), Some((id, payload))) => {
                        prop_assert_eq!(header.transaction_id, id);
                        prop_assert_eq!(&header.payload(&scratch)[..payload.len()], &payload[..]);
                        prop_assert!(header.payload(&scratch)[payload.len()..].iter().all(|&byte| byte == 0));
                        unreturned += header.len + TRAILER_SIZE;
                    }
                    (Ok(None), None) => {}
                    other => prop_assert!(false, "{:?}", other),
                },
                Step::PublishReads => {
                    let free = data_len - bytes(&visible);
                    let signal = pending != 0 && free > pending && free - unreturned <= pending;
                    prop_assert_eq!(reader.publish(), signal);
                    unreturned = 0;
                }
                Step::Mask => {
                    reader.mask_interrupts();
                    masked = true;
                }
                Step::Unmask => {
                    prop_assert_eq!(reader.unmask_interrupts(), !visible.is_empty());
                    masked = false;
                }
                Step::Wait { bytes } => {
                    writer.set_pending_send_size(bytes);
                    pending = bytes;
                }
            }
        }
    }

    /// Whatever the other end writes, the reader returns and its scratch memory stays bounded.
    #[test]
    fn a_hostile_writer_breaks_nothing(
        data in prop::collection::vec(any::<u8>(), 0..512), indices in prop::collection::vec(0u32..1100, 1..20),
    ) {
        let ring = TestRing::new(1);
        ring.write(4000, &data);
        ring.store(ControlWord::ReadIndex, 4000);
        let mut reader = RingReader::new(ring.clone()).expect("good").with_longest_packet(2048);
        let mut scratch = Vec::new();
        for index in indices {
            ring.store(ControlWord::WriteIndex, index * 4);
            ring.store(ControlWord::PendingSendSize, index);
            while let Ok(Some(header)) = reader.next(&mut scratch) {
                prop_assert_eq!(scratch.len(), header.len as usize);
                prop_assert!(scratch.len() <= 2048);
            }
            let _ = reader.publish();
        }
    }

    /// Whatever the other end writes, the writer stays within the ring.
    #[test]
    fn a_hostile_reader_breaks_nothing(indices in prop::collection::vec((0u32..1100, 0usize..5000), 1..50)) {
        let ring = TestRing::new(1);
        let mut writer = RingWriter::new(ring.clone()).expect("good");
        for (index, len) in indices {
            ring.store(ControlWord::ReadIndex, index * 4);
            let _ = writer.push(&Outgoing::completion(1), &[&vec![0xaa; len]]);
            let _ = writer.publish();
            prop_assert!(writer.write_position() < 4096 && writer.write_position().is_multiple_of(8));
        }
    }
}

/// Two threads that sleep whenever the protocol lets them: a signal too few is a hang, which the timeouts find.
#[test]
fn no_signal_is_missed_between_threads() {
    const PACKETS: u64 = 20_000;
    const PATIENCE: Duration = Duration::from_secs(20);
    let (_, mut writer, mut reader) = ends(1);
    let (doorbell, rung) = mpsc::channel();
    let (interrupt, interrupted) = mpsc::channel();

    let producer = std::thread::spawn(move || {
        let payload = [0x5a; 700];
        for id in 0..PACKETS {
            let part = &payload[..(id % 700) as usize];
            loop {
                match writer.push(&Outgoing::in_band(id, false), &[part]) {
                    Ok(()) => break,
                    Err(PushError::Full { needed }) => {
                        if writer.publish() {
                            let _ = doorbell.send(());
                        }
                        writer.set_pending_send_size(needed);
                        let retry = writer.push(&Outgoing::in_band(id, false), &[part]);
                        if retry.is_err() {
                            interrupted.recv_timeout(PATIENCE).expect("room was made but not signalled");
                        }
                        writer.set_pending_send_size(0);
                        if retry.is_ok() {
                            break;
                        }
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            if (id % 3 == 0 || id == PACKETS - 1) && writer.publish() {
                let _ = doorbell.send(());
            }
        }
    });

    let mut scratch = Vec::new();
    let mut expected = 0;
    while expected < PACKETS {
        reader.mask_interrupts();
        while let Some(header) = reader.next(&mut scratch).expect("a good ring") {
            assert_eq!(header.transaction_id, expected);
            expected += 1;
            if expected % 5 == 0 && reader.publish() {
                let _ = interrupt.send(());
            }
        }
        if reader.publish() {
            let _ = interrupt.send(());
        }
        if !reader.unmask_interrupts() && expected < PACKETS {
            rung.recv_timeout(PATIENCE).expect("packets were published but not signalled");
        }
    }
    producer.join().expect("the producer ends");
}
