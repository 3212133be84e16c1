//! Debian packages: what a task needs from the machine, and where the machine gets its packages from.
//!
//! Never installs anything unless root runs us; otherwise the error is the one line to run.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::sh;

/// How often packages are installed before it is given up: apt takes a package away if another one that it is asked for does not go with its version (one from
/// Debian's backports, say), and puts back the version that does when it is asked for that.
const ROUNDS: usize = 3;

/// Makes sure that `packages` are installed, all of them at the same time.
pub fn ensure(packages: &[&str]) -> Result<()> {
    for _ in 0..ROUNDS {
        let missing: Vec<&str> = packages.iter().copied().filter(|package| !installed(package)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        install(&missing)?;
    }
    bail!("apt installs some of these packages only by removing others of them: {}", packages.join(" "))
}

fn install(missing: &[&str]) -> Result<()> {
    let line = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !is_root() {
        bail!("some Debian packages are missing; install them with:\n  sudo {line}");
    }
    sh::step(&format!("installing {}", missing.join(", ")), || {
        sh::run(Command::new("apt-get").arg("update"))?;
        sh::run(
            Command::new("apt-get")
                .args(["install", "-y", "--no-install-recommends"])
                .args(missing)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    })
}

/// Whether we run as root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

/// apt source lines for Debian's `suite`, from the mirrors that this machine uses itself; empty if that cannot
/// be told (mmdebstrap then has defaults of its own).
pub fn sources(suite: &str) -> Vec<String> {
    let listed = sh::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN)|$(LABEL)|$(SITE)|$(RELEASE)|$(COMPONENT)",
        "Created-By: Packages",
    ]))
    .unwrap_or_default();
    let site = |wanted: &str| {
        listed.lines().find_map(|line| {
            let mut fields = line.split('|');
            let (origin, label, site) = (fields.next()?, fields.next()?, fields.next()?);
            let component = fields.nth(1)?;
            (origin == "Debian" && label == wanted && component == "main").then(|| site.to_owned())
        })
    };
    let mut lines = Vec::new();
    if let Some(main) = site("Debian") {
        lines.push(format!("deb {main} {suite} main"));
        lines.push(format!("deb {main} {suite}-updates main"));
        if let Some(security) = site("Debian-Security") {
            lines.push(format!("deb {security} {suite}-security main"));
        }
    }
    lines
}

/// Fetches a package of another archive, whose checksum (SHA-256) is known, into `directory`; returns where it is.
pub fn fetch(url: &str, sha256: &str, directory: &Path) -> Result<PathBuf> {
    let path = directory.join(name(url));
    // As apt fetches what is its own, by the same proxies.
    sh::run(
        Command::new("/usr/lib/apt/apt-helper")
            .args(["-o", "Acquire::Retries=3", "download-file", url])
            .arg(&path)
            .arg(format!("SHA256:{sha256}")),
    )?;
    Ok(path)
}

/// What the file at `url` is called.
pub fn name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

/// The proxy settings of this machine's apt, as options for another one.
pub fn proxy_options() -> Vec<String> {
    sh::output(Command::new("apt-config").arg("dump"))
        .unwrap_or_default()
        .lines()
        .filter(|line| line.starts_with("Acquire::") && line.contains("::Proxy \"") && !line.contains("\"\""))
        .map(str::to_owned)
        .collect()
}
