//! iperf3 over a passed NIC, against the same make of NIC on the same kind of wire that QEMU's own vfio-pci passes to a guest of the same image, in the same boots of
//! the lab; and what our process does and takes meanwhile.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use policies::{Policy, VSP_PCI};

use super::lab::{Bench, values};
use super::table::{Asked, Figure, Reference, median};
use crate::job::Card;
use crate::scenarios::{Guest, Spec};

/// Throughput as a part of QEMU's.
const RATIO: f64 = 1.0;
/// KiB of memory of `vsp-pci` that is nobody else's.
const MEMORY: f64 = 3072.0;
/// System calls in its compartment.
const CALLS: f64 = 20.0;
/// Exits of the guest to the core's program in the five seconds of a measurement, in which some 60 characters go over the serial port, each with two or three
/// exits, and the guest's console may say something. One exit a packet would be thousands.
const EXITS: f64 = 600.0;
/// Turns of `vsp-pci` in the same time: its signs of life.
const TURNS: f64 = 20.0;

/// Measures.
pub fn measure(binaries: &[PathBuf], rounds: u32, verbose: bool) -> Result<Vec<Figure>> {
    let spec = Spec {
        // As the peer has it.
        vcpus: 1,
        memory: 512,
        job: include_str!("../../recipes/guest-scripts/bench-pci"),
        cards: &[Card::Nic, Card::OtherNic, Card::Neighbour, Card::OtherNeighbour],
        passed: &["nic"],
        ..Spec::new(Guest::Trixie, "")
    };
    let script = concat!(
        include_str!("../../recipes/lab/pci.sh"),
        "\n",
        include_str!("../../recipes/lab/bench-pci.sh")
    );
    let mut output = String::new();
    for turned in [0, 1] {
        let script = format!("TURNED={turned}\n{script}");
        let bench = Bench { name: "passthrough", spec: spec.clone(), script: &script };
        output.push_str(&bench.run(binaries, rounds.div_ceil(2), verbose)?);
        output.push('\n');
    }
    let mut figures = figures(&output)?;
    figures.push(Figure::alone("system calls of vsp-pci", calls(&VSP_PCI), Asked::AtMost(CALLS)));
    Ok(figures)
}

fn figures(output: &str) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (way, preposition) in [("send", "from"), ("receive", "to")] {
        // iperf3 prints thousands of bits.
        let [ours, theirs] = ["ours", "peer"].map(|who| {
            values(output, &format!("{who}_{way}"))
                .into_iter()
                .map(|rate| rate / 1000.0)
                .collect::<Vec<f64>>()
        });
        figures.push(Figure {
            what: format!("TCP {preposition} a guest over its own NIC (Mbit/s)"),
            reference: Some(Reference::paired("QEMU vfio-pci", &ours, &theirs).context("no pairs")?),
            ours: median(ours).context("no figures")?,
            peer: None,
            asked: Asked::RatioAtLeast(RATIO),
        });
    }
    for (name, what, asked) in [
        ("exits", "exits to user space while it sends or receives for 5 s", EXITS),
        ("turns", "turns of vsp-pci meanwhile", TURNS),
    ] {
        let value = median(values(output, name)).context("no figures")?;
        figures.push(Figure::alone(what, value, Asked::AtMost(asked)));
    }
    let memory = values(output, "memory");
    ensure!(!memory.is_empty(), "no process was there");
    let most = memory.into_iter().fold(0.0, f64::max);
    figures.push(Figure::alone("memory of vsp-pci (KiB)", most, Asked::AtMost(MEMORY)));
    Ok(figures)
}

/// Those of an ordinary life (see `bench net`).
fn calls(policy: &Policy) -> f64 {
    let usual = policy.rules().iter().filter(|rule| !rule.rare && !rule.refused);
    usual.map(|rule| rule.syscall).collect::<BTreeSet<_>>().len() as f64
}

#[cfg(test)]
mod tests {
    use super::figures;

    #[test]
    fn what_is_printed_is_judged() {
        let output = "figure ours_send 200\nfigure peer_send 100\nfigure ours_receive 90\nfigure peer_receive 100\n\
            figure exits 150\nfigure turns 4\nfigure memory 900\nfigure memory 1200\n";
        let figures = figures(output).unwrap();
        let met: Vec<bool> = figures.iter().map(|figure| figure.met()).collect();
        assert_eq!(met, [true, false, true, true, true]);
        assert_eq!(figures[4].ours, 1200.0);
        assert!(super::figures(&output.replace("figure memory", "figure x")).is_err());
    }
}
