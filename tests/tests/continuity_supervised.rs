//! The same under the real supervisor: `bulkhead run`, its spares, its operators, its end.

use std::{
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    campaign::{
        kills::Campaign,
        swaps::Swaps,
        victim::{Kind, Victim},
    },
    disk::Disk,
    load::{Load, Shape},
    steps::LIMIT,
    supervised::{DEVICE, RETURNS_WITHIN, Setup, Supervised, served},
};

const SIZE: u64 = 8 << 20;

fn campaign(kills: u64, spare: bool, kinds: &[Kind]) -> anyhow::Result<()> {
    let outcome = Campaign { kills, seed: 77, spare, kinds: kinds.to_vec(), shape: Shape::FULL }.run()?;
    ensure!(outcome.is_clean(), "{:?} {:#?}\n{}", outcome.failure, outcome.tally, outcome.log);
    ensure!(outcome.kills == kills);
    Ok(())
}

#[test]
fn a_small_campaign() -> anyhow::Result<()> {
    campaign(60, false, &[Kind::Kill])
}

#[test]
fn a_small_campaign_with_a_spare() -> anyhow::Result<()> {
    campaign(60, true, &[Kind::Kill])
}

#[test]
fn crashes_and_forbidden_calls() -> anyhow::Result<()> {
    campaign(6, false, &[Kind::Segv])?;
    campaign(6, false, &[Kind::Sys])
}

#[test]
fn a_hung_process_is_found_and_replaced() -> anyhow::Result<()> {
    campaign(2, false, &[Kind::Stop])
}

#[test]
fn planned_swaps() -> anyhow::Result<()> {
    let outcome = Swaps { swaps: 20, seed: 3, other: None, shape: Shape::FULL, in_memory: false }.run()?;
    ensure!(outcome.is_clean(), "{:?} {:#?}\n{}", outcome.failure, outcome.tally, outcome.log);
    Ok(())
}

#[test]
fn a_swap_to_what_is_no_device_process_leaves_the_old_one() -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    let vm = Supervised::start(&disk, &Setup::default())?;
    let (mut client, offer) = vm.guest()?;
    let load = Load::start(&mut client, &offer, Shape { queues: 1, ..Shape::FULL }, Load::blocks(SIZE), 4)?;
    let mut backend = vm.backend()?;
    let before = served(&mut *backend, false)?;
    for program in ["/bin/false", "/bin/sleep", "/nowhere"] {
        let refused = backend.swap(DEVICE, Some(Path::new(program)));
        ensure!(refused.is_err(), "{program}: {refused:?}");
        ensure!(load.pulse.wait_beats(50, LIMIT), "the load stands still after {program}");
    }
    let after = served(&mut *backend, false)?;
    ensure!(before.pid == after.pid, "{before:?} {after:?}");
    let (tally, _) = load.finish(&disk)?;
    ensure!(tally.is_clean(), "{tally:#?}");
    Ok(())
}

/// Every process below this one, however deep.
fn descendants(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children: Vec<u32> = children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    children.iter().flat_map(|pid| [vec![*pid], descendants(*pid)].concat()).collect()
}

fn program(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

#[test]
fn when_the_core_dies_nothing_is_left() -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    let vm = Supervised::start(&disk, &Setup { spare: true, ..Setup::default() })?;
    let (mut client, offer) = vm.guest()?;
    let load = Load::start(&mut client, &offer, Shape::FULL, Load::blocks(SIZE), 5)?;
    ensure!(load.pulse.wait_beats(100, RETURNS_WITHIN), "the load does not get going");
    served(&mut *vm.backend()?, true)?;
    let all = descendants(vm.pid());
    let core = all.iter().find(|pid| program(**pid) == "core-vmm" || program(**pid) == "soft-core");
    let core = *core.context("there is no core")?;
    let devices: Vec<Victim> =
        all.iter().filter(|pid| **pid != core).map(|pid| Victim::new(*pid)).collect::<Result<_, _>>()?;
    ensure!(devices.len() >= 2, "a process and its spare: {all:?}");
    Victim::new(core)?.end(Kind::Kill)?;
    for device in &devices {
        device.wait(LIMIT)?;
    }
    // Its resource is free at once, for whoever comes next.
    let again = File::open(disk.path())?;
    again.try_lock().context("the disk is still locked")?;
    let until = Instant::now() + LIMIT;
    while !descendants(vm.pid()).is_empty() {
        ensure!(Instant::now() < until, "left behind: {:?}", descendants(vm.pid()));
        std::thread::sleep(Duration::from_millis(5));
    }
    while vm.directory().join("run").exists() {
        ensure!(Instant::now() < until, "the runtime directory is left behind");
        std::thread::sleep(Duration::from_millis(5));
    }
    load.pulse.stop();
    Ok(())
}
