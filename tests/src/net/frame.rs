//! Frames with numbers, whose every byte is known: who gets one can tell which it is and whether it is whole.

use anyhow::{Context, ensure};

/// Ethernet type of our frames: the first one for local experiments (IEEE 802).
pub const ETHERTYPE: u16 = 0x88b5;
/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of a header, a number and a length: no frame of ours is shorter.
pub const SHORTEST: usize = ETHERNET + 16;

/// A stream of frames, which are the same whenever they are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Series {
    /// To whom.
    pub to: [u8; 6],
    /// From whom.
    pub from: [u8; 6],
    /// What tells this series from others.
    pub name: u32,
    /// The longest frame, Ethernet header included.
    pub longest: usize,
}

fn mixed(number: u64) -> u64 {
    let mut x = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ x >> 32
}

impl Series {
    fn len(&self, number: u64) -> usize {
        let room = self.longest - SHORTEST + 1;
        // One in four has the largest size.
        if number % 4 == 3 { self.longest } else { SHORTEST + (mixed(number) % room as u64) as usize }
    }

    /// Frame number `number`.
    pub fn frame(&self, number: u64) -> Vec<u8> {
        let len = self.len(number);
        let mut frame = Vec::with_capacity(len + 8);
        frame.extend_from_slice(&self.to);
        frame.extend_from_slice(&self.from);
        frame.extend_from_slice(&ETHERTYPE.to_be_bytes());
        frame.extend_from_slice(&self.name.to_le_bytes());
        frame.extend_from_slice(&(len as u32).to_le_bytes());
        frame.extend_from_slice(&number.to_le_bytes());
        let seed = mixed(number ^ u64::from(self.name) << 40);
        let mut word = seed;
        while frame.len() < len {
            word = word.wrapping_add(seed | 1);
            frame.extend_from_slice(&word.to_le_bytes());
        }
        frame.truncate(len);
        frame
    }

    /// Which of them a frame is; every byte has to be right. `None` if it is another series'.
    pub fn check(&self, frame: &[u8]) -> anyhow::Result<Option<u64>> {
        if frame.len() < SHORTEST || frame[12..14] != ETHERTYPE.to_be_bytes() {
            return Ok(None);
        }
        if frame[14..18] != self.name.to_le_bytes() {
            return Ok(None);
        }
        let number = frame[22..30].first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).context("short")?;
        let wanted = self.frame(number);
        let wrong = wanted.iter().zip(frame).position(|(wanted, is)| wanted != is);
        ensure!(
            frame.len() == wanted.len() && wrong.is_none(),
            "frame {number} of {} bytes came with {}, wrong from byte {wrong:?} on",
            wanted.len(),
            frame.len()
        );
        Ok(Some(number))
    }
}

/// Which numbers have come, and how often.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    times: Vec<u8>,
    /// Numbers that have come.
    pub different: u64,
    /// Times that a number came again.
    pub again: u64,
    /// Times that a number came after a larger one, for the first time.
    pub late: u64,
}

impl Seen {
    /// A number has come.
    pub fn add(&mut self, number: u64) {
        let at = number as usize;
        if at < self.times.len() && self.times[at] == 0 {
            self.late += 1;
        }
        if at >= self.times.len() {
            self.times.resize(at + 1, 0);
        }
        let times = &mut self.times[at];
        *times = times.saturating_add(1);
        if *times == 1 { self.different += 1 } else { self.again += 1 }
    }

    /// The first numbers below `count` that have not come.
    pub fn missing(&self, count: u64) -> Vec<u64> {
        let came = |number: &u64| self.times.get(*number as usize).is_some_and(|times| *times > 0);
        (0..count).filter(|number| !came(number)).take(10).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERIES: Series = Series { to: [2; 6], from: [4; 6], name: 9, longest: 1514 };

    #[test]
    fn a_frame_is_known_by_every_byte() {
        for number in 0..50 {
            let frame = SERIES.frame(number);
            assert_eq!(SERIES.check(&frame).unwrap(), Some(number));
            assert_eq!(Series { name: 8, ..SERIES }.check(&frame).unwrap(), None);
            let mut wrong = frame.clone();
            *wrong.last_mut().unwrap() ^= 1;
            assert!(SERIES.check(&wrong).is_err());
            assert!(SERIES.check(&frame[..frame.len() - 1]).is_err() || frame.len() == SHORTEST);
        }
    }

    #[test]
    fn what_came_is_counted() {
        let mut seen = Seen::default();
        [0, 1, 3, 2, 3].into_iter().for_each(|number| seen.add(number));
        assert_eq!((seen.different, seen.again, seen.late), (4, 1, 1));
        assert_eq!(seen.missing(6), [4, 5]);
    }
}
