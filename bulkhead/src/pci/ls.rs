//! `bulkhead pci ls`: for people and for machines. Nothing is changed here.

use serde_json::{Value, json};

use super::function::Function;
use super::host::Host;
use super::problem::{self, Problem};

/// A device, and what stands in its way.
pub(super) struct Line {
    pub(super) function: Function,
    neighbours: Vec<String>,
    problem: Option<Problem>,
}

/// All devices, or those that a VM can have.
pub(super) fn lines(host: &Host, assignable: bool) -> Vec<Line> {
    let line = |function: Function| {
        let neighbours = function.neighbours(host).iter().map(|other| other.address.to_string()).collect();
        let problem = problem::of(host, &function);
        Line { function, neighbours, problem }
    };
    let can = |line: &Line| line.problem.as_ref().is_none_or(Problem::is_mended_by_binding);
    Function::all(host).into_iter().map(line).filter(|line| !assignable || can(line)).collect()
}

impl Line {
    /// The answer to: can a VM have it?
    fn verdict(&self) -> String {
        match &self.problem {
            None if self.function.is_bound() => "yes, it is bound".to_owned(),
            None => "yes".to_owned(),
            Some(problem) => format!("no: it {problem}"),
        }
    }

    fn document(&self) -> Value {
        let function = &self.function;
        json!({
            "address": function.address.to_string(),
            "class": function.class_name(),
            "vendor": format!("{:04x}", function.vendor),
            "device": format!("{:04x}", function.device),
            "group": function.group,
            "neighbours": self.neighbours,
            "driver": function.driver,
            "bound": function.is_bound(),
            "assignable": self.problem.is_none(),
            "problem": self.problem.as_ref().map(|problem| format!("{} {problem}", function.address)),
        })
    }
}

/// For a machine to read.
pub(super) fn documents(lines: &[Line]) -> Value {
    lines.iter().map(Line::document).collect()
}

const TITLES: [&str; 6] = ["ADDRESS", "CLASS", "ID", "GROUP", "DRIVER", "ASSIGNABLE"];

/// For people.
pub(super) fn table(lines: &[Line]) -> String {
    let none = || "-".to_owned();
    let cells = |line: &Line| {
        let function = &line.function;
        let group = function.group.map(|group| match line.neighbours.len() {
            0 => group.to_string(),
            more => format!("{group} (+{more})"),
        });
        [
            function.address.to_string(),
            function.class_name(),
            format!("{:04x}:{:04x}", function.vendor, function.device),
            group.unwrap_or_else(none),
            function.driver.clone().unwrap_or_else(none),
            line.verdict(),
        ]
    };
    let rows: Vec<[String; 6]> =
        [TITLES.map(str::to_owned)].into_iter().chain(lines.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let line = |row: &[String; 6]| {
        let padded = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
