//! A record for people: one short line.

use std::fmt::Write as _;

use tracing::Level;

use crate::clock::Utc;
use crate::record::{Record, Value};

const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// `12:34:56.789 WARN  disk0: message key=value`, with a newline. `colour` adds terminal colours.
pub(crate) fn line(record: &Record<'_>, colour: bool) -> String {
    let (dim, reset) = if colour { (DIM, RESET) } else { ("", "") };
    let level_colour = match (colour, record.level) {
        (false, _) => "",
        (true, Level::ERROR) => "\x1b[1;31m",
        (true, Level::WARN) => "\x1b[33m",
        (true, Level::INFO) => "\x1b[32m",
        (true, _) => "\x1b[36m",
    };
    let mut line = String::with_capacity(128);
    let time = Utc::from(record.time).time_of_day();
    // Writing to a `String` cannot fail.
    let _ = write!(line, "{dim}{time}{reset} {level_colour}{:<5}{reset} {}: ", record.level, record.process);
    escape_into(&mut line, &record.message);
    for (name, value) in &record.fields {
        let _ = write!(line, " {dim}{name}={reset}");
        match value {
            Value::Bool(value) => _ = write!(line, "{value}"),
            Value::Signed(value) => _ = write!(line, "{value}"),
            Value::Unsigned(value) => _ = write!(line, "{value}"),
            Value::Float(value) => _ = write!(line, "{value}"),
            Value::Text(text) => {
                line.push('"');
                escape_into(&mut line, text);
                line.push('"');
            }
            Value::Printed(text) => escape_into(&mut line, text),
        }
    }
    line.push('\n');
    line
}

/// Appends `text` with its control characters made visible: what comes from a guest may be written to drive
/// the operator's terminal.
fn escape_into(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
}
