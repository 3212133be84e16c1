//! What a disk is made of, as its host knows it: asked before the compartment closes, or by whoever opens a disk for a process
//! that cannot.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};

/// Logical block of a disk image in a file.
const FILE_BLOCK: u32 = 512;
/// Physical block that a file is presented with: the page and the file system's block, so that guests align
/// to it.
const FILE_PHYSICAL: u32 = 4096;

/// What a disk is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Smallest piece in bytes that can be written by itself.
    pub block_size: u32,
    /// Piece in bytes that should be written by itself.
    pub physical: u32,
    /// Blocks can be deallocated, and read as zeroes then.
    pub can_unmap: bool,
    /// Whether it is a block device or a file of a file system on this host, whose data goes through this host's page cache
    /// and whose inode numbers mean something.
    ///
    /// No cached read or write of a process can outlive it there: they are done by threads of the process (io_uring's workers
    /// are such), which the kernel lets finish before it closes the last of its files. It is not so where requests go to somebody
    /// else (FUSE, a network) or past the cache.
    pub local: bool,
    /// Of a block device: the kernel's count of disks that came up to this one; 0 if nobody knows.
    pub sequence: u64,
}

impl Shape {
    /// Of an open file or block device; `None` if it is neither.
    pub fn of(file: &File, metadata: &Metadata) -> io::Result<Option<Shape>> {
        if metadata.is_file() {
            const CACHED: [FsType; 4] = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, TMPFS_MAGIC];
            let local = fstatfs(file).is_ok_and(|system| CACHED.contains(&system.filesystem_type()));
            let (block_size, physical) = (FILE_BLOCK, FILE_PHYSICAL);
            Ok(Some(Shape { block_size, physical, can_unmap: true, local, sequence: 0 }))
        } else if metadata.file_type().is_block_device() {
            Shape::of_device(metadata.rdev()).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Asks sysfs about a block device; of a partition, its disk.
    fn of_device(rdev: u64) -> io::Result<Shape> {
        let own = PathBuf::from(format!("/sys/dev/block/{}:{}", major(rdev), minor(rdev)));
        let disk = if own.join("queue").is_dir() { own } else { own.join("..") };
        let queue = disk.join("queue");
        let size = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(Shape {
            block_size: size(number(&queue.join("logical_block_size"))?),
            physical: size(number(&queue.join("physical_block_size"))?),
            // Punching a hole needs zeroes without a fallback to writing them.
            can_unmap: number(&queue.join("discard_max_bytes"))? > 0
                && number(&queue.join("write_zeroes_max_bytes"))? > 0,
            local: true,
            // Linux 5.15 and later.
            sequence: number(&disk.join("diskseq")).unwrap_or(0),
        })
    }
}

fn number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let odd = |_| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {text}", path.display()));
    text.trim().parse().map_err(odd)
}
