//! The same reads by fio in a guest, against QEMU's virtio-blk on the same file, in one boot of the lab.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::bench::lab::{Bench, values};
use crate::bench::table::{Asked, Figure, Reference, median};
use crate::scenarios::{Guest, Spec};

/// Reads a second, as a part of QEMU's.
const RATIO: f64 = 1.0;
/// Depths that are measured; the script has them too.
const DEPTHS: [u32; 2] = [1, 32];

/// Measures.
pub fn measure(binaries: &[PathBuf], rounds: u32, verbose: bool) -> Result<Vec<Figure>> {
    let spec = Spec {
        vcpus: 1,
        memory: 512,
        job: include_str!("../../../recipes/guest-scripts/bench-storage"),
        disks: &["path = \"/var/tmp/bench.img\"\nreadonly = true"],
        ..Spec::new(Guest::Bookworm, "")
    };
    let script = include_str!("../../../recipes/lab/bench-storage.sh");
    figures(&Bench { name: "storage", spec, script }.run(binaries, rounds, verbose)?)
}

fn figures(output: &str) -> Result<Vec<Figure>> {
    let figure = |depth: u32| -> Result<Figure> {
        let [ours, theirs] = ["ours", "peer"].map(|who| values(output, &format!("{who}_{depth}")));
        let reference = Reference::paired("QEMU virtio-blk", &ours, &theirs).context("no pairs")?;
        Ok(Figure {
            what: format!("in the lab's guest: 4 KiB, depth {depth} (reads/s)"),
            ours: median(ours).context("no figures")?,
            reference: Some(reference),
            peer: None,
            asked: Asked::RatioAtLeast(RATIO),
        })
    };
    DEPTHS.into_iter().map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::figures;

    #[test]
    fn pairs_are_judged_by_their_ratios() {
        let output = "figure ours_1 100\r\nfigure peer_1 50\nfigure ours_32 90\nfigure peer_32 100\nnoise\n";
        let figures = figures(output).unwrap();
        assert_eq!(figures.iter().map(|figure| figure.ratio()).collect::<Vec<_>>(), [Some(2.0), Some(0.9)]);
        assert_eq!(figures.iter().map(|figure| figure.met()).collect::<Vec<_>>(), [true, false]);
        assert!(super::figures("figure ours_1 100\n").is_err());
    }
}
