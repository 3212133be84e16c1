//! NIC processes that die or are replaced while frames go both ways: no send is completed twice or never, no frame is
//! lost, no part of the receive buffer is lost or lent twice, and the link does not flap.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    net::{
        Nic, Rig,
        frame::Series,
        load::{Load, PEER},
        rig::{DEVICE, completed, delivery, exercise, hoard, sent},
    },
    steps::{Dice, LIMIT},
};
use ipc::operator::Reply;
use vsc::{
    OpenOptions,
    net::{
        Event, NetOptions, Room, TxInfo,
        control::{FILTER_DIRECTED, FILTER_UP, oid},
    },
};

/// How long a process that is to hand over waits at least for an other end that takes no frames, in microseconds.
const GIVES_UP_US: u64 = 190_000;

/// A VM whose guest is busy through `queues` channels.
fn loaded(queues: u16) -> anyhow::Result<(Rig, Load)> {
    loaded_with(queues, |_| {}, NetOptions::small())
}

fn loaded_with(
    queues: u16,
    change: impl FnOnce(&mut Nic),
    options: NetOptions,
) -> anyhow::Result<(Rig, Load)> {
    let mut rig = Rig::with(
        |vm| vm.vps(4),
        |nic| {
            nic.queues = queues;
            change(nic);
        },
    )?;
    let mut net = rig.open(&options)?;
    let mut others = Vec::new();
    if queues > 1 {
        others = net.open_sub_channels(&mut rig.guest.client, u32::from(queues) - 1, &options)?;
        ensure!(others.len() == usize::from(queues) - 1, "{} sub-channels", others.len());
        let table: Vec<u32> =
            (0..net.device().rss_entries.into()).map(|n: u32| n % u32::from(queues)).collect();
        net.set_rss(&[0x6d; 40], &table)?;
    }
    let load = Load::start(net, others, &rig.wire)?;
    ensure!(load.pulse.wait_beats(100, LIMIT), "the load does not get going");
    Ok((rig, load))
}

fn finish(mut rig: Rig, load: Load, deaths: u64) -> anyhow::Result<()> {
    let (tally, mut net, others) = load.finish()?;
    tally.check(deaths)?;
    ensure!(net.ranges_lent() == 0, "{} ranges are lent", net.ranges_lent());
    ensure!(net.sections().1 == 0, "sections are in use");
    ensure!(net.query_word(oid::MEDIA_CONNECT_STATUS)? == 0, "the link is down");
    net.close(&mut rig.guest.client, others)?;
    rig.prove()
}

fn kill(rig: &mut Rig, load: &Load) -> anyhow::Result<()> {
    load.pulse.died();
    rig.vm.restart(DEVICE)
}

#[test]
fn nothing_dies() -> anyhow::Result<()> {
    let (rig, load) = loaded(1)?;
    ensure!(load.pulse.wait_beats(5000, LIMIT), "the load stands still");
    finish(rig, load, 0)
}

#[test]
fn nothing_dies_with_four_queues() -> anyhow::Result<()> {
    let (rig, load) = loaded(4)?;
    ensure!(load.pulse.wait_beats(5000, LIMIT), "the load stands still");
    finish(rig, load, 0)
}

#[test]
fn killed_under_load_again_and_again() -> anyhow::Result<()> {
    let (mut rig, load) = loaded(1)?;
    let mut dice = Dice(5);
    for _ in 0..25 {
        thread::sleep(Duration::from_micros(u64::from(dice.roll(8000))));
        kill(&mut rig, &load)?;
        ensure!(load.pulse.wait_beats(50, LIMIT), "the load stands still");
    }
    finish(rig, load, 25)
}

#[test]
fn killed_while_four_queues_are_busy() -> anyhow::Result<()> {
    let (mut rig, load) = loaded(4)?;
    for _ in 0..12 {
        kill(&mut rig, &load)?;
        ensure!(load.pulse.wait_beats(200, LIMIT), "the load stands still");
    }
    finish(rig, load, 12)
}

#[test]
fn killed_with_small_rings_and_jumbo_frames() -> anyhow::Result<()> {
    let open = OpenOptions { to_host_pages: 3, to_guest_pages: 2, ..OpenOptions::default() };
    let options = NetOptions { open, mtu: 9000, receive_buffer: 1 << 20, ..NetOptions::small() };
    let (mut rig, load) = loaded_with(1, |nic| nic.mtu = 9000, options)?;
    for _ in 0..12 {
        kill(&mut rig, &load)?;
        ensure!(load.pulse.wait_beats(100, LIMIT), "the load stands still");
    }
    finish(rig, load, 12)
}

#[test]
fn a_long_absence_is_only_a_pause() -> anyhow::Result<()> {
    let (mut rig, load) = loaded(1)?;
    load.pulse.died();
    rig.vm.device(DEVICE).kill()?;
    rig.vm.device(DEVICE).wait()?;
    thread::sleep(Duration::from_millis(300));
    rig.vm.restart(DEVICE)?;
    ensure!(load.pulse.wait_beats(100, LIMIT), "the load stands still");
    finish(rig, load, 1)
}

#[test]
fn standbys_take_over_one_after_the_other() -> anyhow::Result<()> {
    let (mut rig, load) = loaded(2)?;
    let operator = rig.vm.operator()?;
    for n in 1..=8 {
        rig.vm.spare(DEVICE)?;
        operator.wait(DEVICE, "stood by for", |device| device.standby && device.serving)?;
        load.pulse.died();
        rig.vm.device(DEVICE).kill()?;
        operator.wait(DEVICE, "taken over", |device| device.serving && device.takeovers == n)?;
        ensure!(load.pulse.wait_beats(50, LIMIT), "the load stands still");
        rig.vm.promoted(DEVICE)?.wait()?;
    }
    finish(rig, load, 8)
}

#[test]
fn planned_swaps_under_load() -> anyhow::Result<()> {
    let (mut rig, load) = loaded(4)?;
    let operator = rig.vm.operator()?;
    let mut longest = 0;
    for n in 0..8 {
        rig.vm.spare(DEVICE)?;
        let reply = operator.swap(DEVICE)?;
        let Reply::Swapped { pause_us, .. } = reply else { anyhow::bail!("swap {n}: {reply:?}") };
        longest = longest.max(pause_us);
        let status = rig.vm.promoted(DEVICE)?.wait()?;
        ensure!(status.success(), "the old process {status}");
        ensure!(load.pulse.wait_beats(100, LIMIT), "the load stands still");
    }
    // Nothing is lost, unless the other end has not read for so long (this machine is busy) that the old process gave up.
    if longest >= GIVES_UP_US {
        eprintln!("SKIPPED: a swap took {longest} us, so frames may be lost; they were NOT counted");
        let (_, net, others) = load.finish()?;
        net.close(&mut rig.guest.client, others)?;
        return rig.prove();
    }
    finish(rig, load, 8)
}

/// Whatever the guest keeps stays the guest's over any number of deaths, and all of it comes back.
#[test]
fn what_is_lent_is_lent_once() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut net = rig.open(&NetOptions::small())?;
    let series = Series { to: net.device().mac, from: PEER, name: 1, longest: 1514 };
    let mut next = 0;
    let mut all = None;
    let mut wire = rig.wire.split()?;
    for round in 0..4 {
        // More frames than there is room for; the rest waits in the socket.
        let hoarded = thread::scope(|scope| -> anyhow::Result<_> {
            let sender = scope.spawn(|| (0..4000).try_for_each(|n| wire.send(&series.frame(next + n))));
            let mut hoarded = hoard(net.queue())?;
            for _ in 0..round {
                rig.vm.restart(DEVICE)?;
                // Nothing more is lent: a range that came again would be an error in here.
                let more = hoard(net.queue())?;
                ensure!(more.is_empty(), "{} more deliveries after a death", more.len());
            }
            let count = hoarded.len();
            let mut came = Vec::new();
            for delivery in hoarded.drain(..) {
                for frame in &delivery.frames {
                    came.push(series.check(&net.queue().read(frame))?.context("whose is it?")?);
                }
                net.queue().give_back(delivery)?;
            }
            let until = std::time::Instant::now() + LIMIT;
            while came.last() != Some(&(next + 3999)) {
                ensure!(std::time::Instant::now() < until, "frame {:?} was the last", came.last());
                if let Some(event) = net.queue().wait(LIMIT)? {
                    let Event::Delivery(delivery) = event else { anyhow::bail!("{event:?}") };
                    for frame in &delivery.frames {
                        came.push(series.check(&net.queue().read(frame))?.context("whose is it?")?);
                    }
                    net.queue().give_back(delivery)?;
                }
            }
            sender.join().map_err(|_| anyhow::anyhow!("no panic"))??;
            came.sort_unstable();
            came.dedup();
            ensure!(came.len() == 4000, "{} of 4000 frames came", came.len());
            Ok(count)
        })?;
        next += 4000;
        ensure!(*all.get_or_insert(hoarded) == hoarded, "round {round}: {hoarded} deliveries, not {all:?}");
    }
    ensure!(net.ranges_lent() == 0);
    exercise(&mut net, &mut rig.wire)?;
    Ok(net.close(&mut rig.guest.client, Vec::new())?)
}

/// Filter, groups, address, MTU, the two buffers: all of it is there after a death, and the guest is told nothing.
#[test]
fn state_survives() -> anyhow::Result<()> {
    let mut rig = Rig::with(|vm| vm, |nic| nic.mtu = 9000)?;
    let mut net = rig.open(&NetOptions { mtu: 4000, ..NetOptions::small() })?;
    net.set_filter(FILTER_DIRECTED)?;
    let mac = net.device().mac;
    exercise(&mut net, &mut rig.wire)?;
    for _ in 0..3 {
        // A frame that came just now would come again.
        thread::sleep(Duration::from_millis(20));
        rig.vm.restart(DEVICE)?;
        let broadcast = Series { to: [0xff; 6], from: PEER, name: 3, longest: 200 };
        rig.wire.send(&broadcast.frame(1))?;
        ensure!(net.queue().wait(Duration::from_millis(100))?.is_none(), "the filter is gone");
        ensure!(net.query_word(oid::PACKET_FILTER)? == FILTER_DIRECTED);
        ensure!(net.query_word(oid::MAXIMUM_FRAME_SIZE)? >= 4000);
        ensure!(net.query(oid::CURRENT_ADDRESS, &[])? == (0, mac.to_vec()));
        exercise(&mut net, &mut rig.wire)?;
    }
    net.set_filter(FILTER_UP)?;
    Ok(net.close(&mut rig.guest.client, Vec::new())?)
}

/// A control message whose answer dies with the process is answered by its successor, once.
#[test]
fn control_messages_are_answered_once() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut net = rig.open(&NetOptions::small())?;
    let mut dice = Dice(3);
    let stop = AtomicBool::new(false);
    // Processes die with the thread that started them, so it is the guest that has one of its own.
    thread::scope(|scope| -> anyhow::Result<()> {
        let (net, stop) = (&mut net, &stop);
        let guest = scope.spawn(move || -> anyhow::Result<()> {
            while !stop.load(Ordering::SeqCst) {
                net.set_filter(FILTER_UP)?;
                ensure!(net.query_word(oid::MEDIA_CONNECT_STATUS)? == 0);
            }
            Ok(())
        });
        for _ in 0..20 {
            thread::sleep(Duration::from_micros(u64::from(dice.roll(5000))));
            rig.vm.restart(DEVICE)?;
        }
        stop.store(true, Ordering::SeqCst);
        guest.join().map_err(|_| anyhow::anyhow!("no panic"))?
    })?;
    ensure!(net.queue().wait(Duration::from_millis(20))?.is_none(), "something was answered twice");
    exercise(&mut net, &mut rig.wire)?;
    Ok(net.close(&mut rig.guest.client, Vec::new())?)
}

/// The process dies with sends under way that nobody reads at the other end.
#[test]
fn a_wire_that_is_full_holds_sends_back() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut net = rig.open(&NetOptions::small())?;
    let series = Series { to: PEER, from: net.device().mac, name: 1, longest: 1514 };
    let (mut next, mut under_way) = (0, Vec::new());
    // Until nothing is completed any more.
    loop {
        match net.queue().send(&series.frame(next), &TxInfo::default())? {
            Room::Sent(id) => {
                under_way.push(id);
                next += 1;
            }
            Room::None => match net.queue().wait(Duration::from_millis(300))? {
                Some(Event::Sent(sent)) => under_way.retain(|&id| id != sent.id),
                Some(other) => anyhow::bail!("{other:?}"),
                None => break,
            },
        }
        ensure!(next < 100_000, "somebody reads");
    }
    rig.vm.restart(DEVICE)?;
    let mut came = Vec::new();
    while came.last() != Some(&(next - 1)) {
        let frame = rig.wire.receive(LIMIT)?.with_context(|| format!("{} of {next}", came.len()))?;
        came.push(series.check(&frame)?.context("whose is it?")?);
    }
    came.dedup();
    while !under_way.is_empty() {
        let Some(Event::Sent(sent)) = net.queue().wait(LIMIT)? else {
            anyhow::bail!("{under_way:?} are lost")
        };
        under_way.retain(|&id| id != sent.id);
    }
    let id = sent(net.queue().send(&series.frame(0), &TxInfo::default())?)?;
    completed(net.queue(), id)?;
    while rig.wire.receive(Duration::from_millis(100))?.is_some() {}
    rig.wire.send(&Series { to: net.device().mac, ..series }.frame(3))?;
    let delivery = delivery(net.queue())?;
    net.queue().give_back(delivery)?;
    Ok(net.close(&mut rig.guest.client, Vec::new())?)
}
