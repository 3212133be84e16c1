//! Processes that die, hang or turn on the others: the core lives with any device, and no device outlives the core.

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bulkhead_tests::{
    Vm,
    steps::{Guest, exercise, small},
};
use ipc::{
    event::Doorbell,
    message::{ToCore, ToVsp},
    shm::{EventFlags, Mapping, SharedMemory, VMBUS_SINT},
    socket::{Peer, SocketError},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sandbox::spawn::Child;
use vsc::{Error, Options, echo::Echo};

/// How soon a process has to end by itself.
const SOON: Duration = Duration::from_secs(5);

fn ends(child: &mut Child) -> anyhow::Result<std::process::ExitStatus> {
    let limit = Instant::now() + SOON;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(Instant::now() < limit, "process {} lives on", child.pid());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn signal(child: &Child, signal: Signal) -> anyhow::Result<()> {
    Ok(kill(Pid::from_raw(child.pid() as i32), signal)?)
}

#[test]
fn a_killed_device_takes_nobody_with_it() -> anyhow::Result<()> {
    let mut vm = Vm::builder().echo("doomed").echo("bystander").start()?;
    let mut guest = Guest::connect(&vm)?;
    let mut doomed = guest.echo(0)?;
    let mut bystander = guest.echo(1)?;
    exercise(&mut doomed)?;
    vm.device("doomed").kill()?;
    vm.device("doomed").wait()?;
    exercise(&mut bystander)?;
    let silence = doomed.echo(b"hello?", Duration::from_millis(100));
    ensure!(matches!(silence, Err(Error::Timeout(_))), "{silence:?}");
    // The guest can still move, close and forget the dead channel.
    guest.client.retarget(doomed.channel(), 1)?;
    guest.client.close(doomed.into_channel())?;
    exercise(&mut bystander)?;
    ensure!(vm.core().try_wait()?.is_none());
    // What it opens waits for the next process, however long that takes.
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| guest.prove(0));
        std::thread::sleep(Duration::from_millis(50));
        ensure!(!opening.is_finished(), "there is nobody who could have answered");
        vm.restart("doomed")?;
        opening.join().expect("no panic")
    })?;
    guest.client.unload()?;
    let mut guest = Guest::connect(&vm)?;
    guest.prove(0)?;
    guest.prove(1)
}

#[test]
fn devices_killed_at_any_moment_of_opening_and_closing() -> anyhow::Result<()> {
    let mut vm = Vm::builder().echo("doomed").echo("bystander").start()?;
    let mut guest = Guest::connect(&vm)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                guest.prove(0)?;
            }
            guest.prove(1)
        });
        // The process would die with a thread that ends, so it is not this one that is in a thread of its own.
        let killed = (0..3000).step_by(150).try_for_each(|delay| {
            std::thread::sleep(Duration::from_micros(delay));
            vm.restart("doomed")
        });
        stop.store(true, Ordering::SeqCst);
        opening.join().expect("no panic").context("an answer is missing")?;
        killed
    })
}

#[test]
fn when_the_core_dies_every_device_ends_by_itself() -> anyhow::Result<()> {
    let mut vm = Vm::builder().echo("idle").echo("open").echo("busy").start()?;
    let mut guest = Guest::connect(&vm)?;
    let _open = guest.echo(1)?;
    let mut busy = guest.echo(2)?;
    for n in 0..30 {
        busy.send(&[n; 100], SOON)?;
    }
    vm.core().kill()?;
    vm.core().wait()?;
    for name in ["idle", "open", "busy"] {
        let status = ends(vm.device(name)).context(name)?;
        ensure!(status.success(), "{name}: {status}");
    }
    Ok(())
}

#[test]
fn when_the_guest_is_gone_so_is_everybody() -> anyhow::Result<()> {
    let mut vm = Vm::builder().echo("echo").start()?;
    // What KVM's end is in a real core: the partition's other half goes away.
    vm.platform().leave();
    ensure!(ends(vm.core())?.success());
    ensure!(ends(vm.device("echo"))?.success());
    Ok(())
}

#[test]
fn a_device_that_hangs_holds_up_its_own_channel_only() -> anyhow::Result<()> {
    let mut vm = Vm::builder().quiet().echo("hung").echo("bystander").start()?;
    let mut guest =
        Guest::connect_with(&vm, Options { timeout: Duration::from_secs(20), ..Options::default() })?;
    let mut hung = guest.echo(0)?;
    let mut bystander = guest.echo(1)?;
    exercise(&mut hung)?;
    signal(vm.device("hung"), Signal::SIGSTOP)?;
    for vp in 0..1000 {
        guest.client.retarget(hung.channel(), vp % 2)?;
    }
    exercise(&mut bystander)?;
    let begin = Instant::now();
    guest.client.close(hung.into_channel())?;
    let waited = begin.elapsed();
    ensure!((Duration::from_secs(4)..Duration::from_secs(15)).contains(&waited), "cut off after {waited:?}");
    exercise(&mut bystander)?;
    // When it wakes up it finds itself alone.
    signal(vm.device("hung"), Signal::SIGCONT)?;
    ends(vm.device("hung"))?;
    exercise(&mut bystander)
}

#[test]
fn a_reset_does_not_wait_for_a_hung_device_for_ever() -> anyhow::Result<()> {
    let mut vm = Vm::builder().quiet().echo("hung").echo("bystander").start()?;
    let mut guest = Guest::connect(&vm)?;
    let _hung = guest.echo(0)?;
    let _open = guest.echo(1)?;
    signal(vm.device("hung"), Signal::SIGSTOP)?;
    // Whoever supervises is told that the core has given it up, and ends it.
    let operator = vm.operator()?;
    std::thread::scope(|scope| {
        let platform = vm.platform().clone();
        let resetting = scope.spawn(move || platform.reset());
        let (device, reason) = operator.cut_off()?;
        ensure!(device == "hung", "{device}: {reason}");
        vm.restart("hung")?;
        resetting.join().expect("no panic")
    })?;
    (0..2).try_for_each(|vp| vm.platform().set_synic(vp, true))?;
    let mut guest = Guest::connect(&vm)?;
    guest.prove(0)?;
    guest.prove(1)
}

/// The descriptors of an open request that a played device gets; it accepts.
fn accept(device: &Peer) -> anyhow::Result<(u32, Vec<std::os::fd::OwnedFd>)> {
    match device.recv()? {
        (ToVsp::ChannelOpen { channel, .. }, fds) => {
            device.send(&ToCore::OpenResult { channel, status: 0, reason: None }, &[])?;
            Ok((channel, fds))
        }
        (other, _) => bail!("{other:?}"),
    }
}

/// Opens a channel that the test itself serves.
fn open_played(
    vm: &Vm,
    guest: &mut Guest,
    n: u64,
) -> anyhow::Result<(Vec<std::os::fd::OwnedFd>, vsc::Channel<bulkhead_tests::SoftPlatform>)> {
    let offer = guest.offer(n)?;
    std::thread::scope(|scope| {
        let device = scope.spawn(|| accept(vm.played("played")));
        let channel = guest.client.open(&offer, &small())?;
        let (_, fds) = device.join().expect("no panic")?;
        Ok((fds, channel))
    })
}

#[test]
fn a_device_that_sends_garbage_is_cut_off() -> anyhow::Result<()> {
    let garbage: [&[u8]; 6] = [
        b"{",
        b"\0\0\0\0",
        b"{\"Format\":{\"disk\":\"c:\"}}",
        b"{\"OpenResult\":{\"channel\":2,\"status\":0}}",
        b"{\"Closed\":{\"channel\":99}}",
        &[b'['; 60_000],
    ];
    for bytes in garbage {
        let vm = Vm::builder().quiet().played("played").echo("bystander").start()?;
        let mut guest = Guest::connect(&vm)?;
        let mut bystander = guest.echo(1)?;
        let (_fds, channel) = open_played(&vm, &mut guest, 0)?;
        vm.played("played").send_bytes(bytes, &[])?;
        ensure!(matches!(vm.played("played").recv::<ToVsp>(), Err(SocketError::Closed)));
        exercise(&mut bystander)?;
        guest.client.close(channel)?;
        exercise(&mut bystander)?;
    }
    Ok(())
}

#[test]
fn a_device_that_floods_the_core_gets_no_more_than_its_turn() -> anyhow::Result<()> {
    let vm = Vm::builder().played("played").echo("bystander").start()?;
    let mut guest = Guest::connect(&vm)?;
    let relid = guest.offer(0)?.relid;
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let until = Instant::now() + Duration::from_millis(700);
            let mut sent = 0;
            while Instant::now() < until
                && vm.played("played").send(&ToCore::Closed { channel: relid }, &[]).is_ok()
            {
                sent += 1;
            }
            sent
        });
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(500) {
            guest.prove(1)?;
        }
        let sent = flood.join().expect("no panic");
        ensure!(sent > 1000, "{sent} messages are no flood");
        guest.prove(1)
    })
}

#[test]
fn what_a_hostile_device_can_do_with_its_pages() -> anyhow::Result<()> {
    let vm = Vm::builder().played("played").echo("bystander").start()?;
    let mut guest = Guest::connect(&vm)?;
    let mut bystander = guest.echo(1)?;
    let (fds, channel) = open_played(&vm, &mut guest, 0)?;
    let [ring, _kick, interrupt, flags] =
        <[_; 4]>::try_from(fds).map_err(|_| anyhow::anyhow!("four descriptors"))?;
    let interrupt = Doorbell::from_fd(interrupt)?;
    let ring = SharedMemory::from_fd(ring, 8 * 4096)?;
    let pages = SharedMemory::from_fd(flags, 4096)?;
    ensure!(
        SharedMemory::from_fd(ring.as_fd().try_clone_to_owned()?, 9 * 4096).is_err(),
        "its pages and no more"
    );
    let flags = EventFlags::new(&pages)?;
    // All flags of all channels, again and again: spurious interrupts, and nothing else.
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            for _ in 0..300 {
                (0..2048).for_each(|flag| _ = flags.set(VMBUS_SINT, flag));
                let _ = interrupt.signal();
            }
        });
        for _ in 0..5 {
            exercise(&mut bystander)?;
        }
        storm.join().expect("no panic");
        exercise(&mut bystander)
    })?;
    // After the guest has closed the channel the pages are nothing to the guest any more.
    let address = channel.gpadl().address;
    let closing = std::thread::scope(|scope| {
        let device = scope.spawn(|| -> anyhow::Result<()> {
            let (ToVsp::ChannelClose { channel }, _) = vm.played("played").recv()? else { bail!("no close") };
            Ok(vm.played("played").send(&ToCore::Closed { channel }, &[])?)
        });
        guest.client.close(channel)?;
        device.join().expect("no panic")
    });
    closing?;
    vm.platform().ram().write(address, &[7; 4096])?;
    Mapping::new(&ring, 0, 4096)?.write(0, &[0xee; 4096]);
    let mut seen = [0; 4096];
    vm.platform().ram().read(address, &mut seen)?;
    ensure!(seen == [7; 4096], "a device reached pages that were taken back");
    exercise(&mut bystander)
}

#[test]
fn strangers_at_the_door() -> anyhow::Result<()> {
    let vm = Vm::builder().echo("echo").start()?;
    let mut guest = Guest::connect(&vm)?;
    let mut crowd = Vec::new();
    for n in 0..200 {
        let Ok(peer) = Peer::connect(&vm.socket()) else { break };
        if n % 3 == 0 {
            let _ = peer.send_bytes(b"let me in", &[]);
        }
        crowd.push(peer);
    }
    guest.prove(0)?;
    // Nobody takes the place of a device that is there.
    drop(crowd);
    let impostor = Peer::connect(&vm.socket())?;
    let offer = ipc::message::Offer { class: vmbus::guid::class::ECHO.to_string(), ..Default::default() };
    impostor.send(
        &ToCore::Hello {
            versions: ipc::message::VERSIONS,
            device: "echo".into(),
            offer,
            ledger: 0,
            build: String::new(),
        },
        &[],
    )?;
    let answer = impostor.recv::<ToVsp>();
    ensure!(matches!(answer, Ok((ToVsp::Refused { .. }, _)) | Err(SocketError::Closed)), "{answer:?}");
    guest.prove(0)
}

#[test]
fn an_echo_that_is_not_one_is_noticed() -> anyhow::Result<()> {
    // The tests' own eyes: a device that answers wrongly must not pass for a good one.
    let vm = Vm::builder().played("played").start()?;
    let mut guest = Guest::connect(&vm)?;
    let (_fds, channel) = open_played(&vm, &mut guest, 0)?;
    let mut echo = Echo::new(channel);
    ensure!(echo.echo(b"anybody?", Duration::from_millis(50)).is_err());
    Ok(())
}
