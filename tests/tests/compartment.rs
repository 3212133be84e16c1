//! Compartments of running processes, in the middle of serving a guest, as the rest of the machine sees them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    Vm,
    disk::Disk,
    net::{
        Backend, Nic, Wire,
        rig::{DEVICE, exercise as net_exercise},
    },
    steps::{Guest, exercise, small},
};
use vsc::net::{Net, NetOptions};
use vsc::storage::{Storage, StorageOptions};

const MEMORY: u64 = 64 << 20;
const PAGE: u64 = 4096;
/// Pages of each ring: its data pages are mapped twice in a row, its control page once.
const RING: u64 = 4;
const RING_MAPPINGS: u64 = 2 * (1 + 2 * (RING - 1)) * PAGE;

#[test]
fn a_process_holds_what_it_serves_with_and_nothing_else() -> anyhow::Result<()> {
    let disk = Disk::in_memory(16 << 20)?;
    let mut vm = Vm::builder().memory(MEMORY).storage("disk0", &[disk.argument("")]).echo("echo").start()?;
    let mut guest = Guest::connect(&vm)?;
    let offer = guest.offer(0)?;
    let options = StorageOptions { open: small(), ..StorageOptions::default() };
    let mut storage = Storage::open(&mut guest.client, &offer, &options)?;
    storage.write(0, 0, &[7; PAGE as usize], 512)?;
    let mut echo = guest.echo(1)?;
    exercise(&mut echo)?;

    let core = Process::new("soft-core", vm.core().pid());
    let disk0 = Process::new("vsp-storage", vm.device("disk0").pid());
    let echo = Process::new("vsp-echo", vm.device("echo").pid());
    for process in [&core, &disk0, &echo] {
        process.has_no_privileges()?;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root may look further into a compartment");
        return Ok(());
    }
    for process in [&core, &disk0, &echo] {
        process.is_alone()?;
    }

    // The disk is an ordinary descriptor: were it registered with the io_uring, its lock would outlive the process. And here, in
    // memory, where no request does, the lock has one of its own.
    let image = disk.path().display().to_string();
    let (events, to_core, heir) = ("anon_inode:[eventpoll]", "socket", "pipe");
    let (doorbell, disks) = ("anon_inode:[eventfd]", "anon_inode:[io_uring]");
    echo.has_descriptors(&[events, to_core, heir, doorbell, doorbell])?;
    disk0.has_descriptors(&[events, to_core, heir, doorbell, doorbell, disks, &image, &image])?;

    let (memory, theirs) = (echo.shared_memory()?, disk0.shared_memory()?);
    let names: Vec<_> = memory.keys().map(String::as_str).collect();
    ensure!(
        names == ["bulkhead-flags", "bulkhead-ledger", "bulkhead-ring"],
        "vsp-echo has mapped {memory:?}"
    );
    ensure!(memory["bulkhead-flags"].bytes == PAGE, "vsp-echo has mapped {memory:?}");
    ensure!(memory["bulkhead-ring"].bytes == RING_MAPPINGS, "vsp-echo has mapped {memory:?}");
    let names: Vec<_> = theirs.keys().map(String::as_str).collect();
    ensure!(
        names == ["bulkhead-flags", "bulkhead-ledger", "bulkhead-ram", "bulkhead-ring"],
        "vsp-storage has mapped {theirs:?}"
    );
    ensure!(theirs["bulkhead-ram"].bytes == MEMORY, "vsp-storage has mapped {theirs:?}");
    ensure!(theirs["bulkhead-ring"].bytes == RING_MAPPINGS, "vsp-storage has mapped {theirs:?}");
    for name in ["bulkhead-ring", "bulkhead-ledger"] {
        let (one, other) = (&memory[name].inodes, &theirs[name].inodes);
        ensure!(one.len() == 1 && other.len() == 1 && one != other, "one {name} is in two processes");
    }
    Ok(())
}

#[test]
fn a_nic_holds_its_rings_its_two_buffers_and_its_wire() -> anyhow::Result<()> {
    let (mut wire, theirs) = Wire::new()?;
    let nic = Nic::new(Backend::Stream(theirs));
    let mut vm = Vm::builder().memory(MEMORY).net(DEVICE, &nic).start()?;
    let mut guest = Guest::connect(&vm)?;
    let offer = guest.offer(0)?;
    let options = NetOptions { open: small(), ..NetOptions::small() };
    let mut net = Net::open(&mut guest.client, &offer, &options)?;
    net_exercise(&mut net, &mut wire)?;

    let process = Process::new("vsp-net", vm.device(DEVICE).pid());
    process.has_no_privileges()?;
    // What a packet names besides is fetched for it; it has neither the memory nor the right to ask for anything else.
    let exposed = vm.operator()?.device(DEVICE)?.exposed_bytes;
    let buffers = u64::from(net.receive_buffer().len + net.send_buffer().len);
    // The event flags are a page of the core's, which the guest sees too.
    ensure!(exposed == buffers + (2 * RING + 1) * PAGE, "{exposed} bytes of the guest's memory are exposed");
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root may look further into a compartment");
        return Ok(());
    }
    process.is_alone()?;
    let (events, socket, heir) = ("anon_inode:[eventpoll]", "socket", "pipe");
    let doorbell = "anon_inode:[eventfd]";
    process.has_descriptors(&[events, socket, socket, heir, doorbell, doorbell])?;
    let memory = process.shared_memory()?;
    let names: Vec<_> = memory.keys().map(String::as_str).collect();
    let wanted = [
        "bulkhead-fetch",
        "bulkhead-flags",
        "bulkhead-gpadl",
        "bulkhead-ledger",
        "bulkhead-net-frame",
        "bulkhead-ring",
    ];
    ensure!(names == wanted, "vsp-net has mapped {memory:?}");
    ensure!(memory["bulkhead-gpadl"].bytes == buffers, "vsp-net has mapped {memory:?}");
    ensure!(memory["bulkhead-ring"].bytes == RING_MAPPINGS, "vsp-net has mapped {memory:?}");
    // When the guest takes the buffers back, they are gone from here too.
    net.close(&mut guest.client, Vec::new())?;
    let exposed = vm.operator()?.device(DEVICE)?.exposed_bytes;
    ensure!(exposed == 0, "{exposed} bytes are exposed by a device that is closed");
    Ok(())
}

/// What a descriptor is: `/dev/null`, `anon_inode:[eventfd]`, `socket`.
fn kind(target: &Path) -> String {
    let target = target.display().to_string();
    let numbered = ["socket", "pipe"].into_iter().find(|kind| target.starts_with(&format!("{kind}:[")));
    numbered.map_or(target.clone(), str::to_owned)
}

/// A process, through `/proc`.
struct Process {
    name: &'static str,
    folder: PathBuf,
}

/// How much of a shared memory is mapped, and which it is.
#[derive(Debug, Default)]
struct Mapped {
    bytes: u64,
    inodes: BTreeSet<String>,
}

impl Process {
    fn new(name: &'static str, pid: u32) -> Self {
        Self { name, folder: format!("/proc/{pid}").into() }
    }

    fn has_no_privileges(&self) -> anyhow::Result<()> {
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
    fn is_alone(&self) -> anyhow::Result<()> {
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
    fn has_descriptors(&self, wanted: &[&str]) -> anyhow::Result<()> {
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
    fn shared_memory(&self) -> anyhow::Result<BTreeMap<String, Mapped>> {
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
