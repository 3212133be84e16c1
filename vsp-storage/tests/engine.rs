//! What happens to commands between the ring and the disk: who waits for whom, and what is done about memory that a disk
//! cannot use.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod guest;

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use guest::{Disk, Guest, Outcome, UNIT};
use vsp::ipc::message::{ToCore, ToVsp};
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
    begin_reset(&mut guest, 400, 1);
    let order = answers(&mut guest, 21);
    let place = |id: u64| order.iter().position(|one| *one == id).unwrap();
    assert!((200..210).chain([400]).all(|id| place(id) < place(103)), "the other one goes on: {order:?}");
    assert!(order.iter().filter(|id| **id < 200).is_sorted(), "order is kept: {order:?}");
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(300), "two or three at once, then 20 a second: {took:?}");
    // And the device is idle again, for whoever takes over.
    guest.bench.quiesce();
}

/// A unit on which six seconds' worth of commands wait, all of them taken.
fn held_back(name: &str) -> (Disk, Guest) {
    let disk = Disk::new(name, 1 << 20);
    let mut guest = Guest::new(&[&disk.argument(",iops=10")]);
    (0..60).for_each(|n| begin_read(&mut guest, 100 + n, 0));
    (0..8).for_each(|_| guest.bench.turn(0));
    (disk, guest)
}

/// What nobody may be late for does not wait for limits: who is would be killed for it.
#[test]
fn limits_hold_up_no_handover_no_close_and_no_reset() {
    const SOON: Duration = Duration::from_secs(1);
    let (disk, mut guest) = held_back("hurry-quiesce");
    let begin = Instant::now();
    guest.bench.quiesce();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    // All have been answered, and who takes over has its limits.
    let mut guest = guest.taken_over(&[&disk.argument(",iops=10")]);
    assert_eq!(answers(&mut guest, 60).len(), 60);
    let begin = Instant::now();
    (0..10).for_each(|n| begin_read(&mut guest, n, 0));
    assert_eq!(answers(&mut guest, 10), (0..10).collect::<Vec<_>>());
    assert!(begin.elapsed() > SOON / 2, "{:?}", begin.elapsed());

    let (_disk, mut guest) = held_back("hurry-close");
    let begin = Instant::now();
    guest.bench.close(1);
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());

    let (_disk, mut guest) = held_back("hurry-remove");
    let begin = Instant::now();
    guest.bench.core.send(&ToVsp::Control { id: 1, payload: r#"{"remove":{"lun":0}}"#.into() });
    let ToCore::ControlDone { id: 1, result: Ok(_) } = guest.bench.answer() else { panic!() };
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());

    let (_disk, mut guest) = held_back("hurry-reset");
    let begin = Instant::now();
    begin_reset(&mut guest, 300, 0);
    assert_eq!(answers(&mut guest, 61).last(), Some(&300), "it waits for the commands of its unit");
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    begin_read(&mut guest, 301, 0);
    (0..20).for_each(|_| guest.bench.turn(1));
    assert!(guest.end.poll().is_none(), "what was let through has been charged for");
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
