//! Writes a VM's files, and takes them away again.
//!
//! Writing twice is writing once; what an earlier spec wanted and this one does not is removed. It must never touch a file that
//! `bulkhead units` does not make: an administrator's drop-ins stay.

use std::fs::{self, File as Handle};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::content::{DROP_IN, File, TEMPLATES};
use super::{Names, SYSUSERS, UNITS, ids};

/// A file could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {error}", .path.display())]
pub struct Error {
    what: &'static str,
    path: PathBuf,
    error: io::Error,
}

/// What was done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new, or other than before.
    Wrote,
    /// It was so already.
    Kept,
    /// It is gone.
    Removed,
}

/// What was done, file by file.
pub type Changes = Vec<(Change, PathBuf)>;

/// Makes the files of the VM `vm` under `root` those in `files`.
pub fn write(root: &Path, vm: &str, files: &[File]) -> Result<Changes, Error> {
    let mut changes = Changes::new();
    for file in files {
        let path = root.join(&file.path);
        let change = if fs::read(&path).is_ok_and(|there| there == file.content.as_bytes()) {
            Change::Kept
        } else {
            replace(&path, &file.content)?;
            Change::Wrote
        };
        changes.push((change, path));
    }
    for path in drop_ins(root, vm)? {
        if !files.iter().any(|file| root.join(&file.path) == path) {
            remove(&path, &mut changes)?;
        }
    }
    Ok(changes)
}

/// Removes the files of the VM `vm` under `root`, and the templates with those of the last VM. A VM that has none is no error.
pub fn remove_all(root: &Path, vm: &str) -> Result<Changes, Error> {
    let names = Names::of(vm);
    let mut changes = Changes::new();
    for path in drop_ins(root, vm)? {
        remove(&path, &mut changes)?;
    }
    let configuration = root.join(names.configuration());
    for file in ["core.json", ids::FILE] {
        remove(&configuration.join(file), &mut changes)?;
    }
    remove(&root.join(SYSUSERS).join(names.sysusers()), &mut changes)?;
    // Fails, as it should, while another VM has one.
    if let Some(of_all) = configuration.parent() {
        let _ = fs::remove_dir(of_all);
        if !of_all.exists() {
            for (template, _) in TEMPLATES {
                remove(&root.join(UNITS).join(template), &mut changes)?;
            }
        }
    }
    Ok(changes)
}

/// The drop-ins of ours that a VM's units have.
fn drop_ins(root: &Path, vm: &str) -> Result<Vec<PathBuf>, Error> {
    let units = root.join(UNITS);
    let failed = |error| Error { what: "read", path: units.clone(), error };
    let entries = match fs::read_dir(&units) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| is_of(name, vm)) {
            found.push(entry.path().join(DROP_IN));
        }
    }
    found.sort();
    Ok(found.into_iter().filter(|path| path.is_file()).collect())
}

/// Whether `directory` holds drop-ins of a unit of the VM `vm`.
fn is_of(directory: &str, vm: &str) -> bool {
    let Some(unit) = directory.strip_suffix(".d") else { return false };
    let Some((template, instance)) = unit.split_once('@') else { return false };
    let Some((instance, _type)) = instance.rsplit_once('.') else { return false };
    match template {
        "bulkhead-vm" | "bulkhead-core" | "bulkhead-seat" => instance == vm,
        _ => {
            (matches!(template, "bulkhead-net" | "bulkhead-console") || template.starts_with("vsp-"))
                && instance.split_once(':').is_some_and(|(of, _)| of == vm)
        }
    }
}

/// Puts a whole file in the place of what is there, so that a reader sees the old one or the new one.
pub(super) fn replace(path: &Path, content: &str) -> Result<(), Error> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |error| Error { what, path, error }
    };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed("create", directory))?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    // systemd ignores it: the suffix is none of a unit's or a drop-in's.
    let beside = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file: Handle =
            Handle::options().write(true).create(true).truncate(true).mode(0o644).open(&beside)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(failed("write", path))
}

/// Removes a file and the directory that it leaves empty, if it is one of a unit or of a VM.
fn remove(path: &Path, changes: &mut Changes) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(Error { what: "remove", path: path.to_owned(), error }),
        Ok(()) => changes.push((Change::Removed, path.to_owned())),
    }
    let Some(directory) = path.parent() else { return Ok(()) };
    if !directory.ends_with(UNITS) && !directory.ends_with(SYSUSERS) {
        // Fails, as it should, if somebody else's files are in it.
        let _ = fs::remove_dir(directory);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(test: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("bulkhead-units-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn file(path: &str, content: &str) -> File {
        File { path: path.into(), content: content.to_owned() }
    }

    fn kinds(changes: &Changes) -> Vec<Change> {
        changes.iter().map(|(change, _)| *change).collect()
    }

    #[test]
    fn writing_twice_is_writing_once() {
        let root = scratch("twice");
        let files = [
            file("etc/systemd/system/vsp-storage@a:disk0.service.d/50-bulkhead.conf", "x\n"),
            file("etc/bulkhead/a/core.json", "{}\n"),
        ];
        assert_eq!(kinds(&write(&root, "a", &files).unwrap()), [Change::Wrote; 2]);
        assert_eq!(kinds(&write(&root, "a", &files).unwrap()), [Change::Kept; 2]);
        let left = fs::read_dir(root.join("etc/bulkhead/a")).unwrap().count();
        assert_eq!(left, 1, "no temporary file is left");
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_device_that_is_gone_from_the_spec_loses_its_unit_and_nobody_else_anything() {
        let root = scratch("stale");
        let mine = |device: &str| {
            file(&format!("etc/systemd/system/vsp-storage@a:{device}.service.d/50-bulkhead.conf"), device)
        };
        let other = file("etc/systemd/system/vsp-storage@a-b:disk0.service.d/50-bulkhead.conf", "other");
        write(&root, "a-b", std::slice::from_ref(&other)).unwrap();
        write(&root, "a", &[mine("disk0"), mine("disk1")]).unwrap();
        let own = root.join("etc/systemd/system/vsp-storage@a:disk1.service.d/90-mine.conf");
        fs::write(&own, "[Service]\nNice=5\n").unwrap();
        let changes = write(&root, "a", &[mine("disk0")]).unwrap();
        assert_eq!(kinds(&changes), [Change::Kept, Change::Removed]);
        assert!(root.join(&other.path).exists() && own.exists());
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn removing_the_last_vm_leaves_nothing() {
        let root = scratch("remove");
        let files = |vm: &str| {
            let (template, text) = TEMPLATES[0];
            [
                file(&format!("etc/systemd/system/{template}"), text),
                file(&format!("etc/systemd/system/bulkhead-core@{vm}.service.d/50-bulkhead.conf"), "x"),
                file(&format!("etc/bulkhead/{vm}/core.json"), "{}"),
                file(&format!("etc/bulkhead/{vm}/id-block"), "1"),
                file(&format!("etc/sysusers.d/bulkhead-{vm}.conf"), "u"),
            ]
        };
        for vm in ["a", "b"] {
            write(&root, vm, &files(vm)).unwrap();
        }
        assert_eq!(remove_all(&root, "a").unwrap().len(), 4, "the template is still b's");
        assert_eq!(remove_all(&root, "a").unwrap(), []);
        assert_eq!(remove_all(&root, "b").unwrap().len(), 5);
        assert_eq!(fs::read_dir(root.join(UNITS)).unwrap().count(), 0);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn units_of_vms_with_similar_names_are_told_apart() {
        assert!(is_of("vsp-storage@a:disk0:b.service.d", "a"));
        assert!(is_of("bulkhead-vm@a.target.d", "a"));
        assert!(is_of("bulkhead-net@a:nic0.service.d", "a") && is_of("bulkhead-net@a:nic0.socket.d", "a"));
        assert!(
            is_of("bulkhead-seat@a.service.d", "a") && is_of("bulkhead-console@a:console.service.d", "a")
        );
        for other in ["vsp-storage@a-b:a.service.d", "bulkhead-vm@b.target.d", "vsp-storage@b:a.service.d"] {
            assert!(!is_of(other, "a"), "{other}");
        }
        assert!(!is_of("ssh@a.service.d", "a") && !is_of("vsp-storage@a:disk0.service", "a"));
    }
}
