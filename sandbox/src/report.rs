//! What entering a compartment achieved, for one line in the log.

use std::fmt;

use crate::Kind;

/// Whether a step that depends on the host was possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was done.
    Yes,
    /// The caller did not ask for it.
    NotAsked,
    /// The host does not allow it; the reason.
    No(String),
}

impl Done {
    /// Whether it was done.
    pub fn is_done(&self) -> bool {
        *self == Done::Yes
    }
}

/// What was and what was not possible. Steps that are always possible (capabilities, `no_new_privs`,
/// seccomp) are not listed: without them there is no `Entered`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered {
    /// The compartment's name.
    pub name: &'static str,
    /// The policy's name.
    pub policy: &'static str,
    /// Effective user and group from the host's point of view, as far as this process can tell.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// Each kind of namespace, and whether it is the process's own now.
    pub namespaces: Vec<(Kind, Done)>,
    /// Whether the root directory is empty and read-only.
    pub empty_root: Done,
    /// Whether supplementary groups were dropped.
    pub groups_dropped: Done,
    /// Whether the capability bounding set is empty and the securebits are locked.
    pub bounding_set: Done,
    /// Landlock: whether the rule set is in force, fully or partly.
    pub landlock: Done,
    /// File descriptors that stay open.
    pub kept: usize,
}

impl Entered {
    /// Whether everything that was asked for was possible.
    pub fn is_complete(&self) -> bool {
        self.missing().next().is_none()
    }

    fn missing(&self) -> impl Iterator<Item = (String, &str)> {
        let others = [
            ("empty root", &self.empty_root),
            ("dropped groups", &self.groups_dropped),
            ("bounding set", &self.bounding_set),
            ("landlock", &self.landlock),
        ];
        let named = self.namespaces.iter().map(|(kind, done)| (format!("{kind} namespace"), done));
        named.chain(others.map(|(name, done)| (name.to_owned(), done))).filter_map(
            |(name, done)| match done {
                Done::No(reason) => Some((name, reason.as_str())),
                _ => None,
            },
        )
    }
}

impl fmt::Display for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: uid {} gid {}, own namespaces:", self.name, self.uid, self.gid)?;
        let mut own = self.namespaces.iter().filter(|(_, done)| done.is_done()).peekable();
        if own.peek().is_none() {
            write!(f, " none")?;
        }
        for (kind, _) in own {
            write!(f, " {kind}")?;
        }
        write!(f, "; seccomp {}; {} fds", self.policy, self.kept)?;
        for (what, reason) in self.missing() {
            write!(f, "; no {what} ({reason})")?;
        }
        Ok(())
    }
}
