//! A function without hardware, for tests of what is pure.

use std::cell::RefCell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use vsp::Span;

use crate::backend::{Backend, Info, Kind, Region};
use crate::mock::Model;

/// What was asked of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Enable(Kind, Vec<bool>),
    Attach(Kind, u32, bool),
    Disable(Kind),
    Reset,
}

/// Configuration space and nothing else.
#[derive(Debug)]
pub struct Bare {
    info: Info,
    space: RefCell<Vec<u8>>,
    pub asked: Vec<Asked>,
    file: Arc<OwnedFd>,
    /// Enabling fails.
    pub is_full: bool,
}

impl Bare {
    pub fn new(model: Model) -> Bare {
        let mut at = 4096;
        let regions = model.bars.map(|bar| {
            bar.map(|bar| {
                let mappable = if bar.is_mappable { vec![(0, bar.size)] } else { Vec::new() };
                let region = Region { size: bar.size, offset: at, mappable };
                at += bar.size.next_multiple_of(4096);
                region
            })
        });
        let info = Info {
            config_size: 4096,
            regions,
            msi: model.msi,
            msix: model.msix.map_or(0, |(vectors, ..)| vectors),
            is_resettable: model.is_resettable,
            dma: Vec::new(),
        };
        let file = Arc::new(std::fs::File::open("/dev/null").unwrap().into());
        Bare { info, space: RefCell::new(model.config()), asked: Vec::new(), file, is_full: false }
    }

    pub fn set(&self, at: usize, bytes: &[u8]) {
        self.space.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn config(&self, at: u16, len: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes[..len].copy_from_slice(&self.space.borrow()[at.into()..usize::from(at) + len]);
        u32::from_le_bytes(bytes)
    }

    pub fn image(&self) -> Vec<u8> {
        self.space.borrow().clone()
    }
}

impl Backend for Bare {
    fn info(&self) -> &Info {
        &self.info
    }

    fn read_config(&self, at: u16, into: &mut [u8]) -> io::Result<()> {
        assert!(matches!(into.len(), 1 | 2 | 4) && usize::from(at).is_multiple_of(into.len()));
        into.copy_from_slice(&self.space.borrow()[at.into()..usize::from(at) + into.len()]);
        Ok(())
    }

    fn write_config(&self, at: u16, from: &[u8]) -> io::Result<()> {
        assert!(matches!(from.len(), 1 | 2 | 4) && usize::from(at).is_multiple_of(from.len()));
        self.set(at.into(), from);
        Ok(())
    }

    fn read_region(&self, _: usize, _: u64, into: &mut [u8]) -> io::Result<()> {
        into.fill(0x5a);
        Ok(())
    }

    fn write_region(&self, _: usize, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    fn enable(&mut self, kind: Kind, bells: &[Option<BorrowedFd<'_>>]) -> io::Result<()> {
        self.asked.push(Asked::Enable(kind, bells.iter().map(Option::is_some).collect()));
        if self.is_full { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(()) }
    }

    fn attach(&mut self, kind: Kind, vector: u32, bell: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.asked.push(Asked::Attach(kind, vector, bell.is_some()));
        Ok(())
    }

    fn disable(&mut self, kind: Kind) -> io::Result<()> {
        self.asked.push(Asked::Disable(kind));
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.asked.push(Asked::Reset);
        Ok(())
    }

    fn map_dma(&mut self, _: u64, _: Span) -> io::Result<()> {
        Ok(())
    }

    fn unmap_dma(&mut self, _: Option<(u64, u64)>) -> io::Result<()> {
        Ok(())
    }

    fn kept(&self) -> Vec<Arc<OwnedFd>> {
        Vec::new()
    }
}
