//! The rounds, natively on the software partition.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use policies::{Policy, VSP_NET, VSP_NET_STREAM};

use super::side::Side;
use crate::bench::table::{Asked, Figure, Peer, Reference, median};
use crate::{apt, build, sh};

/// Debian packages: `ip`.
const PACKAGES: [&str; 1] = ["iproute2"];
/// Packages with our programs.
const OURS: [&str; 2] = ["vsp-net", "bulkhead-tests"];
/// A rate, as a part of the plain loop's.
const RATE: f64 = 0.8;
/// Microseconds that a round trip may take longer.
const ADDED: f64 = 20.0;
/// Milliseconds from SIGKILL to the first packet after it, when a process has to be started.
const COLD: f64 = 10.0;
/// System calls of a process in its compartment.
const CALLS: f64 = 15.0;
/// What `memory = "confined"` may cost to be the default: a tenth.
const CONFINED: f64 = 0.9;
/// Kills in each round.
const KILLS: u32 = 15;

/// A rate, and what it is divided by to be read.
struct Row {
    what: &'static str,
    order: &'static str,
    unit: f64,
}

const ROWS: [Row; 4] = [
    Row { what: "TCP from the guest, one stream (Gbit/s)", order: "tcp-out", unit: 1e9 / 8.0 },
    Row { what: "TCP to the guest, one stream (Gbit/s)", order: "tcp-in", unit: 1e9 / 8.0 },
    Row { what: "64-byte frames from the guest (1000/s)", order: "small-out", unit: 1e3 },
    Row { what: "64-byte frames to the guest (1000/s)", order: "small-in", unit: 1e3 },
];

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Build our programs first.
    pub build: bool,
    /// How often each pair is measured.
    pub rounds: u32,
    /// How long each time.
    pub time: Duration,
}

/// Measures everything.
pub fn measure(options: Options) -> Result<Vec<Figure>> {
    apt::ensure(&PACKAGES)?;
    ensure!(apt::is_root(), "only root can make TAPs and network namespaces");
    if options.build {
        build::programs(&OURS)?;
    }
    let programs = build::target_directory().join("release");
    let mut confined = Side::start(&programs, false)?;
    let mut full = Side::start(&programs, true)?;
    let time = options.time.as_millis();
    let mut figures = Vec::new();
    for row in &ROWS {
        let (plain, ours) = (format!("{} plain {time}", row.order), format!("{} ours {time}", row.order));
        figures.extend(sh::step(row.what, || {
            let series = rounds(options.rounds, |side| match side {
                0 => confined.ask(&plain),
                1 => confined.ask(&ours),
                _ => full.ask(&ours),
            })?;
            row.figures(&series)
        })?);
        eprint!("{}", crate::bench::table::text(&figures[figures.len() - 2..]));
    }
    figures.push(sh::step("round trips", || {
        let series = rounds(options.rounds, |side| match side {
            0 => confined.ask(&format!("ping plain {time}")),
            1 => confined.ask(&format!("ping ours {time}")),
            _ => full.ask(&format!("ping ours {time}")),
        })?;
        added(&series)
    })?);
    figures.push(sh::step("killing under load", || {
        let all: Result<Vec<f64>> =
            (0..options.rounds).map(|_| confined.ask(&format!("kills {KILLS}"))).collect();
        let value = median(all?).context("no rounds")?;
        Ok(Figure::alone("kill to the first frame after it, p50 (ms)", value, Asked::AtMost(COLD)))
    })?);
    for (what, policy) in [
        ("system calls in the life of a NIC on a TAP", &VSP_NET),
        ("system calls in the life of a NIC on passt", &VSP_NET_STREAM),
    ] {
        figures.push(Figure::alone(what, calls(policy), Asked::AtMost(CALLS)));
    }
    Ok(figures)
}

/// Lets the sides take turns: plain, confined, full. One round that does not count comes first, for everybody to warm up.
fn rounds(rounds: u32, mut ask: impl FnMut(usize) -> Result<f64>) -> Result<[Vec<f64>; 3]> {
    let mut series = [const { Vec::new() }; 3];
    for round in 0..=rounds as usize {
        // Who goes first changes, so that a drift of the machine's speed favours nobody.
        for n in 0..series.len() {
            let side = (n + round) % series.len();
            let value = ask(side)?;
            if round > 0 {
                series[side].push(value);
            }
        }
    }
    Ok(series)
}

impl Row {
    /// Ours beside the plain loop's, and what it costs to be confined.
    fn figures(&self, series: &[Vec<f64>; 3]) -> Result<Vec<Figure>> {
        let scaled = |values: &Vec<f64>| values.iter().map(|value| value / self.unit).collect::<Vec<f64>>();
        let [plain, confined, full] = series.each_ref().map(scaled);
        let paired =
            |name, ours: &[f64], theirs: &[f64]| Reference::paired(name, ours, theirs).context("no rounds");
        let value = median(confined.clone()).context("no rounds")?;
        let with_all = paired("loop", &full, &plain)?;
        let peer =
            Peer { name: "full", value: median(full.clone()).context("no rounds")?, ratio: with_all.ratio };
        Ok(vec![
            Figure {
                what: self.what.to_owned(),
                ours: value,
                reference: Some(paired("loop", &confined, &plain)?),
                peer: Some(peer),
                asked: Asked::RatioAtLeast(RATE),
            },
            Figure {
                what: "  the same, confined against full".to_owned(),
                ours: value,
                reference: Some(paired("full", &confined, &full)?),
                peer: None,
                asked: Asked::RatioAtLeast(CONFINED),
            },
        ])
    }
}

/// What is added to a round trip: the median of the pairs' differences, in microseconds.
fn added([plain, confined, _]: &[Vec<f64>; 3]) -> Result<Figure> {
    let differences = confined.iter().zip(plain).map(|(ours, plain)| ours - plain).collect();
    let value = median(differences).context("no rounds")?;
    Ok(Figure::alone("added to a round trip of the loop (us)", value, Asked::AtMost(ADDED)))
}

/// Those of an ordinary life: a test sees to it that such a life makes use of each. What is marked as rare in the policy (a
/// growing heap, a panic) is not in it.
fn calls(policy: &Policy) -> f64 {
    let usual = policy.rules().iter().filter(|rule| !rule.rare && !rule.refused);
    usual.map(|rule| rule.syscall).collect::<BTreeSet<_>>().len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_judged_by_the_loops() {
        let series = [vec![2e6, 2e6, 1e6], vec![1.7e6, 1e6, 0.9e6], vec![1.7e6, 2e6, 0.9e6]];
        let figures = ROWS[2].figures(&series).unwrap();
        assert_eq!(figures[0].ours, 1000.0);
        assert!(figures[0].met() && figures[1].met());
        assert_eq!(figures[0].ratio(), Some(0.85));
    }

    #[test]
    fn what_is_added_is_the_difference_of_pairs() {
        let figure = added(&[vec![10.0, 30.0, 20.0], vec![25.0, 44.0, 100.0], Vec::new()]).unwrap();
        assert_eq!(figure.ours, 15.0);
        assert!(figure.met());
    }

    #[test]
    fn the_sides_take_turns_and_the_first_round_does_not_count() {
        let mut order = Vec::new();
        let series = rounds(2, |side| {
            order.push(side);
            Ok(side as f64)
        });
        assert_eq!(order, [0, 1, 2, 1, 2, 0, 2, 0, 1]);
        assert_eq!(series.unwrap()[1], [1.0, 1.0]);
    }
}
