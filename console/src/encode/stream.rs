//! A compressed stream that goes on from rectangle to rectangle.

use flate2::{Compress, Compression, FlushCompress};

/// Least room for the next bytes of a stream.
const ROOM: usize = 4096;

/// A zlib stream (RFC 1950) of which each part ends at a byte, so that the viewer can read all of it.
#[derive(Debug)]
pub struct Stream {
    zlib: Compress,
}

impl Stream {
    /// Begins one.
    pub fn new(level: u8) -> Stream {
        Stream { zlib: Compress::new(Compression::new(level.into()), true) }
    }

    /// Appends what becomes of these bytes.
    pub fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        let (mut rest, mut was_full) = (plain, false);
        loop {
            out.reserve((rest.len() / 2).max(ROOM));
            let before = self.zlib.total_in();
            // It fails for streams that have been finished only, which this one never is.
            let done = self.zlib.compress_vec(rest, out, FlushCompress::Sync);
            debug_assert!(done.is_ok(), "{done:?}");
            rest = &rest[(self.zlib.total_in() - before) as usize..];
            let is_full = out.len() == out.capacity();
            // Room that is left says that the flush is complete. But a call that begins with what the one before had no room for does no more than that
            // (miniz_oxide), whatever room there is: what has not been flushed would be missing until the next rectangle.
            if done.is_err() || rest.is_empty() && !is_full && !was_full {
                return;
            }
            was_full = is_full;
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Decompress, FlushDecompress};

    use super::*;

    #[test]
    fn each_part_can_be_read_by_itself() {
        let mut stream = Stream::new(1);
        let mut zlib = Decompress::new(true);
        let mut noise = 1u32;
        // Where the room ends depends on the length: one in some twenty had its end left out once.
        let all_sorts = (0..120).map(|n| 60_000 + n * 1_021);
        for len in [0, 1, 5, 4096, 70_000, 300_000, 3].into_iter().chain(all_sorts) {
            let plain: Vec<u8> = std::iter::repeat_with(|| {
                noise = noise.wrapping_mul(1_103_515_245).wrapping_add(12345);
                (noise >> 16) as u8
            })
            .take(len)
            .collect();
            let mut packed = Vec::new();
            stream.compress(&plain, &mut packed);
            let mut back = Vec::with_capacity(len + 1);
            let before = zlib.total_in();
            zlib.decompress_vec(&packed, &mut back, FlushDecompress::Sync).unwrap();
            assert!(back == plain, "{len} bytes");
            assert_eq!((zlib.total_in() - before) as usize, packed.len(), "{len} bytes");
        }
    }
}
