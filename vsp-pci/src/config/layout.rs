//! Which byte of configuration space is of which kind.

use super::bars::Bars;
use super::{Msi, MsiX, Table, command, register, shown, shown_few};
use crate::backend::Info;

/// Capabilities that a guest sees (`PCI_CAP_ID_*`).
mod id {
    pub const POWER: u8 = 1;
    pub const MSI: u8 = 5;
    pub const VENDOR: u8 = 9;
    pub const EXPRESS: u8 = 0x10;
    pub const MSI_X: u8 = 0x11;
    /// `PCI_EXT_CAP_ID_DSN`, the function's serial number: the only extended one.
    pub const SERIAL: u16 = 3;
}

/// Capabilities of a function at most: each takes four bytes of 192.
const MOST: usize = 48;
/// The same for the extended ones: eight bytes of 3840.
const MOST_EXTENDED: usize = 480;

/// What may be done with a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Byte {
    /// The guest sees it.
    is_shown: bool,
    /// It is read from the function each time.
    is_live: bool,
    /// What the guest writes is written to the function.
    is_passed: bool,
    /// Bits of ours that the guest can change.
    writable: u8,
}

/// Of each byte.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    bytes: Vec<Byte>,
    /// Where the chain of capabilities leads: places of pointers, and what they are.
    links: Vec<(usize, u8)>,
    /// The same for the header of the first extended one.
    has_serial: Option<usize>,
    power: Option<usize>,
}

impl Layout {
    pub fn of(found: &[u8], info: &Info, bars: &Bars) -> (Layout, Option<Msi>, Option<MsiX>) {
        let bytes = vec![Byte::default(); found.len()];
        let mut layout = Layout { bytes, links: Vec::new(), has_serial: None, power: None };
        layout.header(bars);
        let (mut msi, mut msix) = (None, None);
        let mut link = usize::from(register::CAPABILITIES);
        for at in chain(found) {
            let rest = &found[at..256];
            let len = match rest[0] {
                id::POWER if rest.len() >= 8 => {
                    layout.power = Some(at);
                    8
                }
                id::MSI if info.msi > 0 && rest.len() >= 14 && msi.is_none() => {
                    let is_wide = rest[2] & 0x80 != 0;
                    let vectors = shown_few(1 << ((rest[2] >> 1) & 7)).min(shown_few(info.msi));
                    msi = Some(Msi { at: at as u16, is_wide, vectors });
                    if is_wide { 14 } else { 10 }
                }
                id::MSI_X if info.msix > 0 && rest.len() >= 12 && msix.is_none() => {
                    msix = msix_of(at, rest, info);
                    if msix.is_none() { 0 } else { 12 }
                }
                id::EXPRESS if rest.len() >= 0x14 => {
                    // Version 2 has all of it, version 1 as much as an endpoint needs.
                    let len = if rest[2] & 0xf >= 2 { 0x3c } else { 0x14 };
                    if rest.len() >= len { len } else { 0 }
                }
                id::VENDOR if rest.len() >= 3 => {
                    let len = usize::from(rest[2]);
                    if (3..=rest.len()).contains(&len) { len } else { 0 }
                }
                _ => 0,
            };
            if len == 0 {
                continue;
            }
            layout.show(at, len);
            layout.links.push((link, at as u8));
            link = at + 1;
            layout.capability(rest[0], at, len, msi.as_ref());
        }
        layout.links.push((link, 0));
        layout.extended(found);
        (layout, msi, msix)
    }

    fn header(&mut self, bars: &Bars) {
        self.show(0, 0x40);
        self.write(register::COMMAND, &command::GUESTS.to_le_bytes());
        self.live(register::STATUS.into(), 2);
        self.write(register::CACHE_LINE, &[0xff, 0xff]);
        for (at, mask) in (register::BARS..).step_by(4).zip(bars.masks()) {
            self.write(at, &mask.to_le_bytes());
        }
        self.write(register::LINE, &[0xff]);
    }

    fn capability(&mut self, id: u8, at: usize, len: usize, msi: Option<&Msi>) {
        match id {
            // The function stays awake: a guest's wish to put it to sleep is noted, and that is what the guest reads.
            id::POWER => self.write(at as u16 + 4, &[3]),
            id::MSI => {
                self.write(at as u16 + 2, &[0x71]);
                self.write(at as u16 + 4, &[0xfc, 0xff, 0xff, 0xff]);
                let wide = msi.is_some_and(|msi| msi.is_wide);
                self.write(at as u16 + 8, if wide { &[0xff; 6] } else { &[0xff; 2] });
            }
            id::MSI_X => self.write(at as u16 + 3, &[0xc0]),
            id::EXPRESS => {
                self.live(at + 2, len - 2);
                // Device control, which has the reset of the function (the kernel does it in its own way), device status; and
                // device control 2.
                self.pass(at + 8, 4);
                if len > 0x2a {
                    self.pass(at + 0x28, 2);
                }
            }
            id::VENDOR => {
                self.live(at + 3, len - 3);
                self.pass(at + 3, len - 3);
            }
            _ => {}
        }
    }

    /// Of the extended capabilities, the serial number.
    fn extended(&mut self, found: &[u8]) {
        let mut at = usize::from(register::EXTENDED);
        for _ in 0..MOST_EXTENDED {
            let Some(header) = found.get(at..).and_then(<[u8]>::first_chunk::<4>) else { return };
            let header = u32::from_le_bytes(*header);
            if (header & 0xffff) as u16 == id::SERIAL && at + 12 <= found.len() {
                self.show(at, 12);
                self.has_serial = Some(at);
                return;
            }
            at = (header >> 20) as usize & !3;
            if at < usize::from(register::EXTENDED) {
                return;
            }
        }
    }

    fn show(&mut self, at: usize, len: usize) {
        self.bytes[at..at + len].iter_mut().for_each(|byte| byte.is_shown = true);
    }

    fn write(&mut self, at: u16, masks: &[u8]) {
        for (byte, mask) in self.bytes[usize::from(at)..].iter_mut().zip(masks) {
            byte.writable = *mask;
        }
    }

    fn live(&mut self, at: usize, len: usize) {
        self.bytes[at..at + len].iter_mut().for_each(|byte| byte.is_live = true);
    }

    fn pass(&mut self, at: usize, len: usize) {
        self.bytes[at..at + len].iter_mut().for_each(|byte| byte.is_passed = true);
    }

    pub fn is_live(&self, at: usize) -> bool {
        self.bytes.get(at).is_some_and(|byte| byte.is_live)
    }

    pub fn has_live(&self, at: usize, len: usize) -> bool {
        (at..at + len).any(|at| self.is_live(at))
    }

    pub fn is_passed(&self, at: usize) -> bool {
        self.bytes.get(at).is_some_and(|byte| byte.is_passed)
    }

    pub fn writable(&self, at: usize) -> u8 {
        self.bytes.get(at).map_or(0, |byte| byte.writable)
    }

    /// What the guest sees of what is not live, before it has written anything.
    pub fn blank(&self, found: &[u8], bars: &Bars, msi: Option<&Msi>, msix: Option<&MsiX>) -> Vec<u8> {
        let shown = |(byte, value): (&Byte, &u8)| if byte.is_shown { *value & !byte.writable } else { 0 };
        let mut out: Vec<u8> = self.bytes.iter().zip(found).map(shown).collect();
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(register::COMMAND.into(), &[0, 0]);
        // One function, whatever its neighbours on the host.
        put(register::HEADER_TYPE.into(), &[0]);
        for (at, fixed) in (usize::from(register::BARS)..).step_by(4).zip(bars.fixed()) {
            put(at, &fixed.to_le_bytes());
        }
        // CardBus pointer, expansion ROM, and the interrupt line: the bus has none of them.
        put(0x28, &[0; 4]);
        put(0x30, &[0; 4]);
        put(register::LINE.into(), &[0, 0]);
        for (at, to) in &self.links {
            put(*at, &[*to]);
        }
        if let Some(at) = self.power {
            // Nothing wakes the guest up (bits 11 to 15), and waking up loses nothing (`PCI_PM_CTRL_NO_SOFT_RESET`).
            let high = found[at + 3] & !0xf8;
            put(at + 3, &[high]);
            put(at + 4, &[8, 0, 0, 0]);
        }
        if let Some(msi) = msi {
            let at = usize::from(msi.at);
            let wide = if msi.is_wide { 0x80 } else { 0 };
            // No masks of single messages (bit 8 of the control word).
            put(at + 2, &[wide | (msi.vectors.ilog2() as u8) << 1, 0]);
        }
        if let Some(msix) = msix {
            put(usize::from(msix.at) + 2, &((msix.vectors - 1) as u16).to_le_bytes());
        }
        self.extended_chain(found, &mut out);
        out
    }

    fn extended_chain(&self, found: &[u8], out: &mut [u8]) {
        let first = usize::from(register::EXTENDED);
        let Some(at) = self.has_serial else { return };
        let version = found[at + 2] & 0xf;
        out[at..at + 4].copy_from_slice(&(u32::from(id::SERIAL) | u32::from(version) << 16).to_le_bytes());
        if at != first {
            // The chain begins here with a capability that is none (number 0).
            out[first..first + 4].copy_from_slice(&((at as u32) << 20).to_le_bytes());
        }
    }
}

/// Where the capabilities are, in their order: the function's word, so it ends whatever it says.
fn chain(found: &[u8]) -> Vec<usize> {
    let mut all = Vec::new();
    // `PCI_STATUS_CAP_LIST`
    let has_list = found[usize::from(register::STATUS)] & 0x10 != 0;
    let mut at = if has_list { usize::from(found[usize::from(register::CAPABILITIES)] & !3) } else { 0 };
    while at >= 0x40 && all.len() < MOST && !all.contains(&at) {
        all.push(at);
        at = usize::from(found[at + 1] & !3);
    }
    all
}

fn msix_of(at: usize, rest: &[u8], info: &Info) -> Option<MsiX> {
    let control = u16::from_le_bytes([rest[2], rest[3]]);
    let there = u32::from(control & 0x7ff) + 1;
    let vectors = shown(there.min(info.msix));
    let place = |from: usize, bytes: u64| {
        let word = rest[from..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes))?;
        let table = Table { bar: (word & 7) as usize, at: u64::from(word & !7), bytes };
        let region = info.regions.get(table.bar)?.as_ref()?;
        (table.at + bytes <= region.size).then_some(table)
    };
    // All of the function's own table is kept from the guest, also what it is not shown.
    let table = place(4, u64::from(there) * 16)?;
    let pending = place(8, u64::from(there.div_ceil(64)) * 8)?;
    Some(MsiX { at: at as u16, vectors, table, pending })
}
