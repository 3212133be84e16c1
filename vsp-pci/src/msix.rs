//! The table of messages as the guest has written it. The function's own table is the kernel's: what the guest writes here says which of our
//! eventfds a vector makes count, and nothing of it ever gets into the function.

use crate::backend::MAX_VECTORS;

/// Bytes of an entry (`PCI_MSIX_ENTRY_SIZE`): an address, a value, and a word of which one bit means something.
pub const ENTRY: usize = 16;
/// Where that word begins.
const CONTROL: usize = 12;
/// `PCI_MSIX_ENTRY_CTRL_MASKBIT`
const MASKED: u8 = 1;

/// A message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Where it is written.
    pub address: u64,
    /// What.
    pub data: u32,
    /// It is not, for now.
    pub is_masked: bool,
}

impl Entry {
    /// As a function has it that nobody has touched.
    pub const BLANK: Entry = Entry { address: 0, data: 0, is_masked: true };
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    bytes: Vec<u8>,
}

impl Table {
    /// So many entries, at most [`MAX_VECTORS`]; none of them says anything.
    pub fn new(vectors: u32) -> Table {
        let mut table = Table { bytes: vec![0; vectors.min(MAX_VECTORS) as usize * ENTRY] };
        table.reset();
        table
    }

    /// A guest begins anew.
    pub fn reset(&mut self) {
        for entry in self.bytes.chunks_exact_mut(ENTRY) {
            entry.fill(0);
            entry[CONTROL] = MASKED;
        }
    }

    /// How many entries.
    pub fn len(&self) -> u32 {
        (self.bytes.len() / ENTRY) as u32
    }

    /// There is no table.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// One of them.
    pub fn get(&self, vector: u32) -> Entry {
        let at = vector as usize * ENTRY;
        let Some(bytes) = self.bytes.get(at..at + ENTRY).and_then(<[u8]>::first_chunk::<ENTRY>) else {
            return Entry::BLANK;
        };
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Entry {
            address: u64::from(word(0)) | u64::from(word(4)) << 32,
            data: word(8),
            is_masked: bytes[CONTROL] & MASKED != 0,
        }
    }

    /// Sets one of them.
    pub fn set(&mut self, vector: u32, entry: Entry) {
        let at = vector as usize * ENTRY;
        let Some(bytes) = self.bytes.get_mut(at..at + ENTRY) else { return };
        bytes[..8].copy_from_slice(&entry.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&entry.data.to_le_bytes());
        bytes[CONTROL..].copy_from_slice(&u32::from(entry.is_masked).to_le_bytes());
    }

    fn place(&self, at: u64, index: u64) -> Option<usize> {
        let place = usize::try_from(at.checked_add(index)?).ok()?;
        (place < self.bytes.len()).then_some(place)
    }

    /// The guest reads. What lies behind the entries that it is shown reads as zero.
    pub fn read(&self, at: u64, into: &mut [u8]) {
        for (index, byte) in (0u64..).zip(into) {
            *byte = self.place(at, index).map_or(0, |place| self.bytes[place]);
        }
    }

    /// The guest writes. True: something has changed.
    pub fn write(&mut self, at: u64, from: &[u8]) -> bool {
        let mut changed = false;
        for (index, byte) in (0u64..).zip(from) {
            let Some(place) = self.place(at, index) else { continue };
            // The two lowest bits of an address are zero, and of the control word all but one are.
            let mask = match place % ENTRY {
                0 => 0xfc,
                CONTROL => MASKED,
                13..ENTRY => 0,
                _ => 0xff,
            };
            changed |= self.bytes[place] != byte & mask;
            self.bytes[place] = byte & mask;
        }
        changed
    }

    /// Those that say something, and their numbers.
    pub fn entries(&self) -> impl Iterator<Item = (u32, Entry)> + '_ {
        (0..self.len()).map(|vector| (vector, self.get(vector))).filter(|(_, entry)| *entry != Entry::BLANK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_writes_an_entry_word_by_word() {
        let mut table = Table::new(4);
        assert_eq!(table.get(2), Entry::BLANK);
        assert!(table.write(2 * 16, &0xfee0_0003u32.to_le_bytes()));
        assert!(table.write(2 * 16 + 8, &7u32.to_le_bytes()));
        assert!(table.write(2 * 16 + 12, &0xffff_fffeu32.to_le_bytes()));
        assert!(!table.write(2 * 16 + 12, &0u32.to_le_bytes()), "one bit of it counts");
        let entry = Entry { address: 0xfee0_0000, data: 7, is_masked: false };
        assert_eq!(table.get(2), entry);
        assert_eq!(table.entries().collect::<Vec<_>>(), [(2, entry)]);
        let mut back = Table::new(4);
        table.entries().for_each(|(vector, entry)| back.set(vector, entry));
        assert_eq!(back, table);
        let mut bytes = [0; 8];
        table.read(2 * 16 + 8, &mut bytes);
        assert_eq!(bytes, [7, 0, 0, 0, 0, 0, 0, 0]);
        table.reset();
        assert_eq!(table, Table::new(4));
    }

    #[test]
    fn what_is_not_there_is_harmless() {
        let mut table = Table::new(1);
        assert!(!table.write(16, &[0xff; 8]) && !table.write(u64::MAX - 3, &[1; 8]));
        let mut bytes = [9; 8];
        table.read(12, &mut bytes);
        assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0]);
        table.read(u64::MAX, &mut bytes);
        assert_eq!((bytes, table.get(u32::MAX / 16)), ([0; 8], Entry::BLANK));
        table.set(9, Entry { address: 1, data: 1, is_masked: true });
        assert!(Table::new(0).is_empty() && Table::new(9999).len() == MAX_VECTORS);
    }
}
