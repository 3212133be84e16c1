//! `bench continuity`: how long a guest waits for a device whose process has died or is replaced, and what it costs to
//! be able to. Natively, on the software partition.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};

use super::table::{Asked, Figure, Reference, median};
use crate::{chaos, sh};

/// Milliseconds from SIGKILL to the first completion after it, when a process has to be started.
const COLD: (f64, f64) = (10.0, 20.0);
/// The same with a process that stands by.
const SPARE: (f64, f64) = (1.0, 2.0);
/// Milliseconds that a planned swap may stop the guest's requests.
const SWAP: f64 = 2.0;
/// Time a read with the ledger over that without it.
const LEDGER: f64 = 1.03;

/// The load under which the times are judged, as the campaign takes it: 32 requests of up to 4 KiB on their way, over 4 queues.
const LOAD: [&str; 4] = ["--depth", "8", "--longest", "8"];
/// And the campaigns' own, which is shown beside it: 128 of up to 64 KiB. What the dead process had begun has to end first.
const FULL: [&str; 0] = [];

/// Measures everything.
pub fn measure(build: bool, rounds: u32) -> Result<Vec<Figure>> {
    let campaign = chaos::campaign(build)?;
    let run = |load: &[&str], what: &str| -> Result<Values> {
        let mut command = Command::new(campaign.get_program());
        command.args(["figures", "--rounds", &rounds.to_string()]).args(load);
        let output = sh::step(&format!("killing and swapping under {what} (a minute or more)"), || {
            sh::output(&mut command)
        })?;
        Values::read(&output)
    };
    figures(&run(&LOAD, "a load")?, &run(&FULL, "a full load")?)
}

/// What the campaign says, by its names.
struct Values(BTreeMap<String, Vec<f64>>);

impl Values {
    fn read(output: &str) -> Result<Self> {
        let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for line in output.lines() {
            if let ["figure", name, value] = line.split_whitespace().collect::<Vec<_>>()[..] {
                values.entry(name.to_owned()).or_default().push(value.parse()?);
            }
        }
        Ok(Self(values))
    }

    fn all(&self, name: &str) -> Vec<f64> {
        self.0.get(name).cloned().unwrap_or_default()
    }

    fn of(&self, name: &str) -> Result<f64> {
        median(self.all(name)).with_context(|| format!("no figure for {name}"))
    }
}

fn figures(load: &Values, full: &Values) -> Result<Vec<Figure>> {
    let rows = [
        ("kill to completion, p50 (ms)", "cold_p50", COLD.0),
        ("kill to completion, p99 (ms)", "cold_p99", COLD.1),
        ("kill to completion with a spare, p50 (ms)", "spare_p50", SPARE.0),
        ("kill to completion with a spare, p99 (ms)", "spare_p99", SPARE.1),
        ("longest pause around a swap, p99 (ms)", "swap_p99", SWAP),
    ];
    let mut figures = Vec::new();
    for (what, name, asked) in rows {
        figures.push(Figure::alone(what, load.of(name)?, Asked::AtMost(asked)));
    }
    let calm = load.of("calm_p99")?;
    figures.push(Figure::alone("  as long a time without a swap, p99 (ms)", calm, Asked::Nothing));
    // Said, so that nobody has to believe that it is few.
    for (what, name) in [("kills", "cold"), ("kills with a spare", "spare"), ("swaps", "swap")] {
        let of = |what: &str| load.of(&format!("{name}_{what}"));
        let share = 100.0 * of("disturbed")? / (of("disturbed")? + of("count")?).max(1.0);
        let what = format!("  {what} left out because the machine stood still (%)");
        figures.push(Figure::alone(&what, share, Asked::Nothing));
    }
    for (what, name, _) in rows {
        figures.push(Figure::alone(&format!("full load: {what}"), full.of(name)?, Asked::Nothing));
    }
    let both = |name: &str| [load.all(name), full.all(name)].concat();
    let (with, without) = (both("read_with_ledger"), both("read_without_ledger"));
    let paired = Reference::paired("without", &with, &without).context("no pairs of reads")?;
    // Of one read they would be too small to print.
    let thousand = |ms: f64| ms * 1000.0;
    figures.push(Figure {
        what: "1000 reads of 4 KiB at depth 32 (ms)".to_owned(),
        ours: thousand(median(with).context("no reads")?),
        reference: Some(Reference { value: thousand(paired.value), ..paired }),
        peer: None,
        asked: Asked::RatioAtMost(LEDGER),
    });
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::{Values, figures};

    #[test]
    fn figures_are_read_and_judged() {
        let times =
            ["cold_p50 9", "cold_p99 21", "spare_p50 0.5", "spare_p99 1.5", "swap_p99 1", "calm_p99 3"];
        let mut output = "noise\n".to_owned();
        times.iter().for_each(|line| output += &format!("figure {line}\n"));
        for name in ["cold", "spare", "swap"] {
            output += &format!("figure {name}_count 95\nfigure {name}_disturbed 5\n");
        }
        for (with, without) in [(0.0102, 0.0100), (0.0300, 0.0200), (0.0101, 0.0100)] {
            output += &format!("figure read_with_ledger {with}\nfigure read_without_ledger {without}\n");
        }
        let values = Values::read(&output).unwrap();
        let figures = figures(&values, &values).unwrap();
        let missed: Vec<usize> = (0..figures.len()).filter(|n| !figures[*n].met()).collect();
        assert_eq!(missed, [1], "the full load is not judged");
        assert_eq!(format!("{:.2}", figures.last().unwrap().ratio().unwrap()), "1.02");
        assert!(super::figures(&Values::read("figure cold_p50 1\n").unwrap(), &values).is_err());
    }
}
