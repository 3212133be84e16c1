//! A disk by vhost-user, honestly used.

use anyhow::ensure;
use bulkhead_tests::disk::Disk;
use bulkhead_tests::load::Tally;
use bulkhead_tests::process::Process;
use bulkhead_tests::steps::LIMIT;
use bulkhead_tests::vhost::blk::{self, Blk, OK, Op, UNSUPP};
use bulkhead_tests::vhost::front::{Options, Tell};
use bulkhead_tests::vhost::protocol::{feature, protocol_feature};
use bulkhead_tests::vhost::{Daemon, Front, Memory, load::Load};

const SIZE: u64 = 16 << 20;
const MEMORY: u64 = 64 << 20;
const BLOCK: usize = 512;

/// A daemon with a disk, and one ring of a front end that has what it wants.
fn one(options: &str, wants: Options) -> anyhow::Result<(Disk, Daemon, Front, Blk)> {
    let disk = Disk::new(SIZE)?;
    let daemon = Daemon::storage(&disk, options)?;
    let memory = Memory::new(MEMORY)?;
    let (front, mut rings) = Front::connect(&daemon.socket(), &memory, wants)?;
    let ring = rings.pop().expect("one ring was asked for");
    let blk = Blk::new(&memory, ring, 16, wants.features & feature::INDIRECT_DESC != 0)?;
    Ok((disk, daemon, front, blk))
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn clean(tally: &Tally) -> anyhow::Result<()> {
    ensure!(tally.is_clean() && tally.completed > 0, "{tally:#?}");
    Ok(())
}

#[test]
fn a_disk_says_what_it_is() -> anyhow::Result<()> {
    let (_disk, _daemon, front, mut blk) = one(",serial=S-1", Options::default())?;
    let config = front.config(blk::CONFIG)?;
    ensure!(number(&config[0..8]) == SIZE / 512, "capacity: {config:?}");
    ensure!(number(&config[20..24]) == 512, "blocks: {config:?}");
    ensure!(1 << config[24] == 8, "512e: blocks of 4096 below: {config:?}");
    ensure!(number(&config[36..40]) > 0 && number(&config[48..52]) > 0, "holes: {config:?}");
    use blk::feature as disk;
    let wanted =
        feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::PROTOCOL_FEATURES;
    let wanted = wanted | disk::SEG_MAX | disk::BLK_SIZE | disk::TOPOLOGY | disk::FLUSH;
    let wanted = wanted | disk::MQ | disk::DISCARD | disk::WRITE_ZEROES;
    ensure!(front.features & wanted == wanted, "missing: {:#x}", wanted & !front.features);
    ensure!(front.features & disk::RO == 0);
    ensure!(blk.does(Op::GetId, 0, 20)? == OK);
    let mut name = [0; 20];
    blk.look(0, &mut name)?;
    ensure!(name.starts_with(b"S-1\0"), "{name:?}");
    ensure!(blk.does(Op::Other(77), 0, 0)? == UNSUPP);
    Ok(())
}

#[test]
fn bytes_go_both_ways_and_holes_are_zero() -> anyhow::Result<()> {
    for features in [u64::MAX, !feature::INDIRECT_DESC, !feature::EVENT_IDX] {
        let (disk, _daemon, _front, mut blk) = one("", Options { features, ..Options::default() })?;
        let bytes: Vec<u8> = (0..128 * BLOCK).map(|n| (n / 7) as u8).collect();
        for sector in [0, 3, SIZE / 512 - 128] {
            blk.writes(sector, &bytes)?;
            ensure!(blk.reads(sector, bytes.len() as u32)? == bytes, "other bytes at {sector}");
        }
        ensure!(blk.does(Op::Flush, 0, 0)? == OK);
        use std::os::unix::fs::FileExt;
        let mut behind = vec![0; bytes.len()];
        disk.file.read_exact_at(&mut behind, 3 * 512)?;
        ensure!(behind == bytes, "the file has other bytes");
        for op in [Op::Discard, Op::WriteZeroes] {
            blk.writes(64, &bytes)?;
            ensure!(blk.does(op, 64, 64 * 512)? == OK);
            let seen = blk.reads(64, bytes.len() as u32)?;
            ensure!(seen[..64 * 512].iter().all(|byte| *byte == 0), "{op:?} left something");
            ensure!(seen[64 * 512..] == bytes[64 * 512..], "{op:?} took more");
        }
    }
    Ok(())
}

#[test]
fn what_is_not_on_the_disk_is_an_error_and_not_more() -> anyhow::Result<()> {
    let (_disk, mut daemon, _front, mut blk) = one("", Options::default())?;
    let end = SIZE / 512;
    for op in [Op::In, Op::Out, Op::Discard, Op::WriteZeroes] {
        for sector in [end, end - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
            let status = blk.does(op, sector, 1024)?;
            ensure!(status == blk::IOERR, "{op:?} of 1024 at {sector}: {status}");
        }
        ensure!(blk.does(op, end - 2, 1024)? == OK, "{op:?} at the end");
    }
    // Half a sector.
    ensure!(blk.does(Op::In, 0, 700)? != OK && blk.does(Op::Out, 0, 100)? != OK);
    daemon.lives()
}

#[test]
fn a_disk_that_is_only_read_is_not_written() -> anyhow::Result<()> {
    let (_disk, _daemon, front, mut blk) = one(",ro", Options::default())?;
    ensure!(front.features & blk::feature::RO != 0);
    blk.reads(0, 4096)?;
    for op in [Op::Out, Op::Discard, Op::WriteZeroes] {
        // What is not offered there is not known either.
        let status = blk.does(op, 0, 4096)?;
        ensure!(matches!(status, blk::IOERR | UNSUPP), "{op:?}: {status}");
    }
    Ok(())
}

#[test]
fn several_rings_under_load() -> anyhow::Result<()> {
    for (tell, extra) in
        [(Tell::Table, ""), (Tell::Regions, ",cache=none"), (Tell::Table, ",cache=writethrough")]
    {
        let disk = Disk::new(SIZE)?;
        let daemon = Daemon::storage(&disk, extra)?;
        let memory = Memory::new(MEMORY)?;
        let protocol = Options::default().protocol | protocol_feature::CONFIGURE_MEM_SLOTS;
        let wants = Options { rings: 4, tell, protocol, ..Options::default() };
        let (_front, rings) = Front::connect(&daemon.socket(), &memory, wants)?;
        let load = Load::start(&memory, rings, 32, SIZE / 512, 1)?;
        ensure!(load.pulse.wait_beats(3000, LIMIT), "the load stands still");
        clean(&load.finish(&disk)?.0)?;
    }
    Ok(())
}

#[test]
fn a_ring_stops_and_starts_again_where_it_was() -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    let daemon = Daemon::storage(&disk, "")?;
    let memory = Memory::new(MEMORY)?;
    let (front, mut rings) = Front::connect(&daemon.socket(), &memory, Options::default())?;
    for seed in 1..10 {
        let load = Load::start(&memory, rings, 16, SIZE / 512, seed)?;
        let (place, wires) = front.ring(0);
        ensure!(load.pulse.wait_beats(50, LIMIT), "the load stands still");
        // What is under way ends first; the base is behind it.
        let base = front.stop(0)?;
        ensure!(base == place.used_index(&memory)?, "stopped at {base}");
        let before = load.pulse.completed();
        std::thread::sleep(std::time::Duration::from_millis(20));
        ensure!(place.used_index(&memory)? == base, "a stopped ring works on");
        front.start(&place, &wires)?;
        ensure!(load.pulse.completed() >= before && load.pulse.wait_beats(50, LIMIT), "it does not go on");
        let (tally, idle) = load.finish(&disk)?;
        clean(&tally)?;
        rings = idle;
        // The next load begins with an empty disk.
        disk.file.set_len(0)?;
        disk.file.set_len(SIZE)?;
    }
    Ok(())
}

#[test]
fn front_ends_come_and_go() -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    for held in [false, true] {
        let builder = Daemon::builder("vsp-storage").args(["--disk", &disk.argument("")]);
        let mut daemon = if held { builder.held() } else { builder }.start()?;
        for n in 0..5u8 {
            let memory = Memory::new(MEMORY)?;
            let (front, mut rings) = Front::connect(&daemon.socket(), &memory, Options::default())?;
            let mut blk = Blk::new(&memory, rings.pop().expect("one"), 4, true)?;
            blk.writes(u64::from(n) * 8, &[n + 1; 4096])?;
            if n > 0 {
                ensure!(blk.reads(u64::from(n - 1) * 8, 4096)? == [n; 4096], "a former guest's bytes");
            }
            drop(front);
        }
        daemon.lives()?;
    }
    Ok(())
}

#[test]
fn it_is_in_its_compartment() -> anyhow::Result<()> {
    let (_disk, mut daemon, _front, mut blk) = one("", Options::default())?;
    blk.reads(0, 4096)?;
    let process = Process::new("vsp-storage", daemon.child().pid());
    process.has_no_privileges()?;
    process.is_alone()?;
    // The guest's memory, and nothing else of anybody's.
    let memory = process.shared_memory()?;
    ensure!(memory.get("guest").is_some_and(|mapped| mapped.bytes >= MEMORY), "{memory:?}");
    Ok(())
}
