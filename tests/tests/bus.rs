//! Honest guests on the whole system: versions, open and close, reset, crash kernels, other VPs, many devices.

use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_tests::{
    Vm,
    steps::{Guest, LIMIT, exercise, small},
};
use vmbus::{
    message::{GuestMessage, HostMessage, InitiateContact},
    protocol::Version,
};
use vsc::{OpenOptions, Options, echo::Echo};

fn speaking(version: Version) -> Options {
    Options { versions: vec![version], ..Options::default() }
}

#[test]
fn every_version_connects_and_echoes() -> anyhow::Result<()> {
    let vm = Vm::builder().echo("echo").start()?;
    for version in Version::ALL {
        let mut guest = Guest::connect_with(&vm, speaking(version))?;
        assert_eq!(guest.client.version(), version);
        guest.prove(0).with_context(|| format!("version {version}"))?;
        guest.client.unload()?;
    }
    Ok(())
}

#[test]
fn unknown_versions_are_refused_and_the_next_proposal_counts() -> anyhow::Result<()> {
    let vm = Vm::builder().echo("echo").start()?;
    let mut guest = Guest::connect(&vm)?;
    for version in [0, 0x0001_0001, 0x0005_0004, 0x0006_0000, u32::MAX] {
        let contact = InitiateContact { version, ..InitiateContact::default() };
        guest.client.post(&GuestMessage::InitiateContact(contact))?;
        match guest.client.next_message(LIMIT)? {
            Some(HostMessage::VersionResponse(response)) => assert_eq!(response.supported, 0),
            other => panic!("{other:?}"),
        }
    }
    Guest::connect(&vm)?.prove(0)
}

#[test]
fn a_channel_is_opened_and_closed_fifty_times() -> anyhow::Result<()> {
    let vm = Vm::builder().echo("echo").start()?;
    let mut guest = Guest::connect(&vm)?;
    for _ in 0..50 {
        guest.prove(0)?;
    }
    Ok(())
}

#[test]
fn closing_does_not_wait_for_the_guest_to_read() -> anyhow::Result<()> {
    let vm = Vm::builder().echo("echo").start()?;
    let mut guest = Guest::connect(&vm)?;
    for _ in 0..10 {
        let mut echo = guest.echo(0)?;
        for n in 0..20 {
            echo.send(&[n; 300], LIMIT)?;
        }
        guest.client.close(echo.into_channel())?;
    }
    guest.prove(0)
}

#[test]
fn rings_of_all_sizes() -> anyhow::Result<()> {
    let vm = Vm::builder().echo("echo").memory(128 << 20).start()?;
    let mut guest = Guest::connect(&vm)?;
    let offer = guest.offer(0)?;
    for (to_host_pages, to_guest_pages) in [(2, 2), (2, 64), (64, 2), (5, 3), (4095, 4095)] {
        let options = OpenOptions { to_host_pages, to_guest_pages, ..OpenOptions::default() };
        let mut echo = Echo::open(&mut guest.client, &offer, &options)?;
        exercise(&mut echo).with_context(|| format!("{to_host_pages} + {to_guest_pages} pages"))?;
        guest.client.close(echo.into_channel())?;
    }
    Ok(())
}

#[test]
fn a_reset_with_an_open_channel_leaves_a_clean_bus() -> anyhow::Result<()> {
    let vm = Vm::builder().echo("echo").echo("idle").start()?;
    for round in 0..10u8 {
        let mut guest = Guest::connect(&vm)?;
        let mut echo = guest.echo(0)?;
        exercise(&mut echo)?;
        // With requests under way, and messages that nobody has read.
        for n in 0..20 {
            echo.send(&[n; 300], LIMIT)?;
        }
        let pages = echo.channel().gpadl();
        guest.client.post(&GuestMessage::RequestOffers)?;
        vm.platform().reset()?;
        // The pages are the guest's alone: what it writes there, nobody changes.
        let pattern = vec![round; pages.pages as usize * 4096];
        vm.platform().ram().write(pages.address, &pattern)?;
        for vp in 0..2 {
            vm.platform().set_synic(vp, true)?;
        }
        let mut next = Guest::connect(&vm)?;
        next.prove(0)?;
        next.prove(1)?;
        let mut seen = vec![0; pattern.len()];
        vm.platform().ram().read(pages.address, &mut seen)?;
        ensure!(seen == pattern, "a device wrote to pages that were taken back");
        drop(guest);
        next.client.unload()?;
    }
    Ok(())
}

#[test]
fn a_crash_kernel_connects_without_good_bye() -> anyhow::Result<()> {
    let vm = Vm::builder().echo("echo").start()?;
    let mut old = Guest::connect(&vm)?;
    let mut lost = old.echo(0)?;
    exercise(&mut lost)?;
    for _ in 0..20 {
        old.client.post(&GuestMessage::RequestOffers)?;
    }
    // The crash kernel runs on the other VP and speaks an older version.
    let options = Options { message_vp: 1, ..speaking(Version::WIN10) };
    let mut new = Guest::connect_with(&vm, options)?;
    new.prove(0)?;
    new.client.unload()?;
    Guest::connect(&vm)?.prove(0)
}

#[test]
fn interrupts_move_to_another_vp_under_load() -> anyhow::Result<()> {
    for version in [Version::V5_3, Version::V5_2, Version::V4_1] {
        let vm = Vm::builder().vps(4).echo("echo").start()?;
        let mut guest = Guest::connect_with(&vm, speaking(version))?;
        let mut echo = guest.echo(0)?;
        for round in 0..40 {
            let vp = round % 4;
            let mut sent = Vec::new();
            for n in 0..8 {
                sent.push(echo.send(&[n; 64], LIMIT)?);
            }
            guest.client.retarget(echo.channel(), vp)?;
            for (n, id) in (0..).zip(sent) {
                echo.expect(id, &[n; 64], LIMIT)?;
            }
        }
        // From now on the last target alone is interrupted, once what was on the way has arrived.
        echo.echo(b"settled", LIMIT)?;
        std::thread::sleep(Duration::from_millis(20));
        let before: Vec<u64> = (0..4).map(|vp| platform_interrupts(&vm, vp)).collect();
        for _ in 0..10 {
            // Who has waited in vain has left interrupts on.
            ensure!(echo.channel().receive(Duration::from_millis(5))?.is_none());
            echo.echo(b"to VP 3", LIMIT)?;
        }
        for vp in 0..4 {
            let more = platform_interrupts(&vm, vp) - before[vp as usize];
            ensure!((more > 0) == (vp == 3), "{version}: VP {vp} had {more} interrupts");
        }
        guest.client.close(echo.into_channel())?;
    }
    Ok(())
}

fn platform_interrupts(vm: &Vm, vp: u32) -> u64 {
    use vsc::Platform;
    vm.platform().interrupts(vp)
}

#[test]
fn a_guest_that_is_slow_to_read_gets_every_message() -> anyhow::Result<()> {
    const DEVICES: u64 = 64;
    let builder = (0..DEVICES).fold(Vm::builder(), |builder, n| builder.echo(&format!("echo{n}")));
    let vm = builder.start()?;
    let mut guest = Guest::connect(&vm)?;
    assert_eq!(guest.offers.len() as u64, DEVICES);
    // Requests without reading a single answer, until the host has no room for more.
    let request = GuestMessage::RequestOffers.encode();
    let mut posted = 0;
    while posted < 10_000 && post_once(&vm, guest.client.connection(), &request)? {
        posted += 1;
    }
    ensure!((50..10_000).contains(&posted), "{posted} requests were taken");
    for _ in 0..posted {
        let mut relids = Vec::new();
        loop {
            match guest.client.next_message(LIMIT)?.context("a message is missing")? {
                HostMessage::Offer(offer) => relids.push(offer.relid),
                HostMessage::AllOffersDelivered => break,
                other => panic!("{other:?}"),
            }
        }
        ensure!(relids.len() as u64 == DEVICES && relids.is_sorted(), "{relids:?}");
    }
    ensure!(post_once(&vm, guest.client.connection(), &request)?, "there is room again");
    guest.drain()?;
    (0..DEVICES).try_for_each(|n| guest.prove(n))
}

/// Posts a message; false if the guest is to try again later.
fn post_once(vm: &Vm, connection: u32, message: &[u8]) -> anyhow::Result<bool> {
    use vsc::{Platform, PostError};
    match vm.platform().post_message(connection, message) {
        Ok(()) => Ok(true),
        Err(PostError::Status(vsc::platform::STATUS_INSUFFICIENT_BUFFERS)) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[test]
fn devices_do_not_wait_for_each_other() -> anyhow::Result<()> {
    let vm = (0..6).fold(Vm::builder().vps(4), |builder, n| builder.echo(&format!("echo{n}"))).start()?;
    let mut guest = Guest::connect(&vm)?;
    let mut channels = Vec::new();
    for n in 0..6 {
        let offer = guest.offer(n)?;
        let options = OpenOptions { target_vp: n as u32 % 4, ..small() };
        channels.push(Echo::open(&mut guest.client, &offer, &options)?);
    }
    std::thread::scope(|scope| {
        let users: Vec<_> = channels
            .iter_mut()
            .map(|echo| scope.spawn(move || (0..10).try_for_each(|_| exercise(echo))))
            .collect();
        users.into_iter().try_for_each(|user| user.join().expect("no panic"))
    })?;
    channels.into_iter().try_for_each(|echo| guest.client.close(echo.into_channel()).map_err(Into::into))
}
