//! Measures on demand, natively: orders come as lines, answers go as lines. What `cargo xtask bench video` starts.
//!
//! * `redraws MS`: whole pictures of 1920x1080 a second that a raw viewer on a Unix socket gets of a guest which draws all the time
//! * `key COUNT`, `key-p99 COUNT`: microseconds from the viewer's message to the guest's having the stroke
//! * `idle MS`: percent of a processor that all four processes use together while nothing happens and a viewer waits
//! * `kill COUNT`: milliseconds from SIGKILL of the screen's process to the first pixel after it, the median
//! * `kill-console COUNT`: the same of the console's process, to the whole picture at a viewer that comes
//!
//! Each is answered with `measured VALUE`. The first line is `ready`. The end of the input is the end.

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use vsc::video::Situation;

use super::picture::{Area, Format};
use super::rig::{DEVICES, VIDEO};
use super::viewer::{Options, encoding};
use super::{Canvas, Rig, Viewer};
use crate::guest::Interrupts;
use crate::steps::LIMIT;

const FULL_HD: Situation = Situation::of(1920, 1080);
/// Part of the time that does not count.
const WARM_UP: u32 = 4;
/// Pause between two strokes: as somebody types, and more than keys are paced with.
const BETWEEN_KEYS: Duration = Duration::from_millis(5);
/// Pictures that a guest draws in turns, so that each differs from the one before in every tile.
const FRAMES: u32 = 3;

/// Serves orders.
pub fn serve(input: impl BufRead, mut output: impl Write) -> anyhow::Result<()> {
    writeln!(output, "ready")?;
    output.flush()?;
    for line in input.lines() {
        let value = follow(&line?)?;
        writeln!(output, "measured {value}")?;
        output.flush()?;
    }
    Ok(())
}

fn follow(order: &str) -> anyhow::Result<f64> {
    let (what, number) = order.split_once(' ').with_context(|| format!("no order: {order:?}"))?;
    let number: u64 = number.parse()?;
    match what {
        "redraws" => redraws(Duration::from_millis(number)),
        "key" => key(number, 50),
        "key-p99" => key(number, 99),
        "idle" => idle(Duration::from_millis(number)),
        "kill" => kill(number),
        "kill-console" => kill_console(number),
        other => bail!("{other:?} cannot be measured"),
    }
}

fn raw() -> Options<'static> {
    Options { encodings: &[encoding::RAW, encoding::DESKTOP_SIZE], format: Format::RGB32, password: None }
}

/// A guest that shows something, and a viewer that has seen it.
fn seated() -> anyhow::Result<(Rig, Canvas, Viewer)> {
    let mut rig = Rig::new()?;
    let canvas = rig.canvas(FULL_HD)?;
    let mut viewer = rig.console()?.viewer(&raw())?;
    viewer.until(|viewer| viewer.size() == (1920, 1080))?;
    viewer.until_same(&canvas.picture)?;
    Ok((rig, canvas, viewer))
}

fn redraws(time: Duration) -> anyhow::Result<f64> {
    let (_rig, canvas, mut viewer) = seated()?;
    let stop = AtomicBool::new(false);
    let frames: Vec<Vec<u8>> = (0..FRAMES).map(frame).collect();
    thread::scope(|scope| {
        let (stop, frames) = (&stop, &frames);
        let guest = scope.spawn(move || draw(canvas, frames, stop));
        let measured = look(&mut viewer, time);
        stop.store(true, Ordering::SeqCst);
        guest.join().map_err(|_| anyhow!("no panic"))??;
        measured
    })
}

fn frame(n: u32) -> Vec<u8> {
    let pixel = |at: u32| at.wrapping_mul(0x0101_0101 * (n + 1)) ^ (0x0055_aa00 * n);
    (0..1920 * 1080).flat_map(|at| pixel(at / 7).to_le_bytes()).collect()
}

/// Draws all the time, one picture after the other, and says so.
fn draw(mut canvas: Canvas, frames: &[Vec<u8>], stop: &AtomicBool) -> anyhow::Result<()> {
    let all = canvas.whole();
    for frame in frames.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        canvas.video.draw(0, 0, all.width, frame)?;
        canvas.tell(&[all])?;
    }
    Ok(())
}

/// Whole pictures a second.
fn look(viewer: &mut Viewer, time: Duration) -> anyhow::Result<f64> {
    let whole = viewer.whole().pixels() as f64;
    let mut look_for = |time: Duration| -> anyhow::Result<f64> {
        let (begun, before) = (Instant::now(), viewer.counts.pixels);
        while begun.elapsed() < time {
            viewer.refresh(true)?;
            viewer.next_update(LIMIT)?;
        }
        Ok((viewer.counts.pixels - before) as f64 / whole / begun.elapsed().as_secs_f64())
    };
    look_for(time / WARM_UP)?;
    look_for(time)
}

/// A percentile, in microseconds.
fn key(count: u64, percentile: u64) -> anyhow::Result<f64> {
    let mut rig = Rig::with(|vm| vm.interrupts(Interrupts::Direct(Duration::ZERO)), &Default::default())?;
    let mut keyboard = rig.keyboard()?;
    rig.console()?.wait("ready", |state| state["keyboard"] == true)?;
    let mut viewer = rig.viewer()?;
    let mut all = Vec::new();
    for n in 0..count + 10 {
        thread::sleep(BETWEEN_KEYS);
        let begun = Instant::now();
        viewer.key(n % 2 == 0, 0x61)?;
        let stroke = keyboard.stroke(LIMIT)?.context("a stroke is lost")?;
        let took = begun.elapsed();
        ensure!(stroke.up == (n % 2 == 1), "{stroke:?}");
        if n >= 10 {
            all.push(took);
        }
    }
    all.sort_unstable();
    let at = all.len() * percentile as usize / 100;
    Ok(all.get(at).context("no stroke")?.as_secs_f64() * 1e6)
}

/// Percent of a processor.
fn idle(time: Duration) -> anyhow::Result<f64> {
    let (mut rig, _canvas, mut viewer) = seated()?;
    let (_keyboard, _mouse) = (rig.keyboard()?, rig.mouse()?);
    viewer.refresh(true)?;
    // All is looked at once more a second after somebody has come.
    thread::sleep(Duration::from_millis(1500));
    let mut pids = vec![rig.console()?.process().pid()];
    pids.extend(DEVICES.map(|name| rig.vm.device(name).pid()));
    let used = |pids: &[u32]| pids.iter().map(|&pid| ran(pid)).sum::<anyhow::Result<u64>>();
    let (before, begun) = (used(&pids)?, Instant::now());
    thread::sleep(time);
    let after = used(&pids)?;
    Ok((after - before) as f64 / begun.elapsed().as_nanos() as f64 * 100.0)
}

/// Nanoseconds that a process has run.
fn ran(pid: u32) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    Ok(stat.split_whitespace().next().context("no time")?.parse()?)
}

fn median(mut all: Vec<Duration>) -> anyhow::Result<f64> {
    all.sort_unstable();
    Ok(all.get(all.len() / 2).context("nobody was killed")?.as_secs_f64() * 1000.0)
}

fn kill(count: u64) -> anyhow::Result<f64> {
    let (mut rig, mut canvas, mut viewer) = seated()?;
    let mut all = Vec::new();
    for n in 0..count as u32 {
        thread::sleep(Duration::from_millis(20));
        let begun = Instant::now();
        rig.vm.device(VIDEO).kill()?;
        // A pixel that is drawn while nobody serves.
        let area = Area { x: n, y: 0, width: 1, height: 1 };
        canvas.paint(area, &[0x12_3456 + n])?;
        rig.vm.restart(VIDEO)?;
        viewer.until(|viewer| viewer.pixel(n, 0)[..3] == (0x12_3456 + n).to_le_bytes()[..3])?;
        all.push(begun.elapsed());
        canvas.video.settle()?;
    }
    median(all)
}

fn kill_console(count: u64) -> anyhow::Result<f64> {
    let (mut rig, mut canvas, _) = seated()?;
    let mut all = Vec::new();
    for n in 0..count as u32 {
        thread::sleep(Duration::from_millis(20));
        canvas.paint(Area { x: n, y: 0, width: 1, height: 1 }, &[0x12_3456 + n])?;
        let begun = Instant::now();
        rig.console()?.restart()?;
        let mut viewer = rig.console()?.viewer(&raw())?;
        viewer.until(|viewer| {
            viewer.size() == (1920, 1080) && viewer.pixel(n, 0)[..3] == (0x12_3456 + n).to_le_bytes()[..3]
        })?;
        all.push(begun.elapsed());
    }
    median(all)
}
