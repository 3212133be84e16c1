//! `bench vhost-user`: random reads through `vsp-storage --vhost-user` and through `qemu-storage-daemon`, on the same file, by the
//! same driver (`tests/peer`), in turns.

use std::path::Path;

use anyhow::{Context, Result};

use super::storage::disk::Disk;
use super::storage::side::Side;
use super::storage::{Cache, Measured, Options, Series, Work, rounds};
use super::table::{Asked, Figure, Reference, median};
use crate::{apt, build, sh};

/// The Debian package with `qemu-storage-daemon`.
const PACKAGES: [&str; 1] = ["qemu-system-common"];
/// Packages with our programs.
const OURS: [&str; 2] = ["vsp-storage", "bulkhead-peer"];

/// A row of the table.
struct Row {
    what: &'static str,
    cache: Cache,
    depth: u32,
    /// Our rate, as a part of QEMU's: at least this.
    asked: f64,
    /// QEMU's fastest way to do this (`aio=`), as measured: see `bench storage`.
    qemu: &'static str,
}

const ROWS: [Row; 4] = [
    Row {
        what: "page cache, 4 KiB, depth 32 (1000 reads/s)",
        cache: Cache::Warm,
        depth: 32,
        asked: 1.6,
        qemu: "threads",
    },
    Row {
        what: "page cache, 4 KiB, depth 1 (1000 reads/s)",
        cache: Cache::Warm,
        depth: 1,
        asked: 1.1,
        qemu: "io_uring",
    },
    Row {
        what: "O_DIRECT, 4 KiB, depth 32 (1000 reads/s)",
        cache: Cache::Direct,
        depth: 32,
        asked: 1.1,
        qemu: "native",
    },
    Row {
        what: "O_DIRECT, 4 KiB, depth 1 (1000 reads/s)",
        cache: Cache::Direct,
        depth: 1,
        asked: 1.1,
        qemu: "native",
    },
];

/// Measures everything.
pub fn measure(options: Options) -> Result<Vec<Figure>> {
    apt::ensure(&PACKAGES)?;
    if options.build {
        build::programs(&OURS)?;
    }
    let programs = build::target_directory().join("release");
    let disk = sh::step("writing a file of 1 GiB", || Disk::new(&build::target_directory()))?;
    let mut figures = Vec::new();
    for row in &ROWS {
        figures.push(sh::step(row.what, || row.measure(&programs, &disk, options))?);
        eprint!("{}", super::table::text(&figures[figures.len() - 1..]));
    }
    Ok(figures)
}

impl Row {
    fn measure(&self, programs: &Path, disk: &Disk, options: Options) -> Result<Figure> {
        let work = Work { block: 4096, depth: self.depth, random: true };
        if self.cache == Cache::Warm {
            // Again each time, for a busy machine takes pages away.
            disk.warm()?;
        }
        let mut ours = Side::vhost_user(programs, disk.path(), self.cache, options.wait)?;
        let mut qemu = Side::qemu(programs, disk.path(), self.cache, self.qemu, options.wait)?;
        let mut sides: [&mut dyn FnMut() -> Result<Measured>; 2] =
            [&mut || ours.measure(&work, options.time).context("ours"), &mut || {
                qemu.measure(&work, options.time).context("QEMU")
            }];
        self.figure(&rounds(options.rounds, &mut sides)?)
    }

    fn figure(&self, series: &[Series; 2]) -> Result<Figure> {
        let rates = |series: &Series| series.iter().map(|one| one.per_second / 1000.0).collect::<Vec<_>>();
        let [ours, qemu] = series.each_ref().map(rates);
        Ok(Figure {
            what: self.what.to_owned(),
            reference: Some(Reference::paired("QEMU", &ours, &qemu).context("no rounds")?),
            ours: median(ours).context("no rounds")?,
            peer: None,
            asked: Asked::RatioAtLeast(self.asked),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_judged_as_parts_of_qemus() {
        let series = |rates: [f64; 2]| {
            rates.map(|rate| Measured { per_second: rate * 1000.0, p50: 1.0 }).into_iter().collect()
        };
        let figure = ROWS[0].figure(&[series([160.0, 80.0]), series([100.0, 50.0])]).unwrap();
        assert_eq!((figure.ours, figure.ratio()), (120.0, Some(1.6)));
        assert!(figure.met());
        assert!(!ROWS[0].figure(&[series([150.0, 80.0]), series([100.0, 50.0])]).unwrap().met());
    }
}
