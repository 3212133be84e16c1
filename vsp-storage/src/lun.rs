//! A unit and what is remembered about it besides its size: whether it is ours, and whether its promises can be kept.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use crate::disk::{self, Disk};
use crate::fence::Fence;
use crate::scsi::{Sense, Unit, sense};
use crate::uring::Kind;

/// A logical unit.
#[derive(Debug)]
pub(crate) struct Lun {
    pub lun: u8,
    pub unit: Unit,
    pub path: PathBuf,
    fence: Fence,
    /// What carries the locks, if it is not the file itself.
    keeper: Option<File>,
    /// Commands that failed for the host's fault, for the log.
    failures: u64,
}

impl Lun {
    /// A disk whose file has gone elsewhere.
    pub fn new(disk: Disk) -> (Lun, File) {
        let Disk { lun, unit, file, keeper, path } = disk;
        let fence = Fence::new(unit.read_only);
        (Lun { lun, unit, path, fence, keeper, failures: 0 }, file)
    }

    /// For whom it is served.
    pub fn identify(&mut self, memory: u64, device: &str) {
        self.fence.identify(memory, device, self.lun);
    }

    /// What it needs besides its file.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.keeper.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Whether it is ours.
    pub fn is_ours(&self) -> bool {
        self.fence.is_held()
    }

    /// Makes it ours if that can be done at once. Its size is what it is then.
    pub fn take(&mut self, file: &File) -> Result<bool, String> {
        let path = self.path.display();
        if self.fence.is_held() {
            return Ok(true);
        }
        let keeper = self.keeper.as_ref().unwrap_or(file);
        if !self.fence.take(keeper).map_err(|error| format!("cannot lock {path}: {error}"))? {
            return Ok(false);
        }
        let bytes = disk::size(file).map_err(|error| format!("cannot tell the size of {path}: {error}"))?;
        let blocks = bytes / u64::from(self.unit.block_size);
        if blocks == 0 {
            return Err(format!("{path} has no room for even one block"));
        }
        if blocks != self.unit.blocks {
            tracing::warn!(lun = self.lun, was = self.unit.blocks, blocks, "{path} has changed its size");
            self.unit.blocks = blocks;
        }
        Ok(true)
    }

    /// Gives it up.
    pub fn release(&mut self, file: &File) {
        if let Err(error) = self.fence.release(self.keeper.as_ref().unwrap_or(file)) {
            tracing::error!(lun = self.lun, "{} cannot be unlocked: {error}", self.path.display());
        }
    }

    /// An operation has failed for good: says so. True: what the guest believes to be written may be lost, and the
    /// kernel tells so only once: the next flush would succeed. So none may, until the guest has begun anew.
    #[must_use = "promises must not be made any more"]
    pub fn failed(&mut self, kind: Kind, error: &std::io::Error, lost_before: bool) -> bool {
        let (lun, path) = (self.lun, self.path.display());
        let lost = kind.is_promise() && sense::may_lose_writes(error);
        if lost && !lost_before {
            tracing::error!(
                lun,
                "{path}: {kind:?} failed: {error}; writes that were acknowledged may be lost, so flushes of this \
                 disk fail until the guest opens its controller anew"
            );
        }
        self.failures += 1;
        if self.failures.is_power_of_two() {
            tracing::error!(lun, so_far = self.failures, "{path}: {kind:?} failed: {error}");
        }
        lost
    }
}

/// What an operation's success is worth: nothing, if it promises what cannot be kept any more.
pub(crate) fn succeeded(kind: Kind, moved: u32, lost_writes: bool) -> Result<u32, Sense> {
    if lost_writes && kind.is_promise() { Err(Sense::WRITE_ERROR) } else { Ok(moved) }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::scsi::plan::tests::unit;

    const FLUSH: Kind = Kind::Flush;
    const FUA: Kind = Kind::Write { offset: 0, stable: true };
    const WRITE: Kind = Kind::Write { offset: 0, stable: false };

    fn lun() -> Lun {
        Lun {
            lun: 0,
            unit: unit(),
            path: PathBuf::new(),
            fence: Fence::new(false),
            keeper: None,
            failures: 0,
        }
    }

    /// The kernel reports a write-back error to one `fsync` and calls the pages clean; Linux guests try a failed
    /// flush again, and would take the second one's success for theirs.
    #[test]
    fn a_flush_that_failed_cannot_be_made_up_for() {
        for (kind, code) in [(FLUSH, libc::EIO), (FLUSH, libc::ENOSPC), (FUA, libc::EIO)] {
            assert_eq!(succeeded(FLUSH, 0, false), Ok(0));
            let lost = lun().failed(kind, &io::Error::from_raw_os_error(code), false);
            assert_eq!(succeeded(FLUSH, 0, lost), Err(Sense::WRITE_ERROR));
            assert_eq!(succeeded(FUA, 512, lost), Err(Sense::WRITE_ERROR));
            assert_eq!(succeeded(WRITE, 512, lost), Ok(512), "it promises nothing");
            assert_eq!(succeeded(Kind::Read { offset: 0 }, 512, lost), Ok(512));
        }
    }

    #[test]
    fn failures_that_lose_nothing_are_forgotten() {
        let failures = [(FLUSH, libc::EINTR), (FUA, libc::EROFS), (WRITE, libc::EIO), (WRITE, libc::ENOSPC)];
        for (kind, code) in failures {
            assert!(!lun().failed(kind, &io::Error::from_raw_os_error(code), false));
        }
    }

    /// What is left of a request whose process has gone holds the description that it was made on.
    #[test]
    fn a_request_that_may_outlive_its_process_is_waited_for_and_another_is_not() {
        let path = std::env::temp_dir().join(format!("bulkhead-lun-{}", std::process::id()));
        File::create(&path).unwrap().set_len(4096).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        for apart in [false, true] {
            let (file, mut dead) = (open(), Lun { keeper: apart.then(open), ..lun() });
            assert_eq!(dead.take(&file), Ok(true));
            let request = file.try_clone().unwrap();
            drop((file, dead));
            let (file, mut successor) = (open(), Lun { keeper: apart.then(open), ..lun() });
            assert_eq!(successor.take(&file), Ok(apart));
            drop(request);
            assert_eq!(successor.take(&file), Ok(true));
        }
        std::fs::remove_file(path).unwrap();
    }
}
