//! The rounds, natively on the software partition.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::disk::Disk;
use super::side::Side;
use super::{Cache, Measured, Wait, Work, fio};
use crate::bench::table::{Asked, Figure, Peer, Reference, median};
use crate::{apt, build, sh};

/// Debian packages: fio, and the one with `qemu-storage-daemon`.
const PACKAGES: [&str; 2] = ["fio", "qemu-system-common"];
/// Packages with our programs.
const OURS: [&str; 3] = ["vsp-storage", "bulkhead-tests", "bulkhead-peer"];
/// KiB of private memory at depth 32.
const MEMORY: f64 = 2048.0;

/// A row of the table.
struct Row {
    what: &'static str,
    cache: Cache,
    work: Work,
    asked: Goal,
    /// QEMU's fastest way to do this (`aio=`), as measured: its threads read from the page cache at once what its io_uring
    /// hands to workers, which costs more than it saves but for a single read.
    qemu: &'static str,
}

/// What is asked of a row.
#[derive(Clone, Copy)]
enum Goal {
    /// Reads a second, as a part of fio's: at least this.
    Rate(f64),
    /// Microseconds that the median read takes: at most this.
    Latency(f64),
}

const ROWS: [Row; 5] = [
    Row {
        what: "page cache, 4 KiB, depth 32 (1000 reads/s)",
        cache: Cache::Warm,
        work: Work { block: 4096, depth: 32, random: true },
        asked: Goal::Rate(0.75),
        qemu: "threads",
    },
    Row {
        what: "page cache, 128 KiB in a row, depth 8 (1000 reads/s)",
        cache: Cache::Warm,
        work: Work { block: 128 << 10, depth: 8, random: false },
        asked: Goal::Rate(0.90),
        qemu: "threads",
    },
    Row {
        what: "page cache, 4 KiB, depth 1, p50 (us)",
        cache: Cache::Warm,
        work: Work { block: 4096, depth: 1, random: true },
        asked: Goal::Latency(6.0),
        qemu: "io_uring",
    },
    Row {
        what: "O_DIRECT, 4 KiB, depth 32 (1000 reads/s)",
        cache: Cache::Direct,
        work: Work { block: 4096, depth: 32, random: true },
        asked: Goal::Rate(0.92),
        qemu: "native",
    },
    Row {
        what: "O_DIRECT, 4 KiB, depth 1 (1000 reads/s)",
        cache: Cache::Direct,
        work: Work { block: 4096, depth: 1, random: true },
        asked: Goal::Rate(0.80),
        qemu: "native",
    },
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
    /// How the guests wait.
    pub wait: Wait,
}

/// One side's measurements of a row, in the order in which they were made.
pub type Series = Vec<Measured>;

/// Measures everything.
pub fn measure(options: Options) -> Result<Vec<Figure>> {
    apt::ensure(&PACKAGES)?;
    ensure!(apt::is_root(), "only root may look at a compartment's memory");
    if options.build {
        build::programs(&OURS)?;
    }
    let programs = build::target_directory().join("release");
    let disk = sh::step("writing a file of 1 GiB", || Disk::new(&build::target_directory()))?;
    let (mut figures, mut memory) = (Vec::new(), 0.0_f64);
    for (cache, what) in
        [(Cache::Warm, "measuring with the page cache"), (Cache::Direct, "measuring without")]
    {
        let part = || part(&programs, &disk, cache, options, &mut figures);
        let dirty = sh::step(what, part)?;
        memory = memory.max(dirty);
    }
    figures.push(Figure::alone(
        "vsp-storage, private dirty at depth 32 (KiB)",
        memory,
        Asked::AtMost(MEMORY),
    ));
    Ok(figures)
}

/// The rows with this kind of cache; returns what the process has for itself at the end of them, in KiB.
fn part(
    programs: &Path,
    disk: &Disk,
    cache: Cache,
    options: Options,
    figures: &mut Vec<Figure>,
) -> Result<f64> {
    let mut ours = Side::ours(programs, disk.path(), cache, options.wait)?;
    for row in ROWS.iter().filter(|row| row.cache == cache) {
        if cache == Cache::Warm {
            // Again each time, for a busy machine takes pages away.
            disk.warm()?;
        }
        let mut qemu = Side::qemu(programs, disk.path(), cache, row.qemu, options.wait)?;
        let mut sides: [&mut dyn FnMut() -> Result<Measured>; 3] = [
            &mut || fio::measure(disk.path(), cache, &row.work, options.time).context("fio"),
            &mut || ours.measure(&row.work, options.time).context("ours"),
            &mut || qemu.measure(&row.work, options.time).context("QEMU"),
        ];
        let series = rounds(options.rounds, &mut sides).with_context(|| row.work.to_string())?;
        figures.push(row.figure(&series)?);
        eprint!("{}", crate::bench::table::text(&figures[figures.len() - 1..]));
    }
    ours.memory()
}

/// Lets the sides take turns. One round that does not count comes first, for everybody to warm up.
pub fn rounds<const SIDES: usize>(
    rounds: u32,
    sides: &mut [&mut dyn FnMut() -> Result<Measured>; SIDES],
) -> Result<[Series; SIDES]> {
    let mut series = [const { Series::new() }; SIDES];
    for round in 0..=rounds as usize {
        // Who goes first changes, so that a drift of the machine's speed favours nobody.
        for n in 0..sides.len() {
            let side = (n + round) % sides.len();
            let measured = sides[side]()?;
            if round > 0 {
                series[side].push(measured);
            }
        }
    }
    Ok(series)
}

impl Row {
    fn figure(&self, [fio, ours, qemu]: &[Series; 3]) -> Result<Figure> {
        let values = |series: &Series| -> Vec<f64> {
            let value = |measured: &Measured| match self.asked {
                Goal::Rate(_) => measured.per_second / 1000.0,
                Goal::Latency(_) => measured.p50,
            };
            series.iter().map(value).collect()
        };
        let (fio, ours, qemu) = (values(fio), values(ours), values(qemu));
        let reference = |series: &[f64]| Reference::paired("fio", series, &fio).context("no rounds");
        let (mine, theirs) = (reference(&ours)?, reference(&qemu)?);
        let value = median(ours).context("no rounds")?;
        let peer = Peer { name: "QEMU", value: median(qemu).context("no rounds")?, ratio: theirs.ratio };
        Ok(Figure {
            what: self.what.to_owned(),
            ours: value,
            reference: Some(mine),
            peer: Some(peer),
            asked: match self.asked {
                Goal::Rate(ratio) => Asked::RatioAtLeast(ratio),
                Goal::Latency(time) => Asked::AtMost(time),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(rates: [f64; 3]) -> Series {
        rates.iter().map(|rate| Measured { per_second: rate * 1000.0, p50: 100.0 / rate }).collect()
    }

    #[test]
    fn a_rate_is_judged_as_a_part_of_fios_and_a_latency_by_itself() {
        let all = [series([100.0, 50.0, 100.0]), series([80.0, 40.0, 10.0]), series([60.0, 30.0, 60.0])];
        let figure = ROWS[0].figure(&all).unwrap();
        assert_eq!((figure.ours, figure.ratio()), (40.0, Some(0.8)));
        assert_eq!(figure.peer.as_ref().map(|peer| peer.ratio), Some(0.6));
        assert!(figure.met());
        let figure = ROWS[2].figure(&all).unwrap();
        assert_eq!(figure.ours, 2.5);
        assert!(figure.met());
    }

    #[test]
    fn the_sides_take_turns_and_the_first_round_does_not_count() {
        let order = std::cell::RefCell::new(Vec::new());
        let turn = |n: u32| {
            order.borrow_mut().push(n);
            Ok(Measured { per_second: f64::from(n), p50: 0.0 })
        };
        let (mut a, mut b, mut c) = (|| turn(0), || turn(1), || turn(2));
        let series = rounds(2, &mut [&mut a, &mut b, &mut c]).unwrap();
        assert_eq!(*order.borrow(), [0, 1, 2, 1, 2, 0, 2, 0, 1]);
        assert_eq!(series.each_ref().map(Vec::len), [2, 2, 2]);
        assert!(series[1].iter().all(|measured| measured.per_second == 1.0));
    }
}
