//! Notices that the process that started this one died before it could take this one with it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The parent as it was when the compartment was begun.
pub(crate) struct Parent {
    /// `/proc/self/stat`, which knows the parent even when it is outside our PID namespace.
    stat: Option<File>,
    first: u32,
}

impl Parent {
    /// Remembers the parent; to be called while `/proc` is still there.
    pub(crate) fn now() -> Parent {
        let stat = File::open("/proc/self/stat").ok();
        let first = number(stat.as_ref());
        Parent { stat, first }
    }

    /// Whether it is still the same: a dead one is replaced by an ancestor.
    pub(crate) fn is_alive(&self) -> bool {
        number(self.stat.as_ref()) == self.first
    }
}

fn number(stat: Option<&File>) -> u32 {
    stat.and_then(|file| from_stat(file).ok().flatten())
        .unwrap_or_else(|| nix::unistd::getppid().as_raw().cast_unsigned())
}

/// Field 4 of `/proc/PID/stat`; field 2, the name, is in parentheses and may hold any character.
fn from_stat(file: &File) -> io::Result<Option<u32>> {
    let mut text = [0; 256];
    let len = file.read_at(&mut text, 0)?;
    let text = String::from_utf8_lossy(&text[..len]);
    let after_name = text.rsplit_once(')').map(|(_, rest)| rest);
    Ok(after_name.and_then(|rest| rest.split_whitespace().nth(1)).and_then(|field| field.parse().ok()))
}
