//! Figures, as a table for people and as JSON for machines.

use std::fmt::Write as _;

use serde::Serialize;

/// One figure: measured, compared, judged. Smaller is better.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What it is, with its unit.
    pub what: String,
    /// Ours.
    pub ours: f64,
    /// What it is compared with, if with anything.
    pub reference: Option<Reference>,
    /// At most: of the ratio if there is a reference, of ours otherwise.
    pub asked: f64,
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
}

impl Reference {
    /// What `name` measured, paired with ours in the order of measuring; none without a pair.
    pub fn paired(name: &'static str, ours: &[f64], theirs: &[f64]) -> Option<Self> {
        let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        Some(Self { name, value: median(theirs.to_vec())?, ratio: median(ratios)? })
    }
}

impl Figure {
    /// Ours over the reference's.
    pub fn ratio(&self) -> Option<f64> {
        self.reference.as_ref().map(|reference| reference.ratio)
    }

    /// Whether it is what is asked.
    pub fn met(&self) -> bool {
        self.ratio().unwrap_or(self.ours) <= self.asked
    }
}

/// The table.
pub fn text(figures: &[Figure]) -> String {
    let width = figures.iter().map(|figure| figure.what.chars().count()).max().unwrap_or(0);
    let mut text =
        format!("{:width$}  {:>9}  {:>20}  {:>6}  {:>8}  met\n", "", "ours", "reference", "ratio", "asked");
    for figure in figures {
        let reference = figure
            .reference
            .as_ref()
            .map(|reference| format!("{} {}", reference.name, number(reference.value)))
            .unwrap_or_default();
        let ratio = figure.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        let met = if figure.met() { "yes" } else { "NO" };
        let _ = writeln!(
            text,
            "{:width$}  {:>9}  {reference:>20}  {ratio:>6}  {:>8}  {met}",
            figure.what,
            number(figure.ours),
            format!("<= {}", figure.asked)
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
    fn a_figure_is_judged_by_its_ratio_where_it_has_one() {
        let mut figure = Figure {
            what: "time".into(),
            ours: 6.0,
            reference: Reference::paired("peer", &[6.0], &[10.0]),
            asked: 0.65,
        };
        assert!(figure.met());
        figure.reference = None;
        assert!(!figure.met());
        assert!(text(&[figure]).contains("NO"));
    }

    #[test]
    fn a_slow_moment_of_the_machine_does_not_move_the_ratio() {
        let reference = Reference::paired("peer", &[5.0, 50.0, 5.0], &[10.0, 100.0, 10.0]).unwrap();
        assert_eq!(reference.ratio, 0.5);
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
