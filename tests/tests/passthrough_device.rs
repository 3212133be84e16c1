//! A PCI function that is passed through, from a guest's driver to hardware that the test plays: the real server and the real device process in
//! their compartments, over deaths, hand-overs, closes and resets; and with a guest that means harm.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    pci::{DEVICE, Handler, Rig, handle},
    process::Process,
    steps::{Dice, LIMIT},
};
use core_vmm::layout::{VMBUS_HIGH_MMIO_BASE, VMBUS_LOW_MMIO};
use vsc::pci::{BusOptions, WINDOW, wire};
use vsc::platform::Platform;
use vsp_pci::mock::Model;

const NIC: (u16, u16) = (0x8086, 0x10d3);

#[test]
fn a_driver_has_its_function() -> anyhow::Result<()> {
    let mut rig = Rig::new(Model::nic())?;
    let mut bus = rig.bus()?;
    let platform = rig.vm.platform().clone();
    ensure!(bus.function().map(|function| function.id) == Some(NIC));
    ensure!(bus.version() == 0x1_0004);
    let registers = bus.bar(0).context("no registers")?;
    // The guest's stores are the hardware's registers, and the other way round.
    platform.write_mmio(registers + 0x400, 4, 0x1234_5678);
    let mut bytes = [0; 4];
    rig.hardware.read(0, 0x400, &mut bytes);
    ensure!(bytes == [0x78, 0x56, 0x34, 0x12]);
    rig.hardware.write(0, 0x1f00, &[9, 8, 7, 6]);
    ensure!(platform.read_mmio(registers + 0x1f00, 4) == 0x0607_0809);
    // All of RAM where the guest has it, in pieces.
    let end = rig.hardware.dma().iter().try_fold(0, |at, (gpa, bytes)| (*gpa == at).then_some(at + bytes));
    ensure!(end == Some(64 << 20), "{:x?}", rig.hardware.dma());
    bus.write_config(4, 2, 0x406)?;
    ensure!(rig.hardware.command() == 0x406);

    let table = bus.enable_msix()?;
    ensure!(table.vectors == 5);
    let mut handlers = Vec::new();
    for number in 0..table.vectors {
        handlers.push(handle(&mut bus, &table, number, (0x41 + number as u8, number % 2), None)?);
    }
    for handler in &handlers {
        rig.interrupts(handler)?;
    }
    // An interrupt goes to another processor, by a new message as the driver has it; and back by the hypercall alone.
    let moved = handle(&mut bus, &table, 1, (0x51, 0), Some(&handlers[1]))?;
    rig.interrupts(&moved)?;
    ensure!(bus.retarget(&moved.message, 0x52, 1 << 1)? == 0);
    rig.interrupts(&Handler { vector: 0x52, vp: 1, ..moved })?;
    ensure!(bus.retarget(&wire::Message { data: 99, ..moved.message }, 0x52, 1)? != 0, "it is nobody's");
    bus.exit()?;
    ensure!(rig.hardware.messages().is_none());
    // The core has been told, and does it at once; it does not say when it has.
    let end = Instant::now() + LIMIT;
    while platform.read_mmio(registers, 4) != 0xffff_ffff {
        ensure!(Instant::now() < end, "the registers are seen still");
    }
    rig.guest.client.close(bus.into_channel())?;
    rig.bus().map(drop)
}

#[test]
fn every_version_and_every_kind_of_function() -> anyhow::Result<()> {
    for version in wire::VERSIONS {
        for model in [Model::nic(), Model::drive(), Model::small()] {
            let mut rig = Rig::new(model.clone())?;
            let options = BusOptions::at(VMBUS_LOW_MMIO.0, VMBUS_HIGH_MMIO_BASE);
            let options = BusOptions { versions: vec![0x1_0009, version], ..options };
            let mut bus = rig.bus_with(&options)?;
            ensure!(bus.version() == version);
            if model.msix.is_some() {
                let table = bus.enable_msix()?;
                let last = table.vectors - 1;
                let handler = handle(&mut bus, &table, last, (0xef, 1), None)?;
                rig.interrupts(&handler)?;
                continue;
            }
            let at = bus.capability(5)?.context("no messages")?;
            let message = bus.create_interrupt(0x20, 8, 0)?;
            bus.write_config(at + 4, 4, message.address as u32)?;
            bus.write_config(at + 8, 4, (message.address >> 32) as u32)?;
            bus.write_config(at + 12, 2, message.data)?;
            bus.write_config(at + 2, 2, 0x31)?;
            for number in 0..8 {
                let one = wire::Message { data: message.data + number, ..message };
                let (vector, vp) = (0x60 + number as u8, number % 2);
                ensure!(bus.retarget(&one, vector, 1 << vp)? == 0);
                rig.interrupts(&Handler { number, message: one, vector, vp })?;
            }
        }
    }
    Ok(())
}

/// Another process serves the device, by one way or another.
fn renew(rig: &mut Rig, how: u64) -> anyhow::Result<()> {
    if how.is_multiple_of(3) {
        rig.vm.spare(DEVICE)?;
        rig.vm.operator()?.swap(DEVICE)?;
        rig.vm.promoted(DEVICE)?.wait()?;
        return Ok(());
    }
    rig.vm.restart(DEVICE)
}

#[test]
fn deaths_and_hand_overs_are_not_noticed() -> anyhow::Result<()> {
    let mut rig = Rig::new(Model::nic())?;
    let mut bus = rig.bus()?;
    let platform = rig.vm.platform().clone();
    let table = bus.enable_msix()?;
    let mut handler = handle(&mut bus, &table, 2, (0x41, 0), None)?;
    let (resets, registers) = (rig.hardware.resets(), bus.bar(0).context("no registers")?);
    for round in 0..12u64 {
        platform.write_mmio(registers + 8, 8, round);
        renew(&mut rig, round)?;
        // At once, whoever serves: interrupts and registers need nobody.
        rig.interrupts(&handler)?;
        ensure!(platform.read_mmio(registers + 8, 8) == round);
        // These have to wait until somebody does.
        ensure!(bus.read_config(0, 4)? == 0x10d3_8086, "round {round}");
        let vp = (round % 2) as u32;
        handler = handle(&mut bus, &table, 2, (0x42 + round as u8, vp), Some(&handler))?;
        rig.interrupts(&handler)?;
    }
    ensure!(rig.hardware.resets() == resets, "the function has not been touched");
    Ok(())
}

#[test]
fn a_storm_of_kills_loses_no_interrupt() -> anyhow::Result<()> {
    let mut rig = Rig::new(Model::nic())?;
    let mut bus = rig.bus()?;
    let platform = rig.vm.platform().clone();
    let table = bus.enable_msix()?;
    let mut handlers = Vec::new();
    for number in 0..3 {
        handlers.push(handle(&mut bus, &table, number, (0x41 + number as u8, 1), None)?);
    }
    let stop = AtomicBool::new(false);
    let Rig { vm, hardware, .. } = &mut rig;
    let (hardware, mut dice) = (&*hardware, Dice(7));
    thread::scope(|scope| {
        let traffic = scope.spawn(|| -> anyhow::Result<u64> {
            let mut heard = 0;
            while !stop.load(Ordering::Relaxed) {
                let handler = &handlers[heard as usize % handlers.len()];
                let before = platform.vector_interrupts(handler.vp, handler.vector);
                ensure!(hardware.interrupt(handler.number as usize));
                platform.wait_vector(handler.vp, handler.vector, before, LIMIT);
                ensure!(platform.vector_interrupts(handler.vp, handler.vector) != before, "one is lost");
                heard += 1;
            }
            Ok(heard)
        });
        let kills = (0..25).try_for_each(|_| {
            thread::sleep(Duration::from_micros(dice.roll(4000).into()));
            vm.restart(DEVICE)?;
            let value = bus.read_config(0, 4)?;
            ensure!(value == 0x10d3_8086, "{value:#x}");
            anyhow::Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let heard = traffic.join().map_err(|_| anyhow::anyhow!("no panic"))??;
        kills?;
        ensure!(heard > 100, "{heard} interrupts");
        Ok(())
    })
}

#[test]
fn whatever_ends_the_function_is_reset() -> anyhow::Result<()> {
    let mut rig = Rig::new(Model::nic())?;
    for round in 0..4 {
        let mut bus = rig.bus()?;
        bus.write_config(4, 2, 0x406)?;
        let table = bus.enable_msix()?;
        rig.interrupts(&handle(&mut bus, &table, 0, (0x41, 0), None)?)?;
        rig.hardware.write(0, 0, b"secret");
        let resets = rig.hardware.resets();
        match round {
            // As a driver leaves, as a kernel that crashes, and with nobody there to see to it.
            0 => rig.guest.client.close(bus.into_channel())?,
            1 => rig.reset()?,
            _ => {
                rig.vm.device(DEVICE).kill()?;
                rig.vm.device(DEVICE).wait()?;
                thread::scope(|scope| -> anyhow::Result<()> {
                    let Rig { vm, guest, .. } = &mut rig;
                    let platform = vm.platform().clone();
                    let reset = scope.spawn(move || platform.reset());
                    thread::sleep(Duration::from_millis(20));
                    vm.restart(DEVICE)?;
                    reset.join().map_err(|_| anyhow::anyhow!("no panic"))??;
                    (0..2).try_for_each(|vp| vm.platform().set_synic(vp, true))?;
                    *guest = bulkhead_tests::steps::Guest::connect(vm)?;
                    Ok(())
                })?;
            }
        }
        let mut bytes = [1; 6];
        rig.hardware.read(0, 0, &mut bytes);
        ensure!(rig.hardware.resets() > resets && bytes == [0; 6], "round {round}");
        ensure!(rig.hardware.messages().is_none() && rig.hardware.command() & 6 == 0, "round {round}");
    }
    // And with the VM.
    rig.bus().map(drop)?;
    let Rig { vm, guest, hardware } = rig;
    ensure!(hardware.is_open());
    drop(guest);
    drop(vm);
    ensure!(hardware.wait_closed(LIMIT) && hardware.command() & 6 == 0);
    Ok(())
}

#[test]
fn an_operator_asks_for_it_and_gets_it() -> anyhow::Result<()> {
    let mut rig = Rig::new(Model::nic())?;
    ensure!(rig.wish(r#"{"eject":{}}"#)?.is_ok(), "nobody has it");
    let mut bus = rig.bus()?;
    thread::scope(|scope| -> anyhow::Result<()> {
        let asked = scope.spawn(|| rig.wish(r#"{"eject":{}}"#));
        while !bus.is_ejected() {
            ensure!(bus.listen(LIMIT)?, "the guest is not asked");
        }
        bus.eject()?;
        let answer = asked.join().map_err(|_| anyhow::anyhow!("no panic"))??;
        ensure!(answer == Ok(r#"{"ejected":true}"#.into()), "{answer:?}");
        Ok(())
    })?;
    ensure!(rig.hardware.command() & 6 == 0);
    ensure!(bus.query_relations()?.is_none(), "the bus is empty");
    Ok(())
}

#[test]
fn a_guest_that_means_harm_harms_itself() -> anyhow::Result<()> {
    let mut rig = Rig::with(Model::nic(), |vm| vm.quiet().echo("bystander"))?;
    let mut bus = rig.bus()?;
    let (platform, mut dice) = (rig.vm.platform().clone(), Dice(3));
    let window = VMBUS_LOW_MMIO.0;
    // Windows and registers in RAM, in the processors' own pages, over each other.
    for place in [0u64, 0x10_0000, 0xfee0_0000, u64::MAX - 0xfff, 0xf800_0001] {
        let answer = bus.ask(&wire::d0_entry(place))?;
        ensure!(wire::status(&answer)? != 0, "{place:#x}");
        bus.enter(window)?;
        bus.write_config(4, 2, 0x402)?;
        for bar in [0x10, 0x14, 0x1c] {
            bus.write_config(bar, 4, place as u32)?;
        }
    }
    bus.place(window + WINDOW, VMBUS_HIGH_MMIO_BASE)?;
    // Every message that there is, and none; and accesses of all kinds, wherever.
    for _ in 0..400 {
        let kind = 0x4249_0000 + dice.roll(0x1e);
        let mut message = kind.to_le_bytes().to_vec();
        let len = dice.roll(120) as usize;
        message.extend((0..len).map(|_| if dice.roll(3) == 0 { dice.roll(256) as u8 } else { 0 }));
        bus.send(&message, false)?;
        let at = window + u64::from(dice.roll(WINDOW as u32 + 0x6_0000));
        let bytes = 1usize << dice.roll(4);
        platform.write_mmio(at, bytes, dice.number());
        platform.read_mmio(at, bytes);
        while bus.channel().poll()?.is_some() {}
    }
    // Interrupts without end: the core's and the function's limits hold.
    for round in 0..300u32 {
        bus.send(
            &wire::create_interrupt(0x1_0004, 0, (round % 256) as u8, 1 << (round % 6), (round % 3) as u16),
            false,
        )?;
        while bus.channel().poll()?.is_some() {}
    }
    ensure!(rig.vm.device(DEVICE).try_wait()?.is_none() && rig.vm.core().try_wait()?.is_none());
    rig.reset()?;
    let mut bus = rig.bus()?;
    let table = bus.enable_msix()?;
    rig.interrupts(&handle(&mut bus, &table, 4, (0x41, 0), None)?)?;
    rig.guest.prove(1)
}

#[test]
fn a_flood_of_interrupts_drowns_nobody() -> anyhow::Result<()> {
    let mut rig = Rig::with(Model::drive(), |vm| vm.echo("bystander"))?;
    let mut bus = rig.bus()?;
    let table = bus.enable_msix()?;
    let handler = handle(&mut bus, &table, 64, (0x41, 0), None)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> anyhow::Result<()> {
        let Rig { hardware, guest, .. } = &mut rig;
        let flood = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                hardware.interrupt(64);
            }
        });
        let lives = (0..50).try_for_each(|_| bus.read_config(0, 4).map(drop));
        let proven = guest.prove(1);
        stop.store(true, Ordering::Relaxed);
        flood.join().map_err(|_| anyhow::anyhow!("no panic"))?;
        lives?;
        proven
    })?;
    rig.interrupts(&handler)
}

#[test]
fn the_process_has_its_function_and_guest_ram_and_nothing_else() -> anyhow::Result<()> {
    let mut rig = Rig::new(Model::small())?;
    let _bus = rig.bus()?;
    let process = Process::new(DEVICE, rig.vm.device(DEVICE).pid());
    process.has_no_privileges()?;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root may look further into a compartment");
        return Ok(());
    }
    process.is_alone()?;
    let memory = process.shared_memory()?;
    let names: Vec<_> = memory.keys().map(String::as_str).collect();
    ensure!(names == ["bulkhead-flags", "bulkhead-ledger", "bulkhead-ram", "bulkhead-ring"], "{names:?}");
    Ok(())
}
