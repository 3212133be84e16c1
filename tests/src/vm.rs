//! Starts a VM on the software partition: core and device processes, for real.

use std::{
    os::fd::AsFd,
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

use crate::{guest::SoftPlatform, trace};

/// A device of the VM.
#[derive(Debug, Clone)]
struct DeviceSpec {
    /// None: the test itself plays the device.
    program: Option<&'static str>,
    name: String,
    args: Vec<String>,
    guest_ram: bool,
}

/// What the VM is to be.
#[derive(Debug, Clone)]
pub struct VmBuilder {
    vps: u32,
    memory: u64,
    devices: Vec<DeviceSpec>,
    traced: bool,
    quiet: bool,
}

impl Default for VmBuilder {
    fn default() -> Self {
        Self { vps: 2, memory: 64 << 20, devices: Vec::new(), traced: false, quiet: false }
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
    pub fn echo(mut self, name: &str) -> Self {
        self.devices.push(DeviceSpec {
            program: Some("vsp-echo"),
            name: name.into(),
            args: vec![],
            guest_ram: false,
        });
        self
    }

    /// Adds a SCSI controller; each disk is what follows `--disk`.
    pub fn storage(mut self, name: &str, disks: &[String]) -> Self {
        let args = disks.iter().flat_map(|d| ["--disk".to_owned(), d.clone()]).collect();
        self.devices.push(DeviceSpec {
            program: Some("vsp-storage"),
            name: name.into(),
            args,
            guest_ram: true,
        });
        self
    }

    /// Adds a device that the test itself plays: see [`Vm::played`]. It offers itself as an echo device.
    pub fn played(mut self, name: &str) -> Self {
        self.devices.push(DeviceSpec { program: None, name: name.into(), args: vec![], guest_ram: false });
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

    /// Starts everything and waits until all devices have attached.
    pub fn start(self) -> anyhow::Result<Vm> {
        let directory = scratch()?;
        let socket = directory.join("core.sock");
        let listener = Listener::bind(&socket)?;
        let (guest, partition) = Peer::pair()?;
        let config = CoreConfig {
            name: "soft".into(),
            vcpus: self.vps,
            memory: self.memory,
            hugepages: false,
            prefault: false,
            kernel: PathBuf::new(),
            initrd: None,
            cmdline: String::new(),
            console: Console::Stdio,
            devices: self.devices.iter().enumerate().map(|(i, d)| slot(i, d)).collect(),
            uid: None,
            gid: None,
            on_crash: OnCrash::Exit,
            sandbox: true,
        };
        let level = if self.quiet { "off" } else { "error" };
        let level = std::env::var("BULKHEAD_TEST_LOG").unwrap_or(level.into());
        let core = Command::new(program("soft-core")?)
            .arg(serde_json::to_string(&config)?)
            .env("BULKHEAD_TEST_LOG", &level)
            .fd(partition.as_fd(), 3)
            .fd(listener.as_fd(), 4)
            .spawn()?;
        drop((partition, listener));
        let (mut devices, mut played) = (Vec::new(), Vec::new());
        for device in &self.devices {
            let connection = Peer::connect(&socket)?;
            let Some(binary) = device.program else {
                played.push((device.name.clone(), introduce(connection, &device.name)?));
                continue;
            };
            let command = match self.traced {
                false => Command::new(program(binary)?),
                true => trace::command(&program(binary)?, &trace::log(&directory, &device.name))?,
            };
            let child = command
                .args(["--core-fd", "3", "--device", &device.name])
                .args(&device.args)
                .args(["--log-level", &level])
                .fd(connection.as_fd(), 3)
                .spawn()?;
            devices.push((device.name.clone(), child));
        }
        let platform = Arc::new(SoftPlatform::start(guest)?);
        Ok(Vm { platform, core, devices, played, directory })
    }
}

/// Attaches as a device.
fn introduce(connection: Peer, name: &str) -> anyhow::Result<Peer> {
    let offer = Offer { class: vmbus::guid::class::ECHO.to_string(), ..Offer::default() };
    connection.send(
        &ToCore::Hello { versions: VERSIONS, device: name.into(), offer, ledger: 0, build: String::new() },
        &[],
    )?;
    match connection.recv()? {
        (ToVsp::Welcome { .. }, _) => Ok(connection),
        (other, _) => anyhow::bail!("the core answers a hello with {other:?}"),
    }
}

fn slot(index: usize, device: &DeviceSpec) -> DeviceSlot {
    DeviceSlot {
        name: device.name.clone(),
        instance: format!("b01ce4ad-0000-4000-8000-{index:012x}"),
        uid: None,
        guest_ram: device.guest_ram,
    }
}

/// A directory of this test's own below the system's temporary one.
fn scratch() -> anyhow::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("bulkhead-test-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// Where cargo put a binary: beside the test's own directory.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|dir: &Path| dir.join(name)).find(|p| p.is_file());
    found.with_context(|| format!("{name} is not built; run `cargo build --workspace` first"))
}

/// A running VM. Everything ends when it is dropped.
#[derive(Debug)]
pub struct Vm {
    platform: Arc<SoftPlatform>,
    core: Child,
    devices: Vec<(String, Child)>,
    played: Vec<(String, Peer)>,
    directory: PathBuf,
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

    /// A device's process.
    pub fn device(&mut self, name: &str) -> &mut Child {
        let found = self.devices.iter_mut().find(|(n, _)| n == name);
        &mut found.unwrap_or_else(|| panic!("the VM has no device {name}")).1
    }

    /// The core's socket to a device that the test plays. It waits on receiving.
    pub fn played(&self, name: &str) -> &Peer {
        let found = self.played.iter().find(|(n, _)| n == name);
        &found.unwrap_or_else(|| panic!("the test plays no device {name}")).1
    }

    /// Where device processes connect.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("core.sock")
    }

    /// What a device process of a VM that is [traced](VmBuilder::traced) has done so far; all of it once the
    /// process has ended. It is in the form that `policies::audit` reads.
    pub fn trace(&self, name: &str) -> anyhow::Result<String> {
        let log = trace::log(&self.directory, name);
        let text = std::fs::read(&log).with_context(|| format!("there is no {}", log.display()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// A place for files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        for child in self.devices.iter_mut().map(|(_, c)| c).chain([&mut self.core]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
