//! Devices as a table for people.

use std::time::Duration;

use super::{Row, stats};
use crate::spec::size::Bytes;

const TITLES: [&str; 8] = ["NAME", "STATE", "PID", "SPARE", "RESTARTS", "UPTIME", "LAST DEATH", "EXPOSED"];

/// Nothing to say.
const NONE: &str = "-";

/// The devices of some VMs, one a line under a line of titles. The VM's name comes first where `vms` has several, or none was
/// asked for.
pub fn table(vms: &[(String, Vec<Row>)], with_vm: bool) -> String {
    let rows = vms.iter().flat_map(|(vm, rows)| rows.iter().map(move |row| (vm, cells(row).to_vec())));
    aligned(&TITLES, rows, with_vm)
}

/// The disks of the devices of some VMs, in the same way.
pub fn of_disks(vms: &[(String, Vec<Row>)], with_vm: bool) -> String {
    let rows = vms.iter().flat_map(|(vm, rows)| {
        let units = rows.iter().flat_map(|row| row.disks.iter().flatten().map(move |unit| (row, unit)));
        units.map(move |(row, unit)| (vm, stats::cells(&row.name, unit).to_vec()))
    });
    aligned(&stats::TITLES, rows, with_vm)
}

fn aligned<'a>(
    titles: &[&str],
    rows: impl Iterator<Item = (&'a String, Vec<String>)>,
    with_vm: bool,
) -> String {
    let with =
        |vm: &str, cells: Vec<String>| with_vm.then(|| vm.to_owned()).into_iter().chain(cells).collect();
    let titles = with("VM", titles.iter().map(|title| (*title).to_owned()).collect());
    let lines: Vec<Vec<String>> =
        [titles].into_iter().chain(rows.map(|(vm, cells)| with(vm, cells))).collect();
    let columns = lines[0].len();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let padded = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let text = padded.collect::<Vec<_>>().join("  ");
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

fn cells(row: &Row) -> [String; 8] {
    let number = |n: Option<u32>| n.map_or(NONE.to_owned(), |n| n.to_string());
    let spare = match (row.spare, row.spare_ready) {
        (Some(pid), false) => format!("{pid} (starting)"),
        (spare, _) => number(spare),
    };
    let last_death = match (&row.last_death, row.last_death_ms) {
        (Some(death), Some(ago)) => format!("{} ago: {death}", elapsed(ago)),
        (Some(death), None) => death.clone(),
        (None, _) => NONE.to_owned(),
    };
    [
        row.name.clone(),
        row.state.to_string(),
        number(row.pid),
        spare,
        row.restarts.to_string(),
        row.uptime_ms.map_or(NONE.to_owned(), elapsed),
        last_death,
        match row.exposed_bytes {
            0 => NONE.to_owned(),
            bytes => Bytes(bytes).to_string(),
        },
    ]
}

/// A time in its two largest units: `2d 3h`, `4m 5s`, `6s`, `78ms`.
fn elapsed(ms: u64) -> String {
    let seconds = Duration::from_millis(ms).as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes, seconds % 60) {
        (0, 0, 0, 0) => format!("{ms}ms"),
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, h, ..) => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn a_table_has_aligned_columns_and_no_blank_cells() {
        let disk0 = Row {
            name: "disk0".to_owned(),
            state: State::Serving,
            pid: Some(4711),
            spare: Some(4712),
            restarts: 3,
            uptime_ms: Some(125_000),
            last_death: Some("was killed by SIGKILL".to_owned()),
            last_death_ms: Some(125_007),
            exposed_bytes: 2 << 30,
            ..Row::default()
        };
        let data = Row { name: "data".to_owned(), state: State::BackingOff, ..Row::default() };
        let vms = [("debian".to_owned(), vec![disk0, data])];
        assert_eq!(
            table(&vms, false),
            "NAME   STATE        PID   SPARE            RESTARTS  UPTIME  LAST DEATH                           EXPOSED\n\
             disk0  serving      4711  4712 (starting)  3         2m 5s   2m 5s ago: was killed by SIGKILL     2 GiB\n\
             data   backing-off  -     -                0         -       -                                    -\n"
                .replace("SIGKILL     2", "SIGKILL  2")
                .replace("DEATH                           E", "DEATH                        E")
                .replace("-                                    -\n", "-                                 -\n")
        );
        assert!(table(&vms, true).starts_with("VM      NAME   STATE "));
        assert_eq!(table(&[], true).lines().count(), 1);
    }

    #[test]
    fn times_are_short() {
        let times = [999, 1000, 61_000, 3_660_000, 90_000_000].map(elapsed);
        assert_eq!(times, ["999ms", "1s", "1m 1s", "1h 1m", "1d 1h"]);
    }
}
