//! Keys, and which of them are down.

/// What comes before a scan code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// Nothing.
    None,
    /// 0xE0: keys that the first PC keyboard did not have.
    E0,
    /// 0xE1: Pause.
    E1,
}

/// A key of a PC keyboard, by its scan code of set 1 without the bit that says "up".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// 1 to 0x7f.
    pub code: u8,
    /// In front of it.
    pub prefix: Prefix,
}

impl From<&seat::keyboard::Key> for Key {
    fn from(key: &seat::keyboard::Key) -> Key {
        let prefix = match (key.e0, key.e1) {
            (false, false) => Prefix::None,
            (true, _) => Prefix::E0,
            (false, true) => Prefix::E1,
        };
        // The console's message was parsed: there is no more to the code.
        Key { code: (key.scancode & 0x7f) as u8, prefix }
    }
}

/// Bytes of [`Keys`] in the ledger.
pub const BYTES: usize = 48;

/// Num Lock's code, and the second half of Pause.
const NUM_LOCK: Key = Key { code: 0x45, prefix: Prefix::None };

/// A set of keys: those that are down, as far as the guest knows.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Keys {
    /// A bit for each code: without prefix, behind E0, behind E1.
    bits: [u128; 3],
}

impl Keys {
    /// Whether it is in there.
    pub fn contains(&self, key: Key) -> bool {
        self.bits[key.prefix as usize] & bit(key) != 0
    }

    /// Puts it in.
    pub fn insert(&mut self, key: Key) {
        self.bits[key.prefix as usize] |= bit(key);
    }

    /// Takes it out.
    pub fn remove(&mut self, key: Key) {
        self.bits[key.prefix as usize] &= !bit(key);
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.bits == [0; 3]
    }

    /// The one to be released first if all are to be. Pause is two codes that have to follow each other (E1 1D, 45).
    pub fn first(&self) -> Option<Key> {
        let lowest = |prefix: Prefix| {
            let bits = self.bits[prefix as usize];
            (bits != 0).then(|| Key { code: bits.trailing_zeros() as u8, prefix })
        };
        lowest(Prefix::E1)
            .or_else(|| self.contains(NUM_LOCK).then_some(NUM_LOCK))
            .or_else(|| lowest(Prefix::None))
            .or_else(|| lowest(Prefix::E0))
    }

    /// For the ledger.
    pub fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        for (to, from) in bytes.chunks_exact_mut(16).zip(self.bits) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        bytes
    }

    /// The same back.
    pub fn of_bytes(bytes: [u8; BYTES]) -> Keys {
        let (words, _) = bytes.as_chunks::<16>();
        let mut bits = [0; 3];
        for (to, from) in bits.iter_mut().zip(words) {
            *to = u128::from_le_bytes(*from);
        }
        Keys { bits }
    }
}

fn bit(key: Key) -> u128 {
    1 << (key.code & 0x7f)
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut left = *self;
        f.debug_set()
            .entries(std::iter::from_fn(|| {
                let key = left.first()?;
                left.remove(key);
                Some(key)
            }))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Prefix; 3] = [Prefix::None, Prefix::E0, Prefix::E1];

    fn every() -> impl Iterator<Item = Key> {
        ALL.into_iter().flat_map(|prefix| (0..=0x7f).map(move |code| Key { code, prefix }))
    }

    #[test]
    fn each_key_is_one_of_its_own() {
        for key in every() {
            let mut keys = Keys::default();
            keys.insert(key);
            assert_eq!(every().filter(|other| keys.contains(*other)).collect::<Vec<_>>(), [key]);
            assert_eq!(keys.first(), Some(key));
            assert_eq!(Keys::of_bytes(keys.to_bytes()), keys);
            keys.remove(key);
            assert!(keys.is_empty() && keys.first().is_none());
        }
    }

    #[test]
    fn the_halves_of_pause_go_up_together() {
        let mut keys = Keys::default();
        every().for_each(|key| keys.insert(key));
        let mut order = Vec::new();
        while let Some(key) = keys.first() {
            keys.remove(key);
            order.push(key);
        }
        assert_eq!(order.len(), 3 * 128);
        let last_e1 = order.iter().rposition(|key| key.prefix == Prefix::E1).unwrap();
        assert_eq!(order[last_e1 + 1], NUM_LOCK);
    }
}
