//! The loop that measures.

use std::time::Instant;

use super::work::{Places, Work};
use super::{DEEPEST, Side};

/// Nanoseconds that are one latency.
const STEP: u64 = 50;
/// Latencies that are told apart: up to 1 ms, which no median comes near.
const STEPS: usize = 20_000;
/// Reads between two looks at whether the bytes that came are those of the disk.
const LOOK_EVERY: u64 = 4096;

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Reads that ended in time.
    pub reads: u64,
    /// Nanoseconds from the first to the end.
    pub time: u64,
    /// Median of the time from the start of a read to its end, in nanoseconds.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
}

/// Does `work` on a disk of `size` bytes whose block number `n` (of 512 bytes) begins with `n`, little-endian.
pub fn measure(side: &mut dyn Side, work: &Work, size: u64, seed: u64) -> anyhow::Result<Measured> {
    let mut places = Places::new(work, size, seed);
    let mut latencies = vec![0u32; STEPS];
    let mut free: Vec<usize> = (0..work.depth).collect();
    let mut ended = Vec::with_capacity(work.depth);
    // Buffer number to the read in it.
    let mut started = [(0u64, 0u64); DEEPEST];
    let begin = Instant::now();
    let (mut reads, mut now, mut in_flight) = (0u64, 0u64, 0usize);
    let limit = work.time.as_nanos() as u64;
    // What ends after that is waited for and counts for nothing.
    let mut end = None;
    loop {
        if end.is_none() {
            in_flight += free.len();
            for slot in free.drain(..) {
                let offset = places.choose();
                side.push(slot, offset, work.block)?;
                started[slot] = (offset, now);
            }
            side.submit()?;
        } else if in_flight == 0 {
            break;
        }
        ended.clear();
        side.reap(&mut ended)?;
        now = begin.elapsed().as_nanos() as u64;
        in_flight -= ended.len();
        for &slot in &ended {
            let (offset, at) = started[slot];
            let step = ((now - at) / STEP) as usize;
            latencies[step.min(STEPS - 1)] += 1;
            if reads.is_multiple_of(LOOK_EVERY) {
                check(side, slot, offset, work.block)?;
            }
            reads += u64::from(end.is_none());
        }
        if now >= limit {
            end.get_or_insert(now);
        }
        free.append(&mut ended);
    }
    let permille = |wanted: u64| {
        let all: u64 = latencies.iter().map(|count| u64::from(*count)).sum();
        let mut seen = 0;
        let at = latencies.iter().position(|count| {
            seen += u64::from(*count);
            seen * 1000 >= all * wanted
        });
        at.unwrap_or(STEPS) as u64 * STEP + STEP / 2
    };
    Ok(Measured { reads, time: end.unwrap_or(now).max(1), p50: permille(500), p99: permille(990) })
}

/// Whether the read block and the last one are those that were asked for.
fn check(side: &mut dyn Side, slot: usize, offset: u64, len: u32) -> anyhow::Result<()> {
    let mut bytes = [0; super::LONGEST as usize];
    let bytes = &mut bytes[..len as usize];
    side.look(slot, bytes)?;
    for at in [0, len as usize - 512] {
        let found = bytes[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let wanted = (offset + at as u64) / 512;
        anyhow::ensure!(found == Some(wanted), "block {wanted} was read as {found:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A disk that ends everything at once, last first.
    struct Mock {
        under_way: Vec<usize>,
        slots: Vec<(u64, u32)>,
        wrong: bool,
    }

    impl Side for Mock {
        fn push(&mut self, slot: usize, offset: u64, len: u32) -> anyhow::Result<()> {
            self.under_way.push(slot);
            self.slots[slot] = (offset, len);
            Ok(())
        }
        fn submit(&mut self) -> anyhow::Result<()> {
            Ok(())
        }
        fn reap(&mut self, ended: &mut Vec<usize>) -> anyhow::Result<()> {
            ended.extend(self.under_way.pop());
            Ok(())
        }
        fn look(&mut self, slot: usize, into: &mut [u8]) -> anyhow::Result<()> {
            let first = self.slots[slot].0 / 512 + u64::from(self.wrong);
            for (n, block) in (first..).zip(into.chunks_exact_mut(512)) {
                block[..8].copy_from_slice(&n.to_le_bytes());
            }
            Ok(())
        }
    }

    fn mock(wrong: bool) -> Mock {
        Mock { under_way: Vec::new(), slots: vec![(0, 0); DEEPEST], wrong }
    }

    #[test]
    fn everything_that_was_started_is_waited_for() {
        let work = Work { block: 4096, depth: 8, random: true, time: Duration::from_millis(5) };
        let mut side = mock(false);
        let measured = measure(&mut side, &work, 1 << 20, 1).unwrap();
        assert!(measured.reads > 0 && side.under_way.is_empty());
        assert!(measured.p50 <= measured.p99);
    }

    #[test]
    fn wrong_bytes_are_noticed() {
        let work = Work { block: 4096, depth: 1, random: false, time: Duration::from_millis(5) };
        assert!(measure(&mut mock(true), &work, 1 << 20, 1).is_err());
    }
}
