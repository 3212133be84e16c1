//! Daemons die under a load, the front end connects to their successors, and the guest's requests are each completed once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_tests::disk::Disk;
use bulkhead_tests::steps::{Dice, LIMIT};
use bulkhead_tests::vhost::blk::{Blk, Op};
use bulkhead_tests::vhost::front::{Manner, Options};
use bulkhead_tests::vhost::protocol::feature;
use bulkhead_tests::vhost::{Daemon, Front, Memory, load::Load};
use nix::libc;

const SIZE: u64 = 16 << 20;
const MEMORY: u64 = 64 << 20;
/// Kills of a campaign.
const KILLS: u32 = 60;

/// Kills daemons at random moments while `wants.rings` rings are under load.
fn campaign(held: bool, extra: &str, wants: Options, depth: u16, seed: u64) -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    let builder = Daemon::builder("vsp-storage").args(["--disk", &disk.argument(extra)]);
    let mut daemon = if held { builder.held() } else { builder }.start()?;
    let memory = Memory::new(MEMORY)?;
    let (mut front, rings) = Front::connect(&daemon.socket(), &memory, wants)?;
    let load = Load::start(&memory, rings, depth, SIZE / 512, seed)?;
    let mut dice = Dice(seed | 1);
    for n in 0..KILLS {
        // Now and then before it has done anything at all.
        if dice.roll(8) > 0 {
            ensure!(load.pulse.wait_beats(1 + u64::from(dice.roll(40)), LIMIT), "kill {n}: no life");
            std::thread::sleep(Duration::from_micros(dice.roll(3000).into()));
        }
        daemon.kill()?;
        daemon.start()?;
        front.reconnect(&daemon.socket())?;
    }
    ensure!(load.pulse.wait_beats(100, LIMIT), "the load stands still");
    let (tally, _) = load.finish(&disk)?;
    ensure!(tally.is_clean() && tally.completed > u64::from(KILLS), "{tally:#?}");
    daemon.lives()
}

#[test]
fn kills_under_load() -> anyhow::Result<()> {
    campaign(false, "", Options { rings: 2, ..Options::default() }, 32, 11)
}

#[test]
fn kills_under_load_behind_a_socket_that_stays() -> anyhow::Result<()> {
    campaign(true, "", Options { rings: 4, ..Options::default() }, 8, 12)
}

#[test]
fn kills_under_load_of_another_front_end() -> anyhow::Result<()> {
    let wants = Options { rings: 2, manner: Manner::CloudHypervisor, ..Options::default() };
    campaign(true, "", wants, 32, 17)
}

#[test]
fn kills_under_load_without_a_page_cache() -> anyhow::Result<()> {
    campaign(true, ",cache=none", Options { rings: 2, ..Options::default() }, 32, 13)
}

#[test]
fn kills_under_load_of_an_old_driver() -> anyhow::Result<()> {
    let features = !(feature::EVENT_IDX | feature::INDIRECT_DESC);
    campaign(true, "", Options { features, size: 64, ..Options::default() }, 16, 14)
}

/// A daemon, a front end and one ring with this many hands.
fn one(slots: u16) -> anyhow::Result<(Disk, Daemon, Front, Arc<Memory>, Blk)> {
    let disk = Disk::new(SIZE)?;
    let daemon =
        Daemon::builder("vsp-storage").args(["--disk", &disk.argument("")]).held().quiet().start()?;
    let memory = Memory::new(MEMORY)?;
    let (front, mut rings) = Front::connect(&daemon.socket(), &memory, Options::default())?;
    let blk = Blk::new(&memory, rings.pop().expect("one ring"), slots, true)?;
    Ok((disk, daemon, front, memory, blk))
}

#[test]
fn the_very_first_requests_survive() -> anyhow::Result<()> {
    // Slot 0 is what others lose: nothing has been completed yet, so all counters are zero.
    for count in 1..=4u16 {
        let (_disk, mut daemon, mut front, _memory, mut blk) = one(4)?;
        // Nobody listens, so the requests are fetched by the successor, or have been by the dead one: both have to be.
        daemon.child().signal(libc::SIGSTOP)?;
        for slot in 0..count {
            blk.fill(slot, &[7; 4096])?;
            blk.start(slot, Op::Out, u64::from(slot) * 8, 4096)?;
        }
        blk.ring.submit()?;
        if count % 2 == 0 {
            daemon.child().signal(libc::SIGCONT)?;
        }
        daemon.kill()?;
        daemon.start()?;
        front.reconnect(&daemon.socket())?;
        for _ in 0..count {
            let done = blk.wait(LIMIT)?;
            ensure!(done.is_some_and(|(_, status)| status == 0), "{done:?}");
        }
        ensure!(blk.take()?.is_none() && blk.ring.under_way() == 0);
    }
    Ok(())
}

#[test]
fn a_daemon_that_dies_while_it_connects_is_followed() -> anyhow::Result<()> {
    let (_disk, mut daemon, mut front, _memory, mut blk) = one(4)?;
    blk.writes(0, &[1; 4096])?;
    for n in 0..20u64 {
        daemon.kill()?;
        daemon.start()?;
        // The front end gets as far as it gets.
        std::thread::scope(|scope| -> anyhow::Result<()> {
            let (socket, front) = (daemon.socket(), &mut front);
            let connecting = scope.spawn(move || front.reconnect(&socket));
            std::thread::sleep(Duration::from_micros(700 * n));
            daemon.kill()?;
            // A connection that nobody had taken yet is the successor's.
            daemon.start()?;
            let _ = connecting.join();
            Ok(())
        })?;
        // A line may be broken already, and a daemon serves one.
        let _ = front.line.hang_up();
        front.reconnect(&daemon.socket())?;
        ensure!(blk.reads(0, 4096)? == [1; 4096]);
    }
    Ok(())
}

#[test]
fn other_deaths_are_deaths_as_well() -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    let builder = Daemon::builder("vsp-storage").args(["--disk", &disk.argument("")]);
    let mut daemon = builder.held().quiet().start()?;
    let memory = Memory::new(MEMORY)?;
    let wants = Options { rings: 2, ..Options::default() };
    let (mut front, rings) = Front::connect(&daemon.socket(), &memory, wants)?;
    let load = Load::start(&memory, rings, 16, SIZE / 512, 15)?;
    // Not SIGTERM: the first process of a PID namespace has no default actions.
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGSYS, libc::SIGABRT] {
        ensure!(load.pulse.wait_beats(50, LIMIT), "the load stands still before signal {signal}");
        daemon.child().signal(signal)?;
        daemon.ended().with_context(|| format!("signal {signal}"))?;
        daemon.start()?;
        front.reconnect(&daemon.socket())?;
    }
    ensure!(load.pulse.wait_beats(50, LIMIT), "the load stands still");
    let (tally, _) = load.finish(&disk)?;
    ensure!(tally.is_clean(), "{tally:#?}");
    Ok(())
}

#[test]
fn a_front_end_may_leave_a_living_daemon_and_come_back() -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    let mut daemon = Daemon::builder("vsp-storage").args(["--disk", &disk.argument("")]).quiet().start()?;
    let memory = Memory::new(MEMORY)?;
    let wants = Options { rings: 2, ..Options::default() };
    let (mut front, rings) = Front::connect(&daemon.socket(), &memory, wants)?;
    let load = Load::start(&memory, rings, 16, SIZE / 512, 16)?;
    for _ in 0..20 {
        ensure!(load.pulse.wait_beats(50, LIMIT), "the load stands still");
        front.line.hang_up()?;
        front.reconnect(&daemon.socket())?;
    }
    ensure!(load.pulse.wait_beats(50, LIMIT), "the load stands still");
    let (tally, _) = load.finish(&disk)?;
    ensure!(tally.is_clean(), "{tally:#?}");
    daemon.lives()
}
