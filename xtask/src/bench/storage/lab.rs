//! The same reads by fio in a guest, against QEMU's virtio-blk on the same file, in one boot of the lab.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bench::table::{Asked, Figure, Reference, median};
use crate::job::Job;
use crate::scenarios::{GUEST_FUNCTIONS, Guest, Spec};
use crate::{cache, lab, sh};

const SCRIPT: &str = include_str!("../../../recipes/lab/bench-storage.sh");
const GUEST_SCRIPT: &str = include_str!("../../../recipes/guest-scripts/bench-storage");
/// Reads a second, as a part of QEMU's.
const RATIO: f64 = 1.0;
/// Depths that are measured; the script has them too.
const DEPTHS: [u32; 2] = [1, 32];

/// Measures.
pub fn measure(binaries: &[PathBuf], rounds: u32, verbose: bool) -> Result<Vec<Figure>> {
    let directory = cache::root()?.join("runs").join(format!("bench-storage-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let mut job = Job::new("bench-storage").timeout(Duration::from_secs(900 + 90 * u64::from(rounds)));
    job.live = verbose;
    job.verbose = verbose;
    job.binaries(binaries);
    let spec = Spec {
        vcpus: 1,
        memory: 512,
        job: GUEST_SCRIPT,
        disks: &["path = \"/var/tmp/bench.img\"\nreadonly = true"],
        ..Spec::new(Guest::Bookworm, "")
    };
    for (name, text) in [("storage.toml", spec.to_toml().as_str()), ("bench-guest", GUEST_SCRIPT)] {
        let path = directory.join(name);
        fs::write(&path, text)?;
        job.file(name, &path);
    }
    job.script(&format!("ROUNDS={rounds}\n{GUEST_FUNCTIONS}\n{SCRIPT}"));
    let outcome = sh::step("measuring in the lab (some minutes)", || lab::run(&job));
    // What cannot be removed is only in the way.
    let _ = fs::remove_dir_all(&directory);
    let outcome = outcome?;
    ensure!(outcome.status == 0, "the benchmark failed:\n{}", sh::tail(&outcome.output, 40));
    figures(&outcome.output)
}

fn figures(output: &str) -> Result<Vec<Figure>> {
    let all = |name: &str| -> Vec<f64> {
        let value = |line: &str| line.strip_prefix("figure ")?.strip_prefix(name)?.trim().parse().ok();
        output.lines().filter_map(value).collect()
    };
    let figure = |depth: u32| -> Result<Figure> {
        let (ours, theirs) = (all(&format!("ours_{depth} ")), all(&format!("peer_{depth} ")));
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
