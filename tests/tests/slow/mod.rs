//! A disk so slow that its requests outlive whoever made them: a file system of one file, whose reads and writes take
//! effect only after a delay.
//!
//! The kernel hands the I/O of a process that dies on to nobody: a request that this server has taken is waited for, and its
//! file stays open meanwhile, as with a real disk under direct I/O. Interrupts of dead requesters are ignored.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, ensure};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, WriteFlags,
};

const NAME: &str = "disk.img";
const DISK: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(60);
/// The clumsiest machine sees a request arrive within this.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);

/// What has happened, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A read or write has arrived through the `file`th opening of the disk.
    Began {
        /// From 1.
        file: u64,
        /// Whether it is a write.
        write: bool,
        /// First byte.
        offset: u64,
    },
    /// It has taken effect and was answered.
    Ended {
        /// From 1.
        file: u64,
        /// Whether it is a write.
        write: bool,
        /// First byte.
        offset: u64,
    },
}

struct State {
    backing: File,
    size: u64,
    delay_ms: AtomicU64,
    opened: AtomicU64,
    events: Mutex<Vec<Event>>,
    under_way: Mutex<HashMap<u64, u32>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn begin(&self, file: u64, write: bool, offset: u64) -> Duration {
        lock(&self.events).push(Event::Began { file, write, offset });
        *lock(&self.under_way).entry(file).or_default() += 1;
        Duration::from_millis(self.delay_ms.load(Ordering::SeqCst))
    }

    /// Before the answer, so that what follows from the answer comes later in the list.
    fn end(&self, file: u64, write: bool, offset: u64) {
        lock(&self.events).push(Event::Ended { file, write, offset });
        *lock(&self.under_way).entry(file).or_default() -= 1;
    }
}

/// The disk. Unmounted when dropped.
pub struct SlowDisk {
    state: Arc<State>,
    session: Option<BackgroundSession>,
    directory: PathBuf,
}

impl SlowDisk {
    /// A disk of `size` bytes, all zeros, and not slow yet.
    pub fn new(size: u64) -> anyhow::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("bulkhead-slow-{}-{n}", std::process::id()));
        let mount = directory.join("mount");
        std::fs::create_dir_all(&mount)?;
        let backing = directory.join("backing");
        let backing = File::options().read(true).write(true).create(true).truncate(true).open(backing)?;
        backing.set_len(size)?;
        let state = Arc::new(State {
            backing,
            size,
            delay_ms: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            events: Mutex::default(),
            under_way: Mutex::default(),
        });
        let session = fuser::spawn_mount(SlowFs(Arc::clone(&state)), &mount, &Config::default())
            .context("mounting a FUSE file system (as root, with /dev/fuse)")?;
        Ok(Self { state, session: Some(session), directory })
    }

    /// The disk's path.
    pub fn path(&self) -> PathBuf {
        self.directory.join("mount").join(NAME)
    }

    /// What lies behind it.
    pub fn backing(&self) -> &File {
        &self.state.backing
    }

    /// From now on reads and writes take so long; those that are under way are not concerned.
    pub fn delay(&self, delay: Duration) {
        self.state.delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// What has happened so far.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.state.events).clone()
    }

    /// Reads and writes under way through an opening.
    pub fn under_way(&self, file: u64) -> u32 {
        lock(&self.state.under_way).get(&file).copied().unwrap_or(0)
    }

    /// Waits until so many are.
    pub fn wait_under_way(&self, file: u64, count: u32) -> anyhow::Result<()> {
        let until = Instant::now() + ARRIVES_WITHIN;
        while self.under_way(file) != count {
            ensure!(Instant::now() < until, "{} instead of {count} requests", self.under_way(file));
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// True if this process may mount one; otherwise the test says so and is over.
pub fn can_mount() -> bool {
    let can = Path::new("/dev/fuse").exists() && nix::unistd::geteuid().is_root();
    if !can {
        eprintln!("SKIPPED: a FUSE file system needs root and /dev/fuse");
    }
    can
}

struct SlowFs(Arc<State>);

impl SlowFs {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_disk = inode == DISK;
        FileAttr {
            ino: inode,
            size: if is_disk { self.0.size } else { 0 },
            blocks: if is_disk { self.0.size / 512 } else { 0 },
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_disk { FileType::RegularFile } else { FileType::Directory },
            perm: if is_disk { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for SlowFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // So that a request under way holds the file and not a thread of the process that made it.
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).map_err(|_| std::io::ErrorKind::Unsupported.into())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&TTL, &self.attributes(DISK), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let file = self.0.opened.fetch_add(1, Ordering::SeqCst) + 1;
        // Past the page cache, which would take a write at once and a read from nowhere.
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(file), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        file: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let delay = self.0.begin(file.0, false, offset);
        let state = Arc::clone(&self.0);
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            let mut bytes = vec![0; size as usize];
            let read = state.backing.read_exact_at(&mut bytes, offset);
            state.end(file.0, false, offset);
            match read {
                Ok(()) => reply.data(&bytes),
                Err(_) => reply.error(Errno::EIO),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        file: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let delay = self.0.begin(file.0, true, offset);
        let (state, data) = (Arc::clone(&self.0), data.to_vec());
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            let written = state.backing.write_all_at(&data, offset);
            state.end(file.0, true, offset);
            match written {
                Ok(()) => reply.written(data.len() as u32),
                Err(_) => reply.error(Errno::EIO),
            }
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }
}
