//! Counters.

use super::{Mac, number};

/// Frames and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames.
    pub frames: u64,
    /// Their bytes, headers included.
    pub bytes: u64,
}

/// Of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// To one address.
    pub directed: Tally,
    /// To groups.
    pub multicast: Tally,
    /// To everybody.
    pub broadcast: Tally,
    /// Dropped, and good.
    pub discards: u64,
    /// Dropped, and bad.
    pub errors: u64,
}

/// Of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// The guest's frames.
    pub transmit: Counters,
    /// Frames for the guest.
    pub receive: Counters,
}

impl Counters {
    /// Counts a frame.
    pub fn count(&mut self, destination: &Mac, len: usize) {
        let tally = match destination {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => &mut self.broadcast,
            [first, ..] if first & 1 != 0 => &mut self.multicast,
            _ => &mut self.directed,
        };
        tally.frames += 1;
        tally.bytes += len as u64;
    }

    /// All frames that have passed.
    pub fn frames(&self) -> u64 {
        self.tallies().iter().map(|tally| tally.frames).sum()
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.tallies().iter().map(|tally| tally.bytes).sum()
    }

    fn tallies(&self) -> [Tally; 3] {
        [self.directed, self.multicast, self.broadcast]
    }

    /// As numbers in a row, for the ledger.
    pub(super) fn numbers(&mut self) -> [&mut u64; 8] {
        let Counters { directed, multicast, broadcast, discards, errors } = self;
        [
            &mut directed.frames,
            &mut directed.bytes,
            &mut multicast.frames,
            &mut multicast.bytes,
            &mut broadcast.frames,
            &mut broadcast.bytes,
            discards,
            errors,
        ]
    }
}

/// The fields of `NDIS_STATISTICS_INFO` that are valid: all.
const VALID: u32 = 0x003f_87ff;
/// Its length.
const INFO_LEN: u16 = 152;

impl Statistics {
    /// One counter; `None` if the number is none's.
    pub(super) fn counter(&self, oid: u32) -> Option<u64> {
        let Statistics { transmit, receive } = self;
        Some(match oid {
            number::GEN_XMIT_OK => transmit.frames(),
            number::GEN_RCV_OK => receive.frames(),
            number::GEN_XMIT_ERROR => transmit.errors,
            number::GEN_RCV_ERROR => receive.errors,
            number::GEN_RCV_NO_BUFFER | number::GEN_RCV_DISCARDS => receive.discards,
            number::GEN_XMIT_DISCARDS => transmit.discards,
            number::GEN_BYTES_RCV => receive.bytes(),
            number::GEN_BYTES_XMIT => transmit.bytes(),
            number::GEN_DIRECTED_BYTES_XMIT..=number::GEN_BROADCAST_FRAMES_RCV => {
                let at = (oid - number::GEN_DIRECTED_BYTES_XMIT) as usize;
                let tallies = if at < 6 { transmit.tallies() } else { receive.tallies() };
                let tally = tallies[at % 6 / 2];
                if at.is_multiple_of(2) { tally.bytes } else { tally.frames }
            }
            number::GEN_TRANSMIT_QUEUE_LENGTH
            | number::RCV_ERROR_ALIGNMENT
            | number::XMIT_ONE_COLLISION
            | number::XMIT_MORE_COLLISIONS => 0,
            _ => return None,
        })
    }

    /// Appends an `NDIS_STATISTICS_INFO`.
    pub(super) fn info(&self, out: &mut Vec<u8>) {
        let Statistics { transmit, receive } = self;
        out.extend_from_slice(&[0x80, 1]);
        out.extend_from_slice(&INFO_LEN.to_le_bytes());
        out.extend_from_slice(&VALID.to_le_bytes());
        let sums = |counters: &Counters| {
            let [directed, multicast, broadcast] = counters.tallies().map(|tally| tally.frames);
            [counters.bytes(), directed, multicast, broadcast]
        };
        let all = [receive.discards, receive.errors]
            .into_iter()
            .chain(sums(receive))
            .chain(sums(transmit))
            .chain([transmit.errors, transmit.discards])
            .chain(receive.tallies().map(|tally| tally.bytes))
            .chain(transmit.tallies().map(|tally| tally.bytes));
        out.extend(all.flat_map(u64::to_le_bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Statistics {
        let mut statistics = Statistics::default();
        for (n, number) in statistics.transmit.numbers().into_iter().enumerate() {
            *number = 1 << n;
        }
        for (n, number) in statistics.receive.numbers().into_iter().enumerate() {
            *number = 0x100 << n;
        }
        statistics
    }

    #[test]
    fn frames_are_counted_by_whom_they_are_for() {
        let mut counters = Counters::default();
        counters.count(&[2, 0, 0, 0, 0, 1], 100);
        counters.count(&[1, 0, 0x5e, 0, 0, 1], 60);
        counters.count(&[0x33, 0x33, 0, 0, 0, 1], 70);
        counters.count(&[0xff; 6], 42);
        assert_eq!(counters.directed, Tally { frames: 1, bytes: 100 });
        assert_eq!(counters.multicast, Tally { frames: 2, bytes: 130 });
        assert_eq!(counters.broadcast, Tally { frames: 1, bytes: 42 });
        assert_eq!((counters.frames(), counters.bytes()), (4, 272));
    }

    #[test]
    fn counters_have_their_numbers() {
        let statistics = some();
        let counter = |oid| statistics.counter(oid).unwrap();
        assert_eq!(counter(number::GEN_XMIT_OK), 1 + 4 + 16);
        assert_eq!(counter(number::GEN_RCV_OK), 0x100 * (1 + 4 + 16));
        assert_eq!(counter(number::GEN_BYTES_XMIT), 2 + 8 + 32);
        assert_eq!(counter(number::GEN_XMIT_DISCARDS), 64);
        assert_eq!(counter(number::GEN_RCV_ERROR), 0x8000);
        // Bytes and frames to one, to groups, to all, of the guest; then for it.
        let twelve: Vec<u64> = (0x0002_0201..=0x0002_020C).map(counter).collect();
        assert_eq!(twelve[..6], [2, 1, 8, 4, 32, 16]);
        assert_eq!(twelve[6..], [0x200, 0x100, 0x800, 0x400, 0x2000, 0x1000]);
        assert_eq!(statistics.counter(0x0002_020D), None);
    }

    #[test]
    fn the_object_of_ndis_6_has_all() {
        let mut bytes = Vec::new();
        some().info(&mut bytes);
        assert_eq!((bytes.len(), &bytes[..4]), (152, &[0x80, 1, 152, 0][..]));
        let numbers: Vec<u64> =
            bytes[8..].chunks_exact(8).map(|number| u64::from_le_bytes(number.try_into().unwrap())).collect();
        assert_eq!(numbers[..6], [0x4000, 0x8000, 0x2a00, 0x100, 0x400, 0x1000]);
        assert_eq!(numbers[6..12], [42, 1, 4, 16, 128, 64]);
        assert_eq!(numbers[12..], [0x200, 0x800, 0x2000, 2, 8, 32]);
    }
}
