//! A function that is none: its configuration space and its registers are a shared memory, and what happens in it is a test's doing
//! ([`Hardware`]). A process opens it as it opens VFIO's files, and what it holds then behaves as they do: when the last copy of the
//! descriptor is closed the hardware is reset and free for the next one, and not before.
//!
//! For tests only; nothing that is built to be used has it.

mod hardware;

use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::socket::{ControlMessage, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use vsp::Span;
use vsp::ipc::socket::Peer;

use crate::backend::{Adopt, Backend, Info, Kind, Region};
use crate::wire::BARS;
pub use hardware::{Bar, Hardware, Model};

/// Configuration space lies at the beginning of the memory, registers behind it.
pub(crate) const CONFIG: u64 = 4096;
/// Bytes of an answer.
const LONGEST: usize = 4096;

/// What a process wants of the hardware.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Wish {
    Open,
    /// What it is like, for a process that has been handed it.
    Describe,
    Enable {
        msix: bool,
        count: u32,
    },
    Attach {
        msix: bool,
        vector: u32,
    },
    Disable {
        msix: bool,
    },
    Reset,
    UnmapDma {
        piece: Option<(u64, u64)>,
    },
    MapDma {
        address: u64,
        bytes: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Question {
    number: u64,
    wish: Wish,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    number: u64,
    result: Result<Option<Shape>, i32>,
}

/// What a function is like, on the socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Shape {
    bars: [Option<(u64, u64, bool)>; BARS],
    msi: u32,
    msix: u32,
    is_resettable: bool,
}

impl Shape {
    fn info(&self) -> Info {
        let region = |(offset, size, mappable): (u64, u64, bool)| Region {
            size,
            offset,
            mappable: if mappable { vec![(0, size)] } else { Vec::new() },
        };
        Info {
            config_size: 4096,
            regions: self.bars.map(|bar| bar.map(region)),
            msi: self.msi,
            msix: self.msix,
            is_resettable: self.is_resettable,
            dma: Vec::new(),
        }
    }
}

/// The process's end of it.
#[derive(Debug)]
pub struct Mock {
    socket: Arc<OwnedFd>,
    memory: Arc<OwnedFd>,
    info: Info,
    asked: Cell<u64>,
}

/// Opens it; `None`: somebody has it.
pub fn open(path: &Path) -> io::Result<Option<Box<dyn Backend>>> {
    let peer = Peer::connect(path).map_err(io::Error::other)?;
    let number = first_number();
    peer.send(&Question { number, wish: Wish::Open }, &[]).map_err(io::Error::other)?;
    let (answer, mut fds) = peer.recv::<Answer>().map_err(io::Error::other)?;
    match answer.result {
        Ok(Some(shape)) => {
            let memory = fds.pop().ok_or_else(|| io::Error::other("the hardware has no memory"))?;
            Ok(Some(Box::new(Mock::new(peer.into(), memory, &shape))))
        }
        Ok(None) => Err(io::Error::other("the hardware does not say what it is")),
        Err(libc::EBUSY) => Ok(None),
        Err(error) => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Numbers of questions that no process before this one has used.
fn first_number() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64)
}

/// Asks, with no other system calls than a compartment allows.
fn ask(socket: BorrowedFd<'_>, number: u64, wish: Wish, fds: &[BorrowedFd<'_>]) -> io::Result<Option<Shape>> {
    let bytes = serde_json::to_vec(&Question { number, wish })?;
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let with = if numbers.is_empty() { &[][..] } else { &rights[..] };
    let parts = [IoSlice::new(&bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &parts, with, MsgFlags::MSG_NOSIGNAL, None)?;
    let mut buffer = [0; LONGEST];
    loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let len = recvmsg::<()>(socket.as_raw_fd(), &mut parts, None, MsgFlags::empty())?.bytes;
        let answer: Answer = serde_json::from_slice(&buffer[..len])?;
        // Answers to somebody who has died meanwhile lie there too.
        if answer.number == number {
            return answer.result.map_err(io::Error::from_raw_os_error);
        }
    }
}

impl Mock {
    fn new(socket: OwnedFd, memory: OwnedFd, shape: &Shape) -> Mock {
        let (socket, memory) = (Arc::new(socket), Arc::new(memory));
        Mock { socket, memory, info: shape.info(), asked: Cell::new(first_number()) }
    }

    fn ask(&self, wish: Wish, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.asked.set(self.asked.get() + 1);
        ask(self.socket.as_fd(), self.asked.get(), wish, fds).map(drop)
    }

    fn place(&self, bar: usize, at: u64) -> io::Result<i64> {
        let region = self.info.regions.get(bar).and_then(Option::as_ref);
        region.map(|region| (region.offset + at) as i64).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn read(&self, at: i64, into: &mut [u8]) -> io::Result<()> {
        nix::sys::uio::pread(&*self.memory, into, at).map(drop).map_err(io::Error::from)
    }

    fn write(&self, at: i64, from: &[u8]) -> io::Result<()> {
        nix::sys::uio::pwrite(&*self.memory, from, at).map(drop).map_err(io::Error::from)
    }
}

impl Backend for Mock {
    fn info(&self) -> &Info {
        &self.info
    }

    fn read_config(&self, at: u16, into: &mut [u8]) -> io::Result<()> {
        self.read(at.into(), into)
    }

    fn write_config(&self, at: u16, from: &[u8]) -> io::Result<()> {
        self.write(at.into(), from)
    }

    fn read_region(&self, bar: usize, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.read(self.place(bar, at)?, into)
    }

    fn write_region(&self, bar: usize, at: u64, from: &[u8]) -> io::Result<()> {
        self.write(self.place(bar, at)?, from)
    }

    fn file(&self) -> &Arc<OwnedFd> {
        &self.memory
    }

    fn enable(&mut self, kind: Kind, bells: &[Option<BorrowedFd<'_>>]) -> io::Result<()> {
        let msix = kind == Kind::MsiX;
        self.ask(Wish::Enable { msix, count: bells.len() as u32 }, &[])?;
        for (vector, bell) in (0..).zip(bells) {
            if bell.is_some() {
                self.attach(kind, vector, *bell)?;
            }
        }
        Ok(())
    }

    fn attach(&mut self, kind: Kind, vector: u32, bell: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bells: Vec<_> = bell.into_iter().collect();
        self.ask(Wish::Attach { msix: kind == Kind::MsiX, vector }, &bells)
    }

    fn disable(&mut self, kind: Kind) -> io::Result<()> {
        self.ask(Wish::Disable { msix: kind == Kind::MsiX }, &[])
    }

    fn reset(&mut self) -> io::Result<()> {
        self.ask(Wish::Reset, &[])
    }

    fn map_dma(&mut self, address: u64, memory: Span) -> io::Result<()> {
        self.ask(Wish::MapDma { address, bytes: memory.len() as u64 }, &[])
    }

    fn unmap_dma(&mut self, piece: Option<(u64, u64)>) -> io::Result<()> {
        self.ask(Wish::UnmapDma { piece }, &[])
    }

    fn kept(&self) -> Vec<Arc<OwnedFd>> {
        vec![Arc::clone(&self.socket), Arc::clone(&self.memory)]
    }
}

/// Adopts it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Adopter;

impl Adopt for Adopter {
    fn adopt(&self, fds: Vec<OwnedFd>) -> Result<Box<dyn Backend>, String> {
        let [socket, memory]: [OwnedFd; 2] =
            fds.try_into().map_err(|_| "two descriptors are kept of a mock")?;
        let shape =
            ask(socket.as_fd(), first_number(), Wish::Describe, &[]).map_err(|error| error.to_string())?;
        let shape = shape.ok_or("the hardware does not say what it is")?;
        Ok(Box::new(Mock::new(socket, memory, &shape)))
    }
}
