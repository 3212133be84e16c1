//! Measures on demand: orders come as lines, answers go as lines.
//!
//! * `tcp-out`, `tcp-in`, `small-out`, `small-in` or `ping`, then `plain` or `ours`, then milliseconds: answered with
//!   `measured VALUE`, in bytes a second, frames a second, or microseconds. Out is from the guest.
//! * `kills COUNT` with `measured VALUE`: milliseconds from SIGKILL of the process to the first frame after it, the median.
//!
//! The first line is `ready`. The end of the input is the end.

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use vsc::net::NetOptions;

use super::relay::Relay;
use super::town::{GUEST, HOST, Stack, Town};
use super::{Way, bulk, ping, plain, small};
use crate::net::load::Load;
use crate::net::rig::DEVICE;
use crate::net::{Memory, Rig};
use crate::steps::LIMIT;

/// What is measured.
#[derive(Debug, Clone, Copy)]
enum What {
    TcpOut,
    TcpIn,
    SmallOut,
    SmallIn,
    Ping,
}

/// Serves until the input ends.
pub fn serve(memory: Memory, mtu: u32, input: impl BufRead, mut output: impl Write) -> anyhow::Result<()> {
    let town = Town::new()?;
    for stack in [&town.host, &town.guest] {
        stack.run(&format!("link set tap mtu {mtu}"))?;
    }
    writeln!(output, "ready")?;
    output.flush()?;
    for line in input.lines() {
        let value = order(&town, memory, mtu, &line?)?;
        writeln!(output, "measured {value}")?;
        output.flush()?;
    }
    Ok(())
}

fn order(town: &Town, memory: Memory, mtu: u32, line: &str) -> anyhow::Result<f64> {
    let words: Vec<&str> = line.split_whitespace().collect();
    if let ["kills", count] = words[..] {
        return kills(count.parse()?, memory);
    }
    let [what, way, time] = words[..] else { bail!("three words are wanted: {line:?}") };
    let what = match what {
        "tcp-out" => What::TcpOut,
        "tcp-in" => What::TcpIn,
        "small-out" => What::SmallOut,
        "small-in" => What::SmallIn,
        "ping" => What::Ping,
        other => bail!("{other:?} cannot be measured"),
    };
    let way = match way {
        "plain" => Way::Plain,
        "ours" => Way::Ours,
        other => bail!("{other:?} is no way"),
    };
    measure(town, what, way, memory, mtu, Duration::from_millis(time.parse().context("milliseconds")?))
}

fn measure(
    town: &Town,
    what: What,
    way: Way,
    memory: Memory,
    mtu: u32,
    time: Duration,
) -> anyhow::Result<f64> {
    let (host, guest) = (town.host.tap()?, town.guest.tap()?);
    let mut relay = match way {
        Way::Plain => None,
        Way::Ours => Some(Relay::start(host.clone(), &guest, town.guest.address(), memory, mtu)?),
    };
    match (what, &mut relay) {
        (What::SmallOut, None) => return small::out_plainly(&town.host, &host, time),
        (What::SmallOut, Some(relay)) => return small::out(&town.host, relay, time),
        (What::SmallIn, None) => return small::into_plainly(&town.host, &host, time),
        (What::SmallIn, Some(relay)) => return small::into(&town.host, relay, time),
        _ => {}
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let between = scope.spawn(|| match relay {
            None => plain::forward([&host, &guest], &stop),
            Some(mut relay) => relay.forward(&stop),
        });
        let measured = between_stacks(&town.host, &town.guest, what, time);
        stop.store(true, Ordering::SeqCst);
        between.join().map_err(|_| anyhow!("what is between panicked"))??;
        measured
    })
}

fn between_stacks(host: &Stack, guest: &Stack, what: What, time: Duration) -> anyhow::Result<f64> {
    match what {
        What::TcpOut => bulk::measure(guest, host, HOST, time),
        What::TcpIn => bulk::measure(host, guest, GUEST, time),
        What::Ping => Ok(ping::measure(host, guest, GUEST, time)?.as_secs_f64() * 1e6),
        What::SmallOut | What::SmallIn => bail!("not between stacks"),
    }
}

/// Under a load both ways, every frame of which is checked.
fn kills(count: u64, memory: Memory) -> anyhow::Result<f64> {
    let mut rig = Rig::with(|vm| vm, |nic| nic.memory = memory)?;
    let net = rig.open(&NetOptions::small())?;
    let load = Load::start(net, Vec::new(), &rig.wire)?;
    let mut all = Vec::new();
    for n in 1..=count {
        anyhow::ensure!(load.pulse.wait_beats(200, LIMIT), "the load stands still before kill {n}");
        thread::sleep(Duration::from_millis(20));
        let begun = Instant::now();
        rig.vm.device(DEVICE).kill()?;
        rig.vm.device(DEVICE).wait()?;
        let number = load.pulse.died();
        rig.vm.restart(DEVICE)?;
        let at = load.pulse.wait(number, LIMIT).with_context(|| format!("nothing comes after kill {n}"))?;
        all.push(at.saturating_duration_since(begun));
    }
    let (tally, net, _) = load.finish()?;
    tally.check(count)?;
    net.close(&mut rig.guest.client, Vec::new())?;
    all.sort_unstable();
    let median = all.get(all.len() / 2).context("nobody was killed")?;
    Ok(median.as_secs_f64() * 1000.0)
}
