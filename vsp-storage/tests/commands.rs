//! Commands that are more than reading and writing, through the whole device: what a cluster, a cautious file system or a
//! conformance suite asks for.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod guest;

use std::os::unix::fs::FileExt;

use guest::{Disk, Guest, Outcome, UNIT};
use vsp::ipc::message::ToCore;
use vsp::vmbus::packet::{Outgoing, gpa_direct_header};
use vsp_storage::wire::{self, Direction, operation};

const READ: u8 = 0x28;
const WRITE: u8 = 0x2A;
const WRITE_VERIFY: u8 = 0x2E;
const VERIFY: u8 = 0x2F;

const CONFLICT: Outcome = Outcome::Conflict;
const MISCOMPARE: Outcome = Outcome::Check(0xE, 0x1D, 0);

fn cdb_10(opcode: u8, flags: u8, lba: u8, blocks: u16) -> [u8; 10] {
    let [high, low] = blocks.to_be_bytes();
    [opcode, flags, 0, 0, 0, lba, 0, high, low, 0]
}

fn compare_and_write(lba: u8, blocks: u8) -> [u8; 16] {
    [0x89, 0, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, blocks, 0, 0]
}

/// PERSISTENT RESERVE OUT.
fn reserve(guest: &mut Guest, action: u8, kind: u8, key: u64, new_key: u64) -> Outcome {
    let mut list = [0; 24];
    list[..8].copy_from_slice(&key.to_be_bytes());
    list[8..16].copy_from_slice(&new_key.to_be_bytes());
    guest.write(&[0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0], &list)
}

/// READ KEYS: how often they have changed, and how many there are.
fn keys(guest: &mut Guest) -> (u8, u8) {
    let (outcome, data) = guest.read(&[0x5E, 0, 0, 0, 0, 0, 0, 0, 64, 0], 64);
    assert!(matches!(outcome, Outcome::Good(_)));
    (data[3], data[7] / 8)
}

/// READ RESERVATION: of which kind.
fn reserved(guest: &mut Guest) -> Option<u8> {
    let (_, data) = guest.read(&[0x5E, 1, 0, 0, 0, 0, 0, 0, 64, 0], 64);
    (data[7] != 0).then_some(data[21])
}

#[test]
fn what_is_on_the_disk_is_compared_with_what_should_be() {
    let disk = Disk::new("verify", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    let content: Vec<u8> = (0..300 * 512u32).map(|n| (n / 3) as u8).collect();
    disk.file.write_all_at(&content, 5 * 512).unwrap();
    assert_eq!(guest.write(&cdb_10(VERIFY, 2, 5, 300), &content), Outcome::Good(300 * 512));
    assert_eq!(guest.command(Direction::None, &cdb_10(VERIFY, 0, 5, 300), &[]).0, Outcome::Good(0));
    let mut other = content.clone();
    other[20_000] ^= 1;
    assert_eq!(guest.write(&cdb_10(VERIFY, 2, 5, 300), &other), MISCOMPARE);
    assert_eq!(guest.write(&cdb_10(VERIFY, 0, 5, 300), &other), Outcome::Good(0), "nobody asked");
    assert_eq!(
        guest.write(&cdb_10(VERIFY, 2, 5, 301), &content),
        Outcome::Check(5, 0x24, 0),
        "too little data"
    );
    assert_eq!(guest.write(&cdb_10(WRITE_VERIFY, 2, 9, 300), &other), Outcome::Good(300 * 512));
    let mut back = vec![0; other.len()];
    disk.file.read_exact_at(&mut back, 9 * 512).unwrap();
    assert!(back == other);
    disk.file.set_len(1 << 19).unwrap();
    let beyond = [0x8F, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 8, 0, 0];
    assert_eq!(
        guest.command(Direction::None, &beyond, &[]).0,
        Outcome::Check(3, 0x11, 0),
        "it has become shorter"
    );
}

#[test]
fn a_block_is_written_only_if_it_is_as_expected() {
    let disk = Disk::new("compare", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    let data = |old: u8, new: u8, blocks: usize| [vec![old; blocks * 512], vec![new; blocks * 512]].concat();
    assert_eq!(guest.write(&compare_and_write(3, 1), &data(0, 7, 1)), Outcome::Good(1024));
    assert_eq!(guest.write(&compare_and_write(3, 1), &data(0, 9, 1)), MISCOMPARE);
    assert_eq!(guest.read(&cdb_10(READ, 0, 3, 1), 512).1, [7; 512]);
    assert_eq!(guest.write(&compare_and_write(3, 2), &data(7, 9, 2)), MISCOMPARE, "the second one is 0");
    assert_eq!(guest.write(&compare_and_write(10, 128), &data(0, 1, 128)), Outcome::Good(128 * 1024));
    assert_eq!(guest.write(&compare_and_write(10, 129), &data(1, 2, 129)), Outcome::Check(5, 0x24, 0));
    // As many bytes as it says, and not one more or less.
    for (blocks, len) in [(1, 512), (1, 2048), (0, 1024)] {
        let outcome = guest.write(&compare_and_write(10, blocks), &vec![1; len]);
        assert_eq!(outcome, Outcome::Check(5, 0x24, 0), "{blocks} {len}");
    }
    assert_eq!(guest.command(Direction::None, &compare_and_write(10, 0), &[]).0, Outcome::Good(0));
    assert_eq!(guest.write(&compare_and_write(0, 1), &data(1, 2, 1)), MISCOMPARE);
}

#[test]
fn comparisons_do_not_come_between_each_other() {
    const PAGES: u64 = 300;
    let disk = Disk::new("compare-all", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    // All at once, each on what the one before it has written, with writes to the same block between them.
    for n in 0..40u8 {
        let data = [[2 * n; 512], [2 * n + 1; 512], [2 * n + 2; 512]].concat();
        let page = PAGES + u64::from(n);
        guest.bench.core.ram.as_ref().unwrap().write(page * 4096, &data).unwrap();
        let header = gpa_direct_header(&[(0, 1024, &[page])]);
        let packet = wire::command(UNIT, Direction::ToDevice, &compare_and_write(50, 1), 1024);
        assert!(guest.end.send(&Outgoing::gpa_direct(2 * u64::from(n), &header), &[&header, &packet]));
        let header = gpa_direct_header(&[(1024, 512, &[page])]);
        let packet = wire::command(UNIT, Direction::ToDevice, &cdb_10(WRITE, 0, 50, 1), 512);
        assert!(guest.end.send(&Outgoing::gpa_direct(2 * u64::from(n) + 1, &header), &[&header, &packet]));
    }
    for _ in 0..80 {
        let (header, payload) = guest.bench.wait(&mut guest.end);
        let len = if header.transaction_id % 2 == 0 { 1024 } else { 512 };
        assert_eq!(Outcome::of(&payload), Outcome::Good(len), "{}", header.transaction_id);
    }
    assert_eq!(guest.read(&cdb_10(READ, 0, 50, 1), 512).1, [80; 512]);
}

#[test]
fn a_cluster_reserves_a_disk_and_a_successor_knows() {
    let disk = Disk::new("reserve", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    assert_eq!(reserve(&mut guest, 1, 5, 0, 0), CONFLICT, "nobody is registered");
    assert_eq!(reserve(&mut guest, 0, 0, 0, 0xABCD), Outcome::Good(24));
    assert_eq!(reserve(&mut guest, 0, 0, 0, 0xABCE), CONFLICT, "that is no longer its key");
    assert_eq!(reserve(&mut guest, 1, 5, 0xABCD, 0), Outcome::Good(24));
    assert_eq!(reserve(&mut guest, 1, 9, 0xABCD, 0), Outcome::Check(5, 0x24, 0), "no such kind");
    assert_eq!(guest.write(&cdb_10(WRITE, 0, 0, 1), &[1; 512]), Outcome::Good(512), "its holder may");
    assert_eq!((keys(&mut guest), reserved(&mut guest)), ((1, 1), Some(5)));

    for _ in 0..2 {
        guest.bench.quiesce();
        guest = guest.taken_over(&[&disk.argument("")]);
        assert_eq!((keys(&mut guest), reserved(&mut guest)), ((1, 1), Some(5)));
    }
    assert_eq!(reserve(&mut guest, 2, 5, 0xABCD, 0), Outcome::Good(24));
    assert_eq!(reserve(&mut guest, 3, 0, 0xABCD, 0), Outcome::Good(24));
    assert_eq!((keys(&mut guest), reserved(&mut guest)), ((2, 0), None));
}

#[test]
fn a_reservation_ends_when_the_guest_begins_anew() {
    let disk = Disk::new("reserve-anew", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    assert_eq!(reserve(&mut guest, 6, 0, 0, 1), Outcome::Good(24));
    assert_eq!(keys(&mut guest), (1, 1));
    guest.bench.close(1);
    guest.end = guest.bench.open(1, 16);
    let mut guest = guest.introduced();
    assert_eq!(keys(&mut guest), (0, 0));
}

#[test]
fn the_newest_of_all_channels_is_what_a_successor_goes_on_with() {
    let disk = Disk::new("reserve-channels", 1 << 20);
    let mut guest = Guest::with_vps(&[&disk.argument("")], 2);
    assert_eq!(guest.simple(operation::CREATE_SUB_CHANNELS, 1), 0);
    assert_eq!(guest.bench.answer(), ToCore::OfferSubchannels { count: 1 });
    let mut sub = guest.bench.open_subchannel(2, 1, 4);
    assert_eq!(reserve(&mut guest, 0, 0, 0, 1), Outcome::Good(24));
    // On the other channel, and nothing more on the first one.
    std::mem::swap(&mut guest.end, &mut sub);
    assert_eq!(reserve(&mut guest, 0, 0, 1, 2), Outcome::Good(24));
    assert_eq!(reserve(&mut guest, 1, 1, 2, 0), Outcome::Good(24));
    guest.bench.quiesce();
    let mut guest = guest.taken_over(&[&disk.argument("")]);
    assert_eq!((keys(&mut guest), reserved(&mut guest)), ((2, 1), Some(1)));
    std::mem::swap(&mut guest.end, &mut sub);
    assert_eq!(reserve(&mut guest, 2, 1, 1, 0), CONFLICT);
    assert_eq!(reserve(&mut guest, 2, 1, 2, 0), Outcome::Good(24));
}

#[test]
fn a_guest_protects_its_disk_from_itself() {
    let disk = Disk::new("protect", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    let write = cdb_10(WRITE, 0, 0, 1);
    let select = |guest: &mut Guest, swp: u8| {
        let list = [0, 0, 0, 0, 0x0A, 10, 0, 0x10, swp, 0, 0, 0, 0xFF, 0xFF, 0, 0];
        guest.write(&[0x15, 0x10, 0, 0, list.len() as u8, 0], &list)
    };
    assert_eq!(select(&mut guest, 8), Outcome::Good(16));
    assert_eq!(guest.write(&write, &[1; 512]), Outcome::Check(7, 0x27, 2));
    assert_eq!(guest.write(&compare_and_write(0, 1), &[0; 1024]), Outcome::Check(7, 0x27, 2));
    guest.bench.quiesce();
    let mut guest = guest.taken_over(&[&disk.argument("")]);
    assert_eq!(guest.write(&write, &[1; 512]), Outcome::Check(7, 0x27, 2));
    let (_, data) = guest.read(&[0x1A, 8, 0x0A, 0, 64, 0], 64);
    assert_eq!((data[2] & 0x80, data[8]), (0x80, 8));
    assert_eq!(select(&mut guest, 1), Outcome::Check(5, 0x26, 0));
    assert_eq!(select(&mut guest, 0), Outcome::Good(16));
    assert_eq!(guest.write(&write, &[1; 512]), Outcome::Good(512));
}

#[test]
fn a_suite_finds_out_what_there_is() {
    let disk = Disk::new("suite", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument("")]);
    let (outcome, all) = guest.read(&[0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0], 4096);
    let len = u32::from_be_bytes([all[0], all[1], all[2], all[3]]);
    assert_eq!(outcome, Outcome::Good(len + 4));
    for command in all[4..4 + len as usize].chunks(8) {
        let option = if command[5] & 1 == 0 { 1 } else { 2 };
        let ask = [0xA3, 0x0C, option, command[0], command[2], command[3], 0, 0, 1, 0, 0, 0];
        let (outcome, one) = guest.read(&ask, 256);
        assert_eq!(outcome, Outcome::Good(4 + u32::from(command[7])));
        assert_eq!((one[1], one[4]), (3, command[0]));
    }
    for (cdb, sense) in [
        (&[0x16, 0, 0, 0, 0, 0][..], (5, 0x20, 0)),
        (&[0x12, 0, 1, 1, 0, 0], (5, 0x24, 0)),
        (&[0x2A, 0x20, 0, 0, 0, 0, 0, 0, 1, 0], (5, 0x24, 0)),
        (&[0x34, 0, 0, 0, 0x10, 0, 0, 0, 1, 0], (5, 0x21, 0)),
    ] {
        let (outcome, _) = guest.command(Direction::None, cdb, &[]);
        assert_eq!(outcome, Outcome::Check(sense.0, sense.1, sense.2), "{cdb:x?}");
    }
    assert_eq!(guest.command(Direction::None, &cdb_10(0x34, 2, 0, 0), &[]).0, Outcome::Good(0));
    // Half a block, or two, is not one.
    for len in [256, 1024] {
        let outcome = guest.write(&cdb_10(0x41, 8, 0, 1), &vec![0; len]);
        assert_eq!(outcome, Outcome::Check(5, 0x24, 0));
    }
}
