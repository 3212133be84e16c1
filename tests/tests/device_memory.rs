//! Memory of a device's own that the guest sees, answers that are packets, and notices: the real server in its compartment, a real process in
//! its own, over deaths, hand-overs, closes and resets.

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    Vm,
    scribe::{Order, Scribe},
    steps::{Dice, Guest, LIMIT},
};
use core_vmm::layout::{VMBUS_HIGH_MMIO_BASE, VMBUS_LOW_MMIO};
use ipc::{
    message::{ToCore, ToVsp},
    shm::{Mapping, SharedMemory},
};
use vsc::platform::Platform;
use vsp::channel::KillPoint;

const GPA: u64 = VMBUS_LOW_MMIO.0 + 0x10_0000;
const BYTES: u64 = 256 << 10;
/// What the device may map.
const MOST: u64 = 1 << 20;

fn start() -> anyhow::Result<(Vm, Guest)> {
    let vm = Vm::builder().quiet().test_device("scribe").device_memory(MOST).echo("bystander").start()?;
    let guest = Guest::connect(&vm)?;
    Ok((vm, guest))
}

fn reset(vm: &Vm) -> anyhow::Result<Guest> {
    vm.platform().reset()?;
    (0..2).try_for_each(|vp| vm.platform().set_synic(vp, true))?;
    Guest::connect(vm)
}

#[test]
fn a_guest_sees_what_a_device_maps_over_deaths_and_hand_overs() -> anyhow::Result<()> {
    let (mut vm, mut guest) = start()?;
    let mut scribe = Scribe::open(&mut guest, 0)?;
    ensure!(scribe.order(Order::Map { gpa: GPA, bytes: BYTES })? == 1, "refused");
    ensure!(vm.platform().device_memory() == [(GPA, BYTES)]);
    let mut dice = Dice(7);
    let mut frame = vec![0; BYTES as usize];
    for round in 0..6 {
        dice.fill(&mut frame);
        vm.platform().write(GPA, &frame);
        match round % 3 {
            0 => vm.restart("scribe")?,
            1 => {
                vm.spare("scribe")?;
                vm.operator()?.swap("scribe")?;
                vm.promoted("scribe")?.wait()?;
            }
            // A successor that maps the same again, which is its predecessor's memory.
            _ => ensure!(scribe.order(Order::Map { gpa: GPA, bytes: BYTES })? == 1),
        }
        ensure!(scribe.order(Order::Count)? == 0);
        let mut seen = vec![0; BYTES as usize];
        vm.platform().read(GPA, &mut seen);
        ensure!(seen == frame, "round {round}: the guest's picture is another one");
    }
    // The core is told before the guest is, and may be later all the same.
    scribe.order(Order::Unmap { gpa: GPA })?;
    let until = Instant::now() + LIMIT;
    while !vm.platform().device_memory().is_empty() {
        ensure!(Instant::now() < until, "it stays");
        thread::sleep(Duration::from_millis(1));
    }
    let mut nothing = [0; 8];
    vm.platform().read(GPA, &mut nothing);
    ensure!(nothing == [0xff; 8] && !vm.platform().try_read_device(GPA, &mut nothing));
    guest.prove(1)
}

#[test]
fn what_is_mapped_ends_with_the_channel_the_guest_or_the_connection() -> anyhow::Result<()> {
    let (mut vm, mut guest) = start()?;
    for how in 0..4 {
        let mut scribe = Scribe::open(&mut guest, 0)?;
        ensure!(scribe.order(Order::Map { gpa: GPA, bytes: BYTES })? == 1);
        ensure!(scribe.order(Order::Map { gpa: VMBUS_HIGH_MMIO_BASE, bytes: 4096 })? == 1);
        ensure!(vm.platform().device_memory().len() == 2);
        match how {
            0 => guest.client.close(scribe.into_channel())?,
            1 => {
                guest.client.unload()?;
                guest = Guest::connect(&vm)?;
            }
            2 => guest = reset(&vm)?,
            _ => {
                // Nobody is there who could consent.
                vm.device("scribe").kill()?;
                vm.device("scribe").wait()?;
                let platform = vm.platform().clone();
                thread::scope(|scope| {
                    let resetting = scope.spawn(|| platform.reset());
                    let until = Instant::now() + LIMIT;
                    while !platform.device_memory().is_empty() {
                        ensure!(Instant::now() < until, "it waits for a process");
                        thread::sleep(Duration::from_millis(1));
                    }
                    vm.restart("scribe")?;
                    resetting.join().map_err(|_| anyhow::anyhow!("no panic"))?
                })?;
            }
        }
        ensure!(vm.platform().device_memory().is_empty(), "{how}");
    }
    Ok(())
}

#[test]
fn a_hostile_device_maps_nothing_that_it_may_not() -> anyhow::Result<()> {
    let vm = Vm::builder().quiet().played("hostile").device_memory(MOST).echo("bystander").start()?;
    let mut guest = Guest::connect(&vm)?;
    let device = vm.played("hostile");
    let own = SharedMemory::create("test", 2 * MOST)?;
    let map = |gpa: u64, bytes: u64, fds: &[&SharedMemory]| -> anyhow::Result<bool> {
        let fds: Vec<_> = fds.iter().map(|memory| memory.as_fd()).collect();
        device.send(&ToCore::MapMemory { gpa, bytes }, &fds)?;
        match device.recv()? {
            (ToVsp::MemoryMapped { gpa: g, result }, _) if g == gpa => Ok(result.is_ok()),
            (other, _) => anyhow::bail!("{other:?}"),
        }
    };
    ensure!(!map(GPA, 4096, &[&own])?, "its channel is closed");
    let offer = guest.offer(0)?;
    let channel = thread::scope(|scope| {
        let opening = scope.spawn(|| guest.client.open(&offer, &bulkhead_tests::steps::small()));
        let (ToVsp::ChannelOpen { channel, .. }, _) = device.recv()? else { anyhow::bail!("no channel") };
        device.send(&ToCore::OpenResult { channel, status: 0, reason: None }, &[])?;
        Ok(opening.join().map_err(|_| anyhow::anyhow!("no panic"))??)
    })?;
    for (gpa, bytes) in [
        (0, 4096),
        (1 << 20, 4096),
        (VMBUS_LOW_MMIO.0 - 4096, 8192),
        (VMBUS_LOW_MMIO.1 - 4095, 8192),
        (0xfee0_0000, 4096),
        (0xfec0_0000, 4096),
        (GPA, MOST + 4096),
        (GPA, u64::MAX),
        (u64::MAX, 4096),
        (GPA + 1, 4096),
    ] {
        ensure!(!map(gpa, bytes, &[&own])?, "{gpa:#x} {bytes:#x}");
    }
    ensure!(!map(GPA, 4096, &[])?);
    ensure!(!map(GPA, 4096, &[&own, &own])?);
    let inside = Mapping::new(&own, 0, 4096)?;
    inside.write(0, b"device's");
    ensure!(map(GPA, 4096, &[&own])?);
    let mut seen = [0; 8];
    vm.platform().read(GPA, &mut seen);
    ensure!(&seen == b"device's");
    vm.platform().write(GPA + 8, b"guest's!");
    inside.read(8, &mut seen);
    ensure!(&seen == b"guest's!");
    ensure!(vm.platform().device_memory() == [(GPA, 4096)]);
    drop(channel);
    guest.prove(1)
}

#[test]
fn notices_come_in_order_and_wait_for_room() -> anyhow::Result<()> {
    let (_vm, mut guest) = start()?;
    let mut scribe = Scribe::open(&mut guest, 0)?;
    // A ring holds some 250 of them.
    for count in [1, 10, 2000] {
        scribe.notices.clear();
        scribe.order(Order::Notify { count })?;
        scribe.wait_for_notices(count as usize, LIMIT)?;
        ensure!(scribe.notices == (1..=count).collect::<Vec<_>>(), "{count}: {}", scribe.notices.len());
    }
    Ok(())
}

/// Orders of all kinds, some with a completion besides. Answers are counted by the device over its whole life, so that a lost or repeated one
/// is found; what it keeps by itself never goes back.
fn live(scribe: &mut Scribe, rounds: u32, seed: u64) -> anyhow::Result<()> {
    let mut dice = Dice(seed);
    let mut saved = 0;
    for round in 0..rounds {
        let mut orders = Vec::new();
        for _ in 0..1 + dice.roll(5) {
            saved += u64::from(dice.roll(3) == 0);
            orders.push(match dice.roll(5) {
                0 => Order::Map { gpa: GPA, bytes: BYTES },
                1 => Order::Notify { count: 1 + u64::from(dice.roll(4)) },
                2 => Order::Save { value: saved },
                _ => Order::Count,
            });
            let completion = dice.roll(2) == 0;
            scribe.send(*orders.last().context("one")?, completion)?;
        }
        for order in orders {
            let value = scribe.answer().with_context(|| format!("round {round}: {order:?}"))?;
            if let Order::Map { .. } = order {
                ensure!(value == 1, "round {round}: not mapped");
            }
            if let Order::Save { value: wanted } = order {
                ensure!(value == wanted, "round {round}: {value} is kept in the place of {wanted}");
            }
        }
    }
    Ok(())
}

#[test]
fn answers_come_once_however_often_a_device_is_killed() -> anyhow::Result<()> {
    let (mut vm, mut guest) = start()?;
    let mut scribe = Scribe::open(&mut guest, 0)?;
    let stop = AtomicBool::new(false);
    let platform = vm.platform().clone();
    thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let mut seed = 1;
            while !stop.load(Ordering::SeqCst) {
                live(&mut scribe, 20, seed)?;
                seed += 1;
            }
            anyhow::Ok(())
        });
        let mut dice = Dice(99);
        let killed = (0..60).try_for_each(|_| {
            thread::sleep(Duration::from_micros(u64::from(dice.roll(6000))));
            vm.restart("scribe")
        });
        stop.store(true, Ordering::SeqCst);
        guest.join().map_err(|_| anyhow::anyhow!("no panic"))??;
        killed
    })?;
    ensure!(platform.device_memory() == [(GPA, BYTES)], "{:?}", platform.device_memory());
    Ok(())
}

#[test]
fn answers_come_once_at_every_kill_point() -> anyhow::Result<()> {
    // Points of what this device does not do: requests in two steps, and adoption, which other tests are about.
    let out_of_reach = |point: &KillPoint| {
        let name = point.name();
        ["begun", "outcome-due", "outcome-noted", "format-due", "formatted", "room-asked", "ended"]
            .contains(&name)
            || name.starts_with("adopt")
    };
    let mut missed = Vec::new();
    for point in KillPoint::ALL.into_iter().chain(KillPoint::NOTICES).filter(|point| !out_of_reach(point)) {
        let mut deaths = 0;
        for count in [1, 4] {
            let (mut vm, mut guest) = start()?;
            let mut scribe = Scribe::open(&mut guest, 0)?;
            vm.restart_with("scribe", &["--kill-point", &format!("{}:{count}", point.name())])?;
            thread::scope(|scope| {
                let guest = scope.spawn(|| live(&mut scribe, 30, 5));
                while !guest.is_finished() {
                    if vm.device("scribe").try_wait()?.is_some() {
                        deaths += 1;
                        vm.restart("scribe")?;
                    }
                    thread::sleep(Duration::from_micros(300));
                }
                guest.join().map_err(|_| anyhow::anyhow!("no panic"))?
            })
            .with_context(|| format!("{point:?}:{count}"))?;
        }
        if deaths == 0 {
            missed.push(point);
        }
    }
    ensure!(missed.is_empty(), "never met: {missed:?}");
    Ok(())
}
