//! The name of a build, which a device says when it begins.

use std::fmt;

/// Bytes of a name.
pub(crate) const LEN: usize = 32;

/// Name of a build: printable ASCII, at most 32 bytes. For logs only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Build([u8; LEN]);

impl Build {
    /// The first 32 bytes of a name; what cannot be printed becomes `?`.
    pub const fn new(name: &str) -> Build {
        let (from, mut to) = (name.as_bytes(), [0; LEN]);
        let mut at = 0;
        while at < from.len() && at < LEN {
            to[at] = printable(from[at]);
            at += 1;
        }
        Build(to)
    }

    /// What a peer says, made printable.
    pub(crate) fn from_wire(bytes: [u8; LEN]) -> Build {
        let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(LEN);
        let mut name = [0; LEN];
        for (to, from) in name.iter_mut().zip(&bytes[..len]) {
            *to = printable(*from);
        }
        Build(name)
    }

    pub(crate) fn wire(self) -> [u8; LEN] {
        self.0
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap_or(LEN);
        std::str::from_utf8(&self.0[..len]).unwrap_or("?")
    }
}

const fn printable(byte: u8) -> u8 {
    if byte.is_ascii_graphic() || byte == b' ' { byte } else { b'?' }
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_printable_and_bounded() {
        assert_eq!(Build::new("0.1.0").as_str(), "0.1.0");
        assert_eq!(Build::new("a\u{1b}[2Jb").as_str(), "a?[2Jb");
        assert_eq!(Build::new(&"x".repeat(99)).as_str().len(), LEN);
        let mut hostile = [0xff; LEN];
        hostile[3] = 0;
        assert_eq!(Build::from_wire(hostile).as_str(), "???");
    }
}
