//! `cargo xtask demo`: the whole road in one command, on this host if its KVM can do it and in the lab otherwise.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::images::{HostKernel, Images, With};
use crate::job::Job;
use crate::scenarios::{GUEST_FUNCTIONS, Guest, Spec};
use crate::{build, cache, lab, sh};

const SCRIPT: &str = include_str!("../recipes/lab/demo.sh");
/// In the lab, everything is emulated twice over.
const LAB_LIMIT: Duration = Duration::from_secs(900);

/// Options.
#[derive(clap::Args)]
pub struct Arguments {
    /// In the lab even if this host could do it.
    #[arg(long)]
    lab: bool,
    /// Take the binaries as they are.
    #[arg(long)]
    no_build: bool,
    /// Show the lab host's own messages too.
    #[arg(long, short)]
    verbose: bool,
}

/// Runs the demonstration.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let binaries = build::binaries("release", !arguments.no_build)?;
    let images = Images::ready(With::Bookworm, HostKernel::Debian)?;
    let machine = Machine::new()?;
    let reason =
        if arguments.lab { Some("asked for".to_owned()) } else { machine.unfit(&binaries, &images)? };
    match reason {
        None => {
            sh::say("this host's KVM can run it: the demonstration runs here");
            machine.run_here(&binaries, &images)
        }
        Some(reason) => {
            sh::say(&format!("the demonstration runs in the lab ({reason})"));
            machine.run_in_lab(&binaries, arguments.verbose)
        }
    }
}

/// The machine of the demonstration and a directory for it.
struct Machine {
    spec: Spec,
    directory: PathBuf,
}

impl Machine {
    fn new() -> Result<Self> {
        let directory = cache::root()?.join("runs").join(format!("demo-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        Ok(Self { spec: Spec::new(Guest::Bookworm, "bulkhead.job=demo"), directory })
    }

    /// Why this host cannot run it, in bulkhead's own words.
    fn unfit(&self, binaries: &[PathBuf], images: &Images) -> Result<Option<String>> {
        self.write_spec(images)?;
        let bulkhead =
            binaries.iter().find(|path| path.ends_with("bulkhead")).context("bulkhead is not built")?;
        let output = Command::new(bulkhead)
            .arg("check")
            .arg(self.directory.join("vm.toml"))
            .output()
            .context("starting bulkhead")?;
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            return Ok(text.lines().find_map(|line| line.strip_prefix("but not here: ")).map(str::to_owned));
        }
        Ok(Some(sh::tail(&text, 3)))
    }

    fn write_spec(&self, images: &Images) -> Result<()> {
        let path = |name: &str| images.bookworm.join(name).display().to_string();
        let disk = self.directory.join("root.img");
        let toml =
            self.spec.with_paths(&path("vmlinuz"), &path("initrd.img"), Some(&disk.display().to_string()));
        sh::run(
            Command::new("cp")
                .args(["--sparse=always", "--reflink=auto"])
                .arg(images.bookworm.join("root.img"))
                .arg(&disk),
        )?;
        fs::write(self.directory.join("vm.toml"), toml)?;
        Ok(())
    }

    fn run_here(&self, binaries: &[PathBuf], images: &Images) -> Result<ExitCode> {
        self.write_spec(images)?;
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        if let Some(directory) = binaries.first().and_then(|binary| binary.parent()) {
            let mut all = directory.as_os_str().to_owned();
            all.push(":");
            all.push(&path);
            path = all;
        }
        let status = Command::new("bash")
            .args(["-c", &format!("{GUEST_FUNCTIONS}\n{SCRIPT}")])
            .current_dir(&self.directory)
            .env("PATH", path)
            .stdin(Stdio::null())
            .status()
            .context("starting bash")?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn run_in_lab(&self, binaries: &[PathBuf], verbose: bool) -> Result<ExitCode> {
        let specification = self.directory.join("vm.toml");
        fs::write(&specification, self.spec.to_toml())?;
        let mut job = Job::new("demo").timeout(LAB_LIMIT).live();
        job.verbose = verbose;
        job.binaries(binaries).file("vm.toml", &specification);
        job.script(&format!("{GUEST_FUNCTIONS}\n{SCRIPT}"));
        let outcome = lab::run(&job)?;
        Ok(if outcome.status == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // What cannot be removed is only in the way.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
