//! The hardware of a mock: a thread of the test's.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vsp::ipc::shm::{Mapping, SharedMemory, ShmError};
use vsp::ipc::socket::{Listener, Peer, SocketError};

use super::{Answer, CONFIG, Question, Shape, Wish};
use crate::wire::BARS;

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Bytes of registers.
    pub size: u64,
    /// The low bits of the register: what kind it is.
    pub bits: u32,
    /// Its pages can be mapped.
    pub is_mappable: bool,
}

/// What kind of function it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Vendor and device.
    pub id: (u16, u16),
    /// Registers.
    pub bars: [Option<Bar>; BARS],
    /// Messages by MSI: a power of two, or 0.
    pub msi: u32,
    /// Messages by MSI-X, or 0: which register their table is behind, and from which byte on; the bits that wait lie a page further.
    pub msix: Option<(u32, u8, u32)>,
    /// It can be reset.
    pub is_resettable: bool,
}

impl Model {
    /// Like QEMU's e1000e: 128 KiB of registers, as many of flash memory, ports, and a table of messages in registers of their own.
    pub fn nic() -> Model {
        let bar = |size, bits| Some(Bar { size, bits, is_mappable: true });
        Model {
            id: (0x8086, 0x10d3),
            bars: [bar(128 << 10, 0), bar(128 << 10, 0), bar(32, 1), bar(16 << 10, 0), None, None],
            msi: 1,
            msix: Some((5, 3, 0)),
            is_resettable: true,
        }
    }

    /// Like QEMU's NVMe drive: 16 KiB behind a wide register, with the table of 65 messages among them.
    pub fn drive() -> Model {
        let bar = Bar { size: 16 << 10, bits: 4, is_mappable: true };
        Model {
            id: (0x1b36, 0x0010),
            bars: [Some(bar), None, None, None, None, None],
            msi: 0,
            msix: Some((65, 0, 0x2000)),
            is_resettable: true,
        }
    }

    /// Some messages in a row, and registers that are smaller than a page.
    pub fn small() -> Model {
        let bar = Bar { size: 256, bits: 0, is_mappable: true };
        Model {
            id: (0x1234, 0x11e8),
            bars: [Some(bar), None, None, None, None, None],
            msi: 8,
            msix: None,
            is_resettable: true,
        }
    }

    /// Configuration space after a reset.
    pub fn config(&self) -> Vec<u8> {
        let mut space = vec![0; CONFIG as usize];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.id.0.to_le_bytes());
        put(2, &self.id.1.to_le_bytes());
        put(6, &[0x10, 0]);
        put(8, &[1, 0, 0, 2]);
        put(0x2c, &[0x86, 0x80, 0, 0]);
        for (index, bar) in self.bars.iter().enumerate() {
            if let Some(bar) = bar {
                put(0x10 + 4 * index, &(0xfe00_0000 | bar.bits).to_le_bytes());
            }
        }
        put(0x3c, &[11, 1]);
        put(0x34, &[0x40]);
        // Power management, an unknown capability that nobody is shown, PCI Express, and the two ways to interrupt.
        put(0x40, &[1, 0x50, 0x23, 0xc8, 0, 0, 0, 0]);
        put(0x50, &[0x13, 0x60, 6, 3]);
        put(0x60, &[0x10, 0xa0, 2, 0]);
        put(0x68, &[0x10, 0x28, 0, 0]);
        put(0xa0, &[5, if self.msix.is_some() { 0xc0 } else { 0 }]);
        put(0xa2, &(0x180 | (self.msi.max(1).ilog2() as u16) << 1).to_le_bytes());
        if let Some((vectors, bar, at)) = self.msix {
            put(0xc0, &[0x11, 0]);
            put(0xc2, &((vectors - 1) as u16).to_le_bytes());
            put(0xc4, &(at | u32::from(bar)).to_le_bytes());
            put(0xc8, &((at + 0x1000) | u32::from(bar)).to_le_bytes());
        }
        // Error reporting, which is the host's, and a serial number.
        put(0x100, &[1, 0, 2, 0x14]);
        put(0x140, &[3, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        space
    }

    fn shape(&self) -> Shape {
        let mut at = CONFIG;
        let bars = self.bars.map(|bar| {
            bar.map(|bar| {
                let here = at;
                at += bar.size.next_multiple_of(4096);
                (here, bar.size, bar.is_mappable)
            })
        });
        let (msi, msix) = (self.msi, self.msix.map_or(0, |(vectors, _, _)| vectors));
        Shape { bars, msi, msix, is_resettable: self.is_resettable }
    }

    fn bytes(&self) -> u64 {
        CONFIG + self.bars.iter().flatten().map(|bar| bar.size.next_multiple_of(4096)).sum::<u64>()
    }
}

#[derive(Debug, Default)]
struct Circuits {
    is_open: bool,
    /// By vector: the eventfd that it makes count. None: messages are off.
    messages: Option<(bool, Vec<Option<OwnedFd>>)>,
    dma: Vec<(u64, u64)>,
    resets: u64,
    /// How often it still refuses to be reset, and how often it has.
    refusals: (u32, u32),
    /// How often a message was attached.
    attachments: u64,
}

/// It.
#[derive(Debug)]
pub struct Hardware {
    path: PathBuf,
    model: Model,
    memory: Mapping,
    circuits: Arc<Mutex<Circuits>>,
    /// Nobody opens it any more.
    is_over: Arc<AtomicBool>,
}

fn lock(circuits: &Mutex<Circuits>) -> MutexGuard<'_, Circuits> {
    circuits.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hardware {
    /// Hardware that is opened by this path.
    pub fn start(path: &Path, model: Model) -> Result<Hardware, SocketError> {
        let memory = SharedMemory::create("mock-function", model.bytes()).map_err(shm)?;
        let mapping = || Mapping::new(&memory, 0, memory.len()).map_err(shm);
        let hardware = Hardware {
            path: path.to_owned(),
            model: model.clone(),
            memory: mapping()?,
            circuits: Arc::default(),
            is_over: Arc::default(),
        };
        hardware.memory.write(0, &model.config());
        let listener = Listener::bind(path)?;
        let (own, circuits) = (mapping()?, Arc::clone(&hardware.circuits));
        let memory = OwnedFd::from(memory);
        let is_over = Arc::clone(&hardware.is_over);
        std::thread::spawn(move || {
            let own = Arc::new(own);
            while !is_over.load(Ordering::Relaxed) {
                let Ok(peer) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                let (Ok(memory), Ok(())) = (memory.try_clone(), peer.set_nonblocking(false)) else { return };
                let (own, circuits, model) = (Arc::clone(&own), Arc::clone(&circuits), model.clone());
                std::thread::spawn(move || {
                    Session { peer, memory, own, circuits, model, is_open: false }.run()
                });
            }
        });
        Ok(hardware)
    }

    /// Where it is opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Somebody has it.
    pub fn is_open(&self) -> bool {
        lock(&self.circuits).is_open
    }

    /// How often it was reset, by itself included.
    pub fn resets(&self) -> u64 {
        lock(&self.circuits).resets
    }

    /// It refuses to be reset so many times from now on, as the kernel does while somebody else has the device's lock.
    pub fn refuse_resets(&self, times: u32) {
        lock(&self.circuits).refusals = (times, 0);
    }

    /// How often it has refused since.
    pub fn refused_resets(&self) -> u32 {
        lock(&self.circuits).refusals.1
    }

    /// How often an eventfd was attached to a message.
    pub fn attachments(&self) -> u64 {
        lock(&self.circuits).attachments
    }

    /// What it may reach.
    pub fn dma(&self) -> Vec<(u64, u64)> {
        lock(&self.circuits).dma.clone()
    }

    /// Its command register.
    pub fn command(&self) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(4, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Configuration space, as it is.
    pub fn config(&self, at: u16, into: &mut [u8]) {
        self.memory.read(at.into(), into);
    }

    /// How messages are on: by a table, and how many.
    pub fn messages(&self) -> Option<(bool, usize)> {
        lock(&self.circuits).messages.as_ref().map(|(msix, vectors)| (*msix, vectors.len()))
    }

    /// It interrupts; false: that does not reach anybody.
    pub fn interrupt(&self, vector: usize) -> bool {
        let circuits = lock(&self.circuits);
        let bell = circuits.messages.as_ref().and_then(|(_, vectors)| vectors.get(vector)?.as_ref());
        bell.is_some_and(|bell| nix::unistd::write(bell, &1u64.to_ne_bytes()).is_ok())
    }

    /// Reads its registers.
    pub fn read(&self, bar: usize, at: u64, into: &mut [u8]) {
        if let Some((offset, ..)) = self.model.shape().bars[bar] {
            self.memory.read((offset + at) as usize, into);
        }
    }

    /// Changes its registers.
    pub fn write(&self, bar: usize, at: u64, from: &[u8]) {
        if let Some((offset, ..)) = self.model.shape().bars[bar] {
            self.memory.write((offset + at) as usize, from);
        }
    }

    /// Waits until nobody has it.
    pub fn wait_closed(&self, patience: Duration) -> bool {
        let start = Instant::now();
        while self.is_open() {
            if start.elapsed() > patience {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = std::fs::remove_file(&self.path);
    }
}

fn shm(error: ShmError) -> SocketError {
    SocketError::from(std::io::Error::other(error))
}

/// One open file.
struct Session {
    peer: Peer,
    memory: OwnedFd,
    own: Arc<Mapping>,
    circuits: Arc<Mutex<Circuits>>,
    model: Model,
    is_open: bool,
}

impl Session {
    fn run(mut self) {
        while let Ok((Question { number, wish }, fds)) = self.peer.recv::<Question>() {
            let is_opening = matches!(wish, Wish::Open);
            let result = self.act(wish, fds);
            let memory = [self.memory.as_fd()];
            let with = if is_opening && result.is_ok() { &memory[..] } else { &[] };
            if self.peer.send(&Answer { number, result }, with).is_err() {
                break;
            }
        }
        // The last copy of the descriptor is closed: as the kernel does it.
        if self.is_open {
            self.reset();
            let mut circuits = lock(&self.circuits);
            (circuits.is_open, circuits.messages) = (false, None);
            circuits.dma.clear();
        }
    }

    fn act(&mut self, wish: Wish, mut fds: Vec<OwnedFd>) -> Result<Option<Shape>, i32> {
        let mut circuits = lock(&self.circuits);
        match wish {
            Wish::Open if circuits.is_open => return Err(libc::EBUSY),
            Wish::Open => {
                (circuits.is_open, self.is_open) = (true, true);
                return Ok(Some(self.model.shape()));
            }
            Wish::Describe => return Ok(Some(self.model.shape())),
            Wish::Enable { msix, count } => {
                // As in kernels before 6.5: what is on stays as it is.
                let mut vectors = Vec::new();
                vectors.resize_with(count as usize, || None);
                match &circuits.messages {
                    Some((is, there)) if *is == msix && there.len() == vectors.len() => {}
                    Some(_) => return Err(libc::EINVAL),
                    None => circuits.messages = Some((msix, vectors)),
                }
            }
            Wish::Attach { msix, vector } => {
                circuits.attachments += 1;
                let vectors =
                    circuits.messages.as_mut().filter(|(is, _)| *is == msix).map(|(_, vectors)| vectors);
                let place =
                    vectors.and_then(|vectors| vectors.get_mut(vector as usize)).ok_or(libc::EINVAL)?;
                *place = fds.pop();
            }
            Wish::Disable { msix } => {
                if circuits.messages.take_if(|(is, _)| *is == msix).is_none() {
                    return Err(libc::EINVAL);
                }
            }
            Wish::Reset => {
                if let Some(left) = circuits.refusals.0.checked_sub(1) {
                    circuits.refusals = (left, circuits.refusals.1 + 1);
                    return Err(libc::EAGAIN);
                }
                drop(circuits);
                self.reset();
            }
            Wish::UnmapDma { piece: None } => circuits.dma.clear(),
            Wish::UnmapDma { piece: Some(piece) } => circuits.dma.retain(|mapped| *mapped != piece),
            Wish::MapDma { address, bytes } => {
                // As the kernel has it: what is mapped is mapped.
                if circuits.dma.iter().any(|(at, len)| address < at + len && *at < address + bytes) {
                    return Err(libc::EEXIST);
                }
                circuits.dma.push((address, bytes));
            }
        }
        Ok(None)
    }

    fn reset(&self) {
        self.own.write(0, &self.model.config());
        let zeroes = [0; 4096];
        (CONFIG as usize..self.own.len()).step_by(4096).for_each(|at| self.own.write(at, &zeroes));
        lock(&self.circuits).resets += 1;
    }
}
