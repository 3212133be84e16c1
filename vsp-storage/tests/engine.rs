//! What happens to commands between the ring and the disk: who waits for whom, and what is done about memory that a disk
//! cannot use.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod guest;

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use guest::{Disk, Guest, Outcome, UNIT};
use vsp::vmbus::packet::{Outgoing, gpa_direct_header};
use vsp_storage::wire::{self, Address, Direction, operation};

fn transfer_10(opcode: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let ([a, b, c, d], [e, f]) = (lba.to_be_bytes(), blocks.to_be_bytes());
    [opcode, 0, a, b, c, d, 0, e, f, 0]
}

fn read_10(lba: u32, blocks: u16) -> [u8; 10] {
    transfer_10(0x28, lba, blocks)
}

/// Sends a read of one block and does not wait for it.
fn begin_read(guest: &mut Guest, id: u64, lun: u8) {
    let header = gpa_direct_header(&[(0, 512, &[40])]);
    let packet = wire::command(Address { lun, ..UNIT }, Direction::FromDevice, &read_10(0, 1), 512);
    assert!(guest.end.send(&Outgoing::gpa_direct(id, &header), &[&header, &packet]));
}

fn begin_reset(guest: &mut Guest, id: u64, lun: u8) {
    let mut packet = wire::simple(operation::RESET_LUN, 0);
    packet[19] = lun;
    assert!(guest.end.send(&Outgoing::in_band(id, true), &[&packet]));
}

/// The ids of the next answers.
fn answers(guest: &mut Guest, count: usize) -> Vec<u64> {
    (0..count).map(|_| guest.bench.wait(&mut guest.end).0.transaction_id).collect()
}

#[test]
fn a_unit_that_is_held_back_holds_nobody_else_back() {
    let (slow, fast) = (Disk::new("slow", 1 << 20), Disk::new("fast", 1 << 20));
    let mut guest = Guest::new(&[&slow.argument(",iops=20"), &fast.argument(",lun=1")]);
    let begin = Instant::now();
    (0..10).for_each(|n| begin_read(&mut guest, 100 + n, 0));
    (0..10).for_each(|n| begin_read(&mut guest, 200 + n, 1));
    begin_reset(&mut guest, 300, 0);
    begin_reset(&mut guest, 400, 1);
    let order = answers(&mut guest, 22);
    let place = |id: u64| order.iter().position(|one| *one == id).unwrap();
    assert!((200..210).chain([400]).all(|id| place(id) < place(103)), "the other one goes on: {order:?}");
    assert!(order.iter().filter(|id| **id < 200).is_sorted(), "order is kept: {order:?}");
    assert_eq!(place(300), 21, "a reset waits for the commands of its unit: {order:?}");
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(300), "two or three at once, then 20 a second: {took:?}");
    // And the device is idle again, for whoever takes over.
    guest.bench.quiesce();
}

#[test]
fn misaligned_memory_is_the_guests_right_past_the_page_cache_too() {
    const LEN: u32 = 128 * 1024;
    let disk = Disk::new("direct", 1 << 20);
    let mut guest = Guest::new(&[&disk.argument(",cache=none")]);
    let content: Vec<u8> = (0..LEN).map(|n| (n / 3) as u8).collect();
    let pages: Vec<u64> = (40..40 + u64::from(LEN) / 4096 + 1).collect();
    let (blocks, address) = ((LEN / 512) as u16, 40 * 4096 + 77);
    let header = gpa_direct_header(&[(77, LEN, &pages)]);
    let mut transfer = |direction, cdb: [u8; 10]| {
        let packet = wire::command(UNIT, direction, &cdb, LEN);
        let answer = guest.exchange(&Outgoing::gpa_direct(3, &header), &[&header, &packet]);
        assert_eq!(Outcome::of(&answer), Outcome::Good(LEN));
        guest.peek(address, LEN as usize)
    };
    disk.file.write_all_at(&content, 512).unwrap();
    assert!(transfer(Direction::FromDevice, read_10(1, blocks)) == content);
    transfer(Direction::ToDevice, transfer_10(0x2A, 700, blocks));
    let mut written = vec![0; LEN as usize];
    disk.file.read_exact_at(&mut written, 700 * 512).unwrap();
    assert!(written == content);
}
