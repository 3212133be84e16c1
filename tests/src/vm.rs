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
    socket::{Listener, Peer},
};
use sandbox::spawn::{Child, Command};

use crate::guest::SoftPlatform;

/// A device of the VM.
#[derive(Debug, Clone)]
struct DeviceSpec {
    program: &'static str,
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
}

impl Default for VmBuilder {
    fn default() -> Self {
        Self { vps: 2, memory: 64 << 20, devices: Vec::new() }
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
            program: "vsp-echo",
            name: name.into(),
            args: vec![],
            guest_ram: false,
        });
        self
    }

    /// Adds a SCSI controller; each disk is what follows `--disk`.
    pub fn storage(mut self, name: &str, disks: &[String]) -> Self {
        let args = disks.iter().flat_map(|d| ["--disk".to_owned(), d.clone()]).collect();
        self.devices.push(DeviceSpec { program: "vsp-storage", name: name.into(), args, guest_ram: true });
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
        let core = Command::new(program("soft-core")?)
            .arg(serde_json::to_string(&config)?)
            .env("BULKHEAD_TEST_LOG", std::env::var("BULKHEAD_TEST_LOG").unwrap_or_default())
            .fd(partition.as_fd(), 3)
            .fd(listener.as_fd(), 4)
            .spawn()?;
        drop((partition, listener));
        let mut devices = Vec::new();
        for device in &self.devices {
            let connection = Peer::connect(&socket)?;
            let child = Command::new(program(device.program)?)
                .args(["--core-fd", "3", "--device", &device.name])
                .args(&device.args)
                .args(["--log-level", &std::env::var("BULKHEAD_TEST_LOG").unwrap_or("error".into())])
                .fd(connection.as_fd(), 3)
                .spawn()?;
            devices.push((device.name.clone(), child));
        }
        let platform = Arc::new(SoftPlatform::start(guest)?);
        Ok(Vm { platform, core, devices, directory })
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
