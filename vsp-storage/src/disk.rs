//! Opening a disk: all that is ever asked of the host about it, before the compartment closes.
//!
//! An open disk is nobody's yet: [`crate::fence`] takes it when the process is told to serve.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use nix::sys::stat::{major, minor};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs};
use thiserror::Error;

use crate::cli::{DiskSpec, MAX_LUN, MAX_SERIAL};
use crate::scsi::Unit;

/// Logical block of a disk image in a file.
const FILE_BLOCK: u32 = 512;
/// Physical block that a file is presented with: the page and the file system's block, so that guests align
/// to it.
const FILE_PHYSICAL: u32 = 4096;

/// A disk that cannot be served; what to do is in the text.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It cannot be opened or looked at.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("{0} is neither a regular file nor a block device")]
    WrongKind(PathBuf),
    /// Not one block.
    #[error("{0} has no room for even one block")]
    Empty(PathBuf),
    /// Blocks of an odd size.
    #[error("{path} has blocks of {size} bytes; only 512 and 4096 can be served")]
    BlockSize {
        /// The device.
        path: PathBuf,
        /// Its logical block size.
        size: u32,
    },
    /// Two disks want the same LUN.
    #[error("two disks have the LUN {0}")]
    SameLun(u8),
    /// No LUN is left.
    #[error("there are more disks than LUNs (255)")]
    TooMany,
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    /// Its logical unit number.
    pub lun: u8,
    /// What the guest sees.
    pub unit: Unit,
    /// The open file description that is read from and written to.
    pub file: File,
    /// The one that will carry the locks; `None`: that one.
    pub keeper: Option<File>,
    /// Where it came from, for the log.
    pub path: PathBuf,
}

/// Opens all disks of a controller called `device`.
pub fn open_all(device: &str, specs: &[DiskSpec]) -> Result<Vec<Disk>, DiskError> {
    let mut disks: Vec<Disk> = Vec::with_capacity(specs.len());
    for (position, spec) in specs.iter().enumerate() {
        let position = u8::try_from(position).ok().filter(|lun| *lun <= MAX_LUN).ok_or(DiskError::TooMany)?;
        let lun = spec.lun.unwrap_or(position);
        if disks.iter().any(|disk| disk.lun == lun) {
            return Err(DiskError::SameLun(lun));
        }
        disks.push(open(device, lun, spec)?);
    }
    disks.sort_by_key(|disk| disk.lun);
    Ok(disks)
}

fn open(device: &str, lun: u8, spec: &DiskSpec) -> Result<Disk, DiskError> {
    let path = spec.path.clone();
    let failed = |source| DiskError::Open { path: path.clone(), source };
    let open = || OpenOptions::new().read(true).write(!spec.read_only).open(&path);
    let file = open().map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let shape = if metadata.is_file() {
        Shape { block_size: FILE_BLOCK, physical: FILE_PHYSICAL, can_unmap: true }
    } else if metadata.file_type().is_block_device() {
        Shape::of_device(metadata.rdev()).map_err(failed)?
    } else {
        return Err(DiskError::WrongKind(path));
    };
    if !matches!(shape.block_size, 512 | 4096) {
        return Err(DiskError::BlockSize { path, size: shape.block_size });
    }
    let keeper = if ends_with_process(&file, &metadata) { Some(open().map_err(failed)?) } else { None };
    let bytes = size(&file).map_err(failed)?;
    let blocks = bytes / u64::from(shape.block_size);
    if blocks == 0 {
        return Err(DiskError::Empty(path));
    }
    if !bytes.is_multiple_of(u64::from(shape.block_size)) {
        tracing::warn!(
            lun,
            "{}: the last {} bytes are no whole block",
            path.display(),
            bytes % u64::from(shape.block_size)
        );
    }
    let serial = spec.serial.clone().unwrap_or_else(|| default_serial(device, lun));
    let unit = Unit {
        blocks,
        block_size: shape.block_size,
        physical_exponent: (shape.physical / shape.block_size).max(1).ilog2() as u8,
        read_only: spec.read_only,
        can_unmap: shape.can_unmap && !spec.read_only,
        naa: hash(serial.as_bytes()),
        serial,
    };
    Ok(Disk { lun, unit, file, keeper, path })
}

/// Bytes of a file or a block device. Asked again once the disk is ours: whoever had it may have changed its size.
pub fn size(mut file: impl Seek) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Whether no read or write of a process can outlive it. That is so where all of them go through the page cache of this
/// host: they are done by threads of the process (io_uring's workers are such), which the kernel lets finish before it
/// closes the last of its files. It is not so where requests go to somebody else (FUSE, a network) or past the cache.
fn ends_with_process(file: &File, metadata: &fs::Metadata) -> bool {
    const CACHED: [FsType; 4] = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, TMPFS_MAGIC];
    metadata.file_type().is_block_device()
        || fstatfs(file).is_ok_and(|system| CACHED.contains(&system.filesystem_type()))
}

/// What a disk is made of.
struct Shape {
    block_size: u32,
    physical: u32,
    can_unmap: bool,
}

impl Shape {
    /// Asks sysfs about a block device; of a partition, its disk.
    fn of_device(rdev: u64) -> io::Result<Shape> {
        let device = PathBuf::from(format!("/sys/dev/block/{}:{}", major(rdev), minor(rdev)));
        let own = device.join("queue");
        let queue = if own.is_dir() { own } else { device.join("../queue") };
        let read = |name: &str| -> io::Result<u64> {
            let text = fs::read_to_string(queue.join(name))?;
            text.trim()
                .parse()
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{name}: {text}")))
        };
        let size = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(Shape {
            block_size: size(read("logical_block_size")?),
            physical: size(read("physical_block_size")?),
            // Punching a hole needs zeroes without a fallback to writing them.
            can_unmap: read("discard_max_bytes")? > 0 && read("write_zeroes_max_bytes")? > 0,
        })
    }
}

/// Stable as long as the device keeps its name and the disk its LUN, so that guests find it again by id.
fn default_serial(device: &str, lun: u8) -> String {
    let suffix = format!("-{lun}");
    let mut name: String = device.chars().filter(char::is_ascii_graphic).collect();
    if name.len() + suffix.len() > MAX_SERIAL {
        name = format!("{:016x}", hash(device.as_bytes()));
    }
    name + &suffix
}

/// FNV-1a: any stable hash would do.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn file(name: &str, len: u64) -> PathBuf {
        let path = std::env::temp_dir().join(format!("bulkhead-disk-{}-{name}", std::process::id()));
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }

    fn spec(path: &Path) -> DiskSpec {
        DiskSpec { path: path.to_owned(), lun: None, read_only: false, serial: None }
    }

    #[test]
    fn a_file_is_a_disk() {
        let path = file("plain", 1 << 20 | 100);
        let disks = open_all("disk0", &[DiskSpec { lun: Some(7), ..spec(&path) }]).unwrap();
        let unit = &disks[0].unit;
        assert_eq!((disks[0].lun, unit.blocks, unit.block_size, unit.physical_exponent), (7, 2048, 512, 3));
        assert_eq!(unit.serial, "disk0-7");
        assert!(unit.can_unmap);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn luns_are_positions_unless_given_and_never_shared() {
        let (a, b) = (file("a", 4096), file("b", 4096));
        let disks = open_all("d", &[DiskSpec { lun: Some(3), ..spec(&a) }, spec(&b)]).unwrap();
        assert_eq!(disks.iter().map(|disk| disk.lun).collect::<Vec<_>>(), [1, 3]);
        drop(disks);
        let twice = open_all("d", &[DiskSpec { lun: Some(1), ..spec(&a) }, spec(&b)]);
        assert!(matches!(twice, Err(DiskError::SameLun(1))));
        fs::remove_file(a).unwrap();
        fs::remove_file(b).unwrap();
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let open = |path: &Path| open_all("d", &[spec(path)]).map(drop).unwrap_err();
        assert!(matches!(open(Path::new("/nonexistent")), DiskError::Open { .. }));
        assert!(matches!(open(Path::new("/dev/null")), DiskError::WrongKind(_)));
        let empty = file("empty", 511);
        assert!(matches!(open(&empty), DiskError::Empty(_)));
        fs::remove_file(empty).unwrap();
    }

    #[test]
    fn serial_numbers_fit_and_differ() {
        let long = default_serial(&"x".repeat(40), 254);
        assert!(long.len() <= MAX_SERIAL);
        assert_ne!(long, default_serial(&"y".repeat(40), 254));
        assert_ne!(hash(b"disk0-0"), hash(b"disk0-1"));
    }
}
