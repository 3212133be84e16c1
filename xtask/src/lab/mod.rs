//! The lab: a whole Debian host ("L1") with KVM and its Hyper-V enlightenments, inside QEMU's software emulation.
//!
//! It boots once and is frozen ([`freeze`]); every run thaws it with overlays of its own, so that runs share nothing
//! and start in seconds. Never lets anything out of the emulated machine but the job's output and results.

pub mod freeze;
mod ports;
mod qemu;
mod splitter;
mod terminal;
mod visit;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::images::{GUEST_DISK, Images};
use crate::job::{self, Job, LAB_FAILED, Outcome, TIMED_OUT, VISIT_FAILED};
use crate::{cache, sh};
use freeze::Frozen;
use ports::Event;
use qemu::{Machine, Setup};
use visit::Expected;

/// A file of this name says that a run's directory is to stay.
const KEPT: &str = "kept";
/// Lines of the lab host's console that are shown when a run failed.
const KERNEL_LINES: usize = 15;
/// How often it is looked at while nothing else happens.
const GLANCE: Duration = Duration::from_secs(2);
/// And when its kernel fell, from where that began: enough for the registers and the whole trace.
const FALL_LINES: usize = 120;

/// Runs a job to its end.
pub fn run(job: &Job) -> Result<Outcome> {
    let run = Run::prepare(job)?;
    let start = Instant::now();
    let mut expected = match job.visit {
        Some(visit) => Some(Expected::new(visit, &run.directory)?),
        None => None,
    };
    let doors = expected.as_ref().map(Expected::doors).unwrap_or_default();
    let mut machine = run.thaw(job, &doors)?;
    writeln!(machine.control, "go {} 24 80", epoch()).context("giving the order")?;
    let outcome = follow(&mut machine, job, expected.as_mut(), start);
    machine.end();
    if job.verbose {
        sh::say(&format!(
            "{}: status {} after {:.1} s",
            job.name,
            outcome.status,
            outcome.elapsed.as_secs_f32()
        ));
    }
    if outcome.status != 0 {
        explain(&outcome, &run.directory);
    }
    if let Some(results) = &job.results {
        unpack_results(&run.directory, results)?;
    }
    Ok(outcome)
}

/// Gives the terminal to a shell in the lab host, with the job's files there.
pub fn shell(job: &Job) -> Result<()> {
    let run = Run::prepare(job)?;
    let mut machine = run.thaw(job, &[])?;
    let terminal = terminal::Raw::enter()?;
    let (rows, columns) = terminal.size();
    writeln!(machine.control, "shell {} {rows} {columns}", epoch()).context("giving the order")?;
    let serial = machine.take_serial().context("the serial port is in use")?;
    terminal::bridge(serial)?;
    loop {
        match machine.events.recv() {
            Ok(Event::Done { .. } | Event::Closed) | Err(_) => break,
            Ok(_) => {}
        }
    }
    drop(terminal);
    machine.end();
    Ok(())
}

fn epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_secs())
}

fn follow(machine: &mut Machine, job: &Job, mut expected: Option<&mut Expected>, start: Instant) -> Outcome {
    let mut output = Vec::new();
    let mut status = loop {
        if let Some(expected) = &mut expected
            && expected.look(&mut output).is_err()
        {
            break VISIT_FAILED;
        }
        let left = job.timeout.saturating_sub(start.elapsed());
        match machine.events.recv_timeout(left.min(GLANCE)) {
            Ok(Event::Text(text)) => {
                if job.live {
                    let mut stdout = std::io::stdout().lock();
                    let _ = stdout.write_all(&text).and_then(|()| stdout.flush());
                }
                if let Some(expected) = &mut expected {
                    expected.hear(&text);
                }
                output.extend_from_slice(&text);
            }
            Ok(Event::Ready) => {}
            Ok(Event::Done { status }) => break status,
            Ok(Event::Closed) | Err(RecvTimeoutError::Disconnected) => break LAB_FAILED,
            // It may take minutes more to end.
            Err(RecvTimeoutError::Timeout) if job::fell(&kernel(machine)) => break LAB_FAILED,
            Err(RecvTimeoutError::Timeout) if start.elapsed() < job.timeout => {}
            Err(RecvTimeoutError::Timeout) => {
                sh::say(&format!("{}: no end after {} s: killed", job.name, job.timeout.as_secs()));
                sh::say(&machine.registers());
                break TIMED_OUT;
            }
        }
    };
    if let Some(expected) = expected
        && expected.end(&mut output).is_err()
        && status == 0
    {
        status = VISIT_FAILED;
    }
    Outcome {
        status,
        output: String::from_utf8_lossy(&output).into_owned(),
        kernel: kernel(machine),
        elapsed: start.elapsed(),
    }
}

/// What the lab host's kernel has said so far.
fn kernel(machine: &Machine) -> String {
    fs::read(&machine.serial_log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// After a failure: what the lab host's kernel and QEMU had to say.
fn explain(outcome: &Outcome, directory: &Path) {
    let kernel = outcome.kernel.trim();
    if !kernel.is_empty() {
        let shown = match kernel.find("BUG:").filter(|_| outcome.host_fell()) {
            Some(start) => kernel[start..].lines().take(FALL_LINES).collect::<Vec<_>>().join("\n"),
            None => sh::tail(kernel, KERNEL_LINES),
        };
        eprintln!("--- the lab host's console ---\n{shown}");
    }
    let qemu = fs::read_to_string(directory.join("qemu.log")).unwrap_or_default();
    let qemu: Vec<&str> = qemu.lines().filter(|line| !line.contains("TCG doesn't support")).collect();
    if outcome.status == LAB_FAILED && !qemu.is_empty() {
        eprintln!("--- QEMU ---\n{}", qemu.join("\n"));
    }
}

fn unpack_results(directory: &Path, results: &Path) -> Result<()> {
    let tar = directory.join("results.tar");
    if fs::metadata(&tar).is_ok_and(|metadata| metadata.len() > 0) {
        fs::create_dir_all(results)?;
        sh::run(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(results))?;
    }
    Ok(())
}

/// The directory of one run, and what it runs on.
struct Run {
    images: Images,
    frozen: Frozen,
    directory: PathBuf,
    keep: bool,
}

impl Run {
    fn prepare(job: &Job) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let images = Images::ready(job.guests, job.host)?;
        let frozen = freeze::frozen_host(&images, !job.cards.is_empty())?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        remove_dead_runs(&cache::root()?.join("runs"));
        let directory =
            cache::root()?.join("runs").join(format!("{}-{}-{number}", job.name, std::process::id()));
        fs::create_dir_all(&directory)?;
        if job.keep {
            fs::write(directory.join(KEPT), "")?;
            sh::say(&format!("this run's files stay in {}", directory.display()));
        }
        Ok(Self { images, frozen, directory, keep: job.keep })
    }

    fn thaw(&self, job: &Job, doors: &[(u16, u16)]) -> Result<Machine> {
        let overlay = |name: &str, base: &Path, format: &str| -> Result<PathBuf> {
            let path = self.directory.join(name);
            qemu::create_overlay(&path, base, format)?;
            Ok(path)
        };
        let scratch = self.directory.join("scratch.qcow2");
        sh::run(
            Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&scratch).arg(GUEST_DISK),
        )?;
        let trixie = match &self.images.trixie {
            Some(trixie) => Some(overlay("trixie.qcow2", &trixie.join("root.img"), "raw")?),
            None => None,
        };
        let setup = Setup {
            images: &self.images,
            memory: self.frozen.memory(),
            root: overlay("root.qcow2", &self.frozen.root(), "qcow2")?,
            job: Some(self.pack(job)?),
            bookworm: Some(overlay("bookworm.qcow2", &self.images.bookworm.join("root.img"), "raw")?),
            trixie,
            scratch: Some(scratch),
            directory: &self.directory,
            incoming: Some(self.frozen.state()),
            iommu: !job.cards.is_empty(),
            cards: &job.cards,
            doors,
            verbose: job.verbose,
        };
        Machine::start(&setup)
    }

    /// Everything that the job needs, as a tar archive on a raw disk.
    fn pack(&self, job: &Job) -> Result<PathBuf> {
        let stage = self.directory.join("stage");
        fs::create_dir_all(&stage)?;
        fs::write(stage.join("run.sh"), &job.script)?;
        let mut files = job.files.clone();
        let mut guest = |name: &str, directory: &Path| {
            for file in ["vmlinuz", "initrd.img", "vmlinux"] {
                files.insert(format!("{name}/{file}"), directory.join(file));
            }
        };
        guest("bookworm", &self.images.bookworm);
        if let Some(trixie) = &self.images.trixie {
            guest("trixie", trixie);
        }
        for file in ["tiny.cpio", "probe.cpio"] {
            files.insert(file.to_owned(), self.images.tiny.join(file));
        }
        for (name, path) in &files {
            if !path.exists() {
                bail!("{} does not exist", path.display());
            }
            let link = stage.join(name);
            if let Some(parent) = link.parent() {
                fs::create_dir_all(parent)?;
            }
            std::os::unix::fs::symlink(path.canonicalize()?, &link)
                .with_context(|| format!("two files want the name {name}"))?;
        }
        let disk = self.directory.join("job.tar");
        sh::run(Command::new("tar").arg("-chf").arg(&disk).arg("-C").arg(&stage).arg("."))?;
        let file = fs::File::options().write(true).open(&disk)?;
        if file.metadata()?.len() > qemu::JOB_DISK {
            bail!("the job's files are more than {} MiB", qemu::JOB_DISK >> 20);
        }
        file.set_len(qemu::JOB_DISK)?;
        Ok(disk)
    }
}

/// Removes what runs that were killed have left; their names end in their process's number, and a count in some.
fn remove_dead_runs(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().filter_map(Result::ok) {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let dead = !name
            .trim_end_matches(".toml")
            .trim_end_matches(".img")
            .rsplit('-')
            .take(2)
            .filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
            .any(|number| Path::new("/proc").join(number).is_dir());
        if dead && !path.join(KEPT).exists() {
            // What cannot be removed only costs space.
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed is only in the way.
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}
