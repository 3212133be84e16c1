//! A record from a process that is dying: formatted in a signal handler, so without memory, locks or files.

use std::fmt::{self, Write};
use std::sync::OnceLock;
use std::time::SystemTime;

use crate::clock::Utc;

/// How the last line of this process looks; set by `init`.
pub(crate) static MANNER: OnceLock<Manner> = OnceLock::new();

/// A process's name, and the form of its records on standard error.
#[derive(Debug)]
pub(crate) struct Manner {
    pub(crate) process: String,
    pub(crate) form: Form,
}

/// The form of a line on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Human,
    Json,
    /// Standard error is the journal's: a line there begins with its priority.
    Journal,
}

/// Writes `message` into `buffer` as a whole error record, and returns its length; what does not fit is cut. The message must need
/// no escaping.
///
/// Safe in a signal handler: it takes no memory and no lock, and makes no system call but `clock_gettime` where the vDSO cannot
/// answer it.
pub fn last_words(buffer: &mut [u8], message: &str) -> usize {
    let mut line = Line { buffer, len: 0 };
    // A line that is cut is still a line.
    let _ = match MANNER.get() {
        None => write!(line, "{message}"),
        Some(Manner { process, form: Form::Journal }) => write!(line, "<3>{process}: {message}"),
        Some(Manner { process, form: Form::Human }) => {
            let time = Utc::from(SystemTime::now());
            line.time_of_day(time).and_then(|()| write!(line, " ERROR {process}: {message}"))
        }
        Some(Manner { process, form: Form::Json }) => line.json(process, message),
    };
    line.end()
}

/// A line of bounded length.
struct Line<'b> {
    buffer: &'b mut [u8],
    len: usize,
}

impl Line<'_> {
    fn time_of_day(&mut self, time: Utc) -> fmt::Result {
        time.write_time_of_day(self)
    }

    fn json(&mut self, process: &str, message: &str) -> fmt::Result {
        self.write_str("{\"time\":\"")?;
        Utc::from(SystemTime::now()).write_rfc3339(self)?;
        write!(
            self,
            "\",\"level\":\"error\",\"process\":\"{process}\",\"target\":\"logs\",\"message\":\"{message}\"}}"
        )
    }

    /// The length with a newline, for which there is always room.
    fn end(self) -> usize {
        match self.buffer.get_mut(self.len) {
            Some(end) => {
                *end = b'\n';
                self.len + 1
            }
            None => self.len,
        }
    }
}

impl Write for Line<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.buffer.len().saturating_sub(self.len + 1);
        let len = text.len().min(room);
        if let (Some(place), Some(bytes)) =
            (self.buffer.get_mut(self.len..self.len + len), text.as_bytes().get(..len))
        {
            place.copy_from_slice(bytes);
            self.len += len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(buffer: &mut [u8]) -> String {
        let len = last_words(buffer, "seccomp: socket(41)");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }

    #[test]
    fn the_last_line_looks_like_the_others_and_always_ends() {
        assert_eq!(said(&mut [0; 512]), "seccomp: socket(41)\n");
        assert_eq!(said(&mut [0; 8]), "seccomp\n");
        assert_eq!(said(&mut []), "");
        let _ = MANNER.set(Manner { process: "disk0".to_owned(), form: Form::Json });
        let line = said(&mut [0; 512]);
        assert!(line.starts_with("{\"time\":\"20"), "{line}");
        assert!(line.ends_with("Z\",\"level\":\"error\",\"process\":\"disk0\",\"target\":\"logs\",\"message\":\"seccomp: socket(41)\"}\n"));
    }
}
