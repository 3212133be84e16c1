//! A VM under the real supervisor: `bulkhead run` itself, which finds the software partition where it looks for
//! `core-vmm`. Nothing else is different for it.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bulkhead::device::{self, Backend, Row, State};
use ipc::socket::Listener;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmbus::message::Offer;
use vsc::{Client, Options};

use crate::{
    disk::Disk,
    guest::{Interrupts, SoftPlatform},
    vm,
};

/// The VM's name.
const NAME: &str = "soft";
/// The only device's name.
pub const DEVICE: &str = "disk0";
/// How long an orderly end may take before it is a hang.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// How long a device may take to come back before that is a hang. A crash loop is backed off for up to 10 s.
pub const RETURNS_WITHIN: Duration = Duration::from_secs(30);

/// How the VM is to be run.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// A process stands by.
    pub spare: bool,
    /// How long a process may show no sign of life; the supervisor's own idea if `None`.
    pub watchdog: Option<Duration>,
    /// Another build of `vsp-storage`.
    pub vsp_storage: Option<PathBuf>,
}

/// A running VM, most often with one SCSI controller called [`DEVICE`]. Everything ends when it is dropped.
#[derive(Debug)]
pub struct Supervised {
    platform: Arc<SoftPlatform>,
    bulkhead: Child,
    directory: PathBuf,
}

impl Supervised {
    /// Starts everything and waits until the device has attached.
    pub fn start(disk: &Disk, setup: &Setup) -> anyhow::Result<Self> {
        let vsp_storage = match &setup.vsp_storage {
            Some(path) => path.clone(),
            None => vm::program("vsp-storage")?,
        };
        Self::of(&storage(disk, setup.spare)?, &[("vsp-storage", vsp_storage)], setup.watchdog)
    }

    /// The same for a VM with other devices: their part of the spec, and the programs behind them.
    pub fn of(devices: &str, behind: &[(&str, PathBuf)], watchdog: Option<Duration>) -> anyhow::Result<Self> {
        let directory = vm::scratch()?;
        let door = directory.join("guest.sock");
        let guest = Listener::bind(&door)?;
        let spec = write_spec(&directory, &door, devices)?;
        let programs = directory.join("bin");
        std::fs::create_dir(&programs)?;
        symlink(vm::program("soft-core")?, programs.join("core-vmm"))?;
        for (name, program) in behind {
            symlink(program, programs.join(name))?;
        }
        let level = std::env::var("BULKHEAD_TEST_LOG").unwrap_or("warn".into());
        let mut command = Command::new(vm::program("bulkhead")?);
        command
            .args(["--log-level", &level, "run", "--skip-host-checks", "--overcommit", "--bin-dir"])
            .arg(&programs)
            .arg("--runtime-dir")
            .arg(directory.join("run"));
        if let Some(watchdog) = watchdog {
            command.env("BULKHEAD_WATCHDOG_MS", watchdog.as_millis().to_string());
        }
        let log = File::create(directory.join("log"))?;
        let bulkhead = command.arg(&spec).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        // From here on whatever happens ends the process too.
        let starting = Starting(Some(bulkhead), directory);
        let platform = SoftPlatform::listen(&guest, Interrupts::Shared).with_context(|| starting.log())?;
        let (bulkhead, directory) = starting.started();
        Ok(Self { platform: Arc::new(platform), bulkhead, directory })
    }

    /// The guest's machine.
    pub fn platform(&self) -> &Arc<SoftPlatform> {
        &self.platform
    }

    /// A guest that has connected, and the offer of the controller.
    pub fn guest(&self) -> anyhow::Result<(Client<SoftPlatform>, Offer)> {
        let mut client = Client::connect(Arc::clone(&self.platform), Options::default())?;
        let offers = client.request_offers()?;
        let offer = offers.into_iter().find(|offer| offer.sub_channel_index == 0);
        Ok((client, offer.context("the controller is not offered")?))
    }

    /// A place for files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The supervisor's process id.
    pub fn pid(&self) -> u32 {
        self.bulkhead.id()
    }

    /// What the supervisor and its processes have said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Where the VM's sockets are, and its name there.
    pub fn runtime(&self) -> (PathBuf, &'static str) {
        (self.directory.join("run"), NAME)
    }

    /// The supervisor, as an operator reaches it.
    pub fn backend(&self) -> anyhow::Result<Box<dyn Backend>> {
        Ok(device::find(&self.directory.join("run"), NAME)?)
    }
}

/// What the supervisor says of the device.
pub fn row(backend: &mut dyn Backend) -> anyhow::Result<Row> {
    let rows = backend.list()?;
    rows.into_iter().find(|row| row.name == DEVICE).context("the supervisor does not know the device")
}

/// Waits until the device is served (and stood by for, if that is asked); what the supervisor says of it then.
pub fn served(backend: &mut dyn Backend, with_spare: bool) -> anyhow::Result<Row> {
    let until = Instant::now() + RETURNS_WITHIN;
    loop {
        let row = row(backend)?;
        if row.state == State::Serving && row.pid.is_some() && (row.spare_ready || !with_spare) {
            return Ok(row);
        }
        ensure!(Instant::now() < until, "the device does not come back: {row:?}");
        std::thread::sleep(Duration::from_micros(300));
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        end(&mut self.bulkhead);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A supervisor whose core has not come yet.
struct Starting(Option<Child>, PathBuf);

impl Starting {
    fn log(&self) -> String {
        std::fs::read_to_string(self.1.join("log")).unwrap_or_default()
    }

    fn started(mut self) -> (Child, PathBuf) {
        let child = self.0.take().unwrap_or_else(|| unreachable!("taken once"));
        (child, std::mem::take(&mut self.1))
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
            let _ = std::fs::remove_dir_all(&self.1);
        }
    }
}

/// Ends a supervisor in order if it can be, so that nothing is left behind.
fn end(child: &mut Child) {
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    let until = Instant::now() + ENDS_WITHIN;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// A spec's part that is a controller with one disk.
fn storage(disk: &Disk, spare: bool) -> anyhow::Result<String> {
    let spare = if spare { "spare = true\n" } else { "" };
    let Some(image) = disk.path().to_str() else { bail!("the disk's path is not UTF-8") };
    Ok(format!("[[storage]]\nname = \"{DEVICE}\"\n{spare}[[storage.disk]]\npath = \"{image}\"\n"))
}

/// A spec whose kernel is no more than the header that makes one, and its path.
fn write_spec(directory: &Path, door: &Path, devices: &str) -> anyhow::Result<PathBuf> {
    let mut kernel = vec![0; 0x400];
    kernel[0x1fe..0x206].copy_from_slice(b"\x55\xaa\0\0HdrS");
    kernel[0x211] = 1;
    std::fs::write(directory.join("vmlinuz"), kernel)?;
    let text = format!(
        "name = \"{NAME}\"\n[machine]\nvcpus = 4\nmemory = \"128MiB\"\n\
         [boot]\nkernel = \"vmlinuz\"\ncmdline = \"guest={}\"\n\
         [console]\nmode = \"socket\"\npath = \"console.sock\"\n{devices}",
        door.display()
    );
    let path = directory.join("vm.toml");
    std::fs::write(&path, text)?;
    Ok(path)
}
