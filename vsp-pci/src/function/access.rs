//! What processors do in the places that are trapped: the configuration window, and pages of registers that hold the function's table of
//! messages.

use super::Function;
use crate::config::Table;
use crate::places::What;
use crate::state::ACCESSES;
use crate::wire::{CONFIG_PAGE, SLOT};

/// What a processor reads where nothing is.
pub const NOTHING: u64 = u64::MAX;

/// Longest access of a processor that comes here.
const LONGEST: usize = 8;

impl Function {
    /// A processor reads or writes in a place that is trapped. What it reads; of a write it means nothing. `id` names the access, should a successor be
    /// asked for it again.
    pub fn access(&mut self, id: u64, gpa: u64, bytes: u8, write: Option<u64>) -> u64 {
        if let Some((_, value)) = self.reached.iter().find(|(reached, _)| *reached == id) {
            return *value;
        }
        let len = usize::from(bytes).min(LONGEST);
        let Some((what, at)) = self.places.find(gpa, len as u64) else { return NOTHING };
        let mut value = write.unwrap_or(NOTHING).to_le_bytes();
        let buffer = &mut value[..len];
        match (what, write.is_some()) {
            (What::Window, is_write) if at < CONFIG_PAGE => self.select(at, buffer, is_write),
            (What::Window, is_write) => {
                let reached = self.configure((at - CONFIG_PAGE) as u16, buffer, is_write);
                if reached {
                    self.note(id, buffer);
                }
            }
            (What::Trap { bar, at: start }, is_write) => {
                if self.touch(bar, start + at, buffer, is_write) {
                    self.note(id, buffer);
                }
            }
            (What::Map { .. }, _) => buffer.fill(0xff),
        }
        number(buffer)
    }

    fn note(&mut self, id: u64, buffer: &[u8]) {
        while self.reached.len() >= ACCESSES {
            self.reached.pop_front();
        }
        self.reached.push_back((id, number(buffer)));
        self.is_dirty = true;
    }

    /// The first page of the window: a word of it says which function the second one shows.
    fn select(&mut self, at: u64, buffer: &mut [u8], is_write: bool) {
        let mut word = self.selected.to_le_bytes();
        for (at, byte) in (at..).zip(buffer.iter_mut()) {
            match usize::try_from(at).ok().and_then(|at| word.get_mut(at)) {
                Some(own) if is_write => *own = *byte,
                Some(own) => *byte = *own,
                None => *byte = 0,
            }
        }
        let selected = u32::from_le_bytes(word);
        self.is_dirty |= selected != self.selected;
        self.selected = selected;
    }

    /// The second page. Whether it has reached the function in a way that must not be repeated.
    fn configure(&mut self, at: u16, buffer: &mut [u8], is_write: bool) -> bool {
        if self.selected != SLOT || self.is_ejected {
            buffer.fill(0xff);
            return false;
        }
        if !is_write {
            self.config.read(at, buffer, &*self.backend);
            return false;
        }
        let changes = self.config.write(at, buffer, &*self.backend);
        self.is_dirty |= changes.any;
        if changes.places {
            self.follow();
        }
        if changes.messages {
            self.interrupt();
        }
        self.config.is_passed(at, buffer.len())
    }

    /// Registers that are trapped. Whether it has reached the function.
    fn touch(&mut self, bar: usize, at: u64, buffer: &mut [u8], is_write: bool) -> bool {
        let end = at + buffer.len() as u64;
        let msix = self.config.msix().copied();
        if let Some(table) = msix.map(|msix| msix.table).filter(|table| table.bar == bar)
            && at < table.at + table.bytes
            && end > table.at
        {
            // Whatever lies beside it in the same word of eight bytes is not the guest's.
            let Some(inside) = at.checked_sub(table.at) else {
                buffer.fill(0);
                return false;
            };
            match is_write {
                true if self.table.write(inside, buffer) => {
                    self.is_dirty = true;
                    self.interrupt();
                }
                true => {}
                false => self.table.read(inside, buffer),
            }
            return false;
        }
        let is_pending = |table: Table| table.bar == bar && at < table.at + table.bytes && end > table.at;
        if msix.is_some_and(|msix| is_pending(msix.pending)) {
            // Which vectors wait: none does, since an interrupt that is masked is delivered all the same, and finds nobody.
            buffer.fill(0);
            return false;
        }
        let size = self.config.bars().get(bar).map_or(0, |bar| bar.size);
        if end > size {
            buffer.fill(0xff);
            return false;
        }
        let result = match is_write {
            true => self.backend.write_region(bar, at, buffer),
            false => self.backend.read_region(bar, at, buffer),
        };
        if let Err(error) = result {
            tracing::debug!(bar, at, "the function does not answer: {error}");
            buffer.fill(0xff);
        }
        true
    }
}

fn number(bytes: &[u8]) -> u64 {
    let mut all = [0; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(all)
}
