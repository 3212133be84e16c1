//! What the base address registers of a function ask for.

use super::register;
use crate::backend::Info;
use crate::wire::BARS;

/// A guest's page tables map no less.
pub const PAGE: u64 = 4096;

/// `PCI_BASE_ADDRESS_SPACE_IO`
const IO: u32 = 1;
/// `PCI_BASE_ADDRESS_MEM_TYPE_64`
const WIDE: u32 = 4;
/// `PCI_BASE_ADDRESS_MEM_PREFETCH`
const PREFETCH: u32 = 8;

/// A base address register for memory, and the one behind it if it is wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Bytes that the guest is asked for: a power of two, and a page at least, so that no two functions' registers lie in one.
    pub bytes: u64,
    /// Bytes that there are.
    pub size: u64,
    /// Its addresses have 64 bits.
    pub is_wide: bool,
    /// Reading it has no effect.
    is_prefetchable: bool,
}

/// All of them. Those for ports are not there: the vPCI bus has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bars([Option<Bar>; BARS]);

impl Bars {
    pub(super) fn of(found: &[u8], info: &Info) -> Bars {
        let mut bars = Bars::default();
        let mut index = 0;
        while index < BARS {
            let at = usize::from(register::BARS) + 4 * index;
            let value = found[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
            let is_wide = value & (IO | WIDE) == WIDE && index + 1 < BARS;
            let region = info.regions[index].as_ref();
            if value & IO == 0 {
                // The largest power of two that an address can have; hosts have no bigger ones.
                let limit = if is_wide { 1 << 62 } else { 1 << 31 };
                bars.0[index] =
                    region.filter(|region| (1..=limit).contains(&region.size)).map(|region| Bar {
                        bytes: region.size.next_power_of_two().max(PAGE),
                        size: region.size,
                        is_wide,
                        is_prefetchable: value & PREFETCH != 0,
                    });
            }
            index += if is_wide { 2 } else { 1 };
        }
        bars
    }

    /// One of them.
    pub fn get(&self, index: usize) -> Option<&Bar> {
        self.0.get(index).and_then(Option::as_ref)
    }

    /// Those that there are.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Bar)> {
        self.0.iter().enumerate().filter_map(|(index, bar)| Some((index, bar.as_ref()?)))
    }

    /// Bits of each register that a guest can change.
    pub fn masks(&self) -> [u32; BARS] {
        let mut masks = [0; BARS];
        for (index, bar) in self.iter() {
            let mask = !(bar.bytes - 1);
            masks[index] = mask as u32;
            if bar.is_wide {
                masks[index + 1] = (mask >> 32) as u32;
            }
        }
        masks
    }

    /// Bits of each register that say what it is.
    pub fn fixed(&self) -> [u32; BARS] {
        let mut fixed = [0; BARS];
        for (index, bar) in self.iter() {
            let wide = if bar.is_wide { WIDE } else { 0 };
            fixed[index] = wide | if bar.is_prefetchable { PREFETCH } else { 0 };
        }
        fixed
    }

    /// What one would read from each register after writing all ones.
    pub fn probed(&self) -> [u32; BARS] {
        let (masks, fixed) = (self.masks(), self.fixed());
        std::array::from_fn(|index| masks[index] | fixed[index])
    }
}
