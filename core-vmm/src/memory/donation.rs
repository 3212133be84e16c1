//! Page donation: guest pages that move into a memfd of their own, so that a device process can
//! be given those pages and not one byte of RAM besides.
//!
//! The guest notices nothing: contents are copied over and the new pages appear at the same
//! guest-physical addresses. Taking back is the reverse and needs nobody's consent: whoever still holds
//! the memfd is left with orphaned pages.

use std::{
    collections::HashSet,
    os::fd::{AsFd, BorrowedFd},
};

use ipc::shm::SharedMemory;
use nix::fcntl::{FallocateFlags, fallocate};

use super::{MemoryError, Ram};
use crate::layout::PAGE;

/// Why pages were not donated.
#[derive(Debug, thiserror::Error)]
pub enum DonationError {
    /// A page is named twice, or belongs to another donation already: the guest is confused or hostile.
    #[error("guest page {0:#x} is named twice or is shared with a device already")]
    Overlap(u64),
    /// Each run of pages costs entries in the process's memory map, of which the kernel allows a limited number.
    #[error("the guest's rings are too scattered: {0} separate runs of pages are shared already")]
    Scattered(usize),
    /// Guest memory refused.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No memfd could be had.
    #[error("cannot make shared pages: {0}")]
    Create(String),
}

/// Runs of pages that may be donated at a time. Each can split the RAM mapping and so cost two mappings; the kernel
/// allows 65,530 (`vm.max_map_count`), and a process that has used them up can allocate nothing. Linux asks
/// for one run a ring, and for up to 4,352 for the buffers of a NIC, whose pages it takes one by one: here is room for four NICs
/// at their worst.
const MAX_RUNS: usize = 20 * 1024;

/// All guest pages that are donated now, so that no page is donated twice.
#[derive(Debug, Default)]
pub struct Donations {
    pages: HashSet<u64>,
    /// Runs that these pages are in.
    runs: usize,
}

/// A set of guest pages that live in a memfd of their own.
#[derive(Debug)]
#[must_use = "a dropped donation would leave guest pages shared; give it back with Donations::take_back"]
pub struct Donation {
    memory: SharedMemory,
    gpas: Vec<u64>,
}

impl Donation {
    /// The memfd with the pages, in the order in which they were named.
    pub fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// Copies bytes out, from byte `at` of the pages on, as the guest has them now.
    pub fn read(&self, ram: &Ram, at: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let (mut at, mut into) = (at, into);
        while !into.is_empty() {
            let within = at % PAGE;
            let here = into.len().min((PAGE - within) as usize);
            let (part, rest) = into.split_at_mut(here);
            let gpa = self.gpas.get((at / PAGE) as usize);
            let gpa = gpa.ok_or(MemoryError::NotRam { gpa: at, len: here as u64 })?;
            ram.read(gpa + within, part)?;
            (at, into) = (at + here as u64, rest);
        }
        Ok(())
    }
}

/// Is told of every run of pages that changes place.
pub trait Follow {
    /// `pages` guest pages from `gpa` on are now backed by `backing` (a file and a byte offset), or by RAM again.
    fn moved(&self, gpa: u64, pages: u64, backing: Option<(BorrowedFd<'_>, u64)>);
}

impl Donations {
    /// Moves the pages at `gpas` (page-aligned guest addresses, in ring order) into a fresh memfd.
    /// On error nothing has changed.
    pub fn donate(
        &mut self,
        ram: &Ram,
        name: &str,
        gpas: Vec<u64>,
        follow: &dyn Follow,
    ) -> Result<Donation, DonationError> {
        self.check(ram, &gpas)?;
        let len = gpas.len() as u64 * PAGE;
        let memory = SharedMemory::create(name, len).map_err(|e| DonationError::Create(e.to_string()))?;
        self.donate_into(ram, memory, gpas, follow)
    }

    /// As [`Self::donate`], into a memfd that exists already and keeps its identity from one
    /// donation to the next (a VP's event flags). The guest's contents win.
    pub fn donate_into(
        &mut self,
        ram: &Ram,
        memory: SharedMemory,
        gpas: Vec<u64>,
        follow: &dyn Follow,
    ) -> Result<Donation, DonationError> {
        self.check(ram, &gpas)?;
        let mut page = [0; PAGE as usize];
        for (i, &gpa) in gpas.iter().enumerate() {
            ram.read(gpa, &mut page)?;
            pwrite_all(&memory, &page, i as u64 * PAGE).map_err(|e| DonationError::Create(e.to_string()))?;
        }
        for (start, run) in runs(&gpas) {
            let source = (memory.as_fd(), start as u64 * PAGE);
            if let Err(e) = ram.lay_over(gpas[start], run as u64, Some(source)) {
                for (undo, run) in runs(&gpas[..start]) {
                    // The same kernel that just mapped these pages maps them back; should it refuse, they
                    // stay shared memory that the guest alone uses.
                    let _ = ram.lay_over(gpas[undo], run as u64, None);
                }
                return Err(e.into());
            }
        }
        for (start, run) in runs(&gpas) {
            follow.moved(gpas[start], run as u64, Some((memory.as_fd(), start as u64 * PAGE)));
        }
        self.pages.extend(&gpas);
        self.runs += runs(&gpas).count();
        Ok(Donation { memory, gpas })
    }

    fn check(&self, ram: &Ram, gpas: &[u64]) -> Result<(), DonationError> {
        let mut seen = HashSet::with_capacity(gpas.len());
        for &gpa in gpas {
            if !ram.is_page(gpa) {
                return Err(MemoryError::NotRam { gpa, len: PAGE }.into());
            }
            if self.pages.contains(&gpa) || !seen.insert(gpa) {
                return Err(DonationError::Overlap(gpa));
            }
        }
        if self.runs + runs(gpas).count() > MAX_RUNS {
            return Err(DonationError::Scattered(self.runs));
        }
        Ok(())
    }

    /// Moves the pages back into RAM with the contents they have now. Returns the memfd.
    pub fn take_back(
        &mut self,
        ram: &Ram,
        donation: Donation,
        follow: &dyn Follow,
    ) -> Result<SharedMemory, MemoryError> {
        let Donation { memory, gpas } = donation;
        let mut page = [0; PAGE as usize];
        let mut result = Ok(());
        for &gpa in &gpas {
            result = result.and(ram.read(gpa, &mut page).and_then(|()| ram.write_under(gpa, &page)));
        }
        for (start, run) in runs(&gpas) {
            result = result.and(ram.lay_over(gpas[start], run as u64, None));
            follow.moved(gpas[start], run as u64, None);
        }
        for gpa in &gpas {
            self.pages.remove(gpa);
        }
        self.runs -= runs(&gpas).count();
        result.map(|()| memory)
    }
}

/// Frees what was in a memfd that nobody is meant to have any more. Whoever has it all the same finds zeroes, and what he then writes there is
/// on his own account: kept, it would be on ours, once more each time that a guest shares pages with a device that lets go of none.
pub fn discard(memory: &SharedMemory) -> std::io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(memory.as_fd(), flags, 0, memory.len() as i64)?)
}

fn pwrite_all(memory: &SharedMemory, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    let n = nix::sys::uio::pwrite(memory.as_fd(), bytes, offset as i64)?;
    if n == bytes.len() { Ok(()) } else { Err(std::io::ErrorKind::WriteZero.into()) }
}

/// Splits `gpas` into runs of pages that follow each other: `(index of the first, pages)`.
fn runs(gpas: &[u64]) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        let first = *gpas.get(start)?;
        at += 1;
        while gpas.get(at).is_some_and(|&g| g == first + (at - start) as u64 * PAGE) {
            at += 1;
        }
        Some((start, at - start))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Follow for Nobody {
        fn moved(&self, _: u64, _: u64, _: Option<(BorrowedFd<'_>, u64)>) {}
    }

    #[test]
    fn contents_follow_both_ways() {
        let ram = Ram::new(1 << 20, false).unwrap();
        let mut donations = Donations::default();
        ram.write(0x3000, b"before").unwrap();
        let gpas = vec![0x3000, 0x4000, 0x9000];
        let donation = donations.donate(&ram, "test", gpas, &Nobody).unwrap();
        let mut seen = [0; 6];
        ram.read(0x3000, &mut seen).unwrap();
        assert_eq!(&seen, b"before");
        ram.write(0x9000, b"during").unwrap();
        let mut inside = [0; 6];
        nix::sys::uio::pread(donation.memory().as_fd(), &mut inside, 0x2000).unwrap();
        assert_eq!(&inside, b"during");

        let memory = donations.take_back(&ram, donation, &Nobody).unwrap();
        ram.read(0x9000, &mut seen).unwrap();
        assert_eq!(&seen, b"during");
        pwrite_all(&memory, b"orphan", 0x2000).unwrap();
        ram.read(0x9000, &mut seen).unwrap();
        assert_eq!(&seen, b"during", "a revoked holder must not reach the guest");
    }

    #[test]
    fn scattered_pages_are_bounded() {
        let ram = Ram::new(384 << 20, false).unwrap();
        let mut donations = Donations::default();
        let every_other = |from: u64| (from..from + 10000).map(|n| n * 2 * PAGE).collect::<Vec<_>>();
        let first = donations.donate(&ram, "t", every_other(0), &Nobody).unwrap();
        let second = donations.donate(&ram, "t", every_other(10000), &Nobody).unwrap();
        let third = donations.donate(&ram, "t", every_other(20000), &Nobody);
        assert!(matches!(third, Err(DonationError::Scattered(20000))));
        donations.take_back(&ram, first, &Nobody).unwrap();
        let third = donations.donate(&ram, "t", every_other(20000), &Nobody).unwrap();
        donations.take_back(&ram, second, &Nobody).unwrap();
        donations.take_back(&ram, third, &Nobody).unwrap();
        assert_eq!((donations.runs, donations.pages.len()), (0, 0));
    }

    #[test]
    fn no_page_twice() {
        let ram = Ram::new(1 << 20, false).unwrap();
        let mut donations = Donations::default();
        let twice = donations.donate(&ram, "t", vec![0x3000, 0x3000], &Nobody);
        assert!(matches!(twice, Err(DonationError::Overlap(0x3000))));
        let first = donations.donate(&ram, "t", vec![0x3000], &Nobody).unwrap();
        let again = donations.donate(&ram, "t", vec![0x2000, 0x3000], &Nobody);
        assert!(matches!(again, Err(DonationError::Overlap(0x3000))));
        let outside = donations.donate(&ram, "t", vec![1 << 20], &Nobody);
        assert!(matches!(outside, Err(DonationError::Memory(_))));
        donations.take_back(&ram, first, &Nobody).unwrap();
        let now = donations.donate(&ram, "t", vec![0x3000], &Nobody).unwrap();
        donations.take_back(&ram, now, &Nobody).unwrap();
    }
}
