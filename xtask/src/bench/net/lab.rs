//! iperf3 in a guest, one stream, against QEMU's virtio-net on the same bridge in one boot of the lab: through QEMU itself, and
//! through the kernel's vhost-net. Ours is measured as it is by default, confined, and with all of the guest's memory in its
//! process's sight.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::bench::lab::{Bench, values};
use crate::bench::table::{Asked, Figure, Reference, median};
use crate::scenarios::{Guest, Spec};

/// Throughput as a part of that through QEMU.
const OF_QEMU: f64 = 1.3;
/// The same of vhost-net's.
const OF_VHOST: f64 = 0.8;

/// Measures.
pub fn measure(binaries: &[PathBuf], rounds: u32, verbose: bool) -> Result<Vec<Figure>> {
    let spec = Spec {
        vcpus: 1,
        memory: 512,
        job: include_str!("../../../recipes/guest-scripts/bench-net"),
        nics: &["tap = \"tap0\"", "tap = \"tap1\"\nmemory = \"full\""],
        ..Spec::new(Guest::Bookworm, "")
    };
    let script = concat!(
        include_str!("../../../recipes/lab/net.sh"),
        include_str!("../../../recipes/lab/bench-net.sh")
    );
    figures(&Bench { name: "net", spec, script }.run(binaries, rounds, verbose)?)
}

fn figures(output: &str) -> Result<Vec<Figure>> {
    let ways = [("send", "from"), ("receive", "to")];
    let ours = [("ours", ""), ("full", ", memory full")];
    let peers = [("user", "QEMU", OF_QEMU), ("vhost", "vhost-net", OF_VHOST)];
    let mut figures = Vec::new();
    for (way, preposition) in ways {
        // iperf3 prints thousands of bits.
        let rates = |who: &str| -> Vec<f64> {
            values(output, &format!("{who}_{way}")).into_iter().map(|rate| rate / 1000.0).collect()
        };
        for (us, how) in ours {
            for (peer, name, asked) in peers {
                figures.push(Figure {
                    what: format!("TCP {preposition} the lab's guest{how} (Mbit/s)"),
                    reference: Some(Reference::paired(name, &rates(us), &rates(peer)).context("no pairs")?),
                    ours: median(rates(us)).context("no figures")?,
                    peer: None,
                    asked: Asked::RatioAtLeast(asked),
                });
            }
        }
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::figures;

    #[test]
    fn pairs_are_judged_by_their_ratios() {
        let rates = [
            ("ours", [300_000, 100_000]),
            ("full", [600_000, 100_000]),
            ("user", [200_000, 100_000]),
            ("vhost", [300_000, 200_000]),
        ];
        let lines = rates.map(|(who, [send, receive])| {
            format!("figure {who}_send {send}\nfigure {who}_receive {receive}\n")
        });
        let figures = figures(&lines.concat()).unwrap();
        assert_eq!(
            figures.iter().map(|figure| figure.ratio()).collect::<Vec<_>>(),
            [1.5, 1.0, 3.0, 2.0, 1.0, 0.5, 1.0, 0.5].map(Some)
        );
        let met = [true, true, true, true, false, false, false, false];
        assert_eq!(figures.iter().map(|figure| figure.met()).collect::<Vec<_>>(), met);
        assert!(super::figures("figure ours_send 1\n").is_err());
    }
}
