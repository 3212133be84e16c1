//! The emulated machine: its command line, its start, its control.
//!
//! Freezing and thawing need the very same devices on both command lines; only what is behind them differs.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::ports::{self, Event};
use crate::images::{GUEST_DISK, HostKernel, Images};
use crate::job::Card;
use crate::sh;

/// Size in bytes of the disk that carries a job's files.
pub const JOB_DISK: u64 = 1 << 30;
/// Lazily allocated; the largest guest of the tests has 6 GiB.
const MEMORY: &str = "10G";
/// The first one only takes interrupts: see [`KERNEL_COMMAND_LINE`].
const PROCESSORS: &str = "3";
/// Nested SVM with nested paging, which Debian's KVM builds its Hyper-V enlightenments on. QEMU's emulation of XSAVE in a
/// nested guest breaks signal frames (stock QEMU on KVM shows it too: klibc's init dies), so there is no XSAVE, nothing
/// that needs it, and no AES, whose kernel module takes AVX for granted.
const PROCESSOR: &str = "EPYC,+svm,+npt,-xsave,-avx,-avx2,-fma,-f16c,-aes";
/// The translation cache in MiB; a smaller one is flushed again and again under a nested guest.
const TRANSLATION_CACHE: &str = "1024";
/// KVM hands its guests a TSC page only while the host's own clock is the TSC, which the kernel would not trust
/// here by itself; mitigations against hardware that is not there are only slow.
///
/// No process may run on the first processor, since no guest must: whenever *any* processor loads x87 state, QEMU's emulation clears IGNNE#
/// in the first one's `hflags2`, from another thread and not atomically (`cpu_clear_ignne`, up to 10.0 at least). If that meets a change of
/// the global interrupt flag by VMRUN, STGI or CLGI there, the change is lost: guests were reset, the lab host's kernel ran with a guest's GS
/// base. Where no guest runs the word never changes.
const KERNEL_COMMAND_LINE: &str = "root=/dev/vda rw console=ttyS0 loglevel=5 tsc=reliable clocksource=tsc \
    no_timer_check mitigations=off nowatchdog rcupdate.rcu_cpu_stall_suppress=1 audit=0 net.ifnames=0 \
    systemd.show_status=0 systemd.log_color=0 systemd.cpu_affinity=1-2 panic=-1";
/// What comes behind that in a lab host whose devices are passed through: a translation for each, and none for those that stay its own, which are
/// only slow with one.
const IOMMU_COMMAND_LINE: &str = " intel_iommu=on iommu=pt";
/// And with Ubuntu's kernel, which has a thousand ticks a second: while a guest runs there are none, since each costs about a millisecond here.
const UBUNTU_COMMAND_LINE: &str = " nohz_full=1-2 init_on_alloc=0 kfence.sample_interval=0";
/// Slots for cards, each behind a port of its own, so that each card is a group of its own to the IOMMU.
const SLOTS: usize = 4;
/// The NVMe drive's size.
const NVME_DISK: &str = "256M";
/// How long QEMU may take to open its sockets.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
const PORTS: [&str; 4] = ["qmp", "serial", "control", "output"];

/// The file behind the machine's memory.
#[derive(Debug)]
pub enum Memory {
    /// What the machine writes stays in the file.
    Shared(PathBuf),
    /// What the machine writes stays its own.
    Private(PathBuf),
}

/// What differs from one start to the next.
pub struct Setup<'a> {
    /// The lab host's kernel.
    pub images: &'a Images,
    /// The memory.
    pub memory: Memory,
    /// The lab host's root disk (qcow2).
    pub root: PathBuf,
    /// Raw disk with the job; a disk of zeros without.
    pub job: Option<PathBuf>,
    /// The guests' disks (qcow2); disks of zeros without.
    pub bookworm: Option<PathBuf>,
    /// See above.
    pub trixie: Option<PathBuf>,
    /// An empty disk (qcow2).
    pub scratch: Option<PathBuf>,
    /// For sockets and logs.
    pub directory: &'a Path,
    /// Start from this state instead of booting.
    pub incoming: Option<PathBuf>,
    /// An IOMMU, and slots.
    pub iommu: bool,
    /// What is put into these.
    pub cards: &'a [Card],
    /// TCP ports of 127.0.0.1 that lead to ports of the machine.
    pub doors: &'a [(u16, u16)],
    /// Show the command line and the serial port.
    pub verbose: bool,
}

/// QEMU's version, part of what a frozen state depends on.
pub fn version() -> Result<String> {
    let text = sh::output(Command::new("qemu-system-x86_64").arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Everything of the command line that does not differ from start to start.
pub fn recipe(kernel: HostKernel, iommu: bool) -> String {
    let mut words: Vec<String> =
        vec![kernel_command_line(kernel, iommu), JOB_DISK.to_string(), GUEST_DISK.into()];
    words.extend(devices(iommu));
    words.join(" ")
}

fn kernel_command_line(kernel: HostKernel, iommu: bool) -> String {
    let of_kernel = match kernel {
        HostKernel::Debian => "",
        HostKernel::Ubuntu => UBUNTU_COMMAND_LINE,
    };
    format!("{KERNEL_COMMAND_LINE}{}{of_kernel}", if iommu { IOMMU_COMMAND_LINE } else { "" })
}

/// Makes a qcow2 file at `path` that starts as a copy of `base`.
pub fn create_overlay(path: &Path, base: &Path, format: &str) -> Result<()> {
    // Relative where both lie in the cache, so that the cache can be moved.
    let relative = match (path.parent().and_then(Path::parent), base.parent().and_then(Path::parent)) {
        (Some(a), Some(b)) if a == b => base.strip_prefix(b).ok().map(|rest| Path::new("..").join(rest)),
        _ => None,
    };
    sh::run(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", format, "-b"])
            .arg(relative.as_deref().unwrap_or(base))
            .arg(path),
    )
}

fn devices(iommu: bool) -> Vec<String> {
    let mut words: Vec<String> = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-machine",
        "q35,kernel-irqchip=split,sata=off,usb=off,smbus=off,vmport=off,memory-backend=memory",
        "-cpu",
        PROCESSOR,
        "-smp",
        PROCESSORS,
        "-m",
        MEMORY,
        "-device",
        "virtio-rng-pci,addr=8",
        "-device",
        "virtio-serial-pci,addr=9",
        "-device",
        "virtserialport,nr=1,chardev=control,name=bulkhead.control",
        "-device",
        "virtserialport,nr=2,chardev=output,name=bulkhead.output",
        "-device",
        "virtio-net-pci,netdev=outside,addr=a,mac=52:54:00:00:00:01,romfile=",
        "-serial",
        "chardev:serial",
        "-mon",
        "chardev=qmp,mode=control",
    ]
    .map(str::to_owned)
    .into();
    for (index, disk) in DISKS.iter().enumerate() {
        words.push("-device".into());
        words.push(format!("virtio-blk-pci,drive={disk},addr={}", 3 + index));
    }
    if iommu {
        words.extend(["-device".to_owned(), "intel-iommu,intremap=on".to_owned()]);
        for slot in 0..SLOTS {
            let place = FIRST_SLOT + slot;
            words.push("-device".into());
            words.push(format!(
                "pcie-root-port,id=slot{slot},chassis={},slot={slot},addr={place:x}",
                slot + 1
            ));
        }
    }
    words
}

/// Where the ports of the slots are on the first bus.
const FIRST_SLOT: usize = 0x10;

/// A card as QEMU's monitor takes it.
fn card(card: Card, slot: usize) -> Value {
    let mut words = match card {
        Card::Nic => {
            json!({ "driver": "e1000e", "netdev": "lan0", "mac": "52:54:00:00:01:01", "romfile": "" })
        }
        Card::OtherNic => {
            json!({ "driver": "e1000e", "netdev": "lan2", "mac": "52:54:00:00:01:03", "romfile": "" })
        }
        Card::Neighbour => {
            json!({ "driver": "virtio-net-pci", "netdev": "lan1", "mac": "52:54:00:00:01:02", "romfile": "" })
        }
        Card::OtherNeighbour => {
            json!({ "driver": "virtio-net-pci", "netdev": "lan3", "mac": "52:54:00:00:01:04", "romfile": "" })
        }
        Card::Nvme => json!({ "driver": "nvme", "drive": "nvme", "serial": "LAB-1" }),
        Card::Edu => json!({ "driver": "edu", "dma_mask": u64::MAX }),
    };
    words["bus"] = format!("slot{slot}").into();
    words["id"] = format!("card{slot}").into();
    words
}

/// `/dev/vda` to `/dev/vde`.
const DISKS: [&str; 5] = ["root", "job", "bookworm", "trixie", "scratch"];

fn arguments(setup: &Setup<'_>, sockets: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = devices(setup.iommu).into_iter().map(Into::into).collect();
    let mut add = |option: &str, value: String| {
        words.push(option.into());
        words.push(value.into());
    };
    add("-accel", format!("tcg,thread=multi,tb-size={TRANSLATION_CACHE}"));
    let (path, share) = match &setup.memory {
        Memory::Shared(path) => (path, "on"),
        Memory::Private(path) => (path, "off"),
    };
    add(
        "-object",
        format!("memory-backend-file,id=memory,size={MEMORY},mem-path={},share={share}", escape(path)),
    );
    let qcow2 = "format=qcow2,cache=unsafe,discard=unmap";
    let disks = [
        (Some(&setup.root), qcow2, String::new()),
        (setup.job.as_ref(), "format=raw,readonly=on", JOB_DISK.to_string()),
        (setup.bookworm.as_ref(), qcow2, GUEST_DISK.to_owned()),
        (setup.trixie.as_ref(), qcow2, GUEST_DISK.to_owned()),
        (setup.scratch.as_ref(), qcow2, GUEST_DISK.to_owned()),
    ];
    for (name, (path, options, size)) in DISKS.iter().zip(disks) {
        let backend = match path {
            Some(path) => format!("file={},{options}", escape(path)),
            None if *name == "job" => format!("driver=null-co,size={size},read-zeroes=on,readonly=on"),
            None => format!("driver=null-co,size={size},read-zeroes=on"),
        };
        add("-drive", format!("if=none,id={name},{backend}"));
    }
    for port in PORTS {
        add("-chardev", format!("socket,id={port},path={}", escape(&sockets.join(port))));
    }
    let doors =
        setup.doors.iter().map(|(outside, inside)| format!(",hostfwd=tcp:127.0.0.1:{outside}-:{inside}"));
    // What is inside gets nowhere by itself.
    add("-netdev", format!("user,id=outside,restrict=on{}", doors.collect::<String>()));
    // Two wires with two ends each. With three ends one of them was worth up to half as much again as another.
    let ends = [Card::Nic, Card::Neighbour, Card::OtherNic, Card::OtherNeighbour];
    for (number, card) in ends.iter().enumerate() {
        if setup.cards.contains(card) {
            add("-netdev", format!("hubport,id=lan{number},hubid={}", number / 2));
        }
    }
    if setup.cards.contains(&Card::Nvme) {
        add("-drive", format!("if=none,id=nvme,file={},format=qcow2,cache=unsafe", escape(&nvme(setup))));
    }
    add("-append", kernel_command_line(setup.images.host_kernel, setup.iommu));
    for (option, file) in [("-kernel", "vmlinuz"), ("-initrd", "initrd.img")] {
        words.push(option.into());
        words.push(setup.images.host.join(file).into());
    }
    if setup.incoming.is_some() {
        words.extend(["-incoming".into(), "defer".into()]);
    }
    words
}

/// The file behind the NVMe drive.
fn nvme(setup: &Setup<'_>) -> PathBuf {
    setup.directory.join("nvme.qcow2")
}

/// QEMU's option values are separated by commas; one in a path is doubled.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A running machine. It is killed when this is dropped.
pub struct Machine {
    qemu: Child,
    monitor: BufReader<UnixStream>,
    serial: Option<UnixStream>,
    /// Orders to the agent.
    pub control: UnixStream,
    /// What comes from the agent.
    pub events: Receiver<Event>,
    /// What came from the serial port so far.
    pub serial_log: PathBuf,
    log: PathBuf,
}

impl Machine {
    /// Starts QEMU; with [`Setup::incoming`], returns when the machine runs again.
    pub fn start(setup: &Setup<'_>) -> Result<Self> {
        let sockets = Sockets::make()?;
        if setup.cards.contains(&Card::Nvme) {
            sh::run(
                Command::new("qemu-img")
                    .args(["create", "-q", "-f", "qcow2"])
                    .arg(nvme(setup))
                    .arg(NVME_DISK),
            )?;
        }
        let listeners = PORTS.map(|port| UnixListener::bind(sockets.0.join(port)));
        let log = setup.directory.join("qemu.log");
        let serial_log = setup.directory.join("serial.log");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]).args(arguments(setup, &sockets.0));
        if setup.verbose {
            let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
            sh::say(&words.join(" "));
        }
        let mut qemu = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("starting QEMU")?;
        let mut streams = Vec::new();
        for (listener, name) in listeners.into_iter().zip(PORTS) {
            let listener = listener.with_context(|| format!("making the socket {name}"))?;
            match accept(&listener, &mut qemu) {
                Ok(stream) => streams.push(stream),
                Err(error) => {
                    let _ = qemu.kill();
                    let _ = qemu.wait();
                    return Err(error.context(std::fs::read_to_string(&log).unwrap_or_default()));
                }
            }
        }
        let [monitor, serial, control, output] =
            <[UnixStream; 4]>::try_from(streams).map_err(|_| anyhow::anyhow!("four ports"))?;
        ports::log_serial(serial.try_clone()?, File::create(&serial_log)?, setup.verbose);
        let mut machine = Self {
            qemu,
            monitor: BufReader::new(monitor),
            serial: Some(serial),
            control,
            events: ports::follow_output(output, setup.directory.join("results.tar")),
            serial_log,
            log,
        };
        machine.order("qmp_capabilities", json!({})).with_context(|| machine.last_words())?;
        // The memory is not part of the stream: its file is shared.
        let shared = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
        machine.order("migrate-set-capabilities", shared)?;
        if let Some(state) = &setup.incoming {
            let uri = format!("exec:cat {}", sh::quote(state));
            machine.order("migrate-incoming", json!({ "uri": uri })).with_context(|| machine.last_words())?;
            // It was stopped when it was frozen, so it comes back stopped.
            while machine.order("query-status", json!({})).with_context(|| machine.last_words())?["status"]
                == "inmigrate"
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            machine.order("cont", json!({})).with_context(|| machine.last_words())?;
            for (slot, &which) in setup.cards.iter().enumerate() {
                machine.order("device_add", card(which, slot)).with_context(|| machine.last_words())?;
            }
        }
        Ok(machine)
    }

    /// Stops the machine and writes the state of its devices to `path`; its memory and disks are complete then.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        self.order("stop", json!({}))?;
        self.order("migrate", json!({ "uri": format!("exec:cat > {}", sh::quote(path)) }))?;
        loop {
            let state = self.order("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => break,
                Some("failed" | "cancelled") => bail!("saving failed: {state}"),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        self.order("quit", json!({}))?;
        self.qemu.wait()?;
        Ok(())
    }

    /// Takes the serial port, for somebody who wants to write to it; the log goes on only until then.
    pub fn take_serial(&mut self) -> Option<UnixStream> {
        self.serial.take()
    }

    /// Ends QEMU.
    pub fn end(&mut self) {
        // It may be gone already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }

    /// What QEMU and the serial port said last.
    pub fn last_words(&self) -> String {
        let read = |path: &Path| {
            std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
        };
        format!("{}\n{}", sh::tail(&read(&self.log), 20), sh::tail(&read(&self.serial_log), 20))
    }

    /// Where each processor is and with which flags, a few times: a guest's own, while it runs a guest. For machines that hang.
    pub fn registers(&mut self) -> String {
        const LOOKS: u32 = 4;
        const BETWEEN: Duration = Duration::from_millis(300);
        /// QEMU may hang, too.
        const PATIENCE: Duration = Duration::from_secs(5);
        const SHOWN: [&str; 4] = ["CPU#", "RIP=", "CR0=", "RSP="];
        let mut lines = Vec::new();
        for look in 0..LOOKS {
            if look > 0 {
                std::thread::sleep(BETWEEN);
            }
            let words = json!({ "command-line": "info registers -a" });
            let limited = self.monitor.get_ref().set_read_timeout(Some(PATIENCE)).context("the monitor");
            match limited.and_then(|()| self.order("human-monitor-command", words)) {
                Ok(answer) => {
                    let text = answer.as_str().unwrap_or_default();
                    let shown = text.lines().filter(|line| SHOWN.iter().any(|word| line.contains(word)));
                    lines.extend(shown.map(str::to_owned));
                }
                Err(error) => {
                    lines.push(format!("{error:#}"));
                    break;
                }
            }
        }
        lines.join("\n")
    }

    fn order(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        writeln!(self.monitor.get_mut(), "{line}").context("QEMU does not listen")?;
        loop {
            let mut line = String::new();
            ensure!(self.monitor.read_line(&mut line)? > 0, "QEMU ended during `{command}`");
            let mut answer: Value = serde_json::from_str(&line).context("QEMU's monitor")?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses `{command}`: {}", error["desc"]);
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

/// A directory for sockets, whose paths may have some 100 characters only; nobody needs the names once they are connected.
struct Sockets(PathBuf);

impl Sockets {
    fn make() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bulkhead-lab-{}-{number}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        // What cannot be removed is only in the way.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn accept(listener: &UnixListener, qemu: &mut Child) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    loop {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false)?;
            return Ok(stream);
        }
        if let Some(status) = qemu.try_wait()? {
            bail!("QEMU did not start ({status})");
        }
        ensure!(start.elapsed() < CONNECT_LIMIT, "QEMU does not open its sockets");
        std::thread::sleep(Duration::from_millis(5));
    }
}
