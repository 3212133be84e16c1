//! The files that a spec names: are they there, may they be used, are they what they should be?

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::{major, minor};

use super::diagnostic::Report;
use super::reader::Located;
use super::{Cache, HostLimits, Options, reason};

/// Disks are made of sectors of this many bytes.
const SECTOR: u64 = 512;

/// How a disk is going to be opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    readonly: bool,
    /// Past the page cache.
    direct: bool,
    /// Bytes of a block, if it is said.
    block_size: Option<u32>,
}

impl Usage {
    /// `options` are those of the disk, if they could be read.
    pub(super) fn new(readonly: bool, options: Option<&Options>) -> Self {
        let direct = options.is_some_and(|options| options.cache == Cache::None);
        Self { readonly, direct, block_size: options.and_then(|options| options.block_size) }
    }
}

/// A disk named earlier in the same spec.
#[derive(Clone, Debug)]
pub(super) struct FoundDisk {
    path: PathBuf,
    readonly: bool,
}

/// Opens the file at `path` for reading and reports why not; `role` is what the file is ("the kernel"), `fix` what to do if it
/// is not there.
pub(super) fn open_to_read(
    path: &Located<PathBuf>,
    role: &str,
    fix: &str,
    report: &mut Report,
) -> Option<File> {
    let shown = path.value.display();
    match File::open(&path.value) {
        Ok(file) if file.metadata().is_ok_and(|metadata| metadata.is_dir()) => {
            report.error(path.span.clone(), format!("{role} {shown} is a directory"), "name the file in it");
            None
        }
        Ok(file) => Some(file),
        Err(error) => {
            let message = format!("cannot read {role} {shown}: {}", reason(&error));
            let fix = match error.kind() {
                ErrorKind::NotFound => with_neighbour(&path.value, fix),
                ErrorKind::PermissionDenied => format!("make it readable: sudo chmod a+r {shown}"),
                _ => fix.to_owned(),
            };
            report.error(path.span.clone(), message, fix);
            None
        }
    }
}

/// The initial RAM disk has to be there and to have something in it; what is in it is the guest kernel's to judge.
pub(super) fn initrd(path: &Located<PathBuf>, report: &mut Report) {
    let fix = "correct the path, or remove `initrd` if the kernel needs none";
    let Some(file) = open_to_read(path, "the initrd", fix, report) else { return };
    if file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
        let message = format!("the initrd {} is empty", path.value.display());
        report.error(path.span.clone(), message, "make it again (update-initramfs -u), or remove `initrd`");
    }
}

/// Checks one disk and returns its size in bytes. `in_use` are the disks that this spec named before, by device and inode.
pub(super) fn disk(
    path: &Located<PathBuf>,
    usage: Usage,
    host: HostLimits,
    in_use: &mut HashMap<(u64, u64), FoundDisk>,
    report: &mut Report,
) -> Option<u64> {
    match examine(&path.value, usage, host, in_use) {
        Ok(bytes) => Some(bytes),
        Err((what, fix)) => {
            report.error(path.span.clone(), format!("the disk {} {what}", path.value.display()), fix);
            None
        }
    }
}

/// The size of a usable disk; else what is wrong with it, and the fix.
fn examine(
    path: &Path,
    usage: Usage,
    host: HostLimits,
    in_use: &mut HashMap<(u64, u64), FoundDisk>,
) -> Result<u64, (String, String)> {
    let Usage { readonly, direct, block_size } = usage;
    let shown = path.display();
    let wrong = |what: &str, fix: String| Err((what.to_owned(), fix));
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let create = format!("create it (truncate -s 4G {shown}), or correct the path");
            return wrong("does not exist", with_neighbour(path, &create));
        }
        Err(error) => {
            return Err((
                format!("cannot be looked at: {}", reason(&error)),
                "check the rights on the way to it".into(),
            ));
        }
    };
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = if kind.is_dir() { "is a directory" } else { "is neither a file nor a block device" };
        return wrong(what, "name a raw image or a block device".into());
    }
    // On a block device, O_EXCL asks the kernel whether it is mounted, or part of something that is.
    let exclusive = if kind.is_block_device() && !readonly && !host.disks_in_use { libc::O_EXCL } else { 0 };
    let mut file = match OpenOptions::new()
        .read(true)
        .write(!readonly)
        .custom_flags(exclusive | libc::O_NONBLOCK | if direct { libc::O_DIRECT } else { 0 })
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {
            return wrong(
                "is in use by the host (mounted, perhaps)",
                "unmount it, or use another one".into(),
            );
        }
        Err(error) if direct && error.kind() == ErrorKind::InvalidInput => {
            return wrong(
                "is where the host's page cache cannot be left out",
                "write cache = \"writeback\" or \"writethrough\", or move it to another file system".into(),
            );
        }
        Err(error) => return Err(cannot_open(path, readonly, &error)),
    };
    if !host.disks_in_use {
        lock_check(&file, readonly).map_err(|what| {
            let fix = "stop the VM that uses it, or give this one a disk of its own";
            (what.to_owned(), fix.to_owned())
        })?;
    }
    let bytes = file.seek(SeekFrom::End(0)).unwrap_or(0);
    if bytes == 0 {
        return wrong("is empty", format!("give it a size: truncate -s 4G {shown}"));
    }
    let least = if kind.is_block_device() { block_of(metadata.rdev()) } else { SECTOR };
    let block = block_size.map_or(least, u64::from);
    if block < least {
        return wrong(
            &format!("can be written in pieces of {least} bytes only"),
            format!("write block_size = {least}, or leave it out"),
        );
    }
    if bytes % block != 0 {
        let fix = format!("round it up: truncate -s {} {shown}", bytes.next_multiple_of(block));
        return Err((format!("has {bytes} bytes, which is not a multiple of {block}"), fix));
    }
    let identity =
        if kind.is_block_device() { (u64::MAX, metadata.rdev()) } else { (metadata.dev(), metadata.ino()) };
    let this = FoundDisk { path: path.to_owned(), readonly };
    match in_use.insert(identity, this) {
        Some(other) if !(other.readonly && readonly) => {
            let what = if other.path.as_os_str() == path.as_os_str() {
                "is in this spec already".to_owned()
            } else {
                format!("is in this spec already, as {}", other.path.display())
            };
            Err((what, "give each disk a file of its own, or make both readonly = true".to_owned()))
        }
        _ => Ok(bytes),
    }
}

fn cannot_open(path: &Path, readonly: bool, error: &std::io::Error) -> (String, String) {
    let shown = path.display();
    let readable = File::open(path).is_ok();
    let what = if readable { "cannot be written" } else { "cannot be read" };
    let what = format!("{what}: {}", reason(error));
    let fix = match error.kind() {
        ErrorKind::PermissionDenied if readable && !readonly => {
            format!("write readonly = true, or allow writing: sudo chown $USER {shown}")
        }
        ErrorKind::PermissionDenied => format!("allow it: sudo chown $USER {shown}"),
        ErrorKind::ReadOnlyFilesystem => {
            "write readonly = true, or move it to a writable file system".to_owned()
        }
        _ => "choose another file".to_owned(),
    };
    (what, fix)
}

/// Device processes lock their disks (`flock`): exclusively to write, shared to read. The lock taken here ends at once. QEMU's
/// programs do not; they have marks of their own, which `vsp-storage` (`qemu_lock`) honours as it is told here.
fn lock_check(file: &File, readonly: bool) -> Result<(), &'static str> {
    let locked = if readonly { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Err(TryLockError::WouldBlock) => Err("is in use by another process, which has it locked"),
        // A file system without locks cannot tell; the device process will see for itself.
        Err(TryLockError::Error(_)) => Ok(()),
        Ok(()) if QEMU_DOES.iter().any(|byte| is_marked(file, *byte)) => {
            Err("is in use by QEMU, which writes to it")
        }
        Ok(()) if QEMU_DENIES[usize::from(readonly)..].iter().any(|byte| is_marked(file, *byte)) => {
            Err("is in use by QEMU, which lets nobody else write to it")
        }
        Ok(()) => Ok(()),
    }
}

/// Bytes that QEMU locks while it writes to an image or changes its size.
const QEMU_DOES: [i64; 2] = [101, 103];
/// Those that it locks so that nobody writes to an image, and that nobody even reads it.
const QEMU_DENIES: [i64; 2] = [201, 200];

/// Whether somebody else has locked this byte.
fn is_marked(file: &File, byte: i64) -> bool {
    let mut found = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    let asked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut found));
    asked.is_ok() && i32::from(found.l_type) != libc::F_UNLCK && (found.l_start, found.l_len) != (0, 0)
}

/// Smallest piece in bytes in which a block device can be written.
fn block_of(rdev: u64) -> u64 {
    let own = PathBuf::from(format!("/sys/dev/block/{}:{}", major(rdev), minor(rdev)));
    let queues = [own.join("queue"), own.join("../queue")];
    let read =
        |queue: &PathBuf| std::fs::read_to_string(queue.join("logical_block_size")).ok()?.trim().parse().ok();
    queues.iter().find_map(read).unwrap_or(SECTOR)
}

/// `fix`, or the file beside `path` whose name is nearly the same.
fn with_neighbour(path: &Path, fix: &str) -> String {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return fix.to_owned();
    };
    let Ok(entries) = std::fs::read_dir(directory) else {
        return format!("{fix} (there is no directory {})", directory.display());
    };
    let names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    match super::reader::closest(name, &names) {
        Some(near) => format!("did you mean {}?", directory.join(near).display()),
        None => fix.to_owned(),
    }
}
