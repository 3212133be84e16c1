//! `bulkhead units`.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

use super::install::{self, Change, Changes};
use super::systemctl::Systemctl;
use super::{Names, SYSUSERS, content, disks, ids, pci};
use crate::cli::Units;
use crate::commands::{CANNOT_RUN, show};
use crate::plan::Plan;
use crate::programs::Programs;
use crate::spec::{self, Console, HostLimits};

/// The root directory without `--output`.
const ROOT: &str = "/";

/// Writes or removes a VM's units.
pub fn execute(options: &Units) -> anyhow::Result<ExitCode> {
    if options.remove { remove(options) } else { write(options) }
}

fn write(options: &Units) -> anyhow::Result<ExitCode> {
    // The VM may run already, or on another host: what it needs is looked at when it starts.
    let (spec, report) =
        spec::load(&options.spec, HostLimits { disks_in_use: true, ..HostLimits::default() });
    show(&report);
    let Some(spec) = spec else { return Ok(ExitCode::from(CANNOT_RUN)) };
    let programs = Programs::find(options.bin_dir.as_deref(), &spec)?;
    let root = options.output.as_deref().unwrap_or(Path::new(ROOT));
    let Some(block) = ids::block(root, &spec.name) else {
        bail!("every block of user ids belongs to a VM: remove one with `bulkhead units --remove NAME`");
    };
    let plan = Plan::new(&spec, &programs, Some(ids::id(block, 0)));
    let is_device = |path: &Path| path.metadata().is_ok_and(|found| found.file_type().is_block_device());
    let files = content::files(&spec, &plan, &programs.bulkhead, block, is_device)?;
    let changes = install::write(root, &spec.name, &files)?;
    tell(&changes);
    let names = Names::of(&spec.name);
    if options.output.is_none() {
        disks::forget(&spec.name);
        // A systemd that does not answer may run it.
        let is_running = Systemctl.is_running(&names.core()).unwrap_or(true);
        let written: Vec<&str> = plan.devices.iter().map(|device| device.name.as_str()).collect();
        pci::forget(&spec.name, |device| is_running && !written.contains(&device));
        let users = root.join(SYSUSERS).join(names.sysusers());
        let status = Command::new("systemd-sysusers").arg(&users).status();
        let status = status.context("cannot run systemd-sysusers, which makes the processes' users")?;
        if !status.success() {
            bail!("systemd-sysusers could not make the users of {}: {status}", users.display());
        }
    }
    let console = match &spec.console {
        Console::Terminal => names.console(),
        Console::Socket(path) => path.clone(),
    };
    let target = names.target();
    println!("\nnext:     systemctl daemon-reload && systemctl start {target}");
    println!("at boot:  systemctl enable {target}");
    println!(
        "console:  socat -,raw,echo=0,escape=0x1d UNIX-CONNECT:{}    (Ctrl-] leaves)",
        console.display()
    );
    if spec.screen.is_some() {
        println!("screen:   bulkhead console {}", spec.name);
    }
    Ok(ExitCode::SUCCESS)
}

fn remove(options: &Units) -> anyhow::Result<ExitCode> {
    let name = vm_name(&options.spec)?;
    let target = Names::of(&name).target();
    let root = options.output.as_deref().unwrap_or(Path::new(ROOT));
    if options.output.is_none() && Systemctl.is_running(&Names::of(&name).core())? {
        bail!("{name} is running: stop it first (systemctl stop {target})");
    }
    let changes = install::remove_all(root, &name)?;
    if changes.is_empty() {
        bail!("{name} has no units here");
    }
    if options.output.is_none() {
        disks::forget(&name);
        pci::forget(&name, |_| false);
    }
    tell(&changes);
    println!("\nnext: systemctl daemon-reload");
    Ok(ExitCode::SUCCESS)
}

/// The VM that `given`, a spec or a name, is about. The rest of the spec does not matter, nor whether it is still right.
fn vm_name(given: &Path) -> anyhow::Result<String> {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
    };
    if let Some(name) = given.to_str().filter(|name| is_name(name)) {
        return Ok(name.to_owned());
    }
    let text = std::fs::read_to_string(given).with_context(|| format!("cannot read {}", given.display()))?;
    let table: toml::Table = text.parse().with_context(|| format!("{} is not TOML", given.display()))?;
    match table.get("name").and_then(toml::Value::as_str) {
        Some(name) if is_name(name) => Ok(name.to_owned()),
        _ => bail!("{} does not name a VM: give the VM's name instead", given.display()),
    }
}

fn tell(changes: &Changes) {
    for (change, path) in changes {
        let word = match change {
            Change::Wrote => "wrote",
            Change::Kept => "as it was",
            Change::Removed => "removed",
        };
        println!("{word:9} {}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_removed_by_name_or_by_a_spec_that_may_be_wrong_by_now() {
        assert_eq!(vm_name(Path::new("debian-12")).unwrap(), "debian-12");
        let spec = std::env::temp_dir().join(format!("bulkhead-remove-{}.toml", std::process::id()));
        std::fs::write(&spec, "name = \"old\"\n[boot]\nkernel = \"/gone\"\n").unwrap();
        assert_eq!(vm_name(&spec).unwrap(), "old");
        std::fs::write(&spec, "name = \"../etc\"\n").unwrap();
        assert!(vm_name(&spec).is_err());
        std::fs::remove_file(&spec).unwrap();
    }

    #[test]
    fn units_are_written_while_the_vm_runs() {
        let directory = std::env::temp_dir().join(format!("bulkhead-units-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let disk = std::fs::File::create(directory.join("root.img")).unwrap();
        disk.set_len(512).unwrap();
        disk.lock().unwrap();
        let text = "name = \"a\"\n[[storage]]\nname = \"d\"\n[[storage.disk]]\npath = \"root.img\"\n";
        let told = |disks_in_use| {
            let host = HostLimits { disks_in_use, ..HostLimits::default() };
            spec::parse(Path::new("vm.toml"), text, &directory, host).1.render(false)
        };
        assert!(told(false).contains("which has it locked"));
        assert!(!told(true).contains("root.img"), "{}", told(true));
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn the_root_is_where_files_go() {
        assert_eq!(Path::new(ROOT).join(SYSUSERS), Path::new("/etc/sysusers.d"));
    }
}
