//! Builds the project's binaries and finds them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::sh;

/// The programs that the product consists of.
pub const BINARIES: [&str; 9] = [
    "bulkhead",
    "core-vmm",
    "vsp-storage",
    "vsp-net",
    "vsp-video",
    "vsp-hid",
    "vsp-pci",
    "bulkhead-console",
    "vsp-echo",
];

/// Builds (if asked to) and returns those binaries that exist.
pub fn binaries(profile: &str, build: bool) -> Result<Vec<PathBuf>> {
    if build {
        sh::say("building the binaries");
        let mut cargo = cargo();
        cargo.args(["build", "--quiet"]).args(BINARIES.iter().flat_map(|name| ["--package", name]));
        if profile == "release" {
            cargo.arg("--release");
        }
        let status = cargo.status().context("starting cargo")?;
        ensure!(status.success(), "the build failed");
    }
    let directory = target_directory().join(if profile == "release" { "release" } else { "debug" });
    let found: Vec<PathBuf> =
        BINARIES.iter().map(|name| directory.join(name)).filter(|path| path.is_file()).collect();
    if found.len() < BINARIES.len() {
        sh::say(&format!("only {} of {} binaries are built", found.len(), BINARIES.len()));
    }
    Ok(found)
}

/// Builds all programs of these packages, for release.
pub fn programs(packages: &[&str]) -> Result<()> {
    sh::say(&format!("building {}", packages.join(", ")));
    let mut cargo = cargo();
    cargo.args(["build", "--release", "--quiet", "--bins"]);
    cargo.args(packages.iter().flat_map(|package| ["--package", package]));
    let status = cargo.status().context("starting cargo")?;
    ensure!(status.success(), "the build failed");
    Ok(())
}

/// Cargo, in the workspace's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// The workspace's root: where this program was built from, unless cargo says otherwise.
pub fn workspace() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or_else(|| PathBuf::from("."), PathBuf::from)
}

/// Where cargo puts what it builds.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}
