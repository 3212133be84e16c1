//! The file that everybody reads.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Bytes.
const SIZE: u64 = 1 << 30;
/// Bytes of a block.
const BLOCK: usize = 512;

/// A file whose blocks begin with their numbers; it goes when it is dropped.
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Makes it in `directory`, and puts it on the medium.
    pub fn new(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let disk = Self { path: directory.join(format!("bench-storage-{}.img", std::process::id())) };
        let file = File::create(&disk.path).with_context(|| format!("making {}", disk.path.display()))?;
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        let mut block = [0x5a; BLOCK];
        for n in 0..SIZE / BLOCK as u64 {
            block[..8].copy_from_slice(&n.to_le_bytes());
            writer.write_all(&block)?;
        }
        writer.into_inner().context("writing")?.sync_all()?;
        Ok(disk)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads all of it, so that it is in the page cache.
    pub fn warm(&self) -> Result<()> {
        std::io::copy(&mut File::open(&self.path)?, &mut std::io::sink())?;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
