//! `vncdotool` logs in, types a command, moves the mouse.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::job::Doors;
use crate::scenarios::picture;
use crate::{apt, cache, sh};

const VERSION: &str = "1.4.2";
/// Not the one of a version manager, which may lack what Debian's needs.
const PYTHON: &str = "/usr/bin/python3";

fn modules() -> Result<PathBuf> {
    cache::entry("vncdotool", &cache::key(["vncdotool 1", VERSION]), |directory| {
        sh::run(
            Command::new(PYTHON)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
                .arg(directory)
                .arg(format!("vncdotool=={VERSION}")),
        )
    })
}

pub(super) fn ready() -> Result<bool> {
    apt::ensure(&["python3", "python3-pip"])?;
    if let Err(error) = modules() {
        sh::say(&format!("SKIPPED: vncdotool cannot be had from PyPI: {error:#}"));
        return Ok(false);
    }
    Ok(true)
}

pub(super) fn visit(doors: &Doors) -> Result<String> {
    let modules = modules()?;
    let vncdo = |words: &[&str]| {
        // Without the system's modules, which are of other versions.
        let mut command = Command::new(PYTHON);
        command.env("PYTHONPATH", &modules).args([
            "-S",
            "-m",
            "vncdotool.command",
            "--timeout",
            "120",
            "--delay",
            "80",
        ]);
        sh::run(command.args(["--server", &format!("127.0.0.1::{}", doors.vnc)]).args(words))
    };
    let limit = Duration::from_secs(60);
    vncdo(&["type", "root", "key", "enter"]).context("logging in")?;
    doors.said.wait_for("login: in", limit)?;
    vncdo(&["type", "echo by VNC > /run/typed", "key", "enter"]).context("typing")?;
    doors.said.wait_for("typed: ", limit)?;
    vncdo(&[
        "move", "100", "100", "pause", "1", "move", "512", "384", "click", "1", "click", "3", "click", "4",
    ])
    .context("moving the mouse")?;
    doors.said.wait_for("mouse: ", limit)?;
    let path = picture::directory("screen-vnc")?.join("vncdotool.png");
    vncdo(&["capture", path.to_str().context("a path that is no text")?]).context("looking")?;
    let (width, height) = picture::shows_text(&path)?;
    Ok(format!("vncdotool: typed and saw {width} x {height}"))
}
