//! No rule without a use, in the policies of daemons that serve by vhost-user: an honest front end and guest use every rule but those marked
//! `rare:`, and nothing that is not allowed. (Each rule by itself is executed by `sandbox/tests/compartment`.)

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bulkhead_tests::disk::Disk;
use bulkhead_tests::net::Wire;
use bulkhead_tests::net::bench::town::Town;
use bulkhead_tests::net::frame::Series;
use bulkhead_tests::net::load::PEER;
use bulkhead_tests::steps::LIMIT;
use bulkhead_tests::vhost::blk::{Blk, OK, Op};
use bulkhead_tests::vhost::daemon::MAC;
use bulkhead_tests::vhost::front::{Options, Tell};
use bulkhead_tests::vhost::nic::{HAND, HEADER, Pair};
use bulkhead_tests::vhost::protocol::protocol_feature;
use bulkhead_tests::vhost::{Daemon, Front, Memory, load::Load};
use sandbox::policies::{self, Policy, Rule, audit::Usage};

const SIZE: u64 = 16 << 20;
const MEMORY: u64 = 64 << 20;

#[test]
fn a_life_uses_every_rule_of_the_storage_policy() -> anyhow::Result<()> {
    if !may_trace() {
        return Ok(());
    }
    let disk = Disk::new(SIZE)?;
    let builder = Daemon::builder("vsp-storage").args(["--disk", &disk.argument("")]);
    let mut daemon = builder.held().traced().start()?;
    for tell in [Tell::Table, Tell::Regions] {
        let memory = Memory::new(MEMORY)?;
        let protocol = Options::default().protocol | protocol_feature::CONFIGURE_MEM_SLOTS;
        let wants = Options { rings: 2, tell, protocol, ..Options::default() };
        let (mut front, rings) = Front::connect(&daemon.socket(), &memory, wants)?;
        front.config(60)?;
        let load = Load::start(&memory, rings, 16, SIZE / 512, 5)?;
        ensure!(load.pulse.wait_beats(300, LIMIT), "the load stands still");
        let (place, wires) = front.ring(0);
        front.stop(0)?;
        front.start(&place, &wires)?;
        // In the middle of it the front end leaves and comes back.
        front.line.hang_up()?;
        front.reconnect(&daemon.socket())?;
        ensure!(load.pulse.wait_beats(300, LIMIT), "the load stands still");
        let (tally, mut rings) = load.finish(&disk)?;
        ensure!(tally.is_clean(), "{tally:#?}");
        let mut blk = Blk::new(&memory, rings.remove(0), 4, true)?;
        for op in [Op::Flush, Op::Discard, Op::WriteZeroes] {
            ensure!(blk.does(op, 0, 4096)? == OK, "{op:?}");
        }
        // The load's model is of an empty disk.
        disk.file.set_len(0)?;
        disk.file.set_len(SIZE)?;
    }
    audit(&mut daemon, &policies::VSP_STORAGE_VHOST)
}

#[test]
fn a_life_uses_every_rule_of_the_policy_of_a_nic_on_a_stream() -> anyhow::Result<()> {
    if !may_trace() {
        return Ok(());
    }
    let (mut wire, theirs) = Wire::new()?;
    let mut daemon = Daemon::net(&theirs, 1).held().traced().start()?;
    let out = Series { to: PEER, from: MAC, name: 41, longest: 1514 };
    let into = Series { to: MAC, from: PEER, name: 42, longest: 1514 };
    for _ in 0..2 {
        let memory = Memory::new(MEMORY)?;
        let (front, rings) = Front::connect(&daemon.socket(), &memory, nic())?;
        let mut pair = pair(&memory, rings)?;
        front.config(12)?;
        for number in 0..200 {
            ensure!(pair.push(&[0; HEADER], &out.frame(number))?, "no room");
            pair.send.submit()?;
            let came = wire.receive(LIMIT)?.context("nothing comes out")?;
            ensure!(out.check(&came)? == Some(number));
            wire.send(&into.frame(number))?;
            let came = pair.wait(LIMIT)?.context("nothing comes in")?;
            ensure!(into.check(&came.frame)? == Some(number));
        }
        (0..2).try_for_each(|ring| front.stop(ring).map(drop))?;
    }
    audit(&mut daemon, &policies::VSP_NET_STREAM_VHOST)
}

#[test]
fn a_life_uses_every_rule_of_the_policy_of_a_nic_on_a_tap() -> anyhow::Result<()> {
    if !may_trace() {
        return Ok(());
    }
    let town = Town::new()?;
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    let builder = Daemon::builder("vsp-net").args(["--mac", &mac, "--tap-fd", "4"]).fd(&town.host.tap()?);
    let mut daemon = builder.held().traced().start()?;
    for _ in 0..2 {
        let memory = Memory::new(MEMORY)?;
        let (front, rings) = Front::connect(&daemon.socket(), &memory, nic())?;
        let mut pair = pair(&memory, rings)?;
        for n in 0..50 {
            // A frame that is all headers goes by another call than one with something behind them.
            who_is_there(&mut pair, [SHORTEST, LONG][n % 2])?;
        }
        (0..2).try_for_each(|ring| front.stop(ring).map(drop))?;
    }
    audit(&mut daemon, &policies::VSP_NET_VHOST)
}

fn pair(memory: &std::sync::Arc<Memory>, rings: Vec<bulkhead_tests::vhost::Ring>) -> anyhow::Result<Pair> {
    let [receive, send] = <[_; 2]>::try_from(rings).map_err(|_| anyhow::anyhow!("two rings"))?;
    Pair::new(memory, [receive, send], 2048)
}

/// What a front end of a NIC wants: no offloads.
fn nic() -> Options {
    let offloads = 1 << 0 | 1 << 1 | 0xf << 7 | 0xf << 11;
    Options { features: !offloads, rings: 2, hand: HAND, ..Options::default() }
}

/// Bytes of a frame with a question and nothing else.
const SHORTEST: usize = 42;
/// Bytes of a frame that is longer than any headers.
const LONG: usize = 600;

/// Asks the host's stack for its hardware address (RFC 826), in a frame of so many bytes, and waits for the answer.
fn who_is_there(pair: &mut Pair, bytes: usize) -> anyhow::Result<()> {
    let mut question = [[0xff; 6], MAC].concat();
    question.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    question.extend(MAC);
    question.extend([10, 118, 0, 9, 0, 0, 0, 0, 0, 0, 10, 118, 0, 1]);
    question.resize(bytes, 0);
    ensure!(pair.push(&[0; HEADER], &question)?, "no room");
    pair.send.submit()?;
    let begin = Instant::now();
    while begin.elapsed() < LIMIT {
        // The stack may have questions of its own.
        let frame = pair.wait(LIMIT)?.context("nothing comes in")?.frame;
        if frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
            return pair.drain(LIMIT);
        }
    }
    anyhow::bail!("no answer")
}

/// The kernel lets nobody else look at the memory of a process in its compartment.
fn may_trace() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: only root may trace a process in its compartment; the policies were NOT audited");
    }
    root
}

/// Ends the daemon and holds what it did against its policy.
fn audit(daemon: &mut Daemon, policy: &Policy) -> anyhow::Result<()> {
    // While nothing is asked of it, it sleeps.
    std::thread::sleep(Duration::from_millis(50));
    daemon.end_traced()?;
    let mut usage = Usage::default();
    usage.read(&daemon.trace()?);
    ensure!(usage.policies().any(|seen| seen.name == policy.name), "{} was never in force", policy.name);
    ensure!(usage.denied().is_empty(), "denied: {:?}", usage.denied());
    let unused = usage.unused(policy);
    ensure!(unused.is_empty(), "nothing used these rules of {}: {}", policy.name, list(&unused));
    Ok(())
}

fn list(rules: &[&Rule]) -> String {
    let name = |rule: &&Rule| {
        let conditions = rule.conditions.iter().map(|condition| format!(" {}", condition.name));
        format!("{}{}", rule.syscall, conditions.collect::<String>())
    };
    rules.iter().map(name).collect::<Vec<_>>().join(", ")
}
