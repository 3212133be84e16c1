//! How frames are spread over channels.
//!
//! Source: NDIS's `NDIS_RECEIVE_SCALE_CAPABILITIES` and `_PARAMETERS` of revision 2; what Linux sends: `rndis_set_rss_param_msg`. The
//! table's entries are numbers of channels. Hyper-V does not look at the object's header, and drivers rely on that; nor do we.

use crate::hash::{HashTypes, KEY_LEN};
use crate::rndis::RndisStatus;

/// Entries of a table that guests are told of; they may send fewer.
pub const TABLE_LEN: usize = 128;
/// Bytes of the capabilities.
const CAPABILITIES_LEN: u16 = 18;
/// Hashes by TCP ports that there are, and the Toeplitz function (`NDIS_RSS_CAPS_HASH_TYPE_*`, `NDIS_HASH_FUNC_TOEPLITZ`).
const CAPABILITIES: u32 = 0x100 | 0x200 | TOEPLITZ;
const TOEPLITZ: u32 = 1;
/// Mask of the function in what the guest says of the hash.
const FUNCTION: u32 = 0xff;

/// What of the parameters is not changed (`NDIS_RSS_PARAM_FLAG_*`).
mod flag {
    pub const HASH_UNCHANGED: u16 = 2;
    pub const TABLE_UNCHANGED: u16 = 4;
    pub const KEY_UNCHANGED: u16 = 8;
    pub const DISABLE: u16 = 0x10;
}

/// Parameters in force.
#[derive(Clone, PartialEq, Eq)]
pub struct Rss {
    /// Of what a hash is taken.
    pub types: HashTypes,
    /// The key.
    pub key: [u8; KEY_LEN],
    table: [u16; TABLE_LEN],
    len: u16,
}

impl Rss {
    /// A table as it was saved. `None`: it is none.
    pub(super) fn from_parts(types: HashTypes, key: [u8; KEY_LEN], entries: &[u16]) -> Option<Rss> {
        let mut table = [0; TABLE_LEN];
        table.get_mut(..entries.len())?.copy_from_slice(entries);
        let len = u16::try_from(entries.len()).ok()?;
        (len > 0).then_some(Rss { types, key, table, len })
    }

    /// Channels, by the low bits of a hash. Never empty.
    pub fn table(&self) -> &[u16] {
        &self.table[..self.len.into()]
    }

    /// The channel for a hash.
    pub fn channel(&self, hash: u32) -> u16 {
        self.table[hash as usize % usize::from(self.len.max(1))]
    }
}

impl std::fmt::Debug for Rss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Whoever knows the key can send all frames to one channel.
        f.debug_struct("Rss")
            .field("types", &self.types)
            .field("table", &self.table())
            .finish_non_exhaustive()
    }
}

/// Appends the capabilities of a NIC with so many channels.
pub(super) fn capabilities(queues: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0x88, 2]);
    out.extend_from_slice(&CAPABILITIES_LEN.to_le_bytes());
    // One interrupt message: there is no such thing here.
    for word in [CAPABILITIES, 1, queues.into()] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&(TABLE_LEN as u16).to_le_bytes());
}

/// The parameters after a guest has sent others; `before` are those in force.
pub(super) fn set(before: Option<&Rss>, queues: u16, value: &[u8]) -> Result<Option<Rss>, RndisStatus> {
    let parameters = Parameters::read(value).ok_or(RndisStatus::INVALID_LENGTH)?;
    if parameters.flags & flag::DISABLE != 0 {
        return Ok(None);
    }
    let unchanged = |flag: u16| before.filter(|_| parameters.flags & flag != 0);
    let types = match unchanged(flag::HASH_UNCHANGED) {
        Some(before) => before.types,
        None if parameters.hash & FUNCTION == 0 => return Ok(None),
        None if parameters.hash & FUNCTION != TOEPLITZ => return Err(RndisStatus::INVALID_DATA),
        None => HashTypes::from_bits_truncate(parameters.hash),
    };
    let key = match unchanged(flag::KEY_UNCHANGED) {
        Some(before) => before.key,
        None => {
            *parameters.key.and_then(|key| key.try_into().ok()).as_ref().ok_or(RndisStatus::INVALID_DATA)?
        }
    };
    if let Some(before) = unchanged(flag::TABLE_UNCHANGED) {
        return Ok(Some(Rss { types, key, ..before.clone() }));
    }
    let bytes = parameters.table.ok_or(RndisStatus::INVALID_DATA)?;
    let (entries, rest) = bytes.as_chunks::<4>();
    if entries.is_empty() || entries.len() > TABLE_LEN || !rest.is_empty() {
        return Err(RndisStatus::INVALID_DATA);
    }
    let mut table = [0; TABLE_LEN];
    for (place, entry) in table.iter_mut().zip(entries) {
        let channel = u16::try_from(u32::from_le_bytes(*entry)).ok().filter(|channel| *channel < queues);
        *place = channel.ok_or(RndisStatus::INVALID_DATA)?;
    }
    Ok(Some(Rss { types, key, table, len: entries.len() as u16 }))
}

/// What a guest has sent.
struct Parameters<'a> {
    flags: u16,
    hash: u32,
    /// `None`: it is not where it is said to be.
    table: Option<&'a [u8]>,
    /// The same.
    key: Option<&'a [u8]>,
}

impl<'a> Parameters<'a> {
    /// `None`: it ends before the fields that we need do.
    fn read(value: &'a [u8]) -> Option<Parameters<'a>> {
        let half = |at: usize| value.get(at..)?.first_chunk().map(|half| u16::from_le_bytes(*half));
        let word = |at: usize| value.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word));
        let part = |offset: u32, len: u16| value.get(offset as usize..)?.get(..len.into());
        Some(Parameters {
            flags: half(4)?,
            hash: word(8)?,
            table: part(word(16)?, half(12)?),
            key: part(word(24)?, half(20)?),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What Linux sends.
    pub(crate) fn parameters(flags: u16, table: &[u32], key: &[u8]) -> Vec<u8> {
        let mut value = vec![0x89, 2, 40, 0];
        value.extend_from_slice(&flags.to_le_bytes());
        value.extend_from_slice(&[0, 0]);
        let (table_len, key_len) = (table.len() as u32 * 4, key.len() as u32);
        for word in [TOEPLITZ | 0x1700, table_len, 40, key_len, 40 + table_len, 0, 0, 0] {
            value.extend_from_slice(&word.to_le_bytes());
        }
        value.extend(table.iter().flat_map(|entry| entry.to_le_bytes()));
        value.extend_from_slice(key);
        value
    }

    fn table() -> Vec<u32> {
        (0..128).map(|entry| entry % 4).collect()
    }

    #[test]
    fn linux_is_told_and_sets() {
        let mut told = Vec::new();
        capabilities(8, &mut told);
        assert_eq!(told[..4], [0x88, 2, 18, 0]);
        assert_eq!((told.len(), told[12], told[16]), (18, 8, 128));
        let rss = set(None, 4, &parameters(0, &table(), &[7; 40])).unwrap().unwrap();
        assert_eq!((rss.key, rss.table().len()), ([7; 40], 128));
        let types = HashTypes::IP4 | HashTypes::TCP_IP4 | HashTypes::IP6 | HashTypes::TCP_IP6;
        assert_eq!(rss.types, types);
        assert_eq!([0, 1, 127, 128, u32::MAX].map(|hash| rss.channel(hash)), [0, 1, 3, 0, 3]);
        // It switches off before each change.
        assert_eq!(set(Some(&rss), 4, &parameters(0x10, &table(), &[7; 40])), Ok(None));
        assert_eq!(Rss::from_parts(rss.types, rss.key, rss.table()), Some(rss));
    }

    #[test]
    fn what_is_unchanged_stays() {
        let rss = set(None, 4, &parameters(0, &table(), &[7; 40])).unwrap().unwrap();
        let new = set(Some(&rss), 4, &parameters(flag::TABLE_UNCHANGED, &[], &[8; 40])).unwrap().unwrap();
        assert_eq!((new.table(), new.key), (rss.table(), [8; 40]));
        let new = set(Some(&rss), 4, &parameters(flag::KEY_UNCHANGED, &[3], &[])).unwrap().unwrap();
        assert_eq!((new.table(), new.key), (&[3][..], [7; 40]));
        let all = flag::HASH_UNCHANGED | flag::TABLE_UNCHANGED | flag::KEY_UNCHANGED;
        assert_eq!(set(Some(&rss), 4, &parameters(all, &[], &[])), Ok(Some(rss)));
        // There is nothing that could stay.
        assert_eq!(set(None, 4, &parameters(all, &[], &[])), Err(RndisStatus::INVALID_DATA));
    }

    #[test]
    fn parameters_that_lie_are_refused() {
        let good = parameters(0, &table(), &[7; 40]);
        for len in 0..28 {
            assert_eq!(set(None, 4, &good[..len]), Err(RndisStatus::INVALID_LENGTH));
        }
        for len in 28..good.len() {
            assert_eq!(set(None, 4, &good[..len]), Err(RndisStatus::INVALID_DATA));
        }
        let wrong = |at: usize, word: u32| {
            let mut value = good.clone();
            value[at..at + 4].copy_from_slice(&word.to_le_bytes());
            set(None, 4, &value)
        };
        for (at, word) in [
            (12, 0),
            (12, 510),
            (12, 516),
            (12, 0xffff),
            (16, 600),
            (16, u32::MAX),
            (20, 39),
            (20, 41),
            (24, u32::MAX),
            (24, 553),
            (40, 4),
            (40, 0x1_0000),
            (8, 2),
        ] {
            assert_eq!(wrong(at, word), Err(RndisStatus::INVALID_DATA), "{word} at {at}");
        }
        // No function: off.
        assert_eq!(wrong(8, 0x1700), Ok(None));
        assert_eq!(set(None, 3, &good), Err(RndisStatus::INVALID_DATA), "a channel that is not there");
    }
}
