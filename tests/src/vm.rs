//! Starts a VM on the software partition: core and device processes, for real. The test is its supervisor: nothing
//! happens to a process unless the test does it. For a VM under the real supervisor see [`crate::supervised`].

use std::{
    io::ErrorKind,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::Context;
use ipc::{
    config::{Console, CoreConfig, DeviceSlot, OnCrash},
    message::{Offer, ToCore, ToVsp, VERSIONS},
    socket::{Listener, Peer},
};
use sandbox::spawn::{Child, Command};

use crate::{
    guest::{Interrupts, SoftPlatform},
    net::{Memory, Nic},
    operator::Operator,
    trace,
};

/// A device of the VM.
#[derive(Debug, Clone)]
struct DeviceSpec {
    /// None: the test itself plays the device.
    program: Option<PathBuf>,
    name: String,
    args: Vec<String>,
    guest_ram: bool,
    /// It may ask the core for what packets name.
    fetch: bool,
    /// Most bytes of its own memory that it may have the guest see.
    device_memory: u64,
    /// It passes a device of the host's through.
    passthrough: bool,
    /// The same descriptors for each process of the device, from 4 on.
    fds: Vec<Arc<OwnedFd>>,
}

/// What the VM is to be.
#[derive(Debug, Clone)]
pub struct VmBuilder {
    vps: u32,
    memory: u64,
    devices: Vec<DeviceSpec>,
    traced: bool,
    quiet: bool,
    interrupts: Interrupts,
}

impl Default for VmBuilder {
    fn default() -> Self {
        Self {
            vps: 2,
            memory: 64 << 20,
            devices: Vec::new(),
            traced: false,
            quiet: false,
            interrupts: Interrupts::Shared,
        }
    }
}

impl VmBuilder {
    /// Number of VPs; 2 unless said.
    pub fn vps(mut self, vps: u32) -> Self {
        self.vps = vps;
        self
    }

    /// Bytes of RAM; 64 MiB unless said.
    pub fn memory(mut self, memory: u64) -> Self {
        self.memory = memory;
        self
    }

    /// Adds an echo device.
    pub fn echo(self, name: &str) -> Self {
        self.device("vsp-echo", name, vec![], false)
    }

    /// Adds the device that [`crate::scribe`] speaks to.
    pub fn test_device(self, name: &str) -> Self {
        self.device("test-device", name, vec![], false)
    }

    /// Adds the device that [`crate::passer`] speaks to.
    pub fn passing_device(self, name: &str) -> Self {
        self.device("passing-device", name, vec![], false).passthrough()
    }

    /// Adds a SCSI controller; each disk is what follows `--disk`.
    pub fn storage(self, name: &str, disks: &[String]) -> Self {
        let args = disks.iter().flat_map(|d| ["--disk".to_owned(), d.clone()]).collect();
        self.device("vsp-storage", name, args, true)
    }

    /// Adds a NIC, started as the supervisor starts one.
    pub fn net(mut self, name: &str, nic: &Nic) -> Self {
        self = self.device("vsp-net", name, nic.arguments(), nic.memory == Memory::Full);
        if let Some(device) = self.devices.last_mut() {
            device.fetch = nic.memory == Memory::Confined;
            device.fds = nic.descriptors();
        }
        self
    }

    pub(crate) fn device(mut self, program: &str, name: &str, args: Vec<String>, guest_ram: bool) -> Self {
        let program = Some(PathBuf::from(program));
        let name = name.into();
        let fds = Vec::new();
        self.devices.push(DeviceSpec {
            program,
            name,
            args,
            guest_ram,
            fetch: false,
            device_memory: 0,
            passthrough: false,
            fds,
        });
        self
    }

    /// Gives each process of the device that was added last a descriptor more.
    pub(crate) fn given(mut self, fd: &Arc<OwnedFd>) -> Self {
        if let Some(device) = self.devices.last_mut() {
            device.fds.push(Arc::clone(fd));
        }
        self
    }

    /// Adds arguments to the command line of the device that was added last.
    pub fn with(mut self, args: &[&str]) -> Self {
        if let Some(device) = self.devices.last_mut() {
            device.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        }
        self
    }

    /// Adds a device that the test itself plays: see [`Vm::played`]. It offers itself as an echo device.
    pub fn played(mut self, name: &str) -> Self {
        self = self.device("", name, vec![], false);
        if let Some(device) = self.devices.last_mut() {
            device.program = None;
        }
        self
    }

    /// Lets the device that was added last map so many bytes of its own memory for the guest.
    pub fn device_memory(mut self, bytes: u64) -> Self {
        if let Some(device) = self.devices.last_mut() {
            device.device_memory = bytes;
        }
        self
    }

    /// Lets the device that was added last pass a device of the host's through.
    pub fn passthrough(mut self) -> Self {
        if let Some(device) = self.devices.last_mut() {
            device.passthrough = true;
        }
        self
    }

    /// Runs each device process under strace, for the audit of its policy: see [`Vm::trace`].
    pub fn traced(mut self) -> Self {
        self.traced = true;
        self
    }

    /// Errors are expected and not shown, unless `BULKHEAD_TEST_LOG` asks for them.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// How the guest gets its interrupts.
    pub fn interrupts(mut self, interrupts: Interrupts) -> Self {
        self.interrupts = interrupts;
        self
    }

    /// Starts everything and waits until all devices have attached.
    pub fn start(self) -> anyhow::Result<Vm> {
        let directory = scratch()?;
        let socket = directory.join("core.sock");
        let listener = Listener::bind(&socket)?;
        let door = directory.join("guest.sock");
        let guest = Listener::bind(&door)?;
        let config = CoreConfig {
            name: "soft".into(),
            vcpus: self.vps,
            memory: self.memory,
            hugepages: false,
            prefault: false,
            kernel: PathBuf::new(),
            initrd: None,
            cmdline: format!("guest={}", door.display()),
            efi: false,
            console: Console::Stdio,
            devices: self.devices.iter().enumerate().map(|(i, d)| slot(i, d)).collect(),
            later_uids: Vec::new(),
            uid: None,
            gid: None,
            on_crash: OnCrash::Exit,
            sandbox: true,
        };
        let level = if self.quiet { "off" } else { "error" };
        let level = std::env::var("BULKHEAD_TEST_LOG").unwrap_or(level.into());
        let file = directory.join("core.json");
        std::fs::write(&file, serde_json::to_string(&config)?)?;
        let core = Command::new(program("soft-core")?)
            .args(["--listen-fd", "3", "--log-level", &level, "--config"])
            .arg(&file)
            .fd(listener.as_fd(), 3)
            .spawn()?;
        drop(listener);
        let nursery = Nursery { specs: self.devices, level, traced: self.traced, directory };
        let (mut devices, mut played) = (Vec::new(), Vec::new());
        for spec in &nursery.specs {
            match spec.program {
                Some(_) => devices.push((spec.name.clone(), nursery.spawn(&spec.name, &[])?)),
                None => played.push((spec.name.clone(), introduce(Peer::connect(&socket)?, &spec.name)?)),
            }
        }
        let platform = Arc::new(SoftPlatform::listen(&guest, self.interrupts)?);
        Ok(Vm { platform, core, devices, spares: Vec::new(), played, nursery })
    }
}

/// Attaches as a device, and serves it.
fn introduce(connection: Peer, name: &str) -> anyhow::Result<Peer> {
    let offer = Offer { class: vmbus::guid::class::ECHO.to_string(), ..Offer::default() };
    connection.send(
        &ToCore::Hello { versions: VERSIONS, device: name.into(), offer, ledger: 0, build: String::new() },
        &[],
    )?;
    match connection.recv()? {
        (ToVsp::Welcome { standby: false, .. }, _) => {}
        (other, _) => anyhow::bail!("the core answers a hello with {other:?}"),
    }
    match connection.recv()? {
        (ToVsp::Serve { .. }, _) => {}
        (other, _) => anyhow::bail!("the core follows a welcome with {other:?}"),
    }
    connection.send(&ToCore::Serving {}, &[])?;
    match connection.recv()? {
        (ToVsp::Adopted {}, _) => Ok(connection),
        (other, _) => anyhow::bail!("a new device is told of channels: {other:?}"),
    }
}

fn slot(index: usize, device: &DeviceSpec) -> DeviceSlot {
    DeviceSlot {
        name: device.name.clone(),
        instance: format!("b01ce4ad-0000-4000-8000-{index:012x}"),
        uid: None,
        guest_ram: device.guest_ram,
        fetch: device.fetch,
        device_memory: device.device_memory,
        passthrough: device.passthrough,
    }
}

/// A directory of this test's own below the system's temporary one.
pub(crate) fn scratch() -> anyhow::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("bulkhead-test-{}-{n}", std::process::id()));
        match std::fs::create_dir(&directory) {
            // Process numbers come again, and a test that was killed may have left its directory.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => return Ok(made.map(|()| directory)?),
        }
    }
}

/// Where cargo put a binary: beside the test's own directory.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|dir: &Path| dir.join(name)).find(|p| p.is_file());
    found.with_context(|| format!("{name} is not built; run `cargo build --workspace` first"))
}

/// What it takes to start a device's process, again and again.
#[derive(Debug)]
struct Nursery {
    specs: Vec<DeviceSpec>,
    level: String,
    traced: bool,
    directory: PathBuf,
}

impl Nursery {
    fn spawn(&self, name: &str, more: &[&str]) -> anyhow::Result<Child> {
        let spec = self.specs.iter().find(|spec| spec.name == name);
        let spec = spec.with_context(|| format!("the VM has no device {name}"))?;
        let binary = spec.program.as_deref().with_context(|| format!("the test itself plays {name}"))?;
        let binary =
            if binary.is_absolute() { binary.to_owned() } else { program(&binary.to_string_lossy())? };
        let command = match self.traced {
            false => Command::new(binary),
            true => trace::command(&binary, &trace::log(&self.directory, name))?,
        };
        let connection = Peer::connect(&self.directory.join("core.sock"))?;
        let command =
            (4..).zip(&spec.fds).fold(command, |command, (number, fd)| command.fd(fd.as_fd(), number));
        let command = command
            .args(["--core-fd", "3", "--device", name])
            .args(&spec.args)
            .args(more)
            .args(["--log-level", &self.level])
            .fd(connection.as_fd(), 3);
        Ok(command.spawn()?)
    }
}

/// A running VM. Everything ends when it is dropped.
#[derive(Debug)]
pub struct Vm {
    platform: Arc<SoftPlatform>,
    core: Child,
    devices: Vec<(String, Child)>,
    spares: Vec<(String, Child)>,
    played: Vec<(String, Peer)>,
    nursery: Nursery,
}

impl Vm {
    /// Starts describing one.
    pub fn builder() -> VmBuilder {
        VmBuilder::default()
    }

    /// The guest's machine.
    pub fn platform(&self) -> &Arc<SoftPlatform> {
        &self.platform
    }

    /// The core's process.
    pub fn core(&mut self) -> &mut Child {
        &mut self.core
    }

    /// The process that the test started last to serve a device (and not as its spare).
    pub fn device(&mut self, name: &str) -> &mut Child {
        let found = self.devices.iter_mut().find(|(n, _)| n == name);
        &mut found.unwrap_or_else(|| panic!("the VM has no device {name}")).1
    }

    /// Kills a device's process, if it lives, and starts its successor.
    pub fn restart(&mut self, name: &str) -> anyhow::Result<()> {
        self.restart_with(name, &[])
    }

    /// The same with more arguments for the successor.
    pub fn restart_with(&mut self, name: &str, args: &[&str]) -> anyhow::Result<()> {
        self.device(name).kill()?;
        self.device(name).wait()?;
        *self.device(name) = self.nursery.spawn(name, args)?;
        Ok(())
    }

    /// Starts another process of a device, which stands by.
    pub fn spare(&mut self, name: &str) -> anyhow::Result<()> {
        self.spare_with(name, &[])
    }

    /// The same with more arguments.
    pub fn spare_with(&mut self, name: &str, args: &[&str]) -> anyhow::Result<()> {
        self.spares.push((name.to_owned(), self.nursery.spawn(name, args)?));
        Ok(())
    }

    /// The spare has become the device's process: from now on it is [`Self::device`]. Returns the old one.
    pub fn promoted(&mut self, name: &str) -> anyhow::Result<Child> {
        let at = self.spares.iter().position(|(n, _)| n == name).context("no spare was started")?;
        let (_, spare) = self.spares.remove(at);
        Ok(std::mem::replace(self.device(name), spare))
    }

    /// A connection to the core as its operator.
    pub fn operator(&self) -> anyhow::Result<Operator> {
        Operator::connect(&self.socket())
    }

    /// The core's socket to a device that the test plays. It waits on receiving.
    pub fn played(&self, name: &str) -> &Peer {
        let found = self.played.iter().find(|(n, _)| n == name);
        &found.unwrap_or_else(|| panic!("the test plays no device {name}")).1
    }

    /// Has the test play another device, which the core knows of and nobody serves yet.
    pub fn play(&mut self, name: &str) -> anyhow::Result<()> {
        let peer = introduce(Peer::connect(&self.socket())?, name)?;
        self.played.retain(|(known, _)| known != name);
        self.played.push((name.to_owned(), peer));
        Ok(())
    }

    /// Where device processes connect.
    pub fn socket(&self) -> PathBuf {
        self.directory().join("core.sock")
    }

    /// What a device process of a VM that is [traced](VmBuilder::traced) has done so far; all of it once the
    /// process has ended. It is in the form that `policies::audit` reads.
    pub fn trace(&self, name: &str) -> anyhow::Result<String> {
        let log = trace::log(self.directory(), name);
        let text = std::fs::read(&log).with_context(|| format!("there is no {}", log.display()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// A place for files.
    pub fn directory(&self) -> &Path {
        &self.nursery.directory
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let devices = self.devices.iter_mut().chain(&mut self.spares).map(|(_, child)| child);
        for child in devices.chain([&mut self.core]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.nursery.directory);
    }
}
