//! What is wrong in a spec, where, and how to put it right: the shape of every message about `vm.toml`.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The VM cannot be started.
    Error,
    /// The VM can be started; it will probably not do what is wanted.
    Warning,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Where it is, in bytes from the start of the source; `None`: nowhere in particular.
    pub span: Option<Range<usize>>,
    /// What is wrong.
    pub message: String,
    /// How to put it right.
    pub fix: String,
}

/// Everything found in one spec; displays as text for people.
#[derive(Clone, Debug)]
pub struct Report {
    path: PathBuf,
    source: String,
    diagnostics: Vec<Diagnostic>,
}

impl Report {
    /// An empty report about the file at `path` with the text `source`.
    pub fn new(path: &Path, source: &str) -> Self {
        Self { path: path.to_owned(), source: source.to_owned(), diagnostics: Vec::new() }
    }

    /// Adds an error.
    pub fn error(
        &mut self,
        span: impl Into<Option<Range<usize>>>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.push(Severity::Error, span.into(), message.into(), fix.into());
    }

    /// Adds a warning.
    pub fn warning(
        &mut self,
        span: impl Into<Option<Range<usize>>>,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.push(Severity::Warning, span.into(), message.into(), fix.into());
    }

    fn push(&mut self, severity: Severity, span: Option<Range<usize>>, message: String, fix: String) {
        self.diagnostics.push(Diagnostic { severity, span, message, fix });
    }

    /// How many errors there are.
    pub fn errors(&self) -> usize {
        self.diagnostics.iter().filter(|found| found.severity == Severity::Error).count()
    }

    /// Whether there is anything to show.
    pub fn is_empty(&self) -> bool {
        self.diagnostics.is_empty()
    }

    /// The findings, in the order of the source.
    pub fn diagnostics(&self) -> Vec<&Diagnostic> {
        let mut sorted: Vec<_> = self.diagnostics.iter().collect();
        // What has no place of its own comes last; the sort keeps the order of discovery otherwise.
        sorted.sort_by_key(|found| found.span.as_ref().map_or(usize::MAX, |span| span.start));
        sorted
    }

    /// The report as text, with terminal colours if `colour`.
    pub fn render(&self, colour: bool) -> String {
        let mut out = String::new();
        for found in self.diagnostics() {
            self.render_one(&mut out, found, &Palette::new(colour));
        }
        match self.errors() {
            0 => {}
            1 => out.push_str(&format!("{}: 1 error\n", self.path.display())),
            n => out.push_str(&format!("{}: {n} errors\n", self.path.display())),
        }
        out
    }

    fn render_one(&self, out: &mut String, found: &Diagnostic, palette: &Palette) {
        let Palette { bold, dim, error, warning, reset } = palette;
        let (colour, word) = match found.severity {
            Severity::Error => (error, "error"),
            Severity::Warning => (warning, "warning"),
        };
        out.push_str(&format!("{colour}{word}{reset}{bold}: {}{reset}\n", found.message));
        let path = self.path.display();
        let gutter = match &found.span {
            Some(span) => {
                let place = Place::of(&self.source, span);
                let gutter = " ".repeat(place.line.to_string().len());
                out.push_str(&format!("{gutter}{dim}-->{reset} {path}:{}:{}\n", place.line, place.column));
                out.push_str(&format!("{gutter} {dim}|{reset}\n"));
                out.push_str(&format!("{dim}{} |{reset} {}\n", place.line, place.text));
                out.push_str(&format!(
                    "{gutter} {dim}|{reset} {}{colour}{}{reset}\n",
                    " ".repeat(place.column - 1),
                    "^".repeat(place.width)
                ));
                gutter
            }
            None => {
                out.push_str(&format!(" {dim}-->{reset} {path}\n"));
                " ".to_owned()
            }
        };
        out.push_str(&format!("{gutter} {dim}={reset} {bold}fix{reset}: {}\n\n", found.fix));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// Terminal colours, or nothing.
struct Palette {
    bold: &'static str,
    dim: &'static str,
    error: &'static str,
    warning: &'static str,
    reset: &'static str,
}

impl Palette {
    fn new(colour: bool) -> Self {
        if colour {
            let (bold, dim) = ("\x1b[1m", "\x1b[1;34m");
            Self { bold, dim, error: "\x1b[1;31m", warning: "\x1b[1;33m", reset: "\x1b[0m" }
        } else {
            Self { bold: "", dim: "", error: "", warning: "", reset: "" }
        }
    }
}

/// A span as people count: from one, in lines and characters.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    line: usize,
    column: usize,
    /// The whole line, tabs as single spaces so that the caret stands right.
    text: String,
    /// Characters to underline, at least one, all on that line.
    width: usize,
}

impl Place {
    fn of(source: &str, span: &Range<usize>) -> Self {
        let floor = |offset: usize| {
            let offset = offset.min(source.len());
            (0..=offset).rev().find(|&at| source.is_char_boundary(at)).unwrap_or(0)
        };
        let (start, end) = (floor(span.start), floor(span.end.max(span.start)));
        let line_start = source[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = source[start..].find('\n').map_or(source.len(), |newline| start + newline);
        let width = source[start..end.min(line_end).max(start)].chars().count().max(1);
        Self {
            line: source[..start].matches('\n').count() + 1,
            column: source[line_start..start].chars().count() + 1,
            text: source[line_start..line_end].trim_end_matches('\r').replace(|c: char| c.is_control(), " "),
            width,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_counted_from_one_in_characters() {
        let source = "a = 1\n\tü = \"xy\"\nlast";
        let place = Place::of(source, &(12..16));
        assert_eq!((place.line, place.column, place.width), (2, 6, 4));
        assert_eq!(place.text, " ü = \"xy\"");
        let beyond = Place::of(source, &(500..600));
        assert_eq!((beyond.line, beyond.column, beyond.width), (3, 5, 1));
    }

    #[test]
    fn a_report_shows_the_line_a_caret_and_the_fix_in_the_order_of_the_source() {
        let mut report = Report::new(Path::new("vm.toml"), "name = \"x\"\nvcpus = 99\n");
        report.error(None, "`[boot]` is missing", "add it");
        report.error(19..21, "`vcpus` must be from 1 to 64, not 99", "write a number from 1 to 64");
        report.warning(7..10, "short", "longer");
        assert_eq!(
            report.to_string(),
            "\
warning: short
 --> vm.toml:1:8
  |
1 | name = \"x\"
  |        ^^^
  = fix: longer

error: `vcpus` must be from 1 to 64, not 99
 --> vm.toml:2:9
  |
2 | vcpus = 99
  |         ^^
  = fix: write a number from 1 to 64

error: `[boot]` is missing
 --> vm.toml
  = fix: add it

vm.toml: 2 errors
"
        );
    }
}
