//! `bench boot`: how fast a guest is there, how rarely it leaves the kernel, how small the processes are.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::table::{Asked, Figure, Reference, median};
use crate::job::Job;
use crate::scenarios::{GUEST_FUNCTIONS, Guest, Kernel, Spec};
use crate::{cache, lab, sh};

const SCRIPT: &str = include_str!("../../recipes/lab/bench-boot.sh");

/// Time to init with the same ELF kernel, against QEMU: Cloud Hypervisor measured 0.66, Firecracker 0.59.
const ELF_RATIO: f64 = 0.65;
/// With the bzImage, whose unpacking both have to wait for.
const BZIMAGE_RATIO: f64 = 0.75;
/// Returns to user space per read of 4 KiB at depth 1: OpenVMM measured 0.98.
const EXITS_A_READ: f64 = 0.02;
/// KiB of private memory: QEMU has 26 to 35 MiB, Firecracker 2.3, Cloud Hypervisor 0.7 in one process.
const CORE_DIRTY: f64 = 2048.0;
const STORAGE_DIRTY: f64 = 1024.0;

/// Measures everything.
pub fn measure(binaries: &[PathBuf], rounds: u32, verbose: bool) -> Result<Vec<Figure>> {
    let directory = cache::root()?.join("runs").join(format!("bench-specs-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let mut job = Job::new("bench-boot").timeout(Duration::from_secs(600 + 60 * u64::from(rounds)));
    job.live = verbose;
    job.verbose = verbose;
    job.binaries(binaries);
    let tiny = Spec { vcpus: 1, memory: 512, ..Spec::new(Guest::Tiny, "") };
    let reads = Spec { vcpus: 1, memory: 512, ..Spec::new(Guest::Bookworm, "bulkhead.job=reads") };
    for (name, spec) in [
        ("tiny-elf.toml", Spec { kernel: Kernel::Elf, ..tiny.clone() }),
        ("tiny-bzimage.toml", tiny),
        ("reads.toml", reads.clone()),
        ("login.toml", Spec { arguments: "", ..reads }),
    ] {
        let path = directory.join(name);
        fs::write(&path, spec.to_toml())?;
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
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for line in output.lines() {
        let mut words = line.split_whitespace();
        if let (Some("figure"), Some(name), Some(Ok(value))) =
            (words.next(), words.next(), words.next().map(str::parse))
        {
            values.entry(name).or_default().push(value);
        }
    }
    let all = |name: &str| values.get(name).cloned().unwrap_or_default();
    let of = |name: &str| median(all(name)).with_context(|| format!("no figure for {name}"));
    let against_qemu = |what: &str, kernel: &str, asked: f64| -> Result<Figure> {
        let (ours, theirs) = (format!("ours_{kernel}"), format!("peer_{kernel}"));
        Ok(Figure {
            what: what.to_owned(),
            ours: of(&ours)?,
            reference: Some(Reference::paired("QEMU q35", &all(&ours), &all(&theirs)).context("no pairs")?),
            peer: None,
            asked: Asked::RatioAtMost(asked),
        })
    };
    let alone = |what: &str, ours: f64, asked: f64| Figure::alone(what, ours, Asked::AtMost(asked));
    Ok(vec![
        against_qemu("start to init, ELF kernel (ms)", "elf", ELF_RATIO)?,
        against_qemu("start to init, bzImage (ms)", "bzimage", BZIMAGE_RATIO)?,
        alone("exits to user space per 4 KiB read", of("exits")? / of("reads")?, EXITS_A_READ),
        alone("core-vmm, private dirty, no guest RAM (KiB)", of("dirty_core-vmm")?, CORE_DIRTY),
        alone("vsp-storage, private dirty, no guest RAM (KiB)", of("dirty_vsp-storage")?, STORAGE_DIRTY),
    ])
}

#[cfg(test)]
mod tests {
    use super::figures;

    #[test]
    fn figures_are_medians_of_what_the_script_printed() {
        let output = "figure ours_elf 5\nfigure ours_elf 7\nfigure ours_elf 6\nfigure peer_elf 10\n\
            figure peer_elf 10\nfigure peer_elf 10\nnoise\n\
            figure ours_bzimage 9\nfigure peer_bzimage 10\nfigure reads 4000\nfigure exits 40\n\
            figure dirty_core-vmm 1500\nfigure dirty_vsp-storage 900\n";
        let figures = figures(output).unwrap();
        assert_eq!(figures[0].ratio(), Some(0.6));
        assert!(figures[0].met());
        assert!(!figures[1].met());
        assert!(figures[2].met());
    }

    #[test]
    fn a_missing_figure_is_an_error() {
        assert!(figures("figure ours_elf 5\n").is_err());
    }
}
