//! How a value is written in a unit file so that systemd reads back exactly that value.
//!
//! Two readers, two rules (systemd.service(5), systemd.unit(5)). Command lines know C escapes, `%` and `$`; lists of paths know
//! backslashes before quotes and backslashes, and `%`. Whatever neither could carry is refused before anything is written.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// A value that no unit file can carry.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unwritable {
    /// Unit files are UTF-8.
    #[error("{0:?} is not UTF-8, and a unit file has to be: rename it")]
    NotText(PathBuf),
    /// A line break would begin another setting.
    #[error("{0:?} contains a control character, which a unit file cannot carry: rename it")]
    Control(PathBuf),
}

/// An argument of `ExecStart=`.
pub fn argument(text: &OsStr) -> Result<String, Unwritable> {
    let mut out = String::from("\"");
    for c in checked(text)?.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            // A specifier; a variable.
            '%' | '$' => out.extend([c, c]),
            _ => out.push(c),
        }
    }
    out.push('"');
    Ok(out)
}

/// A command line for `ExecStart=`: the program and its arguments.
pub fn command_line<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> Result<String, Unwritable> {
    let words: Result<Vec<String>, Unwritable> = words.into_iter().map(argument).collect();
    Ok(words?.join(" "))
}

/// The words of a command line that [`command_line`] has written; of another one, whatever is in quotes.
pub fn words(command: &str) -> Vec<OsString> {
    let (mut words, mut chars) = (Vec::new(), command.chars());
    while chars.by_ref().any(|c| c == '"') {
        let mut word = String::new();
        while let Some(c) = chars.next().filter(|c| *c != '"') {
            match c {
                '\\' => word.extend(chars.next()),
                // Twice.
                '%' | '$' => {
                    chars.next();
                    word.push(c);
                }
                c => word.push(c),
            }
        }
        words.push(word.into());
    }
    words
}

/// A path in a setting that takes a list of them (`BindPaths=`, `ReadWritePaths=`) or of paths with options (`DeviceAllow=`).
pub fn path(path: &Path) -> Result<String, Unwritable> {
    let mut out = String::from("\"");
    for c in checked(path.as_os_str())?.chars() {
        match c {
            // Inside quotes a colon does not end a source, nor a space an entry.
            '"' | '\\' => out.extend(['\\', c]),
            '%' => out.push_str("%%"),
            _ => out.push(c),
        }
    }
    out.push('"');
    Ok(out)
}

fn checked(text: &OsStr) -> Result<&str, Unwritable> {
    let Some(string) = text.to_str() else { return Err(Unwritable::NotText(text.into())) };
    if string.contains(|c: char| c.is_control()) {
        return Err(Unwritable::Control(text.into()));
    }
    Ok(string)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    /// Reads one quoted word as systemd does: `c_escapes` for command lines, else a backslash only takes the next
    /// character as it is; afterwards specifiers (and variables) are resolved.
    fn read_back(word: &str, is_command: bool) -> String {
        let mut chars = word.strip_prefix('"').and_then(|word| word.strip_suffix('"')).unwrap().chars();
        let mut unquoted = String::new();
        while let Some(c) = chars.next() {
            match c {
                '"' => panic!("the quotes end inside {word}"),
                '\\' => {
                    let next = chars.next().unwrap();
                    assert!(!is_command || matches!(next, '\\' | '"'), "a C escape in {word}");
                    unquoted.push(next);
                }
                c => unquoted.push(c),
            }
        }
        let mut out = String::new();
        let mut chars = unquoted.chars();
        while let Some(c) = chars.next() {
            if c == '%' || (is_command && c == '$') {
                assert_eq!(chars.next(), Some(c), "a specifier or variable in {word}");
            }
            out.push(c);
        }
        out
    }

    const HOSTILE: [&str; 9] = [
        "/plain.img",
        "/with space and\u{a0}more.img",
        "/100%n %i %%.img",
        "/$HOME/${PATH}/$$.img",
        "/quo\"te's.img",
        "/back\\slash\\n.img",
        "/colon:rbind:/etc.img",
        "/; rm -rf ~ #.img",
        "/ends with\\",
    ];

    #[test]
    fn what_is_written_is_what_systemd_reads() {
        for text in HOSTILE {
            assert_eq!(read_back(&argument(OsStr::new(text)).unwrap(), true), text);
            assert_eq!(read_back(&path(Path::new(text)).unwrap(), false), text);
        }
    }

    #[test]
    fn a_command_line_is_its_words() {
        let words = ["/bin/x", "a b", ""].map(OsStr::new);
        assert_eq!(command_line(words).unwrap(), r#""/bin/x" "a b" """#);
        let hostile = HOSTILE.map(OsStr::new);
        assert_eq!(super::words(&command_line(hostile).unwrap()), hostile);
    }

    #[test]
    fn what_could_begin_a_setting_of_its_own_is_refused() {
        let hostile = OsStr::new("/disk\nExecStartPre=/bin/sh");
        assert_eq!(argument(hostile), Err(Unwritable::Control(hostile.into())));
        assert!(path(Path::new("/tab\there")).is_err());
        let not_text = OsStr::from_bytes(b"/\xff");
        assert_eq!(argument(not_text), Err(Unwritable::NotText(not_text.into())));
    }
}
