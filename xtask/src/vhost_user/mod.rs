//! The check `vhost-user`: a stock Debian guest on QEMU (software emulation, no lab host between) has its root disk and its network
//! from our daemons by vhost-user. While fio verifies what it writes and iperf3 runs both ways, one of the two is killed
//! each second, and QEMU connects to its successor. The guest may notice nothing but pauses.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::images::{HostKernel, Images, With};
use crate::{apt, build, cache, sh};

/// What the host does.
const HOST: &str = include_str!("../../recipes/vhost-user/host.sh");
/// What the guest does.
const GUEST: &str = include_str!("../../recipes/vhost-user/guest");
/// Debian packages: `unshare`, `ip` and `iperf3`.
const PACKAGES: [&str; 3] = ["util-linux", "iproute2", "iperf3"];
/// Seconds after its boot until which the guest begins new rounds.
const WORKS_UNTIL: u32 = 75;
/// Kills that there have to be: one a second, less what a busy machine loses.
const KILLS: u32 = 25;
/// The guest takes a minute and a half on an idle machine.
const LIMIT: Duration = Duration::from_secs(600);
/// What has to be in the output.
const EXPECTED: [&str; 4] =
    ["root: /dev/vda by virtio_blk, 2 queues", "by virtio_net", "vhost-user: all well", "file system: clean"];

/// Runs it.
pub fn check(verbose: bool) -> Result<()> {
    apt::ensure(&PACKAGES)?;
    let images = Images::ready(With::Bookworm, HostKernel::Debian)?;
    let binaries = build::binaries("release", false)?;
    let programs = binaries.first().and_then(|path| path.parent()).context("no programs")?;
    let run = Run::new(&images)?;
    let script = run.directory.join("host.sh");
    fs::write(&script, HOST)?;
    fs::write(run.directory.join("guest"), format!("UNTIL={WORKS_UNTIL}\n{GUEST}"))?;
    let mut command = Command::new("unshare");
    // Whoever is not root is root of a user namespace, and may make interfaces in it.
    command.args(if apt::is_root() { &["--net"][..] } else { &["--net", "--user", "--map-root-user"] });
    command.arg("bash").arg(&script).current_dir(&run.directory).stdin(Stdio::null());
    command.env("BIN", programs).env("GUEST", &images.bookworm);
    command.env("RECONNECT", reconnect()?).env("KILLS", KILLS.to_string());
    command.env("LIMIT", LIMIT.as_secs().to_string());
    let output = command.output().context("starting unshare")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if verbose {
        eprint!("{text}");
    }
    judge(output.status.success(), &text)?;
    text.lines().filter(|line| line.starts_with("kills:") || line.starts_with("fio:")).for_each(sh::say);
    Ok(())
}

fn judge(success: bool, output: &str) -> Result<()> {
    let missing: Vec<&&str> = EXPECTED.iter().filter(|text| !output.contains(**text)).collect();
    ensure!(missing.is_empty(), "missing from the output: {missing:?}\n{}", sh::tail(output, 80));
    if !success || output.contains("vhost-user: BAD") {
        bail!("not as it should be\n{}", sh::tail(output, 80));
    }
    Ok(())
}

/// How the installed QEMU is told to connect again: in whole seconds before 9.2, which brought milliseconds.
fn reconnect() -> Result<&'static str> {
    let version = sh::output(Command::new("qemu-system-x86_64").arg("--version"))?;
    Ok(if milliseconds(&version).with_context(|| version.clone())? {
        "reconnect-ms=50"
    } else {
        "reconnect=1"
    })
}

fn milliseconds(version: &str) -> Option<bool> {
    let mut numbers = version.split("version ").nth(1)?.split(['.', ' ']).map(str::parse::<u32>);
    let version = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(version >= (9, 2))
}

/// The directory of a run; it goes when it is over.
struct Run {
    directory: PathBuf,
}

impl Run {
    fn new(images: &Images) -> Result<Self> {
        let directory = cache::root()?.join("runs").join(format!("vhost-user-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let run = Self { directory };
        sh::run(
            Command::new("cp")
                .args(["--sparse=always", "--reflink=auto"])
                .arg(images.bookworm.join("root.img"))
                .arg(run.directory.join("root.img")),
        )?;
        Ok(run)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // What cannot be removed is only in the way.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_to_be_said_and_nothing_bad() {
        let well = EXPECTED.join("\n");
        assert!(judge(true, &well).is_ok());
        assert!(judge(false, &well).is_err());
        assert!(judge(true, &format!("{well}\nvhost-user: BAD fio")).is_err());
        assert!(judge(true, EXPECTED[0]).is_err());
    }

    #[test]
    fn old_qemu_counts_in_seconds() {
        assert_eq!(milliseconds("QEMU emulator version 7.2.22 (Debian 1:7.2)"), Some(false));
        assert_eq!(milliseconds("QEMU emulator version 9.2.0 (Debian)"), Some(true));
        assert_eq!(milliseconds("QEMU emulator version 10.0.2 (Debian)"), Some(true));
        assert_eq!(milliseconds("nothing"), None);
    }
}
