//! What is to be done in the lab, and what came of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::images::{HostKernel, With};

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
    /// Who comes from outside.
    pub visit: Option<Visit>,
    /// What is put into the slots of the lab host before the script runs. With a card it has an IOMMU, too.
    pub cards: Vec<Card>,
    /// The lab host's kernel.
    pub host: HostKernel,
}

/// A PCI device that is put into a slot of the lab host while that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Card {
    /// An Intel 82574L (`e1000e`), with a cable to [`Card::Neighbour`].
    Nic,
    /// Another one, with a cable to [`Card::OtherNeighbour`].
    OtherNic,
    /// The NIC of the lab host itself at the other end of that cable.
    Neighbour,
    /// The same for the other cable.
    OtherNeighbour,
    /// An NVMe drive of 256 MiB.
    Nvme,
    /// QEMU's device for teaching: it does DMA where it is told to.
    Edu,
}

/// Somebody outside the lab who comes once the job is ready for it, a viewer of a guest's screen for instance.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    /// What the job prints when it is.
    pub when: &'static str,
    /// Runs on a thread of its own; what it returns becomes part of the output, and an error ends the job.
    pub visitor: fn(&Doors) -> Result<String>,
}

/// Port for VNC in the lab host, at its address 10.0.2.15 (see `recipes/lab/screen.sh`).
pub const VNC_PORT: u16 = 5900;
/// Port for the console's web page, likewise.
pub const WEB_PORT: u16 = 6080;

/// The ways in.
#[derive(Debug)]
pub struct Doors {
    /// A port of 127.0.0.1 that leads to [`VNC_PORT`].
    pub vnc: u16,
    /// And to [`WEB_PORT`].
    pub web: u16,
    /// The visitor's files.
    pub directory: PathBuf,
    /// What the job prints.
    pub said: Said,
}

/// What a job has printed so far.
#[derive(Clone, Debug, Default)]
pub struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    /// More of it.
    pub fn add(&self, text: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(text);
    }

    /// All of it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Returns once it contains `what`.
    pub fn wait_for(&self, what: &str, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while !self.text().contains(what) {
            ensure!(start.elapsed() < limit, "no '{what}' within {} s", limit.as_secs());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
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
            visit: None,
            cards: Vec::new(),
            host: HostKernel::default(),
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

/// Exit status of a job whose time ran out.
pub const TIMED_OUT: i32 = 124;
/// Exit status of a job whose machine ended before it did.
pub const LAB_FAILED: i32 = 125;
/// Exit status of a job whose visitor failed.
pub const VISIT_FAILED: i32 = 123;
/// What the lab host's kernel says when it cannot go on, and what it says when its stack is overrun (a panic follows,
/// sooner or later).
const HOST_FELL: [&str; 2] = ["Kernel panic - not syncing", "stack guard page was hit"];

/// What came of a job.
#[derive(Debug)]
pub struct Outcome {
    /// The script's exit status, or one of [`TIMED_OUT`] and [`LAB_FAILED`].
    pub status: i32,
    /// What it printed.
    pub output: String,
    /// What the lab host's kernel said meanwhile.
    pub kernel: String,
    /// From the order to the end.
    pub elapsed: Duration,
}

/// Whether a kernel that has said this comes down.
pub fn fell(kernel: &str) -> bool {
    HOST_FELL.iter().any(|words| kernel.contains(words))
}

impl Outcome {
    /// Whether the lab host's kernel or the machine below it came down, rather than the job.
    pub fn host_fell(&self) -> bool {
        self.status == LAB_FAILED || fell(&self.kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: i32, kernel: &str) -> Outcome {
        Outcome { status, output: String::new(), kernel: kernel.to_owned(), elapsed: Duration::ZERO }
    }

    #[test]
    fn a_machine_that_is_gone_is_no_verdict_about_the_job() {
        assert!(outcome(LAB_FAILED, "").host_fell());
        assert!(outcome(1, "[ 1.0] Kernel panic - not syncing: Fatal exception").host_fell());
        assert!(outcome(TIMED_OUT, "BUG: TASK stack guard page was hit at 0").host_fell());
    }

    #[test]
    fn a_job_that_fails_by_itself_is() {
        for status in [0, 1, TIMED_OUT] {
            assert!(!outcome(status, "BUG: soft lockup").host_fell());
        }
    }
}
