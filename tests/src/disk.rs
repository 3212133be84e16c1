//! Disks for storage tests: sparse files that go when the test is over.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// A raw disk image, all zeros in the beginning.
#[derive(Debug)]
pub struct Disk {
    /// To look at what the device has done, behind its back.
    pub file: File,
    path: PathBuf,
}

impl Disk {
    /// A disk of `size` bytes.
    pub fn new(size: u64) -> std::io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("bulkhead-disk-{}-{n}.img", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.set_len(size)?;
        Ok(Self { file, path })
    }

    /// The image.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to say after `--disk`; `options` begin with a comma if there are any.
    pub fn argument(&self, options: &str) -> String {
        format!("path={}{options}", self.path.display())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
