//! The systemd units of daemons that serve VMs of others: systemd understands them, and finds them as closed as the other devices'.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use bulkhead_tests::vm::program;

/// The devices, each with the most that `systemd-analyze security` may find, in tenths: a NIC begins in the host's network, where its TAP is.
const DEVICES: [(&str, &str); 2] = [("storage", "15"), ("net", "20")];

#[test]
fn systemd_understands_them_and_finds_them_closed() -> anyhow::Result<()> {
    let directory = std::env::temp_dir().join(format!("bulkhead-vhost-units-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let result = look(&directory);
    std::fs::remove_dir_all(&directory)?;
    result
}

fn look(directory: &Path) -> anyhow::Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/systemd");
    for (device, threshold) in DEVICES {
        let name = format!("vsp-{device}");
        let binary = program(&name)?;
        for kind in ["socket", "service"] {
            let text = std::fs::read_to_string(source.join(format!("{name}-vhost@.{kind}")))?;
            let limited = text.lines().any(|line| line.starts_with("LimitDATA="));
            ensure!(
                limited == (kind == "service"),
                "{name}: what it may take of the host's memory has to have an end"
            );
            // systemd looks whether the program is there.
            let text = text.replace(&format!("/usr/bin/{name}"), &binary.display().to_string());
            for file in [format!("{name}-vhost@.{kind}"), format!("{name}-vhost@debian.{kind}")] {
                std::fs::write(directory.join(file), &text)?;
            }
        }
        let service = format!("./{name}-vhost@debian.service");
        let socket = format!("./{name}-vhost@debian.socket");
        let Ok(output) = analyze(directory, &["verify", "--man=no", &service, &socket]) else {
            eprintln!("SKIPPED: there is no systemd-analyze here");
            return Ok(());
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!said.contains("vhost"), "{said}");
        let threshold = format!("--threshold={threshold}");
        let output = analyze(directory, &["security", "--offline=true", &threshold, &service])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

fn analyze(directory: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).current_dir(directory);
    command.env("SYSTEMD_UNIT_PATH", format!("{}:", directory.display()));
    command.output().context("systemd-analyze")
}
