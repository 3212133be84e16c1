//! Memory of ours between the guest's and a disk, where the disk is read and written past the page cache (`O_DIRECT`) and the
//! guest's memory is not aligned as that wants it. Linux guests align nearly all of theirs; firmware and tools do not.
//!
//! There is little of it, so data goes in pieces and whoever finds none waits: a guest that misaligns everything is slow,
//! and takes nothing from others.

use vsp::Span;

use super::{Kind, Memory, Operation, Scratch};
use crate::direct::Direct;

/// Bytes of a piece. Large enough that a misaligned stream still comes near the disk's pace.
const PIECE: usize = 64 * 1024;
/// Pieces at a time: a MiB in all, and enough for a disk to be busy.
const PIECES: usize = 16;

/// Lends pieces of memory.
#[derive(Debug, Default)]
pub(super) struct Bouncer {
    /// What each file wants of memory; files without a word want nothing.
    wants: Vec<Option<Direct>>,
    free: Vec<Scratch>,
    lent: usize,
}

impl Bouncer {
    pub fn align(&mut self, file: usize, direct: Option<Direct>) {
        if self.wants.len() <= file {
            self.wants.resize(file + 1, None);
        }
        self.wants[file] = direct;
    }

    /// Whether the operation cannot be done with its own memory.
    #[inline]
    pub fn is_needed(&self, operation: &Operation) -> bool {
        let Some(Some(direct)) = self.wants.get(operation.file as usize) else { return false };
        // The kernel asks where each piece begins, and whether it has whole blocks (`bdev_iter_is_aligned`).
        let (begin, blocks) = (direct.memory as usize - 1, direct.offset as usize - 1);
        match (&operation.memory, operation.kind) {
            (Memory::Guest(buffer), Kind::Read { .. } | Kind::Write { .. }) => {
                let fits = |span: &Span| span.address().addr().get() & begin == 0 && span.len() & blocks == 0;
                !buffer.spans().iter().all(fits)
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
