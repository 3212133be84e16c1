//! Whatever a guest writes, the parsers answer within the disk's and the RAM's bounds.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::sync::Arc;

use proptest::prelude::*;
use vsp::GuestRam;
use vsp::ipc::message::RamRegion;
use vsp::ipc::shm::SharedMemory;
use vsp::vmbus::packet::{Outgoing, gpa_direct_header};
use vsp::vmbus::ring::testing::TestRing;
use vsp::vmbus::ring::{RingReader, RingWriter};
use vsp_storage::scsi::reserve::{Action, Request};
use vsp_storage::scsi::{Condition, Plan, Unit, mode, plan, unmap};
use vsp_storage::transfer;
use vsp_storage::wire::Message;

fn unit(blocks: u64, block_size: u32, can_unmap: bool) -> Unit {
    let serial = "s".into();
    Unit {
        blocks,
        block_size,
        physical_exponent: 0,
        read_only: false,
        can_unmap,
        write_cache: true,
        serial,
        naa: 1,
    }
}

/// Opcodes that exist, so that fields are reached.
const OPCODES: [u8; 39] = [
    0x00, 0x03, 0x08, 0x0A, 0x12, 0x1A, 0x1B, 0x25, 0x28, 0x2A, 0x2F, 0x35, 0x41, 0x42, 0x5A, 0x88, 0x8A,
    0x8F, 0x91, 0x93, 0x9E, 0xA0, 0xA8, 0xAA, 0xAF, 0x55, 0xFF, 0x15, 0x1D, 0x2E, 0x34, 0x5E, 0x5F, 0x89,
    0x8E, 0x90, 0xA3, 0xAE, 0x9B,
];

proptest! {
    #[test]
    fn packets(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        if let Some(Message::Execute(srb)) = Message::parse(&bytes) {
            prop_assert!(srb.cdb().is_none_or(|cdb| (1..=16).contains(&cdb.len())));
        }
    }

    #[test]
    fn commands_stay_on_the_disk(
        opcode in prop::sample::select(&OPCODES[..]),
        mut cdb in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 1..17),
        blocks in prop_oneof![1u64..10_000, Just(u64::from(u32::MAX) + 5), Just((1 << 54) - 1)],
        block_size in prop_oneof![Just(512u32), Just(4096)],
        can_unmap in any::<bool>(),
    ) {
        cdb[0] = opcode;
        let blocks = blocks.min((1 << 63) / u64::from(block_size) - 1);
        let unit = unit(blocks, block_size, can_unmap);
        let inside = |offset: u64, len: u64| {
            let end = offset.checked_add(len).unwrap();
            len > 0 && end <= blocks * u64::from(block_size) && (offset | len).is_multiple_of(block_size.into())
        };
        match plan(&unit, &Condition::default(), &[0, 9], &cdb) {
            Ok(
                Plan::Read { offset, len }
                | Plan::Write { offset, len, .. }
                | Plan::WriteVerify { offset, len, .. }
                | Plan::Verify { offset, len, .. }
                | Plan::WriteSame { offset, len, .. },
            ) => prop_assert!(inside(offset, len)),
            Ok(Plan::CompareAndWrite { offset, len, .. }) => prop_assert!(len == 0 || inside(offset, len)),
            Ok(Plan::ModeSelect { list, .. }) => prop_assert!(list > 0 && list <= mode::MAX_LIST),
            Ok(Plan::Reserve { list, .. }) => prop_assert!((24..=512).contains(&list)),
            Ok(Plan::Unmap { list }) => prop_assert!(can_unmap && list <= unmap::MAX_LIST),
            Ok(Plan::Respond(data)) => prop_assert!(data.len() < 1024),
            Ok(Plan::Good | Plan::Flush) => {}
            Err(sense) => prop_assert!(sense.key == 5),
        }
    }

    #[test]
    fn parameter_lists(list in prop::collection::vec(prop_oneof![Just(0u8), Just(8), any::<u8>()], 0..300), long in any::<bool>()) {
        let _ = mode::select(&unit(100, 512, true), Condition::default().modes, long, &list);
        for action in (0..8).filter_map(|number| Action::parse(number, 1).ok()) {
            let _ = Request::parse(action, &list);
        }
    }

    #[test]
    fn unmap_lists(bytes in prop::collection::vec(any::<u8>(), 0..200), capacity in any::<u64>()) {
        if let Ok(ranges) = unmap::parse(&bytes, capacity) {
            prop_assert!(ranges.iter().all(|range| range.count > 0 && range.lba + u64::from(range.count) <= capacity));
            prop_assert!(ranges.iter().map(|range| u64::from(range.count)).sum::<u64>() <= unmap::MAX_BLOCKS.into());
        }
    }

    #[test]
    fn page_lists(
        offset in 0u32..5000,
        len in prop_oneof![0u32..20_000, any::<u32>()],
        pages in prop::collection::vec(prop_oneof![0u64..20, any::<u64>()], 0..12),
        limit in any::<u32>(),
    ) {
        let memory = SharedMemory::create("ram", 16 * 4096).unwrap();
        let regions = [RamRegion { gpa: 0, len: 16 * 4096, offset: 0 }];
        let ram = Arc::new(GuestRam::new(&memory, &regions).unwrap());
        let ring = TestRing::new(4);
        let header = gpa_direct_header(&[(offset, len, &pages)]);
        let mut writer = RingWriter::new(ring.clone()).unwrap();
        writer.push(&Outgoing::gpa_direct(1, &header), &[&header, &[0; 64]]).unwrap();
        let _ = writer.publish();
        let mut scratch = Vec::new();
        let packet = RingReader::new(ring).unwrap().next(&mut scratch).unwrap().unwrap();
        if let Ok(Some(buffer)) = transfer::buffer(&ram, &packet, &scratch, limit) {
            prop_assert_eq!(buffer.len(), len.min(limit) as usize);
            prop_assert_eq!(buffer.spans().iter().map(|span| span.len()).sum::<usize>(), buffer.len());
            let needed = (offset as usize + len as usize).div_ceil(4096);
            prop_assert!(pages[..needed].iter().all(|page| *page < 16));
        }
    }
}
