//! How every Bulkhead process logs.
//!
//! A process calls [`init`] once, early, and uses the `tracing` macros from then on. Everything
//! that logging needs is opened in [`init`]; afterwards a record costs one `write(2)` and nothing else, so a
//! process can close its compartment around it. There are no spans, no filters by module and no
//! background threads: a device process has a memory budget of one mebibyte.
//!
//! It must never open, look up or connect anything after [`init`], and never let bytes that came
//! from a guest reach a terminal unescaped.
#![forbid(unsafe_code)]

mod clock;
mod human;
mod journal;
mod json;
mod last;
mod ration;
mod record;
mod sink;

use std::os::fd::RawFd;
use std::str::FromStr;
use std::sync::OnceLock;

use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

pub use last::last_words;
pub use ration::Ration;
/// How much is logged: `Level::INFO` and so on; parses from `"off"`, `"error"`, `"warn"`, `"info"`,
/// `"debug"`, `"trace"`.
pub use tracing::level_filters::LevelFilter as Level;

use crate::record::Record;
use crate::sink::Sink;

/// What a record looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people: one short line on stderr, coloured on a terminal. When systemd has connected
    /// stderr to the journal (`JOURNAL_STREAM`), records go to journald with their fields instead.
    #[default]
    Human,
    /// One JSON object a line on stderr.
    Json,
}

/// The text is not the name of a [`Format`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown log format `{0}`: use `human` or `json`")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err(UnknownFormat(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Human => "human",
            Self::Json => "json",
        })
    }
}

/// What [`init`] opened and logging still uses; see [`descriptors`].
static OPENED: OnceLock<Option<RawFd>> = OnceLock::new();

/// Starts logging for this process, panics included. `process` is what the records are signed with
/// (`core-vmm`, `disk0`).
///
/// Call it before the compartment closes. It cannot fail: where the journal is not reachable,
/// stderr is used. A second call changes nothing.
pub fn init(format: Format, level: Level, process: &str) {
    let sink = Sink::for_this_process(format);
    let opened = sink.descriptor();
    let form = sink.form();
    let subscriber = Lines { level, process: process.to_owned(), sink };
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        let _ = OPENED.set(opened);
        let _ = last::MANNER.set(last::Manner { process: process.to_owned(), form });
        std::panic::set_hook(Box::new(log_panic));
    }
}

/// Descriptors beyond standard error that logging writes to: the socket to the journal, where there is one. A process
/// that closes all but a list of its descriptors has to put these on the list.
pub fn descriptors() -> Vec<RawFd> {
    OPENED.get().copied().flatten().into_iter().collect()
}

/// The standard hook may open files (for a backtrace) and knows nothing of JSON or the journal.
fn log_panic(info: &std::panic::PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("(no message)");
    match info.location() {
        Some(at) => tracing::error!(file = at.file(), line = at.line(), "panicked: {message}"),
        None => tracing::error!("panicked: {message}"),
    }
}

/// The subscriber: formats each event and writes it to the sink in one go.
struct Lines {
    level: Level,
    process: String,
    sink: Sink,
}

impl Subscriber for Lines {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<Level> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        self.sink.write(&Record::of(&self.process, event));
    }

    // Spans are switched off by `enabled`; these are never called with anything that matters.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &SpanRecord<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read};

    use super::*;

    /// What `body` logs at `level`, as it comes out of the other end of stderr.
    fn logged(format: Format, level: Level, body: impl FnOnce()) -> String {
        let (mut reader, writer): (PipeReader, _) = std::io::pipe().unwrap();
        let sink = Sink::stream(std::fs::File::from(std::os::fd::OwnedFd::from(writer)), format, false);
        let subscriber = Lines { level, process: "disk0".to_owned(), sink };
        tracing::subscriber::with_default(subscriber, body);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_human_line_has_time_level_process_message_and_fields() {
        let line = logged(Format::Human, Level::INFO, || {
            tracing::warn!(lun = 3, path = "a b", ok = true, "disk is slow");
        });
        let (time, rest) = line.split_once(' ').unwrap();
        assert_eq!(time.len(), "12:34:56.789".len());
        assert_eq!(rest, "WARN  disk0: disk is slow lun=3 path=\"a b\" ok=true\n");
    }

    #[test]
    fn records_below_the_level_and_spans_are_not_written() {
        let text = logged(Format::Human, Level::WARN, || {
            let _span = tracing::error_span!("span").entered();
            tracing::info!("quiet");
            tracing::error!("loud");
        });
        assert_eq!(text.lines().count(), 1);
        assert!(text.ends_with("ERROR disk0: loud\n"), "{text}");
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        let text = logged(Format::Human, Level::INFO, || {
            tracing::info!(name = "\u{9b}2J\x1b[2J", "two\nlines\x07");
        });
        assert!(text.ends_with("two\\nlines\\u{7} name=\"\\u{9b}2J\\u{1b}[2J\"\n"), "{text}");
    }

    #[test]
    fn json_is_one_object_a_line_with_typed_fields() {
        let text = logged(Format::Json, Level::INFO, || {
            tracing::info!(bytes = 512_u64, ratio = 0.5, ok = false, kind = ?"x", "said \"hi\"\n");
        });
        let (head, rest) = text.split_once(",\"level\"").unwrap();
        assert!(head.starts_with("{\"time\":\"20") && head.ends_with("Z\""), "{head}");
        assert_eq!(
            rest,
            ":\"info\",\"process\":\"disk0\",\"target\":\"logs::tests\",\"message\":\"said \\\"hi\\\"\\n\",\
             \"fields\":{\"bytes\":512,\"ratio\":0.5,\"ok\":false,\"kind\":\"\\\"x\\\"\"}}\n"
        );
    }

    #[test]
    fn formats_parse_and_print() {
        for format in [Format::Human, Format::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert_eq!(
            "yaml".parse::<Format>().unwrap_err().to_string(),
            "unknown log format `yaml`: use `human` or `json`"
        );
    }
}
