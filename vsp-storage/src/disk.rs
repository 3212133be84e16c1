//! Opening a disk: all that is ever asked of the host about it, before the compartment closes.
//!
//! An open disk is nobody's yet: [`crate::fence`] takes it when the process is told to serve.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use thiserror::Error;

pub use crate::direct::Direct;
pub use crate::identity::Identity;
pub use crate::shape::Shape;

use crate::cli::{Cache, DiskSpec, Limits, MAX_LUN, MAX_SERIAL};
use crate::identity;
use crate::scsi::Unit;

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
    /// Blocks that are smaller than what can be written.
    #[error("{path} can be written in pieces of {least} bytes only: use block_size={least}, not {size}")]
    SmallBlocks {
        /// The device.
        path: PathBuf,
        /// What was asked for.
        size: u32,
        /// What can be had.
        least: u32,
    },
    /// The page cache cannot be left out.
    #[error("{0} is where the page cache cannot be left out: use cache=writeback or cache=writethrough")]
    NotDirect(PathBuf),
    /// Without the page cache, blocks are too small.
    #[error(
        "{path} can be used past the page cache in pieces of {least} bytes only: use block_size={least} or another cache="
    )]
    DirectBlocks {
        /// The file.
        path: PathBuf,
        /// What can be had.
        least: u32,
    },
    /// A write near its end would be the process's end.
    #[error("{path} is larger than files may be that this process writes ({limit} bytes): raise `ulimit -f`")]
    FileLimit {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// Nor what that limit is.
    #[error("cannot tell how large files may be that this process writes: {0}")]
    Limit(io::Error),
    /// What came from somebody else is not what it should be.
    #[error("{path} was handed over {what}")]
    Given {
        /// The file.
        path: PathBuf,
        /// In which wrong way.
        what: &'static str,
    },
    /// Two disks want the same LUN.
    #[error("two disks have the LUN {0}")]
    SameLun(u8),
    /// Two disks are called the same.
    #[error(
        "the disks with the LUNs {0} and {1} have the same serial number: a guest would take them for one disk"
    )]
    SameSerial(u8, u8),
    /// No LUN is left.
    #[error("there are more disks than the {} of a controller", identity::MOST)]
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
    /// How much the guest may ask of it.
    pub limits: Limits,
    /// What it asks of reads and writes, if they go past the page cache.
    pub direct: Option<Direct>,
    /// Which file it is.
    pub identity: Identity,
}

/// What only somebody can tell who may open files.
#[derive(Debug)]
pub struct Given {
    /// To read and write, opened with [`flags`].
    pub file: File,
    /// The same file once more if it is [local](Shape::local) and goes through the page cache: it carries the locks.
    pub keeper: Option<File>,
    /// What it is made of.
    pub shape: Shape,
}

/// Opens all disks of a controller called `device`.
pub fn open_all(device: &str, specs: &[DiskSpec]) -> Result<Vec<Disk>, DiskError> {
    let mut disks: Vec<Disk> = Vec::with_capacity(specs.len());
    for (position, spec) in specs.iter().enumerate() {
        let position = u8::try_from(position).ok().filter(|lun| *lun <= MAX_LUN);
        let position = position.filter(|_| disks.len() < identity::MOST).ok_or(DiskError::TooMany)?;
        let lun = spec.lun.unwrap_or(position);
        if disks.iter().any(|disk| disk.lun == lun) {
            return Err(DiskError::SameLun(lun));
        }
        let disk = open(device, lun, spec)?;
        if let Some(other) = disks.iter().find(|other| other.unit.serial == disk.unit.serial) {
            return Err(DiskError::SameSerial(other.lun, lun));
        }
        disks.push(disk);
    }
    disks.sort_by_key(|disk| disk.lun);
    Ok(disks)
}

/// Flags of `open` besides those for reading and writing.
pub fn flags(cache: Cache) -> i32 {
    match cache {
        Cache::WriteBack => 0,
        Cache::WriteThrough => libc::O_DSYNC,
        Cache::None => libc::O_DIRECT,
    }
}

/// Opens one disk, as all that follows needs it.
pub fn open(device: &str, lun: u8, spec: &DiskSpec) -> Result<Disk, DiskError> {
    let disk = adopt(device, lun, spec, gather(spec)?)?;
    check_limit(&disk.file, &disk.path, disk.unit.read_only, file_limit()?)?;
    Ok(disk)
}

/// Size of the largest file that this process may write, in bytes.
pub fn file_limit() -> Result<u64, DiskError> {
    let limits = getrlimit(Resource::RLIMIT_FSIZE).map_err(|error| DiskError::Limit(error.into()))?;
    Ok(limits.0)
}

/// Refuses a file that is larger than [`file_limit`] has said, if it is written to: a write beyond that would not fail but kill
/// (SIGXFSZ), and so the next process, and so on.
pub fn check_limit(file: &File, path: &Path, read_only: bool, limit: u64) -> Result<(), DiskError> {
    let failed = |source| DiskError::Open { path: path.to_owned(), source };
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_file() && !read_only && metadata.len() > limit {
        return Err(DiskError::FileLimit { path: path.to_owned(), limit });
    }
    Ok(())
}

/// Opens one disk for whoever is to [adopt] it.
pub fn gather(spec: &DiskSpec) -> Result<Given, DiskError> {
    let path = spec.path.clone();
    let failed = |source| DiskError::Open { path: path.clone(), source };
    let open =
        |flags| OpenOptions::new().read(true).write(!spec.read_only).custom_flags(flags).open(&spec.path);
    let file = match open(flags(spec.cache)) {
        Err(error) if spec.cache == Cache::None && error.raw_os_error() == Some(libc::EINVAL) => {
            return Err(DiskError::NotDirect(path));
        }
        file => file.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    let shape = Shape::of(&file, &metadata).map_err(failed)?.ok_or(DiskError::WrongKind(path.clone()))?;
    let keeper = if shape.local && spec.cache != Cache::None { Some(open(0).map_err(failed)?) } else { None };
    Ok(Given { file, keeper, shape })
}

/// Makes a disk of what somebody has opened. Asks nothing but what may be asked in the compartment.
pub fn adopt(device: &str, lun: u8, spec: &DiskSpec, given: Given) -> Result<Disk, DiskError> {
    let Given { file, keeper, shape } = given;
    let path = spec.path.clone();
    let failed = |source| DiskError::Open { path: path.clone(), source };
    check_flags(&file, spec)
        .map_err(failed)?
        .map_err(|what| DiskError::Given { path: path.clone(), what })?;
    let metadata = file.metadata().map_err(failed)?;
    if let Some(keeper) = &keeper {
        let other = keeper.metadata().map_err(failed)?;
        if (other.dev(), other.ino()) != (metadata.dev(), metadata.ino()) {
            return Err(DiskError::Given { path, what: "with a second description of another file" });
        }
    }
    if !matches!(shape.block_size, 512 | 4096) {
        return Err(DiskError::BlockSize { path, size: shape.block_size });
    }
    let block_size = spec.block_size.unwrap_or(shape.block_size);
    if block_size < shape.block_size {
        return Err(DiskError::SmallBlocks { path, size: block_size, least: shape.block_size });
    }
    let direct = match spec.cache {
        Cache::None => {
            let direct = Direct::of(&file).map_err(failed)?.ok_or(DiskError::NotDirect(path.clone()))?;
            if direct.offset > block_size {
                return Err(DiskError::DirectBlocks { path, least: direct.offset });
            }
            Some(direct)
        }
        Cache::WriteBack | Cache::WriteThrough => None,
    };
    let bytes = size(&file).map_err(failed)?;
    let (blocks, rest) = (bytes / u64::from(block_size), bytes % u64::from(block_size));
    if blocks == 0 {
        return Err(DiskError::Empty(path));
    }
    if rest != 0 {
        tracing::warn!(lun, "{}: the last {rest} bytes are no whole block", path.display());
    }
    let serial = spec.serial.clone().unwrap_or_else(|| default_serial(device, lun));
    let unit = Unit {
        blocks,
        block_size,
        physical_exponent: (shape.physical / block_size).max(1).ilog2() as u8,
        read_only: spec.read_only,
        can_unmap: shape.can_unmap && !spec.read_only,
        write_cache: spec.cache != Cache::WriteThrough,
        naa: hash(serial.as_bytes()),
        serial,
    };
    let identity = Identity::of(&metadata, &shape);
    Ok(Disk { lun, unit, file, keeper, path, limits: spec.limits, direct, identity })
}

/// Whether a description was opened as its disk asks for; what is wrong with it.
fn check_flags(file: &File, spec: &DiskSpec) -> io::Result<Result<(), &'static str>> {
    let have = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    let access = if spec.read_only { OFlag::O_RDONLY } else { OFlag::O_RDWR };
    let wanted = OFlag::from_bits_retain(flags(spec.cache));
    Ok(if have & OFlag::O_ACCMODE != access {
        Err("with other rights than its options say")
    } else if have & wanted != wanted || have.contains(OFlag::O_DIRECT) != (spec.cache == Cache::None) {
        Err("with another cache than its options say")
    } else {
        Ok(())
    })
}

/// Bytes of a file or a block device. Asked again once the disk is ours: whoever had it may have changed its size.
pub fn size(mut file: impl Seek) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
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
    use std::fs;

    use super::*;

    fn file(name: &str, len: u64) -> PathBuf {
        let path = std::env::temp_dir().join(format!("bulkhead-disk-{}-{name}", std::process::id()));
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }

    fn spec(path: &Path) -> DiskSpec {
        DiskSpec { path: path.to_owned(), ..DiskSpec::default() }
    }

    #[test]
    fn a_file_is_a_disk() {
        let path = file("plain", 1 << 20 | 100);
        let disks = open_all("disk0", &[DiskSpec { lun: Some(7), ..spec(&path) }]).unwrap();
        let unit = &disks[0].unit;
        assert_eq!((disks[0].lun, unit.blocks, unit.block_size, unit.physical_exponent), (7, 2048, 512, 3));
        assert_eq!(unit.serial, "disk0-7");
        assert!(unit.can_unmap && unit.write_cache);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn blocks_may_be_large() {
        let path = file("4kn", 1 << 20 | 512);
        let disk = open("d", 0, &DiskSpec { block_size: Some(4096), ..spec(&path) }).unwrap();
        let unit = &disk.unit;
        assert_eq!((unit.blocks, unit.block_size, unit.physical_exponent), (256, 4096, 0));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn each_cache_has_its_flags_and_its_place_for_the_locks() {
        let path = file("caches", 1 << 20);
        for (cache, write_cache, keeper) in
            [(Cache::WriteBack, true, true), (Cache::WriteThrough, false, true), (Cache::None, true, false)]
        {
            let disk = open("d", 0, &DiskSpec { cache, ..spec(&path) }).unwrap();
            assert_eq!(check_flags(&disk.file, &DiskSpec { cache, ..spec(&path) }).unwrap(), Ok(()));
            assert_eq!((disk.unit.write_cache, disk.keeper.is_some()), (write_cache, keeper), "{cache:?}");
            assert_eq!(disk.direct.is_some(), cache == Cache::None);
            assert!(disk.direct.is_none_or(|direct| direct.offset <= 512), "{:?}", disk.direct);
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_was_opened_otherwise_is_not_taken() {
        let (path, other) = (file("given", 1 << 20), file("other", 1 << 20));
        let wanted = DiskSpec { cache: Cache::WriteThrough, ..spec(&path) };
        let given = |spec: &DiskSpec, from: &Path| {
            let Disk { file, keeper, .. } = open("d", 0, spec).unwrap();
            let shape = Shape::of(&file, &file.metadata().unwrap()).unwrap().unwrap();
            let keeper = keeper.map(|_| File::options().read(true).write(true).open(from).unwrap());
            adopt("d", 0, &wanted, Given { file, keeper, shape })
        };
        assert_eq!(given(&wanted, &path).unwrap().unit.blocks, 2048);
        for spec in [
            spec(&path),
            DiskSpec { cache: Cache::None, ..spec(&path) },
            DiskSpec { read_only: true, ..wanted.clone() },
        ] {
            assert!(matches!(given(&spec, &path), Err(DiskError::Given { .. })), "{spec:?}");
        }
        assert!(matches!(given(&wanted, &other), Err(DiskError::Given { .. })));
        fs::remove_file(path).unwrap();
        fs::remove_file(other).unwrap();
    }

    #[test]
    fn luns_are_positions_unless_given_and_never_shared() {
        let (a, b) = (file("a", 4096), file("b", 4096));
        let disks = open_all("d", &[DiskSpec { lun: Some(3), ..spec(&a) }, spec(&b)]).unwrap();
        assert_eq!(disks.iter().map(|disk| disk.lun).collect::<Vec<_>>(), [1, 3]);
        drop(disks);
        let twice = open_all("d", &[DiskSpec { lun: Some(1), ..spec(&a) }, spec(&b)]);
        assert!(matches!(twice, Err(DiskError::SameLun(1))));
        let many = open_all("d", &vec![spec(&a); 65]);
        assert!(matches!(many, Err(DiskError::TooMany)));
        fs::remove_file(a).unwrap();
        fs::remove_file(b).unwrap();
    }

    #[test]
    fn a_file_beyond_the_limit_is_only_read() {
        let path = file("limit", 8192);
        let open = File::open(&path).unwrap();
        assert!(
            check_limit(&open, &path, false, 8192).is_ok() && check_limit(&open, &path, true, 4096).is_ok()
        );
        let refused = check_limit(&open, &path, false, 4096);
        assert!(matches!(refused, Err(DiskError::FileLimit { limit: 4096, .. })));
        fs::remove_file(path).unwrap();
    }

    /// Multipath software puts disks together that are called the same.
    #[test]
    fn no_two_disks_are_called_the_same() {
        let path = file("same", 4096);
        let same = DiskSpec { serial: Some("d-1".into()), ..spec(&path) };
        assert!(matches!(open_all("d", &[same, spec(&path)]), Err(DiskError::SameSerial(0, 1))));
        fs::remove_file(path).unwrap();
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
