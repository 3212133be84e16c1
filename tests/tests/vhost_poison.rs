//! A request that kills its process: the others do not suffer, and after three deaths it is failed.

#![cfg(debug_assertions)]

use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_tests::disk::Disk;
use bulkhead_tests::steps::LIMIT;
use bulkhead_tests::vhost::blk::{Blk, OK, Op};
use bulkhead_tests::vhost::front::Options;
use bulkhead_tests::vhost::{Daemon, Front, Memory};

/// FLUSH: what the daemons die of.
const DEADLY: [&str; 2] = ["--crash-on-opcode", "04"];
const SLICE: Duration = Duration::from_millis(20);

#[test]
fn a_request_that_kills_three_processes_is_failed_and_no_other_is() -> anyhow::Result<()> {
    let disk = Disk::new(1 << 20)?;
    let builder = Daemon::builder("vsp-storage").args(["--disk", &disk.argument("")]).args(DEADLY);
    let mut daemon = builder.held().quiet().start()?;
    let memory = Memory::new(8 << 20)?;
    let (mut front, mut rings) = Front::connect(&daemon.socket(), &memory, Options::default())?;
    let mut blk = Blk::new(&memory, rings.pop().context("no ring")?, 8, true)?;
    for slot in 0..5 {
        blk.fill(slot, &[slot as u8 + 1; 4096])?;
        match slot {
            2 => blk.start(slot, Op::Flush, 0, 0)?,
            _ => blk.start(slot, Op::Out, u64::from(slot) * 8, 4096)?,
        }
    }
    blk.ring.submit()?;
    let (mut deaths, mut ended) = (0, Vec::new());
    while ended.len() < 5 {
        ended.extend(blk.wait(SLICE)?);
        if daemon.child().try_wait()?.is_some() {
            deaths += 1;
            ensure!(deaths <= 3, "it dies again and again: {ended:?}");
            daemon.start()?;
            front.reconnect(&daemon.socket())?;
        }
    }
    ended.sort_unstable();
    let expected: Vec<_> = (0..5).map(|slot| (slot, if slot == 2 { 1 } else { OK })).collect();
    ensure!(ended == expected, "{ended:?}");
    ensure!(deaths == 3, "after {deaths} deaths");
    for slot in [0, 1, 3, 4] {
        ensure!(blk.reads(slot * 8, 4096)? == vec![slot as u8 + 1; 4096]);
    }
    ensure!(blk.wait(SLICE.min(LIMIT))?.is_none());
    daemon.lives()
}
