//! Device processes that die or are replaced while the guest works: it notices a pause, and nothing else.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    SoftPlatform, Vm,
    disk::Disk,
    load::{Load, Shape, Tally},
    steps::{Dice, Guest, LIMIT, exercise},
};
use ipc::{
    message::{MAX_SUBCHANNELS, PREPARE_VERSION, STATUS_LEDGER, ToCore, ToVsp, VERSIONS, Versions},
    operator::Reply,
    socket::Peer,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vmbus::{
    message::HostMessage,
    ring::{ControlWord, RingMemory},
};
use vsc::{
    Error, OpenOptions,
    storage::{
        Buffer, Storage, StorageOptions,
        scsi::{opcode, read_10, read_16, write_16},
        wire::{self, Direction, StoragePacket},
    },
};

const SIZE: u64 = 8 << 20;
const BLOCK: u32 = 512;

fn signal(child: &sandbox::spawn::Child, signal: Signal) -> anyhow::Result<()> {
    Ok(kill(Pid::from_raw(child.pid() as i32), signal)?)
}

/// A VM with one disk, and a guest that works on it through `queues` channels.
fn loaded(queues: usize, seed: u64) -> anyhow::Result<(Disk, Vm, Guest, Load)> {
    let disk = Disk::new(SIZE)?;
    // A controller has no more channels than the guest has processors.
    let vm = Vm::builder().vps(4).storage("disk0", &[disk.argument("")]).start()?;
    let mut guest = Guest::connect(&vm)?;
    let offer = guest.offer(0)?;
    let load =
        Load::start(&mut guest.client, &offer, Shape { queues, ..Shape::FULL }, Load::blocks(SIZE), seed)?;
    ensure!(load.pulse.wait_beats(100, LIMIT), "the load does not get going");
    Ok((disk, vm, guest, load))
}

/// Ends the load; everything has to be right, and the device as usable as any.
fn finish(disk: &Disk, guest: &mut Guest, load: Load) -> anyhow::Result<Tally> {
    let (tally, storages) = load.finish(disk)?;
    ensure!(tally.is_clean(), "{tally:#?}");
    for storage in storages.into_iter().rev() {
        guest.client.close(storage.into_channel()?)?;
    }
    // Sub-channels go with the channel that they belong to, and that is all that the guest is ever told.
    let told = guest.drain_quickly()?;
    ensure!(told.iter().all(|message| matches!(message, HostMessage::RescindOffer(_))), "{told:?}");
    let offer = guest.offer(0)?;
    let mut storage = Storage::open(&mut guest.client, &offer, &StorageOptions::default())?;
    storage.test_unit_ready(0)?;
    guest.client.close(storage.into_channel()?)?;
    ensure!(guest.drain_quickly()?.is_empty(), "the guest was told something");
    Ok(tally)
}

/// One controller, opened with rings and a depth of the test's choice.
fn controller(depth: usize, pages: (u32, u32)) -> anyhow::Result<(Disk, Vm, Guest, Storage<SoftPlatform>)> {
    let disk = Disk::new(SIZE)?;
    let vm = Vm::builder().storage("disk0", &[disk.argument("")]).start()?;
    let mut guest = Guest::connect(&vm)?;
    let offer = guest.offer(0)?;
    let open = OpenOptions { to_host_pages: pages.0, to_guest_pages: pages.1, ..OpenOptions::default() };
    let options = StorageOptions { depth, open, ..StorageOptions::default() };
    let storage = Storage::open(&mut guest.client, &offer, &options)?;
    Ok((disk, vm, guest, storage))
}

#[test]
fn killed_under_load_again_and_again() -> anyhow::Result<()> {
    let (disk, mut vm, mut guest, load) = loaded(1, 11)?;
    let mut dice = Dice(5);
    for _ in 0..25 {
        thread::sleep(Duration::from_micros(u64::from(dice.roll(5000))));
        vm.restart("disk0")?;
        ensure!(load.pulse.wait_beats(20, LIMIT), "the load stands still");
    }
    finish(&disk, &mut guest, load).map(drop)
}

#[test]
fn killed_while_four_channels_are_busy() -> anyhow::Result<()> {
    let (disk, mut vm, mut guest, load) = loaded(4, 12)?;
    for _ in 0..10 {
        vm.restart("disk0")?;
        ensure!(load.pulse.wait_beats(100, LIMIT), "the load stands still");
    }
    finish(&disk, &mut guest, load).map(drop)
}

#[test]
fn crashes_are_survived_too() -> anyhow::Result<()> {
    let (disk, mut vm, mut guest, load) = loaded(1, 13)?;
    for signal_number in [Signal::SIGSEGV, Signal::SIGSYS, Signal::SIGABRT, Signal::SIGBUS, Signal::SIGSEGV] {
        signal(vm.device("disk0"), signal_number)?;
        vm.device("disk0").wait()?;
        vm.restart("disk0")?;
        ensure!(load.pulse.wait_beats(200, LIMIT), "the load stands still after {signal_number}");
    }
    finish(&disk, &mut guest, load).map(drop)
}

#[test]
fn a_guest_that_works_on_sees_nothing_of_a_long_absence() -> anyhow::Result<()> {
    let (disk, mut vm, mut guest, load) = loaded(1, 14)?;
    vm.device("disk0").kill()?;
    vm.device("disk0").wait()?;
    thread::sleep(Duration::from_millis(300));
    vm.restart("disk0")?;
    ensure!(load.pulse.wait_beats(100, LIMIT), "the load stands still");
    finish(&disk, &mut guest, load).map(drop)
}

#[test]
fn standbys_take_over_one_after_the_other() -> anyhow::Result<()> {
    let (disk, mut vm, mut guest, load) = loaded(1, 15)?;
    let operator = vm.operator()?;
    for n in 1..=10 {
        vm.spare("disk0")?;
        operator.wait("disk0", "stood by for", |device| device.standby && device.serving)?;
        vm.device("disk0").kill()?;
        operator.wait("disk0", "taken over", |device| device.serving && device.takeovers == n)?;
        ensure!(load.pulse.wait_beats(50, LIMIT), "the load stands still");
        vm.promoted("disk0")?.wait()?;
    }
    finish(&disk, &mut guest, load).map(drop)
}

#[test]
fn planned_swaps_under_load() -> anyhow::Result<()> {
    let (disk, mut vm, mut guest, load) = loaded(4, 16)?;
    let operator = vm.operator()?;
    for n in 0..10 {
        vm.spare("disk0")?;
        let reply = operator.swap("disk0")?;
        ensure!(matches!(reply, Reply::Swapped { .. }), "swap {n}: {reply:?}");
        let status = vm.promoted("disk0")?.wait()?;
        ensure!(status.success(), "the old process {status}");
        ensure!(load.pulse.wait_beats(100, LIMIT), "the load stands still");
    }
    finish(&disk, &mut guest, load).map(drop)
}

/// A process that the test plays: it has attached beside the one that serves.
fn understudy(vm: &Vm) -> anyhow::Result<Peer> {
    let peer = Peer::connect(&vm.socket())?;
    let offer = ipc::message::Offer {
        class: vmbus::guid::class::SCSI.to_string(),
        max_subchannels: MAX_SUBCHANNELS,
        ..Default::default()
    };
    let (device, build) = ("disk0".into(), "the understudy".into());
    // Of what is said ahead of time it knows nothing.
    let versions = Versions { max: PREPARE_VERSION - 1, ..VERSIONS };
    peer.send(&ToCore::Hello { versions, device, offer, ledger: 1 << 20, build }, &[])?;
    match peer.recv()?.0 {
        ToVsp::Welcome { standby: true, .. } => Ok(peer),
        other => anyhow::bail!("instead of a welcome to a standby: {other:?}"),
    }
}

/// The understudy is told to serve, and cannot read what its predecessor has written.
fn cannot_read(peer: &Peer) -> anyhow::Result<()> {
    match peer.recv()?.0 {
        ToVsp::Serve { predecessor: true } => peer.send(&ToCore::Serving {}, &[])?,
        other => anyhow::bail!("{other:?}"),
    }
    match peer.recv()?.0 {
        ToVsp::ChannelOpen { channel, .. } => {
            let reason = Some("another format".to_owned());
            Ok(peer.send(&ToCore::OpenResult { channel, status: STATUS_LEDGER, reason }, &[])?)
        }
        other => anyhow::bail!("{other:?}"),
    }
}

#[test]
fn the_old_process_goes_on_if_the_new_one_cannot_take_over() -> anyhow::Result<()> {
    let (disk, mut vm, mut guest, load) = loaded(4, 17)?;
    let operator = vm.operator()?;
    for round in 0..6 {
        let peer = understudy(&vm)?;
        let reply = thread::scope(|scope| {
            let played = scope.spawn(move || match round % 3 {
                0 => cannot_read(&peer),
                // It dies as soon as it is told to serve.
                1 => peer.recv::<ToVsp>().map(drop).map_err(anyhow::Error::from),
                // It says what makes no sense.
                _ => {
                    peer.recv::<ToVsp>()?;
                    Ok(peer.send(&ToCore::Quiesced {}, &[])?)
                }
            });
            let reply = operator.swap("disk0")?;
            played.join().map_err(|_| anyhow::anyhow!("no panic"))??;
            Ok::<_, anyhow::Error>(reply)
        })?;
        ensure!(matches!(reply, Reply::Failed { .. }), "round {round}: {reply:?}");
        ensure!(load.pulse.wait_beats(200, LIMIT), "round {round}: the load stands still");
        ensure!(vm.device("disk0").try_wait()?.is_none(), "round {round}: the old process has gone");
    }
    finish(&disk, &mut guest, load).map(drop)
}

/// The successor starts while the guest has no room for another completion, and the dead process had asked it to signal when
/// there is.
#[test]
fn killed_with_the_ring_to_the_guest_full() -> anyhow::Result<()> {
    const REQUESTS: usize = 60;
    let (_disk, mut vm, mut guest, mut storage) = controller(64, (8, 2))?;
    for round in 0..3 {
        for _ in 0..REQUESTS {
            storage.push(0, &[opcode::TEST_UNIT_READY, 0, 0, 0, 0, 0], Direction::None, Buffer::NONE)?;
        }
        storage.flush_requests()?;
        let until = Instant::now() + LIMIT;
        while storage.channel().reader().memory().load(ControlWord::PendingSendSize) == 0 {
            ensure!(Instant::now() < until, "the device does not wait for room");
            thread::sleep(Duration::from_millis(1));
        }
        vm.restart("disk0")?;
        for n in 0..REQUESTS {
            let done = storage.completion(LIMIT)?.with_context(|| format!("round {round}: {n} came"))?;
            done.moved()?;
        }
        ensure!(storage.completion(Duration::from_millis(20))?.is_none(), "something was completed twice");
    }
    guest.client.close(storage.into_channel()?)?;
    Ok(())
}

/// The guest waits for room in the ring to the host when its reader dies, and nothing but a signal of the successor's
/// tells it that there is some.
#[test]
fn killed_while_the_guest_waits_for_room() -> anyhow::Result<()> {
    let (_disk, mut vm, mut guest, mut storage) = controller(256, (3, 32))?;
    for _ in 0..3 {
        signal(vm.device("disk0"), Signal::SIGSTOP)?;
        let mut sent = 0;
        loop {
            match storage.push(0, &[opcode::TEST_UNIT_READY, 0, 0, 0, 0, 0], Direction::None, Buffer::NONE) {
                Ok(_) => sent += 1,
                Err(Error::Push(_)) => break,
                Err(error) => return Err(error.into()),
            }
        }
        storage.flush_requests()?;
        ensure!(sent > 40, "{sent} requests fill no ring");
        let waiting = thread::spawn(move || {
            let answer = storage.control(&StoragePacket::new(wire::OPERATION_QUERY_PROPERTIES));
            (storage, answer)
        });
        thread::sleep(Duration::from_millis(20));
        vm.restart("disk0")?;
        let (back, answer) = waiting.join().map_err(|_| anyhow::anyhow!("no panic"))?;
        storage = back;
        ensure!(answer?.status == 0);
        for n in 0..sent {
            storage.completion(LIMIT)?.with_context(|| format!("{n} of {sent} came"))?.moved()?;
        }
    }
    guest.client.close(storage.into_channel()?)?;
    Ok(())
}

/// Opening, closing, retargeting and resetting while the process is away: the guest waits, and gets what it asked for.
#[test]
fn the_bus_works_on_while_the_process_is_away() -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    let mut vm = Vm::builder().storage("disk0", &[disk.argument("")]).echo("bystander").start()?;
    let mut guest = Guest::connect(&vm)?;
    let offer = guest.offer(0)?;
    let mut bystander = guest.echo(1)?;
    let mut storage = Storage::open(&mut guest.client, &offer, &StorageOptions::default())?;
    storage.write(0, 0, &[1; 4096], BLOCK)?;
    for round in 0..4u8 {
        vm.device("disk0").kill()?;
        vm.device("disk0").wait()?;
        exercise(&mut bystander)?;
        guest.client.retarget(storage.channel(), u32::from(round) % 2)?;
        // The process dies with the thread that started it, so it is the guest that gets one of its own.
        storage = thread::scope(|scope| {
            let guest = scope.spawn(|| {
                if round % 2 == 1 {
                    // The channel is closed and opened before there is anybody to talk to about it.
                    guest.client.close(storage.into_channel()?)?;
                    storage = Storage::open(&mut guest.client, &offer, &StorageOptions::default())?;
                }
                storage.write(0, 8, &[round; 4096], BLOCK)?;
                Ok::<_, anyhow::Error>(storage)
            });
            thread::sleep(Duration::from_millis(30));
            vm.restart("disk0")?;
            guest.join().map_err(|_| anyhow::anyhow!("no panic"))?
        })?;
        ensure!(storage.read(0, 8, 8, BLOCK)? == [round; 4096]);
    }
    vm.device("disk0").kill()?;
    vm.device("disk0").wait()?;
    vm.restart("disk0")?;
    vm.platform().reset()?;
    (0..2).try_for_each(|vp| vm.platform().set_synic(vp, true))?;
    let mut guest = Guest::connect(&vm)?;
    let offer = guest.offer(0)?;
    let mut storage = Storage::open(&mut guest.client, &offer, &StorageOptions::default())?;
    ensure!(storage.read(0, 0, 8, BLOCK)? == [1; 4096]);
    Ok(())
}

/// One request kills every process that tries it. After three it is the request that goes.
#[test]
#[cfg(debug_assertions)]
fn a_poisonous_request_gets_an_error_and_the_device_lives_on() -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    let mut vm = Vm::builder()
        .quiet()
        .storage("disk0", &[disk.argument("")])
        .with(&["--crash-on-opcode", "28"])
        .start()?;
    let mut guest = Guest::connect(&vm)?;
    let offer = guest.offer(0)?;
    let mut storage = Storage::open(&mut guest.client, &offer, &StorageOptions::default())?;
    storage.write(0, 0, &[1; 4096], BLOCK)?;
    let buffer = storage.allocate(3 * 4096)?;
    let before = storage.push(0, &read_16(0, 8), Direction::Read, buffer.part(0, 4096))?;
    let poison = storage.push(0, &read_10(0, 8), Direction::Read, buffer.part(4096, 4096))?;
    storage.platform_write(buffer.part(8192, 4096), 2);
    let behind = storage.push(0, &write_16(8, 8), Direction::Write, buffer.part(8192, 4096))?;
    storage.flush_requests()?;
    let mut deaths = 0;
    let mut ended = Vec::new();
    while ended.len() < 3 {
        if let Some(status) = vm.device("disk0").try_wait()? {
            deaths += 1;
            ensure!(deaths <= 3, "it dies on and on: {status}");
            vm.restart("disk0")?;
        }
        ended.extend(storage.completion(Duration::from_millis(2))?);
    }
    assert_eq!(deaths, 3, "a request is tried three times");
    for done in ended {
        if done.id == poison {
            ensure!(matches!(done.moved(), Err(Error::Scsi { .. })), "{done:?}");
        } else {
            ensure!([before, behind].contains(&done.id) && done.moved()? == 4096, "{done:?}");
        }
    }
    ensure!(storage.read(0, 8, 8, BLOCK)? == [2; 4096]);
    ensure!(vm.device("disk0").try_wait()?.is_none());
    guest.client.close(storage.into_channel()?)?;
    Ok(())
}

/// The core's copy of the only open channel's ledger.
fn ledger(vm: &mut Vm) -> anyhow::Result<File> {
    for entry in std::fs::read_dir(format!("/proc/{}/fd", vm.core().pid()))? {
        let path = entry?.path();
        // The core closes descriptors of the dead process meanwhile.
        let Ok(target) = std::fs::read_link(&path) else { continue };
        if target.to_string_lossy().contains("bulkhead-ledger") {
            return Ok(File::options().read(true).write(true).open(&path)?);
        }
    }
    anyhow::bail!("the core holds no ledger")
}

#[test]
fn a_ledger_that_a_crash_has_overwritten_is_not_guessed_at() -> anyhow::Result<()> {
    let disk = Disk::new(SIZE)?;
    let mut vm = Vm::builder().quiet().storage("disk0", &[disk.argument("")]).echo("bystander").start()?;
    let mut guest = Guest::connect(&vm)?;
    let offer = guest.offer(0)?;
    let mut storage = Storage::open(&mut guest.client, &offer, &StorageOptions::default())?;
    storage.write(0, 0, &[1; 4096], BLOCK)?;
    signal(vm.device("disk0"), Signal::SIGSTOP)?;
    let buffer = storage.allocate(4096)?;
    storage.platform_write(buffer, 9);
    storage.submit(0, &write_16(0, 8), Direction::Write, buffer)?;
    vm.device("disk0").kill()?;
    vm.device("disk0").wait()?;
    ledger(&mut vm)?.write_all_at(&[0xee; 4096], 0)?;
    vm.restart("disk0")?;
    // It says so, touches nothing, and the VM goes on.
    ensure!(storage.completion(Duration::from_millis(300))?.is_none(), "it has guessed");
    let mut on_disk = [0; 4096];
    disk.file.read_exact_at(&mut on_disk, 0)?;
    ensure!(on_disk == [1; 4096]);
    guest.prove(1)?;
    ensure!(vm.core().try_wait()?.is_none());
    // A channel that the guest opens anew has a new ledger, and works. Letting go of the old one waits for a process, which alone
    // can tell that nothing of the dead one's is under way.
    drop(storage);
    thread::scope(|scope| {
        let unloading = scope.spawn(|| guest.client.unload());
        vm.restart("disk0")?;
        Ok::<_, anyhow::Error>(unloading.join().map_err(|_| anyhow::anyhow!("no panic"))??)
    })?;
    let mut guest = Guest::connect(&vm)?;
    let mut storage = Storage::open(&mut guest.client, &offer, &StorageOptions::default())?;
    ensure!(storage.read(0, 0, 8, BLOCK)? == [1; 4096]);
    Ok(())
}

#[test]
fn a_slot_that_a_crash_has_overwritten_fails_its_request_and_no_other() -> anyhow::Result<()> {
    /// Where the packets begin is the fifth word of the header.
    const PACKETS_AT: u64 = 32;
    const WRITES: u64 = 8;
    let disk = Disk::new(SIZE)?;
    let mut vm = Vm::builder().quiet().storage("disk0", &[disk.argument("")]).start()?;
    let mut guest = Guest::connect(&vm)?;
    let offer = guest.offer(0)?;
    let mut storage = Storage::open(&mut guest.client, &offer, &StorageOptions::default())?;
    let buffer = storage.allocate(4096)?;
    let mut damaged = 0;
    for round in 0..40 {
        for n in 0..WRITES {
            storage.push(0, &write_16(n * 8, 8), Direction::Write, buffer)?;
        }
        storage.flush_requests()?;
        thread::sleep(Duration::from_micros(round * 20));
        vm.device("disk0").kill()?;
        vm.device("disk0").wait()?;
        let file = ledger(&mut vm)?;
        let mut word = [0; 4];
        file.read_exact_at(&mut word, PACKETS_AT)?;
        // The packet of the first slot, beyond its descriptor; whether a request is in it just now is chance.
        file.write_all_at(&[0xaa; 64], u64::from(u32::from_le_bytes(word)) + 32)?;
        vm.restart("disk0")?;
        for n in 0..WRITES {
            let done = storage.completion(LIMIT)?.with_context(|| format!("round {round}: {n} came"))?;
            damaged += u32::from(done.moved().is_err());
        }
        ensure!(damaged as u64 <= round + 1, "more than one was lost to one slot");
    }
    eprintln!("{damaged} requests were in the slot that was overwritten");
    guest.client.close(storage.into_channel()?)?;
    Ok(())
}

/// A small convenience of these tests.
trait Fill {
    fn platform_write(&self, buffer: Buffer, byte: u8);
}

impl Fill for Storage<SoftPlatform> {
    fn platform_write(&self, buffer: Buffer, byte: u8) {
        vsc::Platform::write(&**self.platform(), buffer.address, &vec![byte; buffer.len as usize]);
    }
}
