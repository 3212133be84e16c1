//! The QEMU that emulates the lab host: Debian 13's, unpacked beside the cache's images and never installed.
//!
//! Debian 12's own (7.2) lets the lab host fall: under nested SVM its kernel finds itself with a guest's FS and GS base now
//! and then, in a third of the long scenarios (measured; never seen with 10.0).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{apt, cache, sh};

const SUITE: &str = "trixie";
const PACKAGES: &str = "qemu-system-x86";
/// Where Debian puts firmware that QEMU wants.
const FIRMWARE: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];
/// What an emulator without sound, a screen or other processors never reads: two thirds of the whole.
const NEEDLESS: [&str; 4] = ["usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/icons"];

/// An unpacked QEMU.
#[derive(Debug)]
pub struct Emulator {
    root: PathBuf,
}

impl Emulator {
    /// Unpacks it if it is not in the cache yet.
    pub fn ready() -> Result<Self> {
        let key = cache::key(["emulator 1", SUITE, PACKAGES]);
        let root = cache::entry("emulator", &key, |directory| {
            sh::step("unpacking Debian 13's QEMU for the lab", || unpack(directory))
        })?;
        Ok(Self { root })
    }

    /// The start of a command line that runs it, with the C library and the firmware that it was built with.
    pub fn command_line(&self) -> Vec<PathBuf> {
        let root = |path: &str| self.root.join(path);
        let mut words = vec![
            root("usr/lib64/ld-linux-x86-64.so.2"),
            "--library-path".into(),
            root("usr/lib/x86_64-linux-gnu"),
            root("usr/bin/qemu-system-x86_64"),
        ];
        for path in FIRMWARE {
            words.extend(["-L".into(), root(path)]);
        }
        words
    }

    /// Its version, part of what a frozen state depends on.
    pub fn version(&self) -> Result<String> {
        let words = self.command_line();
        let text = sh::output(Command::new(&words[0]).args(&words[1..]).arg("--version"))?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}

fn unpack(directory: &Path) -> Result<()> {
    let tar = directory.join("packages.tar");
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=extract", "--quiet", &format!("--include={PACKAGES}")]);
    for option in apt::proxy_options() {
        command.arg(format!("--aptopt={option}"));
    }
    command.arg(SUITE).arg(&tar).args(apt::sources(SUITE));
    sh::run(&mut command)?;
    // Nobody but its user runs it, so that whose its files were does not matter.
    sh::run(
        Command::new("tar")
            .arg("-xf")
            .arg(&tar)
            .arg("-C")
            .arg(directory)
            .args(["--no-same-owner", "--exclude=./dev/*"])
            .args(NEEDLESS.map(|path| format!("--exclude=./{path}"))),
    )?;
    fs::remove_file(&tar).context("removing the archive")
}
