//! The state as bytes, for a successor.
//!
//! Records of a tag, a length and a value, all little-endian; what a build does not know it skips, so that either may be the older one.
//! What a process is started with is not in it: a successor has its own, and takes of the guest's wishes what goes with that.

use super::statistics::Statistics;
use super::{MIN_MTU, Mac, Multicast, Offloads, PacketFilter, Rss, State};
use crate::hash::HashTypes;

/// Tags of records. None is ever given another meaning.
mod tag {
    pub const MAC: u16 = 1;
    pub const MTU: u16 = 2;
    pub const LINK_UP: u16 = 3;
    pub const FILTER: u16 = 4;
    pub const MULTICAST: u16 = 5;
    pub const STATISTICS: u16 = 6;
    pub const ENABLED: u16 = 7;
    pub const RSS: u16 = 8;
    pub const NDIS_MINOR: u16 = 9;
    pub const SPEED: u16 = 10;
}

/// Bytes of a record's tag and length.
const HEAD_LEN: usize = 4;

/// Bytes that no process has written, or damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// A record ends past the end.
    #[error("the NIC's state is cut off in record {0}")]
    CutOff(u16),
    /// A record cannot be what it says.
    #[error("the NIC's state has a record {0} that makes no sense")]
    Damaged(u16),
}

impl State {
    /// Appends the state: at most 1 KiB.
    pub fn save(&self, out: &mut Vec<u8>) {
        let mut put = |tag: u16, value: &[u8]| {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&(value.len() as u16).to_le_bytes());
            out.extend_from_slice(value);
        };
        put(tag::MAC, &self.mac);
        put(tag::MTU, &self.mtu.to_le_bytes());
        put(tag::LINK_UP, &[self.link_up.into()]);
        put(tag::SPEED, &self.speed.to_le_bytes());
        put(tag::FILTER, &self.filter.bits().to_le_bytes());
        put(tag::MULTICAST, self.multicast.as_slice().as_flattened());
        put(tag::ENABLED, &self.enabled.bits().to_le_bytes());
        put(tag::NDIS_MINOR, &self.ndis_minor.to_le_bytes());
        let mut statistics = self.statistics;
        let numbers: Vec<u8> = numbers(&mut statistics).flat_map(|number| number.to_le_bytes()).collect();
        put(tag::STATISTICS, &numbers);
        if let Some(rss) = &self.rss {
            let mut value = rss.types.bits().to_le_bytes().to_vec();
            value.extend_from_slice(&rss.key);
            value.extend(rss.table().iter().flat_map(|entry| entry.to_le_bytes()));
            put(tag::RSS, &value);
        }
    }

    /// Takes over what a predecessor has saved. On an error nothing has changed.
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), RestoreError> {
        let mut new = self.clone();
        new.rss = None;
        let mut rest = saved;
        while !rest.is_empty() {
            let Some(([low, high, low_len, high_len], behind)) = rest.split_first_chunk::<HEAD_LEN>() else {
                return Err(RestoreError::CutOff(0));
            };
            let tag = u16::from_le_bytes([*low, *high]);
            let len = usize::from(u16::from_le_bytes([*low_len, *high_len]));
            let (value, behind) = behind.split_at_checked(len).ok_or(RestoreError::CutOff(tag))?;
            new.take(tag, value).ok_or(RestoreError::Damaged(tag))?;
            rest = behind;
        }
        new.mtu = new.mtu.clamp(MIN_MTU, new.max_mtu);
        new.enabled &= new.offloads;
        *self = new;
        Ok(())
    }

    /// Takes one record; `None` if it cannot be.
    fn take(&mut self, tag: u16, value: &[u8]) -> Option<()> {
        match tag {
            tag::MAC => self.mac = Mac::try_from(value).ok().filter(|mac| mac[0] & 1 == 0)?,
            tag::MTU => self.mtu = word(value)?,
            tag::LINK_UP => self.link_up = *value.first()? != 0,
            tag::SPEED => self.speed = u64::from_le_bytes(value.try_into().ok()?),
            tag::FILTER => self.filter = PacketFilter::from_bits_retain(word(value)?),
            tag::MULTICAST => {
                self.multicast = Multicast::from_bytes(value).filter(|_| value.len().is_multiple_of(6))?;
            }
            tag::ENABLED => {
                self.enabled = Offloads::from_bits_truncate(u16::from_le_bytes(value.try_into().ok()?));
            }
            tag::NDIS_MINOR => self.ndis_minor = word(value)?,
            tag::STATISTICS => {
                let (from, []) = value.as_chunks::<8>() else { return None };
                // One with more counters has ours first.
                for (number, from) in numbers(&mut self.statistics).zip(from) {
                    *number = u64::from_le_bytes(*from);
                }
            }
            tag::RSS => {
                let (types, rest) = value.split_first_chunk::<4>()?;
                let (key, rest) = rest.split_first_chunk()?;
                let (entries, []) = rest.as_chunks::<2>() else { return None };
                let entries: Vec<u16> = entries.iter().map(|entry| u16::from_le_bytes(*entry)).collect();
                let types = HashTypes::from_bits_truncate(u32::from_le_bytes(*types));
                let rss = Rss::from_parts(types, *key, &entries)?;
                // With fewer channels than before, the guest's table goes with none of them.
                self.rss = entries.iter().all(|entry| *entry < self.queues).then_some(rss);
            }
            _ => {}
        }
        Some(())
    }
}

fn word(value: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(value.try_into().ok()?))
}

/// All counters in a row.
fn numbers(statistics: &mut Statistics) -> impl Iterator<Item = &mut u64> {
    let Statistics { transmit, receive } = statistics;
    transmit.numbers().into_iter().chain(receive.numbers())
}
