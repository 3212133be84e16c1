//! Memory of ours between the guest's and a disk, where the disk is read and written past the page cache (`O_DIRECT`) and the
//! guest's memory is not aligned as that wants it. Linux guests align nearly all of theirs; firmware and tools do not.
//!
//! There is little of it, so data goes in pieces and whoever finds none waits: a guest that misaligns everything is slow,
//! and takes nothing from others.

use super::{Kind, Memory, Operation, Scratch};

/// Bytes of a piece. Large enough that a misaligned stream still comes near the disk's pace.
const PIECE: usize = 64 * 1024;
/// Pieces at a time: a MiB in all, and enough for a disk to be busy.
const PIECES: usize = 16;

/// Lends pieces of memory.
#[derive(Debug, Default)]
pub(super) struct Bouncer {
    /// What each file wants of memory; files without a word want nothing.
    alignments: Vec<u32>,
    free: Vec<Scratch>,
    lent: usize,
}

impl Bouncer {
    pub fn align(&mut self, file: usize, alignment: u32) {
        if self.alignments.len() <= file {
            self.alignments.resize(file + 1, 1);
        }
        self.alignments[file] = alignment.max(1);
    }

    /// Whether the operation cannot be done with its own memory.
    #[inline]
    pub fn is_needed(&self, operation: &Operation) -> bool {
        let mask = match self.alignments.get(operation.file as usize) {
            None | Some(1) => return false,
            Some(alignment) => *alignment as usize - 1,
        };
        match (&operation.memory, operation.kind) {
            (Memory::Guest(buffer), Kind::Read { .. } | Kind::Write { .. }) => {
                buffer.spans().iter().any(|span| (span.address().addr().get() | span.len()) & mask != 0)
            }
            (Memory::Pattern(_), Kind::Write { .. }) => true,
            _ => false,
        }
    }

    /// Memory for the operation or for its first part, with the data in it if that is to be written; `None` if all is lent.
    pub fn take(&mut self, operation: &Operation) -> Option<Scratch> {
        if self.lent == PIECES {
            return None;
        }
        let mut piece = self.free.pop().unwrap_or_else(|| Scratch::new(PIECE));
        self.lent += 1;
        piece.resize(operation.memory.len().min(PIECE));
        match (&operation.memory, operation.kind) {
            (Memory::Guest(buffer), Kind::Write { .. }) => {
                buffer.read(piece.bytes_mut());
            }
            (Memory::Pattern(pattern), _) => pattern.copy_to(piece.bytes_mut()),
            _ => {}
        }
        Some(piece)
    }

    /// The operation has ended and moved so many bytes, if it went well.
    pub fn give_back(&mut self, piece: Scratch, operation: &Operation, moved: Option<u32>) {
        if let (Memory::Guest(buffer), Kind::Read { .. }, Some(moved)) =
            (&operation.memory, operation.kind, moved)
        {
            let bytes = piece.bytes();
            buffer.write(&bytes[..bytes.len().min(moved as usize)]);
        }
        self.lent -= 1;
        self.free.push(piece);
    }
}
