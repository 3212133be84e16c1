//! A running process in its compartment, as the rest of the machine sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

/// What a descriptor is: `/dev/null`, `anon_inode:[eventfd]`, `socket`.
fn kind(target: &Path) -> String {
    let target = target.display().to_string();
    let numbered = ["socket", "pipe"].into_iter().find(|kind| target.starts_with(&format!("{kind}:[")));
    numbered.map_or(target.clone(), str::to_owned)
}

/// A process, through `/proc`.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    folder: PathBuf,
}

/// How much of a shared memory is mapped, and which it is.
#[derive(Debug, Default)]
pub struct Mapped {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: BTreeSet<String>,
}

impl Process {
    /// The process with this id.
    pub fn new(name: &'static str, pid: u32) -> Self {
        Self { name, folder: format!("/proc/{pid}").into() }
    }

    /// No capabilities, one thread, a filter.
    pub fn has_no_privileges(&self) -> anyhow::Result<()> {
        let wanted = [("Seccomp", "2"), ("NoNewPrivs", "1")];
        let none = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| (set, "0000000000000000"));
        for (name, value) in wanted.into_iter().chain(none) {
            let is = self.field(name)?;
            ensure!(is == value, "{}: {name} is {is}", self.name);
        }
        let threads = fs::read_dir(self.folder.join("task"))?.filter_map(|task| {
            let name = fs::read_to_string(task.ok()?.path().join("comm")).ok()?;
            // The kernel's own, for requests that have to wait; they never run code of the process.
            (!name.starts_with("iou-")).then_some(name)
        });
        ensure!(threads.count() == 1, "{} has threads", self.name);
        Ok(())
    }

    /// Namespaces of its own, and nothing in its root directory.
    pub fn is_alone(&self) -> anyhow::Result<()> {
        for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            let place = Path::new("ns").join(kind);
            let (own, ours) =
                (self.link(&place)?, Process::new("this test", std::process::id()).link(&place)?);
            ensure!(own != ours, "{} shares its {kind} namespace with us", self.name);
        }
        let files = fs::read_dir(self.folder.join("root"))?.count();
        ensure!(files == 0, "{} has {files} files in its root directory", self.name);
        let made = fs::write(self.folder.join("root/new"), "").map_err(|error| error.kind());
        ensure!(
            made == Err(std::io::ErrorKind::ReadOnlyFilesystem),
            "{} can make files: {made:?}",
            self.name
        );
        Ok(())
    }

    /// These, besides the standard streams: nothing, nothing, and where the test's own errors go.
    pub fn has_descriptors(&self, wanted: &[&str]) -> anyhow::Result<()> {
        let mut wanted: Vec<String> = wanted.iter().copied().map(str::to_owned).collect();
        wanted.extend(["/dev/null".into(), "/dev/null".into(), kind(&fs::read_link("/proc/self/fd/2")?)]);
        let entries = fs::read_dir(self.folder.join("fd"))?;
        let mut open: Vec<_> =
            entries.map(|entry| Ok(kind(&fs::read_link(entry?.path())?))).collect::<anyhow::Result<_>>()?;
        wanted.sort();
        open.sort();
        ensure!(open == wanted, "{} has {open:?} and not {wanted:?}", self.name);
        Ok(())
    }

    /// Shared memory that is mapped, by name.
    pub fn shared_memory(&self) -> anyhow::Result<BTreeMap<String, Mapped>> {
        let mut all = BTreeMap::<String, Mapped>::new();
        for line in self.read("maps")?.lines() {
            // `START-END PERMISSIONS OFFSET DEVICE INODE /memfd:NAME (deleted)`
            let Some((head, name)) = line.split_once("/memfd:") else { continue };
            let words: Vec<_> = head.split_whitespace().collect();
            let (start, end) = words[0].split_once('-').with_context(|| format!("no range in {line}"))?;
            let mapped = all.entry(name.trim_end_matches(" (deleted)").to_owned()).or_default();
            mapped.bytes += u64::from_str_radix(end, 16)? - u64::from_str_radix(start, 16)?;
            mapped.inodes.insert(words[4].to_owned());
        }
        Ok(all)
    }

    fn field(&self, name: &str) -> anyhow::Result<String> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(line.with_context(|| format!("no {name} in the status of {}", self.name))?.trim().to_owned())
    }

    fn read(&self, file: &str) -> anyhow::Result<String> {
        fs::read_to_string(self.folder.join(file)).with_context(|| format!("{file} of {}", self.name))
    }

    fn link(&self, place: &Path) -> anyhow::Result<PathBuf> {
        fs::read_link(self.folder.join(place))
            .with_context(|| format!("{} of {}", place.display(), self.name))
    }
}
