//! Figures, as a table for people and as JSON for machines.

use std::fmt::Write as _;

use serde::Serialize;

/// One figure: measured, compared, judged.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What it is, with its unit.
    pub what: String,
    /// Ours.
    pub ours: f64,
    /// What it is compared with, if with anything.
    pub reference: Option<Reference>,
    /// Somebody else's who does the same, if there is one: for comparison only.
    pub peer: Option<Peer>,
    /// What it should be.
    pub asked: Asked,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// No more than this part of the reference's.
    RatioAtMost(f64),
    /// No less than this part of the reference's.
    RatioAtLeast(f64),
    /// It is shown, and not judged.
    Nothing,
}

/// What a figure is compared with.
#[derive(Clone, Debug, Serialize)]
pub struct Reference {
    /// Whose.
    pub name: &'static str,
    /// Theirs.
    pub value: f64,
    /// Ours over theirs: the median of the pairs' ratios, which a drift of the machine's speed disturbs less than the
    /// ratio of the medians.
    pub ratio: f64,
    /// The least and the greatest of the pairs' ratios.
    pub spread: (f64, f64),
}

/// Somebody else's figure.
#[derive(Clone, Debug, Serialize)]
pub struct Peer {
    /// Whose.
    pub name: &'static str,
    /// Theirs.
    pub value: f64,
    /// Theirs over the reference's, as ours is taken.
    pub ratio: f64,
}

impl Reference {
    /// What `name` measured, paired with ours in the order of measuring; none without a pair.
    pub fn paired(name: &'static str, ours: &[f64], theirs: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        let spread =
            ratios.iter().fold((f64::INFINITY, 0.0), |(low, high), &r| (f64::min(low, r), f64::max(high, r)));
        Some(Self { name, value: median(theirs.to_vec())?, ratio: median(ratios)?, spread })
    }
}

impl Figure {
    /// One that is compared with nothing.
    pub fn alone(what: &str, ours: f64, asked: Asked) -> Self {
        Self { what: what.to_owned(), ours, reference: None, peer: None, asked }
    }

    /// Ours over the reference's.
    pub fn ratio(&self) -> Option<f64> {
        self.reference.as_ref().map(|reference| reference.ratio)
    }

    /// Whether it is what is asked. A ratio to nothing never is.
    pub fn met(&self) -> bool {
        match self.asked {
            Asked::AtMost(most) => self.ours <= most,
            Asked::AtLeast(least) => self.ours >= least,
            Asked::RatioAtMost(most) => self.ratio().is_some_and(|ratio| ratio <= most),
            Asked::RatioAtLeast(least) => self.ratio().is_some_and(|ratio| ratio >= least),
            Asked::Nothing => true,
        }
    }
}

/// The table.
pub fn text(figures: &[Figure]) -> String {
    let width = figures.iter().map(|figure| figure.what.chars().count()).max().unwrap_or(0);
    let peers = figures.iter().any(|figure| figure.peer.is_some());
    let peer = |text: &str| if peers { format!("  {text:>18}") } else { String::new() };
    let mut text = format!(
        "{:width$}  {:>9}  {:>20}  {:>6}  {:>13}{}  {:>8}  met\n",
        "",
        "ours",
        "reference",
        "ratio",
        "from-to",
        peer("peer (ratio)"),
        "asked"
    );
    for figure in figures {
        let reference = figure.reference.as_ref();
        let name = reference.map(|r| format!("{} {}", r.name, number(r.value))).unwrap_or_default();
        let ratio = reference.map(|r| format!("{:.2}", r.ratio)).unwrap_or_default();
        let spread = reference.map(|r| format!("{:.2}-{:.2}", r.spread.0, r.spread.1)).unwrap_or_default();
        let theirs = figure.peer.as_ref();
        let theirs = theirs.map(|p| format!("{} {} ({:.2})", p.name, number(p.value), p.ratio));
        let asked = match figure.asked {
            Asked::AtMost(asked) | Asked::RatioAtMost(asked) => format!("<= {asked}"),
            Asked::AtLeast(asked) | Asked::RatioAtLeast(asked) => format!(">= {asked}"),
            Asked::Nothing => String::new(),
        };
        let met = match (figure.asked, figure.met()) {
            (Asked::Nothing, _) => "",
            (_, true) => "yes",
            (_, false) => "NO",
        };
        let _ = writeln!(
            text,
            "{:width$}  {:>9}  {name:>20}  {ratio:>6}  {spread:>13}{}  {asked:>8}  {met}",
            figure.what,
            number(figure.ours),
            peer(&theirs.unwrap_or_default()),
        );
    }
    if figures.iter().any(|figure| figure.reference.is_some()) {
        text += "(medians; a ratio is the median of the pairs' ratios)\n";
    }
    text
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

/// The same for machines.
pub fn json(name: &str, figures: &[Figure]) -> String {
    let figures: Vec<serde_json::Value> = figures
        .iter()
        .map(|figure| {
            let mut value = serde_json::json!(figure);
            value["ratio"] = serde_json::json!(figure.ratio());
            value["met"] = serde_json::json!(figure.met());
            value
        })
        .collect();
    format!("{:#}\n", serde_json::json!({ "benchmark": name, "figures": figures }))
}

/// The median; none of nothing.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_judged_as_it_is_asked() {
        let mut figure = Figure {
            reference: Reference::paired("peer", &[6.0], &[10.0]),
            ..Figure::alone("time", 6.0, Asked::RatioAtMost(0.65))
        };
        assert!(figure.met());
        figure.asked = Asked::RatioAtLeast(0.65);
        assert!(!figure.met());
        figure.asked = Asked::AtMost(6.0);
        assert!(figure.met());
        figure.asked = Asked::AtLeast(6.1);
        assert!(!figure.met());
        figure = Figure::alone("time", 6.0, Asked::RatioAtMost(0.65));
        assert!(!figure.met(), "a ratio to nothing");
        assert!(text(&[figure]).contains("NO"));
    }

    #[test]
    fn a_slow_moment_of_the_machine_does_not_move_the_ratio() {
        let reference = Reference::paired("peer", &[5.0, 50.0, 6.0], &[10.0, 100.0, 10.0]).unwrap();
        assert_eq!((reference.ratio, reference.spread), (0.5, (0.5, 0.6)));
    }

    #[test]
    fn a_peer_is_shown_and_not_judged() {
        let peer = Some(Peer { name: "QEMU", value: 7.5, ratio: 0.4 });
        let figure = Figure { peer, ..Figure::alone("time", 6.0, Asked::AtMost(6.0)) };
        assert!(figure.met());
        assert!(text(&[figure]).contains("QEMU 7.500 (0.40)"));
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
