//! `bench continuity`: how long a guest waits for a device whose process has died or is replaced, and what it costs to
//! be able to. Natively, on the software partition.

use std::collections::BTreeMap;

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

/// Measures everything.
pub fn measure(build: bool, rounds: u32) -> Result<Vec<Figure>> {
    let mut command = chaos::campaign(build)?;
    command.args(["figures", "--rounds", &rounds.to_string()]);
    let output = sh::step("killing and swapping under load (a minute or more)", || sh::output(&mut command))?;
    figures(&output)
}

fn figures(output: &str) -> Result<Vec<Figure>> {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for line in output.lines() {
        if let ["figure", name, value] = line.split_whitespace().collect::<Vec<_>>()[..] {
            values.entry(name).or_default().push(value.parse()?);
        }
    }
    let all = |name: &str| values.get(name).cloned().unwrap_or_default();
    let of = |name: &str| median(all(name)).with_context(|| format!("no figure for {name}"));
    let alone = |what: &str, name: &str, asked: f64| -> Result<Figure> {
        Ok(Figure::alone(what, of(name)?, Asked::AtMost(asked)))
    };
    let (with, without) = (all("read_with_ledger"), all("read_without_ledger"));
    let paired = Reference::paired("without", &with, &without).context("no pairs of reads")?;
    // Of one read they would be too small to print.
    let thousand = |ms: f64| ms * 1000.0;
    let reads = Figure {
        what: "1000 reads of 4 KiB at depth 32 (ms)".to_owned(),
        ours: thousand(of("read_with_ledger")?),
        reference: Some(Reference { value: thousand(paired.value), ..paired }),
        peer: None,
        asked: Asked::RatioAtMost(LEDGER),
    };
    Ok(vec![
        alone("kill to completion, p50 (ms)", "cold_p50", COLD.0)?,
        alone("kill to completion, p99 (ms)", "cold_p99", COLD.1)?,
        alone("kill to completion with a spare, p50 (ms)", "spare_p50", SPARE.0)?,
        alone("kill to completion with a spare, p99 (ms)", "spare_p99", SPARE.1)?,
        alone("longest pause around a swap, p99 (ms)", "swap_p99", SWAP)?,
        reads,
    ])
}

#[cfg(test)]
mod tests {
    use super::figures;

    #[test]
    fn figures_are_read_and_judged() {
        let times = ["cold_p50 9", "cold_p99 21", "spare_p50 0.5", "spare_p99 1.5", "swap_p99 1"];
        let mut output = "noise\n".to_owned();
        times.iter().for_each(|line| output += &format!("figure {line}\n"));
        for (with, without) in [(0.0102, 0.0100), (0.0300, 0.0200), (0.0101, 0.0100)] {
            output += &format!("figure read_with_ledger {with}\nfigure read_without_ledger {without}\n");
        }
        let figures = figures(&output).unwrap();
        assert_eq!(
            figures.iter().map(|figure| figure.met()).collect::<Vec<_>>(),
            [true, false, true, true, true, true]
        );
        assert_eq!(format!("{:.2}", figures[5].ratio().unwrap()), "1.02");
        assert!(super::figures("figure cold_p50 1\n").is_err());
    }
}
