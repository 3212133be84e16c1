//! What the core does for devices of the host's that are passed through: traps, regions, interrupts, kept descriptors, devices that come and go. The real server in
//! its compartment, a real process in its own, over deaths, hand-overs, closes and resets; and one that is hostile.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    SoftPlatform, Vm,
    passer::{BYTES, Passer, Wish, register},
    steps::{Dice, Guest, LIMIT, small},
};
use core_vmm::{
    hypercall::{RETARGET_INTERRUPT, device_id},
    layout::{VMBUS_HIGH_MMIO_BASE, VMBUS_LOW_MMIO},
};
use ipc::{
    config::DeviceSlot,
    event::Doorbell,
    message::{ToCore, ToVsp},
    operator::{Reply, Request},
    shm::SharedMemory,
};
use vmbus::message::HostMessage;
use vsc::platform::Platform;

const GPA: u64 = VMBUS_LOW_MMIO.0 + 0x10_0000;
const PAGE: u64 = 4096;
const TRAP: Wish = Wish::Trap { gpa: GPA, bytes: 2 * PAGE };

fn start() -> anyhow::Result<(Vm, Guest)> {
    let vm = Vm::builder().quiet().passing_device("pass").echo("bystander").start()?;
    let guest = Guest::connect(&vm)?;
    Ok((vm, guest))
}

fn reset(vm: &Vm) -> anyhow::Result<Guest> {
    vm.platform().reset()?;
    (0..2).try_for_each(|vp| vm.platform().set_synic(vp, true))?;
    Guest::connect(vm)
}

/// Another process serves the device, by one way or another.
fn renew(vm: &mut Vm, how: u32) -> anyhow::Result<()> {
    if how.is_multiple_of(2) {
        return vm.restart("pass");
    }
    let operator = vm.operator()?;
    // Or the spare might be the first to come.
    operator.wait("pass", "served", |device| device.serving)?;
    vm.spare("pass")?;
    let reply = operator.swap("pass")?;
    ensure!(matches!(reply, Reply::Swapped { .. }), "{reply:?}");
    vm.promoted("pass")?.wait()?;
    Ok(())
}

/// Waits until a thing is so.
fn until(what: &str, is: impl Fn() -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + LIMIT;
    while !is() {
        ensure!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[test]
fn a_device_answers_the_guest_over_deaths_and_hand_overs() -> anyhow::Result<()> {
    let (mut vm, mut guest) = start()?;
    let platform = vm.platform().clone();
    ensure!(platform.read_mmio(GPA, 4) == 0xffff_ffff, "nothing is there");
    let mut passer = Passer::open(&mut guest, 0)?;
    passer.has(TRAP)?;
    ensure!(platform.read_mmio(GPA + register::NONE, 4) == register::NONE << 8 | 4);
    for round in 0..6u32 {
        let value = 0x1122_3344_5566_0000 + u64::from(round);
        platform.write_mmio(GPA + register::KEEPS, 8, value);
        renew(&mut vm, round)?;
        // At once: the VP waits for whoever comes.
        ensure!(platform.read_mmio(GPA + register::KEEPS, 8) == value, "round {round}");
        ensure!(platform.read_mmio(GPA + PAGE + register::KEEPS, 2) == value & 0xffff);
        ensure!(passer.wish(Wish::Lives)? == u64::from(round) + 2);
    }
    ensure!(platform.read_mmio(GPA + 2 * PAGE, 4) == 0xffff_ffff, "behind it is nothing");
    passer.has(Wish::Untrap { gpa: GPA })?;
    ensure!(platform.read_mmio(GPA, 4) == 0xffff_ffff);
    guest.prove(1)
}

#[test]
fn odd_accesses_come_in_pieces() -> anyhow::Result<()> {
    let (vm, mut guest) = start()?;
    let mut passer = Passer::open(&mut guest, 0)?;
    passer.has(TRAP)?;
    let none = register::NONE;
    let piece = |at: u64, len: usize| (at << 8 | len as u64).to_le_bytes()[..len].to_vec();
    for (at, pieces) in [
        (none, vec![(none, 8)]),
        (none + 1, vec![(none + 1, 1), (none + 2, 2), (none + 4, 4), (none + 8, 1)]),
        (none + 4, vec![(none + 4, 4), (none + 8, 4)]),
    ] {
        let mut seen = [0; 8];
        vm.platform().read(GPA + at, &mut seen);
        let expected: Vec<u8> = pieces.into_iter().flat_map(|(at, len)| piece(at, len)).collect();
        ensure!(seen[..] == expected, "{at}: {seen:x?}");
    }
    // Over the end of what is trapped.
    let mut seen = [0; 4];
    vm.platform().read(GPA + 2 * PAGE - 2, &mut seen);
    ensure!(seen[2..] == [0xff; 2]);
    Ok(())
}

#[test]
fn a_process_that_dies_of_an_access_is_followed_by_one_that_is_asked_again() -> anyhow::Result<()> {
    for spare in [false, true] {
        let (mut vm, mut guest) = start()?;
        let mut passer = Passer::open(&mut guest, 0)?;
        passer.has(TRAP)?;
        if spare {
            vm.spare("pass")?;
            vm.operator()?.wait("pass", "stood by for", |device| device.standby)?;
        }
        let platform = vm.platform().clone();
        let lives = thread::scope(|scope| {
            let read = scope.spawn(|| platform.read_mmio(GPA + register::KILLS, 8));
            vm.device("pass").wait()?;
            if !spare {
                vm.restart("pass")?;
            }
            read.join().map_err(|_| anyhow::anyhow!("no panic"))
        })?;
        ensure!(lives == 2, "{lives}");
        ensure!(passer.wish(Wish::Lives)? == 2);
    }
    Ok(())
}

#[test]
fn a_vp_does_not_wait_for_ever() -> anyhow::Result<()> {
    for how in 0..4 {
        let (mut vm, mut guest) = start()?;
        let mut passer = Passer::open(&mut guest, 0)?;
        passer.has(TRAP)?;
        let platform = vm.platform().clone();
        thread::scope(|scope| {
            let read = scope.spawn(|| platform.read_mmio(GPA + register::STALLS, 4));
            // It has asked, and is not answered.
            passer.wish(Wish::Lives)?;
            thread::sleep(Duration::from_millis(20));
            ensure!(!read.is_finished(), "{how}");
            match how {
                0 => guest.client.close(passer.into_channel())?,
                1 => passer.has(Wish::Untrap { gpa: GPA })?,
                2 => drop(reset(&vm)?),
                _ => {
                    // Nobody is there.
                    vm.device("pass").kill()?;
                    vm.device("pass").wait()?;
                    guest.client.unload()?;
                }
            }
            let value = read.join().map_err(|_| anyhow::anyhow!("no panic"))?;
            ensure!(value == 0xffff_ffff, "{how}: {value:#x}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_guest_sees_the_hosts_device_and_lives_on_when_it_does_not_answer() -> anyhow::Result<()> {
    let (mut vm, mut guest) = start()?;
    let mut passer = Passer::open(&mut guest, 0)?;
    let platform = vm.platform().clone();
    let high = VMBUS_HIGH_MMIO_BASE + (1 << 30);
    passer.has(Wish::Region { gpa: GPA, bytes: 2 * PAGE, offset: PAGE })?;
    passer.has(Wish::Region { gpa: high, bytes: BYTES, offset: 0 })?;
    passer.has(Wish::Trap { gpa: GPA + 2 * PAGE, bytes: PAGE })?;
    ensure!(platform.device_memory() == [(GPA, 2 * PAGE), (high, BYTES)]);
    platform.write(GPA + 8, b"registers");
    let mut seen = [0; 9];
    platform.read(high + PAGE + 8, &mut seen);
    ensure!(&seen == b"registers", "it is the same device, from its second page on");
    renew(&mut vm, 0)?;
    platform.read(GPA + 8, &mut seen);
    ensure!(&seen == b"registers", "the guest has it whoever serves");
    ensure!(passer.wish(Wish::Region { gpa: GPA + PAGE, bytes: 2 * PAGE, offset: 0 })? == 0, "in the way");
    ensure!(passer.wish(Wish::Region { gpa: 0x10_0000, bytes: PAGE, offset: 0 })? == 0, "that is RAM");

    ensure!(platform.region_fault(Some(GPA + 16))?);
    ensure!(platform.device_memory() == [(high, BYTES)]);
    ensure!(platform.read_mmio(GPA + 16, 4) == 0xffff_ffff && passer.wish(Wish::Lost)? == 1);
    ensure!(platform.region_fault(None)? && platform.device_memory().is_empty());
    ensure!(passer.wish(Wish::Lost)? == 2);
    ensure!(!platform.region_fault(None)?, "that was something else");
    passer.has(Wish::Region { gpa: GPA, bytes: PAGE, offset: PAGE })?;
    ensure!(platform.read_mmio(GPA + 8, 1) == u64::from(b'r'));
    guest.client.close(passer.into_channel())?;
    ensure!(platform.device_memory().is_empty());
    guest.prove(1)
}

/// The guest's own idea of the device in hypercalls.
fn device_number(guest: &Guest) -> anyhow::Result<u64> {
    Ok(u64::from(device_id(guest.offer(0)?.instance.to_wire())))
}

/// What `hv_arch_irq_unmask` does; `set`: with the form of protocol 1.2.
fn retarget(
    platform: &SoftPlatform,
    input: u64,
    (device, id): (u64, u32),
    (vp, vector): (u32, u32),
    set: bool,
) -> anyhow::Result<u64> {
    let mut bytes = Vec::new();
    bytes.extend(u64::MAX.to_le_bytes());
    bytes.extend(device.to_le_bytes());
    bytes.extend(
        [1, 0, 0xfee0_0000, id, 0, 0, vector, if set { 2 } else { 0 }].iter().flat_map(|w| w.to_le_bytes()),
    );
    let target = if set { vec![0, 1, 1u64 << vp] } else { vec![1u64 << vp] };
    bytes.extend(target.iter().flat_map(|long| long.to_le_bytes()));
    platform.write(input, &bytes);
    let control = u64::from(RETARGET_INTERRUPT) | (target.len() as u64 - 1) << 17;
    platform.hypercall(control, input).map_err(anyhow::Error::from_boxed)
}

#[test]
fn interrupts_come_where_the_guest_wants_them() -> anyhow::Result<()> {
    let (mut vm, mut guest) = start()?;
    let mut passer = Passer::open(&mut guest, 0)?;
    let platform = vm.platform().clone();
    let device = device_number(&guest)?;
    let input = platform.allocate(1).map_err(anyhow::Error::from_boxed)?;
    let rings = |passer: &mut Passer, id: u64, vp: u32, vector: u8| -> anyhow::Result<()> {
        let before = platform.vector_interrupts(vp, vector);
        passer.has(Wish::Ring { id })?;
        platform.wait_vector(vp, vector, before, LIMIT);
        ensure!(platform.vector_interrupts(vp, vector) == before + 1, "{id} does not come to {vp}, {vector}");
        Ok(())
    };
    passer.has(Wish::Interrupt { id: 0, vector: 40, vp: 0 })?;
    passer.has(Wish::Interrupt { id: 2, vector: 41, vp: 1 })?;
    rings(&mut passer, 0, 0, 40)?;
    rings(&mut passer, 2, 1, 41)?;
    for (n, set) in [(0, false), (1, true)] {
        let vector = 50 + n;
        ensure!(retarget(&platform, input, (device, 0), (1, vector), set)? == 0);
        rings(&mut passer, 0, 1, vector as u8)?;
        renew(&mut vm, n)?;
        rings(&mut passer, 0, 1, vector as u8)?;
    }
    // As the guest's arithmetic has it.
    ensure!(retarget(&platform, input, (device | !0 << 32 | 5, 2), (0, 60), true)? == 0);
    rings(&mut passer, 2, 0, 60)?;
    const INVALID_PARAMETER: u64 = 5;
    for (device, id, vp, vector) in [
        (device, 1, 0, 50),
        (device ^ 8, 0, 0, 50),
        (device, 0, 2, 50),
        (device, 0, 0, 8),
        (device, 0, 0, 300),
    ] {
        let status = retarget(&platform, input, (device, id), (vp, vector), false)?;
        ensure!(status == INVALID_PARAMETER, "{device:#x} {id} {vp} {vector}: {status}");
    }
    for bad in [Wish::Interrupt { id: 1, vector: 15, vp: 0 }, Wish::Interrupt { id: 1, vector: 40, vp: 2 }] {
        ensure!(passer.wish(bad)? == 0, "{bad:?}");
    }
    passer.has(Wish::Delete { id: 2 })?;
    ensure!(retarget(&platform, input, (device, 2), (0, 60), true)? == INVALID_PARAMETER);
    let mut guest = reset(&vm)?;
    ensure!(
        retarget(&platform, input, (device, 0), (0, 60), true)? == INVALID_PARAMETER,
        "they end with the guest"
    );
    guest.prove(1)
}

#[test]
fn the_guest_notices_no_death_at_any_moment() -> anyhow::Result<()> {
    let (mut vm, mut guest) = start()?;
    let mut passer = Passer::open(&mut guest, 0)?;
    passer.has(TRAP)?;
    passer.has(Wish::Interrupt { id: 0, vector: 40, vp: 0 })?;
    let platform = vm.platform().clone();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let accesses = scope.spawn(|| {
            let mut n = 0u64;
            while !stop.load(Ordering::SeqCst) {
                n += 1;
                platform.write_mmio(GPA + register::KEEPS, 8, n);
                ensure!(platform.read_mmio(GPA + register::KEEPS, 8) == n, "access {n} is lost");
            }
            Ok(n)
        });
        let mut dice = Dice(3);
        let killed = (0..40).try_for_each(|round| {
            thread::sleep(Duration::from_micros(u64::from(dice.roll(4000))));
            renew(&mut vm, u32::from(round % 8 == 7))
        });
        stop.store(true, Ordering::SeqCst);
        let accesses = accesses.join().map_err(|_| anyhow::anyhow!("no panic"))??;
        ensure!(accesses > 40, "{accesses}");
        killed
    })?;
    let before = platform.vector_interrupts(0, 40);
    passer.has(Wish::Ring { id: 0 })?;
    platform.wait_vector(0, 40, before, LIMIT);
    ensure!(platform.vector_interrupts(0, 40) > before);
    Ok(())
}

#[test]
fn a_hostile_device_gets_nothing_that_it_may_not_have() -> anyhow::Result<()> {
    let vm = Vm::builder().quiet().played("hostile").passthrough().echo("bystander").start()?;
    let mut guest = Guest::connect(&vm)?;
    let device = vm.played("hostile");
    let own = SharedMemory::create("test", 16 * PAGE)?;
    let bell = Doorbell::new()?;
    let ask = |message: ToCore, fds: &[BorrowedFd<'_>]| -> anyhow::Result<bool> {
        device.send(&message, fds)?;
        match device.recv()?.0 {
            ToVsp::MemoryMapped { result, .. }
            | ToVsp::Trapped { result, .. }
            | ToVsp::InterruptReady { result, .. } => Ok(result.is_ok()),
            other => anyhow::bail!("{other:?}"),
        }
    };
    let trap = |gpa, bytes| ask(ToCore::Trap { gpa, bytes }, &[]);
    let region = |gpa, bytes, offset| ask(ToCore::MapRegion { gpa, bytes, offset }, &[own.as_fd()]);
    let interrupt = |id, vector, vp| ask(ToCore::Interrupt { id, vector, vp }, &[bell.as_fd()]);
    ensure!(!trap(GPA, PAGE)? && !region(GPA, PAGE, 0)? && !interrupt(0, 32, 0)?, "its channel is closed");
    let offer = guest.offer(0)?;
    let channel = thread::scope(|scope| {
        let opening = scope.spawn(|| guest.client.open(&offer, &small()));
        let (ToVsp::ChannelOpen { channel, .. }, _) = device.recv()? else { anyhow::bail!("no channel") };
        device.send(&ToCore::OpenResult { channel, status: 0, reason: None }, &[])?;
        Ok(opening.join().map_err(|_| anyhow::anyhow!("no panic"))??)
    })?;
    for (gpa, bytes) in [
        (0, PAGE),
        (VMBUS_LOW_MMIO.0 - PAGE, 2 * PAGE),
        (VMBUS_LOW_MMIO.1 - 4095, 2 * PAGE),
        (0xfee0_0000, PAGE),
        (GPA, 0),
        (GPA, u64::MAX),
        (u64::MAX, PAGE),
        (GPA + 8, PAGE),
        (GPA, PAGE + 8),
    ] {
        ensure!(!trap(gpa, bytes)? && !region(gpa, bytes, 0)?, "{gpa:#x} {bytes:#x}");
    }
    ensure!(!region(GPA, PAGE, 5)? && !region(GPA, PAGE, u64::MAX - 4095)?);
    ensure!(trap(GPA, 4 * PAGE)? && !trap(GPA + PAGE, PAGE)? && !region(GPA + 3 * PAGE, 2 * PAGE, 0)?);
    for (vector, vp) in [(0, 0), (15, 0), (32, 2), (32, u32::MAX)] {
        ensure!(!interrupt(0, vector, vp)?, "{vector} {vp}");
    }
    for id in 0..128 {
        ensure!(interrupt(id * 1000, 255, 1)?, "{id}");
    }
    ensure!(!interrupt(1, 32, 0)?, "that is too many");
    device.send(&ToCore::AccessDone { id: 3, value: 1 }, &[])?;
    let platform = vm.platform().clone();
    thread::scope(|scope| {
        let read = scope.spawn(|| platform.read_mmio(GPA, 4));
        let (ToVsp::Access { id, .. }, _) = device.recv()? else { anyhow::bail!("not asked") };
        for wrong in [id + 1, id - 1, u64::MAX] {
            device.send(&ToCore::AccessDone { id: wrong, value: 1 }, &[])?;
        }
        device.send(&ToCore::AccessDone { id, value: u64::MAX - 7 }, &[])?;
        ensure!(read.join().map_err(|_| anyhow::anyhow!("no panic"))? == 0xffff_fff8);
        // One more, and then it goes too far.
        let read = scope.spawn(|| platform.read_mmio(GPA, 4));
        let (ToVsp::Access { .. }, _) = device.recv()? else { anyhow::bail!("not asked") };
        let operator = vm.operator()?;
        for key in 0..=64 {
            device.send(&ToCore::Keep { key, note: String::new() }, &[bell.as_fd()])?;
        }
        let (name, reason) = operator.cut_off()?;
        ensure!(name == "hostile", "{name}: {reason}");
        ensure!(!read.is_finished(), "it waits for the next one");
        guest.client.unload()?;
        ensure!(read.join().map_err(|_| anyhow::anyhow!("no panic"))? == 0xffff_ffff);
        Ok(())
    })?;
    drop(channel);
    Guest::connect(&vm)?.prove(1)
}

#[test]
fn a_device_comes_and_goes_while_the_vm_runs() -> anyhow::Result<()> {
    let (mut vm, mut guest) = start()?;
    let operator = vm.operator()?;
    let name = "late".to_owned();
    let slot = DeviceSlot {
        name: name.clone(),
        instance: "b01ce4ad-0000-4000-8000-000000000009".into(),
        uid: None,
        guest_ram: false,
        fetch: false,
        device_memory: 0,
        passthrough: true,
    };
    for round in 0..5 {
        let added = operator.ask(&Request::DeviceAdd { slot: slot.clone() })?;
        ensure!(added == Reply::Added { device: name.clone() }, "round {round}: {added:?}");
        ensure!(matches!(operator.ask(&Request::DeviceAdd { slot: slot.clone() })?, Reply::Failed { .. }));
        vm.play(&name)?;
        until("it is offered", || vm.operator().is_ok_and(|o| o.device("late").is_ok()))?;
        let messages = guest.drain()?;
        let offers = messages.iter().filter(|m| matches!(m, HostMessage::Offer(_))).count();
        ensure!(offers == 1, "{messages:?}");
        let removed = operator.ask(&Request::DeviceRemove { device: name.clone(), force: false })?;
        ensure!(removed == Reply::Removed { device: name.clone() }, "round {round}: {removed:?}");
        let (retire, _) = vm.played(&name).recv::<ToVsp>()?;
        ensure!(retire == ToVsp::Retire {});
        let rescinded = |m: &HostMessage| match m {
            HostMessage::RescindOffer(relid) => Some(*relid),
            _ => None,
        };
        let relid = guest.drain()?.iter().find_map(rescinded).context("not rescinded")?;
        guest.client.release_relid(relid)?;
    }
    // One that the guest uses.
    let mut passer = Passer::open(&mut guest, 0)?;
    passer.has(TRAP)?;
    let held = operator.ask(&Request::DeviceRemove { device: "pass".into(), force: false })?;
    ensure!(matches!(held, Reply::Failed { .. }), "{held:?}");
    passer.has(Wish::Region { gpa: GPA + 4 * PAGE, bytes: PAGE, offset: 0 })?;
    let gone = operator.ask(&Request::DeviceRemove { device: "pass".into(), force: true })?;
    ensure!(gone == Reply::Removed { device: "pass".into() }, "{gone:?}");
    ensure!(vm.platform().device_memory().is_empty() && vm.platform().read_mmio(GPA, 1) == 0xff);
    ensure!(vm.device("pass").wait()?.code() == Some(0), "it was told to end");
    guest.prove(1)
}
