//! A record as one JSON object a line.

use std::fmt::Write as _;

use crate::clock::Utc;
use crate::record::{Record, Value};

/// `{"time":..,"level":..,"process":..,"target":..,"message":..,"fields":{..}}` with a newline; `fields` is
/// left out when there are none.
pub(crate) fn line(record: &Record<'_>) -> String {
    let mut line = String::with_capacity(256);
    let time = Utc::from(record.time).rfc3339();
    let level = record.level.as_str().to_ascii_lowercase();
    // Writing to a `String` cannot fail.
    let _ = write!(line, "{{\"time\":\"{time}\",\"level\":\"{level}\",\"process\":");
    string_into(&mut line, record.process);
    line.push_str(",\"target\":");
    string_into(&mut line, record.target);
    line.push_str(",\"message\":");
    string_into(&mut line, &record.message);
    for (position, (name, value)) in record.fields.iter().enumerate() {
        line.push_str(if position == 0 { ",\"fields\":{" } else { "," });
        string_into(&mut line, name);
        line.push(':');
        match value {
            Value::Bool(value) => _ = write!(line, "{value}"),
            Value::Signed(value) => _ = write!(line, "{value}"),
            Value::Unsigned(value) => _ = write!(line, "{value}"),
            Value::Float(value) if value.is_finite() => _ = write!(line, "{value}"),
            Value::Float(_) => line.push_str("null"),
            Value::Text(text) | Value::Printed(text) => string_into(&mut line, text),
        }
    }
    if !record.fields.is_empty() {
        line.push('}');
    }
    line.push_str("}\n");
    line
}

/// Appends a JSON string (RFC 8259, section 7).
fn string_into(line: &mut String, text: &str) {
    line.push('"');
    for c in text.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if c < ' ' || c == '\x7f' => _ = write!(line, "\\u{:04x}", u32::from(c)),
            c => line.push(c),
        }
    }
    line.push('"');
}
