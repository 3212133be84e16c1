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
        Self::new_in(&std::env::temp_dir(), size)
    }

    /// The same in memory, if there is a place for that: for figures that are not to be those of the machine's own disk.
    pub fn in_memory(size: u64) -> std::io::Result<Self> {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::new_in(memory, size) } else { Self::new(size) }
    }

    fn new_in(directory: &Path, size: u64) -> std::io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("bulkhead-disk-{}-{n}.img", std::process::id()));
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
