//! What a guest sends: messages, lists of pages, rings, packets.

use vmbus::PAGE_SIZE;
use vmbus::gpadl::{Assembly, Limits, Progress};
use vmbus::message::{GuestMessage, HostMessage};
use vmbus::packet::{Outgoing, PacketHeader, PacketType, TRAILER_SIZE};
use vmbus::ring::testing::TestRing;
use vmbus::ring::{ControlWord, RingMemory, RingReader, RingWriter};

use crate::Script;

/// A channel message, read as one of either direction. Whatever is understood survives the way back.
pub fn channel_message(data: &[u8]) {
    if let Ok(message) = GuestMessage::parse(data) {
        let encoded = message.encode();
        assert!(encoded.len() <= data.len());
        assert_eq!(GuestMessage::parse(&encoded), Ok(message));
    }
    if let Ok(message) = HostMessage::parse(data) {
        assert_eq!(HostMessage::parse(&message.encode()), Ok(message));
    }
}

/// A series of strings, each a channel message; those of GPADLs are put together.
pub fn gpadl(data: &[u8]) {
    const LIMITS: Limits = Limits { ranges: 16, pages: 1024 };
    let mut script = Script::new(data);
    let mut assembly: Option<Assembly> = None;
    while let Some(message) = script.string() {
        let progress = match (GuestMessage::parse(message), assembly.take()) {
            (Ok(GuestMessage::GpadlHeader(header)), _) => Assembly::begin(&header, LIMITS),
            (Ok(GuestMessage::GpadlBody(body)), Some(assembly)) => assembly.append(&body),
            (_, other) => {
                assembly = other;
                continue;
            }
        };
        match progress {
            Ok(Progress::Partial(partial)) => assembly = Some(partial),
            Ok(Progress::Complete(ranges)) => {
                assert!((1..=LIMITS.ranges as usize).contains(&ranges.len()));
                assert!(ranges.iter().map(|range| range.pfns.len()).sum::<usize>() <= LIMITS.pages as usize);
                for range in ranges {
                    assert!(range.len > 0 && range.offset < PAGE_SIZE);
                    let bytes = u64::from(range.len) + u64::from(range.offset);
                    assert_eq!(range.pfns.len() as u64, bytes.div_ceil(4096));
                }
            }
            Err(_) => {}
        }
    }
}

/// A ring whose writer is the fuzzer: first a script of what it does to the control page, then the data, which
/// begins 64 bytes before the ring's end so that it wraps.
pub fn ring_reader(data: &[u8]) {
    const LONGEST: u32 = 2048;
    let mut script = Script::new(data);
    let Some(steps) = script.string() else { return };
    let ring = TestRing::new(1);
    let content = script.rest();
    ring.write(PAGE_SIZE - 64, &content[..content.len().min(PAGE_SIZE as usize)]);
    ring.store(ControlWord::ReadIndex, PAGE_SIZE - 64);
    ring.store(ControlWord::WriteIndex, PAGE_SIZE - 64);
    let Ok(reader) = RingReader::new(ring.clone()) else { unreachable!("the read index is good") };
    let mut reader = reader.with_longest_packet(LONGEST);
    let mut scratch = Vec::new();
    let mut steps = Script::new(steps);
    while let Some(step) = steps.byte() {
        let Some(value) = steps.word() else { break };
        match step % 4 {
            0 => ring.store(ControlWord::WriteIndex, u32::from(value)),
            1 => ring.store(ControlWord::WriteIndex, (PAGE_SIZE - 64 + u32::from(value) * 8) % PAGE_SIZE),
            2 => ring.store(ControlWord::PendingSendSize, u32::from(value)),
            _ => ring.store(ControlWord::ReadIndex, u32::from(value)),
        }
        while let Ok(Some(header)) = reader.next(&mut scratch) {
            check(&header, &scratch);
            assert!(header.len <= LONGEST);
        }
        let _ = reader.publish();
        let _ = reader.unmask_interrupts();
        assert_eq!(reader.read_position(), reader.published_position());
        assert!(reader.read_position() < PAGE_SIZE && reader.read_position().is_multiple_of(8));
    }
}

/// A ring whose reader is the fuzzer: read indices, masks and packets to write between them.
pub fn ring_writer(data: &[u8]) {
    let mut script = Script::new(data);
    let ring = TestRing::new(1);
    let Ok(mut writer) = RingWriter::new(ring.clone()) else { unreachable!("a good ring") };
    while let Some(step) = script.byte() {
        let Some(value) = script.word() else { break };
        match step % 5 {
            0 => ring.store(ControlWord::ReadIndex, u32::from(value)),
            1 => ring.store(ControlWord::ReadIndex, u32::from(value) * 8 % PAGE_SIZE),
            2 => ring.store(ControlWord::InterruptMask, u32::from(value)),
            3 => ring.store(ControlWord::WriteIndex, u32::from(value)),
            _ => {
                let before = writer.write_position();
                let payload = vec![0x5a; usize::from(value % 6000)];
                let pushed = writer.push(&Outgoing::completion(value.into()), &[&payload]);
                let grown = (writer.write_position() + PAGE_SIZE - before) % PAGE_SIZE;
                let needed = payload.len().next_multiple_of(8) as u32 + 16 + TRAILER_SIZE;
                assert_eq!(grown, if pushed.is_ok() { needed } else { 0 });
                let _ = writer.publish();
            }
        }
        assert!(writer.write_position() < PAGE_SIZE && writer.write_position().is_multiple_of(8));
    }
}

/// One packet: its type, the length of its type header in 8 bytes, the type header, the payload.
pub fn packet(data: &[u8]) {
    let mut script = Script::new(data);
    let (Some(packet_type), Some(len8)) = (script.byte(), script.byte()) else { return };
    let mut scratch = vec![0; 16];
    scratch.extend_from_slice(script.rest());
    scratch.resize(scratch.len().next_multiple_of(8), 0);
    let len = scratch.len() as u32;
    let data_offset = (16 + u32::from(len8) * 8).min(len);
    let packet_type = PacketType(packet_type.into());
    check(&PacketHeader { packet_type, flags: 1, transaction_id: 1, data_offset, len }, &scratch);
}

/// What holds for every packet that a ring has let through.
fn check(header: &PacketHeader, scratch: &[u8]) {
    const LIMITS: Limits = Limits { ranges: 32, pages: 256 };
    assert_eq!(scratch.len(), header.len as usize);
    assert_eq!(16 + header.type_header(scratch).len() + header.payload(scratch).len(), scratch.len());
    if let Ok(ranges) = header.gpa_ranges(scratch, LIMITS) {
        let count = ranges.len();
        let mut pages = 0;
        assert!(count <= LIMITS.ranges as usize);
        assert_eq!(ranges.count(), count);
        for range in ranges {
            pages += range.pfns.len();
            let mut covered = 0;
            for (address, len) in range.pieces() {
                assert!(len > 0 && address.checked_add(len.into()).is_some());
                covered += len;
            }
            assert_eq!(covered, range.len);
        }
        assert!(pages <= LIMITS.pages as usize);
    }
    if let Ok(pages) = header.transfer_pages(scratch, 32) {
        assert!(pages.ranges.len() <= 32);
    }
}
