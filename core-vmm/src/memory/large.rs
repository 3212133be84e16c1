//! Large pages for memory that the guest uses, without asking the host to change its settings.
//!
//! Transparent huge pages for *shared* memory are off on most hosts, while private memory has
//! them; a VM whose RAM is a memfd would run on 4 KiB pages alone, and pay for each with a fault and in every nested page
//! walk. So a thread of the core watches which 2 MiB blocks have come into use and gathers each into one large page
//! (`MADV_COLLAPSE`), which is what private memory would have had from the first touch. A kernel that cannot
//! leaves the pages as they are.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};

use super::{Ram, mapping::LARGE};

/// Between two passes that found something to do. A booting guest uses memory for the first time all the while.
const BUSY: Duration = Duration::from_millis(1);
/// The longest that a pass is put off when there was nothing to do: an idle VM must not keep its host awake.
const IDLE: Duration = Duration::from_secs(4);
/// A block that could not be gathered is tried so many times. A page that a VP or a device is just using makes
/// it fail, and a guest that unpacks its kernel keeps at it for a while.
const ATTEMPTS: u8 = 50;
/// A guest that uses block after block, upwards, is unpacking something: so many blocks ahead of it are made large while they
/// are empty, which is cheaper than while it writes to them. The one after those is left, to see that it goes on.
const AHEAD: usize = 8;
/// Only in a guest's first moments; later, memory that is used in a row is no promise of more.
const AHEAD_FOR: Duration = Duration::from_secs(15);
const STACK: usize = 64 * 1024;

/// Whether the host gives private memory large pages without being asked; we do as it does.
pub fn host_prefers() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
        .is_ok_and(|s| s.contains("[always]"))
}

/// Makes large pages of the blocks that `[gpa, gpa + len)` lies in, before anything is there: memory that is about to be
/// filled is cheaper to fill that way. A hint; blocks that reach beyond RAM stay as they are.
pub fn prepare(ram: &Ram, gpa: u64, len: u64) {
    for (stretch, area) in ram.stretches.iter().zip(&*ram.areas) {
        let (start, end) = (gpa.max(stretch.gpa), gpa.saturating_add(len).min(stretch.gpa + stretch.len));
        let blocks = start.saturating_sub(stretch.gpa) as usize / LARGE
            ..(end.saturating_sub(stretch.gpa) as usize).div_ceil(LARGE);
        for block in blocks.filter(|_| start < end) {
            let within = block * LARGE;
            // A block without any page is left alone by the kernel.
            if ram.read(stretch.gpa + within as u64, &mut [0]).is_ok() {
                // A kernel that cannot is no error.
                let _ = area.collapse(within);
            }
        }
    }
}

/// The thread. Dropping it stops it.
#[derive(Debug)]
pub struct Gatherer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Gatherer {
    /// Starts to watch `ram`. With `all` every block is made large first, in use or not: a device of the host's that is passed through pins all of it before
    /// long, and what is pinned cannot be gathered any more.
    pub fn start(ram: &Ram, all: bool) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut blocks = Blocks::new(ram);
        let stopped = Arc::clone(&stop);
        let body = move || {
            let begin = Instant::now();
            if all {
                blocks.fill(&stopped);
            }
            let mut pause = BUSY;
            while !stopped.load(Ordering::Relaxed) {
                pause = if blocks.pass(&stopped, begin.elapsed() < AHEAD_FOR) > 0 {
                    BUSY
                } else {
                    (pause * 2).min(IDLE)
                };
                std::thread::park_timeout(pause);
            }
        };
        let thread = std::thread::Builder::new().name("large-pages".into()).stack_size(STACK).spawn(body)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Gatherer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It has no result, and its panic has been logged.
            let _ = thread.join();
        }
    }
}

/// The 2 MiB blocks of all stretches, with what became of each.
#[derive(Debug)]
struct Blocks {
    ram: Ram,
    /// For each stretch: attempts that are left for each block.
    left: Vec<Vec<u8>>,
}

impl Blocks {
    fn new(ram: &Ram) -> Self {
        let left = ram.stretches.iter().map(|s| vec![ATTEMPTS; (s.len as usize) / LARGE]).collect();
        Self { ram: ram.clone(), left }
    }

    /// Makes every block large, whether or not it is in use.
    fn fill(&mut self, stop: &AtomicBool) {
        for ((stretch, area), left) in self.ram.stretches.iter().zip(&*self.ram.areas).zip(&mut self.left) {
            for (block, left) in left.iter_mut().enumerate().take_while(|_| !stop.load(Ordering::Relaxed)) {
                let gpa = stretch.gpa + (block * LARGE) as u64;
                if self.ram.read(gpa, &mut [0]).is_ok() && area.collapse(block * LARGE).is_ok() {
                    *left = 0;
                }
            }
        }
    }

    /// Gathers every block that has come into use; returns how many.
    fn pass(&mut self, stop: &AtomicBool, look_ahead: bool) -> usize {
        let mut gathered = 0;
        let memfd: &File = &self.ram.memfd;
        for ((stretch, area), left) in self.ram.stretches.iter().zip(&*self.ram.areas).zip(&mut self.left) {
            let mut block = 0;
            while block < left.len() && !stop.load(Ordering::Relaxed) {
                if left[block] == 0 {
                    block += 1;
                    continue;
                }
                let from = stretch.offset + (block * LARGE) as u64;
                let Some(used) = next_data(memfd.as_fd(), from) else { break };
                let at = (used.saturating_sub(stretch.offset) as usize) / LARGE;
                if at > block {
                    // Nothing in between is in use yet.
                    block = at;
                    continue;
                }
                if look_ahead && left[block] == ATTEMPTS && block > 0 && left[block - 1] < ATTEMPTS {
                    for (next, left) in left.iter_mut().enumerate().skip(block + 1).take(AHEAD) {
                        let gpa = stretch.gpa + (next * LARGE) as u64;
                        if *left == ATTEMPTS && self.ram.read(gpa, &mut [0]).is_ok() {
                            // No longer untouched, so that the next pass does not run after itself.
                            *left -= 1;
                            if area.collapse(next * LARGE).is_ok() {
                                *left = 0;
                                gathered += 1;
                            }
                        }
                    }
                }
                left[block] -= 1;
                if area.collapse(block * LARGE).is_ok() {
                    left[block] = 0;
                    gathered += 1;
                }
                block += 1;
            }
        }
        gathered
    }
}

/// Offset of the first page in use at or after `from`.
fn next_data(memfd: BorrowedFd<'_>, from: u64) -> Option<u64> {
    match lseek(memfd, from as i64, Whence::SeekData) {
        Ok(at) => u64::try_from(at).ok(),
        // ENXIO: none from here on.
        Err(Errno::ENXIO) => None,
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_in_use_are_touched_and_contents_stay() {
        let ram = Ram::new(16 << 20, false).unwrap();
        let at = 5 * LARGE as u64 + 0x3000;
        ram.write(at, b"guest data").unwrap();
        let mut blocks = Blocks::new(&ram);
        let gathered = blocks.pass(&AtomicBool::new(false), true);
        // An old kernel gathers none; a new one exactly the one.
        assert!(gathered <= 1, "{gathered} blocks");
        let mut seen = [0; 10];
        ram.read(at, &mut seen).unwrap();
        assert_eq!(&seen, b"guest data");
        let first = next_data(ram.memfd(), 0).unwrap();
        assert!(first >= 5 * LARGE as u64, "untouched memory came into use");
    }

    #[test]
    fn looks_ahead_of_a_guest_that_goes_upwards_and_no_further() {
        let ram = Ram::new(64 << 20, false).unwrap();
        let mut blocks = Blocks::new(&ram);
        let never = AtomicBool::new(false);
        for block in 3..5 {
            ram.write(block * LARGE as u64, b"unpacked").unwrap();
        }
        blocks.pass(&never, true);
        let end = 5 + AHEAD as u64;
        let in_use = |block: u64| next_data(ram.memfd(), block * LARGE as u64) == Some(block * LARGE as u64);
        assert!((3..end).all(in_use));
        for _ in 0..3 {
            blocks.pass(&never, true);
        }
        assert!(!(end..32).any(in_use), "it must not run after itself");
        ram.write(end * LARGE as u64, b"more").unwrap();
        blocks.pass(&never, true);
        assert!(in_use(end + AHEAD as u64) && !in_use(end + AHEAD as u64 + 1));
    }

    #[test]
    fn all_of_it_is_in_use_before_it_is_pinned() {
        let ram = Ram::new(16 << 20, false).unwrap();
        let at = 7 * LARGE as u64 + 5;
        ram.write(at, b"guest data").unwrap();
        Blocks::new(&ram).fill(&AtomicBool::new(true));
        assert_eq!(next_data(ram.memfd(), 0), Some(7 * LARGE as u64), "it was to stop");
        Blocks::new(&ram).fill(&AtomicBool::new(false));
        assert!((0..8).all(|block| next_data(ram.memfd(), block << 21) == Some(block << 21)));
        let mut seen = [0; 10];
        ram.read(at, &mut seen).unwrap();
        assert_eq!(&seen, b"guest data");
    }

    #[test]
    fn prepares_what_lies_in_ram() {
        let ram = Ram::new(16 << 20, false).unwrap();
        prepare(&ram, 5 << 20, 3 << 20);
        let first = next_data(ram.memfd(), 0).unwrap();
        assert_eq!(first, 4 << 20);
        prepare(&ram, 15 << 20, u64::MAX);
        prepare(&ram, 1 << 40, 1 << 20);
        let mut seen = [1; 64];
        ram.read(5 << 20, &mut seen).unwrap();
        assert_eq!(seen, [0; 64]);
    }

    #[test]
    fn stops_when_dropped() {
        let ram = Ram::new(16 << 20, false).unwrap();
        let gatherer = Gatherer::start(&ram, true).unwrap();
        let begin = Instant::now();
        drop(gatherer);
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}
