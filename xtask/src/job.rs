//! What is to be done in the lab, and what came of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::images::With;

/// A script with the files that it needs. It runs in `/job`, with `/job/bin` on its PATH; what it leaves in
/// `/job/out` comes back. The guests' disks are `/dev/vdc` (Debian 12), `/dev/vdd` (Debian 13, if asked for) and
/// `/dev/vde` (empty); they are fresh copies each time. Kernels are in `/job/bookworm`, `/job/trixie`.
#[derive(Debug)]
pub struct Job {
    /// For messages and directory names.
    pub name: String,
    /// Name in the lab (relative to `/job`) to file here.
    pub files: BTreeMap<String, PathBuf>,
    /// Run by bash.
    pub script: String,
    /// After that the lab is killed.
    pub timeout: Duration,
    /// Which guests it wants.
    pub guests: With,
    /// Whether the output goes to standard output as it comes.
    pub live: bool,
    /// Whether the lab host's own messages are shown too.
    pub verbose: bool,
    /// Whether the run's directory is kept.
    pub keep: bool,
    /// Where the contents of `/job/out` go.
    pub results: Option<PathBuf>,
}

impl Job {
    /// A job without files; ten minutes.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            files: BTreeMap::new(),
            script: String::new(),
            timeout: Duration::from_secs(600),
            guests: With::Bookworm,
            live: false,
            verbose: false,
            keep: false,
            results: None,
        }
    }

    /// Sets the script.
    pub fn script(&mut self, script: &str) -> &mut Self {
        self.script = script.to_owned();
        self
    }

    /// Adds a file.
    pub fn file(&mut self, name: &str, path: &Path) -> &mut Self {
        self.files.insert(name.to_owned(), path.to_owned());
        self
    }

    /// Adds programs, to `/job/bin`.
    pub fn binaries(&mut self, paths: &[PathBuf]) -> &mut Self {
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            self.file(&format!("bin/{name}"), path);
        }
        self
    }

    /// Chooses the guests.
    pub fn with(&mut self, guests: With) -> &mut Self {
        self.guests = guests;
        self
    }

    /// Sets the time limit.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Shows the output as it comes.
    #[must_use]
    pub fn live(mut self) -> Self {
        self.live = true;
        self
    }
}

/// What came of a job.
#[derive(Debug)]
pub struct Outcome {
    /// The script's exit status; 124 if time ran out, 125 if the lab itself failed.
    pub status: i32,
    /// What it printed.
    pub output: String,
    /// What the lab host's kernel said meanwhile.
    pub kernel: String,
    /// From the order to the end.
    pub elapsed: Duration,
}
