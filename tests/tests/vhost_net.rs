//! A NIC of a virtio driver's, as a process in its compartment: frames, big ones and small ones, and many deaths.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bulkhead_tests::net::Wire;
use bulkhead_tests::net::bench::bulk;
use bulkhead_tests::net::bench::town::{GUEST as GUEST_IP, HOST as HOST_IP, Town};
use bulkhead_tests::net::frame::{Seen, Series};
use bulkhead_tests::steps::{Dice, LIMIT};
use bulkhead_tests::vhost::front::{Manner, Options};
use bulkhead_tests::vhost::nic::{HAND, HEADER, Pair, feature};
use bulkhead_tests::vhost::protocol::{feature as ring_feature, protocol_feature};
use bulkhead_tests::vhost::{Daemon, Front, Memory};
use vsp_net::backend::{Backend, Offloads, TapQueues};

const GUEST: [u8; 6] = [2, 0, 0x5e, 0x10, 0, 1];
const PEER: [u8; 6] = [2, 0, 0x5e, 0x10, 0, 2];
const MEMORY: u64 = 64 << 20;
/// Kills of a campaign.
const KILLS: u32 = 60;
/// Bytes of a header of a TAP's.
const VNET: usize = 10;
const PLAIN: [u8; HEADER] = [0; HEADER];

fn series(to: [u8; 6], from: [u8; 6], name: u32) -> Series {
    Series { to, from, name, longest: 1514 }
}

/// What a front end of a NIC wants.
fn wants() -> Options {
    Options { rings: 2, size: 256, hand: HAND, ..Options::default() }
}

struct Rig {
    wire: Wire,
    daemon: Daemon,
    front: Front,
    pair: Pair,
}

impl Rig {
    fn new(options: Options, more: &[&str], buffer: u32) -> anyhow::Result<Rig> {
        let (wire, theirs) = Wire::new()?;
        let args = ["--mac", "02:00:5e:10:00:01", "--stream-fd", "4"];
        let builder = Daemon::builder("vsp-net").args(args).args(more).fd(&theirs);
        let daemon = builder.held().quiet().start()?;
        let memory = Memory::new(MEMORY)?;
        let (front, rings) = Front::connect(&daemon.socket(), &memory, options)?;
        let queues = <[_; 2]>::try_from(rings).map_err(|_| anyhow::anyhow!("two rings"))?;
        let pair = Pair::new(&memory, queues, buffer)?;
        Ok(Rig { wire, daemon, front, pair })
    }

    fn die(&mut self) -> anyhow::Result<()> {
        self.daemon.kill()?;
        self.daemon.start()?;
        self.front.reconnect(&self.daemon.socket())
    }
}

#[test]
fn frames_go_both_ways() -> anyhow::Result<()> {
    for features in [u64::MAX, !ring_feature::EVENT_IDX, !feature::MRG_RXBUF] {
        let mut rig = Rig::new(Options { features, ..wants() }, &[], 2048)?;
        let (out, into) = (series(PEER, GUEST, 1), series(GUEST, PEER, 2));
        for number in 0..500 {
            while !rig.pair.push(&PLAIN, &out.frame(number))? {
                rig.pair.send.submit()?;
                std::thread::sleep(Duration::from_micros(50));
            }
            rig.pair.send.submit()?;
            rig.wire.send(&into.frame(number))?;
            let sent = rig.wire.receive(LIMIT)?.context("nothing is sent")?;
            ensure!(out.check(&sent)? == Some(number));
            let received = rig.pair.wait(LIMIT)?.context("nothing comes")?;
            ensure!(into.check(&received.frame)? == Some(number));
            ensure!(received.header[..10] == [0; 10] && received.buffers() == 1, "{received:?}");
        }
        rig.pair.drain(LIMIT)?;
        ensure!(rig.pair.receive.under_way() == rig.pair.count() && rig.pair.sent == 500);
        rig.daemon.lives()?;
    }
    Ok(())
}

#[test]
fn a_frame_may_lie_in_many_buffers() -> anyhow::Result<()> {
    let mut rig = Rig::new(wants(), &["--mtu", "9000"], 256)?;
    let (out, into) = (series(PEER, GUEST, 1), series(GUEST, PEER, 2));
    let (out, into) = (Series { longest: 9014, ..out }, Series { longest: 9014, ..into });
    let mut most = 0;
    for number in 0..200 {
        rig.wire.send(&into.frame(number))?;
        ensure!(rig.pair.push(&PLAIN, &out.frame(number))?);
        rig.pair.send.submit()?;
        let received = rig.pair.wait(LIMIT)?.context("nothing comes")?;
        ensure!(into.check(&received.frame)? == Some(number));
        ensure!(usize::from(received.buffers()) == (received.frame.len() + HEADER).div_ceil(256));
        most = most.max(received.buffers());
        ensure!(out.check(&rig.wire.receive(LIMIT)?.context("nothing is sent")?)? == Some(number));
    }
    ensure!(most == 36, "{most}");
    Ok(())
}

#[test]
fn what_a_driver_reads_of_it_is_there() -> anyhow::Result<()> {
    let rig = Rig::new(wants(), &["--mtu", "4000"], 2048)?;
    let config = rig.front.config(24)?;
    ensure!(config[..6] == GUEST && config[6..12] == [1, 0, 1, 0, 0xa0, 0x0f], "{config:?}");
    Ok(())
}

#[test]
fn a_ring_that_stops_gives_back_what_it_has_not_used() -> anyhow::Result<()> {
    let mut rig = Rig::new(wants(), &[], 256)?;
    let into = series(GUEST, PEER, 2);
    for round in 0..20u64 {
        rig.wire.send(&into.frame(round))?;
        let received = rig.pair.wait(LIMIT)?.context("nothing comes")?;
        ensure!(into.check(&received.frame)? == Some(round));
        // It holds some ahead of the next frame; none of them may be gone afterwards.
        let used = rig.pair.receive.place.used_index(&rig.front.memory)?;
        ensure!(rig.front.stop(0)? == used && rig.front.stop(1)? == 0);
        for queue in [0, 1] {
            let (place, wires) = rig.front.ring(queue);
            rig.front.start(&place, &wires)?;
        }
    }
    ensure!(rig.pair.receive.under_way() == rig.pair.count());
    Ok(())
}

/// Kills daemons at random moments while frames go both ways. No send is without an answer or has two; no frame is missing on either
/// side, as a stream gives again what nobody has got; no buffer is lost.
fn campaign(options: Options, buffer: u32, seed: u64) -> anyhow::Result<()> {
    let mut rig = Rig::new(options, &[], buffer)?;
    let (out, into) = (series(PEER, GUEST, 1), series(GUEST, PEER, 2));
    let (mut pushed, mut given) = (0, 0);
    let (mut went, mut came) = (Seen::default(), Seen::default());
    let mut dice = Dice(seed | 1);
    let mut kills = 0;
    let begin = Instant::now();
    while kills < KILLS {
        ensure!(begin.elapsed() < LIMIT * 6, "{kills} kills, {went:?} {came:?}");
        for _ in 0..dice.roll(20) {
            if rig.pair.push(&PLAIN, &out.frame(pushed))? {
                pushed += 1;
            }
        }
        rig.pair.send.submit()?;
        if given < came.different + 40 {
            for _ in 0..dice.roll(20) {
                rig.wire.send(&into.frame(given))?;
                given += 1;
            }
        }
        let kill = dice.roll(4) == 0;
        if kill {
            std::thread::sleep(Duration::from_micros(dice.roll(400).into()));
            rig.die()?;
            kills += 1;
        }
        listen(&mut rig, (&out, &mut went), (&into, &mut came))?;
    }
    let end = Instant::now() + LIMIT;
    while went.different < pushed || came.different < given {
        ensure!(Instant::now() < end, "missing: {:?} {:?}", went.missing(pushed), came.missing(given));
        listen(&mut rig, (&out, &mut went), (&into, &mut came))?;
    }
    rig.pair.drain(LIMIT)?;
    ensure!(rig.pair.sent == pushed, "{} of {pushed} requests have ended", rig.pair.sent);
    ensure!(rig.pair.receive.under_way() == rig.pair.count(), "buffers are lost");
    rig.daemon.lives()
}

/// Takes what has come on either side.
fn listen(
    rig: &mut Rig,
    (out, went): (&Series, &mut Seen),
    (into, came): (&Series, &mut Seen),
) -> anyhow::Result<()> {
    while let Some(frame) = rig.wire.receive(Duration::ZERO)? {
        went.add(out.check(&frame)?.context("not ours")?);
    }
    while let Some(received) = rig.pair.poll()? {
        came.add(into.check(&received.frame)?.context("not theirs")?);
    }
    rig.pair.reap()
}

#[test]
fn kills_under_load() -> anyhow::Result<()> {
    campaign(wants(), 2048, 21)
}

#[test]
fn kills_under_load_in_many_buffers() -> anyhow::Result<()> {
    campaign(wants(), 200, 22)
}

/// As QEMU does it: no list of requests in flight is kept for a NIC.
#[test]
fn kills_under_load_without_a_list() -> anyhow::Result<()> {
    let protocol = wants().protocol & !protocol_feature::INFLIGHT_SHMFD;
    campaign(Options { protocol, ..wants() }, 2048, 23)?;
    campaign(Options { protocol, ..wants() }, 200, 24)
}

#[test]
fn kills_under_load_of_another_front_end() -> anyhow::Result<()> {
    campaign(Options { manner: Manner::CloudHypervisor, ..wants() }, 200, 25)
}

#[test]
fn kills_under_load_of_an_old_driver() -> anyhow::Result<()> {
    let features = !(ring_feature::EVENT_IDX | feature::MRG_RXBUF);
    campaign(Options { features, size: 64, ..wants() }, 2048, 26)
}

/// Between a stack of the host's and one of the guest's, each with a TAP of its own, what a driver does.
struct Relay {
    pair: Pair,
    tap: File,
    /// Long frames that went out, and that came.
    long: [u64; 2],
}

impl Relay {
    /// Passes frames on until it is stopped.
    fn forward(&mut self, stop: &AtomicBool) -> anyhow::Result<()> {
        let mut bytes = vec![0; VNET + 65_562];
        while !stop.load(Ordering::SeqCst) {
            let mut any = false;
            for _ in 0..32 {
                self.pair.reap()?;
                if self.pair.send.under_way() + 1 >= self.pair.count() {
                    break;
                }
                let Ok(len) = self.tap.read(&mut bytes) else { break };
                let mut header = PLAIN;
                header[..VNET].copy_from_slice(&bytes[..VNET]);
                self.long[0] += u64::from(header[1] != 0);
                ensure!(self.pair.push(&header, &bytes[VNET..len])?);
                any = true;
            }
            self.pair.send.submit()?;
            for _ in 0..32 {
                let Some(received) = self.pair.poll()? else { break };
                self.long[1] += u64::from(received.header[1] != 0);
                // What the stack does not want is not our concern.
                let _ = self.tap.write(&[&received.header[..VNET], &received.frame].concat());
                any = true;
            }
            if !any {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        self.pair.drain(LIMIT)
    }
}

/// TCP in both directions between two kernels, with a NIC on a TAP between them that dies so often. How many long frames went each way.
fn tcp(features: u64, offloads: Offloads, deaths: u32) -> anyhow::Result<[u64; 2]> {
    // Towns have the process's name.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _town = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let town = Town::new()?;
    let mac = town.guest.address().map(|byte| format!("{byte:02x}")).join(":");
    let builder = Daemon::builder("vsp-net").args(["--mac", &mac, "--tap-fd", "4"]).fd(&town.host.tap()?);
    let mut daemon = builder.held().quiet().start()?;
    let memory = Memory::new(MEMORY)?;
    let wants = Options { features, size: 512, ..wants() };
    let (mut front, rings) = Front::connect(&daemon.socket(), &memory, wants)?;
    let queues = <[_; 2]>::try_from(rings).map_err(|_| anyhow::anyhow!("two rings"))?;
    let pair = Pair::new(&memory, queues, 2048)?;
    let tap = town.guest.tap()?;
    Backend::Tap(TapQueues::adopt(vec![tap.try_clone()?])?).set_offloads(offloads)?;
    let mut relay = Relay { pair, tap: File::from(tap.try_clone()?), long: [0; 2] };
    let (stop, time) = (AtomicBool::new(false), Duration::from_millis(300 + 200 * u64::from(deaths)));
    std::thread::scope(|scope| {
        let between = scope.spawn(|| relay.forward(&stop));
        let moved = scope.spawn(|| {
            let out = bulk::measure(&town.guest, &town.host, HOST_IP, time)?;
            anyhow::Ok((out, bulk::measure(&town.host, &town.guest, GUEST_IP, time)?))
        });
        let killed = (0..deaths * 2).try_for_each(|_| {
            std::thread::sleep(Duration::from_millis(150));
            daemon.kill()?;
            daemon.start()?;
            front.reconnect(&daemon.socket())
        });
        let moved = moved.join();
        stop.store(true, Ordering::SeqCst);
        between.join().map_err(|_| anyhow::anyhow!("no panic"))??;
        killed?;
        let (out, into) = moved.map_err(|_| anyhow::anyhow!("no panic"))??;
        ensure!(out > 0.0 && into > 0.0, "{out} {into}");
        anyhow::Ok(())
    })?;
    ensure!(relay.pair.receive.under_way() == relay.pair.count(), "buffers are lost");
    daemon.lives()?;
    Ok(relay.long)
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: only root can make network namespaces");
    }
    root
}

#[test]
fn tcp_flows_between_two_kernels_in_long_frames() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let [out, into] = tcp(u64::MAX, Offloads::ALL, 0)?;
    ensure!(out > 10 && into > 10, "{out} long frames out, {into} in");
    Ok(())
}

#[test]
fn tcp_flows_to_a_driver_that_takes_no_unfinished_work() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let offloads = feature::CSUM | feature::GUEST_CSUM;
    let [out, into] = tcp(!offloads, Offloads::NONE, 0)?;
    ensure!((out, into) == (0, 0), "{out} long frames out, {into} in");
    Ok(())
}

#[test]
fn tcp_flows_on_over_many_deaths() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    tcp(u64::MAX, Offloads::ALL, 10).map(drop)
}

/// At each named place, and after having been there some times. Which places a life does not come by is pinned.
#[test]
#[cfg(debug_assertions)]
fn at_each_kill_point_nothing_is_lost() -> anyhow::Result<()> {
    use std::collections::BTreeSet;
    use vhost_face::kill::KillPoint;
    let mut missed = BTreeSet::new();
    for point in KillPoint::ALL {
        for count in [1, 3, 8] {
            // To settle what a predecessor has published there has to be one that died right after.
            let before = (point == KillPoint::Settled).then_some("published:1".to_owned());
            let orders: Vec<_> = before.into_iter().chain([format!("{}:{count}", point.name())]).collect();
            let deaths = life(&orders).with_context(|| format!("{orders:?}"))?;
            if count == 1 && deaths < orders.len() {
                missed.insert(point.name());
            }
        }
    }
    // A front end has its list made once, when it comes; there is nothing of a NIC's in that.
    let expected = BTreeSet::from([KillPoint::InitDue, KillPoint::Initialised].map(KillPoint::name));
    ensure!(missed == expected, "not met: {missed:?}");
    Ok(())
}

/// A life of frames, at the end of which the rings stop. One daemon after the other dies as ordered; how many have.
#[cfg(debug_assertions)]
fn life(orders: &[String]) -> anyhow::Result<usize> {
    const FRAMES: u64 = 40;
    let mut rig = Rig::new(wants(), &[], 200)?;
    let (out, into) = (series(PEER, GUEST, 1), series(GUEST, PEER, 2));
    let (mut went, mut came) = (Seen::default(), Seen::default());
    let (mut pushed, mut deaths) = (0, 0);
    rig.daemon.kill()?;
    succeed(&mut rig, orders, &mut deaths)?;
    let begin = Instant::now();
    while went.different < FRAMES || came.different < FRAMES {
        ensure!(begin.elapsed() < LIMIT, "{:?} {:?}", went.missing(FRAMES), came.missing(FRAMES));
        if pushed < FRAMES && pushed < went.different + 4 {
            ensure!(rig.pair.push(&PLAIN, &out.frame(pushed))?);
            rig.pair.send.submit()?;
            rig.wire.send(&into.frame(pushed))?;
            pushed += 1;
        }
        listen(&mut rig, (&out, &mut went), (&into, &mut came))?;
        if rig.daemon.child().try_wait()?.is_some() {
            deaths += 1;
            succeed(&mut rig, orders, &mut deaths)?;
        }
    }
    rig.pair.drain(LIMIT)?;
    if rig.front.stop(0).is_err() || rig.front.stop(1).is_err() {
        deaths += 1;
        rig.daemon.ended()?;
        succeed(&mut rig, orders, &mut deaths)?;
    }
    ensure!(rig.pair.receive.under_way() == rig.pair.count(), "buffers are lost");
    Ok(deaths)
}

/// Starts the next daemon, with its order if there is one left, and has the front end connect; it may die on the way.
#[cfg(debug_assertions)]
fn succeed(rig: &mut Rig, orders: &[String], deaths: &mut usize) -> anyhow::Result<()> {
    loop {
        match orders.get(*deaths) {
            Some(order) => rig.daemon.start_with(&["--kill-point", order])?,
            None => rig.daemon.start()?,
        }
        match rig.front.reconnect(&rig.daemon.socket()) {
            Ok(()) => return Ok(()),
            Err(error) => {
                let status = rig.daemon.ended().with_context(|| format!("refused: {error}"))?;
                ensure!(orders.get(*deaths).is_some(), "without an order it ended with {status}: {error}");
                *deaths += 1;
            }
        }
    }
}
