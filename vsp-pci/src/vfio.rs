//! Functions of the host's, by the kernel's VFIO: by the function's own node and an iommufd where the kernel has them, by a group and a
//! container elsewhere (Debian's kernels).
//!
//! A process either opens them itself, before its compartment closes, or is handed the very same open files by the core, which has
//! kept them for a process that died: the function has not stopped meanwhile, and must not notice. `vfio-ioctls` can do neither the
//! second thing nor some of the first (it drops interrupts all together, gives no error of a reset, and turns them off
//! when it is dropped), so this is a small one of our own; structures and numbers are those of `vfio-bindings`.
//!
//! The two ways differ in how a function is opened and in who translates its addresses; what it is once it is open ([`Function`]) is the same.
//!
//! * `open`: how a function is opened.
//! * `space`: the addresses that it has.
//! * `sys`: the requests to the kernel.

#![deny(unsafe_code)]

mod open;
mod space;
#[allow(unsafe_code, reason = "requests to the kernel are made with pointers")]
mod sys;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX,
};
use vsp::Span;

use crate::backend::{Adopt, Backend, Info, Kind, Region};
pub use open::{OpenError, Opening, open};
use space::Space;

/// A function, open.
#[derive(Debug)]
pub struct Function {
    space: Space,
    device: Arc<OwnedFd>,
    /// Where configuration space begins in the function's file.
    config: u64,
    info: Info,
}

impl Function {
    /// What is open already.
    fn from_open(space: Space, device: Arc<OwnedFd>) -> Result<Function, OpenError> {
        let about = |what| move |error| OpenError::Ask { what, error };
        let device_info = sys::device_info(device.as_fd()).map_err(about("what it is"))?;
        if device_info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(OpenError::NotPci);
        }
        let region = |index| sys::region_info(device.as_fd(), index).map_err(about("its regions"));
        let config = region(VFIO_PCI_CONFIG_REGION_INDEX)?;
        let mut info = Info {
            config_size: if config.size >= 4096 { 4096 } else { 256 },
            is_resettable: device_info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            dma: space.ranges().map_err(about("which addresses it can use"))?,
            ..Info::default()
        };
        for (index, place) in info.regions.iter_mut().enumerate() {
            let found = region(index as u32)?;
            let of_use = found.size > 0 && found.is_readable && found.is_writable;
            *place =
                of_use.then_some(Region { size: found.size, offset: found.offset, mappable: found.mappable });
        }
        let irqs = |index| sys::irq_count(device.as_fd(), index).map_err(about("its interrupts"));
        (info.msi, info.msix) = (irqs(VFIO_PCI_MSI_IRQ_INDEX)?, irqs(VFIO_PCI_MSIX_IRQ_INDEX)?);
        Ok(Function { space, config: config.offset, device, info })
    }

    fn region(&self, bar: usize) -> io::Result<&Region> {
        let region = self.info.regions.get(bar).and_then(Option::as_ref);
        region.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn index(kind: Kind) -> u32 {
    match kind {
        Kind::Msi => VFIO_PCI_MSI_IRQ_INDEX,
        Kind::MsiX => VFIO_PCI_MSIX_IRQ_INDEX,
    }
}

impl Backend for Function {
    fn info(&self) -> &Info {
        &self.info
    }

    fn read_config(&self, at: u16, into: &mut [u8]) -> io::Result<()> {
        sys::read(self.device.as_fd(), self.config + u64::from(at), into)
    }

    fn write_config(&self, at: u16, from: &[u8]) -> io::Result<()> {
        sys::write(self.device.as_fd(), self.config + u64::from(at), from)
    }

    fn read_region(&self, bar: usize, at: u64, into: &mut [u8]) -> io::Result<()> {
        sys::read(self.device.as_fd(), self.region(bar)?.offset + at, into)
    }

    fn write_region(&self, bar: usize, at: u64, from: &[u8]) -> io::Result<()> {
        sys::write(self.device.as_fd(), self.region(bar)?.offset + at, from)
    }

    fn file(&self) -> &Arc<OwnedFd> {
        &self.device
    }

    fn enable(&mut self, kind: Kind, bells: &[Option<BorrowedFd<'_>>]) -> io::Result<()> {
        sys::set_triggers(self.device.as_fd(), index(kind), 0, bells)
    }

    fn attach(&mut self, kind: Kind, vector: u32, bell: Option<BorrowedFd<'_>>) -> io::Result<()> {
        sys::set_triggers(self.device.as_fd(), index(kind), vector, &[bell])
    }

    fn disable(&mut self, kind: Kind) -> io::Result<()> {
        sys::disable(self.device.as_fd(), index(kind))
    }

    fn reset(&mut self) -> io::Result<()> {
        sys::reset(self.device.as_fd())
    }

    fn map_dma(&mut self, address: u64, memory: Span) -> io::Result<()> {
        self.space.map(address, memory)
    }

    fn unmap_dma(&mut self, piece: Option<(u64, u64)>) -> io::Result<()> {
        self.space.unmap(piece)
    }

    fn kept(&self) -> Vec<Arc<OwnedFd>> {
        self.space.kept().into_iter().chain([&self.device]).map(Arc::clone).collect()
    }
}

/// What a process does that is handed open files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Adopter;

impl Adopt for Adopter {
    fn adopt(&self, fds: Vec<OwnedFd>) -> Result<Box<dyn Backend>, String> {
        let mut fds: Vec<_> = fds.into_iter().map(Arc::new).collect();
        // The last one, as it was kept.
        let device = fds.pop().ok_or("a predecessor has kept nothing")?;
        let space = Space::adopt(fds)?;
        let function = Function::from_open(space, device).map_err(|error| error.to_string())?;
        Ok(Box::new(function))
    }
}
