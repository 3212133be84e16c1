//! One event taken apart: the message, and the fields as plain values in the order they were given.

use std::fmt::{Debug, Write as _};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level};

/// A record longer than this is cut: it has to fit in one datagram to the journal.
const LONGEST_TEXT: usize = 16 * 1024;

/// An event, ready to be formatted.
pub(crate) struct Record<'a> {
    pub(crate) time: SystemTime,
    pub(crate) level: Level,
    pub(crate) process: &'a str,
    pub(crate) target: &'a str,
    pub(crate) message: String,
    pub(crate) fields: Vec<(&'static str, Value)>,
}

/// A field's value, with as much of its type as the formats can use.
#[derive(Debug, PartialEq)]
pub(crate) enum Value {
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    /// A string, or something that only knows how to print itself.
    Text(String),
    /// Printed with `%` or `?`: shown to people without quotes.
    Printed(String),
}

impl<'a> Record<'a> {
    /// Takes `event` apart.
    pub(crate) fn of(process: &'a str, event: &Event<'a>) -> Self {
        let mut record = Self {
            time: SystemTime::now(),
            level: *event.metadata().level(),
            process,
            target: event.metadata().target(),
            message: String::new(),
            fields: Vec::new(),
        };
        event.record(&mut record);
        record
    }
}

impl Visit for Record<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.fields.push((field.name(), Value::Float(value)));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.push((field.name(), Value::Signed(value)));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.push((field.name(), Value::Unsigned(value)));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.push((field.name(), Value::Bool(value)));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = cut(value.to_owned());
        } else {
            self.fields.push((field.name(), Value::Text(cut(value.to_owned()))));
        }
    }
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // A `Debug` that fails leaves what it wrote before it failed: still worth logging.
        let _ = write!(text, "{value:?}");
        if field.name() == "message" {
            self.message = cut(text);
        } else {
            self.fields.push((field.name(), Value::Printed(cut(text))));
        }
    }
}

/// Shortens `text` to [`LONGEST_TEXT`], at a character boundary, with a mark that it was.
fn cut(mut text: String) -> String {
    if text.len() > LONGEST_TEXT {
        let end = (0..=LONGEST_TEXT).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_at_a_character_boundary() {
        assert_eq!(cut("short".to_owned()), "short");
        let long = cut("ü".repeat(LONGEST_TEXT));
        assert_eq!(long.len(), LONGEST_TEXT + '…'.len_utf8());
        assert!(long.ends_with("ü…"));
    }
}
