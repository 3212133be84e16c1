//! A guest that breaks the rules of a ring. Its own channel is what breaks, until it closes it: the device's process lives
//! on and serves the channel when it is opened again, and other devices never noticed.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bulkhead_tests::{
    SoftPlatform, Vm,
    steps::{Dice, Guest, LIMIT, exercise, small},
};
use vmbus::{
    packet::{Outgoing, PacketType},
    ring::{ControlWord, PushError, RingMemory},
};
use vsc::{Channel, Error, Platform, echo::Echo};

const PAGE: u64 = 4096;

struct Rig {
    vm: Vm,
    guest: Guest,
    bystander: Echo<SoftPlatform>,
    pids: [u32; 3],
}

impl Rig {
    fn new() -> anyhow::Result<Self> {
        let mut vm = Vm::builder().quiet().echo("victim").echo("bystander").start()?;
        let mut guest = Guest::connect(&vm)?;
        let bystander = guest.echo(1)?;
        let pids = [vm.core().pid(), vm.device("victim").pid(), vm.device("bystander").pid()];
        Ok(Self { vm, guest, bystander, pids })
    }

    fn open(&mut self) -> anyhow::Result<Channel<SoftPlatform>> {
        let offer = self.guest.offer(0)?;
        Ok(self.guest.client.open(&offer, &small())?)
    }

    /// The bystander works while the victim's channel is as it is, that one can be closed, and opens as good as new.
    fn recover(&mut self, broken: Channel<SoftPlatform>) -> anyhow::Result<()> {
        exercise(&mut self.bystander).context("the bystander suffers")?;
        self.guest.client.close(broken).context("the broken channel does not close")?;
        self.guest.prove(0).context("the device does not recover")?;
        exercise(&mut self.bystander).context("the bystander suffers")?;
        for pid in self.pids {
            ensure!(std::fs::exists(format!("/proc/{pid}/exe"))?, "process {pid} has died");
        }
        ensure!(self.vm.device("victim").try_wait()?.is_none() && self.vm.core().try_wait()?.is_none());
        Ok(())
    }
}

/// A word of the control page of the ring to the host, as the guest can write it.
fn poke(channel: &mut Channel<SoftPlatform>, word: ControlWord, value: u32) -> anyhow::Result<()> {
    channel.writer().memory().store(word, value);
    Ok(channel.signal()?)
}

/// Nothing may be answered on this channel any more.
fn is_dead(channel: &mut Channel<SoftPlatform>) -> anyhow::Result<()> {
    match channel.receive(Duration::from_millis(30))? {
        None => Ok(()),
        Some(packet) => bail!("a broken channel was answered: {:?}", packet.header),
    }
}

#[test]
fn write_indices_that_jump() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let len = 3 * PAGE as u32;
    for index in [1, 4, 8, 16, len, len + 8, 2 * len, 0x8000_0000, u32::MAX - 7, u32::MAX] {
        let mut channel = rig.open()?;
        poke(&mut channel, ControlWord::WriteIndex, index)?;
        is_dead(&mut channel).with_context(|| format!("{index:#x}"))?;
        // Even when it is mended: whoever jumped once has lost the channel.
        poke(&mut channel, ControlWord::WriteIndex, 0)?;
        is_dead(&mut channel)?;
        rig.recover(channel).with_context(|| format!("{index:#x}"))?;
    }
    Ok(())
}

#[test]
fn a_write_index_that_goes_backwards() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.open()?;
    for n in 0..10 {
        channel.send(&Outgoing::in_band(n, true), &[&[n as u8; 100]])?;
        channel.receive(LIMIT)?.context("an echo")?;
    }
    // What lies between the read index and there are packets of the past, and then the middle of one.
    poke(&mut channel, ControlWord::WriteIndex, 72)?;
    std::thread::sleep(Duration::from_millis(20));
    rig.recover(channel)
}

#[test]
fn read_indices_that_jump() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let len = 3 * PAGE as u32;
    for index in [1, 4, len, len + 8, 0x8000_0000, u32::MAX] {
        let mut channel = rig.open()?;
        channel.reader().memory().store(ControlWord::ReadIndex, index);
        // Enough answers that the device has to look at it.
        for n in 0..60 {
            match channel.send(&Outgoing::in_band(n, true), &[&[1; 150]]) {
                Ok(()) | Err(Error::Push(PushError::Full { .. })) => {}
                Err(e) => return Err(e.into()),
            }
        }
        std::thread::sleep(Duration::from_millis(20));
        rig.recover(channel).with_context(|| format!("{index:#x}"))?;
    }
    Ok(())
}

#[test]
fn the_devices_own_words_are_not_believed() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = Echo::new(rig.open()?);
    // The device keeps its positions to itself; what the guest writes over them changes nothing for it.
    for value in [0, 8, 3, 4096, u32::MAX] {
        channel.channel().reader().memory().store(ControlWord::WriteIndex, value);
        channel.channel().writer().memory().store(ControlWord::ReadIndex, value);
        let _ = channel.send(b"anything", Duration::from_millis(5));
        std::thread::sleep(Duration::from_millis(5));
    }
    rig.recover(channel.into_channel())
}

#[test]
fn masks_and_sizes_of_all_kinds() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    for value in [1, 2, 0x8000_0000, u32::MAX] {
        let mut channel = rig.open()?;
        for word in [ControlWord::PendingSendSize, ControlWord::FeatureBits, ControlWord::InterruptMask] {
            poke(&mut channel, word, value)?;
            channel.reader().memory().store(word, value);
        }
        for n in 0..50 {
            channel.send(&Outgoing::in_band(n, true), &[b"anything"])?;
        }
        channel.signal()?;
        // The guest asked for silence and gets it, but the answers are in the ring.
        let limit = Instant::now() + LIMIT;
        let mut answers = 0;
        while answers < 50 {
            answers += u64::from(channel.poll()?.is_some());
            ensure!(Instant::now() < limit, "{answers} answers");
        }
        rig.recover(channel)?;
    }
    Ok(())
}

/// Writes a descriptor as it is, then shows `visible` bytes.
fn descriptor(
    channel: &mut Channel<SoftPlatform>,
    (kind, data_offset8, len8): (u16, u16, u16),
    visible: u32,
) -> anyhow::Result<()> {
    let mut bytes = [0; 16];
    for (at, value) in [(0, kind), (2, data_offset8), (4, len8), (6, 1)] {
        bytes[at..at + 2].copy_from_slice(&u16::to_le_bytes(value));
    }
    channel.writer().memory().write(0, &bytes);
    poke(channel, ControlWord::WriteIndex, visible)
}

#[test]
fn lengths_that_lie() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    for (offset8, len8) in [
        (0, 0),
        (2, 0),
        (0, 2),
        (2, 1),
        (1, 3),
        (4, 3),
        (3, 2),
        (u16::MAX, u16::MAX),
        (2, u16::MAX),
        (u16::MAX, 3),
    ] {
        let mut channel = rig.open()?;
        descriptor(&mut channel, (6, offset8, len8), 64)?;
        is_dead(&mut channel).with_context(|| format!("{offset8} {len8}"))?;
        rig.recover(channel).with_context(|| format!("{offset8} {len8}"))?;
    }
    // Longer than what is there by one word.
    for len8 in [7, 8, 9, 100] {
        let mut channel = rig.open()?;
        descriptor(&mut channel, (6, 2, len8), 56)?;
        is_dead(&mut channel).with_context(|| format!("{len8}"))?;
        rig.recover(channel)?;
    }
    Ok(())
}

#[test]
fn packets_of_every_type_are_answered() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.open()?;
    for kind in (0..64).chain([255, 256, 0x7fff, u16::MAX]) {
        let packet = Outgoing { packet_type: PacketType(kind), ..Outgoing::in_band(u64::from(kind), true) };
        channel.send(&packet, &[&[7; 40]])?;
        let answer = channel.receive(LIMIT)?.with_context(|| format!("no answer to type {kind}"))?;
        ensure!(answer.header.transaction_id == u64::from(kind));
    }
    // One that wants no answer gets none.
    channel.send(&Outgoing::in_band(1, false), &[b"a note"])?;
    is_dead(&mut channel)?;
    rig.recover(channel)
}

#[test]
fn an_answer_that_can_never_fit() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let offer = rig.guest.offer(0)?;
    let options = vsc::OpenOptions { to_host_pages: 32, to_guest_pages: 2, ..small() };
    let mut channel = rig.guest.client.open(&offer, &options)?;
    channel.send(&Outgoing::in_band(1, true), &[&[1; 30_000]])?;
    is_dead(&mut channel)?;
    rig.recover(channel)
}

#[test]
fn packets_of_any_length_that_fits_or_not() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let offer = rig.guest.offer(0)?;
    let options = vsc::OpenOptions { to_host_pages: 256, to_guest_pages: 256, ..small() };
    let mut echo = Echo::open(&mut rig.guest.client, &offer, &options)?;
    for len in [1, 4095, 4096, 4097, 20_000, 40 * 1024 - 16] {
        echo.echo(&vec![3; len], LIMIT).with_context(|| format!("{len} bytes"))?;
    }
    // Beyond what a device takes.
    echo.send(&vec![3; 40 * 1024], LIMIT)?;
    let mut channel = echo.into_channel();
    is_dead(&mut channel)?;
    rig.recover(channel)
}

#[test]
fn completions_that_nobody_collects() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.open()?;
    // Until nothing fits any more: both rings are full and the device waits.
    let (mut sent, mut stuck) = (0, 0);
    while stuck < 50 {
        match channel.send(&Outgoing::in_band(sent, true), &[&[5; 80]]) {
            Ok(()) => (sent, stuck) = (sent + 1, 0),
            Err(Error::Push(PushError::Full { .. })) => {
                stuck += 1;
                channel.signal()?;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(e.into()),
        }
    }
    ensure!(sent > 100, "{sent}");
    exercise(&mut rig.bystander).context("the bystander suffers")?;
    // Whoever collects late gets all of them, each once and in order.
    for id in 0..sent {
        let answer = channel.receive(LIMIT)?.with_context(|| format!("answer {id} of {sent} is lost"))?;
        ensure!(answer.header.transaction_id == id, "{} instead of {id}", answer.header.transaction_id);
    }
    is_dead(&mut channel)?;
    // And one that never collects can still close.
    while channel.send(&Outgoing::in_band(0, true), &[&[5; 80]]).is_ok() {}
    std::thread::sleep(Duration::from_millis(10));
    while channel.send(&Outgoing::in_band(0, true), &[&[5; 80]]).is_ok() {}
    rig.recover(channel)
}

#[test]
fn storms_of_packets_and_doorbells() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut channel = rig.open()?;
    let connection = channel.offer().connection_id;
    let stop = AtomicBool::new(false);
    let platform = rig.vm.platform().clone();
    let (storm, slowest) = std::thread::scope(|scope| {
        let doorbells = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..100 {
                    let _ = platform.signal_event(connection);
                }
                std::thread::yield_now();
            }
        });
        let storm = scope.spawn(|| -> anyhow::Result<u64> {
            let mut answers = 0;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..20 {
                    match channel.push(&Outgoing::in_band(1, true), &[]) {
                        Ok(()) | Err(Error::Push(PushError::Full { .. })) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                channel.flush()?;
                while channel.poll()?.is_some() {
                    answers += 1;
                }
                std::thread::yield_now();
            }
            Ok(answers)
        });
        let mut slowest = Duration::ZERO;
        let start = Instant::now();
        let mut result = Ok(());
        while result.is_ok() && start.elapsed() < Duration::from_secs(1) {
            let before = Instant::now();
            result = rig.bystander.echo(b"still there?", LIMIT);
            slowest = slowest.max(before.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        drop(doorbells.join());
        let storm = storm.join().expect("no panic");
        result?;
        Ok::<_, anyhow::Error>((storm?, slowest))
    })?;
    ensure!(storm > 1000, "{storm} answers are no storm");
    ensure!(slowest < Duration::from_secs(2), "the bystander waited {slowest:?}");
    rig.recover(channel)
}

#[test]
fn rings_that_are_broken_before_they_are_opened() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let relid = rig.guest.offer(0)?.relid;
    let platform = rig.vm.platform().clone();
    let address = platform.allocate(8).map_err(anyhow::Error::from_boxed)?;
    let mut dice = Dice(11);
    for round in 0..60 {
        let mut pages = vec![0; 8 * PAGE as usize];
        match round {
            0..30 => dice.fill(&mut pages),
            // Good numbers, and garbage in the rings behind them.
            _ => {
                dice.fill(&mut pages[PAGE as usize..4 * PAGE as usize]);
                for page in [0, 4 * PAGE as usize] {
                    pages[page..page + 4].copy_from_slice(&(dice.roll(1500) * 8).to_le_bytes());
                    pages[page + 4..page + 8].copy_from_slice(&(dice.roll(1500) * 8).to_le_bytes());
                }
            }
        }
        platform.write(address, &pages);
        let gpadl = rig.guest.client.establish_gpadl(relid, address, 8)?;
        let request = vmbus::message::OpenChannel {
            relid,
            open_id: round,
            ring_gpadl: gpadl.id,
            target_vp: 1,
            downstream_page_offset: 4,
            user_data: [0xff; 120],
        };
        rig.guest.client.post(&vmbus::message::GuestMessage::OpenChannel(request))?;
        let answer = rig.guest.client.next_message(LIMIT)?.context("no answer")?;
        let vmbus::message::HostMessage::OpenResult(result) = answer else { bail!("{answer:?}") };
        ensure!(result.open_id == round);
        if result.status == 0 {
            rig.guest.client.post(&vmbus::message::GuestMessage::CloseChannel(relid))?;
        } else {
            ensure!(round < 30, "rings with good indices are opened");
        }
        rig.guest.client.teardown_gpadl(relid, gpadl.id)?;
    }
    exercise(&mut rig.bystander)?;
    rig.guest.prove(0)
}

#[test]
fn rings_that_change_under_the_devices_hands() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    for seed in 1..=8 {
        let mut channel = rig.open()?;
        let address = channel.gpadl().address;
        let ram = rig.vm.platform().ram().clone();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| -> anyhow::Result<()> {
            // One thread scribbles over descriptors, payloads and, half of the time, indices...
            scope.spawn(|| {
                let mut dice = Dice(seed);
                while !stop.load(Ordering::Relaxed) {
                    let mut word = dice.number().to_le_bytes();
                    let mut at = u64::from(dice.roll(8 * PAGE as u32 - 8)) & !7;
                    if seed % 2 == 0 && at % (4 * PAGE) < PAGE {
                        at += PAGE;
                    }
                    if dice.roll(4) > 0 {
                        word = (6 | 2 << 16 | u64::from(dice.roll(40)) << 32 | 1 << 48).to_le_bytes();
                    }
                    let _ = ram.write(address + at, &word);
                }
            });
            // ...while another one sends as if nothing was amiss.
            let until = Instant::now() + Duration::from_millis(150);
            while Instant::now() < until {
                let _ = channel.send(&Outgoing::in_band(1, true), &[&[1; 60]]);
                let _ = channel.signal();
                let _ = channel.reader().publish();
            }
            exercise(&mut rig.bystander).context("the bystander suffers")?;
            stop.store(true, Ordering::Relaxed);
            Ok(())
        })?;
        rig.recover(channel).with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}
