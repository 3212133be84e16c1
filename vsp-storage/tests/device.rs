//! The whole device in the test's process: real rings, real RAM, real files; the guest plays storvsc,
//! honestly and not.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod guest;

use std::os::unix::fs::{FileExt, MetadataExt};

use guest::{Disk, Guest, Outcome};
use vsp::ipc::message::ToCore;
use vsp::vmbus::packet::{Outgoing, gpa_direct_header};
use vsp_storage::scsi::unmap;
use vsp_storage::wire::{self, Address, Direction, operation, status};

fn read_10(lba: u32, blocks: u16) -> [u8; 10] {
    let ([a, b, c, d], [e, f]) = (lba.to_be_bytes(), blocks.to_be_bytes());
    [0x28, 0, a, b, c, d, 0, e, f, 0]
}

fn write_10(lba: u32, blocks: u16, fua: bool) -> [u8; 10] {
    let mut cdb = read_10(lba, blocks);
    (cdb[0], cdb[1]) = (0x2A, if fua { 8 } else { 0 });
    cdb
}

#[test]
fn linux_introduces_itself() {
    let disk = Disk::new("intro", 1 << 20);
    let mut guest = Guest::unintroduced(&[&disk.argument("")]);
    assert_eq!(guest.simple(operation::END_INITIALIZATION, 0), status::INVALID_DEVICE_STATE);
    assert_eq!(guest.simple(operation::QUERY_PROPERTIES, 0), status::INVALID_DEVICE_STATE);
    assert_eq!(guest.simple(operation::BEGIN_INITIALIZATION, 0), 0);
    assert_eq!(guest.simple(operation::QUERY_PROTOCOL_VERSION, 0x0700), status::REVISION_MISMATCH);
    assert_eq!(guest.simple(operation::QUERY_PROTOCOL_VERSION, 0x0602), 0);
    let properties =
        guest.exchange(&Outgoing::in_band(1, true), &[&wire::simple(operation::QUERY_PROPERTIES, 0)]);
    assert_eq!(properties[24..28], (512u32 * 1024).to_le_bytes());
    assert_eq!(guest.simple(operation::FCHBA_DATA, 0), status::NOT_SUPPORTED);
    assert_eq!(guest.simple(operation::CREATE_SUB_CHANNELS, 3), status::NOT_SUPPORTED);
    assert_eq!(guest.simple(operation::END_INITIALIZATION, 0), 0);
    assert_eq!(guest.simple(77, 0), status::INVALID_PARAMETER);
    assert_eq!(guest.simple(operation::RESET_BUS, 0), 0);
    let (outcome, data) = guest.read(&[0x12, 0, 0, 0, 36, 0], 36);
    assert_eq!(outcome, Outcome::Good(36));
    assert_eq!(&data[8..16], b"Msft    ");
}

#[test]
fn data_goes_to_the_file_and_comes_back() {
    let disk = Disk::new("data", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    let content: Vec<u8> = (0..64 * 1024u32).map(|i| (i / 7) as u8).collect();
    assert_eq!(guest.write(&write_10(5, 128, false), &content), Outcome::Good(64 * 1024));
    let mut on_disk = vec![0; content.len()];
    disk.file.read_exact_at(&mut on_disk, 5 * 512).unwrap();
    assert!(on_disk == content);
    let (outcome, back) = guest.read(&read_10(5, 128), 64 * 1024);
    assert_eq!(outcome, Outcome::Good(64 * 1024));
    assert!(back == content);
    assert_eq!(guest.write(&write_10(0, 1, true), &[7; 512]), Outcome::Good(512));
    assert_eq!(guest.command(Direction::None, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).0, Outcome::Good(0));
}

#[test]
fn scattered_pages_are_one_buffer() {
    let disk = Disk::new("scatter", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    disk.file.write_all_at(b"begin", 0).unwrap();
    disk.file.write_all_at(b"end", 8192 - 3).unwrap();
    // 8 KiB from the middle of page 9 over pages 3 and 200.
    let header = gpa_direct_header(&[(0x800, 8192, &[9, 3, 200])]);
    let packet = wire::command(guest::UNIT, Direction::FromDevice, &read_10(0, 16), 8192);
    let answer = guest.exchange(&Outgoing::gpa_direct(3, &header), &[&header, &packet]);
    assert_eq!(Outcome::of(&answer), Outcome::Good(8192));
    assert_eq!(&guest.peek(9 * 4096 + 0x800, 5), b"begin");
    assert_eq!(&guest.peek(200 * 4096 + 0x800 - 3, 3), b"end");
    // Several ranges, as no Linux sends them, are in order all the same.
    let header = gpa_direct_header(&[(0, 5, &[50]), (4091, 8192 - 5, &[60, 61, 62])]);
    let answer = guest.exchange(&Outgoing::gpa_direct(3, &header), &[&header, &packet]);
    assert_eq!(Outcome::of(&answer), Outcome::Good(8192));
    assert_eq!(&guest.peek(50 * 4096, 5), b"begin");
}

#[test]
fn a_scan_of_everything_is_clean() {
    let (a, b) = (Disk::new("scan-a", 1 << 20), Disk::new("scan-b", 1 << 21));
    let mut guest = Guest::new(&[&a.argument(",lun=1"), &b.argument(",lun=4,ro,serial=B")]);
    let inquiry = [0x12, 0, 0, 0, 36, 0];
    let report = [0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    for (path, target) in [(0, 0), (0, 1), (1, 0), (7, 1)] {
        let ours = (path, target) == (0, 0);
        for lun in [0u8, 1, 2, 4, 254, 255] {
            guest.unit = Address { path, target, lun };
            let (outcome, data) = guest.read(&inquiry, 36);
            assert_eq!(outcome, Outcome::Good(36), "{path}:{target}:{lun}");
            assert_eq!(data[0], if ours && matches!(lun, 1 | 4) { 0 } else { 0x7F });
        }
        guest.unit = Address { path, target, lun: 0 };
        let (outcome, list) = guest.read(&report, 256);
        let count = if ours { 2 } else { 0 };
        assert_eq!(outcome, Outcome::Good(8 + 8 * count));
        assert_eq!(list[3], 8 * count as u8);
        assert_eq!(guest.read(&read_10(0, 1), 512).0, Outcome::NoUnit);
    }
    guest.unit = Address { path: 0, target: 0, lun: 4 };
    assert_eq!(guest.write(&write_10(0, 1, false), &[0; 512]), Outcome::Check(7, 0x27, 0));
    let (_, serial) = guest.read(&[0x12, 1, 0x80, 0, 255, 0], 255);
    assert_eq!(&serial[..5], [0, 0x80, 0, 1, b'B']);
}

#[test]
fn trimming_frees_blocks() {
    let disk = Disk::new("trim", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    guest.write(&write_10(0, 128, false), &[1; 65536]);
    disk.file.sync_all().unwrap();
    let before = disk.file.metadata().unwrap().blocks();
    let list = unmap::list(&[(0, 64), (64, 64)]);
    let cdb = [0x42, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0];
    assert_eq!(guest.write(&cdb, &list), Outcome::Good(list.len() as u32));
    assert!(disk.file.metadata().unwrap().blocks() < before);
    assert_eq!(guest.read(&read_10(0, 128), 65536).1, [0; 65536]);
    assert_eq!(guest.write(&cdb, &unmap::list(&[(2048, 1), (0, 1)])), Outcome::Check(5, 0x21, 0));
}

#[test]
fn one_block_is_written_many_times() {
    let disk = Disk::new("same", 1 << 22);
    let mut guest = Guest::new(&[&disk.argument("")]);
    let block: Vec<u8> = (0..=255).chain(0..=255).collect();
    let cdb = [0x93, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0x10, 1, 0, 0];
    assert_eq!(guest.write(&cdb, &block), Outcome::Good(512));
    let mut all = vec![0; 0x1001 * 512];
    disk.file.read_exact_at(&mut all, 3 * 512).unwrap();
    assert!(all.chunks(512).all(|chunk| chunk == block));
    for flags in [0, 8, 9] {
        disk.file.write_all_at(&[1; 2048], 0).unwrap();
        let cdb = [0x93, flags, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0];
        let outcome = guest.write(&cdb, &[0; 512]);
        assert_eq!(outcome, Outcome::Good(if flags & 1 == 1 { 0 } else { 512 }));
        let mut four = [0; 2048];
        disk.file.read_exact_at(&mut four, 0).unwrap();
        assert_eq!((four[511], four[512], four[1535], four[1536]), (1, 0, 0, 1));
    }
}

#[test]
fn a_file_that_shrank_is_a_medium_error_and_the_disk_lives_on() {
    let disk = Disk::new("shrunk", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    disk.file.set_len(4096 + 100).unwrap();
    assert_eq!(guest.read(&read_10(8, 8), 4096).0, Outcome::Check(3, 0x11, 0));
    assert_eq!(guest.read(&read_10(1000, 8), 4096).0, Outcome::Check(3, 0x11, 0));
    assert_eq!(guest.read(&read_10(0, 8), 4096).0, Outcome::Good(4096));
}

#[test]
fn a_deep_queue_of_mixed_work_completes_each_once() {
    let disk = Disk::new("deep", 8 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    let mut outstanding = std::collections::BTreeSet::new();
    let (mut next, mut done) = (1u64, 0);
    while done < 5000 {
        while outstanding.len() < 200 && next <= 5000 {
            let page = 16 + next % 200;
            let header = gpa_direct_header(&[(0, 4096, &[page])]);
            let lba = (next * 8 % 16000) as u32;
            let packet = if next.is_multiple_of(3) {
                wire::command(guest::UNIT, Direction::ToDevice, &write_10(lba, 8, false), 4096)
            } else {
                wire::command(guest::UNIT, Direction::FromDevice, &read_10(lba, 8), 4096)
            };
            let sent = if next.is_multiple_of(50) {
                let flush = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                let packet = wire::command(guest::UNIT, Direction::None, &flush, 0);
                guest.end.send(&Outgoing::in_band(next, true), &[&packet])
            } else {
                guest.end.send(&Outgoing::gpa_direct(next, &header), &[&header, &packet])
            };
            if !sent {
                break;
            }
            assert!(outstanding.insert(next));
            next += 1;
        }
        let (header, payload) = guest.bench.wait(&mut guest.end);
        assert!(outstanding.remove(&header.transaction_id), "{} twice", header.transaction_id);
        assert!(matches!(Outcome::of(&payload), Outcome::Good(_)));
        done += 1;
    }
}

#[test]
fn a_reset_is_answered_after_what_was_in_flight() {
    let disk = Disk::new("reset", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    let flush = wire::command(guest::UNIT, Direction::None, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0);
    for id in 1..=20 {
        assert!(guest.end.send(&Outgoing::in_band(id, true), &[&flush]));
    }
    assert!(guest.end.send(&Outgoing::in_band(99, true), &[&wire::simple(operation::RESET_BUS, 0)]));
    let ids: Vec<u64> = (0..21).map(|_| guest.bench.wait(&mut guest.end).0.transaction_id).collect();
    assert_eq!(ids.last(), Some(&99));
}

#[test]
fn closing_waits_for_what_is_in_flight_and_forgets_the_introduction() {
    let disk = Disk::new("close", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    let flush = wire::command(guest::UNIT, Direction::None, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0);
    for id in 1..=50 {
        assert!(guest.end.send(&Outgoing::in_band(id, true), &[&flush]));
    }
    guest.bench.turn(0);
    guest.bench.close(1);
    assert_eq!(guest.bench.runtime.open_channels(), 0);
    guest.end = guest.bench.open(1, 16);
    let answer = guest.exchange(&Outgoing::in_band(1, true), &[&flush]);
    assert_eq!(answer[8..12], status::INVALID_DEVICE_STATE.to_le_bytes());
}

#[test]
fn page_lists_that_lie_are_refused_and_harm_nobody() {
    let disk = Disk::new("lies", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    let end_of_ram = guest::RAM / 4096;
    let packet = wire::command(guest::UNIT, Direction::FromDevice, &read_10(0, 8), 4096);
    let many: Vec<u64> = (0..5000).collect();
    let lists: &[&[(u32, u32, &[u64])]] = &[
        &[(0, 4096, &[end_of_ram])],
        &[(0, 4096, &[u64::MAX])],
        &[(0, 4096, &[u64::MAX >> 12])],
        &[(1, 4096, &[end_of_ram - 1, end_of_ram])],
        &[(0, 0, &[])],
        &[(4096, 4096, &[1, 2])],
        &[(0, u32::MAX, &[1])],
        &[(0, 5000 * 4096, &many)],
        &[(0, 4095, &[1])],
        &[],
    ];
    for list in lists {
        let header = gpa_direct_header(list);
        let answer = guest.exchange(&Outgoing::gpa_direct(5, &header), &[&header, &packet]);
        assert_eq!(
            Outcome::of(&answer),
            Outcome::Check(5, 0x24, 0),
            "{:?}",
            list.first().map(|r| (r.0, r.1))
        );
    }
    // A short transfer length is a short buffer, whatever the list says.
    let header = gpa_direct_header(&[(0, 8192, &[1, 2])]);
    let short = wire::command(guest::UNIT, Direction::FromDevice, &read_10(0, 8), 512);
    let answer = guest.exchange(&Outgoing::gpa_direct(5, &header), &[&header, &short]);
    assert_eq!(Outcome::of(&answer), Outcome::Check(5, 0x24, 0));
    let wrong_way = wire::command(guest::UNIT, Direction::ToDevice, &read_10(0, 8), 4096);
    let answer = guest.exchange(&Outgoing::gpa_direct(5, &header), &[&header, &wrong_way]);
    assert_eq!(Outcome::of(&answer), Outcome::Check(5, 0x24, 0));
    assert_eq!(guest.read(&read_10(0, 8), 4096).0, Outcome::Good(4096));
}

#[test]
fn any_command_of_any_length_is_answered() {
    let disk = Disk::new("fuzz", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    let mut state = 0x1234_5678_9ABC_DEF1u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..6000u64 {
        let mut packet = [0u8; 64];
        packet.iter_mut().for_each(|byte| *byte = random() as u8);
        packet[..4].copy_from_slice(&operation::EXECUTE_SRB.to_le_bytes());
        packet[17..20].copy_from_slice(&[0, 0, (random() % 8 / 7) as u8]);
        packet[20] = (random() % 20) as u8;
        packet[22] = (random() % 3) as u8;
        packet[24..28].copy_from_slice(&((random() % 70_000) as u32).to_le_bytes());
        packet[28] = round as u8;
        if random().is_multiple_of(2) {
            // Small addresses and counts reach deeper.
            packet[30..40].fill(0);
            packet[36] = (random() % 9) as u8;
        }
        let pages: Vec<u64> = (0..random() % 20).map(|_| 16 + random() % 240).collect();
        let header = gpa_direct_header(&[((random() % 4096) as u32, (random() % 70_000) as u32, &pages)]);
        let answer = if random().is_multiple_of(3) {
            guest.exchange(&Outgoing::in_band(round, true), &[&packet])
        } else {
            guest.exchange(&Outgoing::gpa_direct(round, &header), &[&header, &packet])
        };
        assert_eq!(answer[..4], operation::COMPLETE_IO.to_le_bytes());
    }
    assert_eq!(guest.read(&read_10(0, 8), 4096).0, Outcome::Good(4096));
}

#[test]
fn packets_of_any_kind_and_length_are_answered() {
    let disk = Disk::new("kinds", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    for len in (0..200).step_by(8) {
        for kind in [6, 7, 8, 9, 10, 11, 0, 0xFFFF] {
            let packet = Outgoing {
                packet_type: vsp::vmbus::packet::PacketType(kind),
                flags: 1,
                transaction_id: 9,
                type_header_len: 0,
            };
            let answer = guest.exchange(&packet, &[&vec![3; len]]);
            assert_eq!(answer.len(), 64);
        }
    }
}

#[test]
fn a_guest_with_several_vps_gets_channels_for_them() {
    let disk = Disk::new("channels", 1 << 20);
    let mut guest = Guest::with_vps(&[&disk.argument("")], 4);
    let properties =
        guest.exchange(&Outgoing::in_band(1, true), &[&wire::simple(operation::QUERY_PROPERTIES, 0)]);
    assert_eq!(properties[16..24], [3, 0, 0, 0, 1, 0, 0, 0], "three more, and it may have several");
    assert_eq!(guest.simple(operation::CREATE_SUB_CHANNELS, 4), status::INVALID_PARAMETER);
    for _ in 0..2 {
        assert_eq!(guest.simple(operation::CREATE_SUB_CHANNELS, 3), 0);
        assert_eq!(guest.bench.core.answer(), ToCore::OfferSubchannels { count: 3 }, "before the answer");
    }
    let mut ends: Vec<_> = (1..=3).map(|n| guest.bench.open_subchannel(10 + u32::from(n), n, 4)).collect();
    for (n, end) in ends.iter_mut().enumerate() {
        std::mem::swap(&mut guest.end, end);
        assert_eq!(guest.write(&write_10(n as u32, 1, false), &[n as u8 + 1; 512]), Outcome::Good(512));
        assert_eq!(guest.simple(operation::BEGIN_INITIALIZATION, 0), status::INVALID_DEVICE_STATE);
        std::mem::swap(&mut guest.end, end);
    }
    assert_eq!(guest.read(&read_10(0, 3), 3 * 512).1[..1024], [[1; 512], [2; 512]].concat());
    let too_many = guest.bench.core.open_subchannel(20, 4, 4);
    let ToCore::OpenResult { channel: 20, status, .. } = guest.bench.answer() else { panic!() };
    assert_ne!(status, 0);
    drop(too_many);
    (11..14).for_each(|channel| guest.bench.close(channel));
    guest.bench.close(1);
}

#[test]
fn a_deep_queue_on_many_channels_completes_each_once() {
    const CHANNELS: u16 = 40;
    let disk = Disk::new("wide", 1 << 20);
    let mut guest = Guest::with_vps(&[&disk.argument("")], 64);
    assert_eq!(guest.simple(operation::CREATE_SUB_CHANNELS, CHANNELS), 0);
    assert_eq!(guest.bench.answer(), ToCore::OfferSubchannels { count: CHANNELS });
    let mut ends: Vec<_> =
        (1..=CHANNELS).map(|n| guest.bench.open_subchannel(10 + u32::from(n), n, 16)).collect();
    let mut outstanding = std::collections::BTreeSet::new();
    for id in 0..150u64 {
        for (n, end) in ends.iter_mut().enumerate() {
            let header = gpa_direct_header(&[(0, 4096, &[16 + id])]);
            let packet = wire::command(guest::UNIT, Direction::FromDevice, &read_10(id as u32, 8), 4096);
            assert!(end.send(&Outgoing::gpa_direct(id, &header), &[&header, &packet]));
            outstanding.insert((n, id));
        }
    }
    let start = std::time::Instant::now();
    while !outstanding.is_empty() {
        assert!(start.elapsed().as_secs() < 20, "{} are lost", outstanding.len());
        guest.bench.turn(1);
        for (n, end) in ends.iter_mut().enumerate() {
            while let Some((header, payload)) = end.poll() {
                assert!(outstanding.remove(&(n, header.transaction_id)), "an answer to nothing");
                assert_eq!(Outcome::of(&payload), Outcome::Good(4096));
            }
        }
    }
}

#[test]
fn what_was_negotiated_outlives_the_process() {
    let disk = Disk::new("outlives", 1 << 20);
    let mut guest = Guest::with_vps(&[&disk.argument("")], 2);
    assert_eq!(guest.simple(operation::CREATE_SUB_CHANNELS, 1), 0);
    assert_eq!(guest.bench.answer(), ToCore::OfferSubchannels { count: 1 });
    let mut sub = guest.bench.open_subchannel(2, 1, 4);
    // The first answer on the sub-channel brings its ledger up to date.
    std::mem::swap(&mut guest.end, &mut sub);
    assert_eq!(guest.read(&read_10(0, 1), 512).0, Outcome::Good(512));
    for _ in 0..3 {
        guest.bench.quiesce();
        guest = guest.taken_over(&[&disk.argument("")]);
        assert_eq!(guest.read(&read_10(0, 1), 512).0, Outcome::Good(512), "no introduction is needed");
        std::mem::swap(&mut guest.end, &mut sub);
        assert_eq!(guest.write(&write_10(0, 1, true), &[1; 512]), Outcome::Good(512));
        std::mem::swap(&mut guest.end, &mut sub);
    }
    // A guest that begins anew begins from the start, also with a process that has taken over.
    guest.bench.close(2);
    guest.bench.close(1);
    guest.end = guest.bench.open(1, 16);
    assert_eq!(guest.simple(operation::QUERY_PROPERTIES, 0), status::INVALID_DEVICE_STATE);
}

#[test]
fn a_disk_that_was_resized_between_two_processes_has_its_new_size() {
    let disk = Disk::new("resized", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    assert_eq!(guest.read(&read_10(2048, 1), 512).0, Outcome::Check(5, 0x21, 0));
    guest.bench.quiesce();
    disk.file.set_len(2 << 20).unwrap();
    let mut guest = guest.taken_over(&[&disk.argument("")]);
    assert_eq!(guest.read(&read_10(2048, 1), 512).0, Outcome::Good(512));
}
