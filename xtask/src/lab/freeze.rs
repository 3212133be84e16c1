//! The lab host, booted once and frozen.
//!
//! Its memory is a file that was mapped shared while it booted, and is mapped privately (copy on write) by every run;
//! so neither freezing nor thawing copies it, and the migration stream holds devices only.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use anyhow::{Result, bail};

use super::ports::Event;
use super::qemu::{self, Machine, Memory, Setup};
use crate::images::{HostKernel, Images};
use crate::{cache, sh};

/// For the lab host to boot; it takes half a minute on two idle cores.
const BOOT_LIMIT: Duration = Duration::from_secs(400);

/// A frozen lab host.
#[derive(Debug)]
pub struct Frozen {
    directory: PathBuf,
}

impl Frozen {
    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its memory, for a private mapping.
    pub(super) fn memory(&self) -> Memory {
        Memory::Private(self.directory.join("memory"))
    }

    /// Its root disk, as base of an overlay.
    pub(super) fn root(&self) -> PathBuf {
        self.directory.join("root.qcow2")
    }

    /// The state of its devices.
    pub(super) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }
}

/// The frozen lab host, with an IOMMU if wanted, booted if there is none yet.
pub fn frozen_host(images: &Images, iommu: bool) -> Result<Frozen> {
    let host = images.host.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let key = cache::key(["frozen 1", &host, &qemu::version()?, &qemu::recipe(images.host_kernel, iommu)]);
    let mut name = "frozen".to_owned();
    if iommu {
        name += "-iommu";
    }
    if images.host_kernel == HostKernel::Ubuntu {
        name += "-ubuntu";
    }
    let directory = cache::entry(&name, &key, |directory| {
        sh::step("booting the lab host once (about a minute)", || boot(images, directory, iommu))
    })?;
    Ok(Frozen { directory })
}

fn boot(images: &Images, directory: &Path, iommu: bool) -> Result<()> {
    let root = directory.join("root.qcow2");
    qemu::create_overlay(&root, &images.host.join("root.qcow2"), "qcow2")?;
    let setup = Setup {
        images,
        memory: Memory::Shared(directory.join("memory")),
        root,
        job: None,
        bookworm: None,
        trixie: None,
        scratch: None,
        directory,
        incoming: None,
        iommu,
        cards: &[],
        doors: &[],
        verbose: std::env::var_os("BULKHEAD_LAB_VERBOSE").is_some(),
    };
    let mut machine = Machine::start(&setup)?;
    loop {
        match machine.events.recv_timeout(BOOT_LIMIT) {
            Ok(Event::Ready) => break,
            Ok(Event::Text(_)) => {}
            Err(RecvTimeoutError::Timeout) => bail!("the lab host did not boot:\n{}", machine.last_words()),
            _ => bail!("QEMU ended:\n{}", machine.last_words()),
        }
    }
    // Let what the boot left running come to rest.
    std::thread::sleep(Duration::from_secs(2));
    machine.save(&directory.join("state"))?;
    machine.end();
    for leftover in ["qemu.log", "results.tar"] {
        let _ = fs::remove_file(directory.join(leftover));
    }
    Ok(())
}
