use super::*;
use crate::ring::testing::TestRing;
use crate::ring::{RingReader, RingWriter};
use proptest::prelude::*;
use std::vec;

const LIMITS: Limits = Limits { ranges: 8, pages: 64 };

/// A packet as `RingReader::next` would hand it over.
fn received(packet_type: PacketType, type_header: &[u8], payload: &[u8]) -> (PacketHeader, Vec<u8>) {
    let mut scratch = vec![0; 16];
    scratch.extend_from_slice(type_header);
    let data_offset = scratch.len() as u32;
    scratch.extend_from_slice(payload);
    let len = scratch.len() as u32;
    (PacketHeader { packet_type, flags: 0, transaction_id: 1, data_offset, len }, scratch)
}

#[test]
fn gpa_ranges_round_trip() {
    let header = gpa_direct_header(&[(0x200, 0x1e00, &[3, 4]), (0, 512, &[9])]);
    let (packet, scratch) = received(PacketType::GPA_DIRECT, &header, b"payload!");
    let ranges: Vec<_> = packet.gpa_ranges(&scratch, LIMITS).expect("good ranges").collect();
    assert_eq!(ranges.len(), 2);
    assert_eq!((ranges[0].offset, ranges[0].len, ranges[0].pfns.len()), (0x200, 0x1e00, 2));
    assert_eq!(ranges[1].pfns, [U64::new(9)]);
    assert_eq!(packet.payload(&scratch), b"payload!");
}

#[test]
fn pieces_join_neighbouring_pages() {
    let header = gpa_direct_header(&[(0x200, 0x3000 - 0x200 + 5, &[3, 4, 8, 9])]);
    let (packet, scratch) = received(PacketType::GPA_DIRECT, &header, &[]);
    let range = packet.gpa_ranges(&scratch, LIMITS).expect("good").next().expect("one");
    assert_eq!(range.pieces().collect::<Vec<_>>(), [(0x3200, 0x1e00), (0x8000, 0x1005)]);
}

#[test]
fn a_page_buffer_is_ranges_of_one_page() {
    let header = page_buffer_header(&[(0xff0, 0x10, 5), (0, 0x1000, 7)]);
    let (packet, scratch) = received(PacketType::GPA_DIRECT, &header, &[]);
    let pieces: Vec<_> =
        packet.gpa_ranges(&scratch, LIMITS).expect("good").flat_map(|range| range.pieces()).collect();
    assert_eq!(pieces, [(0x5ff0, 0x10), (0x7000, 0x1000)]);
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let refused = |header: &[u8]| {
        let (packet, scratch) = received(PacketType::GPA_DIRECT, header, &[]);
        packet.gpa_ranges(&scratch, LIMITS).expect_err("bad ranges")
    };
    assert_eq!(refused(&[]), PacketError::ShortHeader(0));
    assert_eq!(refused(&gpa_direct_header(&[])), RangeError::NoRanges.into());
    assert_eq!(refused(&gpa_direct_header(&[(0, 1, &[1][..]); 9])), PacketError::TooManyRanges(9));
    assert_eq!(refused(&gpa_direct_header(&[(0, 0, &[])])), RangeError::Empty.into());
    assert_eq!(refused(&gpa_direct_header(&[(4096, 1, &[1])])), RangeError::BadOffset(4096).into());
    assert_eq!(refused(&gpa_direct_header(&[(1, 4096, &[1])])), RangeError::Truncated.into());
    assert_eq!(refused(&gpa_direct_header(&[(0, 1, &[1 << 40])])), RangeError::BadPfn(1 << 40).into());
    assert_eq!(refused(&gpa_direct_header(&[(0, 65 * 4096, &[1; 65])])), RangeError::TooManyPages(65).into());
    assert_eq!(refused(&gpa_direct_header(&[(0, u32::MAX, &[1])])), RangeError::Truncated.into());
}

#[test]
fn transfer_pages_round_trip() {
    let header = transfer_pages_header(0xcafe, &[(10, 20), (30, 40)]);
    let (packet, scratch) = received(PacketType::TRANSFER_PAGES, &header, &[]);
    let pages = packet.transfer_pages(&scratch, 2).expect("good");
    assert_eq!(pages.page_set, 0xcafe);
    assert_eq!(pages.ranges[1], TransferRange { offset: U32::new(30), len: U32::new(40) });
    assert_eq!(packet.transfer_pages(&scratch, 1), Err(PacketError::TooManyRanges(2)));
    assert!(matches!(packet.gpa_ranges(&scratch, LIMITS), Err(PacketError::WrongType { .. })));
    let (packet, scratch) = received(PacketType::TRANSFER_PAGES, &header[..16], &[]);
    assert_eq!(packet.transfer_pages(&scratch, 8), Err(PacketError::ShortHeader(16)));
}

/// What `include/linux/hyperv.h` has: type 7, descriptor, page set, a flag, a reserved byte, the number of ranges, and each range's length
/// before its offset.
#[test]
fn transfer_pages_are_written_as_linux_reads_them() {
    let (ring, mut scratch) = (TestRing::new(1), Vec::new());
    let mut writer = RingWriter::new(ring.clone()).expect("a ring");
    let ranges = [TransferRange::new(0x1000, 60), TransferRange::new(0x2000, 1514)];
    let pages = TransferPages { page_set: 0xcafe, ranges: &ranges };
    let packet = Outgoing::transferring(9, &pages);
    let parts: [&[u8]; 3] = [&pages.fixed_bytes(), pages.range_bytes(), b"12345678"];
    writer.push(&packet, &parts).expect("room");
    assert!(writer.publish());
    let mut reader = RingReader::new(ring).expect("a ring");
    let header = reader.next(&mut scratch).expect("sound").expect("a packet");
    let expected: Vec<u8> = [
        &[7, 0, 5, 0, 6, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0][..],
        &[0xfe, 0xca, 0, 0, 2, 0, 0, 0],
        &[60, 0, 0, 0, 0, 0x10, 0, 0, 0xea, 5, 0, 0, 0, 0x20, 0, 0],
        b"12345678",
    ]
    .concat();
    assert_eq!(scratch, expected);
    assert_eq!(header.transfer_pages(&scratch, 2), Ok(pages));
    assert_eq!((header.payload(&scratch), header.completion_requested()), (&b"12345678"[..], true));
    assert_eq!(transfer_pages_header(0xcafe, &[(0x1000, 60), (0x2000, 1514)]), expected[16..40]);
    assert_eq!(reader.start_of_last(header.len), 0);
}

#[test]
fn a_packet_that_something_follows_is_read_by_its_own_length() {
    let mut bytes = vec![6, 0, 2, 0, 3, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(PacketHeader::of_prefix(&bytes), None, "it ends too early");
    bytes.extend_from_slice(b"12345678more");
    let header = PacketHeader::of_prefix(&bytes).expect("a packet");
    assert_eq!(header.payload(&bytes), b"12345678");
    assert_eq!(PacketHeader::of_packet(&bytes), None);
    let descriptor = bytes.first_chunk().expect("16 bytes");
    assert_eq!(PacketHeader::of_descriptor(descriptor), Some(header));
}

#[test]
fn a_foreign_scratch_buffer_is_empty_not_a_panic() {
    let (packet, _) = received(PacketType::IN_BAND, &[], &[1; 64]);
    assert_eq!(packet.payload(&[0; 8]), &[]);
    assert_eq!(packet.type_header(&[0; 8]), &[]);
}

proptest! {
    #[test]
    fn pieces_cover_the_range_exactly(
        offset in 0u32..4096, len in 1u32..0x8000, first in 0u64..100, steps in prop::collection::vec(0u64..3, 9),
    ) {
        let pages = pages_spanned(len, offset).expect("good") as usize;
        let pfns: Vec<u64> = steps.iter().scan(first, |pfn, step| { *pfn += step; Some(*pfn) }).take(pages).collect();
        let header = gpa_direct_header(&[(offset, len, &pfns)]);
        let (packet, scratch) = received(PacketType::GPA_DIRECT, &header, &[]);
        let range = packet.gpa_ranges(&scratch, LIMITS).expect("good").next().expect("one");
        let bytes: Vec<u64> = range.pieces().flat_map(|(at, len)| at..at + u64::from(len)).collect();
        let expected: Vec<u64> =
            (offset..offset + len).map(|at| pfns[(at / 4096) as usize] * 4096 + u64::from(at % 4096)).collect();
        prop_assert_eq!(bytes, expected);
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for packet_type in [PacketType::GPA_DIRECT, PacketType::TRANSFER_PAGES] {
            let (packet, scratch) = received(packet_type, &bytes, &[]);
            if let Ok(ranges) = packet.gpa_ranges(&scratch, LIMITS) {
                let count = ranges.len();
                prop_assert_eq!(ranges.count(), count);
            }
            let _ = packet.transfer_pages(&scratch, 8);
        }
    }
}
