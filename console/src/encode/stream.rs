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
        let mut rest = plain;
        loop {
            out.reserve((rest.len() / 2).max(ROOM));
            let before = self.zlib.total_in();
            // It fails for streams that have been finished only, which this one never is.
            let done = self.zlib.compress_vec(rest, out, FlushCompress::Sync);
            debug_assert!(done.is_ok(), "{done:?}");
            rest = &rest[(self.zlib.total_in() - before) as usize..];
            // Room that is left says that the flush is complete.
            if done.is_err() || rest.is_empty() && out.len() < out.capacity() {
                return;
            }
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
        for len in [0, 1, 5, 4096, 70_000, 300_000, 3] {
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
