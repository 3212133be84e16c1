//! Memory that a server may look into: the driver's buffers.
#![allow(unsafe_code)]

use std::fs::File;

use memmap2::MmapRaw;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Shared memory in equal pieces.
#[derive(Debug)]
pub struct Memory {
    file: File,
    map: MmapRaw,
    piece: usize,
}

impl Memory {
    /// `pieces` pieces of `piece` bytes.
    pub fn new(pieces: usize, piece: usize) -> std::io::Result<Self> {
        let file = File::from(memfd_create("buffers", MFdFlags::MFD_CLOEXEC)?);
        file.set_len((pieces * piece) as u64)?;
        let map = MmapRaw::map_raw(&file)?;
        Ok(Self { file, map, piece })
    }

    /// The file behind it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it begins.
    pub fn address(&self) -> usize {
        self.map.as_mut_ptr() as usize
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Where piece `n` begins.
    pub fn piece(&self, n: usize) -> *mut u8 {
        assert!((n + 1) * self.piece <= self.map.len(), "no such piece");
        self.map.as_mut_ptr().wrapping_add(n * self.piece)
    }

    /// Copies the beginning of piece `n` out. Nothing may be under way into it.
    pub fn copy_out(&self, n: usize, into: &mut [u8]) {
        assert!(into.len() <= self.piece, "more than a piece");
        // SAFETY: the piece lies in the mapping (`piece` checks that) and is long enough; the server is done with it, and
        // one that writes on all the same only spoils a figure.
        unsafe { std::ptr::copy_nonoverlapping(self.piece(n), into.as_mut_ptr(), into.len()) }
    }
}
