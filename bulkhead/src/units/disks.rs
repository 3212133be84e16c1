//! `bulkhead disk` under systemd: what a device's units start is changed by a drop-in, and the process that serves is told: afterwards of a
//! disk that comes; before that and once more afterwards of one that goes ([`Change::Remove`] says why).
//!
//! The drop-in lasts until the next boot, or until the VM's units are written anew. It repeats the whole command line and all that the process may
//! open, because a disk that is gone must not keep a unit from starting. Where a swap has given the units another program, that keeps
//! it and gets the new arguments.

use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::device::{Systemd, failed};
use super::swap::{BINARY, Override};
use super::systemctl::{RUNTIME_UNITS, Systemctl};
use super::{UNITS, content, escape};
use crate::device::Error;
use crate::device::supervised::tell;
use crate::disk::Told;
use crate::disk::words::{self, Change};

const HEADER: &str =
    "# Written by `bulkhead disk`; gone with the next boot, or when `bulkhead units` is run again.\n";

/// The drop-in that says what `unit` is started with: ours of the VM, or the one that changes its disks.
pub(super) fn in_force(unit: &str) -> Result<String, Error> {
    let changed = Path::new(RUNTIME_UNITS).join(format!("{unit}.d")).join(content::DISKS);
    let own = Path::new("/").join(UNITS).join(format!("{unit}.d")).join(content::DROP_IN);
    fs::read_to_string(changed)
        .or_else(|_| fs::read_to_string(&own))
        .map_err(|error| Error::Failed(format!("cannot read {}: {error}", own.display())))
}

/// The program and its arguments in a drop-in.
pub(super) fn arguments(text: &str) -> Vec<OsString> {
    let command =
        text.lines().filter_map(|line| line.strip_prefix("ExecStart=")).find(|line| !line.is_empty());
    command.map_or_else(Vec::new, escape::words)
}

/// Does it.
pub(super) fn change(
    vm: &Systemd,
    device: &str,
    change: &Change,
    payload: &str,
    fds: Vec<OwnedFd>,
) -> Result<Told, Error> {
    let pair = vm.pair(device)?;
    let units = Path::new(RUNTIME_UNITS);
    let overrides = |name: &str| pair.names.each_ref().map(|unit| Override::below(units, unit, name));
    let (disks, programs) = (overrides(content::DISKS), overrides(BINARY));
    let all = || disks.iter().chain(&programs);
    let args = arguments(&in_force(&pair.names[0])?);
    let changed = words::changed(&args, change).map_err(|why| Error::Failed(format!("{device}: {why}")))?;
    let say = |fds| tell(&vm.core_socket(), device, payload, fds);
    if let Change::Remove { .. } = change {
        match say(Vec::new())? {
            Told::Done(_) if changed.is_some() => {}
            told => return Ok(told),
        }
    }
    if let Some(args) = &changed {
        let is_device = |path: &Path| path.metadata().is_ok_and(|found| found.file_type().is_block_device());
        let text = drop_in(args, is_device).map_err(failed)?;
        let written = disks.iter().try_for_each(|drop_in| drop_in.set(Some(&text))).and_then(|()| {
            programs.iter().try_for_each(|program| match &program.text {
                Some(text) => program.set(Some(&with_arguments(text, args).map_err(failed)?)),
                None => Ok(()),
            })
        });
        if let Err(error) = written.and_then(|()| in_effect(vm, device)) {
            let _ = restore(all()).and_then(|()| in_effect(vm, device));
            return Err(error);
        }
    }
    if let Change::TakeBack { .. } = change {
        return Ok(Told::Done(String::new()));
    }
    let told = say(fds);
    // What it has not taken, no other process is to take. If an earlier attempt has written it, whoever made that takes it back.
    if let (Some(_), Change::Add { .. } | Change::Link { .. }, Ok(Told::Refused(_)) | Err(_)) =
        (&changed, change, &told)
    {
        restore(all())?;
        in_effect(vm, device)?;
    }
    Ok(match told? {
        Told::Again(why) => Told::Again(format!("{why}; its next process has the change")),
        told => told,
    })
}

/// systemd knows, and so does the process that stands by.
fn in_effect(vm: &Systemd, device: &str) -> Result<(), Error> {
    Systemctl.reload().map_err(failed)?;
    let pair = vm.pair(device)?;
    pair.spare().map_or(Ok(()), |spare| Systemctl.tell("restart", &pair.names[spare]).map_err(failed))
}

fn restore<'a>(overrides: impl Iterator<Item = &'a Override>) -> Result<(), Error> {
    overrides.map(|drop_in| drop_in.set(drop_in.text.as_deref())).fold(Ok(()), Result::and)
}

/// Everything that a unit with these disks needs, in the place of what it had.
fn drop_in(args: &[OsString], is_device: impl Fn(&Path) -> bool) -> Result<String, escape::Unwritable> {
    let command = escape::command_line(args.iter().map(OsString::as_os_str))?;
    let mut sandbox = content::Sandbox::default();
    if let Some(program) = args.first() {
        sandbox.read(Path::new(program))?;
    }
    for word in words::list(args) {
        if let Some(path) = words::path(&word) {
            sandbox.disk(&path, words::is_read_only(&word), is_device(&path))?;
        }
    }
    // Either empty list clears both kinds of mounts.
    Ok(format!(
        "{HEADER}[Service]\nExecStart=\nExecStart={command}\nBindPaths=\nBindReadOnlyPaths=\nDeviceAllow=\n{}",
        sandbox.text
    ))
}

/// A swap's drop-in with the same program and other arguments.
fn with_arguments(text: &str, args: &[OsString]) -> Result<String, escape::Unwritable> {
    let program = arguments(text).into_iter().take(1);
    let words: Vec<OsString> = program.chain(args.iter().skip(1).cloned()).collect();
    let command = escape::command_line(words.iter().map(OsString::as_os_str))?;
    let is_command = |line: &&str| line.strip_prefix("ExecStart=").is_some_and(|command| !command.is_empty());
    let line =
        |line: &str| if is_command(&line) { format!("ExecStart={command}\n") } else { format!("{line}\n") };
    Ok(text.lines().map(line).collect())
}

/// The VM's units have been written anew, or are gone: what was changed since is no more.
pub(super) fn forget(vm: &str) {
    let entries = fs::read_dir(RUNTIME_UNITS).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| {
            name.starts_with("vsp-")
                && name.split_once('@').is_some_and(|(_, unit)| unit.starts_with(&format!("{vm}:")))
        });
        if is_ours {
            // A swap's has all the arguments, too.
            for name in [content::DISKS, BINARY] {
                let _ = fs::remove_file(entry.path().join(name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "[Service]\nUser=x\nExecStart=\nExecStart=\"/bin/vsp\" \"--device\" \"d\" \"--disk\" \"lun=0,path=/a b%%\"\nBindPaths=\"/a b%%\"\n";

    #[test]
    fn a_drop_in_says_everything_anew() {
        let args = arguments(OWN);
        assert_eq!(words::list(&args), ["lun=0,path=/a b%"]);
        let disk = "lun=3,path=/dev/x,ro".to_owned();
        let more = words::changed(&args, &Change::Add { disk }).unwrap().unwrap();
        let text = drop_in(&more, |path| path.starts_with("/dev")).unwrap();
        let expected = "[Service]\nExecStart=\nExecStart=\"/bin/vsp\" \"--device\" \"d\" \"--disk\" \"lun=0,path=/a b%%\" \"--disk\" \"lun=3,path=/dev/x,ro\"\n\
            BindPaths=\nBindReadOnlyPaths=\nDeviceAllow=\nBindReadOnlyPaths=\"/bin/vsp\"\nBindPaths=\"/a b%%\"\nBindReadOnlyPaths=\"/dev/x\"\nDeviceAllow=\"/dev/x\" r\n";
        assert_eq!(text, format!("{HEADER}{expected}"));
        let less = words::changed(&arguments(&text), &Change::Remove { lun: 0 }).unwrap().unwrap();
        assert!(
            !drop_in(&less, |_| false).unwrap().contains("/a b"),
            "a file that is gone keeps nobody from starting"
        );
    }

    #[test]
    fn a_swapped_program_keeps_its_place() {
        let swapped = "[Service]\nExecStart=\nExecStart=\"/new/100%%\" \"--disk\" \"lun=0,path=/a\"\nBindReadOnlyPaths=\"/new/100%%\"\n";
        let args = ["/bin/vsp", "--disk", "lun=1,path=/b"].map(OsString::from);
        let text = with_arguments(swapped, &args).unwrap();
        assert_eq!(
            text,
            "[Service]\nExecStart=\nExecStart=\"/new/100%%\" \"--disk\" \"lun=1,path=/b\"\nBindReadOnlyPaths=\"/new/100%%\"\n"
        );
    }
}
