//! Where records go. Opened once; every record is one `write(2)` afterwards.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use crate::last::Form;
use crate::record::Record;
use crate::{Format, human, journal, json};

/// An output and the format it wants.
pub(crate) enum Sink {
    /// Lines for people.
    Human { out: Out, colour: bool },
    /// JSON lines.
    Json { out: Out },
    /// journald's native protocol; lines on stderr if that fails.
    Journal { socket: File, fallback: Out },
}

/// stderr, or a file in its place.
pub(crate) enum Out {
    Stderr,
    #[cfg_attr(not(test), expect(dead_code))]
    File(File),
}

impl Sink {
    /// The sink that `format` and this process's stderr call for.
    pub(crate) fn for_this_process(format: Format) -> Self {
        let stderr = std::io::stderr();
        match format {
            Format::Json => Self::Json { out: Out::Stderr },
            Format::Human => {
                let journal = stderr.as_fd().try_clone_to_owned().ok().map(File::from);
                match journal.as_ref().and_then(journal::connect) {
                    Some(socket) => Self::Journal { socket, fallback: Out::Stderr },
                    None => Self::Human { out: Out::Stderr, colour: colour_wanted(&stderr) },
                }
            }
        }
    }

    /// A sink that writes to `file`.
    #[cfg(test)]
    pub(crate) fn stream(file: File, format: Format, colour: bool) -> Self {
        let out = Out::File(file);
        match format {
            Format::Human => Self::Human { out, colour },
            Format::Json => Self::Json { out },
        }
    }

    /// The descriptor that it opened, if any. It stays open as long as the sink is there.
    pub(crate) fn descriptor(&self) -> Option<RawFd> {
        match self {
            Self::Journal { socket, .. } => Some(socket.as_raw_fd()),
            Self::Human { .. } | Self::Json { .. } => None,
        }
    }

    /// The form of a line that goes past it, straight to standard error.
    pub(crate) fn form(&self) -> Form {
        match self {
            Self::Human { .. } => Form::Human,
            Self::Json { .. } => Form::Json,
            Self::Journal { .. } => Form::Journal,
        }
    }

    /// Writes one record. A record that cannot be written is lost: there is nobody left to tell.
    pub(crate) fn write(&self, record: &Record<'_>) {
        match self {
            Self::Human { out, colour } => out.write(human::line(record, *colour).as_bytes()),
            Self::Json { out } => out.write(json::line(record).as_bytes()),
            Self::Journal { socket, fallback } => {
                let mut socket = socket;
                if socket.write(&journal::datagram(record)).is_err() {
                    fallback.write(human::line(record, false).as_bytes());
                }
            }
        }
    }
}

impl Out {
    /// One `write(2)` for the whole record, so that records of several processes do not mix within a line.
    fn write(&self, bytes: &[u8]) {
        let _ = match self {
            Self::Stderr => std::io::stderr().write_all(bytes),
            Self::File(file) => {
                let mut file = file;
                file.write_all(bytes)
            }
        };
    }
}

/// Colours on a terminal that has them, unless <https://no-color.org> is asked for.
fn colour_wanted(stderr: &std::io::Stderr) -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stderr.is_terminal() && !dumb && !refused
}
