//! Every named kill point, at the level of processes: a process that ends exactly there, first, in the middle and last
//! of a batch, loses and repeats nothing.

#![cfg(debug_assertions)]

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    SoftPlatform, Vm,
    disk::Disk,
    steps::{Guest, LIMIT},
};
use vmbus::{
    packet::Outgoing,
    ring::{ControlWord, RingMemory},
};
use vsc::{
    OpenOptions, Platform,
    storage::{
        Buffer, Storage, StorageOptions,
        scsi::{opcode, write_16},
        wire::{self, Direction, StoragePacket},
    },
};
use vsp::channel::KillPoint;
use zerocopy::IntoBytes;

const SIZE: u64 = 1 << 20;
const BLOCK: u32 = 512;
/// Requests of a batch, which the device finds all at once.
const BATCH: u8 = 5;
/// More completions than the ring to the guest has room for.
const CROWD: usize = 60;

/// Not to be reached with this guest's commands: none of them has an outcome that a repetition would change.
/// (`vsp-storage`'s own tests send some that have.)
const OUT_OF_REACH: [KillPoint; 3] = [KillPoint::Begun, KillPoint::OutcomeDue, KillPoint::OutcomeNoted];

/// What a guest does in its life: everything that has a kill point on its way.
fn live(guest: &mut Guest) -> anyhow::Result<()> {
    let offer = guest.offer(0)?;
    // Rings of two pages and of one: batches run around their ends, each at another place.
    let open = OpenOptions { to_host_pages: 3, to_guest_pages: 2, ..OpenOptions::default() };
    let options = StorageOptions { depth: 64, open, ..StorageOptions::default() };
    let mut storage = Storage::open(&mut guest.client, &offer, &options)?;
    let buffer = storage.allocate(u32::from(BATCH) * 4096)?;
    for round in 1..=4 {
        batch(&mut storage, buffer, round)?;
    }
    without_answer(&mut storage)?;
    crowd(&mut storage)?;
    batch(&mut storage, buffer, 5)?;
    ensure!(storage.completion(Duration::from_millis(5))?.is_none(), "something was completed twice");
    guest.client.close(storage.into_channel()?)?;
    Ok(())
}

/// Writes at once, each completed once, and in effect.
fn batch(storage: &mut Storage<SoftPlatform>, buffer: Buffer, round: u8) -> anyhow::Result<()> {
    let mut ids = Vec::new();
    for n in 0..BATCH {
        let part = buffer.part(u32::from(n) * 4096, 4096);
        storage.platform().write(part.address, &[round * 16 + n; 4096]);
        ids.push(storage.push(0, &write_16(u64::from(n) * 8, 8), Direction::Write, part)?);
    }
    storage.flush_requests()?;
    for _ in 0..BATCH {
        let done = storage.completion(LIMIT)?.with_context(|| format!("round {round}: {ids:?} are lost"))?;
        let at = ids.iter().position(|id| *id == done.id).context("nobody has asked for that")?;
        ids.swap_remove(at);
        ensure!(done.moved()? == 4096);
    }
    for n in 0..BATCH {
        let data = storage.read(0, u64::from(n) * 8, 8, BLOCK)?;
        ensure!(data == [round * 16 + n; 4096], "round {round}, block {n}: {}", data[0]);
    }
    Ok(())
}

/// Packets that no answer is wanted to, the first of which changes what is agreed on.
fn without_answer(storage: &mut Storage<SoftPlatform>) -> anyhow::Result<()> {
    let mut packet = StoragePacket::new(wire::OPERATION_BEGIN_INITIALIZATION);
    packet.flags = 0;
    for _ in 0..BATCH {
        storage.channel().push(&Outgoing::in_band(0x77, false), &[packet.as_bytes()])?;
    }
    storage.flush_requests()?;
    let mut version = StoragePacket::new(wire::OPERATION_QUERY_PROTOCOL_VERSION);
    version.payload[..2].copy_from_slice(&storage.version().to_le_bytes());
    for packet in [
        version,
        StoragePacket::new(wire::OPERATION_QUERY_PROPERTIES),
        StoragePacket::new(wire::OPERATION_END_INITIALIZATION),
    ] {
        let answer = storage.control(&packet)?;
        ensure!(answer.status == 0, "operation {} ended with {:#x}", packet.operation, answer.status);
    }
    Ok(storage.test_unit_ready(0)?)
}

/// So many that the device has to wait for room.
fn crowd(storage: &mut Storage<SoftPlatform>) -> anyhow::Result<()> {
    for _ in 0..CROWD {
        storage.push(0, &[opcode::TEST_UNIT_READY, 0, 0, 0, 0, 0], Direction::None, Buffer::NONE)?;
    }
    storage.flush_requests()?;
    let until = Instant::now() + LIMIT;
    while storage.channel().reader().memory().load(ControlWord::PendingSendSize) == 0 {
        ensure!(Instant::now() < until, "the device does not wait for room");
        thread::sleep(Duration::from_micros(500));
    }
    for n in 0..CROWD {
        storage.completion(LIMIT)?.with_context(|| format!("{n} of {CROWD} came"))?.moved()?;
    }
    Ok(())
}

/// Lets a guest live with processes that end where `orders` say, one after the other; each death is followed by a successor with
/// the next order, and in the end by one without. True if the last order was followed too.
fn die_at(orders: &[String]) -> anyhow::Result<bool> {
    let disk = Disk::new(SIZE)?;
    let builder = Vm::builder().quiet().storage("disk0", &[disk.argument("")]);
    let first = orders.first().context("an order")?;
    // The successor must not inherit it, so it is not in the builder: the first process is replaced before it has served.
    let mut vm = builder.start()?;
    let mut guest = Guest::connect(&vm)?;
    vm.restart_with("disk0", &["--kill-point", first])?;
    let mut left = orders[1..].iter();
    let (mut deaths, mut ended) = (0, false);
    thread::scope(|scope| {
        let guest = scope.spawn(|| live(&mut guest));
        while !ended {
            ended = guest.is_finished();
            if vm.device("disk0").try_wait()?.is_some() {
                deaths += 1;
                match left.next() {
                    Some(order) => vm.restart_with("disk0", &["--kill-point", order])?,
                    None => vm.restart("disk0")?,
                }
            }
            thread::sleep(Duration::from_micros(300));
        }
        guest.join().map_err(|_| anyhow::anyhow!("no panic"))?
    })?;
    Ok(deaths >= orders.len())
}

fn is_of_a_successor(point: KillPoint) -> bool {
    point.name().starts_with("adopt")
}

/// In which orders a point may be met: at once, in the middle of a batch, at the end of one; a successor's own points
/// after deaths that leave it something to do.
fn orders(point: KillPoint) -> Vec<Vec<String>> {
    let order = |name: &str, count: u32| format!("{name}:{count}");
    if !is_of_a_successor(point) {
        return [1, 3, 5].map(|count| vec![order(point.name(), count)]).to_vec();
    }
    let before = ["taken", "read-published", "completing", "write-published", "state-written", "write-noted"];
    before
        .iter()
        .flat_map(|name| [1, 3].map(|count| vec![order(name, count), order(point.name(), 1)]))
        .chain([2, 3].map(|count| vec![order("write-published", 20), order(point.name(), count)]))
        .collect()
}

fn try_points(points: impl Iterator<Item = KillPoint>) -> anyhow::Result<()> {
    let mut missed = Vec::new();
    for point in points.filter(|point| !OUT_OF_REACH.contains(point)) {
        let mut met = 0;
        for orders in orders(point) {
            met += u32::from(die_at(&orders).with_context(|| format!("{orders:?}"))?);
        }
        if met == 0 {
            missed.push(point);
        }
    }
    ensure!(missed.is_empty(), "never met: {missed:?}");
    Ok(())
}

#[test]
fn on_the_way_of_a_request() -> anyhow::Result<()> {
    try_points(KillPoint::ALL.into_iter().filter(|point| !is_of_a_successor(*point)))
}

#[test]
fn while_a_successor_takes_over() -> anyhow::Result<()> {
    try_points(KillPoint::ALL.into_iter().filter(|point| is_of_a_successor(*point)))
}
