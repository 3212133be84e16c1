//! The command line of `bulkhead disk`, and what it does.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::Deserialize;
use serde_json::json;

use super::words::{self, Change};
use super::{Told, open, persist, shown};
use crate::device::command::Place;
use crate::device::{Backend, Error, find};
use crate::spec::size::{self, Bytes};

/// What it is, in a line.
pub const ABOUT: &str = "Adds, removes and resizes disks of running VMs";

/// What it is.
pub const LONG_ABOUT: &str = "\
Changes the disks of a storage controller while the guest runs. The guest is told and sees the change by itself; nothing that it has asked of \
other disks waits for it. A change lasts until the VM ends (under systemd: until the host boots or `bulkhead units` is run again), \
whatever becomes of the device's processes meanwhile; for the next start, change the spec.

These commands work for VMs under `bulkhead run`, for the user who runs the VM, and for VMs under systemd alike.";

/// Below its options.
pub const AFTER_HELP: &str = "\
Examples:
  bulkhead disk ls debian disk0                    The disks of a controller
  bulkhead disk add debian disk0 path=data.img     At the lowest free LUN
  bulkhead disk add debian disk0 path=/dev/vg/db,lun=7,cache=none
  bulkhead disk resize debian disk0 7              The block device was made larger
  bulkhead disk resize debian disk0 1 20GiB        Makes the file larger, too
  bulkhead disk remove debian disk0 1              Unmount it in the guest first";

const ADD_ABOUT: &str = "Adds a disk to a controller";

const ADD_LONG_ABOUT: &str = "\
Adds a disk to a controller. Its options are those of vsp-storage --disk: path=FILE and, if wanted, lun=N, ro, serial=TEXT, \
cache=writeback|writethrough|none, block_size=512|4096, iops=N, bandwidth=100MiB, burst=SECONDS. A comma in a value is written twice.

If the disk cannot be served (it is locked by another process, its LUN is taken), nothing changes.";

const REMOVE_ABOUT: &str = "Takes a disk away from a controller";

const REMOVE_LONG_ABOUT: &str = "\
Takes a disk away from a controller: like pulling it out. What the guest has asked of it is done, what it asks afterwards fails. The command \
ends when nothing is under way any more; then the file is free for others.";

const RESIZE_ABOUT: &str = "Tells the guest that a disk has another size";

const RESIZE_LONG_ABOUT: &str = "\
Tells the guest that a disk has another size, the one that its file or block device has now. With SIZE, which must be larger, a file is \
made as large as that before. Partitions and file systems are the guest's to grow.";

/// `bulkhead disk`.
#[derive(Debug, Args)]
pub struct Disk {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(about = "Shows the disks of a controller")]
    /// Shows the disks.
    Ls(Of),
    #[command(about = ADD_ABOUT, long_about = ADD_LONG_ABOUT)]
    /// One more.
    Add(Add),
    #[command(about = REMOVE_ABOUT, long_about = REMOVE_LONG_ABOUT)]
    /// One less.
    Remove(Remove),
    #[command(about = RESIZE_ABOUT, long_about = RESIZE_LONG_ABOUT)]
    /// A larger one.
    Resize(Resize),
}

/// Of which controller.
#[derive(Debug, Args)]
pub struct Of {
    /// The VM's name
    #[arg(value_name = "VM")]
    pub vm: String,

    /// The controller's name in its spec
    #[arg(value_name = "DEVICE")]
    pub device: String,

    /// Where to look.
    #[command(flatten)]
    pub place: Place,
}

/// `bulkhead disk add`.
#[derive(Debug, Args)]
pub struct Add {
    /// To which.
    #[command(flatten)]
    pub of: Of,

    /// The disk: path=FILE[,lun=N][,ro][,...]
    #[arg(value_name = "DISK")]
    pub disk: String,
}

/// `bulkhead disk remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// From which.
    #[command(flatten)]
    pub of: Of,

    /// The disk's LUN
    #[arg(value_name = "LUN")]
    pub lun: u8,
}

/// `bulkhead disk resize`.
#[derive(Debug, Args)]
pub struct Resize {
    /// Of which.
    #[command(flatten)]
    pub of: Of,

    /// The disk's LUN
    #[arg(value_name = "LUN")]
    pub lun: u8,

    /// The size that its file is to have, such as 20GiB [default: the one that it has]
    #[arg(value_name = "SIZE")]
    pub size: Option<String>,
}

/// What a storage process answers about a disk.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    /// Its size in bytes.
    bytes: u64,
}

/// Does what the command line says.
///
/// # Errors
/// One sentence with what to do about it.
pub fn execute(disk: &Disk) -> anyhow::Result<ExitCode> {
    match &disk.command {
        Command::Ls(of) => list(of)?,
        Command::Add(options) => println!("{}", add(options)?),
        Command::Remove(options) => println!("{}", remove(options)?),
        Command::Resize(options) => println!("{}", resize(options)?),
    }
    Ok(ExitCode::SUCCESS)
}

fn backend(of: &Of) -> Result<Box<dyn Backend>, Error> {
    find(&of.place.base(), &of.vm)
}

fn list(of: &Of) -> Result<(), Error> {
    let mut words = backend(of)?.disks(&of.device)?;
    words.sort_by_key(|word| words::lun(word));
    words.iter().for_each(|word| println!("{}", shown(word)));
    Ok(())
}

fn add(options: &Add) -> Result<String, Error> {
    let Of { vm, device, .. } = &options.of;
    let mut backend = backend(&options.of)?;
    let taken = backend.disks(device)?;
    let word = words::complete(&options.disk, &taken).map_err(Error::Failed)?;
    refuse_root(&*backend, vm)?;
    let rows = backend.list()?;
    let program = rows.into_iter().find(|row| row.name == *device).map(|row| row.program).unwrap_or_default();
    let change = Change::Add { disk: word.clone() };
    // Opened anew each time: what a process that has died meanwhile had locked would stay locked with it.
    let mut is_begun = false;
    let added = persist(|| {
        let (payload, fds) = open::disk(&program, device, &word)?;
        let told = backend.change(device, &change, &payload, fds);
        is_begun |= matches!(told, Ok(Told::Again(_) | Told::Refused(_)));
        told
    });
    let answer = match added {
        Err(error) if is_begun && !taken.contains(&word) => {
            return Err(Error::Failed(match take_back(&mut *backend, device, &word) {
                Ok(()) => format!("{error}; the disk is not added"),
                Err(then) => {
                    format!(
                        "{error}; and the disk could not be taken back: {then}. Remove it with bulkhead disk remove"
                    )
                }
            }));
        }
        added => added?,
    };
    let (lun, path) =
        (words::lun(&word).unwrap_or_default(), words::value(&word, "path").unwrap_or_default());
    Ok(format!("{device}: LUN {lun} is {}, {}", shown(&path), Bytes(bytes(&answer))))
}

/// Has a disk that could not be added be no disk of later processes either.
fn take_back(backend: &mut dyn Backend, device: &str, word: &str) -> Result<(), Error> {
    if !backend.disks(device)?.iter().any(|disk| disk == word) {
        return Ok(());
    }
    // Who has not answered may have it nevertheless. It lets go of it in order, then, if it answers now.
    if let Some(lun) = words::lun(word)
        && let Ok(Told::Done(_)) = backend.change(device, &Change::Remove { lun }, &removal(lun), Vec::new())
    {
        return Ok(());
    }
    let change = Change::TakeBack { disk: word.to_owned() };
    match backend.change(device, &change, "", Vec::new())? {
        Told::Done(_) => Ok(()),
        Told::Refused(why) | Told::Again(why) => Err(Error::Failed(why)),
    }
}

/// Root follows no path that another user has chosen: neither to open it for him, nor to write to it.
fn refuse_root(backend: &dyn Backend, vm: &str) -> Result<(), Error> {
    let opener = backend.opener();
    if geteuid().is_root() && opener != 0 {
        return Err(Error::Failed(format!(
            "VM {vm} is run by user {opener}, whose processes have to open its disks: do it as that user (sudo -u '#{opener}' ...)"
        )));
    }
    Ok(())
}

/// What the process is told.
fn removal(lun: u8) -> String {
    json!({ "remove": { "lun": lun } }).to_string()
}

fn remove(options: &Remove) -> Result<String, Error> {
    let device = &options.of.device;
    let mut backend = backend(&options.of)?;
    let path = path_of(&mut *backend, device, options.lun)?;
    let (change, payload) = (Change::Remove { lun: options.lun }, removal(options.lun));
    persist(|| backend.change(device, &change, &payload, Vec::new()))?;
    Ok(format!("{device}: LUN {} is gone, and nothing uses {} any more", options.lun, shown(&path)))
}

fn resize(options: &Resize) -> Result<String, Error> {
    let device = &options.of.device;
    let mut backend = backend(&options.of)?;
    let path = path_of(&mut *backend, device, options.lun)?;
    if let Some(text) = &options.size {
        refuse_root(&*backend, &options.of.vm)?;
        let wanted = size::parse(text).map_err(|bad| Error::Failed(format!("{}: {}", bad.why, bad.fix)))?;
        grow(Path::new(&path), wanted).map_err(|why| Error::Failed(format!("{} {why}", shown(&path))))?;
    }
    let payload = json!({ "resize": { "lun": options.lun } }).to_string();
    let answer = persist(|| backend.tell(device, &payload))?;
    Ok(format!("{device}: LUN {} has {} now", options.lun, Bytes(bytes(&answer))))
}

/// The file of a disk, as its supervisor knows it.
fn path_of(backend: &mut dyn Backend, device: &str, lun: u8) -> Result<String, Error> {
    let words = backend.disks(device)?;
    let found = words.iter().find(|word| words::lun(word) == Some(lun));
    found.and_then(|word| words::value(word, "path")).ok_or_else(|| {
        let known: Vec<String> =
            words.iter().filter_map(|word| Some(words::lun(word)?.to_string())).collect();
        Error::Failed(format!("{device} has no LUN {lun}; it has {}", known.join(", ")))
    })
}

/// Makes a file larger; else the rest of a sentence.
fn grow(path: &Path, wanted: u64) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot be made larger: {error}");
    // Whatever has taken the disk's place: no link is followed, and no pipe is waited for.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let mut file = match File::options().read(true).write(true).custom_flags(flags).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
            return Err("is a link: make what it names larger, and give no size".to_owned());
        }
        file => file.map_err(failed)?,
    };
    let kind = file.metadata().map_err(failed)?.file_type();
    let is_file = kind.is_file();
    if !is_file && !kind.is_block_device() {
        return Err("is neither a file nor a block device".to_owned());
    }
    let now = file.seek(SeekFrom::End(0)).map_err(failed)?;
    match wanted {
        wanted if wanted == now => Ok(()),
        wanted if wanted < now => {
            Err(format!("has {} already: a disk in use is not made smaller", Bytes(now)))
        }
        _ if !is_file => Err("is no file: make the block device larger, and give no size".to_owned()),
        wanted if !wanted.is_multiple_of(SECTOR) => Err(format!("must have a multiple of {SECTOR} bytes")),
        wanted => file.set_len(wanted).map_err(failed),
    }
}

/// Disks are made of sectors of this many bytes; of large blocks whatever is no whole one is not used.
const SECTOR: u64 = 512;

fn bytes(answer: &str) -> u64 {
    serde_json::from_str::<Answer>(answer).unwrap_or_default().bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_larger_and_never_smaller() {
        let path = std::env::temp_dir().join(format!("bulkhead-grow-{}", std::process::id()));
        File::create(&path).unwrap().set_len(4096).unwrap();
        assert_eq!(grow(&path, 4096), Ok(()));
        assert_eq!(grow(&path, 8192), Ok(()));
        assert_eq!(path.metadata().unwrap().len(), 8192);
        assert!(grow(&path, 4096).unwrap_err().contains("8 KiB already"));
        assert!(grow(&path, 10_000).unwrap_err().contains("multiple"));
        let link = path.with_extension("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(grow(&link, 16_384).unwrap_err().contains("is a link"));
        assert!(grow(Path::new("/dev/null"), 4096).unwrap_err().contains("neither"));
        assert_eq!(path.metadata().unwrap().len(), 8192);
        std::fs::remove_file(&link).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(grow(&path, 4096).unwrap_err().contains("cannot be"));
    }
}
