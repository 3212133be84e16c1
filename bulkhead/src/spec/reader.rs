//! Takes values out of parsed TOML, one key at a time, and reports what does not fit.
//!
//! A derived deserializer stops at the first mistake; this one goes on, so that a spec with five mistakes is put
//! right in one round.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Report;

/// A value and where it stands in the source, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub span: Range<usize>,
}

impl<T> Located<T> {
    /// The same place with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Located<U> {
        Located { value: f(self.value), span: self.span }
    }
}

/// A section of the spec: its name as people write it and the keys it knows.
#[derive(Debug)]
pub(super) struct Shape {
    /// `[machine]`, or "the top of the file".
    pub(super) title: &'static str,
    pub(super) keys: &'static [&'static str],
}

/// One section being read.
pub(super) struct Section<'a, 'i> {
    table: &'a DeTable<'i>,
    shape: &'static Shape,
    /// Where the section starts; `None` for one that is not there at all.
    pub(super) span: Option<Range<usize>>,
}

impl<'a, 'i> Section<'a, 'i> {
    /// Starts reading `table`; every key that `shape` does not know is reported. `elsewhere` holds the other sections:
    /// a key that belongs in one of those is sent there.
    pub(super) fn new(
        table: &'a DeTable<'i>,
        shape: &'static Shape,
        span: Option<Range<usize>>,
        elsewhere: &[&'static Shape],
        report: &mut Report,
    ) -> Self {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if !shape.keys.contains(&name) {
                let (message, fix) = unknown_key(name, shape, elsewhere);
                report.error(key.span(), message, fix);
            }
        }
        Self { table, shape, span }
    }

    fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'i>>> {
        debug_assert!(self.shape.keys.contains(&key), "{key} is not in the shape of {}", self.shape.title);
        self.table.get(key)
    }

    /// Whether `key` is there, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// A string.
    pub(super) fn string(&self, key: &str, report: &mut Report) -> Option<Located<String>> {
        let value = self.get(key)?;
        let span = value.span();
        match value.get_ref() {
            DeValue::String(text) => Some(Located { value: text.to_string(), span }),
            other => {
                let fix = match other {
                    DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) => {
                        format!("put it in quotes: {key} = \"{}\"", literal(other))
                    }
                    _ => format!("write {key} = \"...\""),
                };
                wrong_type(report, key, "a string", value, fix);
                None
            }
        }
    }

    /// `true` or `false`; `default` if the key is not there or is no boolean (which is reported).
    pub(super) fn boolean(&self, key: &str, default: bool, report: &mut Report) -> bool {
        let Some(value) = self.get(key) else { return default };
        match value.get_ref() {
            DeValue::Boolean(value) => *value,
            _ => {
                let fix = format!("write {key} = true or {key} = false");
                wrong_type(report, key, "true or false", value, fix);
                default
            }
        }
    }

    /// A whole number within `range`.
    pub(super) fn integer(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
        report: &mut Report,
    ) -> Option<Located<u64>> {
        let value = self.get(key)?;
        let fix = format!("write a number from {} to {}", range.start(), range.end());
        match value.get_ref() {
            DeValue::Integer(number) => {
                match u64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) if range.contains(&number) => {
                        return Some(Located { value: number, span: value.span() });
                    }
                    _ => report.error(
                        value.span(),
                        format!("`{key}` must be from {} to {}, not {number}", range.start(), range.end()),
                        fix,
                    ),
                };
            }
            DeValue::String(text) if text.trim().parse::<u64>().is_ok() => {
                let fix = format!("leave out the quotes: {key} = {}", text.trim());
                wrong_type(report, key, "a number", value, fix);
            }
            _ => wrong_type(report, key, "a number", value, fix),
        }
        None
    }

    /// A size in bytes: `"512MiB"` or a plain number.
    pub(super) fn size(&self, key: &str, report: &mut Report) -> Option<Located<u64>> {
        let value = self.get(key)?;
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) if number.radix() == 10 => number.to_string(),
            _ => {
                let fix = format!("write {key} = \"512MiB\" or {key} = \"2GiB\"");
                wrong_type(report, key, "a size", value, fix);
                return None;
            }
        };
        match super::size::parse(&text) {
            Ok(bytes) => Some(Located { value: bytes, span: value.span() }),
            Err(bad) => {
                report.error(value.span(), format!("`{key}` is not a size: {}", bad.why), bad.fix);
                None
            }
        }
    }

    /// A table inside this section: the value, and where it is.
    pub(super) fn table(&self, key: &str, report: &mut Report) -> Option<(&'a DeTable<'i>, Range<usize>)> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some((table, value.span())),
            _ => {
                wrong_type(report, key, "a section", value, format!("write it as a section: [{key}]"));
                None
            }
        }
    }

    /// A list of tables inside this section (`[[storage]]`); `heading` is how it is written. Empty if absent.
    pub(super) fn tables(
        &self,
        key: &str,
        heading: &str,
        report: &mut Report,
    ) -> Vec<(&'a DeTable<'i>, Range<usize>)> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let fix = || format!("write each one as a section of its own: {heading}");
        let DeValue::Array(items) = value.get_ref() else {
            wrong_type(report, key, "a list of sections", value, fix());
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in items.iter() {
            match item.get_ref() {
                DeValue::Table(table) => tables.push((table, item.span())),
                _ => wrong_type(report, key, "a list of sections", item, fix()),
            }
        }
        tables
    }

    /// Reports that `key` must be there.
    pub(super) fn missing(&self, key: &str, example: &str, report: &mut Report) {
        if self.get(key).is_some() {
            return; // It is there and wrong: that was reported.
        }
        let title = self.shape.title;
        let (message, fix) = match &self.span {
            Some(_) => (format!("`{key}` is missing in {title}"), format!("add {example}")),
            None if title.starts_with('[') => {
                (format!("`{key}` is missing in {title}"), format!("add {example} under {title}"))
            }
            None => (format!("`{key}` is missing"), format!("add {example} at the top")),
        };
        report.error(self.span.clone(), message, fix);
    }
}

fn wrong_type(report: &mut Report, key: &str, wanted: &str, got: &Spanned<DeValue<'_>>, fix: String) {
    let got_type = match got.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    };
    report.error(got.span(), format!("`{key}` must be {wanted}, not {got_type}"), fix);
}

/// A plain value as it is written.
fn literal(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        _ => String::new(),
    }
}

/// What to say about a key that `shape` does not know.
fn unknown_key(name: &str, shape: &Shape, elsewhere: &[&'static Shape]) -> (String, String) {
    let message = format!("there is no `{name}` in {}", shape.title);
    if let Some(home) = elsewhere.iter().find(|other| other.keys.contains(&name)) {
        return (message, format!("`{name}` belongs in {}", home.title));
    }
    match closest(name, shape.keys) {
        Some(key) => (message, format!("did you mean `{key}`?")),
        None => (message, format!("remove it; {} knows {}", shape.title, list(shape.keys))),
    }
}

/// `a`, `b` and `c`.
pub(super) fn list(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// The one of `words` that a typing mistake most likely turned into `name`.
pub(super) fn closest<'w>(name: &str, words: &[&'w str]) -> Option<&'w str> {
    let name = name.to_ascii_lowercase();
    let (distance, word) = words.iter().map(|word| (distance(&name, word), *word)).min()?;
    (distance <= 1.max(name.chars().count() / 3)).then_some(word)
}

/// Edits between two words: insert, delete, replace, or swap two neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_mistakes_are_recognised() {
        let words = ["vcpus", "memory", "hugepages", "prefault"];
        assert_eq!(closest("memroy", &words), Some("memory"));
        assert_eq!(closest("vcpu", &words), Some("vcpus"));
        assert_eq!(closest("VCPUS", &words), Some("vcpus"));
        assert_eq!(closest("huge_pages", &words), Some("hugepages"));
        assert_eq!(closest("colour", &words), None);
    }

    #[test]
    fn lists_read_like_a_sentence() {
        assert_eq!(list(&["a"]), "`a`");
        assert_eq!(list(&["a", "b", "c"]), "`a`, `b` and `c`");
    }
}
