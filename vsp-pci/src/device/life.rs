//! How the function comes to this process, and what becomes of it when its guest or its process goes.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use vsp::{Channels, Control, GuestBuffer};

use super::packets::Create;
use super::{EJECTION, GONE, Pci};
use crate::function::Function;
use crate::interrupts::Bells;

/// Descriptors that the core keeps under one key.
const EACH: usize = 16;
/// The key of the function itself, which is kept last: whoever finds it finds everything.
const FUNCTION: u32 = 0;

/// RAM that the function is given, and loses, in one go, in bytes: the kernel pins and zeroes every page of it, which takes 10 s a GiB under an emulated IOMMU, and
/// whoever supervises the process wants a sign of life in between. A multiple of what the IOMMU's large pages have.
const SOME: u64 = 32 << 20;

/// Beside the function's descriptors.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// Number of the format; what is unknown is ignored.
    format: u32,
    /// How many eventfds there are, under the keys that follow.
    bells: usize,
}

/// What an operator wants, in JSON.
#[derive(Debug, Deserialize)]
enum Wish {
    /// The guest is to let the function go.
    #[serde(rename = "eject")]
    Eject {},
}

impl Pci {
    /// The function is to reach all of guest RAM: piece by piece, while the guest waits for the answer to its D0 entry.
    pub(super) fn plan_dma(&mut self) {
        let pieces = self.pieces();
        let Some(function) = self.function.as_mut().filter(|function| !function.reaches_ram()) else {
            return;
        };
        // A predecessor may have begun and died.
        function.unmap_dma();
        (self.unmapped, self.unmapping) = (pieces, None);
    }

    /// Guest RAM in pieces, the last first.
    fn pieces(&self) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        for (gpa, len) in self.ram.iter().flat_map(|ram| ram.regions()) {
            let (mut at, end) = (gpa, gpa + len);
            while at < end {
                let some = SOME.min(end - at);
                all.push((at, some));
                at += some;
            }
        }
        all.reverse();
        all
    }

    /// Takes more of guest RAM away from the function.
    pub(super) fn unmap_some(&mut self) {
        let Some(pieces) = &mut self.unmapping else { return };
        let Some(function) = &mut self.function else {
            self.unmapping = None;
            return;
        };
        match pieces.pop() {
            Some((gpa, len)) => {
                let pieces = usable(gpa, len, &function.backend().info().dma);
                pieces.into_iter().for_each(|piece| function.unmap_piece(piece));
            }
            None => {
                // Whatever else there is.
                function.unmap_dma();
                self.unmapping = None;
            }
        }
    }

    /// Takes the function up that a predecessor has had, if this process has none.
    pub(super) fn adopt_function(&mut self, predecessor: bool) -> Result<(), String> {
        if self.function.is_some() {
            return Ok(());
        }
        let name = &self.origin.name;
        let Some((note, fds)) = self.kept.remove(&FUNCTION) else {
            return Err(match predecessor {
                true => format!("nobody has kept {name} for this process: the next one can open it itself"),
                false => format!("{name} is in use: a VM has it already"),
            });
        };
        let note: Note = serde_json::from_str(&note)
            .map_err(|error| format!("what a predecessor says of {name} makes no sense: {error}"))?;
        let backend = self.origin.adopter.adopt(fds)?;
        let bells: Vec<_> = std::mem::take(&mut self.kept).into_values().flat_map(|(_, fds)| fds).collect();
        if bells.len() != note.bells {
            return Err(format!("{} of {} descriptors for interrupts are there", bells.len(), note.bells));
        }
        let function =
            Function::new(backend, Bells::adopt(bells)).map_err(|unfit| format!("{name}: {unfit}"))?;
        self.function = Some(function);
        self.is_kept = true;
        Ok(())
    }

    /// Has the function reach more of guest RAM.
    pub(super) fn map_some(&mut self) {
        let Some((gpa, len)) = self.unmapped.pop() else { return };
        if let Err(why) = self.map(gpa, len) {
            tracing::error!("{why}");
            self.unmapped.clear();
            return;
        }
        if let Some(function) = self.function.as_mut().filter(|_| self.unmapped.is_empty()) {
            function.set_reaches_ram();
        }
    }

    fn map(&mut self, gpa: u64, len: u64) -> Result<(), String> {
        let (Some(function), Some(ram)) = (&mut self.function, &self.ram) else {
            return Err("there is no guest RAM".into());
        };
        for (gpa, len) in usable(gpa, len, &function.backend().info().dma) {
            let buffer = GuestBuffer::new(ram, [(gpa, len)]).map_err(|error| error.to_string())?;
            function.map_dma(gpa, &buffer).map_err(|error| {
                let hint = match error.raw_os_error() {
                    Some(libc::ENOMEM) => {
                        "; all of it is locked in memory, which needs RLIMIT_MEMLOCK to be as much (by an iommufd: as all of the user's processes lock together)"
                    }
                    _ => "",
                };
                format!("the function cannot be given guest RAM at {gpa:#x}: {error}{hint}")
            })?;
        }
        Ok(())
    }

    /// Has the core keep the function for whoever comes after this process.
    pub(super) fn keep(&mut self, channels: &mut Channels) {
        let Some(function) = self.function.as_ref().filter(|_| !self.is_kept) else { return };
        let bells = function.bells().all();
        for (key, some) in (FUNCTION + 1..).zip(bells.chunks(EACH)) {
            channels.keep(key, "", some);
        }
        let note = serde_json::to_string(&Note { format: 1, bells: bells.len() }).unwrap_or_default();
        channels.keep(FUNCTION, &note, &function.backend().kept());
        self.is_kept = true;
    }

    /// The guest has closed its channel, or it was reset. Nobody else gets the function before this is through.
    pub(super) fn close(&mut self) {
        if let Some(function) = &mut self.function {
            function.close();
        }
        self.unmapping = Some(self.pieces());
        self.channel = None;
        self.unmapped.clear();
        self.waiting.clear();
        self.must_eject = false;
        self.leftovers.append(&mut self.entries);
        self.leftovers.extend(self.creates.drain(..).map(Create::into_request));
        self.attention = true;
    }

    pub(super) fn wanted_by_operator(&mut self, control: Control, channels: &mut Channels) {
        match serde_json::from_str::<Wish>(&control.payload) {
            Ok(Wish::Eject {}) => {}
            Err(_) => {
                return control
                    .answer(channels, Err("a PCI function can be ejected, and nothing else".into()));
            }
        }
        let is_there = self.channel.is_some()
            && self
                .function
                .as_ref()
                .is_some_and(|function| function.version.is_some() && !function.is_ejected());
        if !is_there {
            return control.answer(channels, Ok(GONE.into()));
        }
        self.ejections.push(control);
        if self.eject_by.is_none() {
            (self.eject_by, self.must_eject) = (Some(Instant::now() + EJECTION), true);
        }
        self.ask_to_eject(channels);
    }
}

/// What of a stretch of RAM the host's IOMMU can translate. A guest that has the function use the rest gets a fault.
fn usable(gpa: u64, len: u64, ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    if ranges.is_empty() {
        return vec![(gpa, len)];
    }
    let last = gpa + (len - 1);
    let inside = ranges.iter().filter_map(|(first, end)| {
        let (from, to) = (gpa.max(*first), last.min(*end));
        (from <= to).then(|| (from, to - from + 1))
    });
    let inside: Vec<_> = inside.collect();
    let there: u64 = inside.iter().map(|(_, len)| len).sum();
    if there < len {
        tracing::warn!(
            "the function cannot reach {} bytes of guest RAM from {gpa:#x} on: the host's IOMMU has these addresses reserved",
            len - there
        );
    }
    inside
}

#[cfg(test)]
mod tests {
    use super::usable;

    #[test]
    fn what_the_iommu_has_reserved_is_left_out() {
        assert_eq!(usable(0, 0x1000, &[]), [(0, 0x1000)]);
        let hole = [(0, 0xfedf_ffff), (0xfef0_0000, u64::MAX)];
        assert_eq!(usable(0x1000, 0x1000, &hole), [(0x1000, 0x1000)]);
        assert_eq!(
            usable(0xfed0_0000, 0x30_0000, &hole),
            [(0xfed0_0000, 0x10_0000), (0xfef0_0000, 0x10_0000)]
        );
        assert_eq!(usable(0xfee0_0000, 0x1000, &hole), []);
    }
}
