//! Which file a disk is: a path can come to lead to another one while a guest runs.
//!
//! A process opens its disks once, and whoever follows it opens the paths again. If one leads elsewhere by then, the guest's
//! file system would go on writing into a stranger's file. So the name of each disk's file is device state.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::UNIX_EPOCH;

use crate::disk::{Shape, hash};

/// Most disks that a controller has, and so names that are remembered.
pub const MOST: usize = 64;
/// Bytes of [`Identities`] in a ledger.
pub const LEN: usize = MOST * 8;
/// A name takes the lower bits of a word; the LUN is above it.
const LUN_SHIFT: u32 = 56;
const NAME: u64 = (1 << LUN_SHIFT) - 1;

/// The name of a file in the world of its host, or none where files have no reliable ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity(u64);

impl Identity {
    /// Nobody knows.
    pub const UNKNOWN: Identity = Identity(0);

    /// Of an open disk.
    pub fn of(metadata: &Metadata, shape: &Shape) -> Identity {
        let words = if metadata.file_type().is_block_device() {
            // The kernel counts disks that come and go: the same number may be another disk.
            [metadata.rdev(), shape.sequence, 0]
        } else if shape.local {
            // The number of a deleted file is soon a new one's; that is born later.
            let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            [metadata.dev(), metadata.ino(), born.map_or(0, |born| born.as_nanos() as u64)]
        } else {
            // Servers of network file systems and the like give numbers as they please.
            return Identity::UNKNOWN;
        };
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        Identity((hash(&bytes) & NAME).max(1))
    }

    /// Whether the two are known to be different files.
    pub fn differs(self, other: Identity) -> bool {
        self != Identity::UNKNOWN && other != Identity::UNKNOWN && self != other
    }
}

/// The identities of a controller's disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identities([u64; MOST]);

impl Default for Identities {
    fn default() -> Identities {
        Identities([0; MOST])
    }
}

impl Identities {
    /// That of a LUN's disk.
    pub fn of(&self, lun: u8) -> Identity {
        let word = self.0.iter().find(|word| **word != 0 && (**word >> LUN_SHIFT) as u8 == lun);
        Identity(word.map_or(0, |word| word & NAME))
    }

    /// Remembers one, or forgets it ([`Identity::UNKNOWN`]).
    pub fn set(&mut self, lun: u8, identity: Identity) {
        for word in &mut self.0 {
            if *word != 0 && (*word >> LUN_SHIFT) as u8 == lun {
                *word = 0;
            }
        }
        if identity != Identity::UNKNOWN
            && let Some(free) = self.0.iter_mut().find(|word| **word == 0)
        {
            *free = u64::from(lun) << LUN_SHIFT | identity.0 & NAME;
        }
    }

    /// For the ledger.
    pub fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        for (to, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From the ledger.
    pub fn decode(bytes: &[u8; LEN]) -> Identities {
        let (words, _) = bytes.as_chunks();
        Identities(std::array::from_fn(|at| words.get(at).map_or(0, |word| u64::from_le_bytes(*word))))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    const SHAPE: Shape = Shape { block_size: 512, physical: 4096, can_unmap: true, local: true, sequence: 0 };

    #[test]
    fn a_file_in_the_place_of_another_is_not_that_one() {
        let path = std::env::temp_dir().join(format!("bulkhead-identity-{}", std::process::id()));
        let of = || {
            let file = File::options().create(true).append(true).open(&path).unwrap();
            Identity::of(&file.metadata().unwrap(), &SHAPE)
        };
        let first = of();
        assert_eq!(first, of());
        assert!(!first.differs(of()));
        // The kernel's clock of file systems goes by ticks.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::remove_file(&path).unwrap();
        assert!(first.differs(of()), "though it may well have the same number");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn where_files_have_no_reliable_names_none_is_believed() {
        let metadata = fs::metadata("/proc/self/status").unwrap();
        let unknown = Identity::of(&metadata, &Shape { local: false, ..SHAPE });
        assert_eq!(unknown, Identity::UNKNOWN);
        assert!(!unknown.differs(Identity(7)) && !Identity(7).differs(unknown));
    }

    #[test]
    fn names_come_back_as_they_were() {
        let mut all = Identities::default();
        for lun in 0..64 {
            all.set(lun * 2, Identity(1 + u64::from(lun)));
        }
        all.set(4, Identity(99));
        all.set(6, Identity::UNKNOWN);
        let back = Identities::decode(&all.encode());
        assert_eq!(back, all);
        assert_eq!((back.of(0), back.of(4), back.of(126)), (Identity(1), Identity(99), Identity(64)));
        assert_eq!((back.of(6), back.of(1)), (Identity::UNKNOWN, Identity::UNKNOWN));
    }
}
