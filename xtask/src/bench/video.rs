//! `bench video`: a guest's screen and keyboard, natively on the software partition, as far as a viewer on the same host.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use policies::Policy;

use super::table::{Asked, Figure, median};
use crate::{build, sh};

/// Packages with our programs.
const OURS: [&str; 4] = ["vsp-video", "vsp-hid", "bulkhead-console", "bulkhead-tests"];
/// Whole pictures of 1920x1080 a second.
const REDRAWS: f64 = 60.0;
/// Microseconds from a viewer's message to the guest.
const KEY: f64 = 1000.0;
/// Percent of a processor while nothing happens: what the clock's resolution leaves of nothing.
const IDLE: f64 = 0.01;
/// Milliseconds from SIGKILL to the first pixel after it, when a process has to be started.
const COLD: f64 = 50.0;
/// System calls of the processes in their compartments.
const CALLS: [(&str, f64); 2] = [("vsp-video", 15.0), ("vsp-hid", 12.0)];
/// Strokes in each round.
const STROKES: u32 = 200;
/// Kills in each round.
const KILLS: u32 = 10;

/// Measures everything.
pub fn measure(build_first: bool, rounds: u32, time: Duration) -> Result<Vec<Figure>> {
    if build_first {
        build::programs(&OURS)?;
    }
    let mut side = Side::start(&build::target_directory().join("release"))?;
    let time = time.as_millis();
    let rows = [
        (
            "1920x1080 redrawn wholly, to a raw viewer (pictures/s)",
            format!("redraws {time}"),
            Asked::AtLeast(REDRAWS),
        ),
        ("key press at a viewer to the guest, p50 (us)", format!("key {STROKES}"), Asked::AtMost(KEY)),
        ("  the same, p99 (us)", format!("key-p99 {STROKES}"), Asked::AtMost(KEY)),
        ("four processes while nothing happens (% of a CPU)", format!("idle {time}"), Asked::AtMost(IDLE)),
        ("kill of vsp-video to the first pixel, p50 (ms)", format!("kill {KILLS}"), Asked::AtMost(COLD)),
        (
            "kill of the console to a new viewer's picture, p50 (ms)",
            format!("kill-console {KILLS}"),
            Asked::AtMost(COLD),
        ),
    ];
    let mut figures = Vec::new();
    for (what, order, asked) in rows {
        figures.push(sh::step(what.trim(), || {
            let all: Result<Vec<f64>> = (0..rounds).map(|_| side.ask(&order)).collect();
            Ok(Figure::alone(what, median(all?).context("no rounds")?, asked))
        })?);
    }
    for (name, most) in CALLS {
        let policy = Policy::named(name).with_context(|| format!("no policy {name}"))?;
        figures.push(Figure::alone(
            &format!("system calls in the life of {name}"),
            calls(&policy),
            Asked::AtMost(most),
        ));
    }
    Ok(figures)
}

/// Those of an ordinary life: a test sees to it that such a life makes use of each. What is marked as rare in the policy (a
/// growing heap, a panic) is not in it.
fn calls(policy: &Policy) -> f64 {
    let usual = policy.rules().iter().filter(|rule| !rule.rare && !rule.refused);
    usual.map(|rule| rule.syscall).collect::<BTreeSet<_>>().len() as f64
}

/// The program that measures. What it understands is in `tests/src/screen/bench.rs`.
struct Side {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Side {
    fn start(programs: &Path) -> Result<Self> {
        let mut command = Command::new(programs.join("bench-video"));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting bench-video")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut side = Self { child, input, output };
        let hello = side.line().context("bench-video does not start")?;
        ensure!(hello == "ready", "bench-video begins with {hello:?}");
        Ok(side)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "it has ended");
        Ok(line.trim().to_owned())
    }

    fn ask(&mut self, order: &str) -> Result<f64> {
        writeln!(self.input.as_mut().context("no input")?, "{order}")?;
        let answer = self.line().with_context(|| format!("asked for {order:?}"))?;
        let value = answer.strip_prefix("measured ").and_then(|value| value.parse().ok());
        value.with_context(|| format!("{order:?} is answered with {answer:?}"))
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // The end of its input is its end, and that of what it has started.
        self.input = None;
        let _ = self.child.wait();
    }
}
