//! The configuration space that a guest sees.
//!
//! Each byte is one of three kinds: **shadowed** (ours: the guest's base address registers, its command register, where its messages go;
//! the function has values of its own there), **live** (read from the function each time, and for a few registers written
//! to it), or **plain** (read once, the same for ever). What is not listed here a guest does not see: capabilities are shown by an
//! allow-list, and everything else reads as zero. What a guest writes anywhere else is lost.
//!
//! Why a capability is not shown: virtual functions, address translation services and access control are the host's to
//! decide on (SR-IOV, ATS, PRI, PASID, ACS); base addresses are ours (resizable BARs, enhanced allocation);
//! vital product data takes the function up to a tenth of a second a word.
//!
//! Facts are of the PCI Express base specification, revision 4.0, by the names of `include/uapi/linux/pci_regs.h`.
//!
//! * [`bars`]: what the base address registers ask for.
//! * `layout`: which byte is of which kind.

pub mod bars;
mod layout;
#[cfg(test)]
mod tests;

use std::io;

use self::bars::Bars;
use self::layout::Layout;
use crate::backend::{Backend, Kind, MAX_VECTORS};
use crate::wire::{Description, MAX_MESSAGES};

/// The longest access to configuration space; the windows of processors have no longer one.
const LONGEST: usize = 8;

/// Bits of the command register.
pub mod command {
    /// The function answers to its memory addresses.
    pub const MEMORY: u16 = 1 << 1;
    /// It may write memory by itself, and interrupt.
    pub const MASTER: u16 = 1 << 2;
    /// It may not use its interrupt line.
    pub const NO_LINE: u16 = 1 << 10;
    /// What a guest may set: these, parity errors, and system errors. The host's own registers get the same, but for those that are ours.
    pub const GUESTS: u16 = MEMORY | MASTER | NO_LINE | 1 << 6 | 1 << 8;
}

pub(crate) mod register {
    pub const COMMAND: u16 = 4;
    pub const STATUS: u16 = 6;
    pub const CLASS: u16 = 8;
    pub const CACHE_LINE: u16 = 0xc;
    pub const HEADER_TYPE: u16 = 0xe;
    pub const BARS: u16 = 0x10;
    pub const SUBSYSTEM: u16 = 0x2c;
    pub const CAPABILITIES: u16 = 0x34;
    pub const LINE: u16 = 0x3c;
    pub const EXTENDED: u16 = 0x100;
}

/// Where a function's table of messages lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Behind which base address register.
    pub bar: usize,
    /// From which byte on.
    pub at: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// The capability for messages by a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiX {
    /// Where the capability lies.
    pub at: u16,
    /// Messages that the guest sees.
    pub vectors: u32,
    /// The table.
    pub table: Table,
    /// The bits that say which of them wait.
    pub pending: Table,
}

/// The capability for a few messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Where the capability lies.
    pub at: u16,
    /// Its addresses have 64 bits.
    pub is_wide: bool,
    /// Messages that the function can have: a power of two, at most 32.
    pub vectors: u32,
}

/// What the guest has written that means something to somebody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The command register, or a base address.
    pub places: bool,
    /// How it wants to be interrupted.
    pub messages: bool,
    /// Something that only a successor has to know.
    pub any: bool,
}

/// Why a function cannot be shown to a guest.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It cannot be read.
    #[error("its configuration space cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// There is nothing there.
    #[error("nothing answers at its address")]
    Absent,
    /// A bridge, say.
    #[error("it is no endpoint: its header is of type {0}")]
    NoEndpoint(u8),
    /// It would be dumb.
    #[error(
        "it has interrupts by a line only, and a guest's vPCI bus carries messages only (neither MSI nor MSI-X)"
    )]
    LineOnly,
    /// What it leaves behind would be the next guest's.
    #[error("it cannot be reset, so nobody could be given it after this guest")]
    NotResettable,
}

/// The configuration space of one function.
#[derive(Clone, Debug)]
pub struct Config {
    layout: Layout,
    bars: Bars,
    msi: Option<Msi>,
    msix: Option<MsiX>,
    /// What the guest sees of what is not live.
    shadow: Vec<u8>,
    /// The same as long as no guest has written anything.
    blank: Vec<u8>,
}

impl Config {
    /// Looks a function over.
    pub fn of(backend: &dyn Backend) -> Result<Config, Unfit> {
        let info = backend.info();
        let mut found = vec![0; usize::from(info.config_size.clamp(256, 4096))];
        // The kernel reads in pieces itself; a word is what every function can do.
        for (at, word) in (0u16..).step_by(4).zip(found.chunks_exact_mut(4)) {
            backend.read_config(at, word)?;
        }
        let kind = found[usize::from(register::HEADER_TYPE)] & 0x7f;
        if found[..4] == [0xff; 4] {
            return Err(Unfit::Absent);
        }
        if kind != 0 {
            return Err(Unfit::NoEndpoint(kind));
        }
        if !info.is_resettable {
            return Err(Unfit::NotResettable);
        }
        let bars = Bars::of(&found, info);
        let (layout, msi, msix) = Layout::of(&found, info, &bars);
        if msi.is_none() && msix.is_none() {
            return Err(Unfit::LineOnly);
        }
        let shadow = layout.blank(&found, &bars, msi.as_ref(), msix.as_ref());
        Ok(Config { layout, bars, msi, msix, blank: shadow.clone(), shadow })
    }

    /// A guest begins anew.
    pub fn reset(&mut self) {
        self.shadow.clone_from(&self.blank);
    }

    /// What the function is.
    pub fn description(&self, serial: u32) -> Description {
        let at = |at: u16| usize::from(at);
        let class = &self.shadow[at(register::CLASS)..at(register::CLASS) + 4];
        Description {
            vendor: self.word(0),
            device: self.word(2),
            class: class.try_into().unwrap_or_default(),
            subsystem: self.dword(register::SUBSYSTEM),
            serial,
        }
    }

    /// What its base address registers ask for.
    pub fn bars(&self) -> &Bars {
        &self.bars
    }

    /// Where the guest has put this one, if it answers there.
    pub fn place(&self, bar: usize) -> Option<u64> {
        let is_on = self.command() & command::MEMORY != 0;
        let low = self.dword(register::BARS + 4 * bar as u16);
        let found = self.bars.get(bar).filter(|_| is_on)?;
        let high = if found.is_wide { self.dword(register::BARS + 4 * (bar as u16 + 1)) } else { 0 };
        Some((u64::from(low) | u64::from(high) << 32) & !0xf)
    }

    /// What the guest has written into the command register.
    pub fn command(&self) -> u16 {
        self.word(register::COMMAND)
    }

    /// The function's table of messages, if it has one.
    pub fn msix(&self) -> Option<&MsiX> {
        self.msix.as_ref()
    }

    /// Its few messages, if it has some.
    pub fn msi(&self) -> Option<&Msi> {
        self.msi.as_ref()
    }

    /// How the guest wants to be interrupted now.
    pub fn kind(&self) -> Option<Kind> {
        let is_on = |at: Option<u16>, bit: u16| at.is_some_and(|at| self.word(at + 2) & bit != 0);
        if is_on(self.msix.map(|msix| msix.at), MSIX_ENABLE) {
            return Some(Kind::MsiX);
        }
        is_on(self.msi.map(|msi| msi.at), MSI_ENABLE).then_some(Kind::Msi)
    }

    /// Whether the guest has silenced all messages of the table.
    pub fn is_masked(&self) -> bool {
        self.msix.is_some_and(|msix| self.word(msix.at + 2) & MSIX_MASK_ALL != 0)
    }

    /// The few messages as the guest wants them: where the first is written, its value, and how many there are.
    pub fn message(&self) -> Option<(u64, u32, u32)> {
        let msi = self.msi?;
        let low = self.dword(msi.at + 4);
        let (high, data) = match msi.is_wide {
            true => (self.dword(msi.at + 8), self.word(msi.at + 12)),
            false => (0, self.word(msi.at + 8)),
        };
        let count = 1 << ((self.word(msi.at + 2) >> 4) & 7);
        Some((u64::from(low) | u64::from(high) << 32, data.into(), msi.vectors.min(count)))
    }

    fn word(&self, at: u16) -> u16 {
        let at = usize::from(at);
        self.shadow.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u16::from_le_bytes(*bytes))
    }

    fn dword(&self, at: u16) -> u32 {
        let at = usize::from(at);
        self.shadow.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// The guest reads. Beyond the end there is nothing: all ones.
    pub fn read(&self, at: u16, into: &mut [u8], backend: &dyn Backend) {
        into.fill(0xff);
        let start = usize::from(at);
        let Some(rest) = self.shadow.len().checked_sub(start) else { return };
        let len = into.len().min(rest).min(LONGEST);
        let shadow = &self.shadow[start..start + len];
        let mut live = [0u8; LONGEST];
        if self.layout.has_live(start, len) {
            read_live(at, &mut live[..len], backend);
        }
        for (index, byte) in into.iter_mut().enumerate().take(len) {
            *byte = if self.layout.is_live(start + index) { live[index] } else { shadow[index] };
        }
    }

    /// The guest writes.
    pub fn write(&mut self, at: u16, from: &[u8], backend: &dyn Backend) -> Changes {
        let start = usize::from(at);
        let before = self.situation();
        let mut any = false;
        for (index, byte) in from.iter().enumerate().take(LONGEST) {
            let mask = self.layout.writable(start + index);
            if let Some(shadow) = self.shadow.get_mut(start + index) {
                let new = (*shadow & !mask) | (byte & mask);
                any |= new != *shadow;
                *shadow = new;
            }
        }
        self.write_live(start, &from[..from.len().min(LONGEST)], backend);
        let after = self.situation();
        Changes { places: before.0 != after.0, messages: before.1 != after.1, any }
    }

    /// Whether a write there goes to the function itself.
    pub fn is_passed(&self, at: u16, len: usize) -> bool {
        (usize::from(at)..usize::from(at) + len).any(|at| self.layout.is_passed(at))
    }

    /// What of it matters to whom: places, and messages.
    fn situation(&self) -> ((u16, [u8; 24]), [u8; 16]) {
        let mut bars = [0; 24];
        let at = usize::from(register::BARS);
        bars.copy_from_slice(&self.shadow[at..at + 24]);
        let mut messages = [0; 16];
        if let Some(msi) = self.msi {
            let at = usize::from(msi.at);
            messages[..12].copy_from_slice(&self.shadow[at + 2..at + 14]);
        }
        if let Some(msix) = self.msix {
            let at = usize::from(msix.at);
            messages[12..14].copy_from_slice(&self.shadow[at + 2..at + 4]);
        }
        ((self.command(), bars), messages)
    }

    /// Registers of the function's own that the guest may write: in stretches, since a register is written as a whole.
    fn write_live(&self, start: usize, from: &[u8], backend: &dyn Backend) {
        let mut index = 0;
        while index < from.len() {
            let len = (index..from.len()).take_while(|i| self.layout.is_passed(start + i)).count();
            if len > 0 {
                write_pieces((start + index) as u16, &from[index..index + len], backend);
            }
            index += len.max(1);
        }
    }

    /// For the ledger: where a guest can write, and what there is. See [`Config::restore`].
    pub fn save(&self) -> Vec<(u16, u8)> {
        let differs = |at: &usize| self.shadow[*at] != self.blank[*at];
        (0..self.shadow.len()).filter(differs).map(|at| (at as u16, self.shadow[at])).collect()
    }

    /// What a predecessor's guest has written. What this build would not have let it write is ignored.
    pub fn restore(&mut self, saved: impl IntoIterator<Item = (u16, u8)>) {
        self.reset();
        for (at, byte) in saved {
            let mask = self.layout.writable(at.into());
            if let Some(shadow) = self.shadow.get_mut(usize::from(at)) {
                *shadow = (*shadow & !mask) | (byte & mask);
            }
        }
    }
}

/// `PCI_MSIX_FLAGS_ENABLE`
const MSIX_ENABLE: u16 = 1 << 15;
/// `PCI_MSIX_FLAGS_MASKALL`
const MSIX_MASK_ALL: u16 = 1 << 14;
/// `PCI_MSI_FLAGS_ENABLE`
const MSI_ENABLE: u16 = 1;

/// A function that does not answer reads as all ones, like one that is not there.
fn read_live(at: u16, into: &mut [u8], backend: &dyn Backend) {
    in_pieces(at, into.len(), |at, range| {
        let piece = &mut into[range];
        if backend.read_config(at, piece).is_err() {
            piece.fill(0xff);
        }
    });
}

fn write_pieces(at: u16, from: &[u8], backend: &dyn Backend) {
    in_pieces(at, from.len(), |at, range| {
        if let Err(error) = backend.write_config(at, &from[range]) {
            tracing::debug!(at, "the function's configuration cannot be written: {error}");
        }
    });
}

/// Cuts an access into aligned ones of 1, 2 or 4 bytes: there are no others on the bus.
fn in_pieces(at: u16, len: usize, mut each: impl FnMut(u16, std::ops::Range<usize>)) {
    let (mut done, at) = (0, usize::from(at));
    while done < len {
        let place = at + done;
        let size = [4, 2, 1].into_iter().find(|size| place.is_multiple_of(*size) && *size <= len - done);
        let size = size.unwrap_or(1);
        each(place as u16, done..done + size);
        done += size;
    }
}

/// Messages that a guest is shown of so many.
fn shown(count: u32) -> u32 {
    count.min(MAX_VECTORS)
}

/// The same of a few, which are a power of two.
fn shown_few(count: u32) -> u32 {
    let most = count.clamp(1, MAX_MESSAGES.into());
    1 << most.ilog2()
}
