//! What a dead process has begun may still be under way: its successor touches nothing before that has ended.

mod slow;

use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_tests::{
    SoftPlatform, Vm,
    steps::{Guest, LIMIT},
};
use slow::{Event, SlowDisk, can_mount};
use vsc::{
    Platform,
    storage::{
        Storage, StorageOptions,
        scsi::{read_16, write_16},
        wire::Direction,
    },
};

const SIZE: u64 = 1 << 20;
const BLOCK: u32 = 512;
/// How long a request of the dead process goes on: an age, compared with the start of a successor.
const AGE: Duration = Duration::from_millis(400);

fn start(disk: &SlowDisk) -> anyhow::Result<(Vm, Guest, Storage<SoftPlatform>)> {
    let path = format!("path={}", disk.path().display());
    let vm = Vm::builder().storage("disk0", &[path]).start()?;
    let mut guest = Guest::connect(&vm)?;
    let offer = guest.offer(0)?;
    let storage = Storage::open(&mut guest.client, &offer, &StorageOptions::default())?;
    Ok((vm, guest, storage))
}

/// The openings of the disk that have done something, in the order in which they began to.
fn users(events: &[Event]) -> Vec<u64> {
    let mut users = Vec::new();
    for event in events {
        let (Event::Began { file, .. } | Event::Ended { file, .. }) = event;
        if !users.contains(file) {
            users.push(*file);
        }
    }
    users
}

/// Nothing of anybody else's began before everything of `old`'s had ended.
fn ensure_fenced(events: &[Event], old: u64) -> anyhow::Result<()> {
    let of_old = |event: &&Event| matches!(event, Event::Began { file, .. } | Event::Ended { file, .. } if *file == old);
    let first = events.iter().position(|event| matches!(event, Event::Began { file, .. } if *file != old));
    let first = first.context("the new one began nothing")?;
    ensure!(!events[first..].iter().any(|event| of_old(&event)), "the successor did not wait: {events:?}");
    let (begun, ended): (Vec<&Event>, Vec<&Event>) =
        events.iter().filter(of_old).partition(|event| matches!(event, Event::Began { .. }));
    ensure!(begun.len() == ended.len(), "the successor did not wait: {events:?}");
    Ok(())
}

#[test]
fn a_write_of_the_dead_process_never_lands_on_its_successors() -> anyhow::Result<()> {
    if !can_mount() {
        return Ok(());
    }
    let disk = SlowDisk::new(SIZE)?;
    let (mut vm, mut guest, mut storage) = start(&disk)?;
    storage.write(0, 0, &[1; 512], BLOCK)?;
    let old = *users(&disk.events()).last().context("nobody has written")?;
    disk.delay(AGE);
    let buffer = storage.allocate(4096)?;
    storage.platform().write(buffer.address, &[2; 4096]);
    let write = storage.submit(0, &write_16(8, 8), Direction::Write, buffer)?;
    disk.wait_under_way(old, 1)?;
    disk.delay(Duration::ZERO);
    vm.device("disk0").kill()?;
    vm.device("disk0").wait()?;
    ensure!(disk.under_way(old) == 1, "its write died with it: this shows nothing");
    vm.restart("disk0")?;
    // The successor's turn: the write that died is done again, and then the guest writes anew.
    ensure!(storage.wait(write)?.moved()? == 4096);
    storage.write(0, 8, &[3; 4096], BLOCK)?;
    ensure_fenced(&disk.events(), old)?;
    disk.wait_under_way(old, 0)?;
    let mut block = [0; 4096];
    disk.backing().read_exact_at(&mut block, 8 * 512)?;
    ensure!(block == [3; 4096], "an old write has landed late: {}", block[0]);
    guest.client.close(storage.into_channel()?)?;
    Ok(())
}

#[test]
fn a_read_of_the_dead_process_never_lands_in_memory_that_the_guest_uses_again() -> anyhow::Result<()> {
    if !can_mount() {
        return Ok(());
    }
    let disk = SlowDisk::new(SIZE)?;
    let (mut vm, mut guest, mut storage) = start(&disk)?;
    storage.write(0, 0, &[7; 4096], BLOCK)?;
    let old = *users(&disk.events()).last().context("nobody has written")?;
    disk.delay(AGE);
    let buffer = storage.allocate(4096)?;
    let read = storage.submit(0, &read_16(0, 8), Direction::Read, buffer)?;
    disk.wait_under_way(old, 1)?;
    disk.delay(Duration::ZERO);
    vm.device("disk0").kill()?;
    vm.device("disk0").wait()?;
    ensure!(disk.under_way(old) == 1, "its read died with it: this shows nothing");
    vm.restart("disk0")?;
    ensure!(storage.wait(read)?.moved()? == 4096);
    let mut seen = [0; 4096];
    storage.platform().read(buffer.address, &mut seen);
    ensure!(seen == [7; 4096], "it reads {}", seen[0]);
    // The memory is the guest's again, which uses it for something else.
    storage.platform().write(buffer.address, &[9; 4096]);
    ensure_fenced(&disk.events(), old)?;
    disk.wait_under_way(old, 0)?;
    std::thread::sleep(Duration::from_millis(50));
    storage.platform().read(buffer.address, &mut seen);
    ensure!(seen == [9; 4096], "an old read has landed late");
    guest.client.close(storage.into_channel()?)?;
    Ok(())
}

#[test]
fn a_spare_waits_for_the_dead_process_too() -> anyhow::Result<()> {
    if !can_mount() {
        return Ok(());
    }
    let disk = SlowDisk::new(SIZE)?;
    let (mut vm, _guest, mut storage) = start(&disk)?;
    vm.spare("disk0")?;
    let operator = vm.operator()?;
    operator.wait("disk0", "stood by for", |device| device.standby)?;
    storage.write(0, 0, &[1; 512], BLOCK)?;
    let old = *users(&disk.events()).last().context("nobody has written")?;
    disk.delay(AGE);
    let buffer = storage.allocate(4096)?;
    let write = storage.submit(0, &write_16(8, 8), Direction::Write, buffer)?;
    disk.wait_under_way(old, 1)?;
    disk.delay(Duration::ZERO);
    vm.device("disk0").kill()?;
    ensure!(storage.completion(LIMIT)?.context("no completion")?.id == write);
    ensure_fenced(&disk.events(), old)?;
    vm.promoted("disk0")?.wait()?;
    Ok(())
}
