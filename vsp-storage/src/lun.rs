//! A unit and what is remembered about it besides its size: whether it is ours, and whether its promises can be kept.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use crate::disk::{self, Direct, Disk};
use crate::fence::Fence;
use crate::identity::Identity;
use crate::limit::Limit;
use crate::queue::Queue;
use crate::scsi::{Sense, Unit, sense};
use crate::stats::Stats;
use crate::uring::Kind;

/// Most commands that are in the kernel's hands at a time. A file system that cannot be asked without waiting is asked by
/// threads of the kernel, of which this process has few, and a disk by a queue of its own: what is beyond waits here and
/// leaves both to the other units. More than this makes no disk faster.
const DEPTH: usize = 64;

/// A logical unit. `P` is what waits for it.
#[derive(Debug)]
pub(crate) struct Lun<P> {
    pub lun: u8,
    pub unit: Unit,
    pub path: PathBuf,
    /// It has been taken away: the guest does not have it any more, and its place is free once nothing of it is under way.
    pub gone: bool,
    /// What waits for it.
    pub queue: Queue<P>,
    /// What it has done.
    pub stats: Stats,
    /// What it asks of reads and writes, if they go past the page cache.
    pub direct: Option<Direct>,
    /// Which file it is.
    pub identity: Identity,
    /// The guest knows another file by this LUN: nothing of it may be read or written.
    estranged: bool,
    fence: Fence,
    /// What carries the locks, if it is not the file itself.
    keeper: Option<File>,
    /// Commands that failed for the host's fault, for the log.
    failures: u64,
}

impl<P> Lun<P> {
    /// A disk whose file has gone elsewhere.
    pub fn new(disk: Disk) -> (Lun<P>, File) {
        let Disk { lun, unit, file, keeper, path, limits, direct, identity } = disk;
        let (fence, estranged) = (Fence::new(unit.read_only), false);
        let queue = Queue::new(DEPTH, Limit::new(limits));
        (
            Lun {
                lun,
                unit,
                path,
                gone: false,
                queue,
                stats: Stats::default(),
                direct,
                identity,
                estranged,
                fence,
                keeper,
                failures: 0,
            },
            file,
        )
    }

    /// The guest knows the disk already, by this name. If it is another file by now, it is served no more.
    pub fn recognise(&mut self, known: Identity) {
        let differs = self.identity.differs(known);
        if differs && !self.estranged {
            tracing::error!(
                lun = self.lun,
                "{} is another file than the one that the guest works on, so all commands to this disk fail: put \
                 the first one back and restart the device, or reset the guest to go on with this one",
                self.path.display()
            );
        }
        self.estranged = differs;
    }

    /// Whether the guest works on another file.
    pub fn is_estranged(&self) -> bool {
        self.estranged
    }

    /// The guest's driver begins anew, with what is there now.
    pub fn begin_anew(&mut self) {
        self.estranged = false;
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

    /// What it is that is waited for, and for whom.
    pub fn waits_for(&self) -> String {
        let path = self.path.display();
        self.fence.obstacle().map_or_else(|| path.to_string(), |obstacle| format!("{path} ({obstacle})"))
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
        self.measure(file)?;
        Ok(true)
    }

    /// Its size is what its file has now.
    pub fn measure(&mut self, file: &File) -> Result<(), String> {
        let path = self.path.display();
        let bytes = disk::size(file).map_err(|error| format!("cannot tell the size of {path}: {error}"))?;
        let blocks = bytes / u64::from(self.unit.block_size);
        if blocks == 0 {
            return Err(format!("{path} has no room for even one block"));
        }
        if blocks != self.unit.blocks {
            tracing::warn!(lun = self.lun, was = self.unit.blocks, blocks, "{path} has changed its size");
            self.unit.blocks = blocks;
        }
        Ok(())
    }

    /// Its size as the guest sees it.
    pub fn bytes(&self) -> u64 {
        self.unit.blocks.saturating_mul(self.unit.block_size.into())
    }

    /// Lets go of what it has besides its file, which is given up and closed.
    pub fn close(&mut self) {
        self.keeper = None;
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
        let lost = kind.is_promise() && sense::may_lose_writes(error, kind != Kind::Flush);
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
    use crate::cli::Limits;
    use crate::scsi::plan::tests::unit;

    const FLUSH: Kind = Kind::Flush;
    const FUA: Kind = Kind::Write { offset: 0, stable: true };
    const WRITE: Kind = Kind::Write { offset: 0, stable: false };

    fn lun() -> Lun<()> {
        Lun {
            lun: 0,
            unit: unit(),
            path: PathBuf::new(),
            gone: false,
            queue: Queue::new(DEPTH, Limit::new(Limits::default())),
            stats: Stats::default(),
            direct: None,
            identity: Identity::UNKNOWN,
            estranged: false,
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
